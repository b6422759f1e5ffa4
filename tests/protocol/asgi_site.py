"""
The site of ``tests.protocol.site`` under ASGI: its pages, their async versions, and one page that
tells when a visitor has left.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from django.db.transaction import non_atomic_requests
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.utils.decorators import async_only_middleware

from everifin_django.decorators import everifin_required

LONGEST_SECONDS = 60

left = threading.Event()
"""Set once the work for a visitor was cancelled, and that was felt up here."""


@async_only_middleware
def note_who_leaves(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Stands in front of all other middleware."""

    async def middleware(request: HttpRequest) -> Any:
        try:
            return await get_response(request)
        except asyncio.CancelledError:
            left.set()
            raise

    return middleware


async def anybody_left(request: HttpRequest) -> HttpResponse:
    is_so = await asyncio.to_thread(left.wait, LONGEST_SECONDS)
    return HttpResponse(status=200 if is_so else 504)


async def aunmarked(request: Any) -> JsonResponse:
    return JsonResponse({"accounts": [one.id async for one in request.everifin.aaccounts()]})


async def aunmarked_then_error(request: HttpRequest) -> JsonResponse:
    await aunmarked(request)
    raise ZeroDivisionError


urlpatterns = [
    path("aaccounts/", everifin_required(aunmarked)),
    path("amarked-then-error/", non_atomic_requests(everifin_required(aunmarked_then_error))),
    path("aunmarked/", aunmarked),
    path("aunmarked-then-error/", non_atomic_requests(aunmarked_then_error)),
    path("left/", anybody_left),
    path("", include("tests.protocol.site")),
]

"""Pages that look at the session, or change its key in mid-life."""

from typing import Any

from django.contrib import auth
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def change_password(request: Any) -> HttpResponse:
    request.user.set_password("another")
    request.user.save()
    auth.update_session_auth_hash(request, request.user)
    return HttpResponse()


def cycle(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    return HttpResponse()


async def acycle(request: HttpRequest) -> HttpResponse:
    await request.session.acycle_key()
    return HttpResponse()


def look(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.user.is_authenticated))


urlpatterns = [
    path("change-password/", change_password),
    path("cycle/", cycle),
    path("acycle/", acycle),
    path("look/", look),
    path("everifin/", include("everifin_django.urls")),
]

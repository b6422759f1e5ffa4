"""
The type of the request that a view receives behind EverifinMiddleware.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpRequest

if TYPE_CHECKING:
    from everifin_django.connections.grants import Everifin

__all__ = ["EverifinRequest"]


class EverifinRequest(HttpRequest):
    """
    An annotation for views: ``def accounts(request: EverifinRequest) -> HttpResponse``.

    Only type checkers need it. At run time a request is Django's own, with ``everifin`` set on it.
    """

    everifin: Everifin

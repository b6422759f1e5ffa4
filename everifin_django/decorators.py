"""
Mark views that need Everifin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest

__all__ = ["everifin_required"]

MARK = "everifin_scopes"

View = Callable[..., Any]


@overload
def everifin_required(view: View) -> View: ...


@overload
def everifin_required(*, scopes: Iterable[str] = ()) -> Callable[[View], View]: ...


def everifin_required(
    view: View | None = None, *, scopes: Iterable[str] = ()
) -> View | Callable[[View], View]:
    """
    Mark a view: it runs with an access token that is fresh and covers *scopes*, or not at all.

    The middleware sees the mark and refreshes before the view's transaction begins. Who is not
    connected is sent to connect and comes back; ``fetch`` gets 401 with the address, htmx
    ``HX-Redirect``. While Everifin is down the answer is 503. Works on sync and async views, with
    or without parentheses. Costs one query and one decryption while the token is fresh.
    """
    needed = frozenset([scopes] if isinstance(scopes, str) else scopes)

    def mark(view: View) -> View:
        if iscoroutinefunction(view):

            @wraps(view)
            async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                await sync_to_async(_require)(request, needed)
                return await view(request, *args, **kwargs)

            wrapper: View = awrapper
        else:

            @wraps(view)
            def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                _require(request, needed)
                return view(request, *args, **kwargs)

        setattr(wrapper, MARK, needed)
        return wrapper

    return mark if view is None else mark(view)


def requirement_of(view: View) -> frozenset[str] | None:
    """Return the scopes a marked view needs, None for a view without the mark."""
    return getattr(view, MARK, None)


def _require(request: Any, scopes: frozenset[str]) -> None:
    # The middleware has done it already, unless a decorator without ``wraps`` hid the mark from it.
    request.everifin.ensure_token(scopes)

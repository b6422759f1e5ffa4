"""
The decorator for views that need Everifin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpResponseBase
from django.utils.cache import patch_cache_control

__all__ = ["everifin_required"]

P = ParamSpec("P")
R = TypeVar("R")

SCOPES_ATTRIBUTE = "everifin_scopes"


@overload
def everifin_required(view: Callable[P, R]) -> Callable[P, R]: ...


@overload
def everifin_required(
    *, scopes: Iterable[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def everifin_required(
    view: Callable[..., Any] | None = None, *, scopes: Iterable[str] = ()
) -> Callable[..., Any]:
    """
    Decorate a view: it runs with a fresh access token that covers *scopes*, or not at all.

    The middleware finds the decorated view and refreshes the token before the view's transaction
    begins. A user without a connection is redirected to the connect page and back; ``fetch`` gets
    403 with the page's URL (401 if nobody is logged in), htmx ``HX-Redirect``. While Everifin is
    down the answer is 503. Works on sync and async views, with or without parentheses, and on
    methods by Django's ``method_decorator``. The response is ``private, no-store`` unless the view
    sets Cache-Control, and Django's ``cache_page`` does not store it. Costs one query and one
    decryption while the token is fresh.

    Errors: TypeError for a class, and for a view of REST framework, which authenticates later.
    """
    needed = frozenset([scopes] if isinstance(scopes, str) else scopes)

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        _refuse_what_would_not_work(view)
        wrap: Any = _wrap_async if iscoroutinefunction(view) else _wrap
        wrapper: Callable[P, R] = wrap(view, needed)
        setattr(wrapper, SCOPES_ATTRIBUTE, needed)
        return wrapper

    return decorate if view is None else decorate(view)


def required_scopes(view: Callable[..., Any]) -> frozenset[str] | None:
    """Return the scopes that a decorated view needs, None for a view that is not decorated."""
    return getattr(view, SCOPES_ATTRIBUTE, None)


def _refuse_what_would_not_work(view: Any) -> None:
    if isinstance(view, type):
        raise TypeError(
            "@everifin_required decorates functions. Put EverifinRequiredMixin first among the "
            f"bases of {view.__name__} instead."
        )
    if hasattr(getattr(view, "cls", None), "authentication_classes"):
        raise TypeError(
            f"REST framework authenticates inside {view.__name__}, after @everifin_required would "
            "have asked who the user is. Give the view the permission "
            "everifin_django.contrib.rest_framework.EverifinConnected, or put @everifin_required "
            "below @api_view."
        )


def _wrap(view: Callable[P, R], needed: frozenset[str]) -> Callable[P, R]:
    @wraps(view)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        _require(_request_of(args, kwargs), needed)
        return view(*args, **kwargs)

    return wrapper


def _wrap_async(
    view: Callable[P, Awaitable[R]], needed: frozenset[str]
) -> Callable[P, Awaitable[R]]:
    @wraps(view)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        await sync_to_async(_require)(_request_of(args, kwargs), needed)
        return await view(*args, **kwargs)

    return wrapper


def _request_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs["request"]


def _require(request: Any, scopes: frozenset[str]) -> None:
    # Done by the middleware already, unless a decorator without ``wraps`` hid the view from it.
    request.everifin.ensure_token(scopes)
    mark_as_bank_data(request)


class BankDataRequest:
    """
    A request for bank data: its response is private, and Django's ``cache_page`` does not store it.

    ``cache_page`` around or below the decorated view asks an attribute of the request, which it
    also sets; below the view it would see neither ``Cache-Control`` nor ``Vary: Cookie``, and would
    show one user's accounts to the next.
    """

    @property
    def _cache_update_cache(self) -> bool:
        return False

    @_cache_update_cache.setter
    def _cache_update_cache(self, value: bool) -> None:
        pass


@cache
def _bank_data_kind(kind: Hashable) -> Any:
    base: Any = kind
    return type(base.__name__, (BankDataRequest, base), {"__module__": base.__module__})


def mark_as_bank_data(request: Any) -> None:
    """Make *request*, which may be REST framework's, a BankDataRequest."""
    request = getattr(request, "_request", request)
    if not isinstance(request, BankDataRequest):
        kind: Any = type(request)
        request.__class__ = _bank_data_kind(kind)


def keep_private(response: HttpResponseBase) -> None:
    """Make a response ``private, no-store`` unless the view has set Cache-Control itself."""
    if not response.has_header("Cache-Control"):
        patch_cache_control(response, private=True, no_store=True)

"""
Set a lazy ``request.everifin`` on each request, and make the token fresh before a decorated view
begins.

A page that does not use it costs one attribute to set and one to read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse
from django.utils.functional import SimpleLazyObject, empty

from everifin_django.bank.end_user import is_public, read_ip, sendable_user_agent
from everifin_django.conf import conf, is_plain_loopback
from everifin_django.decorators import BankDataRequest, keep_private, required_scopes
from everifin_django.exceptions import EverifinError
from everifin_django.models import LOGIN_SESSION_KEY

__all__ = ["EverifinMiddleware"]

SANDBOX_VISITOR = "192.0.2.1"
AGAIN_SECONDS = 1

logger = logging.getLogger(__name__)


class EverifinMiddleware:
    """
    Comes after AuthenticationMiddleware, for ``request.user``. Sync and async.

    Stores nothing of a request on itself. A view of an ATOMIC_REQUESTS site begins its transaction
    after ``process_view``, so a token refreshed here outlives its rollback.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        # Read once, as Django's own middleware reads its settings: looking up a setting that a
        # site has not set would cost more than all the rest here.
        self.prepares_every_view = conf.refresh_every_view
        self.is_async = iscoroutinefunction(get_response)
        # Django takes a hook as sync or async by what it is; the wrong kind would cost a thread for
        # each request.
        self.process_view: Callable[..., Any] = self._process_view
        if self.is_async:
            markcoroutinefunction(self)
            self.process_view = self._aprocess_view

    def __call__(self, request: HttpRequest) -> Any:
        request.everifin = _LazyEverifin(request)  # type: ignore[attr-defined]
        if self.is_async:
            return self._acall(request)
        response = self.get_response(request)
        if isinstance(request, BankDataRequest):
            keep_private(response)
        if _has_changed(request):
            _follow(request, response)
        return _stop_circle(request, response)

    async def _acall(self, request: HttpRequest) -> Any:
        response = await self.get_response(request)
        if isinstance(request, BankDataRequest):
            keep_private(response)
        if _has_changed(request):
            await sync_to_async(_follow)(request, response)
        if _leads_to_our_login(response):
            return await sync_to_async(_stop_circle)(request, response)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, EverifinError):
            return None
        if getattr(exception, "refresh_later", None) is not None:
            return _refresh_and_ask_again(request, exception)
        return _answer(request, exception)

    def _process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        return _prepare(request, required_scopes(view)) if self._is_wanted(view) else None

    async def _aprocess_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        if not self._is_wanted(view):
            return None
        return await sync_to_async(_prepare)(request, required_scopes(view))

    def _is_wanted(self, view: Callable[..., Any]) -> bool:
        return self.prepares_every_view or required_scopes(view) is not None


class _LazyEverifin(SimpleLazyObject):  # type: ignore[type-arg]  # only generic in its stubs
    """
    ``request.everifin``: made on first use, and anew once ``request.user`` is another object.

    Django's ``login()`` and REST framework's authentication set another user in the middle of a
    request, and what was made for the one before must not serve them.
    """

    def __init__(self, request: HttpRequest) -> None:
        self.__dict__["_request"] = request
        super().__init__(lambda: _everifin(request))

    def __getattr__(self, name: str) -> Any:
        made, request = self.__dict__["_wrapped"], self.__dict__["_request"]
        if made is not empty and made.user is not request.user:
            self._wrapped = empty
        return super().__getattr__(name)


def end_user_ip(request: HttpRequest) -> str | None:
    """
    Return the IP address of the person present; None if it cannot be known for sure, or is none
    that a visitor of a public site has.

    From the peer, or with EVERIFIN_TRUSTED_PROXIES=n from the n-th entry from the right of
    X-Forwarded-For: all further to the left is whatever the visitor wrote. Ports, brackets and
    quotes are read past, and IPv4 within IPv6 is IPv4 (RFC 7239, section 6). To a sandbox on this
    machine, a visitor on this machine has an address of documentation.
    """
    node = request.META.get("REMOTE_ADDR", "")
    if proxies := conf.trusted_proxies:
        hops = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
        node = hops[-proxies] if len(hops) >= proxies else ""
    ip = read_ip(node)
    if ip is None or not is_public(ip):
        is_local = ip is not None and ip.is_loopback and is_plain_loopback(conf.api_url)
        return SANDBOX_VISITOR if is_local else None
    return str(ip)


def _prepare(request: Any, scopes: frozenset[str] | None) -> HttpResponse | None:
    """
    Make the token fresh for a view; return the answer instead of a decorated one if that fails.
    """
    if scopes is None and not request.user.is_authenticated:
        return None
    try:
        request.everifin.ensure_token(scopes or frozenset())
    except EverifinError as error:
        if scopes is None:
            # A view that is not decorated may not need Everifin: if it does, it gets the error
            # there.
            return None
        response = _answer(request, error)
        if response is None:
            raise
        return response
    return None


def _leads_to_our_login(response: Any) -> bool:
    if response.status_code != 302:
        return False
    try:
        return bool(response["Location"].partition("?")[0] == reverse("everifin_django:login"))
    except NoReverseMatch:
        return False


def _stop_circle(request: HttpRequest, response: Any) -> Any:
    """
    A page that sends a user who is logged in to our login refuses that user: 403 and the reason.

    ``permission_required`` does so, and the login would send the user straight back.
    """
    if _leads_to_our_login(response) and request.user.is_authenticated:
        from everifin_django.web.responses import user_not_allowed  # as above

        return user_not_allowed(request)
    return response


def _everifin(request: HttpRequest) -> Any:
    # Imported on first use: a site's pages that do not call Everifin never load the HTTP client.
    from everifin_django.bank.client import EndUser
    from everifin_django.connections.grants import Everifin

    user_agent = sendable_user_agent(request.headers.get("User-Agent", ""))
    return Everifin(
        request.user,
        end_user=EndUser(ip=end_user_ip(request), user_agent=user_agent),
        build_url=partial(_absolute_url, request),
        require=partial(_require_access, request) if conf.access_check else None,
    )


def _require_access(request: HttpRequest, action: Any) -> None:
    from everifin_django.web.access import require  # as above

    require(request, action)


def _absolute_url(request: HttpRequest, path: str) -> str:
    from everifin_django.web.login_flow import absolute_url  # as above

    return absolute_url(request, path)


def _refresh_and_ask_again(request: HttpRequest, error: Any) -> HttpResponse | None:
    """
    Refresh what the view's transaction had no room for: Django has rolled it back by now, and the
    request's own connection is free. The answer is 503; a page then loads itself again.
    """
    from everifin_django.connections.refresh import refresh_after_rollback  # as above
    from everifin_django.web.responses import unavailable, wants_page

    match = request.resolver_match
    logger.warning(
        "The view %s needed a new Everifin token inside its transaction, and has to be asked "
        "again. Mark it with @everifin_required.",
        match._func_path if match else "",
    )
    try:
        refresh_after_rollback(error.refresh_later)
    except EverifinError as failure:
        if getattr(failure, "refresh_later", None) is not None:  # still inside a transaction
            return unavailable(request, AGAIN_SECONDS)
        return _answer(request, failure)
    response = unavailable(request, AGAIN_SECONDS)
    if request.method in ("GET", "HEAD") and wants_page(request):
        response["Refresh"] = str(AGAIN_SECONDS)
    return response


def _answer(request: HttpRequest, error: Exception) -> HttpResponse | None:
    from everifin_django.web.responses import answer_for  # as above: only when something failed

    return answer_for(request, error)


def _has_changed(request: Any) -> bool:
    """Is there anything to do for a login with Everifin? Most pages pay for two look-ups."""
    if getattr(request, "everifin_logged_out", None) is not None:
        return True
    session = getattr(request, "session", None)
    if session is None or not session.accessed or session.get(LOGIN_SESSION_KEY) is None:
        return False
    from everifin_django.web.browser_session import has_changed  # for logins with Everifin alone

    return has_changed(request)


def _follow(request: HttpRequest, response: HttpResponse) -> None:
    from everifin_django.web.browser_session import follow  # as above

    follow(request, response.status_code)

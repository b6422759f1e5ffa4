"""
The answers to failures: a browser is sent to the connect page and back, a script gets
problem+json, htmx its header.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode, urlsplit, urlunsplit

from django.conf import settings
from django.core.exceptions import DisallowedRedirect
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render, resolve_url
from django.template.loader import render_to_string
from django.urls import get_script_prefix, reverse
from django.utils.cache import add_never_cache_headers
from django.utils.translation import gettext as _

from everifin_django.backends import login_backend
from everifin_django.conf import conf
from everifin_django.exceptions import (
    AccessDeniedError,
    ConsentExpiredError,
    EverifinError,
    PaymentUncertainError,
    ScopeMissingError,
    TokenMissingError,
    TokenUnreadableError,
    UnavailableError,
)
from everifin_django.web.notices import (
    ENDED,
    LOGGED_IN,
    MISCONFIGURED,
    NOTICES,
    PAYMENT_UNCERTAIN,
    SCOPE_MISSING,
    UNAVAILABLE,
    Notice,
)

logger = logging.getLogger(__name__)
security_logger = logging.getLogger("everifin_django.security")

NOTICE_SESSION_KEY = "everifin_notice"
DEFAULT_RETRY_SECONDS = 30


class LeaveResponse(HttpResponse):
    """The answer that sends a person on to ``url``, which Django's redirects have, too."""

    url: str


def leave_for(request: HttpRequest, url: str) -> LeaveResponse:
    """
    Answer a form by sending the person on to *url*, at another site.

    200 with a small page that continues by itself; htmx gets HX-Redirect. A redirect would not do:
    Chromium holds the redirects after a form to ``form-action``, too, and blocks one to another
    site without a word. Errors: DisallowedRedirect if *url* is not http or https.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DisallowedRedirect("Only http and https lead to another site.")
    if _is_htmx(request):
        response = LeaveResponse(headers={"HX-Redirect": url})
    else:
        context = {"url": url, "host": parts.hostname}
        page = render_to_string("everifin_django/leave.html", context, request)
        response = LeaveResponse(page, headers={"X-Frame-Options": "DENY"})
    response.url = url
    response["Referrer-Policy"] = "same-origin"
    add_never_cache_headers(response)
    return response


@dataclass(frozen=True, slots=True)
class Action:
    """What a person can do next: the words and the URL of a link."""

    label: str
    url: str


def start_again(request: HttpRequest) -> Action:
    """Return the step to the page with the button."""
    is_login = not request.user.is_authenticated and login_backend() is not None
    page = reverse("everifin_django:login") if is_login else _connect_or_login_page(request)
    return Action(_("Start again"), page)


def _once_more(request: HttpRequest) -> Action | None:
    # A form that was sent cannot be sent again by a link.
    is_repeatable = request.method in ("GET", "HEAD")
    return Action(_("Try again"), request.get_full_path()) if is_repeatable else None


def answer_for(
    request: HttpRequest, error: Exception, *, as_page: bool | None = None
) -> HttpResponse | None:
    """
    Return the answer to a request that *error* ended, or None if it is a matter for the site's
    developer. A page or problem+json: by *as_page*, else as the request wants it.

    The user has to act: 302 to the connect page, problem+json (401 if nobody is logged in, else
    403), or HX-Redirect. Everifin or the operator has to: 503 with Retry-After; the user is not
    asked to connect again. A payment may have been made or not: 502, and nothing that leads to
    paying again.
    """
    as_page = wants_page(request) if as_page is None else as_page
    if isinstance(error, AccessDeniedError):
        return _as_the_site_says(request, error.response, as_page=as_page)
    if isinstance(error, TokenMissingError | ConsentExpiredError | ScopeMissingError):
        if never_requested := _scopes_never_requested(error):
            return _misconfigured(request, never_requested, as_page=as_page)
        return _ask_to_connect(request, error, as_page=as_page)
    if isinstance(error, UnavailableError | TokenUnreadableError):
        if isinstance(error, TokenUnreadableError):
            logger.error("A stored token cannot be read: %s", error)
        return unavailable(request, getattr(error, "retry_after_seconds", None), as_page=as_page)
    if isinstance(error, PaymentUncertainError):
        logger.error("A payment may have been made or not: %s", error)
        return _payment_uncertain(request, as_page=as_page)
    return None


def _as_the_site_says(request: HttpRequest, response: Any, *, as_page: bool) -> HttpResponse:
    """The site's own response. A script is told where a redirect would lead, htmx goes there."""
    url = response.headers.get("Location") if response is not None else None
    if url and _is_htmx(request):
        response = HttpResponse(headers={"HX-Redirect": url})
    elif response is None or (url and not as_page):
        more = {"url": request.build_absolute_uri(url)} if url else {}
        return problem(403, "access-denied", _("This site does not allow this now."), **more)
    add_never_cache_headers(response)
    return cast("HttpResponse", response)


def _payment_uncertain(request: HttpRequest, *, as_page: bool) -> HttpResponse:
    if as_page:
        return error_page(request, PAYMENT_UNCERTAIN, status=502)
    return problem(502, "payment-uncertain", str(NOTICES[PAYMENT_UNCERTAIN].title))


def unavailable(
    request: HttpRequest,
    retry_after_seconds: float | None,
    *,
    action: Action | None = None,
    as_page: bool | None = None,
) -> HttpResponse:
    """
    Return 503 with Retry-After, as a page or as problem+json. The page leads to *action*, or to
    itself once more.
    """
    response: HttpResponse
    if wants_page(request) if as_page is None else as_page:
        response = error_page(
            request, UNAVAILABLE, status=503, action=action or _once_more(request)
        )
    else:
        response = problem(503, "unavailable", str(NOTICES[UNAVAILABLE].title))
    response["Retry-After"] = str(max(1, math.ceil(retry_after_seconds or DEFAULT_RETRY_SECONDS)))
    return response


def error_page(
    request: HttpRequest, notice: str | Notice, *, status: int, action: Action | None = None
) -> HttpResponse:
    """Return the page that says what happened, and leads to *action* or back to the site."""
    told = NOTICES[notice] if isinstance(notice, str) else notice
    context = {"notice": told, "action": action, "home": get_script_prefix()}
    response = render(request, "everifin_django/error.html", context, status=status)
    add_never_cache_headers(response)
    return response


def user_not_allowed(request: HttpRequest) -> HttpResponse:
    """Return 403: the user is logged in, and a page asks for a login all the same."""
    if wants_page(request):
        return error_page(request, LOGGED_IN, status=403)
    return problem(403, "not-allowed", str(NOTICES[LOGGED_IN].title))


def problem(status: int, kind: str, title: str, **members: Any) -> JsonResponse:
    """Return problem+json. Source: RFC 9457."""
    body = {"type": f"urn:everifin-django:{kind}", "title": title, "status": status, **members}
    response = JsonResponse(body, status=status, content_type="application/problem+json")
    add_never_cache_headers(response)
    return response


def wants_page(request: HttpRequest) -> bool:
    """Did a person ask for a page, rather than a script for data?"""
    if request.headers.get("X-Requested-With") == "XMLHttpRequest":
        return False
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is not None:
        return mode == "navigate"
    return request.get_preferred_type(
        ["text/html", "application/json", "application/problem+json"]
    ) in (None, "text/html")


def prefers_json(request: HttpRequest) -> bool:
    """Does a script ask for JSON by name? ``fetch`` alone accepts anything."""
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _is_htmx(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"


def _ask_to_connect(request: HttpRequest, error: EverifinError, *, as_page: bool) -> HttpResponse:
    notice = _notice_of(error)
    if notice:
        security_logger.info("User %s is asked to connect again: %s.", request.user.pk, notice)
    is_htmx = _is_htmx(request)
    if not is_htmx and not as_page:
        return _problem_to_mend(request, notice)
    if notice:
        request.session[NOTICE_SESSION_KEY] = notice
    url = _page_to_connect(request)
    response = HttpResponse(headers={"HX-Redirect": url}) if is_htmx else HttpResponseRedirect(url)
    add_never_cache_headers(response)
    return response


def _scopes_never_requested(error: EverifinError) -> frozenset[str]:
    missing = error.missing if isinstance(error, ScopeMissingError) else frozenset()
    return missing - set(conf.scopes.split())


def _misconfigured(request: HttpRequest, scopes: frozenset[str], *, as_page: bool) -> HttpResponse:
    """Connecting again would not help: the user would go in circles."""
    logger.error(
        "A view needs the scope %s, which EVERIFIN_SCOPES does not ask for: connecting again "
        "will not help.",
        " ".join(sorted(scopes)),
    )
    if as_page:
        return error_page(request, MISCONFIGURED, status=500)
    return problem(500, "misconfigured", str(NOTICES[MISCONFIGURED].title))


def _problem_to_mend(request: HttpRequest, notice: str) -> HttpResponse:
    """Return 401 to a stranger, and 403 to a user who has to connect."""
    if not request.user.is_authenticated:
        return log_in_first(request)
    url = request.build_absolute_uri(_connect_or_login_page(request))
    kind = "scope-missing" if notice == SCOPE_MISSING else "not-connected"
    title = str(NOTICES[notice].title) if notice else _("Everifin is not connected.")
    return problem(403, kind, title, connect_url=url)


def log_in_first(request: HttpRequest) -> HttpResponse:
    url = request.build_absolute_uri(_connect_or_login_page(request))
    response = problem(401, "login-required", _("Log in first."), login_url=url)
    # RFC 9110, section 15.5.2, wants a challenge, and no scheme for sessions is registered.
    # Browsers ignore a scheme that they do not know.
    response["WWW-Authenticate"] = "Session"
    return response


def _notice_of(error: EverifinError) -> str:
    """Return what the connect page says first; nothing to a user who never connected."""
    if isinstance(error, ScopeMissingError):
        return SCOPE_MISSING
    return ENDED if isinstance(error, ConsentExpiredError) else ""


def _page_to_connect(request: HttpRequest) -> str:
    page = _connect_or_login_page(request)
    back = _page_to_return_to(request)
    return f"{page}{'&' if '?' in page else '?'}{urlencode({'next': back})}" if back else page


def _connect_or_login_page(request: HttpRequest) -> str:
    if request.user.is_authenticated:
        return reverse("everifin_django:connect")
    if conf.use_login_url or login_backend() is None:
        return resolve_url(settings.LOGIN_URL)
    return reverse("everifin_django:login")


def _page_to_return_to(request: HttpRequest) -> str:
    """
    The page the visitor sees. A form that was sent is not returned to: a redirect cannot send it
    again.
    """
    if "HX-Current-URL" in request.headers:
        return _path_of(request.headers["HX-Current-URL"])
    is_page = request.method in ("GET", "HEAD") and wants_page(request)
    return request.get_full_path() if is_page else ""


def _path_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    is_page = parts.path.startswith("/")
    return urlunsplit(("", "", parts.path, parts.query, "")) if is_page else ""

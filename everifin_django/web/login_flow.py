"""
A login or connection in progress, as this site and the visitor's browser remember it; or a logout
at Everifin, after which the visitor comes back.

A flow is begun by a POST. It is a row of its own, encrypted and found by the hash of its state, and
serves the browser alone that has its cookie: whatever becomes of the Django session meanwhile, and
however many begin at once, the answer finds it. Its state is consumed by inserting its hash, so of
two simultaneous answers only one continues.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast
from urllib.parse import unquote, urljoin

from django.conf import settings
from django.contrib import auth
from django.contrib.sessions.backends.base import UpdateError
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import resolve_url
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.module_loading import import_string

from everifin_django.conf import Params, conf
from everifin_django.encryption import active_key, seal
from everifin_django.exceptions import KeysUnavailableError, LoginError, TokenUnreadableError
from everifin_django.models import DatabaseNow, LoginFlow, SpentState
from everifin_django.secret import Secret

COOKIE_PREFIX = "everifin_flow_"
COOKIE_SECONDS = 2 * 3600
"""As long as the row is kept: longer than any login may take."""

MAX_FLOWS = 10
MAX_NEXT_LENGTH = 8000
"""Common servers accept no longer URL."""

JUDGED_LENGTH = 2000
"""Where a URL leads is decided by its beginning. Django's check takes at most 2048 characters."""


APP_URL = re.compile(r"([a-z][a-z0-9+.-]*):[!-~]*")
"""Source: RFC 3986, section 3; and nothing but visible ASCII."""


class FlowKind(StrEnum):
    LOGIN = "login"
    CONNECT = "connect"
    LOGOUT = "logout"


@dataclass(frozen=True, slots=True)
class Flow:
    """
    What is in progress. *user_pk* is the user who connects, empty for a login and a logout. *asked*
    has the parameters that say how the user was to sign in at Everifin.
    """

    kind: FlowKind
    user_pk: str
    issuer: str
    redirect_uri: str
    next_url: str
    host: str
    nonce: str = field(default="", repr=False)
    code_verifier: str | None = field(default=None, repr=False)
    asked: Mapping[str, str] = field(default_factory=dict)
    browser_digest: str = field(default="", repr=False)
    started: float = field(default_factory=time.time)
    state_digest: str = ""

    @property
    def started_at(self) -> datetime:
        return datetime.fromtimestamp(self.started, UTC)

    @property
    def verifier(self) -> Secret | None:
        return None if self.code_verifier is None else Secret(self.code_verifier)

    @property
    def is_too_old(self) -> bool:
        return time.time() - self.started > conf.login_lifetime_seconds


def begin(request: HttpRequest, response: HttpResponse, state: str, flow: Flow) -> None:
    """
    Store *flow* under *state*, and bind it to the browser by a cookie of its own. One INSERT, and a
    little housekeeping. A browser keeps ten, the newest.
    """
    digest = digest_of(state)
    browser = f"{time.time_ns()}-{secrets.token_urlsafe(32)}"
    row = LoginFlow(digest=digest, started_at=timezone.now())
    _write(row, replace(flow, browser_digest=digest_of(browser), state_digest=digest))
    row.save(force_insert=True, using=alias())
    response.set_cookie(
        cookie_name(digest),
        browser,
        max_age=COOKIE_SECONDS,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
        **_cookie_scope(),
    )
    for name in _oldest_cookies(request):
        response.delete_cookie(name, **_cookie_scope(), samesite="Lax")
    # The system checks import this module, and need no HTTP client.
    from everifin_django.connections import housekeeping

    housekeeping.by_chance()


def find(state: Secret) -> Flow | None:
    """
    Return the flow that was begun with *state*, by whatever browser; None if there is none, or none
    that can be read. One query. Errors: KeysUnavailableError.
    """
    digest = digest_of(state.reveal())
    row = LoginFlow.objects.using(alias()).filter(digest=digest).first()
    try:
        return None if row is None else _read(row)
    except KeysUnavailableError:
        raise
    except TokenUnreadableError:
        return None


def is_of_this_browser(request: HttpRequest, flow: Flow) -> bool:
    given = Secret(digest_of(request.COOKIES.get(cookie_name(flow.state_digest), "")))
    return given == Secret(flow.browser_digest)


def erase_secrets(flow: Flow) -> None:
    """Keep of a flow that has had its answer only where it led. One statement."""
    row = LoginFlow(digest=flow.state_digest)
    _write(row, replace(flow, nonce="", code_verifier=None))
    rows = LoginFlow.objects.using(alias()).filter(digest=flow.state_digest)
    rows.update(flow_ciphertext=row.flow_ciphertext)


def params_of(kind: FlowKind, request: HttpRequest) -> Mapping[str, str]:
    """
    Return what the site adds to the authorization request: EVERIFIN_LOGIN_PARAMS or
    EVERIFIN_CONNECT_PARAMS. Errors: ImproperlyConfigured.
    """
    params = conf.login_params if kind == FlowKind.LOGIN else conf.connect_params
    if not isinstance(params, str):
        return params
    setting = type(conf).login_params if kind == FlowKind.LOGIN else type(conf).connect_params
    return cast("Params", setting).clean_returned(import_string(params)(request))


def asked_by(params: Mapping[str, str]) -> dict[str, str]:
    """Return those of *params* that say how the user is to sign in."""
    return {name: params[name] for name in ("prompt", "max_age", "acr_values") if name in params}


def cookie_name(state_digest: str) -> str:
    return COOKIE_PREFIX + state_digest[:12]


def _oldest_cookies(request: HttpRequest) -> list[str]:
    names = [name for name in request.COOKIES if name.startswith(COOKIE_PREFIX)]
    names.sort(key=lambda name: request.COOKIES[name].partition("-")[0])
    return names[: max(0, len(names) - MAX_FLOWS + 1)]


def _cookie_scope() -> dict[str, Any]:
    """Where the session cookie is sent, this one is needed."""
    return {"domain": settings.SESSION_COOKIE_DOMAIN, "path": settings.SESSION_COOKIE_PATH}


def _write(row: LoginFlow, flow: Flow) -> None:
    text = Secret(json.dumps(asdict(flow)))
    row.flow_ciphertext = seal(text, row.encryption_context("flow"), active_key())


def _read(row: LoginFlow) -> Flow:
    # What holds verifiers in clear text stays in this frame, where nothing else can fail.
    record = json.loads(row.open().reveal())
    return Flow(**{**record, "kind": FlowKind(record["kind"])})


def consume_once(text: str) -> bool:
    """
    Spend *text*, which serves once; return whether it was still unspent. One statement.
    """
    try:
        with _savepoint():
            SpentState.objects.using(alias()).create(digest=digest_of(text), spent_at=DatabaseNow())
    except IntegrityError:
        return False
    return True


def _savepoint() -> AbstractContextManager[Any]:
    """What a failing statement is undone to; without a transaction that happens by itself."""
    is_alone = transaction.get_autocommit(using=alias())
    return nullcontext() if is_alone else transaction.atomic(using=alias())


def is_spent(text: str) -> bool:
    return SpentState.objects.using(alias()).filter(digest=digest_of(text)).exists()


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def alias() -> str:
    return router.db_for_write(SpentState)


def reread_session(request: HttpRequest) -> None:
    """
    Read the session as it is now: while Everifin was asked, another tab may have changed it.

    One query more for a user. Errors: LoginError if somebody logged in or out meanwhile, or the
    user was deactivated.
    """
    user_pk = request.session.get(auth.SESSION_KEY)
    if request.session.modified:
        _save_session(request)
    request.session = type(request.session)(request.session.session_key)
    request.session.modified = _has_new_key(request)
    if (now := request.session.get(auth.SESSION_KEY)) != user_pk:
        raise LoginError("user_changed" if now else "logged_out")
    if not _is_still_here(request.user):
        raise LoginError("user_inactive")


def leave_session_alone(request: HttpRequest) -> None:
    """
    Keep the session's cookie out of the response, unless somebody has changed the session: by now
    it may be that of another session, which an answer in another tab has begun.
    """
    session = request.session
    if session.modified and not session.is_empty():
        return
    request.session = type(session)()
    request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
    if settings.CSRF_USE_SESSIONS:
        request.META.pop("CSRF_COOKIE_NEEDS_UPDATE", None)


def _save_session(request: HttpRequest) -> None:
    """As with a rotated SECRET_KEY, by which Django has just changed it."""
    try:
        request.session.save()
    except UpdateError:
        raise LoginError("logged_out") from None


def _has_new_key(request: HttpRequest) -> bool:
    """Has the session another key than its cookie says? Then a new cookie has to be sent."""
    return request.session.session_key != request.COOKIES.get(settings.SESSION_COOKIE_NAME)


def redirect_uri(request: HttpRequest) -> str:
    """
    Return where Everifin sends the visitor back to: EVERIFIN_REDIRECT_URI, or this site's callback.

    Errors: ImproperlyConfigured without the setting when ALLOWED_HOSTS leaves it to the request
    what this site is called.
    """
    return conf.redirect_uri or absolute_url(request, reverse("everifin_django:callback"))


def absolute_url(request: HttpRequest, path: str) -> str:
    """Return *path* with scheme and host of this site. Errors: as ``redirect_uri``."""
    if conf.redirect_uri:
        return urljoin(conf.redirect_uri, path)
    if not hosts_are_named():
        raise ImproperlyConfigured(
            "Set EVERIFIN_REDIRECT_URI: ALLOWED_HOSTS has a wildcard, so the address cannot be "
            "taken from the request."
        )
    return request.build_absolute_uri(path)


def hosts_are_named() -> bool:
    """Does ALLOWED_HOSTS name each host, or leave it to DEBUG, which allows this machine only?"""
    return all(host != "*" and not host.startswith(".") for host in settings.ALLOWED_HOSTS)


def safe_next(request: HttpRequest, url: Any) -> str:
    """
    Return *url* if it stays on this site, or leads to a front end or app of
    EVERIFIN_RETURN_HOSTS or EVERIFIN_RETURN_SCHEMES; else an empty string.

    Also as a proxy or browser might read it: with its escapes decoded and its letters folded.
    """
    if not isinstance(url, str) or len(url) > MAX_NEXT_LENGTH:
        return ""
    if _is_of_an_app(url):
        return url
    hosts, is_secure = {request.get_host(), *conf.return_hosts}, request.is_secure()
    is_safe = all(
        url_has_allowed_host_and_scheme(reading, hosts, require_https=is_secure)
        for reading in _readings(url)
    )
    return url if is_safe else ""


def _is_of_an_app(url: str) -> bool:
    match = APP_URL.fullmatch(url)
    return match is not None and match[1] in conf.return_schemes


class ReturnRedirect(HttpResponseRedirect):
    """A redirect that may lead to an app of EVERIFIN_RETURN_SCHEMES."""

    @property
    def allowed_schemes(self) -> list[str]:  # type: ignore[override]  # Django has a constant here
        return ["http", "https", *conf.return_schemes]


def _readings(url: str) -> Iterator[str]:
    """The beginning of *url* as it is written and as others may read it."""
    for reading in (url, unicodedata.normalize("NFKC", unquote(url))):
        yield reading[:JUDGED_LENGTH]
        if len(reading) > JUDGED_LENGTH:
            # Browsers leave control characters out, so that they could push a host out of sight.
            yield "".join(filter(str.isprintable, reading))[:JUDGED_LENGTH]


def next_or_default(request: HttpRequest, url: Any) -> str:
    return safe_next(request, url) or resolve_url(settings.LOGIN_REDIRECT_URL)


def _is_still_here(user: Any) -> bool:
    """Is the user active by now? A visitor is nobody, which does not change."""
    if not user.is_authenticated:
        return True
    model = auth.get_user_model()
    users: Any = model._base_manager.using(router.db_for_write(model))
    now = users.filter(pk=user.pk).first()
    return now is not None and bool(now.is_active)

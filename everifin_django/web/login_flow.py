"""
A login or connection in progress, as the visitor's session stores it.

A flow is begun by a POST, lives for EVERIFIN_LOGIN_LIFETIME_SECONDS in this very session, and ends
with the first answer that names its state: the state is consumed by inserting its hash, so of two
answers at once only one goes on.
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import unquote, urljoin

from django.conf import settings
from django.contrib import auth
from django.contrib.sessions.backends.base import UpdateError
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, router, transaction
from django.http import HttpRequest
from django.shortcuts import resolve_url
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme

from everifin_django.conf import conf
from everifin_django.exceptions import LoginError
from everifin_django.models import DatabaseNow, SpentState
from everifin_django.secret import Secret

SESSION_KEY = "everifin_flows"
FINISHED_SESSION_KEY = "everifin_finished_flows"
MAX_FLOWS = 10
MAX_NEXT_LENGTH = 2000


class FlowKind(StrEnum):
    LOGIN = "login"
    CONNECT = "connect"


@dataclass(frozen=True, slots=True)
class Flow:
    """A login or connection in progress. *user_pk* is the user who connects, empty for a login."""

    kind: FlowKind
    user_pk: str
    issuer: str
    redirect_uri: str
    next_url: str
    nonce: str = field(repr=False)
    code_verifier: str | None = field(repr=False)
    started: float = field(default_factory=time.time)
    state_digest: str = ""

    @property
    def started_at(self) -> datetime:
        return datetime.fromtimestamp(self.started, UTC)

    @property
    def verifier(self) -> Secret | None:
        return None if self.code_verifier is None else Secret(self.code_verifier)


@dataclass(frozen=True, slots=True)
class Finished:
    """A flow that has had its answer."""

    kind: str
    user_pk: str
    next_url: str


def begin(request: HttpRequest, state: str, flow: Flow) -> None:
    """
    Store *flow* in the session under *state*, and remove the oldest if there are more than ten.
    """
    flows = dict(request.session.get(SESSION_KEY, {}))
    while len(flows) >= MAX_FLOWS:
        del flows[min(flows, key=lambda one: flows[one]["started"])]
    request.session[SESSION_KEY] = {**flows, state: asdict(flow)}


def finish(request: HttpRequest, state: Secret) -> Flow:
    """
    Return the flow that *state* names, which no other request will get.

    Two short statements and the session saved, before anything is sent. Errors: LoginError if the
    state is not of this session, too old, or spent.
    """
    flow = _take_out(request, state)
    _remember_finished(request, state, flow)
    try:
        request.session.save()
    except UpdateError:
        # A logout in another tab has just ended the session, and this flow with it.
        raise LoginError("session_ended") from None
    # Saved once more at the end of the request, it would overwrite what another tab has changed.
    request.session.modified = _has_new_key(request)
    if not consume_once(state.reveal()):
        raise LoginError("state_spent")
    if time.time() - flow.started > conf.login_lifetime_seconds:
        raise LoginError("state_expired")
    if flow.issuer != conf.issuer:
        raise LoginError("issuer_changed")
    return replace(flow, state_digest=digest_of(state.reveal()))


def finished(request: HttpRequest, state: Secret) -> Finished | None:
    """Return what is left of a flow that this session has finished before, None without one."""
    left = request.session.get(FINISHED_SESSION_KEY, {}).get(digest_of(state.reveal()))
    return None if left is None else Finished(*left)


def _remember_finished(request: HttpRequest, state: Secret, flow: Flow) -> None:
    """A second answer to the same flow leads where the first one did. No secret is left."""
    left = dict(request.session.get(FINISHED_SESSION_KEY, {}))
    while len(left) >= MAX_FLOWS:
        del left[next(iter(left))]
    left[digest_of(state.reveal())] = [flow.kind, flow.user_pk, flow.next_url]
    request.session[FINISHED_SESSION_KEY] = left
    request.session.modified = False  # saved by the caller


def consume_once(text: str) -> bool:
    """
    Spend *text*, which serves once; return whether it was still unspent. Two short statements, and
    a little housekeeping.
    """
    try:
        with transaction.atomic(using=alias()):
            SpentState.objects.using(alias()).create(digest=digest_of(text), spent_at=DatabaseNow())
    except IntegrityError:
        return False
    # The system checks import this module, and need no HTTP client.
    from everifin_django.connections import housekeeping

    housekeeping.by_chance()
    return True


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
    request.session = type(request.session)(request.session.session_key)
    request.session.modified = _has_new_key(request)
    if request.session.get(auth.SESSION_KEY) != user_pk:
        raise LoginError("user_changed")
    if not _is_still_here(request.user):
        raise LoginError("user_inactive")


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
    Return *url* if it stays on this site, else an empty string.

    Also as a proxy or browser might read it: with its escapes decoded and its letters folded.
    """
    if not isinstance(url, str) or len(url) > MAX_NEXT_LENGTH:
        return ""
    hosts, is_secure = {request.get_host()}, request.is_secure()
    is_safe = all(
        url_has_allowed_host_and_scheme(reading, hosts, require_https=is_secure)
        for reading in (url, unicodedata.normalize("NFKC", unquote(url)))
    )
    return url if is_safe else ""


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


def _take_out(request: HttpRequest, state: Secret) -> Flow:
    # What holds verifiers in clear text stays in this frame, where nothing else can fail.
    flows = dict(request.session.get(SESSION_KEY, {}))
    record = flows.pop(state.reveal(), None)
    if record is None:
        raise LoginError("state_unknown")
    request.session[SESSION_KEY] = flows
    # Saved at once by the caller.
    request.session.modified = False
    return Flow(**{**record, "kind": FlowKind(record["kind"])})

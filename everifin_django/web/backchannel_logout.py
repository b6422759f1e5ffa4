"""
The sessions of this site that a login with Everifin began, and how Everifin ends them
(back-channel logout).

They are found through an index of what Everifin names: its session, or the user. Sessions
themselves are never looked through.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.conf import settings
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest

from everifin_django.backends import Grant
from everifin_django.conf import conf
from everifin_django.connections import grants
from everifin_django.exceptions import LoginError
from everifin_django.models import BankToken, LoginSession
from everifin_django.oauth.id_token import LogoutToken, verify_logout_token
from everifin_django.secret import Secret
from everifin_django.web import login_flow

OFFLINE = "offline_access"


def register(request: HttpRequest, grant: Grant) -> None:
    """
    Note that the session of *request* was begun by *grant*; nothing without
    EVERIFIN_BACKCHANNEL_LOGOUT.

    One statement, and one for each earlier session of the same person, which is forgotten if it is
    gone.
    """
    session_key = request.session.session_key
    if not conf.backchannel_logout or grant.identity is None or session_key is None:
        return
    digest = grant.identity.digest
    for earlier in _login_sessions().filter(identity_digest=digest):
        if not _store().exists(earlier.session_key):
            earlier.delete()
    _login_sessions().create(
        session_key=session_key,
        sid=grant.tokens.sid,
        identity_digest=digest,
    )


def unregister(session_key: str | None) -> None:
    """The session ends by itself. One statement; none without EVERIFIN_BACKCHANNEL_LOGOUT."""
    if conf.backchannel_logout and session_key:
        _login_sessions().filter(session_key=session_key).delete()


def detach(user: Any) -> None:
    """
    Let the sessions here go on that the grant of *user*'s connection began, when this site ends
    that grant: a Keycloak then says by the back channel that its session is over.

    Two statements; none without EVERIFIN_BACKCHANNEL_LOGOUT.
    """
    if not conf.backchannel_logout:
        return
    connection = grants.Everifin(user).connection()
    if connection is not None and connection.sid:
        _login_sessions().filter(sid=connection.sid).delete()


def end_sessions(logout_token: Secret) -> int:
    """
    End what a logout token names, and return how many sessions of this site that were.

    The connection that lives in that session at Everifin ends too, unless it was granted for when
    the user is away. No request while the signing keys are cached.
    Errors: as ``identity.verify_logout_token``; LoginError for a token that was taken before.
    """
    logout = verify_logout_token(logout_token)
    if not login_flow.consume_once(f"logout token {conf.issuer} {logout.token_id}"):
        raise LoginError("logout_token_spent")
    named = _named_by(logout)
    for connection in BankToken.objects.select_related("user").filter(**named):
        if OFFLINE not in connection.scopes:
            grants.mark_disconnected(connection, "backchannel_logout")
    ended = list(_login_sessions().filter(**named))
    for session in ended:
        _store().delete(session.session_key)
        session.delete()
    return len(ended)


def _named_by(logout: LogoutToken) -> dict[str, str]:
    named = {}
    if logout.sid:
        named["sid"] = logout.sid
    if logout.identity is not None:
        named["identity_digest"] = logout.identity.digest
    return named


def _login_sessions() -> QuerySet[LoginSession]:
    return LoginSession.objects.using(router.db_for_write(LoginSession))


def _store() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore()

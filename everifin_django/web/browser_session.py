"""
Bind the record of a login to the browser's Django session, and follow that session.

The session data names the record, beside a fingerprint of the session key: where the two differ,
the key has changed, and the record is brought up to date. A page that changed nothing costs no
query.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from typing import Any

from django.db.models import Q, Subquery
from django.http import HttpRequest

from everifin_django.backends import Grant
from everifin_django.conf import conf
from everifin_django.connections import login_sessions, logout
from everifin_django.models import (
    LOGIN_SESSION_KEY,
    LogoutSeen,
    SpentState,
    in_database_seconds,
    primary,
)
from everifin_django.web import login_flow
from everifin_django.web.backchannel_logout import identity_digest_of, sid_digest_of

logger = logging.getLogger(__name__)


def begin(request: HttpRequest, grant: Grant, state_digest: str) -> bool:
    """
    Bind the login of *grant* to the session of *request*; return False if Everifin has logged the
    user out since the login began, which ends this login, too.

    One statement, with back-channel logout two.
    """
    session, record_id = request.session, grant.login_session_id
    session_key = session.session_key or ""
    is_there = login_sessions.bind(record_id, request.user, session_key, session.get_expiry_date())
    if is_there and not _was_logged_out(grant, state_digest):
        session[LOGIN_SESSION_KEY] = [record_id.hex, fingerprint(session_key)]
        return True
    if (record := login_sessions.find(record_id)) is not None:
        logout.end_login(record, "backchannel_logout")
    return False


def record_id_of(session: Any) -> uuid.UUID | None:
    """Return the id of the record that *session* names, None without one. No query."""
    return _record_id(session.get(LOGIN_SESSION_KEY))


def _record_id(noted: Any) -> uuid.UUID | None:
    if noted is None:
        return None
    try:
        return uuid.UUID(noted[0])
    except Exception:  # noqa: BLE001 - whatever else the site has put there
        return None


def is_impersonated(request: HttpRequest) -> bool:
    """Is the user impersonated, as django-hijack and django-impersonate mark it?"""
    user = request.user
    return bool(getattr(user, "is_hijacked", False) or getattr(user, "is_impersonate", False))


def has_changed(request: HttpRequest) -> bool:
    """
    Tell whether this browser logged out, or its session has another key than its record knows. No
    query.
    """
    if getattr(request, "everifin_logged_out", None) is not None:
        return True
    session = getattr(request, "session", None)
    if session is None or not session.accessed:
        return False
    noted = session.get(LOGIN_SESSION_KEY)
    return noted is not None and noted[-1] != fingerprint(session.session_key)


def follow(request: HttpRequest, status: int) -> None:
    """
    Do after the response what ``has_changed`` has found. Never raises: what fails is in the log.

    A logout that the site's own view made is ended here, also when that view failed. A changed
    session key costs two statements; where the record has ended, so does the session.
    """
    try:
        record_id = _record_id(getattr(request, "everifin_logged_out", None))
        if record_id is not None:
            logout.log_out(record_id)
        if status < 500:  # else Django neither saves the session nor sends its cookie
            _follow_key(request)
    except Exception as error:  # noqa: BLE001 - the response is made, and is to arrive
        logger.critical("A login could not be followed: %s.", type(error).__name__)


def _follow_key(request: HttpRequest) -> None:
    session = request.session
    record_id, key = record_id_of(session), session.session_key
    if record_id is None or key is None or session[LOGIN_SESSION_KEY][-1] == fingerprint(key):
        return
    if login_sessions.add_session_key(record_id, key):
        session[LOGIN_SESSION_KEY] = [record_id.hex, fingerprint(key)]
    else:
        session.flush()


def fingerprint(session_key: str | None) -> str:
    return hashlib.sha256(f"everifin session {session_key}".encode()).hexdigest()[:32]


def _was_logged_out(grant: Grant, state_digest: str) -> bool:
    """
    Has a logout from Everifin overtaken this login? A session that ended there never comes back; a
    logout of the user counts if it came after the login's state was spent. By the database's clock.
    """
    if not conf.backchannel_logout or grant.identity is None:
        return False
    began = primary(SpentState).filter(digest=state_digest).values("spent_at")
    seen = Q(digest=identity_digest_of(grant.identity), seen_at__gte=Subquery(began))
    if grant.tokens.sid:
        seen |= Q(digest=sid_digest_of(grant.tokens.sid))
    else:
        unnamed = identity_digest_of(grant.identity, of_unknown_sid=True)
        seen |= Q(digest=unnamed, seen_at__gte=Subquery(began))
    rows = LogoutSeen.objects.using(login_flow.alias())
    # One from the future was not written by us, and would bar its user from logging in.
    return rows.filter(seen, seen_at__lte=in_database_seconds(60)).exists()

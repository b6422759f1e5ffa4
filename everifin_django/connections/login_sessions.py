"""
Which browser: the record of each login with Everifin.

A record holds the login's session at Everifin (``sid``), its ID token for the logout hint, and its
refresh token while that is not the connection's. It is bound to the browser by two halves: the
Django session names the record, and the record holds the encrypted list of session keys. Neither
half gives anybody a session. Without EverifinBackend in AUTHENTICATION_BACKENDS there are none.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any

from django.conf import settings
from django.db import router, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from everifin_django.connections import revocation
from everifin_django.encryption import active_key, open_sealed, seal
from everifin_django.exceptions import TokenUnreadableError
from everifin_django.models import LoginSession, PendingRevocation, database_for
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret

UNBOUND_MINUTES = 15
"""How long a login may take from its storing to its Django session."""

MAX_KEYS = 4
"""Beyond these, session keys that the session store no longer has are removed from a record."""


def create(
    pk: uuid.UUID, user: Any, tokens: TokenSet, identity: Identity, *, holds_grant: bool
) -> LoginSession:
    """
    Return the new record of a login, in the transaction that stores the login. One INSERT.

    It holds the refresh token if the grant did not become the connection's.
    """
    record = LoginSession(
        id=pk, user=user, identity_digest=identity.digest, check_after=_in(minutes=UNBOUND_MINUTES)
    )
    _set_tokens(record, tokens)
    if holds_grant and tokens.refresh is not None:
        record.refresh_ciphertext = _sealed(record, tokens.refresh, "refresh")
        record.refresh_expires_at = tokens.refresh_expires_at
        record.scope = tokens.scope
    record.save(force_insert=True, using=alias())
    return record


def bind(record_id: uuid.UUID, user: Any, session_key: str, expires_at: datetime) -> bool:
    """
    Write down the Django session that a login began; return whether the record is still there: a
    logout may have come between. One statement.
    """
    record = LoginSession(id=record_id, user=user)
    return bool(
        rows()
        .filter(pk=record_id)
        .update(
            session_keys_ciphertext=_sealed_keys(record, [session_key]),
            check_after=expires_at + timedelta(days=1),
            version=F("version") + 1,
        )
    )


def add_session_key(record_id: uuid.UUID, session_key: str) -> bool:
    """
    Add a changed session key to its record; return whether the record is there. Two statements.

    The key before stays: a rollback may bring it back.
    Errors: TokenUnreadableError.
    """
    while (record := find(record_id)) is not None:
        keys = [key for key in session_keys(record) if key != session_key]
        if len(keys) >= MAX_KEYS:
            store = session_store()
            keys = [key for key in keys if store.exists(key)]
        columns = {"session_keys_ciphertext": _sealed_keys(record, [*keys, session_key])}
        if _same_version(record).update(**columns, version=record.version + 1):
            return True
    return False


def update(record_id: uuid.UUID | None, user: Any, tokens: TokenSet) -> uuid.UUID | None:
    """
    Bring a browser's record up to date after its user connected in it: the session at Everifin is
    the new grant's. Return its id, None if the user has no such record.

    A grant that the record held goes to the outbox, unless it shares that session. Two statements,
    in the transaction that stores the grant; none for None.
    """
    record = find(record_id) if record_id is not None else None
    if record is None or record.user_id != user.pk:
        return None
    if record.refresh_ciphertext and (not record.sid or record.sid != tokens.sid):
        revocation.enqueue_record(record, "replaced")
    _set_tokens(record, tokens)
    rows().filter(pk=record.pk).update(
        sid=record.sid,
        has_ended_sid=False,
        id_ciphertext=record.id_ciphertext,
        refresh_ciphertext="",
        is_spent=False,
        version=F("version") + 1,
    )
    return record.pk


def detach(*sids: str) -> None:
    """
    Note that this site ends *sids* at Everifin for another reason than these logins: what Everifin
    says of them afterwards is not about these logins. One statement; none for an unknown sid.
    """
    known = [sid for sid in sids if sid]
    if known:
        rows().filter(sid__in=known).update(has_ended_sid=True, version=F("version") + 1)


def delete(record: LoginSession) -> bool:
    """
    Delete *record*; return whether it was still what was read. One statement. What it held is the
    caller's.
    """
    return bool(_same_version(record)._raw_delete(alias()))


def end(record: LoginSession, reason: str) -> list[PendingRevocation]:
    """
    Delete *record* and put the grant that it holds into the outbox. Two statements.
    """
    with transaction.atomic(using=alias()):
        if not delete(record):
            newer = find(record.pk)
            return end(newer, reason) if newer is not None else []
        pending = revocation.enqueue_record(record, reason)
    return [pending] if pending is not None else []


def end_all(user: Any, reason: str) -> None:
    """End every login of *user*: the grants go to the outbox. One query, and two for each."""
    for record in LoginSession.objects.using(database_for(user)).filter(user=user):
        end(record, reason)


def sweep(limit: int = 500) -> int:
    """
    End the records whose Django sessions are gone; return how many. One query for the list; only
    records that are due are opened.

    What a record holds goes to the outbox, unless its session at Everifin is still used here.
    """
    ended = 0
    store = session_store()
    for record in rows().filter(check_after__lt=timezone.now()).order_by("check_after")[:limit]:
        try:
            is_alive = any(store.exists(key) for key in session_keys(record))
        except TokenUnreadableError:
            is_alive = True
        if is_alive:
            later = timezone.now() + timedelta(seconds=settings.SESSION_COOKIE_AGE)
            _same_version(record).update(check_after=later)
        else:
            ended += _sweep(record)
    return ended


def _sweep(record: LoginSession) -> bool:
    with transaction.atomic(using=alias()):
        if not delete(record):
            return False
        if not revocation.is_used(record.sid):
            revocation.enqueue_record(record, "session_expired")
    return True


def find(record_id: uuid.UUID) -> LoginSession | None:
    return rows().filter(pk=record_id).first()


def session_keys(record: LoginSession) -> list[str]:
    """Return the session keys of *record*. Errors: TokenUnreadableError."""
    if not record.session_keys_ciphertext:
        return []
    context = record.encryption_context("session_keys")
    keys: list[str] = json.loads(open_sealed(record.session_keys_ciphertext, context).reveal())
    return keys


def delete_sessions(keys: Iterable[str]) -> None:
    """End the Django sessions of *keys*."""
    store = session_store()
    for key in keys:
        store.delete(key)


def session_store() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore()


def alias() -> str:
    return router.db_for_write(LoginSession)


def rows() -> QuerySet[LoginSession]:
    return LoginSession.objects.using(alias())


def _same_version(record: LoginSession) -> QuerySet[LoginSession]:
    return rows().filter(pk=record.pk, version=record.version)


def _set_tokens(record: LoginSession, tokens: TokenSet) -> None:
    record.sid = tokens.sid
    if tokens.id is not None:
        record.id_ciphertext = _sealed(record, tokens.id, "id")


def _sealed(record: LoginSession, secret: Secret, kind: Any) -> str:
    return seal(secret, record.encryption_context(kind), active_key())


def _sealed_keys(record: LoginSession, keys: list[str]) -> str:
    return _sealed(record, Secret(json.dumps(keys)), "session_keys")


def _in(*, minutes: int) -> datetime:
    return timezone.now() + timedelta(minutes=minutes)

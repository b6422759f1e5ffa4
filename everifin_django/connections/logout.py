"""
Log out one browser: end what its login began, and nothing else.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.db import OperationalError, transaction
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import grants, login_sessions, revocation
from everifin_django.encryption import active_key, seal
from everifin_django.exceptions import TokenUnreadableError
from everifin_django.models import (
    OFFLINE_ACCESS,
    BankToken,
    LoginSession,
    PendingRevocation,
    scope_columns,
)
from everifin_django.secret import Secret


@dataclass(frozen=True, slots=True)
class Ended:
    """The login that was ended: its ID token is the hint for Everifin's logout page."""

    id_token: Secret | None


def log_out(record_id: uuid.UUID) -> Ended | None:
    """
    End the login of one browser, here and at Everifin; None if it has ended before.

    The connection ends with it if its grant is this login's; a grant that another login of the user
    still holds then becomes the connection. Some eight queries and one request at most; what cannot
    be ended at Everifin now waits in the outbox.
    """
    record = login_sessions.find(record_id)
    if record is None:
        return None
    id_token = _readable(record)
    _delete_sessions(record)
    for pending in end_login(record, "logout"):
        revocation.revoke(pending)
    return Ended(id_token)


def end_login(record: LoginSession, reason: str) -> list[PendingRevocation]:
    """
    End *record* and the connection if it lives in it, in one transaction; return what is to be
    ended at Everifin.
    """
    for _ in range(grants.SAVE_TRIES):
        try:
            with transaction.atomic(using=login_sessions.alias()):
                return _end_login(record, reason)
        except _ConnectionChangedError:
            # It was refreshed meanwhile; what is stored now is to be ended.
            continue
    raise OperationalError("The connection kept changing while it was to be ended.")


class _ConnectionChangedError(Exception):
    """The connection has moved on since it was read."""


def _end_login(record: LoginSession, reason: str) -> list[PendingRevocation]:
    pending = login_sessions.end(record, reason)
    rows = BankToken.objects.using(grants.alias()).select_related("user")
    connection = rows.filter(user=record.user_id).first()
    if connection is not None and lives_in(connection, record):
        pending += end_connection(connection, reason)
    return pending


def lives_in(connection: BankToken, record: LoginSession) -> bool:
    """Tell whether *connection* ends with the login of *record*."""
    if connection.status == BankToken.Status.DISCONNECTED:
        return False
    is_its_grant = connection.login_session_id == record.pk
    shares_session = bool(connection.sid) and connection.sid == record.sid
    ends_with_it = OFFLINE_ACCESS not in connection.scopes or conf.logout_ends_connection
    return ends_with_it and (is_its_grant or shares_session)


def end_connection(connection: BankToken, reason: str) -> list[PendingRevocation]:
    """
    End *connection*, or give it the newest grant that another login of the user holds; return what
    is to be ended at Everifin.
    """
    if _give_grant_of_another_login(connection):
        pending = revocation.enqueue(connection, reason)
    else:
        pending = grants.end(connection.user, reason)
    return [pending] if pending is not None else []


def take_over_or_mark_disconnected(connection: BankToken) -> None:
    """
    End *connection*, whose session Everifin has ended; or give it the newest grant that another
    login of the user holds. Nothing is left to be ended at Everifin.

    One that has ended here already, and whose token waits to be moved, stays as it is.
    """
    has_ended = connection.status == BankToken.Status.DISCONNECTED
    if not has_ended and not _give_grant_of_another_login(connection):
        grants.mark_disconnected(connection, "backchannel_logout")


def _give_grant_of_another_login(connection: BankToken) -> bool:
    """Only one of the same identity: another is never taken without being asked for."""
    held = login_sessions.rows().filter(
        user=connection.user_id, identity_digest=connection.identity_digest or "-"
    )
    for record in held.exclude(refresh_ciphertext="").order_by("-created_at"):
        try:
            token = record.open_token("refresh")
        except TokenUnreadableError:
            continue
        if token is not None and _give(connection, record, token):
            return True
    return False


def _give(connection: BankToken, record: LoginSession, token: Secret) -> bool:
    same_record = login_sessions.rows().filter(pk=record.pk, version=record.version)
    if not same_record.update(refresh_ciphertext="", is_spent=False, version=record.version + 1):
        return False
    context = connection.encryption_context("refresh")
    columns: dict[str, Any] = {
        **grants.EMPTY_COLUMNS,
        "refresh_ciphertext": seal(token, context, active_key()),
        "refresh_expires_at": record.refresh_expires_at,
        **scope_columns(record.scope or connection.scope),
        "sid": record.sid,
        "login_session_id": record.pk,
        "last_error": revocation.ANSWER_LOST if record.is_spent else "",
        "issued_at": record.created_at,
        "status": BankToken.Status.ACTIVE,
        "token_version": connection.token_version + 1,
        "updated_at": timezone.now(),
    }
    if grants.same_version(connection).update(**columns):
        return True
    raise _ConnectionChangedError


def _delete_sessions(record: LoginSession) -> None:
    """A rollback of the site's own logout view may have brought the session back."""
    try:
        login_sessions.delete_sessions(login_sessions.session_keys(record))
    except TokenUnreadableError:
        grants.logger.critical("The session keys of a login cannot be read, so it was not ended.")


def _readable(record: LoginSession) -> Secret | None:
    try:
        return record.open_token("id")
    except TokenUnreadableError:
        return None

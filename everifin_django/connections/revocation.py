"""
The outbox of refresh tokens that still have to be ended at Everifin.

A token is put here in the same transaction that takes it from its connection, so a crash at any
point leaves it either live in its connection or listed here.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta

from django.core.exceptions import ImproperlyConfigured
from django.db import models, transaction
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections.bulk import Outage, Pace, pages
from everifin_django.encryption import EncryptionContext, Key, active_key, seal
from everifin_django.exceptions import (
    EverifinError,
    RefusedError,
    TokenUnreadableError,
)
from everifin_django.models import (
    MOST_COUNTED,
    BankToken,
    DatabaseNow,
    LoginSession,
    PendingRevocation,
    database_of,
    in_database_seconds,
    is_over,
    primary,
)
from everifin_django.oauth.endpoints import TokenSet, end_session
from everifin_django.secret import Secret

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 60
LONGEST_BACKOFF_SECONDS = 3600
ANSWER_LOST = "answer_lost"
"""What a connection's last error says once a refresh may have spent its token."""


def enqueue(connection: BankToken, reason: str) -> PendingRevocation | None:
    """
    Put the connection's encrypted refresh token into the outbox of the same database; return the
    entry, or None for a connection without a refresh token. One query, no key.
    """
    if not connection.refresh_ciphertext:
        return None
    return PendingRevocation.objects.using(database_of(connection)).create(
        connection_id=connection.pk,
        user_pk=connection.encrypted_for or str(connection.user_id),
        refresh_ciphertext=connection.refresh_ciphertext,
        is_spent=_may_be_spent(connection),
        reason=_bounded(reason),
        expires_at=connection.refresh_expires_at,
    )


def _may_be_spent(connection: BankToken) -> bool:
    """Has a refresh sent the token, and no answer come?"""
    return connection.lease_id is not None or connection.last_error == ANSWER_LOST


def release(connection: BankToken, reason: str, *, but: uuid.UUID | None = None) -> None:
    """
    Take the refresh token off *connection*, which is being replaced or emptied: it moves to the
    record of the browser whose login it is from (other than *but*), else to the outbox. Three
    queries at most.

    Encrypted anew for the record. One that cannot be read goes to the outbox as it is.
    """
    if connection.refresh_ciphertext and not _move_to_record(connection, but):
        enqueue(connection, reason)


def replace_spent(connection: BankToken, refresh_token: Secret, key: Key) -> None:
    """
    Put *refresh_token*, the answer to a refresh of *connection* that came after a newer grant had
    replaced it, where the token that was spent for it went: to the outbox, or to the record of a
    browser. Three statements at most; nothing where both grants share one session at Everifin.
    """
    context = connection.encryption_context("refresh")
    entries = primary(PendingRevocation).filter(
        connection_id=connection.pk, refresh_ciphertext=connection.refresh_ciphertext
    )
    if entries.update(refresh_ciphertext=seal(refresh_token, context, key), is_spent=False):
        return
    record = _record_of(connection)
    if record is not None and _holds_same_token(record, connection):
        sealed = seal(refresh_token, record.encryption_context("refresh"), key)
        _logins().filter(pk=record.pk, version=record.version).update(
            refresh_ciphertext=sealed, is_spent=False, version=record.version + 1
        )


def drop_spent(connection: BankToken) -> None:
    """
    Delete the entry of the token that was spent for a refresh of *connection*: what came for it is
    in the outbox now. One statement.
    """
    primary(PendingRevocation).filter(
        connection_id=connection.pk,
        refresh_ciphertext=connection.refresh_ciphertext,
        is_spent=True,
    ).delete()


def _holds_same_token(record: LoginSession, connection: BankToken) -> bool:
    try:
        held = record.open_token("refresh")
        return held is not None and held == connection.open_token("refresh")
    except TokenUnreadableError:
        return False


def _record_of(connection: BankToken, but: uuid.UUID | None = None) -> LoginSession | None:
    """The record of the browser whose login the grant of *connection* is from, if there is one."""
    lives_in = models.Q(pk__in=[connection.login_session_id or uuid.UUID(int=0)])
    if connection.sid:
        lives_in |= models.Q(sid=connection.sid, has_ended_sid=False)
    found = _logins().filter(lives_in, user=connection.user_id)
    if but is not None:
        found = found.exclude(pk=but)
    return found.order_by("-created_at").first()


def _move_to_record(connection: BankToken, but: uuid.UUID | None) -> bool:
    record = _record_of(connection, but)
    if record is None:
        return False
    try:
        token = connection.open_token("refresh")
    except TokenUnreadableError:
        return False
    assert token is not None  # noqa: S101 - the caller has looked
    return bool(
        _logins()
        .filter(pk=record.pk)
        .update(
            refresh_ciphertext=seal(token, record.encryption_context("refresh"), active_key()),
            refresh_expires_at=connection.refresh_expires_at,
            is_spent=_may_be_spent(connection),
            scope=connection.scope,
            version=models.F("version") + 1,
        )
    )


def enqueue_record(record: LoginSession, reason: str) -> PendingRevocation | None:
    """
    Put the refresh token that the record of a login holds into the outbox, as ``enqueue`` does.
    """
    if not record.refresh_ciphertext:
        return None
    return PendingRevocation.objects.using(database_of(record)).create(
        connection_id=record.pk,
        user_pk=str(record.user_id),
        refresh_ciphertext=record.refresh_ciphertext,
        is_spent=record.is_spent,
        reason=reason,
        expires_at=record.refresh_expires_at,
    )


def enqueue_records(records: models.QuerySet[LoginSession], reason: str) -> None:
    """Put the refresh tokens of many records into the outbox. Two statements."""
    PendingRevocation.objects.using(records.db).bulk_create(
        PendingRevocation(
            connection_id=record.pk,
            user_pk=str(record.user_id),
            refresh_ciphertext=record.refresh_ciphertext,
            is_spent=record.is_spent,
            reason=reason,
            expires_at=record.refresh_expires_at,
        )
        for record in records
    )


def enqueue_record_on_delete(record: LoginSession, using: str) -> None:
    """As ``enqueue_on_delete``, for the record of a login."""
    row = LoginSession.objects.using(using).filter(pk=record.pk)
    if row.update(version=models.F("version") + 1):
        enqueue_record(row.get(), "deleted")


def enqueue_on_delete(connection: BankToken, using: str) -> None:
    """
    Put the refresh token that a connection has just before it is deleted into the outbox. Three
    queries; to be called in the transaction that deletes it.

    *connection* may have been read long before: what was refreshed since then is in the row alone.
    An UPDATE locks the row on every database, so a refresh has either stored before it, or finds no
    row afterwards and ends what it was given.
    """
    row = BankToken.objects.using(using).filter(pk=connection.pk)
    if row.update(updated_at=models.F("updated_at")):
        enqueue(row.get(), "deleted")


def enqueue_token(
    context: EncryptionContext, refresh_token: Secret, reason: str, key: Key, alias: str
) -> PendingRevocation:
    """
    Put a refresh token that was not stored into the outbox of database *alias*, encrypted with
    *key* for *context*. One query.
    """
    return PendingRevocation.objects.using(alias).create(
        connection_id=context.connection_id,
        user_pk=context.user_pk,
        refresh_ciphertext=seal(refresh_token, context, key),
        reason=_bounded(reason),
    )


def revoke_unused(tokens: TokenSet, reason: str) -> None:
    """
    End a grant that no user will have. Four queries and one request; a failure waits in the outbox.

    A grant that shares its session at Everifin with a live connection or login is left to end with
    that: to end it now would end both.
    """
    if tokens.refresh is not None and not is_used(tokens.sid):
        context = EncryptionContext(connection_id=str(uuid.uuid4()), user_pk="", kind="refresh")
        revoke(enqueue_token(context, tokens.refresh, reason, active_key(), primary(BankToken).db))


def is_used(sid: str) -> bool:
    """
    Tell whether a connection, or the login of a browser, lives in the session *sid* at Everifin.
    Two queries at most; none for an unknown sid.
    """
    if not sid:
        return False
    connections = primary(BankToken).filter(sid=sid)
    return connections.exists() or _logins().filter(sid=sid, has_ended_sid=False).exists()


def _logins() -> models.QuerySet[LoginSession]:
    return primary(LoginSession)


def revoke(pending: PendingRevocation) -> bool:
    """
    End one token at Everifin; return whether it is ended. A failure stays in the outbox, with the
    time of its next try.

    Two queries and one request; none if another process has just taken the same entry. Never raises
    an EverifinError.
    """
    token = _claim(pending)
    return token is not None and _settle(pending, _end(token))


def revoke_due(*, concurrency: int = 1, max_seconds: float | None = None) -> tuple[int, int]:
    """
    End what is due in the outbox; return how many entries are gone and how many are left.

    For each entry two queries and one request: *concurrency* of these at once, and
    EVERIFIN_REVOCATIONS_PER_SECOND at most. Nothing is begun after *max_seconds*, nor once Everifin
    is found to be down or to refuse this site's client: the rest stays due. Tokens past their own
    end are deleted without a request. Several processes may do it at once, each at that rate.
    """
    entries = primary(PendingRevocation)
    before = entries.count()
    entries.filter(expires_at__lt=DatabaseNow()).delete()
    _work_off(concurrency, time.monotonic() + max_seconds if max_seconds is not None else None)
    left = entries.count()
    return max(0, before - left), left


def revoke_some(
    entries: models.QuerySet[PendingRevocation], *, max_seconds: float
) -> tuple[int, int]:
    """
    End those of *entries* that are begun within *max_seconds*, whether they are due or not; return
    how many are ended, and how many there are. Two queries and one request for each, one after the
    other.
    """
    until = time.monotonic() + max_seconds
    ended = 0
    for pending in entries.iterator(100):
        if time.monotonic() >= until:
            break
        ended += revoke(pending)
    return ended, ended + entries.count()


def _claim(pending: PendingRevocation) -> Secret | None:
    """
    The token of an entry that nobody else works on now; None if it is taken, or cannot be read.
    """
    doublings = min(pending.attempts, 10)
    backoff_seconds = min(FIRST_BACKOFF_SECONDS * 2**doublings, LONGEST_BACKOFF_SECONDS)
    # The count of attempts is the claim: of two processes that read the same entry, one finds it
    # changed. So it starts again at its bound.
    attempts = pending.attempts + 1 if pending.attempts < MOST_COUNTED else 1
    claimed = _entry(pending).filter(attempts=pending.attempts)
    if not claimed.update(attempts=attempts, retry_after=in_database_seconds(backoff_seconds)):
        return None
    try:
        return pending.open_token()
    except (EverifinError, ImproperlyConfigured) as error:
        _settle(pending, error)
        return None


def _end(token: Secret) -> Exception | None:
    """End *token* at Everifin; return what kept it from ending. One request, no query."""
    try:
        was_alive = end_session(token)
    except (EverifinError, ImproperlyConfigured) as error:
        return error
    return None if was_alive else _DeadTokenError()


class _DeadTokenError(Exception):
    """Everifin did not know the token any more."""


def _settle(pending: PendingRevocation, error: Exception | None) -> bool:
    if error is None or (isinstance(error, _DeadTokenError) and not pending.is_spent):
        _entry(pending).delete()
        logger.info("The grant of connection %s is ended.", pending.connection_id)
        return True
    failure = _reason(error)
    _entry(pending).update(last_error=failure)
    logger.warning(
        "The grant of connection %s is not ended yet: %s.", pending.connection_id, failure
    )
    return False


def _entry(pending: PendingRevocation) -> models.QuerySet[PendingRevocation]:
    return PendingRevocation.objects.using(database_of(pending)).filter(pk=pending.pk)


def _work_off(concurrency: int, until: float | None) -> None:
    """
    The requests are made in threads of their own; the database is asked by this one alone, which
    needs no more connections than any other command.
    """
    outage, pace = Outage(), Pace(conf.revocations_per_second)
    with ThreadPoolExecutor(concurrency) as pool:
        running: dict[Future[Exception | None], PendingRevocation] = {}
        for pending in _due():
            if outage.is_known or (until is not None and time.monotonic() >= until):
                break
            pace.wait()
            token = _claim(pending)
            if token is not None:
                running[pool.submit(_end, token)] = pending
            if len(running) >= concurrency:
                _settle_finished(running, outage)
        while running:
            _settle_finished(running, outage)


def _settle_finished(
    running: dict[Future[Exception | None], PendingRevocation], outage: Outage
) -> None:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        error = future.result()
        outage.note(error)
        _settle(running.pop(future), error)


def _due() -> Iterator[PendingRevocation]:
    """Each entry that is due. Read in pages: a million tokens are gigabytes."""
    due = is_over("retry_after", LONGEST_BACKOFF_SECONDS)
    for page in pages(primary(PendingRevocation).filter(due)):
        yield from page


def purge_ended() -> int:
    """
    Empty the connections whose users have not connected again for EVERIFIN_RETENTION_DAYS; return
    how many.

    Their refresh tokens go to the outbox: what cannot be used here may still live at Everifin. One
    query for the list, and two for each connection.
    """
    long_ago = timezone.now() - timedelta(days=conf.retention_days)
    ended = BankToken.objects.using(primary(BankToken).db).ended_before(long_ago)
    return sum(_empty(row) for page in pages(ended) for row in page)


def _empty(row: BankToken) -> bool:
    """Was *row* emptied? Not if it was connected again since it was read."""
    alias = database_of(row)
    same_version = BankToken.objects.using(alias).filter(
        pk=row.pk, token_version=row.token_version, status=row.status
    )
    with transaction.atomic(using=alias):
        is_emptied = same_version.update(
            access_ciphertext="",
            refresh_ciphertext="",
            id_ciphertext="",
            token_version=row.next_version,
        )
        if is_emptied:
            release(row, "purged")
    return bool(is_emptied)


def _bounded(reason: str) -> str:
    """A site may name reasons of its own, of any length; one must not stop a disconnect."""
    return reason[: PendingRevocation._meta.get_field("reason").max_length]


def _reason(error: Exception) -> str:
    if isinstance(error, _DeadTokenError):
        return "spent"
    if isinstance(error, ImproperlyConfigured):
        return "misconfigured"
    if isinstance(error, TokenUnreadableError):
        return "unreadable"
    return (error.code or "refused") if isinstance(error, RefusedError) else "unavailable"

"""
The refresh protocol: one request for a due token, whoever asks for it and however often, and
nothing lost on the way.

A lease on the row and a compare-and-swap on its version; no lock and no transaction is open during
the request.

1. **claim**: set a lease, if nobody holds one and the version is the one that was read. One process
   goes on.
2. **send**: one request to the token endpoint; one repeat if nothing was sent or the answer was
   lost.
3. **store**: write the new tokens, if the version is still the same; the version moves on by one.
4. **give up**: write down the failure and free the lease. Only Everifin's own ``invalid_grant`` or
   ``invalid_scope`` ends a connection; everything else is temporary.

The lease is no part of the condition in *store*: a good answer that comes late wins over a
connection that was given up. Everyone else goes on with the current token while it is good enough,
and waits for the new one when it is not.

Times: a token is *due* for a margin before its end (EVERIFIN_REFRESH_MARGIN_SECONDS, at most half
its life) and *overdue* for the last quarter of that. Leases and retries go by the database's clock,
which all hosts share.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import InterfaceError, OperationalError, connections, router, transaction
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import revocation
from everifin_django.encryption import Key, active_key
from everifin_django.exceptions import (
    AnswerLostError,
    APIError,
    ConsentExpiredError,
    EverifinError,
    RefreshInTransactionError,
    RefusedError,
    TokenMissingError,
    UnavailableError,
    UnreachableError,
)
from everifin_django.models import BankToken, DatabaseNow, in_database_seconds
from everifin_django.oauth.endpoints import TokenSet, refresh
from everifin_django.oauth.id_token import Identity, is_about
from everifin_django.secret import Secret
from everifin_django.signals import consent_expired, token_refreshed

logger = logging.getLogger(__name__)

STORE_RETRY_SECONDS = 10
LEASE_SPARE_SECONDS = 10
POLL_SECONDS = (0.05, 0.25)
BACKOFF_SECONDS = (2, 60)
TAKEOVER_PATIENCE_SECONDS = 1.5
REPEAT_SECONDS = 1
CLIENT_REFUSED_PAUSE_SECONDS = 5
SENDING_SHARE = 0.5
ANSWER_LOST = "answer_lost"
NO_ACCESS_TOKEN = "no_access_token"  # noqa: S105 - a reason
LIMIT_LOCK_WAITS = {
    "sqlite": "PRAGMA busy_timeout = 2000",
    "postgresql": "SET lock_timeout = '2s'",
    "mysql": "SET innodb_lock_wait_timeout = 2",
}
"""How long a refresh waits for the transaction that waits for it, by database."""

EXPIRED_ANSWER_PAUSE_SECONDS = 5
CLIENT_ERRORS = frozenset({"invalid_client", "unauthorized_client"})
ENDING_ERRORS = {
    "invalid_grant": "invalid_grant",
    "invalid_scope": "consent_withdrawn",
    "no_refresh_token": "no_refresh_token",
}
"""
The errors that end a connection, with the reason a site is told. Keycloak answers ``invalid_scope``
when the user withdrew consent there; the last one is ours, for a connection that Everifin gave no
refresh token.
"""


def ensure_fresh(user: Any, *, rejected_version: int | None = None) -> BankToken:
    """
    Return the user's connection with an access token that is good to use.

    One query while the token is fresh. When it is due, one process sends one request; when it is
    overdue, the others wait for the new one, at most EVERIFIN_DEADLINE_SECONDS. With
    *rejected_version* (Everifin refused that token) the token counts as overdue until the version
    has moved on.

    Errors: TokenMissingError, ConsentExpiredError, TokenUnreadableError, UnavailableError;
    RefreshInTransactionError on SQLite, when the token is overdue inside a transaction that has
    locked the database.
    """
    reading = None
    if rejected_version is None:
        reading = _read(user, None)
        if not reading.is_due or (reading.is_usable and in_transaction()):
            return reading.row
    # Nothing is read here for a token that was rejected: on SQLite that alone would lock out the
    # connection that refreshes.
    if in_transaction():
        return _refreshed_outside_transaction(user, rejected_version)
    return _refreshed(user, rejected_version, reading)


def in_transaction() -> bool:
    """
    Is a transaction open that could roll back what is written now? One that a TestCase wraps around
    a test is not.
    """
    alias = _alias()
    connection = connections[alias]
    if not connection.in_atomic_block:
        return not connection.get_autocommit()
    try:
        with transaction.atomic(using=alias, durable=True):
            return False
    except RuntimeError:
        return True


@dataclass(frozen=True, slots=True)
class _Reading:
    """A connection as the database has it at one moment, and what may be done with it."""

    row: BankToken
    now: datetime
    database_now: datetime
    rejected_version: int | None

    @property
    def is_usable(self) -> bool:
        is_rejected = self.row.token_version == self.rejected_version
        return not is_rejected and self.now < self.row.overdue_at(conf.refresh_margin_seconds)

    @property
    def is_due(self) -> bool:
        if not self.row.refresh_ciphertext:  # nothing to refresh it with, so it is used to its end
            return not self.is_usable
        return not self.is_usable or self.now >= self.row.due_at(conf.refresh_margin_seconds)

    @property
    def is_leased(self) -> bool:
        return self.row.lease_until is not None and self.row.lease_until >= self.database_now

    @property
    def pause_seconds(self) -> float:
        """How long Everifin is to be left alone after a failure."""
        if self.row.retry_after is None:
            return 0
        return max(0.0, (self.row.retry_after - self.database_now).total_seconds())


def _refreshed(
    user: Any, rejected_version: int | None, reading: _Reading | None = None
) -> BankToken:
    """Claim, send and store; or wait for whoever does. *reading* is what was read just now."""
    deadline = time.monotonic() + conf.deadline_seconds
    while True:
        reading = reading or _read(user, rejected_version)
        if not reading.is_due:
            return reading.row
        row = _try(reading, deadline)
        if row is not None:
            return row
        if time.monotonic() >= deadline:
            raise _unavailable(POLL_SECONDS[1])
        time.sleep(random.uniform(*POLL_SECONDS))  # noqa: S311 - spreads the waiting, hides nothing
        reading = None


def _try(reading: _Reading, deadline: float) -> BankToken | None:
    """The connection refreshed, or as it is while usable; None if somebody is refreshing it."""
    try:
        if not reading.is_leased:
            if pause_seconds := max(reading.pause_seconds, client_pause.seconds_left):
                raise _unavailable(pause_seconds)
            attempt = Attempt(reading.row, deadline)
            if attempt.has_time and attempt.claim():
                return attempt.run()
    except UnavailableError:
        if not reading.is_usable:
            raise
    return reading.row if reading.is_usable else None


def _refreshed_outside_transaction(user: Any, rejected_version: int | None) -> BankToken:
    """
    Refresh over a database connection of its own, so that a rollback of the open transaction cannot
    lose the new tokens.

    Why a thread: Django keeps one connection for each thread and alias, and a new one needs no
    configuration. The open transaction does nothing meanwhile, so if it has locked what the claim
    writes, the claim gives up and nothing is sent; and if it has not, it will not lock the store.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="everifin-refresh") as executor:
        row = executor.submit(_refreshed_over_own_connection, user, rejected_version).result()
    if row is not None:
        return row
    if connections[_alias()].vendor == "sqlite":
        raise RefreshInTransactionError(
            "The Everifin token has to be refreshed inside a database transaction, and SQLite has "
            "room for one writer only. Mark the view with @everifin_required, so that the token is "
            "refreshed before the transaction begins; if it is marked already, take it out of "
            "the transaction with django.db.transaction.non_atomic_requests."
        )
    raise _unavailable(POLL_SECONDS[1])


def _refreshed_over_own_connection(user: Any, rejected_version: int | None) -> BankToken | None:
    """None if the open transaction holds a lock that the refresh needs."""
    vendor = connections[_alias()].vendor
    try:
        with connections[_alias()].cursor() as cursor:
            cursor.execute(LIMIT_LOCK_WAITS[vendor])
        if vendor == "sqlite" and _read(user, rejected_version).is_leased:
            # Whoever refreshes it waits for the open transaction, to store.
            return None
        return _refreshed(user, rejected_version)
    except OperationalError:
        return None
    finally:
        connections.close_all()


@dataclass(slots=True)
class Attempt:
    """
    One try of one process to refresh one connection, step by step. Making one proves that there is
    a key to seal with, and keeps it: no key fault can cost a token that is spent.

    ``run`` is the steps in their order; each can be called on its own, so that any interleaving of
    two tries can be played.
    """

    row: BankToken
    deadline: float
    key: Key = field(default_factory=active_key)
    lease_id: uuid.UUID | None = None
    refresh_token: Secret | None = None
    is_answer_lost: bool = False

    def run(self) -> BankToken | None:
        """
        Return the refreshed connection after ``claim`` was won, None if it is due again at once.
        Errors: as ``ensure_fresh``.
        """
        try:
            tokens = self.send()
        except APIError as error:
            failure = error
        else:
            return self.store(tokens)
        return self.give_up(failure)

    def claim(self) -> bool:
        """
        Open the refresh token, then take the lease; return whether it was taken. One statement.

        Errors: TokenUnreadableError, before anything is sent or written.
        """
        self.refresh_token = self.row.open_token("refresh")
        lease_seconds = conf.deadline_seconds + STORE_RETRY_SECONDS + LEASE_SPARE_SECONDS
        self.lease_id = uuid.uuid4()
        return bool(
            self._same_version()
            .claimable()
            .update(lease_id=self.lease_id, lease_until=in_database_seconds(lease_seconds))
        )

    def send(self) -> TokenSet:
        """
        Return the new tokens: one request, and one more if nothing was sent or the answer was lost.

        The repeat comes at once, because a provider that forgives a repeated refresh token does so
        for seconds only; and not after a timeout, when the first request may still be at work.
        """
        if self.refresh_token is None:
            raise RefusedError(
                "Everifin gave no refresh token for this connection.", code="no_refresh_token"
            )
        try:
            return refresh(self.refresh_token, deadline_seconds=self._seconds_left())
        except (UnreachableError, AnswerLostError) as error:
            self.is_answer_lost = isinstance(error, AnswerLostError)
            if self._seconds_left() < REPEAT_SECONDS:
                raise
        return refresh(self.refresh_token, deadline_seconds=self._seconds_left())

    def store(self, tokens: TokenSet) -> BankToken | None:
        """
        Write the new tokens and return the connection; if it has moved on meanwhile, return or
        refuse what it is now. None if a refresh token came without an access token that can be
        used: to be refreshed once more, and after a pause if that does not help.

        One statement, repeated over a new database connection for some seconds if the database
        fails.
        """
        row = self.row
        if (
            tokens.id is not None
            and row.identity_digest
            and not is_about(tokens.id, Identity(row.issuer, row.subject))
        ):
            return self._stop(tokens)
        columns = row.sealed(tokens, self.key) | {
            "token_version": row.token_version + 1,
            "status": BankToken.Status.ACTIVE,
            "failures": 0,
            "last_error": "" if tokens.access is not None else NO_ACCESS_TOKEN,
            "updated_at": timezone.now(),
            **_FREE,
        }
        is_once_more = tokens.access is None and row.last_error != NO_ACCESS_TOKEN
        is_expired = tokens.expires_at <= timezone.now() and not is_once_more
        if is_expired:
            columns["retry_after"] = in_database_seconds(EXPIRED_ANSWER_PAUSE_SECONDS)
        try:
            stored = _despite_database_faults(lambda: self._store(columns))
        except (OperationalError, InterfaceError):
            logger.critical("The refreshed tokens of connection %s could not be stored.", row.pk)
            return _with_columns(row, columns)
        if not stored:
            return self._overtaken(tokens)
        if is_expired:
            raise _unavailable(EXPIRED_ANSWER_PAUSE_SECONDS)
        if is_once_more:
            return None
        logger.info("The tokens of connection %s were refreshed.", row.pk)
        token_refreshed.send_robust(sender=BankToken, user=row.user, connection_id=row.pk)
        return _with_columns(row, columns)

    def give_up(self, error: APIError) -> BankToken:
        """
        Free the lease and raise what *error* means; or return the connection if another try
        refreshed it meanwhile.
        """
        if isinstance(error, RefusedError) and error.code in ENDING_ERRORS:
            return self._refused(error.code)
        seconds = self._back_off(error)
        raise _unavailable(seconds)

    def _store(self, columns: dict[str, Any]) -> bool:
        return bool(
            self._same_version().exclude(status=BankToken.Status.DISCONNECTED).update(**columns)
        )

    def _overtaken(self, tokens: TokenSet) -> BankToken:
        """
        The row moved on. A newer grant stays, and may share our session at Everifin; so ours is
        ended only if there is none. Where the older grant has gone, our token goes, too.
        """
        row = self._reread()
        is_unwanted = row is None or row.status == BankToken.Status.DISCONNECTED
        if tokens.refresh is not None:
            if is_unwanted:
                self._revoke(tokens.refresh, "disconnected")
            else:
                revocation.replace_spent(self.row, tokens.refresh, self.key)
        return _live(row)

    def _stop(self, tokens: TokenSet) -> BankToken:
        """
        The answer is about somebody else: nothing of it is stored, and nobody goes on with this
        connection.
        """
        self._same_version().update(
            status=BankToken.Status.NEEDS_RECONNECT,
            token_version=self.row.token_version + 1,
            last_error="identity_changed",
            updated_at=timezone.now(),
            **_FREE,
        )
        if tokens.refresh is not None:
            self._revoke(tokens.refresh, "identity_changed")
        logger.critical(
            "A refresh of connection %s was answered with somebody else's ID token.", self.row.pk
        )
        return self._ended("identity_changed")

    def _revoke(self, refresh_token: Secret, reason: str) -> None:
        context = self.row.encryption_context("refresh")
        revocation.revoke(revocation.enqueue_token(context, refresh_token, reason, self.key))

    def _refused(self, code: str) -> BankToken:
        """
        Everifin refused the refresh token: wait for a slow holder of an older lease, then give the
        connection up.

        The version stays, so that the holder's good answer can still revive it.
        """
        took_over = self.row.lease_id is not None
        patience = time.monotonic() + (TAKEOVER_PATIENCE_SECONDS if took_over else 0)
        while (row := _live(self._reread())).token_version == self.row.token_version:
            if time.monotonic() >= patience:
                break
            time.sleep(POLL_SECONDS[1])
        else:
            return row
        was_spent = self._may_be_spent and code == "invalid_grant"
        reason = ANSWER_LOST if was_spent else ENDING_ERRORS[code]
        gave_up = (
            self._same_version()
            .filter(status=BankToken.Status.ACTIVE)
            .update(
                status=BankToken.Status.NEEDS_RECONNECT,
                last_error=reason,
                updated_at=timezone.now(),
                **_FREE,
            )
        )
        return self._ended(reason) if gave_up else _live(self._reread())

    def _ended(self, reason: str) -> BankToken:
        logger.warning("Connection %s needs to be connected again: %s.", self.row.pk, reason)
        consent_expired.send_robust(
            sender=BankToken, user=self.row.user, connection_id=self.row.pk, reason=reason
        )
        raise consent_expired_error(reason)

    def _back_off(self, error: APIError) -> float:
        """Write down the failure and when the next try may be; return the seconds until then."""
        shortest, longest = BACKOFF_SECONDS
        ceiling = min(2 * shortest * 2.0 ** min(self.row.failures, 10), longest)
        seconds = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads retries, hides nothing
        asked_for = error.retry_after_seconds if isinstance(error, UnavailableError) else None
        seconds = min(max(seconds, asked_for or 0), longest)
        self._same_version().filter(lease_id=self.lease_id).update(
            failures=self.row.failures + 1,
            # A lost answer is remembered through failures of another kind: it explains the end.
            last_error=ANSWER_LOST if self._may_be_spent else _reason(error),
            **_FREE | {"retry_after": in_database_seconds(seconds)},
        )
        if _is_about_client(error):
            client_pause.begin()
        is_ours_to_mend = isinstance(error, RefusedError) or error.status == 401
        logger.log(
            logging.ERROR if is_ours_to_mend else logging.WARNING,
            "Connection %s could not be refreshed: %s. Its tokens are kept.",
            self.row.pk,
            _reason(error),
        )
        return seconds

    @property
    def _may_be_spent(self) -> bool:
        """By whoever held the lease before, by an earlier try, or by this one's first request."""
        took_over = self.row.lease_id is not None
        return took_over or self.row.last_error == ANSWER_LOST or self.is_answer_lost

    @property
    def has_time(self) -> bool:
        """
        Is enough of the deadline left to send anything? Who has waited long leaves it to the next
        one: a request that is cut off has spent the token for nothing.
        """
        return self._seconds_left() >= conf.deadline_seconds * SENDING_SHARE

    def _seconds_left(self) -> float:
        return max(0.1, self.deadline - time.monotonic())

    def _same_version(self) -> Any:
        return BankToken.objects.using(_alias()).filter(
            pk=self.row.pk, token_version=self.row.token_version
        )

    def _reread(self) -> BankToken | None:
        return BankToken.objects.using(_alias()).filter(pk=self.row.pk).first()


class ClientPause:
    """
    When Everifin refused this site's client itself, no connection is tried for a moment: each would
    be refused alike. Of this process only.
    """

    def __init__(self) -> None:
        self._until = 0.0

    def begin(self) -> None:
        self._until = time.monotonic() + CLIENT_REFUSED_PAUSE_SECONDS

    def end(self) -> None:
        self._until = 0.0

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())


client_pause = ClientPause()


def _is_about_client(error: APIError) -> bool:
    """Source: RFC 6749, section 5.2. Some servers say no more than 401."""
    if isinstance(error, RefusedError):
        return error.code in CLIENT_ERRORS
    return error.status == 401


_FREE: dict[str, Any] = {"lease_id": None, "lease_until": None, "retry_after": None}


def consent_expired_error(reason: str) -> ConsentExpiredError:
    return ConsentExpiredError(
        "Everifin ended this user's connection; they need to connect again.", reason=reason
    )


def _alias() -> str:
    return router.db_for_write(BankToken)


def _read(user: Any, rejected_version: int | None) -> _Reading:
    """Errors: as ``_alive``; TokenMissingError for a user who is not active."""
    if not user.is_active:
        raise TokenMissingError("The user is not active, so nothing is read in their name.")
    rows = BankToken.objects.using(_alias()).annotate(database_now=DatabaseNow())
    row: Any = rows.filter(user=user).first()
    alive = _live(row)
    alive.user = user
    return _Reading(alive, timezone.now(), row.database_now, rejected_version)


def _live(row: BankToken | None) -> BankToken:
    """Errors: TokenMissingError and ConsentExpiredError for what no refresh can bring back."""
    if row is None or row.status == BankToken.Status.DISCONNECTED:
        raise TokenMissingError("The user has no connection to Everifin.")
    if row.status == BankToken.Status.NEEDS_RECONNECT:
        raise consent_expired_error(row.last_error)
    return row


def _with_columns(row: BankToken, columns: dict[str, Any]) -> BankToken:
    """The row as it is after the update, without reading it again."""
    for name, value in columns.items():
        setattr(row, name, value)
    return row


def _reason(error: EverifinError) -> str:
    if isinstance(error, RefusedError):
        return error.code or "refused"
    if isinstance(error, AnswerLostError):
        return ANSWER_LOST
    return "unreachable" if isinstance(error, UnreachableError) else "unavailable"


def _unavailable(retry_after_seconds: float) -> UnavailableError:
    error = UnavailableError(
        "Everifin cannot renew the access token for now; the connection is kept."
    )
    error.retry_after_seconds = retry_after_seconds
    return error


def _despite_database_faults(write: Callable[[], bool]) -> bool:
    """Write, over a new database connection if the old one died, for STORE_RETRY_SECONDS."""
    end = time.monotonic() + STORE_RETRY_SECONDS
    while True:
        try:
            return write()
        except (OperationalError, InterfaceError):
            if time.monotonic() >= end:
                raise
        connections[_alias()].close()
        time.sleep(POLL_SECONDS[1])

"""
The refresh protocol: one request for a due token, however many callers need it, and no token is
ever lost.

A lease on the row and a compare-and-swap on its version; no lock and no transaction is open during
the request.

1. **claim**: set a lease, if no process holds one and the version is still the one that was
   read. One process continues.
2. **send**: one request to the token endpoint; one repeat if nothing was sent or the answer was
   lost.
3. **store**: write the new tokens, if the version is still the same; the version moves on by one.
4. **give up**: write down the failure and free the lease. Only Everifin's own ``invalid_grant`` or
   ``invalid_scope`` ends a connection; everything else is temporary.

The lease is not part of the condition in *store*: a good answer that comes late wins over a
connection that was given up. Other callers use the current token while it is good enough, and wait
for the new one when it is not.

Times: a token is *due* for a margin before its end (EVERIFIN_REFRESH_MARGIN_SECONDS, at most half
its life) and *overdue* for the last quarter of that. Leases and retries go by the database's clock,
which all hosts share.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NoReturn

from django.db import Error as DatabaseFault
from django.db import connections as db_connections
from django.db import transaction
from django.db.models import CharField, IntegerField, Q, TextField
from django.db.models.functions import Coalesce
from django.dispatch import Signal
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import own_connection, pauses, revocation
from everifin_django.connections.pauses import CLIENT_ERRORS, is_about_client
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
from everifin_django.instrumentation import observed
from everifin_django.models import (
    LONGEST_LEASE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MOST_COUNTED,
    BankToken,
    ConnectionVersion,
    DatabaseNow,
    Incident,
    database_for,
    database_of,
    has_status,
    in_database_seconds,
)
from everifin_django.oauth.endpoints import TokenSet, refresh
from everifin_django.oauth.id_token import Identity, is_about
from everifin_django.secret import Secret
from everifin_django.signals import (
    connection_degraded,
    connection_recovered,
    consent_expired,
    refresh_failed,
    token_refreshed,
)

logger = logging.getLogger(__name__)

STORE_RETRY_SECONDS = 10
LEASE_SPARE_SECONDS = 10
POLL_SECONDS = (0.05, 0.25)
BACKOFF_SECONDS = (2, 60)
TAKEOVER_PATIENCE_SECONDS = 1.5
REPEAT_SECONDS = 1
CLIENT_REFUSED_PAUSE_SECONDS = 5
SENDING_SHARE = 0.5
ANSWER_LOST = revocation.ANSWER_LOST
USER_CHANGED = "user_changed"
TOKEN_REJECTED = "token_rejected"  # noqa: S105 - a reason
NO_ACCESS_TOKEN = "no_access_token"  # noqa: S105 - a reason
REFUSED_SECONDS = 3600
NEW_TOKEN_SECONDS = 3
REJECTED_PAUSE_SECONDS = 60
REJECTED_CONNECTIONS = 3
EXPIRED_ANSWER_PAUSE_SECONDS = 5
AFTER_ROLLBACK_SECONDS = 1
TEMPORARY_ERRORS = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
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


def ensure_fresh(user: Any, *, rejected: ConnectionVersion | None = None) -> BankToken:
    """
    Return the user's connection with an access token that is good to use.

    One query while the token is fresh. When it is due, one process sends one request; when it is
    overdue, the others wait for the new one, at most EVERIFIN_DEADLINE_SECONDS. *rejected* is the
    version whose access token Everifin refused: it is refreshed if it is still the stored one, and
    not if it came from a refresh just now, or if the one before did not help.

    Errors: TokenMissingError, ConsentExpiredError, TokenUnreadableError, UnavailableError;
    RefreshInTransactionError on SQLite, when the token is overdue inside a transaction that has
    locked the database.
    """
    if not user.is_active:
        raise TokenMissingError("The user is not active, so nothing is read in their name.")
    if rejected is not None:
        # Nothing is read here: on SQLite that alone would lock out the connection that refreshes.
        return _refreshed(user, replace(rejected, is_rejected=True))
    row = read_connection(user)
    margin, now = conf.refresh_margin_seconds, timezone.now()
    if now < row.due_at(margin):
        return row
    seen = row.seen()
    if now < row.overdue_at(margin) and in_transaction(seen.alias):
        return row
    return _refreshed(user, seen)


def refresh_now(user: Any) -> BankToken:
    """
    Refresh the user's tokens, however good they are, and return the connection.

    Two queries, three statements and one request. If another process is refreshing them, what it
    stores is returned.
    Errors: as ``ensure_fresh``; UnavailableError also while the tokens are good.
    """
    if not user.is_active:
        raise TokenMissingError("The user is not active, so nothing is read in their name.")
    return _refreshed(user, replace(read_connection(user).seen(), is_forced=True))


def read_connection(user: Any) -> BankToken:
    """
    Return what the user's connection needs to give a fresh token. One query of eleven columns,
    without order or clock, and whether an incident is under way; the other columns are loaded when
    they are asked for.

    Written as SQL and read by a cursor, because the ORM takes several times as long to build the
    query as the database takes to answer it. Nothing is kept for the next call.
    Errors: TokenMissingError, ConsentExpiredError; ImproperlyConfigured as ``database_for``.
    """
    alias = database_for(user)
    connection = db_connections[alias]
    user_pk = USER_FIELD.get_db_prep_value(user.pk, connection)
    with connection.cursor() as cursor:
        cursor.execute(_fresh_sql(connection.ops.quote_name), [user_pk])
        values = cursor.fetchone()
    row = _connected(_from_database(values, connection) if values else None)
    row.user = user
    return row


USER_FIELD: Any = BankToken._meta.get_field("user")
NEEDED_WHILE_FRESH = {
    "id",
    "user",
    "identity_digest",
    "status",
    "token_version",
    "last_error",
    "access_ciphertext",
    "encrypted_for",
    "scope",
    "issued_at",
    "access_expires_at",
}
# In the order of the model, which from_db() expects.
FRESH_FIELDS: tuple[Any, ...] = tuple(
    field for field in BankToken._meta.concrete_fields if field.name in NEEDED_WHILE_FRESH
)
FRESH_NAMES = [field.attname for field in FRESH_FIELDS]
# Our strings and numbers come from every database as they are.
CONVERTED_FIELDS = [
    (index, field)
    for index, field in enumerate(FRESH_FIELDS)
    if not isinstance(field, (CharField, TextField, IntegerField))
]


def _fresh_sql(quote: Callable[[str], str]) -> str:
    """
    Return the query for one user's connection in the quotes of one database. The names are the
    models', because a site may rename the tables.
    """
    columns = ", ".join(quote(field.column) for field in FRESH_FIELDS)
    # Any of them will do. PostgreSQL takes longer to plan MAX() than to run all of this.
    incident = f"SELECT {quote('id')} FROM {quote(Incident._meta.db_table)} LIMIT 1"  # noqa: S608 - our own names
    table, where = quote(BankToken._meta.db_table), quote(USER_FIELD.column)
    return f"SELECT {columns}, ({incident}) FROM {table} WHERE {where} = %s"  # noqa: S608 - as above


def _from_database(values: Sequence[Any], connection: Any) -> BankToken:
    """
    Return the connection that *values* are, converted as the ORM converts what it reads: SQLite,
    for one, has neither UUIDs nor datetimes. Users may have a primary key of any type.
    """
    *columns, incident_id = values
    for index, converted in CONVERTED_FIELDS:
        column = converted.get_col(BankToken._meta.db_table)
        of_database = connection.ops.get_db_converters(column)
        for convert in (*of_database, *column.get_db_converters(connection)):
            columns[index] = convert(columns[index], column, connection)
    row: BankToken = BankToken.from_db(connection.alias, FRESH_NAMES, columns)
    row.incident_id = incident_id  # type: ignore[attr-defined]  # as with_incident() sets it
    return row


def refresh_after_rollback(seen: ConnectionVersion) -> None:
    """
    Refresh the connection that a transaction had no room to refresh, once it has been rolled back.

    *seen* is the ``refresh_later`` of the error that said so. The connection is found by its id on
    the database connection of the request, or not at all. One query for the user, then as
    ``ensure_fresh``, whose errors it has.
    """
    rows = BankToken.objects.using(seen.alias).select_related("user")
    row = rows.filter(pk=seen.connection_id).first()
    if not seen.matches(row) or row is None:
        raise _later(seen)
    if not row.user.is_active:
        raise TokenMissingError("The user is not active, so nothing is read in their name.")
    _refreshed(row.user, seen)


def reject(user: Any, rejected: ConnectionVersion) -> NoReturn:
    """
    Write down that Everifin refused the access token that followed a refused one: it is the
    bank API that fails, and more refreshes would not help. One statement.

    Errors: UnavailableError, always.
    """
    is_of_a_test = own_connection.is_of_a_test(db_connections[rejected.alias])
    if in_transaction(rejected.alias) and not is_of_a_test:
        raise _later(replace(rejected, is_rejected=True))
    _note_rejection(rejected)
    raise _unavailable(REJECTED_PAUSE_SECONDS)


def in_transaction(alias: str) -> bool:
    """
    Is a transaction open that could roll back what is written now? One that a TestCase wraps around
    a test does not count.
    """
    connection = db_connections[alias]
    if not connection.in_atomic_block:
        return not connection.get_autocommit()
    try:
        with transaction.atomic(using=alias, durable=True):
            return False
    except RuntimeError:
        return True


@dataclass(frozen=True, slots=True)
class _Reading:
    """A connection as the database has it now, and what may be done with it."""

    row: BankToken
    now: datetime
    database_now: datetime
    seen: ConnectionVersion
    endpoint_paused_until: datetime | None = None

    @property
    def is_rejected(self) -> bool:
        return self.seen.is_rejected and self._is_same_version

    @property
    def is_usable(self) -> bool:
        is_overdue = self.now >= self.row.overdue_at(conf.refresh_margin_seconds)
        is_unwanted = (self.seen.is_rejected or self.seen.is_forced) and self._is_same_version
        return not is_overdue and not is_unwanted

    @property
    def is_due(self) -> bool:
        if not self.row.refresh_ciphertext:  # nothing to refresh it with, so it is used to its end
            return not self.is_usable
        return not self.is_usable or self.now >= self.row.due_at(conf.refresh_margin_seconds)

    @property
    def is_leased(self) -> bool:
        return 0 <= self._seconds_until(self.row.lease_until) <= LONGEST_LEASE_SECONDS

    @property
    def pause_seconds(self) -> float:
        """How long Everifin is to be left alone: after a failure, or because it asked for it."""
        ends = (self.row.retry_after, self.endpoint_paused_until)
        found = [self._seconds_until(end) for end in ends]
        return max((one for one in found if 0 < one <= LONGEST_PAUSE_SECONDS), default=0)

    @property
    def is_new(self) -> bool:
        """Did the token come from a refresh just now?"""
        if self.row.refreshed_at is None:
            return False
        row, longest = self.row, float(NEW_TOKEN_SECONDS)
        if row.access_expires_at is not None and row.issued_at is not None:
            longest = min(longest, (row.access_expires_at - row.issued_at).total_seconds() / 4)
        return 0 <= -self._seconds_until(row.refreshed_at) < longest

    @property
    def rejected_pause_seconds(self) -> float:
        """How long a refused token is no reason for a refresh, after one that did not help."""
        if self.row.rejected_at is None:
            return 0
        longest = BankToken.REJECTION_PAUSE.total_seconds()
        seconds = longest + self._seconds_until(self.row.rejected_at)
        return seconds if 0 < seconds <= longest else 0

    @property
    def _is_same_version(self) -> bool:
        return self.row.token_version == self.seen.token_version

    def _seconds_until(self, when: datetime | None) -> float:
        return -1.0 if when is None else (when - self.database_now).total_seconds()


def _refreshed(user: Any, seen: ConnectionVersion) -> BankToken:
    is_of_a_test = own_connection.is_of_a_test(db_connections[seen.alias])
    if in_transaction(seen.alias) and not is_of_a_test:
        return _refreshed_in_transaction(user, seen)
    return _refreshed_here(user, seen, time.monotonic() + conf.deadline_seconds)


def _refreshed_here(user: Any, seen: ConnectionVersion, deadline: float) -> BankToken:
    """Claim, send and store; or wait for the process that does."""
    while True:
        reading = _read(user, seen)
        if not reading.is_due:
            return reading.row
        row = _try(reading, deadline)
        if row is not None:
            return row
        if time.monotonic() >= deadline:
            raise _unavailable(POLL_SECONDS[1])
        time.sleep(random.uniform(*POLL_SECONDS))  # noqa: S311 - spreads the waiting, hides nothing


def _try(reading: _Reading, deadline: float) -> BankToken | None:
    """
    The connection refreshed, or as it is while usable; None if another process is refreshing it.
    """
    try:
        if not reading.is_leased:
            if reading.is_rejected:
                _check_that_a_refresh_may_help(reading)
            if pause_seconds := max(reading.pause_seconds, endpoint_pause.seconds_left):
                raise _unavailable(pause_seconds)
            attempt = Attempt(reading.row, deadline)
            if attempt.has_time and attempt.claim():
                return attempt.run()
    except UnavailableError:
        if not reading.is_usable:
            raise
    return reading.row if reading.is_usable else None


def _check_that_a_refresh_may_help(reading: _Reading) -> None:
    """Errors: UnavailableError if the bank API refuses tokens that are new."""
    if reading.is_new:
        _note_rejection(reading.seen)
        raise _unavailable(REJECTED_PAUSE_SECONDS)
    if seconds := max(reading.rejected_pause_seconds, rejected_tokens.pause.seconds_left):
        raise _unavailable(min(seconds, REJECTED_PAUSE_SECONDS))


def _note_rejection(seen: ConnectionVersion) -> None:
    rows = BankToken.objects.using(seen.alias).filter(pk=seen.connection_id)
    same_version = rows.filter(token_version=seen.token_version)
    pause_seconds = BankToken.REJECTION_PAUSE.total_seconds()
    was_healthy = Q(failures=0) & (
        Q(rejected_at=None) | Q(rejected_at__lt=in_database_seconds(-pause_seconds))
    )
    if same_version.filter(was_healthy).update(rejected_at=DatabaseNow()):
        row = rows.select_related("user").first()
        if row is not None:  # its user may be gone by now
            _announce(connection_degraded, row, reason=TOKEN_REJECTED)
    else:
        same_version.update(rejected_at=DatabaseNow())
    rejected_tokens.add(seen.connection_id)
    logger.error(
        "Everifin's bank API refused a new access token of connection %s. It is not refreshed "
        "for that reason again for %d minutes.",
        seen.connection_id,
        pause_seconds // 60,
    )


def _refreshed_in_transaction(user: Any, seen: ConnectionVersion) -> BankToken:
    """
    Refresh over a database connection of its own, so that a rollback of the open transaction cannot
    lose the new tokens.

    Errors: UnavailableError or RefreshInTransactionError, with ``refresh_later``, if that is not
    possible: a lock is held, or the other connection does not see this connection.
    """
    deadline = time.monotonic() + conf.deadline_seconds
    try:
        row = own_connection.run(
            seen.alias, lambda: _refreshed_over_own_connection(user, seen, deadline), deadline
        )
    except (DatabaseFault, own_connection.BusyError):
        row = None
    if row is None or not seen.matches(row):
        raise _later(seen)
    return row


def _refreshed_over_own_connection(
    user: Any, seen: ConnectionVersion, deadline: float
) -> BankToken | None:
    """
    The refreshed connection; None if there is no such connection on this side, or no time is left.

    The first statement locks the row for a moment, or fails at once. If it succeeds, the caller's
    transaction has not locked the row, and cannot do so while it waits; and no lock timeout has to
    be set, which would have to be put back.
    """
    features = db_connections[seen.alias].features
    rows = BankToken.objects.using(seen.alias).filter(pk=seen.connection_id)
    if features.has_select_for_update_nowait:
        no_key = features.has_select_for_no_key_update
        rows = rows.select_for_update(nowait=True, no_key=no_key)
    with transaction.atomic(using=seen.alias):
        row = rows.first()
    if not seen.matches(row) or time.monotonic() >= deadline:
        return None
    if not features.has_select_for_update and _read(user, seen).is_leased:
        # The process that refreshes it waits for the open transaction, to store: one writer only.
        return None
    return _refreshed_here(user, seen, deadline)


def _later(seen: ConnectionVersion) -> EverifinError:
    """The error of a refresh that has to wait for the end of a transaction."""
    error: UnavailableError | RefreshInTransactionError
    if db_connections[seen.alias].vendor == "sqlite":
        error = RefreshInTransactionError(
            "The Everifin token has to be refreshed inside a database transaction, and SQLite has "
            "room for one writer only. Mark the view with @everifin_required, so that the token is "
            "refreshed before the transaction begins; if it is marked already, take it out of "
            "the transaction with django.db.transaction.non_atomic_requests."
        )
    else:
        error = _unavailable(AFTER_ROLLBACK_SECONDS)
    error.refresh_later = seen
    return error


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
        with observed("refresh"):
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
            "token_version": row.next_version,
            **self._columns_of_success(),
            "last_error": "" if tokens.access is not None else NO_ACCESS_TOKEN,
            "refreshed_at": DatabaseNow(),
            "updated_at": timezone.now(),
            **NO_LEASE,
        }
        is_once_more = tokens.access is None and row.last_error != NO_ACCESS_TOKEN
        is_expired = tokens.expires_at <= timezone.now() and not is_once_more
        if is_expired:
            columns["retry_after"] = in_database_seconds(EXPIRED_ANSWER_PAUSE_SECONDS)
        try:
            stored = _retry_database_faults(lambda: self._store(columns), self.alias)
        except DatabaseFault:
            logger.critical("The refreshed tokens of connection %s could not be stored.", row.pk)
            return _with_columns(row, columns)
        if not stored:
            return self._superseded(tokens)
        if (row.failures or row.rejected_at is not None) and not self._is_rejected:
            _announce(connection_recovered, row)
        if is_expired:
            raise _unavailable(EXPIRED_ANSWER_PAUSE_SECONDS)
        if is_once_more:
            return None
        logger.info("The tokens of connection %s were refreshed.", row.pk)
        _announce(token_refreshed, row)
        return _with_columns(row, columns)

    def give_up(self, error: APIError) -> BankToken:
        """
        Free the lease and raise what *error* means; or return the connection if another try
        refreshed it meanwhile.
        """
        if isinstance(error, RefusedError) and self._is_final(error):
            return self._refused(error.code or "refused")
        seconds = self._back_off(error)
        raise _unavailable(seconds)

    def _columns_of_success(self) -> dict[str, Any]:
        """The columns by which a connection is healthy, unless the bank API refuses its tokens."""
        healthy = {"status": BankToken.Status.ACTIVE, "failures": 0, "refused_since": None}
        return healthy if self._is_rejected else {**healthy, "rejected_at": None}

    @property
    def _is_rejected(self) -> bool:
        return self.row.was_rejected(timezone.now())

    def _store(self, columns: dict[str, Any]) -> bool:
        return bool(
            self._same_version()
            .exclude(has_status(BankToken.Status.DISCONNECTED))
            .update(**columns)
        )

    def _superseded(self, tokens: TokenSet) -> BankToken:
        """
        The row moved on. A newer grant stays, and may share our session at Everifin; so ours is
        ended only if there is no newer one. Where the older grant has gone, our token goes, too.
        """
        row = self._reread()
        is_unwanted = row is None or row.is_stopped()
        if tokens.refresh is not None:
            if is_unwanted:
                self._revoke(tokens.refresh, "disconnected")
            else:
                revocation.replace_spent(self.row, tokens.refresh, self.key)
        return _connected(row)

    def _stop(self, tokens: TokenSet) -> BankToken:
        """
        The answer is about somebody else: nothing of it is stored, and nobody goes on with this
        connection.
        """
        stopped = self._same_version().update(
            status=BankToken.Status.NEEDS_RECONNECT,
            token_version=self.row.next_version,
            last_error="identity_changed",
            updated_at=timezone.now(),
            **NO_LEASE,
        )
        if tokens.refresh is not None:
            self._revoke(tokens.refresh, "identity_changed")
        logger.critical(
            "A refresh of connection %s was answered with somebody else's ID token.", self.row.pk
        )
        if not stopped:
            raise consent_expired_error("identity_changed")
        return self._ended("identity_changed")

    def _revoke(self, refresh_token: Secret, reason: str) -> None:
        context = self.row.encryption_context("refresh")
        pending = revocation.enqueue_token(context, refresh_token, reason, self.key, self.alias)
        revocation.drop_spent(self.row)
        revocation.revoke(pending)

    def _refused(self, code: str) -> BankToken:
        """
        Everifin refused the refresh token: wait for a slow holder of an older lease, then give the
        connection up.

        The version stays, so that the holder's good answer can still revive it.
        """
        took_over = self.row.lease_id is not None
        patience = time.monotonic() + (TAKEOVER_PATIENCE_SECONDS if took_over else 0)
        while (row := _connected(self._reread())).token_version == self.row.token_version:
            if time.monotonic() >= patience:
                break
            time.sleep(POLL_SECONDS[1])
        else:
            return row
        was_spent = self._may_be_spent and code == "invalid_grant"
        reason = ANSWER_LOST if was_spent else ENDING_ERRORS.get(code, code)
        gave_up = (
            self._same_version()
            .filter(has_status(BankToken.Status.ACTIVE))
            .update(
                status=BankToken.Status.NEEDS_RECONNECT,
                last_error=reason,
                updated_at=timezone.now(),
                **NO_LEASE,
            )
        )
        return self._ended(reason) if gave_up else _connected(self._reread())

    def _ended(self, reason: str) -> BankToken:
        logger.warning("Connection %s needs to be connected again: %s.", self.row.pk, reason)
        _announce(consent_expired, self.row, reason=reason)
        raise consent_expired_error(reason)

    def _is_final(self, error: RefusedError) -> bool:
        """
        Does *error* end the connection? So it does after an hour of an error that is neither
        temporary nor about the client, if Everifin refreshed another connection in that hour.

        Two queries for such an error, else none. Source: Dex answers ``invalid_request`` for a
        token that is dead.
        """
        if error.code in ENDING_ERRORS or not _is_about_grant(error):
            return error.code in ENDING_ERRORS
        an_hour_ago = in_database_seconds(-REFUSED_SECONDS)
        rows = BankToken.objects.using(self.alias)
        return (
            self._same_version().filter(refused_since__lte=an_hour_ago).exists()
            and rows.exclude(pk=self.row.pk)
            .filter(refreshed_at__gt=an_hour_ago, refreshed_at__lte=in_database_seconds(60))
            .exists()
        )

    def _back_off(self, error: APIError) -> float:
        """Write down the failure and when the next try may be; return the seconds until then."""
        asked_for = 0.0
        shortest, longest = BACKOFF_SECONDS
        ceiling = min(2 * shortest * 2.0 ** min(self.row.failures, 10), longest)
        seconds = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads retries, hides nothing
        if isinstance(error, UnavailableError) and error.retry_after_seconds:
            asked_for = min(error.retry_after_seconds, LONGEST_PAUSE_SECONDS)
            seconds = max(seconds, asked_for)
        refused = {"refused_since": Coalesce("refused_since", DatabaseNow())}
        # A lost answer is remembered through failures of another kind: it explains the end.
        reason = ANSWER_LOST if self._may_be_spent else _reason(error)
        written = (
            self._same_version()
            .filter(lease_id=self.lease_id)
            .update(
                failures=min(self.row.failures + 1, MOST_COUNTED),
                last_error=reason,
                **(refused if _is_about_grant(error) else {}),
                **NO_LEASE | {"retry_after": in_database_seconds(seconds)},
            )
        )
        if written:
            self._announce_failure(_reason(error), seconds)
        # The lease has ended above, also where the row that all share is locked.
        if asked_for:
            self._pause_all(asked_for)
        if is_about_client(error):
            self._pause_all(CLIENT_REFUSED_PAUSE_SECONDS)
            pauses.note_client_refused(self.alias, error)
        is_ours_to_mend = isinstance(error, RefusedError) or error.status == 401
        logger.log(
            logging.ERROR if is_ours_to_mend else logging.WARNING,
            "Connection %s could not be refreshed: %s. Its tokens are kept.",
            self.row.pk,
            _reason(error),
        )
        return seconds

    def _pause_all(self, seconds: float) -> None:
        """Have this process, and through the database all others, leave Everifin alone."""
        endpoint_pause.begin(seconds)
        pauses.pause(self.alias, pauses.TOKEN, seconds)

    def _announce_failure(self, reason: str, seconds: float) -> None:
        row = self.row
        _announce(refresh_failed, row, reason=reason, retry_after_seconds=seconds)
        if not row.failures and not self._is_rejected:
            _announce(connection_degraded, row, reason=reason)

    @property
    def _may_be_spent(self) -> bool:
        """Spent by the last holder of the lease, an earlier try, or this one's first request."""
        took_over = self.row.lease_id is not None
        return took_over or self.row.last_error == ANSWER_LOST or self.is_answer_lost

    @property
    def has_time(self) -> bool:
        """
        Is enough of the deadline left to send anything? A process that has waited long leaves it to
        the next one: a request that is cut off has spent the token for nothing.
        """
        return self._seconds_left() >= conf.deadline_seconds * SENDING_SHARE

    def _seconds_left(self) -> float:
        return max(0.1, self.deadline - time.monotonic())

    @property
    def alias(self) -> str:
        return database_of(self.row)

    def _same_version(self) -> Any:
        return BankToken.objects.using(self.alias).filter(
            pk=self.row.pk, token_version=self.row.token_version
        )

    def _reread(self) -> BankToken | None:
        rows = BankToken.objects.using(self.alias).with_incident()
        return rows.filter(pk=self.row.pk).first()


class Pause:
    """A time in which this process tries no connection."""

    def __init__(self) -> None:
        self._until = 0.0

    def begin(self, seconds: float) -> None:
        self._until = max(self._until, time.monotonic() + seconds)

    def end(self) -> None:
        self._until = 0.0

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())


class RejectedTokens:
    """
    The connections of this process whose new access tokens the bank API refused within the last
    minute. From three on it is not about any of them: *pause* begins, for all.
    """

    def __init__(self) -> None:
        self.pause = Pause()
        self._seen: dict[uuid.UUID, float] = {}
        self._lock = threading.Lock()

    def add(self, connection_id: uuid.UUID) -> None:
        now = time.monotonic()
        with self._lock:
            recent = {pk: at for pk, at in self._seen.items() if at > now - REJECTED_PAUSE_SECONDS}
            self._seen = {**recent, connection_id: now}
            if len(self._seen) >= REJECTED_CONNECTIONS:
                self.pause.begin(REJECTED_PAUSE_SECONDS)

    def clear(self) -> None:
        self._seen = {}
        self.pause.end()


endpoint_pause = Pause()
"""
Begun when the token endpoint refused this site's client, or asked for time (Retry-After). The other
processes read it from the database, in a query that they make anyway.
"""
rejected_tokens = RejectedTokens()


def clear_pauses() -> None:
    """Let this process try everything again, as tests need it."""
    endpoint_pause.end()
    rejected_tokens.clear()


def _is_about_grant(error: APIError) -> bool:
    """Is it an OAuth error that is neither temporary nor about the client?"""
    is_known = error.code in CLIENT_ERRORS | TEMPORARY_ERRORS
    return isinstance(error, RefusedError) and error.status == 400 and not is_known


def _announce(signal: Signal, row: BankToken, **more: Any) -> None:
    """Send *signal* about *row*; an error in a receiver is logged, and stops nothing."""
    signal.send_robust(sender=BankToken, user=row.user, connection_id=row.pk, **more)


NO_LEASE: dict[str, Any] = {"lease_id": None, "lease_until": None, "retry_after": None}


def consent_expired_error(reason: str) -> ConsentExpiredError:
    return ConsentExpiredError(
        "Everifin ended this user's connection; they need to connect again.", reason=reason
    )


def _read(user: Any, seen: ConnectionVersion) -> _Reading:
    """
    Read all of one connection, with the database's clock. Errors: as ``_connected``.
    """
    rows = BankToken.objects.using(seen.alias).with_incident()
    rows = rows.annotate(
        database_now=DatabaseNow(),
        endpoint_paused_until=pauses.paused_until(seen.alias, pauses.TOKEN),
    )
    row: Any = rows.filter(pk=seen.connection_id, user_id=seen.user_pk).first()
    connected = _connected(row)
    connected.user = user
    return _Reading(connected, timezone.now(), row.database_now, seen, row.endpoint_paused_until)


def _connected(row: BankToken | None) -> BankToken:
    """Errors: TokenMissingError and ConsentExpiredError for what no refresh can bring back."""
    if row is None or row.is_stopped():
        raise TokenMissingError("The user has no connection to Everifin.")
    if row.status != BankToken.Status.ACTIVE:
        raise consent_expired_error(row.last_error)
    if row.is_moved:
        logger.error(
            "Connection %s was given to another user, who cannot use its tokens: they have to "
            "connect again.",
            row.pk,
        )
        raise ConsentExpiredError(
            "This connection was made by another user; they need to connect again.",
            reason=USER_CHANGED,
        )
    return row


def _with_columns(row: BankToken, columns: dict[str, Any]) -> BankToken:
    """The row as it is after the update, without reading it again."""
    for name, value in columns.items():
        if name != "refreshed_at":  # an expression, of the database's clock
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


def _retry_database_faults(write: Callable[[], bool], alias: str) -> bool:
    """Write, over a new database connection if the old one died, for STORE_RETRY_SECONDS."""
    end = time.monotonic() + STORE_RETRY_SECONDS
    while True:
        try:
            return write()
        except DatabaseFault:
            if time.monotonic() >= end:
                raise
        db_connections[alias].close()
        time.sleep(POLL_SECONDS[1])

"""
End many connections at once: after a leak, or by an administrator.

1. One statement makes all of them unusable: ``begin`` writes down an incident that covers them,
   whatever their number; ``disable`` changes the rows of a few thousand. From then on nobody uses
   or refreshes their tokens, which stay where they are, encrypted.
2. ``move_all`` puts their tokens into the outbox and writes the end into each row, in batches of
   one transaction each. It can be stopped after any of them: what is left to do is in the tables,
   so running it again goes on.
3. The outbox is worked off as always (``revocation.revoke_due``). Nothing here asks Everifin.
"""

from __future__ import annotations

import logging
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connections as db_connections
from django.db import router, transaction
from django.db.models import BooleanField, CharField, ExpressionWrapper, F, Q, QuerySet, Value
from django.utils import timezone

from everifin_django.connections import grants, links, login_sessions, revocation
from everifin_django.connections.bulk import MOST_ROWS
from everifin_django.connections.ends import ON_PURPOSE
from everifin_django.models import (
    BankToken,
    DatabaseNow,
    Incident,
    LoginSession,
    PendingRevocation,
    has_status,
    in_database_seconds,
    primary,
)
from everifin_django.signals import everifin_disconnected

logger = logging.getLogger(__name__)

BATCH_SIZE = 500
"""Older versions of SQLite take 999 parameters in a statement."""

COPIED_AT_ONCE = 10
"""So many batches of rows that change make one of tokens that are only copied."""

REMEMBERED_FOR = timedelta(minutes=10)
"""
How long an incident is remembered: a transaction that began before it may be committed after the
last batch, with a connection that it covers.
"""

HAS_TOKENS = ~Q(access_ciphertext="", refresh_ciphertext="", id_ciphertext="")


def begin(*, encrypted_by: str = "", issued_since: datetime | None = None) -> Incident:
    """
    Make the connections that an incident covers (see ``Incident``) unusable, and return it. One
    statement for all of them, and one for the grants that logins in other browsers hold.

    A refresh under way may still be stored; what it stored is covered as well.
    """
    incident = Incident(encrypted_by=encrypted_by, issued_since=issued_since)
    incident.started_at = DatabaseNow()
    incident.save(force_insert=True, using=grants.alias())
    incident.refresh_from_db(using=grants.alias())
    logger.critical("An incident has begun: the connections that it covers are unusable.")
    release_logins(incident.covered_logins())
    return incident


def disable(connections: QuerySet[BankToken], reason: str) -> int:
    """
    Make all of *connections* unusable, whatever they are doing; return how many were not yet. One
    statement, which changes each row.

    *reason* is one of an end on purpose, so that a login does not connect again. A refresh under
    way finds its version gone, and ends what it was given.
    """
    if reason not in ON_PURPOSE:
        raise ValueError(f"{reason!r} is no end on purpose.")
    live = connections.using(grants.alias()).exclude(has_status(BankToken.Status.DISCONNECTED))
    count = live.update(
        status=BankToken.Status.DISCONNECTED,
        end_reason=reason,
        token_version=F("token_version") + 1,
        updated_at=timezone.now(),
    )
    if count:
        logger.warning("%d connections were ended at once: %s.", count, reason)
    return count


def disconnect_all(connection_ids: Sequence[Any], reason: str) -> int:
    """
    End the connections of these ids here; return how many had not ended. First all of them are made
    unusable, then their tokens are moved to the outbox. Everifin is not asked.

    Some seven statements for each batch of 500.
    """
    batches = [
        connection_ids[start : start + BATCH_SIZE]
        for start in range(0, len(connection_ids), BATCH_SIZE)
    ]
    count = sum(disable(primary(BankToken).filter(pk__in=batch), reason) for batch in batches)
    for batch in batches:
        for _ in _move_rows(_disabled().filter(pk__in=batch), BATCH_SIZE, None):
            pass
    return count


def release_logins(records: QuerySet[LoginSession]) -> int:
    """
    Let go of the grants that the logins *records* hold; return how many. One statement.

    ``move_all`` moves them. The logins stay, and what Everifin says later of the sessions that end
    there is not about them.
    """
    holding = records.using(login_sessions.alias()).exclude(refresh_ciphertext="")
    return holding.update(has_ended_sid=True, version=F("version") + 1)


def move_all(batch_size: int = BATCH_SIZE, *, workers: int = 1) -> Iterator[int]:
    """
    Move to the outbox whatever has ended and still holds tokens, and what incidents cover; yield
    how many moved in each batch, 0 where only the end was written into rows.

    The tokens of incidents come first: all of them are in the outbox before their rows are changed,
    which takes several times as long. Some six statements a batch, in a transaction of its own; no
    key is needed. Receivers of
    ``everifin_disconnected`` are called for each connection. *workers* are threads, each with a
    database connection of its own; several hosts may do it at once as well.
    """
    if workers == 1:
        yield from _move_everything(batch_size)
    else:
        yield from _in_threads(lambda: _move_everything(batch_size), workers)
    _end_incidents()


def _move_everything(batch_size: int) -> Iterator[int]:
    for incident in primary(Incident):
        yield from _copy_tokens(incident, batch_size * COPIED_AT_ONCE)
    for incident in primary(Incident).filter(is_moved=True):
        yield from _move_rows(incident.covered(), batch_size, incident)
    yield from _move_rows(_disabled(), batch_size, None)
    if links.are_used():
        yield from _move_logins(batch_size)


def _copy_tokens(incident: Incident, batch_size: int) -> Iterator[int]:
    """
    Put the tokens that *incident* covers into the outbox; yield how many in each batch. How far
    that went is written into the incident in the same transaction, whose lock lets one host after
    the other do a batch.
    """
    while True:
        with transaction.atomic(using=grants.alias()):
            unfinished = primary(Incident).filter(pk=incident.pk, is_moved=False)
            if not unfinished.update(moved_until=F("moved_until")):
                return
            count = _copy_next(unfinished.get(), batch_size)
        if count:
            yield count


def _copy_next(incident: Incident, batch_size: int) -> int:
    rows = incident.covered()
    if incident.moved_until:
        user_key: Any = BankToken._meta.get_field("user")
        last = user_key.target_field.to_python(incident.moved_until)
        rows = rows.filter(user_id__gt=last)
    users = rows.order_by("user_id").values_list("user_id", flat=True)
    bound = list(users[batch_size - 1 : batch_size])
    if bound:
        rows = rows.filter(user_id__lte=bound[0])
        incident.moved_until = str(bound[0])
    incident.is_moved = not bound
    _name_their_users(rows)
    count = _enqueue(rows.exclude(refresh_ciphertext=""), "incident")
    incident.save(update_fields=["moved_until", "is_moved"], using=grants.alias())
    return count


def _changed_since(incident: Incident) -> Q:
    """
    The rows whose tokens may have come after the incident copied them: refreshed or stored since it
    began, or taken from a login, which leaves no time of its issue. To put a token into the outbox
    twice does no harm.
    """
    before = incident.started_at - REMEMBERED_FOR
    return (
        Q(refreshed_at__gte=incident.started_at)
        | Q(connected_at__gte=before)
        | Q(issued_at=None, updated_at__gte=before)
    )


def _in_threads(work: Callable[[], Iterator[int]], workers: int) -> Iterator[int]:
    """
    Yield what *work* yields in each of the threads. What one of them raises is raised when all have
    ended; closing the generator lets each end after its batch.
    """
    sizes: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    is_stopped = threading.Event()

    def run() -> None:
        try:
            for size in work():
                sizes.put(size)
                if is_stopped.is_set():
                    return
        finally:
            sizes.put(None)
            db_connections.close_all()

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(run) for _ in range(workers)]
        try:
            for _ in range(workers):
                yield from iter(sizes.get, None)
        finally:
            is_stopped.set()
    for future in running:
        future.result()


def is_anything_left() -> bool:
    """Is there something for ``move_all`` to do? A few queries."""
    return (
        any(incident.covered().exists() for incident in primary(Incident))
        or _disabled().exists()
        or _released_logins().exists()
    )


def _end_incidents() -> None:
    """Delete the incidents that are over: nothing is left of them, and nothing can come."""
    begun = primary(Incident).filter(
        started_at__lt=in_database_seconds(-REMEMBERED_FOR.total_seconds())
    )
    for incident in begun:
        if not incident.covered().exists():
            incident.delete()


def _disabled() -> QuerySet[BankToken]:
    """The connections that have ended and whose tokens are still to be moved."""
    return primary(BankToken).filter(HAS_TOKENS, has_status(BankToken.Status.DISCONNECTED))


def _released_logins() -> QuerySet[LoginSession]:
    """A login whose session is said to have ended has no use for a grant in it."""
    return login_sessions.rows().filter(has_ended_sid=True).exclude(refresh_ciphertext="")


def _move_rows(
    rows: QuerySet[BankToken], batch_size: int, incident: Incident | None
) -> Iterator[int]:
    """
    End *rows* in batches: those of *incident*, or without one those that have been disabled. Yield
    how many of each batch were still to be moved.
    """
    last = None
    while True:
        with transaction.atomic(using=grants.alias()):
            # In the order of the users, which is that of the table more than any other column's.
            taken = _take(rows.only("user", "sid", "encrypted_for"), "user_id", last, batch_size)
            if taken:
                moved = _move(taken, incident)
        if not taken:
            return
        yield moved
        last = taken[-1].user_id


def _move(taken: list[BankToken], incident: Incident | None) -> int:
    rows = primary(BankToken).filter(user_id__in=[row.user_id for row in taken])
    if not all(row.encrypted_for for row in taken):
        _name_their_users(rows)
    holding = rows.exclude(refresh_ciphertext="")
    if incident is None:
        _enqueue(holding, F("end_reason"))
        moved = len(taken)
    else:
        moved = _enqueue(holding.filter(_changed_since(incident)), "incident")
    if links.are_used():
        links.remove_made_by_connecting(*(row.user_id for row in taken))
        login_sessions.detach(*{row.sid for row in taken})
    rows.update(
        **grants.EMPTY_COLUMNS,
        **grants.NO_IDENTITY,
        status=BankToken.Status.DISCONNECTED,
        end_reason=F("end_reason") if incident is None else "incident",
        token_version=F("token_version") + 1,
        updated_at=timezone.now(),
    )
    _announce({row.user_id: row.pk for row in taken})
    return moved


def _move_logins(batch_size: int) -> Iterator[int]:
    last = None
    while True:
        with transaction.atomic(using=login_sessions.alias()):
            taken = _take(_released_logins().only("pk"), "pk", last, batch_size)
            rows = login_sessions.rows().filter(pk__in=[row.pk for row in taken])
            revocation.enqueue_records(rows, "incident")
            rows.update(refresh_ciphertext="", is_spent=False, version=F("version") + 1)
        if not taken:
            return
        yield len(taken)
        last = taken[-1].pk


def _take(rows: QuerySet[Any], column: str, last: Any, size: int) -> list[Any]:
    """
    The next of *rows* after the *last* in the order of a unique *column*. They are locked where
    rows can be; those that another process has locked are left out.

    SQLite locks all of the database by the first write. That comes first, because a transaction
    that has read cannot always go on to write there.
    """
    rows, size = rows.order_by(column), min(size, MOST_ROWS)
    if last is not None:
        rows = rows.filter(**{f"{column}__gt": last})
    features = db_connections[rows.db].features
    if features.has_select_for_update:
        can_skip = features.has_select_for_update_skip_locked
        return list(rows.select_for_update(skip_locked=can_skip)[:size])
    rows.model._default_manager.using(rows.db).filter(pk=uuid.uuid4()).update(user=F("user"))
    return list(rows[:size])


def _name_their_users(rows: QuerySet[BankToken]) -> None:
    """Write down whose tokens the few rows hold that do not say so: the user's they belong to."""
    for row in rows.filter(encrypted_for="").only("pk", "user_id"):
        rows.filter(pk=row.pk).update(encrypted_for=str(row.user_id))


def _enqueue(rows: QuerySet[BankToken], reason: str | F) -> int:
    """
    Copy the refresh tokens of *rows* into the outbox, as ``revocation.enqueue`` does for one;
    return how many. One statement, INSERT … SELECT, which the ORM does not have: gigabytes of
    tokens need not travel here and back.
    """
    field: Any = PendingRevocation._meta.get_field
    selected: dict[str, Any] = {
        "connection_id": F("pk"),
        "user_pk": F("encrypted_for"),
        "refresh_ciphertext": F("refresh_ciphertext"),
        "is_spent": ExpressionWrapper(
            Q(lease_id__isnull=False) | Q(last_error=revocation.ANSWER_LOST),
            output_field=BooleanField(),
        ),
        "reason": Value(reason, CharField()) if isinstance(reason, str) else reason,
        "expires_at": F("refresh_expires_at"),
        "attempts": Value(0, field("attempts")),
        "last_error": Value("", CharField()),
        "created_at": Value(timezone.now(), field("created_at")),
    }
    query = rows.order_by().values_list(*selected.values()).query
    sql, params = query.get_compiler(using=rows.db).as_sql()
    connection = db_connections[rows.db]
    quote: Any = connection.ops.quote_name
    columns = ", ".join(quote(field(name).column) for name in selected)
    table = quote(PendingRevocation._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({columns}) {sql}", params)
        return int(cursor.rowcount)


def _announce(connections: dict[Any, Any]) -> None:
    """Send ``everifin_disconnected`` when it is committed. Users are read if anybody listens."""
    if not everifin_disconnected.has_listeners(BankToken):
        return
    alias = router.db_for_write(get_user_model())
    users: Any = get_user_model()._base_manager.using(alias).in_bulk(list(connections))
    for user_pk, user in users.items():
        grants.announce_disconnected(user, BankToken(pk=connections[user_pk]))

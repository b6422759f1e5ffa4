"""
Keep connections alive that nobody visits: refresh the tokens that are due, many at once.

Several hosts may do it at the same time. A lease in the row keeps two of them from refreshing one
connection, and a pause in the database has all of them stop when Everifin is down. A host that is
killed leaves its leases behind: they end by themselves, within a minute or so.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import pauses
from everifin_django.connections.bulk import Outage, check_run, pages
from everifin_django.connections.refresh import Attempt, endpoint_pause
from everifin_django.exceptions import (
    APIError,
    EverifinError,
    TokenUnreadableError,
    UnavailableError,
)
from everifin_django.models import (
    EITHER_KIND,
    BankToken,
    BankTokenQuerySet,
    due_criteria,
    primary,
)
from everifin_django.oauth.endpoints import TokenSet

logger = logging.getLogger(__name__)

PAGE_SIZE = 500
OUTAGE_PAUSE_SECONDS = 60
"""How long all hosts leave this work alone once one of them has found Everifin to be down."""

PAUSE_CHECK_SECONDS = 1


class Outcome(StrEnum):
    """What became of one connection that was due."""

    REFRESHED = "refreshed"
    TAKEN = "refreshed by another process"
    RECONNECT = "to be connected again by their users"
    LATER = "to be tried again later"
    UNREADABLE = "unreadable: a key is missing, or a row was changed"
    SKIPPED = "left alone: their users are not active, or an incident is under way"


class Stop(StrEnum):
    """Why the work ended before everything due was done."""

    OUTAGE = "Everifin does not answer, or refuses this site's client"
    PAUSE = "Everifin asked for a pause, or another host found it to be down"
    TIME = "the time is over"
    LIMIT = "the limit is reached"


@dataclass(frozen=True, slots=True)
class Due:
    """
    The connections to refresh, as ``BankToken.objects.due`` has them. Without *online*, only those
    granted with ``offline_access``: to refresh another one keeps the person's own session at
    Everifin open.
    """

    within: timedelta | None = None
    access_within: timedelta | None = None
    not_refreshed_for: timedelta | None = None
    online: bool = False

    def count(self) -> int:
        """Return how many there are. One query, which looks at all of them."""
        rows = self._rows()
        return rows.due(
            self.within,
            access_within=self.access_within,
            not_refreshed_for=self.not_refreshed_for,
        ).count()

    def pages(self) -> Iterator[list[BankToken]]:
        """
        Yield the rows, with their users, in pages: what ends first comes first. One query for each
        page, by an index; those that somebody is refreshing are left out.
        """
        times = self.within, self.access_within, self.not_refreshed_for
        for criterion in due_criteria(*times, timezone.now()):
            rows = self._rows().refreshable().filter(criterion.condition).claimable()
            rows = rows.with_incident().select_related("user")
            yield from pages(rows, criterion.column, PAGE_SIZE)

    def _rows(self) -> BankTokenQuerySet:
        rows: BankTokenQuerySet = BankToken.objects.using(primary(BankToken).db)
        return rows.filter(EITHER_KIND) if self.online else rows.offline()


class KeepAlive:
    """
    Refreshes what is *due* as it is iterated over, and yields what became of each connection.
    *stopped_by* then says why it ended early, None if it did not.

    The requests are made in *concurrency* threads; the database is asked by the iterating thread
    alone. For each connection two statements and one request. An iterator that is closed stores the
    answers that are under way first.

    Errors: ImproperlyConfigured and KeysUnavailableError, before anything is sent.
    """

    def __init__(
        self,
        due: Due,
        *,
        concurrency: int,
        limit: int | None = None,
        max_seconds: float | None = None,
    ) -> None:
        check_run(concurrency, max_seconds)
        self.stopped_by: Stop | None = None
        self._due = due
        self._concurrency = concurrency
        self._limit = limit
        self._until = None if max_seconds is None else time.monotonic() + max_seconds
        self._alias = primary(BankToken).db
        self._outage = Outage()
        self._pause_checked = float("-inf")

    def __iter__(self) -> Generator[Outcome]:
        running: dict[Future[TokenSet | APIError], Attempt] = {}
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for row in self._rows():
                    self.stopped_by = self._reason_to_stop()
                    if self.stopped_by is not None:
                        break
                    found = _claimed(row)
                    if isinstance(found, Outcome):
                        yield found
                        continue
                    running[pool.submit(_send, found)] = found
                    if len(running) >= self._concurrency:
                        yield from self._finished(running)
                while running:
                    yield from self._finished(running)
            finally:
                # Whatever ends this early: a refresh token that was spent has its answer stored.
                _store_all(running)

    def _rows(self) -> Iterator[BankToken]:
        """Each row once, those of a page in random order: several hosts take different ones."""
        number = 0
        for page in self._due.pages():
            random.shuffle(page)
            for row in page:
                if number == self._limit:
                    self.stopped_by = Stop.LIMIT
                    return
                number += 1
                yield row

    def _reason_to_stop(self) -> Stop | None:
        if self._until is not None and time.monotonic() >= self._until:
            return Stop.TIME
        if self._outage.is_known:
            pauses.pause(self._alias, pauses.KEEP_ALIVE, OUTAGE_PAUSE_SECONDS)
            return Stop.OUTAGE
        return Stop.PAUSE if self._is_paused() else None

    def _is_paused(self) -> bool:
        """Other hosts' pauses are looked for once a second."""
        if endpoint_pause.seconds_left:
            return True
        if time.monotonic() - self._pause_checked < PAUSE_CHECK_SECONDS:
            return False
        self._pause_checked = time.monotonic()
        return pauses.seconds_left(self._alias, pauses.TOKEN, pauses.KEEP_ALIVE) > 0

    def _finished(self, running: dict[Future[TokenSet | APIError], Attempt]) -> Iterator[Outcome]:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            attempt, answer = running.pop(future), future.result()
            is_about_all = isinstance(answer, UnavailableError) or (
                isinstance(answer, APIError) and pauses.is_about_client(answer)
            )
            self._outage.note(answer if isinstance(answer, APIError) and is_about_all else None)
            yield _settled(attempt, answer)


def _claimed(row: BankToken) -> Attempt | Outcome:
    if not row.user.is_active or row.is_stopped():
        return Outcome.SKIPPED
    attempt = Attempt(row, time.monotonic() + conf.deadline_seconds)
    try:
        return attempt if attempt.claim() else Outcome.TAKEN
    except TokenUnreadableError as error:
        logger.error(  # noqa: TRY400 - no frames
            "The refresh token of connection %s cannot be read: %s.", row.pk, type(error).__name__
        )
        return Outcome.UNREADABLE


def _send(attempt: Attempt) -> TokenSet | APIError:
    """Ask Everifin. One request, no query."""
    try:
        return attempt.send()
    except APIError as error:
        return error


def _store_all(running: dict[Future[TokenSet | APIError], Attempt]) -> None:
    """Wait for what is under way. One that fails does not keep the others from being stored."""
    for future, attempt in running.items():
        try:
            _settled(attempt, future.result())
        except Exception as error:  # noqa: BLE001 - the others have to be stored
            logger.critical(
                "The refresh of connection %s was not finished: %s.",
                attempt.row.pk,
                type(error).__name__,
            )


def _settled(attempt: Attempt, answer: TokenSet | APIError) -> Outcome:
    """Store the answer. One statement."""
    try:
        if isinstance(answer, APIError):
            attempt.give_up(answer)
            return Outcome.TAKEN
        return Outcome.LATER if attempt.store(answer) is None else Outcome.REFRESHED
    except UnavailableError:
        return Outcome.LATER
    except EverifinError:
        return Outcome.RECONNECT

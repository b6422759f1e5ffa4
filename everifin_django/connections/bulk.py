"""
What work on many rows needs: to read them page by page, to keep to a pace, and to notice an outage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Q, QuerySet

from everifin_django.exceptions import RefusedError, UnavailableError

PAGE_SIZE = 200
FAILURES_OF_AN_OUTAGE = 5
MOST_AT_ONCE = 256
MOST_ROWS = 100_000
"""How many rows one statement is asked for, whatever a command or task is given."""

LONGEST = timedelta(days=3650)


def check_run(concurrency: int, max_seconds: float | None) -> None:
    """Errors: ValueError for what no work on many rows can be given."""
    if not 1 <= concurrency <= MOST_AT_ONCE:
        raise ValueError(f"The concurrency must be from 1 to {MOST_AT_ONCE}.")
    if max_seconds is not None and not max_seconds >= 0:  # NaN is not, either
        raise ValueError("The seconds of a run must be 0 or more.")


def pages(rows: QuerySet[Any], column: str = "pk", size: int = PAGE_SIZE) -> Iterator[list[Any]]:
    """
    Yield *rows* in pages, each row once, in the order of *column*, however many leave the selection
    meanwhile. No row has NULL there. A million tokens are gigabytes.
    """
    ordered = rows.order_by(*dict.fromkeys([column, "pk"]))
    page = list(ordered[:size])
    while page:
        value, pk = getattr(page[-1], column), page[-1].pk
        yield page
        is_later = Q(**{f"{column}__gt": value}) | Q(**{column: value, "pk__gt": pk})
        page = list(ordered.filter(is_later)[:size])


class Pace:
    """At most so many a second, counted from the beginning; the first second's may come at once."""

    def __init__(self, per_second: float) -> None:
        self._interval_seconds = 1 / per_second
        self._next = time.monotonic() - 1

    def wait(self) -> None:
        """Return when it is the next one's turn."""
        now = time.monotonic()
        self._next = max(self._next, now - 1) + self._interval_seconds
        if self._next > now:
            time.sleep(self._next - now)


class Outage:
    """Is Everifin down, or does it refuse this site's client? Then nobody need ask for the rest."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def note(self, error: Exception | None) -> None:
        """Note how one request ended."""
        is_about_all = isinstance(error, ImproperlyConfigured | UnavailableError | RefusedError)
        self._in_a_row = self._in_a_row + 1 if is_about_all else 0

    @property
    def is_known(self) -> bool:
        return self._in_a_row >= FAILURES_OF_AN_OUTAGE

"""
Work for a scheduler: plain functions, which Celery and Django's own tasks (from 6.0 on) know too.

Celery finds them by ``autodiscover_tasks()``, under ``everifin_django.tasks.`` and their name. The
objects that end in ``_task`` are Django's, with ``enqueue``. What each takes and returns is JSON.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from datetime import timedelta

import django

from everifin_django.connections import everifin_for, housekeeping, keep_alive, ledger
from everifin_django.connections.bulk import LONGEST

__all__ = ["refresh_due", "resolve_payments", "run_housekeeping"]

logger = logging.getLogger(__name__)

LIMIT = 1000
CONCURRENCY = 16
MAX_SECONDS = 240.0


def refresh_due(
    *,
    within_seconds: float | None = None,
    access_within_seconds: float | None = None,
    not_refreshed_for_seconds: float | None = None,
    online: bool = False,
    concurrency: int = CONCURRENCY,
    max_seconds: float = MAX_SECONDS,
) -> dict[str, int]:
    """
    Refresh the tokens of connections that are near their end, as ``everifin_refresh`` does; return
    what became of how many. Ending early is a warning in the log.

    Costs and errors as ``KeepAlive``; ValueError for a time beyond 10 years. Any number
    may run at once, on any number of hosts.
    """
    due = keep_alive.Due(
        _time(within_seconds),
        _time(access_within_seconds),
        _time(not_refreshed_for_seconds),
        online=online,
    )
    work = keep_alive.KeepAlive(due, concurrency=concurrency, max_seconds=max_seconds)
    found = Counter(outcome.name.lower() for outcome in work)
    if work.stopped_by is not None:
        logger.warning("Refreshing what is due ended early: %s.", work.stopped_by)
    return dict(found)


def run_housekeeping(
    *, concurrency: int = CONCURRENCY, max_seconds: float = MAX_SECONDS
) -> dict[str, int]:
    """
    Do everything that ages, as ``everifin_housekeeping`` does; return how many each part was about.
    A part that failed is an error in the log, and missing in what is returned.
    """
    done = housekeeping.run_all(concurrency=concurrency, max_seconds=max_seconds)
    return {one.task: one.count for one in done if not one.failure}


def resolve_payments(*, limit: int = LIMIT) -> dict[str, int]:
    """
    Look at Everifin what became of payments that are not finished, as ``everifin_payments`` does;
    return how many there are by state afterwards. Nothing is sent again.

    Two statements and a request or more for each of the *limit* payments that were not looked for
    the longest. Two at once do no harm.
    """
    return ledger.look_at_all(everifin_for, limit=max(0, limit))


def _time(seconds: float | None) -> timedelta | None:
    if seconds is None:
        return None
    if not 0 <= seconds <= LONGEST.total_seconds():
        raise ValueError("A time must be from 0 seconds to 10 years.")
    return timedelta(seconds=seconds)


if importlib.util.find_spec("celery"):
    from celery import shared_task  # an extra

    for function in (refresh_due, run_housekeeping, resolve_payments):
        shared_task(name=f"everifin_django.tasks.{function.__name__}")(function)

if django.VERSION >= (6, 0):
    from django.tasks import task

    # Django names a task by its module and the function's name, and imports it by that.
    @task
    def refresh_due_task(**options: float | None) -> dict[str, int]:
        return refresh_due(**options)  # type: ignore[arg-type]  # as it takes them

    @task
    def run_housekeeping_task(**options: float) -> dict[str, int]:
        return run_housekeeping(**options)  # type: ignore[arg-type]  # as it takes them

    @task
    def resolve_payments_task(*, limit: int = LIMIT) -> dict[str, int]:
        return resolve_payments(limit=limit)

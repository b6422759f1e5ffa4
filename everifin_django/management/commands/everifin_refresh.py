"""
Keep connections alive that nobody visits.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from everifin_django.connections.bulk import LONGEST, MOST_AT_ONCE
from everifin_django.connections.keep_alive import Due, KeepAlive, Outcome, Stop
from everifin_django.exceptions import KeysUnavailableError

CONCURRENCY = 16
MAX_SECONDS = 240
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
BAD = {Outcome.LATER, Outcome.UNREADABLE}


class Command(BaseCommand):
    help = (
        "Refreshes the tokens of connections that are near their end, so that users need not "
        "connect again. Run it every few minutes, by cron or a scheduler, on one host or on all. "
        "Exit code 1: something that was due is left, because Everifin could not be asked, or a "
        "token could not be read."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--within",
            type=duration,
            metavar="TIME",
            help="refresh tokens that end within that time, such as 30m, 12h or 7d (default: 1d, "
            "unless one of the next two is given)",
        )
        add("--access-within", type=duration, metavar="TIME", help="the same for access tokens")
        add(
            "--not-refreshed-for",
            type=duration,
            metavar="TIME",
            help="tokens that are older, such as 20m where Everifin ends an idle session after 30",
        )
        add(
            "--online",
            action="store_true",
            help="also connections without offline_access: it keeps their users' sessions at "
            "Everifin open",
        )
        add("--concurrency", type=int, default=CONCURRENCY, help="requests to Everifin at once")
        add("--limit", type=int, help="at most so many connections")
        add("--max-seconds", type=float, default=MAX_SECONDS, help="begin no request afterwards")
        add("--dry-run", action="store_true", help="only say how many are due")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 1 <= options["concurrency"] <= MOST_AT_ONCE:
            raise CommandError(f"--concurrency must be from 1 to {MOST_AT_ONCE}.")
        is_limited = options["limit"] is not None
        if not options["max_seconds"] > 0 or (is_limited and options["limit"] < 1):
            raise CommandError("--max-seconds and --limit must be above 0.")
        due = Due(
            options["within"],
            options["access_within"],
            options["not_refreshed_for"],
            online=options["online"],
        )
        if options["dry_run"]:
            self.stdout.write(f"due: {due.count()}")
            return
        work = KeepAlive(
            due,
            concurrency=options["concurrency"],
            limit=options["limit"],
            max_seconds=options["max_seconds"],
        )
        found = self._follow(work, due)
        for outcome in Outcome:
            if found[outcome] or outcome is Outcome.REFRESHED:
                self.stdout.write(f"{outcome}: {found[outcome]}")
        if work.stopped_by is not None:
            self.stderr.write(f"Stopped early: {work.stopped_by}. The rest stays due.")
        is_cut_short = work.stopped_by not in (None, Stop.LIMIT)
        if is_cut_short or any(found[outcome] for outcome in BAD):
            sys.exit(1)

    def _follow(self, work: KeepAlive, due: Due) -> Counter[Outcome]:
        """Do the work, with a progress bar on a terminal; return what became of how many."""
        found: Counter[Outcome] = Counter()
        total = due.count() if self.stdout.isatty() else 0
        try:
            with interrupted_by_sigterm(), closing(iter(work)) as outcomes:
                for outcome in outcomes:
                    found[outcome] += 1
                    if total:
                        self.stdout.write(f"\r{_bar(found.total(), total)}", ending="")
        except KeysUnavailableError as error:
            raise CommandError(f"No token can be stored now: {error}") from None
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped. What was under way is stored; the rest stays due."
            ) from None
        if total:
            self.stdout.write("")
        return found


def duration(text: str) -> timedelta:
    """Return the time that *text* says: a whole number and s, m, h or d."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    given = timedelta(**{UNITS[found[2]]: int(found[1])}) if found else timedelta()
    if not timedelta() < given <= LONGEST:
        raise ArgumentTypeError(f"{text!r} is no time from 1s to 3650d, such as 30m, 12h or 7d")
    return given


def _bar(done: int, total: int) -> str:
    width = 30
    share = min(1.0, done / total)
    return f"[{'#' * round(share * width):{width}}] {done} of {total}"


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM unwind this process, so that answers under way are stored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python lets nobody set a handler
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

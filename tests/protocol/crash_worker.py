"""
One process of a site under crash_run: threads that ask for pages of many users, one after another.

Started by ``crash_run``. The steps of the refresh protocol are written to a journal, and at one of
them, named on the command line, the process ends itself by SIGKILL. What the protocol waits for is
shortened here (see ``SHORTENED``), so that the leases of the dead run out in some seconds, and so
is the time for which SQLite is blocked by a view that cannot be refreshed. All else is a real site.

Goes on until its standard input ends; a line on it forbids the SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.protocol.crash_journal import Journal

DEADLINE_SECONDS = 3
SHORTENED: dict[str, Any] = {
    "STORE_RETRY_SECONDS": 2,
    "LEASE_SPARE_SECONDS": 2,
    "BACKOFF_SECONDS": (0.2, 2),
    "REJECTED_PAUSE_SECONDS": 2,
}
REJECTION_PAUSE = timedelta(seconds=3)
MORE_LEASE_SECONDS = SHORTENED["STORE_RETRY_SECONDS"] + SHORTENED["LEASE_SPARE_SECONDS"]
LEASE_SECONDS = DEADLINE_SECONDS + MORE_LEASE_SECONDS
# Each is drawn by its weight, which ``crash_run`` names.
PAGES = ("accounts", "marked-then-error", "unmarked", "unmarked-then-error")
DWELL_SECONDS = 0.02


@dataclass
class Fate:
    """Ends the process the first time that it comes to *step* after the moment *not_before*."""

    journal: Journal
    step: str
    not_before: float
    is_averted: bool = False

    def meet(self, step: str) -> None:
        if step == self.step and time.monotonic() >= self.not_before and not self.is_averted:
            self.journal.note("killed", step)
            os.kill(os.getpid(), signal.SIGKILL)


def watch(journal: Journal, fate: Fate) -> None:
    """Let the protocol write down its steps, and meet its fate at them."""
    from everifin_django.connections import refresh

    watched: Any = refresh  # whose names are replaced here, also those that it imported
    for name, value in SHORTENED.items():
        setattr(watched, name, value)
    watched.BankToken.REJECTION_PAUSE = REJECTION_PAUSE
    here = threading.local()
    watched.refresh = watched_request(journal, here, watched.refresh)
    watched.Attempt = watched_attempt(journal, fate, here)


def watched_request(journal: Journal, here: Any, ask: Any) -> Any:
    from everifin_django import exceptions
    from everifin_django.testing.sandbox.store import digest

    outcomes = (
        (exceptions.AnswerLostError, "lost"),
        (exceptions.UnreachableError, "unreachable"),
        (exceptions.UnavailableError, "unavailable"),
        (exceptions.RefusedError, "refused"),
    )

    def ask_watched(refresh_token: Any, *, deadline_seconds: float) -> Any:
        shown = digest(refresh_token.reveal())
        journal.note("sending", here.attempt, shown, deadline_seconds)
        try:
            tokens = ask(refresh_token, deadline_seconds=deadline_seconds)
        except exceptions.APIError as error:
            outcome = next(name for kind, name in outcomes if isinstance(error, kind))
            journal.note("heard", here.attempt, outcome)
            raise
        journal.note("heard", here.attempt, "answered")
        return tokens

    return ask_watched


def watched_attempt(journal: Journal, fate: Fate, here: Any) -> Any:
    from everifin_django.connections import refresh

    class WatchedAttempt(refresh.Attempt):
        def claim(self) -> bool:
            here.attempt = f"{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}"
            journal.note("before claim", here.attempt, self.row.pk)
            fate.meet("before claim")
            is_claimed = super().claim()
            if is_claimed:
                journal.note("claimed", here.attempt)
                fate.meet("after claim")
            return is_claimed

        def run(self) -> Any:
            try:
                return super().run()
            finally:
                journal.note("ended", here.attempt)

        def send(self) -> Any:
            tokens = super().send()
            fate.meet("after send")
            # A moment in which others may end the connection that the store needs.
            time.sleep(random.uniform(0, DWELL_SECONDS))
            return tokens

        def _store(self, columns: dict[str, Any]) -> bool:
            is_stored = super()._store(columns)
            if is_stored:
                journal.note("stored", here.attempt)
                fate.meet("after store")
            return is_stored

        def give_up(self, error: Any) -> Any:
            fate.meet("before give up")
            return super().give_up(error)

    return WatchedAttempt


class Site:
    """The threads, and what becomes of their requests."""

    def __init__(self, journal: Journal, orders: dict[str, Any]) -> None:
        self.journal = journal
        self.sessions = orders["sessions"]
        self.seed = orders["seed"]
        self.weights = orders["weights"]
        self.pause_seconds = orders["pause_seconds"]
        self.accounts = orders["accounts"]
        self.is_closed = threading.Event()
        self.errors = threading.local()

    def note_error(self, **signal: Any) -> None:
        self.errors.name = type(sys.exc_info()[1]).__name__

    def visit(self, number: int) -> None:
        """Ask for pages until the site closes."""
        from django.db import close_old_connections, connections
        from django.test import Client

        draw = random.Random(f"{self.seed}.{number}")
        client = Client(raise_request_exception=False, headers={"accept": "application/json"})
        while not self.is_closed.wait(draw.uniform(0, self.pause_seconds)):
            user = draw.choice(list(self.sessions))
            client.cookies["sessionid"] = self.sessions[user]
            self.errors.name = ""
            try:
                # The name of a tenant's user begins with that of the database.
                page = client.get(
                    f"/{draw.choices(PAGES, self.weights)[0]}/",
                    headers={"x-tenant": user.partition(".")[0]},
                )
                self.journal.note("served", self.kind_of(page, user), user)
                # As a server does between two requests, and the test client does not.
                close_old_connections()
            except Exception as error:  # noqa: BLE001 - a test client that raises is a finding too
                self.journal.note("served", f"raised {type(error).__name__}", user)
        connections.close_all()

    def kind_of(self, page: Any, user: str) -> str:
        if page.status_code == 200 and self.accounts.get(user) not in (
            None,
            page.json()["accounts"],
        ):
            return "200 with the accounts of somebody else"
        return f"{page.status_code} {self.errors.name}".strip()


def main() -> None:
    import django

    django.setup()
    from django.core.signals import got_request_exception
    from django.db import connections
    from django.test import override_settings

    orders = json.loads(sys.argv[1])
    connections.settings["default"] |= {
        "ATOMIC_REQUESTS": True,
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
    }
    if orders["pool"]:
        options = connections.settings["default"].get("OPTIONS") or {}
        pooled = {"CONN_MAX_AGE": 0, "OPTIONS": {**options, "pool": orders["pool"]}}
        connections.settings["default"] |= pooled
    for alias, name in orders["tenants"].items():
        connections.settings[alias] = {**connections.settings["default"], "NAME": name}
    journal = Journal(Path(orders["journal"]))
    fate = Fate(journal, orders["step"], time.monotonic() + orders["after_seconds"])
    site = Site(journal, orders)
    got_request_exception.connect(site.note_error)
    with override_settings(
        ROOT_URLCONF="tests.protocol.site",
        **orders["settings"],
    ):
        watch(journal, fate)
        threads = [
            threading.Thread(target=site.visit, args=(number,))
            for number in range(orders["threads"])
        ]
        for thread in threads:
            thread.start()
        journal.note("ready")
        for _ in sys.stdin:
            fate.is_averted = True
        site.is_closed.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()

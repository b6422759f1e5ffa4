"""
What a refresh costs those who need the token meanwhile: ``python -m benchmarks.stampede``.

So many threads of two processes want one user's token at the same moment; Everifin answers over
HTTP and takes 100 ms for a refresh. The states of the token take turns in every round, so that
whatever else slows the machine slows all of them. Then Everifin is down, and 200 workers ask for
the token over and over. Ends with 1 if the counts are not what the protocol promises.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Any

from benchmarks.database import empty_database
from tests.support.servers import DATABASES

if TYPE_CHECKING:
    from everifin_django.testing.sandbox import Sandbox

PROCESSES, THREADS = 2, 32
LATENCY_SECONDS = 0.1
LIFETIME = timedelta(minutes=5)
STATES = {"fresh": 240.0, "due, being refreshed": 30.0, "overdue": 0.0}
"""How many seconds the token is still good for."""
REFRESH = "token.refresh_token"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=DATABASES, default="postgres")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--outage", type=float, default=8, metavar="SECONDS")
    options = parser.parse_args()
    with DATABASES[options.database]() as url, empty_database(url):
        print(f"{options.database}, {options.rounds} rounds, {PROCESSES * THREADS} at once")
        is_good = [measure(action, options.rounds) for action in ("page", "get_token")]
        is_good.append(measure_outage(options.outage))
    sys.exit(0 if all(is_good) else 1)


@dataclass
class Figures:
    """What the rounds of one state of the token came to. Units: seconds."""

    calls: int = 0
    failures: int = 0
    rounds: list[list[float]] = field(default_factory=list)

    def add(self, answers: list[dict[str, Any]]) -> None:
        self.failures += sum(answer["status"] != 200 for answer in answers)
        self.rounds.append([answer["seconds"] for answer in answers])

    def typical(self, share: float) -> float:
        """The median over the rounds of the time that *share* of a round's answers keep."""
        return statistics.median(percentile(round_, share) for round_ in self.rounds)

    @property
    def worst(self) -> float:
        return max(map(max, self.rounds))


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[ceil(share * len(seconds)) - 1]


def measure(action: str, rounds: int) -> bool:
    """Print how long *action* takes with a token in each state; return whether the counts hold."""
    from everifin_django.connections.refresh import POLL_SECONDS
    from tests.protocol.stampede import herd

    figures = {state: Figures() for state in STATES}
    with connected_at_everifin() as (everifin, user, session_key, settings):
        with herd(
            session_key, processes=PROCESSES, threads=THREADS, settings=settings, action=action
        ) as charge:
            charge()
            for _ in range(rounds):
                for state, seconds in STATES.items():
                    let_it_last(seconds)
                    calls = everifin.calls[REFRESH]
                    answers = charge_in(state, charge, everifin, user)
                    figures[state].calls += everifin.calls[REFRESH] - calls
                    figures[state].add(answers)
        is_good = everifin.double_spends == 0
    print(f"\n{action:22} calls failures   p50   p99  slowest (medians)  slowest of all rounds, ms")
    for state, one in figures.items():
        times = [one.typical(0.5), one.typical(0.99), one.typical(1), one.worst]
        print(
            f"{state:22} {one.calls:5} {one.failures:8}"
            " {:5.0f} {:5.0f} {:8.0f} {:28.0f}".format(*(1000 * time for time in times))
        )
        is_good &= one.failures == 0 and one.calls == (0 if state == "fresh" else rounds)
    fresh, due, overdue = figures.values()
    bound = 3 * LATENCY_SECONDS + POLL_SECONDS[1]
    added = statistics.median(
        max(late) - max(early) for late, early in zip(overdue.rounds, fresh.rounds, strict=True)
    )
    ratio = statistics.median(
        percentile(late, 0.99) / percentile(early, 0.99)
        for late, early in zip(due.rounds, fresh.rounds, strict=True)
    )
    kept = sum(max(round_) <= bound for round_ in overdue.rounds)
    print(f"overdue: slowest within {1000 * bound:.0f} ms in {kept} of {rounds} rounds;", end=" ")
    print(f"slowest minus slowest of fresh: {1000 * added:.0f} ms")
    print(f"due, being refreshed: p99 / p99 of fresh: {ratio:.2f}")
    return is_good


def charge_in(state: str, charge: Callable[[], Any], everifin: Sandbox, user: Any) -> Any:
    """Let all begin at once, "being refreshed" while another refresh waits for its answer."""
    from everifin_django.connections.grants import get_access_token

    if "being refreshed" not in state:
        return charge()
    begun, all_are_served = threading.Event(), threading.Event()
    patient = everifin.sleep

    def sleep(_seconds: float) -> None:
        begun.set()
        all_are_served.wait()

    everifin.sleep = sleep
    refresh = threading.Thread(target=in_thread, args=(lambda: get_access_token(user),))
    refresh.start()
    try:
        begun.wait()
        return charge()
    finally:
        all_are_served.set()
        refresh.join()
        everifin.sleep = patient


def in_thread(action: Callable[[], Any]) -> None:
    from django.db import connections

    try:
        action()
    finally:
        connections.close_all()


def measure_outage(seconds: float) -> bool:
    """Print how many calls reach an Everifin that is down; return whether the pauses allow them."""
    from tests.protocol.load import generate_load, most_tries, room

    with connected_at_everifin() as (everifin, user, _, _):
        everifin.faults.clear()
        everifin.faults.add(REFRESH, status=503)
        let_it_last(0)
        workers = room()
        outcomes, took_seconds = generate_load(user, workers=workers, seconds=seconds)
        calls = everifin.calls[REFRESH]
    print(f"\nEverifin answers 503 for {took_seconds:.1f} s: {workers} workers asked for the token")
    print(f"{outcomes.total()} times, {calls} calls came through,", end=" ")
    print(f"{most_tries(took_seconds)} are allowed")
    return 1 <= calls <= most_tries(took_seconds) and set(outcomes) == {"UnavailableError"}


@contextmanager
def connected_at_everifin() -> Iterator[tuple[Sandbox, Any, str, dict[str, Any]]]:
    """
    Give a slow Everifin over HTTP, a user who is connected there, their session, and the settings
    that lead there.
    """
    from django.contrib.auth import get_user_model
    from django.test import Client, override_settings

    from everifin_django.testing.fake import redirect_target
    from everifin_django.testing.sandbox import Sandbox
    from everifin_django.testing.sandbox.server import serve

    sandbox = Sandbox(rotation="strict", redirect_uris=("http://testserver/everifin/callback/",))
    with serve(sandbox) as server:
        settings: dict[str, Any] = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
        }
        with override_settings(**settings):
            user, client = get_user_model().objects.create_user("holder"), Client()
            client.force_login(user)
            client.get(sandbox.authorize(redirect_target(client.post("/everifin/connect/"))))
            sandbox.faults.add(REFRESH, latency_seconds=LATENCY_SECONDS)
            yield sandbox, user, client.session.session_key or "", settings
            user.delete()


def let_it_last(seconds: float) -> None:
    """The access token is good for so many seconds more."""
    from django.utils import timezone

    from everifin_django.models import BankToken

    expires_at = timezone.now() + timedelta(seconds=seconds)
    BankToken.objects.update(
        issued_at=expires_at - LIFETIME, access_expires_at=expires_at, retry_after=None
    )


if __name__ == "__main__":
    main()

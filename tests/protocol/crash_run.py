"""
Crashes while tokens are refreshed: processes full of threads, an Everifin that fails, and
processes that are killed.

    python -m tests.protocol.crash_run --database postgres --seconds 60 --seed 7

starts a database server of its own, runs ``test_crashes.py`` on it and prints what was seen. With
``--keycloak`` a real one is used, behind a fault_proxy where the faults are.

The seed draws who dies when and what goes wrong where; which thread runs first stays the machine's
choice, so the same seed gives the same kind of run, not the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.protocol.crash_journal import RAN_OUT, STEPS, Findings, name_of
from tests.support.servers import DATABASES

if TYPE_CHECKING:
    from everifin_django.testing.sandbox import Fault
    from tests.protocol.crash_users import Users

CHECKOUT = Path(__file__).parents[2]
PROCESSES = 4
THREADS = 8
START_SECONDS = 60
CALM_SECONDS = 60
SETTLE_SECONDS = 4
"""
From the deadline of the latest answer until no token is used any more that is from before the calm.
"""
STOP_SECONDS = 30
POLL_SECONDS = 0.1
KILL_EVERY_SECONDS = (8, 15)
CUT_EVERY_SECONDS = (0.3, 1)
MOST_REQUESTS_A_SECOND = 1000
LONGEST_PAUSE_SECONDS = {"sqlite": 3, "postgresql": 0.6, "mysql": 0.6}
"""
Between two requests of a thread. On SQLite each view of an ATOMIC_REQUESTS site has the database to
itself, also while it waits for Everifin, and those that wait for it are served in no order.
"""
POOL = {"min_size": 2, "max_size": 6, "timeout": 5}
"""Of each process on PostgreSQL: fewer connections than threads."""
LIFE_SECONDS = (4, 15)
"""After how long a worker ends itself, once it comes to its step."""

EXPECTED_ANSWERS = frozenset({"200", "403", "503", "500 ZeroDivisionError", RAN_OUT})
EXPECTED_ERRORS = {
    "sqlite": frozenset({"500 RefreshInTransactionError"}),
    "postgresql": frozenset({"500 OperationalError", "500 InterfaceError"}),
    "mysql": frozenset({"500 OperationalError", "500 InterfaceError"}),
}
"""Of undecorated views on SQLite; of views whose database connection was terminated."""

WEIGHTS = (5, 2, 2, 1)
LISTED_BACKENDS = {
    "postgresql": (
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    "mysql": (
        "SELECT id FROM information_schema.processlist"
        " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    ),
}
CUT = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL CONNECTION %s"}


class Weather:
    """Stands for the sandbox's faults: each call meets one of *faults* now and then."""

    def __init__(self, draw: random.Random, faults: dict[Fault, float]) -> None:
        self._draw = draw
        self._faults = faults
        self._lock = threading.Lock()
        self.is_calm = False
        self.refuses_from = self.refuses_until = 0.0
        self.seen: Counter[str] = Counter()

    def take(self, parts: tuple[str, ...]) -> Fault | None:
        with self._lock:
            if "api" in parts and self.refuses_from <= time.monotonic() < self.refuses_until:
                self.seen["api: refuses every token"] += 1
                return refusal()
            chance = self._draw.random()
            for fault, share in self._faults.items():
                if self.is_calm or fault.where not in parts:
                    continue
                chance -= share
                if chance < 0:
                    self.seen[f"{fault.where}: {name_of(fault)}"] += 1
                    return fault
        return None


@dataclass
class Crew:
    """The worker processes: *start* gives a new one, with the step at which it ends itself."""

    start: Callable[[int, str, float], subprocess.Popen[bytes]]
    findings: Findings
    draw: random.Random
    steps: list[str] = field(default_factory=list)
    alive: dict[subprocess.Popen[bytes], str] = field(default_factory=dict)
    started: int = 0
    is_calm: bool = False

    def fill(self) -> None:
        """Replace the dead. Errors: AssertionError for one that ended otherwise than by SIGKILL."""
        for worker, step in list(self.alive.items()):
            if worker.poll() is None:
                continue
            del self.alive[worker]
            hang_up(worker)
            assert worker.returncode == -signal.SIGKILL, f"a worker ended: {worker.returncode}"
            self.findings.read()
            if self.findings.killed_at.setdefault(worker.pid, "by the coordinator") != step:
                self.steps.insert(0, step)  # it never came there
            self.findings.counts["kills"][self.findings.killed_at[worker.pid]] += 1
            in_hand = self.findings.grants_in_hand(worker.pid)
            self.findings.counts["kills"]["(grants between Everifin and the store)"] += in_hand
        while len(self.alive) < PROCESSES:
            self._add()

    def kill_one(self) -> None:
        ready = [worker for worker in self.alive if worker.pid in self.findings.ready]
        if ready:
            self.draw.choice(ready).kill()

    def say_calm(self) -> None:
        """Let nobody end itself from now on, also not those that are still to come."""
        self.is_calm = True
        for worker in self.alive:
            tell_calm(worker)

    def dismiss(self) -> None:
        """Let all come home. Errors: AssertionError for those that do not; they are ended."""
        for worker in self.alive:
            hang_up(worker)
        deadline = time.monotonic() + STOP_SECONDS
        while any(worker.poll() is None for worker in self.alive) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        left = [worker.pid for worker in self.alive if worker.poll() is None]
        self.end()
        assert not left, f"{len(left)} workers did not come back"

    def end(self) -> None:
        for worker in self.alive:
            worker.kill()
            worker.wait()
            hang_up(worker)

    def _add(self) -> None:
        if not self.steps:
            self.steps = self.draw.sample(STEPS, len(STEPS))
        step = self.steps.pop(0)
        after_seconds = self.draw.uniform(*LIFE_SECONDS)
        self.started += 1
        worker = self.start(self.started, step, after_seconds)
        self.alive[worker] = step
        if self.is_calm:
            tell_calm(worker)


def tell_calm(worker: subprocess.Popen[bytes]) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it has just ended itself
        worker.stdin.write(b"calm\n")
        worker.stdin.flush()


def hang_up(worker: subprocess.Popen[bytes]) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):
        worker.stdin.close()


@dataclass
class CrashRun:
    """One run. *settings* come on top of tests.settings in the workers, *log* has their stderr."""

    users: Users
    findings: Findings
    weather: Weather
    settings: dict[str, Any]
    log: IO[bytes]
    seed: int

    def __post_init__(self) -> None:
        from django.db import connection  # main works without settings

        self.vendor = connection.vendor
        self.database = str(connection.settings_dict["NAME"])
        self.draw = random.Random(self.seed)
        self.crew = Crew(self.start_worker, self.findings, random.Random(self.draw.random()))

    def run(self, seconds: float) -> None:
        """Break things for *seconds*, then be calm until every user is served."""
        try:
            self.crew.fill()
            self._wait(START_SECONDS, lambda: len(self.findings.ready) >= PROCESSES, "to start")
            self._rage(seconds)
            self.weather.is_calm = True
            self.crew.say_calm()
            calm_at = time.monotonic()
            settled_at = calm_at + self.findings.deadline_seconds + SETTLE_SECONDS
            self._wait(
                CALM_SECONDS, lambda: self._all_served_since(settled_at), "to serve all again"
            )
            self.findings.counts["calm"]["tenths of a second until all were served"] = int(
                (time.monotonic() - calm_at) * 10
            )
            self.crew.dismiss()
            self._mend()
        finally:
            self.crew.end()
            self.findings.close(EXPECTED_ANSWERS | EXPECTED_ERRORS[self.vendor])

    def start_worker(self, number: int, step: str, after_seconds: float) -> subprocess.Popen[bytes]:
        orders = {
            "journal": str(self.findings.path),
            "step": step,
            "after_seconds": after_seconds,
            "sessions": self.users.sessions,
            "seed": f"{self.seed}.{number}",
            "settings": self.settings,
            "threads": THREADS,
            "weights": WEIGHTS,
            "pause_seconds": LONGEST_PAUSE_SECONDS[self.vendor],
            "accounts": self.users.accounts(),
            "pool": POOL if self.vendor == "postgresql" else None,
            "tenants": self.users.databases,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "tests.protocol.crash_worker", json.dumps(orders)],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "TESTS_DATABASE_NAME": self.database,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
        )

    def _rage(self, seconds: float) -> None:
        now = time.monotonic()
        end, next_kill, next_cut = now + seconds, now + 1, now
        self.weather.refuses_from, self.weather.refuses_until = now + seconds / 3, now + seconds / 2
        while now < end and self._requests() < seconds * MOST_REQUESTS_A_SECOND:
            self._tend()
            if now >= next_kill:
                self.crew.kill_one()
                next_kill = now + self.draw.uniform(*KILL_EVERY_SECONDS)
            if now >= next_cut:
                self._cut_a_backend()
                next_cut = now + self.draw.uniform(*CUT_EVERY_SECONDS)
            time.sleep(POLL_SECONDS)
            now = time.monotonic()

    def _tend(self) -> None:
        self.findings.read()
        self.crew.fill()
        self._mend()

    def _mend(self) -> None:
        """Connect again whoever was lost, and write down why."""
        for connection in self.users.lost():
            stored = self.users.stored_token(connection)
            self.findings.note_loss(connection.sid, stored, connection.last_error)
            self.users.reconnect(connection)

    def _wait(self, seconds: float, is_done: Callable[[], bool], purpose: str) -> None:
        deadline = time.monotonic() + seconds
        while not is_done():
            assert time.monotonic() < deadline, f"{seconds} seconds were not enough {purpose}"
            time.sleep(POLL_SECONDS)
            self._tend()

    def _all_served_since(self, moment: float) -> bool:
        served = self.findings.last_served
        return all(served.get(user, 0) > moment for user in self.users.sessions)

    def _requests(self) -> int:
        return self.findings.counts["requests served"].total()

    def _cut_a_backend(self) -> None:
        from django.db import DatabaseError, connection  # main works without settings

        if self.vendor not in CUT:
            return
        with connection.cursor() as cursor:
            cursor.execute(LISTED_BACKENDS[self.vendor])
            backends = sorted(row[0] for row in cursor.fetchall())
            if not backends:
                return
            with suppress(DatabaseError):  # it may have hung up by itself in the meantime
                cursor.execute(CUT[self.vendor], [self.draw.choice(backends)])
                self.findings.counts["database connections"]["terminated"] += 1


def refusal() -> Fault:
    """The answer of a bank API that refuses every token."""
    from everifin_django.testing.sandbox import Fault

    body = {"meta": {"status": "ERROR"}, "errors": [{"code": "INVALID_ACCESS_TOKEN"}]}
    return Fault(where="api", status=401, body=body)


def faults() -> dict[Fault, float]:
    """What goes wrong at Everifin while there is no calm, and for which share of its calls."""
    from everifin_django.testing.sandbox import Fault

    token, api = "token.refresh_token", "api"
    return {
        Fault(where=token, lost="before"): 0.02,
        Fault(where=token, lost="after"): 0.01,
        Fault(where=token, truncate=True): 0.01,
        Fault(where=token, latency_seconds=0.5): 0.02,
        Fault(where=token, latency_seconds=4): 0.01,
        **{Fault(where=token, status=status): 0.02 for status in (500, 502, 503)},
        **{Fault(where=token, status=status, lost="after"): 0.01 for status in (500, 502, 503)},
        Fault(where=api, status=503): 0.01,
        Fault(where=api, lost="before"): 0.01,
        Fault(where=api, latency_seconds=0.2): 0.02,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol.crash_run")
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--keycloak", action="store_true", help="with a real one, not the sandbox")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    directory = "providers/keycloak" if options.keycloak else "protocol"
    with DATABASES[options.database]() as url:
        command = [sys.executable, "-m", "pytest", "-q", "--capture=no", "-p", "no:cacheprovider"]
        command += ["-m", "exhaustive or keycloak"]
        return subprocess.call(
            [*command, f"tests/{directory}/test_crashes.py::test_no_crash_loses_a_grant"],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "DATABASE_URL": url,
                "CRASH_RUN_SECONDS": str(options.seconds),
                "CRASH_RUN_SEED": str(options.seed),
            },
        )


if __name__ == "__main__":
    sys.exit(main())

"""Let processes full of threads ask for the same user's token at one moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connection

CHECKOUT = Path(__file__).parents[2]
LONGEST_SECONDS = 60

Answers = list[dict[str, Any]]


def stampede(
    session_key: str, *, processes: int, threads: int, settings: dict[str, Any]
) -> Answers:
    """Return status and seconds of each of *processes* x *threads* requests with *session_key*."""
    with herd(session_key, processes=processes, threads=threads, settings=settings) as charge:
        return charge()


@contextmanager
def herd(
    session_key: str,
    *,
    processes: int,
    threads: int,
    settings: dict[str, Any],
    action: str = "page",
) -> Iterator[Callable[[], Answers]]:
    """
    Give a function that lets all threads of all processes do *action* of ``worker`` at once, and
    returns the status and the seconds of each.

    The processes use the database that this one uses now, and *settings* on top of tests.settings.
    """
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TESTS_SETTINGS": json.dumps(settings),
        "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    command = [sys.executable, "-m", "tests.protocol.worker", str(threads), action, session_key]
    workers = [
        subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]

    def charge() -> Answers:
        watchdogs = [threading.Timer(LONGEST_SECONDS, worker.kill) for worker in workers]
        for watchdog in watchdogs:
            watchdog.start()
        try:
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
            return [answer for worker in workers for answer in json.loads(_line(worker))]
        finally:
            for watchdog in watchdogs:
                watchdog.cancel()

    try:
        for worker in workers:
            assert _line(worker) == "ready\n"
        yield charge
        for worker in workers:
            worker.communicate(timeout=LONGEST_SECONDS)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()

"""Let many workers ask for one user's token over and over, whatever they are told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from django.db import connection, connections

from everifin_django.connections import grants
from everifin_django.connections.refresh import BACKOFF_SECONDS
from everifin_django.exceptions import EverifinError


def generate_load(user: Any, *, workers: int, seconds: float) -> tuple[Counter[str], float]:
    """
    Return how often ``grants.get_access_token`` ended how (the name of the error, or
    ``AccessToken``), and after how many seconds the last worker was done.
    """
    moments: list[float] = []
    start = threading.Barrier(workers, action=lambda: moments.append(time.monotonic()))
    outcomes: Counter[str] = Counter()
    counting = threading.Lock()

    def work() -> None:
        connection.ensure_connection()
        start.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            outcome = _get_token(user)
            with counting:
                outcomes[outcome] += 1
        connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, time.monotonic() - moments[0]


def room() -> int:
    """Return how many workers make sense on this database, at most 200."""
    if connection.vendor != "postgresql":
        # SQLite has room for one writer, and PyMySQL needs long for each of so many connections.
        return 40
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('max_connections')::int")
        return min(200, int(cursor.fetchone()[0]) // 2 - 10)  # two tests may run at once


def most_tries(seconds: float) -> int:
    """Return how many tries the pauses allow, each as short as it may be: from 2 s on, doubling."""
    shortest, longest = BACKOFF_SECONDS
    tries, next_at = 0, 0.0
    while next_at <= seconds:
        next_at += min(shortest * 2.0**tries, longest / 2)
        tries += 1
    return tries


def _get_token(user: Any) -> str:
    try:
        return type(grants.get_access_token(user)).__name__
    except EverifinError as error:
        return type(error).__name__

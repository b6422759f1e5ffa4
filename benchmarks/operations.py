"""
What it costs to run a site of 1,000,000 connections: ``python -m benchmarks.operations``.

Status of all of them, the kill switch, and the admin's action of 10,000 rows, on PostgreSQL with
the rows of ``benchmarks.million``. Printed are wall time, and the processor time of all processes
of the database server in it, which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.million import CONNECTIONS, TOKEN_CHARACTERS, million

ROWS_OF_ADMIN = 10_000
PARENT, OWN = 1, 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--token-characters", type=int, default=TOKEN_CHARACTERS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with million(options.connections, token_characters=options.token_characters):
        measure_status()
        measure_housekeeping()
        measure_admin()
        measure_kill_switch(options.workers)


def measure_status() -> None:
    from everifin_django.management.status import read_status

    for turn in ("first", "second"):
        with measured(f"everifin_status, {turn} time"):
            status = read_status()
    print(f"  {status.connections} connections")


def measure_housekeeping() -> None:
    """With nothing to do but the connections that are to be purged, once."""
    from everifin_django.connections import housekeeping

    for task, work in housekeeping.TASKS.items():
        with measured(f"everifin_housekeeping, {task}"):
            count = work()
        print(f"  {count:,}")


def measure_admin() -> None:
    from django.contrib.auth import get_user_model
    from django.test import Client

    from everifin_django.models import BankToken
    from everifin_django.testing.fake import fake_everifin

    client = Client()
    client.force_login(get_user_model().objects.create_superuser("administrator"))
    chosen = BankToken.objects.filter(status="active").values_list("pk", flat=True)
    data = {
        "action": "disconnect",
        "_selected_action": [str(pk) for pk in chosen[:ROWS_OF_ADMIN]],
    }
    from django.test import override_settings

    with fake_everifin() as everifin, override_settings(DATA_UPLOAD_MAX_NUMBER_FIELDS=20_000):
        with measured(f"the admin's action of {ROWS_OF_ADMIN:,} rows"):
            response = client.post("/admin/everifin_django/banktoken/", data)
        print(
            f"  status {response.status_code}, {sum(everifin.calls.values())} requests to Everifin"
        )


def measure_kill_switch(workers: int) -> None:
    from everifin_django.connections import bulk_disconnect, grants
    from everifin_django.exceptions import TokenMissingError
    from everifin_django.models import BankToken, PendingRevocation

    users = [row.user for row in BankToken.objects.filter(status="active")[:3]]
    with measured("kill switch: all unusable"):
        bulk_disconnect.begin()
    for user in users:
        try:
            grants.get_access_token(user)
        except TokenMissingError:
            continue
        raise SystemExit("A connection is still usable.")
    moved = 0
    moving = bulk_disconnect.move_all(workers=workers)
    with measured("kill switch: all in the outbox"):
        while size := next(moving):
            moved += size
    print(f"  {moved:,} moved, {PendingRevocation.objects.count():,} in the outbox")
    with measured(f"kill switch: the end written into each row by {workers} workers"):
        moved = sum(moving)
    print(f"  {moved:,} more moved")


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print what the block took."""
    wall, processor = time.perf_counter(), database_seconds()
    yield
    wall, processor = time.perf_counter() - wall, database_seconds() - processor
    print(f"{what}: {wall:.2f} s, of which the database computed {processor:.2f} s", flush=True)


def database_seconds() -> float:
    """The processor time that all processes of the database server have taken (Linux)."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    server = stat_of(backend)[PARENT]
    pids = (path.name for path in Path("/proc").iterdir() if path.name.isdecimal())
    processes = [stat_of(pid) for pid in pids]
    # Its own, its ended children's, and those of the children that run.
    ticks = sum(map(int, stat_of(server)[OWN : OWN + 4]))
    ticks += sum(sum(map(int, one[OWN : OWN + 2])) for one in processes if one[PARENT] == server)
    return ticks / os.sysconf("SC_CLK_TCK")


def stat_of(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may have spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return ["0"] * 20


if __name__ == "__main__":
    main()

"""Let processes full of threads ask for the same user's page at one moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.db import connection

CHECKOUT = Path(__file__).parents[2]
LONGEST_SECONDS = 60


def stampede(
    session_key: str, *, processes: int, threads: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """
    Return status and seconds of each of *processes* x *threads* requests with *session_key*.

    The processes use the database that this one uses now, and *settings* on top of tests.settings.
    """
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TESTS_SETTINGS": json.dumps(settings),
        "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    command = [sys.executable, "-m", "tests.concurrency.worker", str(threads), session_key]
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
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        outputs = [worker.communicate(timeout=LONGEST_SECONDS)[0] for worker in workers]
        return [answer for output in outputs for answer in json.loads(output)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

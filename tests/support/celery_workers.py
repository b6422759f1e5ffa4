"""Real brokers, and real workers of Celery behind them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from celery import Celery
from django.db import connection

CHECKOUT = Path(__file__).parents[2]
REDIS = shutil.which("redis-server")
SECONDS = 60
STOP_SECONDS = 20


@contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* until the block ends."""
    process = subprocess.Popen(command, cwd=CHECKOUT, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_done():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def redis() -> Iterator[str]:
    """Run Redis, and give its URL. Its folder has a short name: a socket's may have 107 bytes."""
    with TemporaryDirectory(prefix="redis-", dir="/tmp") as folder:
        socket = Path(folder) / "socket"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder]
        with running(str(REDIS), *options, "--loglevel", "warning"):
            wait_until(socket.exists)
            yield f"redis+socket://{socket}"


@contextmanager
def worker(pool: str, broker: str, backend: str, changed: dict[str, Any]) -> Iterator[Celery]:
    """
    Run a worker with this process's settings and database, but for what has *changed*; give the
    application that sends it tasks.
    """
    command = [sys.executable, "-m", "celery", "-A", "tests.support.celery_site", "worker"]
    options = [f"--pool={pool}", "--concurrency=2", "--loglevel=warning", "--without-mingle"]
    environment = {
        "BROKER_URL": broker,
        "BACKEND_URL": backend,
        "SITE_SETTINGS": json.dumps(changed),
        "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    with running(*command, *options, **environment):
        yield Celery("site", broker=broker, backend=backend, set_as_current=False)

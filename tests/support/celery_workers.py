"""Real brokers, and real workers of Celery behind them."""

from __future__ import annotations

import json
import os
import shutil
import socket
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
RABBITMQ = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin")
"""The script that runs it as whoever calls; Debian's other one changes to a user of its own."""
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
        path = Path(folder) / "socket"
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        with running(str(REDIS), *options, "--loglevel", "warning"):
            wait_until(path.exists)
            yield f"redis+socket://{path}"


@contextmanager
def rabbitmq() -> Iterator[str]:
    """Run RabbitMQ with a port mapper of its own, both on loopback, and give its URL."""
    port, node_port, epmd_port = (str(free_port()) for _ in range(3))
    with TemporaryDirectory(prefix="rabbitmq-", dir="/tmp") as folder:
        environment = {
            "HOME": folder,
            "ERL_EPMD_PORT": epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "tests@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": port,
            "RABBITMQ_DIST_PORT": node_port,
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
        }
        # Without one, the server starts a port mapper that stays when it ends.
        with running("epmd", **environment):
            wait_until(lambda: is_open(epmd_port))
            with running(str(RABBITMQ), **environment):
                wait_until(lambda: is_open(port))
                yield f"amqp://guest:guest@127.0.0.1:{port}//"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def is_open(port: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(port))) == 0


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
    with (
        running(*command, *options, **environment),
        Celery("site", broker=broker, backend=backend, set_as_current=False) as app,
    ):
        yield app

"""
What the sandbox costs a test, and how fast it is over HTTP.

``python -m benchmarks.sandbox``. Each figure is told by the clock, the best and the median of
several tries, and by the CPU time that went into it: where the two are far apart, the machine was
busy with other things. Over HTTP the server has a process of its own, as at a demo, and is asked by
four clients in this one, which share the machine with it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlencode, urlsplit

import django
from django.test.utils import setup_databases, setup_test_environment, teardown_databases

ROUNDS = 200
CLIENTS = 4
SECONDS = 2
TRIES = 5
IMPORT_ROUNDS = 15


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    setup_test_environment()
    print(f"load of the machine: {load()}")
    print(f"import pytest {import_ms('pytest'):.1f} ms, ", end="")
    print(f"then the plugin {import_ms('pytest, everifin_django.testing.plugin'):.1f} ms in all")
    databases = setup_databases(verbosity=0, interactive=False)
    try:
        measure_fixtures()
    finally:
        teardown_databases(databases, verbosity=0)
    measure_server()
    print(f"load of the machine: {load()}")


def load() -> str:
    """How many processes wanted a CPU in the last minute, five and fifteen, and how many it has."""
    return f"{' '.join(f'{number:.1f}' for number in os.getloadavg())} on {os.cpu_count()} CPUs"


def measure_fixtures() -> None:
    from django.db import transaction

    from everifin_django.connections import everifin_for
    from everifin_django.testing.fake import fake_everifin

    def everifin_user() -> None:
        with fake_everifin() as everifin:
            everifin.make_user()

    with transaction.atomic():
        print(f"everifin and everifin_user: {cost(everifin_user, undo=True)}")
    with transaction.atomic(), fake_everifin() as everifin:
        user = everifin.make_user()
        bank = everifin_for(user)
        print(f"an API call in this process: {cost(lambda: list(bank.banks()))}")
        account = next(iter(bank.accounts())).id

        def read_page() -> None:
            next(iter(bank.transactions(account, page_size=50)))

        print(f"a page of 50 transactions in this process: {cost(read_page)}")
        key = everifin.signing_key
        print(f"a signature, of which a refresh has two: {cost(lambda: key.sign({}))}")
        transaction.set_rollback(True)


def cost(call: Callable[[], Any], *, undo: bool = False) -> str:
    from django.db import transaction

    clock, cpu = [], []
    for _ in range(ROUNDS):
        with transaction.atomic():
            began = time.perf_counter(), time.process_time()
            call()
            clock.append((time.perf_counter() - began[0]) * 1000)
            cpu.append((time.process_time() - began[1]) * 1000)
            transaction.set_rollback(undo)
    warm = slice(ROUNDS // 10, None)
    return (
        f"median {statistics.median(clock[warm]):.2f} ms, best {min(clock):.2f} ms "
        f"(CPU: median {statistics.median(cpu[warm]):.2f} ms, best {min(cpu):.2f} ms)"
    )


def import_ms(modules: str) -> float:
    """Return how long a Python takes that imports *modules* and ends, the best of some."""
    took = []
    for _ in range(IMPORT_ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
        took.append(time.perf_counter() - began)
    return min(took) * 1000


# Over HTTP


def measure_server() -> None:
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    process.start()
    try:
        url, token_form, access_token = ours.recv()
        bearer = {"Authorization": f"Bearer {access_token}"}
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        calls: dict[str, tuple[Any, ...]] = {
            "API requests": ("GET", "/v1/bank-accounts", None, bearer),
            "refreshes": ("POST", TOKEN_ENDPOINT, token_form, form),
        }
        for name, call in calls.items():
            tries = [rate(ours, url, call) for _ in range(TRIES)]
            print(f"over HTTP, {CLIENTS} clients: {told(tries)} {name}/s, {cpu(tries)}")
        ours.send("with Nagle's algorithm")
        ours.recv()
        slow = [rate(ours, url, calls["API requests"]) for _ in range(TRIES)]
        print(f"the same with Nagle's algorithm: {told(slow)} API requests/s, {cpu(slow)}")
    finally:
        ours.send("stop")
        process.join()


def told(tries: list[tuple[float, float]]) -> str:
    rates = [rate for rate, _ in tries]
    return f"median {statistics.median(rates):.0f}, best {max(rates):.0f}"


def cpu(tries: list[tuple[float, float]]) -> str:
    costs = [cost for _, cost in tries]
    return f"{statistics.median(costs):.2f} ms of the server's CPU each (best {min(costs):.2f})"


TOKEN_ENDPOINT = "/auth/realms/everifin_app/protocol/openid-connect/token"  # noqa: S105 - a path


def serve(pipe: Connection) -> None:
    """Serve a sandbox until told to stop; say its URL, a refresh to send, and an access token."""
    from django.conf import settings

    settings.configure()
    from everifin_django.testing.sandbox import Sandbox, server

    with server.serve(Sandbox(rotation="default")) as running:
        sandbox = running.sandbox
        tokens = sandbox.grant("alice")
        client = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        grant = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        pipe.send((running.url, urlencode({**client, **grant}), tokens["access_token"]))
        while (order := pipe.recv()) != "stop":
            if order == "with Nagle's algorithm":
                server._RequestHandler.disable_nagle_algorithm = False
            pipe.send(time.process_time())


def rate(server: Connection, url: str, call: tuple[Any, ...]) -> tuple[float, float]:
    """
    Return how many requests a second are answered with 200 on connections that are kept, and how
    many milliseconds of its CPU the server needs for one.
    """
    counts: list[int] = []

    def ask() -> None:
        count = 0
        with closing(HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
            while time.perf_counter() < until:
                connection.request(*call)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{call[1]} answers {answer.status}.")
                count += 1
        counts.append(count)

    used = cpu_seconds(server)
    until = time.perf_counter() + SECONDS
    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS, (cpu_seconds(server) - used) / sum(counts) * 1000


def cpu_seconds(server: Connection) -> float:
    server.send("how much CPU?")
    seconds: float = server.recv()
    return seconds


if __name__ == "__main__":
    main()

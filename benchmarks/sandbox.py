"""
What the pretend Everifin costs a test, and how fast it is over HTTP.

``python -m benchmarks.sandbox``. Times in this process are medians, in milliseconds of its own CPU,
so that a machine which is busy with other things does not count. Requests a second are by the
clock: the server has a process of its own, as at a demo, and is asked by four clients in this one,
which share the machine with it.
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
SECONDS = 5
IMPORT_ROUNDS = 15


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    setup_test_environment()
    print(f"import pytest {import_ms('pytest'):.1f} ms, ", end="")
    print(f"then the plugin {import_ms('pytest, everifin_django.testing.plugin'):.1f} ms in all")
    databases = setup_databases(verbosity=0, interactive=False)
    try:
        measure_fixtures()
    finally:
        teardown_databases(databases, verbosity=0)
    measure_server()


def measure_fixtures() -> None:
    from django.db import transaction

    from everifin_django.testing.everifin import pretend_everifin
    from everifin_django.tokens import everifin_for

    def everifin_user() -> None:
        with pretend_everifin() as everifin:
            everifin.make_user()

    with transaction.atomic():
        print(f"everifin and everifin_user: {median_ms(everifin_user, undo=True):.2f} ms")
    with transaction.atomic(), pretend_everifin() as everifin:
        user = everifin.make_user()
        with everifin_for(user) as bank:
            print(f"an API call in this process: {median_ms(lambda: list(bank.banks())):.2f} ms")
        transaction.set_rollback(True)


def median_ms(call: Callable[[], Any], *, undo: bool = False) -> float:
    from django.db import transaction

    took = []
    for _ in range(ROUNDS):
        with transaction.atomic():
            began = time.process_time()
            call()
            took.append(time.process_time() - began)
            transaction.set_rollback(undo)
    return statistics.median(took[ROUNDS // 10 :]) * 1000


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
        api = rate(url, "GET", "/v1/bank-accounts", None, bearer)
        token = rate(url, "POST", TOKEN_ENDPOINT, token_form, form)
        print(f"over HTTP, {CLIENTS} clients: {api:.0f} API requests/s, {token:.0f} refreshes/s")
    finally:
        ours.send("stop")
        process.join()


TOKEN_ENDPOINT = "/auth/realms/everifin_app/protocol/openid-connect/token"  # noqa: S105 - a path


def serve(pipe: Connection) -> None:
    """Serve a sandbox until told to stop; say its URL, a refresh to send, and an access token."""
    from django.conf import settings

    settings.configure()
    from everifin_django.testing.sandbox import Sandbox
    from everifin_django.testing.sandbox.server import serve as serving

    with serving(Sandbox(rotation="default")) as server:
        tokens = first_tokens(server.sandbox)
        client = {"client_id": server.sandbox.client_id}
        client["client_secret"] = server.sandbox.client_secret
        grant = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        pipe.send((server.url, urlencode({**client, **grant}), tokens["access_token"]))
        pipe.recv()


def first_tokens(sandbox: Any) -> dict[str, Any]:
    from tests.testing import Site

    return Site(sandbox).tokens()


def rate(url: str, method: str, path: str, body: str | None, headers: dict[str, str]) -> float:
    """Return how many requests a second are answered with 200, on connections that are kept."""
    counts: list[int] = []
    until = time.perf_counter() + SECONDS

    def ask() -> None:
        count = 0
        with closing(HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
            while time.perf_counter() < until:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{path} answers {answer.status}.")
                count += 1
        counts.append(count)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


if __name__ == "__main__":
    main()

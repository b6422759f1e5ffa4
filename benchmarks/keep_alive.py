"""
How fast `everifin_refresh` is, on PostgreSQL, against a sandbox that takes 20 ms to answer:

    python -m benchmarks.keep_alive --connections 10000

Three runs over connections that are all due: one host; two hosts at once; two hosts, one of which
is killed in the middle. A host is a process, with database connections of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.database import empty_database
from tests.support.servers import DATABASES

CHECKOUT = Path(__file__).parents[1]
LATENCY_MS = 20
CONCURRENCY = 16
HOST = """
import json, os, resource, sys, time
import django
django.setup()
from django.db.backends.base.base import BaseDatabaseWrapper
BaseDatabaseWrapper.queries_logged = False  # as with DEBUG off, which http:// needs
from django.conf import settings
from django.core.management import call_command
for name, value in json.loads(os.environ["HOST_SETTINGS"]).items():
    setattr(settings, name, value)
from everifin_django.connections import keep_alive
kilobytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
call_command("everifin_refresh", "--limit", "50", "--concurrency", sys.argv[1])
before, start, used = kilobytes(), time.monotonic(), time.process_time()
try:
    call_command("everifin_refresh", "--concurrency", sys.argv[1], "--max-seconds", "600")
finally:
    print("seconds", time.monotonic() - start)
    print("cpu", time.process_time() - used)
    print("growth", round((kilobytes() - before) / 1024, 1), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY)
    parser.add_argument("--latency-ms", type=float, default=LATENCY_MS)
    options = parser.parse_args()
    with DATABASES["postgres"]() as url, empty_database(url):
        measure(options.connections, options.concurrency, options.latency_ms)


def measure(connections: int, concurrency: int, latency_ms: float) -> None:
    from everifin_django.testing.fake import FakeEverifin, as_in_settings
    from everifin_django.testing.sandbox.server import serve

    sandbox = FakeEverifin(**as_in_settings())
    with serve(sandbox) as server:
        settings = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
            "EVERIFIN_SCOPES": "openid ais offline_access",
        }
        make(sandbox, connections)
        sandbox.faults.add("token.refresh_token", latency_seconds=latency_ms / 1000)
        limit = concurrency / latency_ms * 1000
        print(f"{connections:,} connections; the limit of one host is {limit:.0f} a second")
        for title, hosts, is_one_killed in (
            ("one host", 1, False),
            ("two hosts", 2, False),
            ("two hosts, one of which is killed", 2, True),
        ):
            let_time_pass()
            sandbox.double_spends = 0
            before = sandbox.calls["token"]
            seconds, used, growth = run(hosts, concurrency, settings, is_one_killed=is_one_killed)
            calls = sandbox.calls["token"] - before
            print(
                f"{title:34} {seconds:6.1f} s, {calls / seconds:5.0f} a second "
                f"({calls / seconds / limit / hosts:.0%} of the limit), {calls} requests, "
                f"{sandbox.double_spends} spent twice, left due: {left()}, "
                f"{used / calls * 1000:.1f} ms of CPU each, memory grew by {growth} MB",
                flush=True,
            )


def make(sandbox: Any, count: int) -> None:
    from django.contrib.auth import get_user_model
    from django.utils import timezone

    from everifin_django.connections import grants
    from everifin_django.oauth.endpoints import read_tokens

    users = get_user_model()
    for number in range(count):
        user = users._default_manager.create(username=f"user-{number}")
        answer = sandbox.grant(scope="openid ais offline_access")
        grants.save_grant(user, read_tokens(answer, timezone.now()), None)


def let_time_pass() -> None:
    from django.utils import timezone

    from everifin_django.models import BankToken

    now = timezone.now()
    BankToken.objects.update(
        issued_at=now - timedelta(days=29), refresh_expires_at=now + timedelta(hours=1)
    )


def left() -> int:
    from everifin_django.connections.keep_alive import Due

    return Due().count()


def run(
    hosts: int, concurrency: int, settings: dict[str, Any], *, is_one_killed: bool
) -> tuple[float, float, str]:
    """
    Return how many seconds the hosts took and how many of CPU, their start left out, and by how
    many MB the memory of one grew.
    """
    half = left() / 2
    processes = [host(concurrency, settings) for _number in range(hosts)]
    if is_one_killed:
        while left() > half and processes[0].poll() is None:
            time.sleep(0.05)
        processes[0].send_signal(signal.SIGKILL)
    outputs = [process.communicate()[0] for process in processes]
    while is_one_killed and left():
        time.sleep(1)
        outputs.append(host(concurrency, settings).communicate()[0])
    told = "\n".join(outputs)
    seconds = re.findall(r"^seconds (\S+)$", told, re.MULTILINE)
    growth = re.findall(r"^growth (\S+)$", told, re.MULTILINE)
    used = re.findall(r"^cpu (\S+)$", told, re.MULTILINE)
    return max(map(float, seconds)), sum(map(float, used)), max(growth, key=float)


def host(concurrency: int, settings: dict[str, Any]) -> subprocess.Popen[str]:
    from django.db import connection

    environment = {
        "HOST_SETTINGS": json.dumps(settings),
        "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", HOST, str(concurrency)],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    main()

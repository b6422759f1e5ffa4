"""The tasks in a real worker of Celery, behind a real broker: Redis."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.db import connection
from django.utils import timezone

from everifin_django.models import BankToken
from everifin_django.testing.factories import UserFactory
from everifin_django.testing.fake import FakeEverifin, as_in_settings
from everifin_django.testing.sandbox.server import serve

CHECKOUT = Path(__file__).parents[1]
REDIS = shutil.which("redis-server")
SECONDS = 60
STOP_SECONDS = 20

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(REDIS is None, reason="apt-get install redis-server brings the broker"),
]


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


@pytest.fixture
def broker(tmp_path) -> Iterator[str]:
    socket = tmp_path / "redis"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with running(str(REDIS), *options, "--loglevel", "warning"):
        end = time.monotonic() + SECONDS
        while not socket.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        yield f"redis+socket://{socket}"


@pytest.fixture
def site(settings) -> Iterator[dict[str, Any]]:
    """The settings of a site whose three connections are due, at a sandbox that is served."""
    sandbox = FakeEverifin(**as_in_settings())
    with serve(sandbox) as server:
        changed = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
            "EVERIFIN_SCOPES": "openid ais offline_access",
        }
        for name, value in changed.items():
            setattr(settings, name, value)
        for name in ("alice", "bob", "carol"):
            sandbox.add_user(name)
            sandbox.connect(UserFactory(), name)
        now = timezone.now()
        BankToken.objects.update(
            issued_at=now - timedelta(days=30), refresh_expires_at=now + timedelta(hours=1)
        )
        yield changed
        assert sandbox.double_spends == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_does_them(broker, site, pool):
    command = [sys.executable, "-m", "celery", "-A", "tests.support.celery_site", "worker"]
    options = [f"--pool={pool}", "--concurrency=2", "--loglevel=warning", "--without-mingle"]
    environment = {
        "BROKER_URL": broker,
        "SITE_SETTINGS": json.dumps(site),
        "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    app = Celery("site", broker=broker, backend=broker, set_as_current=False)
    with running(*command, *options, **environment):
        tasks = [app.send_task("everifin_django.tasks.refresh_due") for _ in range(4)]
        answers = [task.get(timeout=SECONDS) for task in tasks]
        assert sum(answer.get("refreshed", 0) for answer in answers) == 3
        housekeeping = app.send_task("everifin_django.tasks.run_housekeeping")
        assert sum(housekeeping.get(timeout=SECONDS).values()) == 0
        payments = app.send_task("everifin_django.tasks.resolve_payments", kwargs={"limit": 5})
        assert payments.get(timeout=SECONDS) == {}
    assert BankToken.objects.filter(token_version=2).count() == 3

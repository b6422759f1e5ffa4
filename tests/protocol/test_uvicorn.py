"""
F25 under a real server: visitors who hang up, and a server that is told to end, in the middle of a
refresh.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPConnection
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target
from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.server import serve
from tests.protocol.asgi_site import LONGEST_SECONDS
from tests.protocol.stampede import CHECKOUT
from tests.support.grants import refresh_again

pytestmark = pytest.mark.django_db(transaction=True)

PAGES = ["/accounts/", "/unmarked/", "/aaccounts/", "/aunmarked/"]
QUICK = {"/accounts/", "/aunmarked/"}
each_page = pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path in QUICK else pytest.mark.exhaustive) for path in PAGES],
)


@dataclass
class Site:
    """A running uvicorn, and a visitor who is logged in there."""

    process: subprocess.Popen[str]
    port: int
    cookie: str

    def open(self, path: str) -> HTTPConnection:
        """Ask for a page; the answer is still to be read."""
        http = HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_SECONDS)
        http.request("GET", path, headers={"Host": "testserver", "Cookie": self.cookie})
        return http

    def status(self, path: str) -> int:
        http = self.open(path)
        try:
            return http.getresponse().status
        finally:
            http.close()

    def read_until(self, pattern: str) -> re.Match[str]:
        """Wait for uvicorn to say *pattern*."""
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError("".join(said))

    def end(self) -> int:
        return self.process.wait(LONGEST_SECONDS)


@contextmanager
def uvicorn(settings: dict[str, Any], cookie: str) -> Iterator[Site]:
    """Run the site of ``asgi_site`` on the test's database, in one process."""
    command = [sys.executable, "-m", "uvicorn", "tests.protocol.asgi:application"]
    command += ["--host", "127.0.0.1", "--port", "0"]
    command += ["--lifespan", "off", "--no-access-log", "--no-use-colors"]
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TESTS_SETTINGS": json.dumps(settings),
        "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            site = Site(process, 0, cookie)
            site.port = int(site.read_until(r"running on http://127\.0\.0\.1:(\d+)")[1])
            yield site
        finally:
            process.kill()


@dataclass
class Everifin:
    """
    The sandbox that the site talks to, held at its next refresh: *begun* says that it has come
    there, *go_on* lets it answer.
    """

    sandbox: Sandbox
    begun: threading.Event
    go_on: threading.Event

    def assert_kept(self) -> None:
        """One request was sent, its answer is stored, and it is one that Everifin takes."""
        row = BankToken.objects.select_related("user").get()
        assert self.sandbox.calls["token.refresh_token"] == 1
        assert (row.token_version, row.lease_id) == (2, None)
        assert refresh_again(row.user) == 3
        assert self.sandbox.double_spends == 0


@pytest.fixture
def everifin(client, django_user_model, settings) -> Iterator[Everifin]:
    """Everifin over HTTP under strict rotation; ``client``'s token there ran out."""
    sandbox = Sandbox(rotation="strict", redirect_uris=("http://testserver/everifin/callback/",))
    with serve(sandbox) as server:
        settings.EVERIFIN_IDP_URL = settings.EVERIFIN_API_URL = server.url
        settings.DEBUG = True
        client.force_login(django_user_model.objects.create_user("holder"))
        start = client.post("/everifin/connect/")
        client.get(sandbox.authorize(redirect_target(start)))
        BankToken.objects.update(
            issued_at=timezone.now() - timedelta(minutes=6), access_expires_at=timezone.now()
        )
        held = Everifin(sandbox, threading.Event(), threading.Event())

        def sleep(_seconds: float) -> None:
            held.begun.set()
            held.go_on.wait(LONGEST_SECONDS)

        sandbox.sleep = sleep
        sandbox.faults.add("token.refresh_token", latency_seconds=1, times=1)
        yield held
        held.go_on.set()


@pytest.fixture
def site(everifin, client, settings) -> Iterator[Site]:
    at_everifin = {
        "DEBUG": settings.DEBUG,
        "EVERIFIN_IDP_URL": settings.EVERIFIN_IDP_URL,
        "EVERIFIN_API_URL": settings.EVERIFIN_API_URL,
    }
    with uvicorn(at_everifin, f"sessionid={client.session.session_key}") as site:
        yield site


def test_f1_requests_that_need_a_new_token_at_once(site, everifin):
    everifin.go_on.set()
    with ThreadPoolExecutor(16) as executor:
        statuses = list(executor.map(site.status, PAGES * 4))
    assert statuses == [200] * 16
    everifin.assert_kept()


@each_page
def test_f25_a_visitor_who_hangs_up_in_the_middle_of_a_refresh(site, everifin, path):
    visitor = site.open(path)
    assert everifin.begun.wait(LONGEST_SECONDS)
    visitor.close()
    assert site.status("/left/") == 200
    everifin.go_on.set()
    assert site.status(path) == 200
    everifin.assert_kept()


@each_page
def test_f25_a_server_that_is_told_to_end_in_the_middle_of_a_refresh(site, everifin, path):
    visitor = site.open(path)
    assert everifin.begun.wait(LONGEST_SECONDS)
    site.process.terminate()
    site.read_until("Shutting down")
    everifin.go_on.set()
    assert visitor.getresponse().status == 200
    visitor.close()
    assert site.end() in (0, -signal.SIGTERM)
    everifin.assert_kept()


@each_page
def test_f25_a_server_that_is_told_to_end_when_nobody_waits_for_the_refresh(site, everifin, path):
    visitor = site.open(path)
    assert everifin.begun.wait(LONGEST_SECONDS)
    visitor.close()
    assert site.status("/left/") == 200
    site.process.terminate()
    site.read_until("Shutting down")
    everifin.go_on.set()
    assert site.end() in (0, -signal.SIGTERM)
    everifin.assert_kept()

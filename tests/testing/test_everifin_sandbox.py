"""The sandbox over real HTTP on this machine, and the command that serves it."""

import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import requests
from django.core.management import CommandError, call_command
from django.core.servers.basehttp import ThreadedWSGIServer
from django.test import override_settings

from everifin_django.management.commands.everifin_sandbox import Command
from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.server import RunningServer, is_loopback, serve
from tests.testing import Site

START = """
import sys
from django.conf import settings
settings.configure(DEBUG=True)
import django
django.setup()
from django.core.management import call_command
from everifin_django.management.commands.everifin_sandbox import Command
call_command(Command(), *sys.argv[1:])
"""


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with serve(Sandbox()) as running:
        yield running


@pytest.fixture
def site(server: RunningServer) -> Site:
    return Site(server.sandbox)


class TestServer:
    def test_many_who_come_at_one_moment_are_let_in_at_once(self, server, monkeypatch):
        address = ("127.0.0.1", urlsplit(server.url).port)
        is_busy, goes_on = threading.Event(), threading.Event()
        process = ThreadedWSGIServer.process_request

        def process_request(*arguments):
            is_busy.set()
            goes_on.wait(20)
            process(*arguments)

        monkeypatch.setattr(ThreadedWSGIServer, "process_request", process_request)
        with ExitStack() as stack:
            stack.callback(goes_on.set)
            stack.enter_context(socket.create_connection(address, timeout=20))
            assert is_busy.wait(20)  # from here on, only the kernel lets anybody in
            for _ in range(64):
                stack.enter_context(socket.create_connection(address, timeout=0.9))

    def test_it_serves_under_its_own_url(self, server, site):
        assert server.url == server.sandbox.idp_url == server.sandbox.api_url
        assert not server.url.endswith(":0")
        answer = site.get("/v1/bank-accounts", site.tokens()["access_token"])
        assert len(answer.json()["data"]) == 3

    def test_connections_are_kept(self, site):
        with requests.Session() as session:
            for _ in range(3):
                answer = session.get(site.endpoint("certs"), timeout=5)
                assert answer.ok
                assert "close" not in answer.headers.get("Connection", "")

    @pytest.mark.parametrize("lost", ["before", "after"])
    def test_a_lost_answer_is_a_closed_connection(self, site, lost):
        token = site.tokens()["refresh_token"]
        site.sandbox.faults.add("token", lost=lost, times=1)
        with pytest.raises(requests.exceptions.ConnectionError):
            site.refresh(token)
        assert site.refresh(token).ok == (lost == "before")

    def test_half_an_answer_breaks_off(self, site):
        token = site.tokens()["access_token"]
        site.sandbox.faults.add("api", truncate=True)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            site.get("/v1/bank-accounts", token)

    def test_logout_answers_204(self, site):
        token = site.tokens()["refresh_token"]
        assert site.post("logout", refresh_token=token).status_code == 204

    def test_no_query_is_logged(self, site, caplog):
        caplog.set_level(logging.DEBUG, "everifin_django")
        caplog.set_level(logging.DEBUG, "django.server")
        # The line is written after the answer is out, by the thread that gave it.
        is_written = threading.Event()

        def note(record: logging.LogRecord) -> bool:
            if "/openid-connect/auth" in record.getMessage():
                is_written.set()
            return True

        logger = logging.getLogger("everifin_django.sandbox")
        logger.addFilter(note)
        try:
            requests.get(site.authorization_url(state="canary"), timeout=5)
            assert is_written.wait(60)
        finally:
            logger.removeFilter(note)
        assert "canary" not in "".join(record.getMessage() for record in caplog.records)

    def test_a_stopped_server_hangs_up(self):
        with requests.Session() as session:
            with serve(Sandbox()) as server:
                assert session.get(f"{server.url}/_sandbox/state", timeout=5).ok
            with pytest.raises(requests.exceptions.ConnectionError):
                session.get(f"{server.url}/_sandbox/state", timeout=5)

    def test_the_url_others_use_can_be_given(self):
        with serve(Sandbox(), url="http://sandbox.test:9000/") as server:
            assert server.sandbox.issuer.startswith("http://sandbox.test:9000/auth/")

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("127.0.0.1", True),
            ("127.8.8.8", True),
            ("::1", True),
            ("localhost", True),
            ("0.0.0.0", False),  # noqa: S104 - nothing listens there
            ("192.0.2.1", False),
            ("localhost.evil.test", False),
        ],
    )
    def test_loopback_is_this_machine_only(self, host, expected):
        assert is_loopback(host) is expected


class TestCommand:
    def call(self, *arguments: str) -> str:
        output = io.StringIO()
        call_command(Command(), *arguments, stdout=output)
        return output.getvalue()

    def test_it_runs_with_debug_only(self):
        with override_settings(DEBUG=False), pytest.raises(CommandError, match="DEBUG"):
            self.call()

    @override_settings(DEBUG=True)
    def test_it_listens_to_this_machine_only(self):
        with pytest.raises(CommandError, match="--allow-remote"):
            self.call("--host", "192.0.2.1")

    @override_settings(DEBUG=True)
    def test_a_taken_port_is_explained(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            with pytest.raises(CommandError, match=f"port {port}: .*--port 0"):
                self.call("--port", port)

    @override_settings(DEBUG=True)
    def test_a_file_that_cannot_be_written_is_explained(self, tmp_path):
        with pytest.raises(CommandError, match="Cannot write"):
            self.call("--data", str(tmp_path / "missing" / "file"))

    @override_settings(DEBUG=True)
    def test_what_is_not_installed_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "everifin_django.testing.sandbox", None)
        with pytest.raises(CommandError, match="everifin-django\\[sandbox\\]"):
            self.call()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_prints_what_to_paste_and_stops_when_told(self, number, tmp_path):
        data = tmp_path / "data.sqlite3"
        options = ["--port", "0", "--data", str(data), "--client-id", "me", "--rotation", "off"]
        process = subprocess.Popen(
            [sys.executable, "-c", START, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            printed = ""
            while "Quit" not in printed:
                line = process.stdout.readline() if process.stdout else ""
                assert line, printed
                printed += line
            (url,) = re.findall(r'EVERIFIN_IDP_URL = "(.+)"', printed)
            assert requests.get(f"{url}/_sandbox/state", timeout=5).ok
            process.send_signal(number)
            rest, _ = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0
        assert "has stopped" in rest
        assert 'EVERIFIN_CLIENT_ID = "me"' in printed
        assert "alice / alice" in printed
        assert f"{url}/_sandbox/" in printed
        if os.name == "posix":
            assert data.stat().st_mode & 0o077 == 0

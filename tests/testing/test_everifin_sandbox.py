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
from pathlib import Path
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


class TestBorders:
    """Another web page must not use it through the browser of the developer who opens that page."""

    FORM = {"username": "nina", "password": "nina", "bank": "eftdemo1"}

    @pytest.mark.parametrize(
        "origin",
        ["null", "https://evil.test", "http://127.0.0.1:1", "http://localhost", "x", ""],
    )
    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/_sandbox/end-sessions",
            "/_sandbox/faults",
            "/auth/realms/everifin_app/login-actions/consent",
        ],
    )
    def test_a_form_of_another_page_does_nothing(self, site, path, origin):
        site.tokens()
        url, headers = f"{site.sandbox.idp_url}{path}", {"Origin": origin}
        answer = requests.post(url, self.FORM, headers=headers, timeout=5)
        assert answer.status_code == 403
        assert "Nothing was done" in answer.text
        assert site.sandbox.live_sessions() == 1
        assert not list(site.sandbox.faults)

    def test_its_own_forms_work_and_browsers_name_their_origin(self, site):
        url = site.sandbox.idp_url
        policy = requests.get(url, timeout=5).headers["Referrer-Policy"]
        assert policy == "same-origin"  # else browsers send "null"
        answer = requests.post(f"{url}/", self.FORM, headers={"Origin": url}, timeout=5)
        assert "is added" in answer.text

    @pytest.mark.parametrize(
        "host", ["evil.test", "evil.test:8001", "localhost.evil.test", "a@127.0.0.1", "", "[", "ž"]
    )
    @pytest.mark.parametrize("path", ["/", "/_sandbox/state", "/v1/bank-accounts"])
    def test_a_name_that_was_pointed_here_is_refused(self, site, host, path):
        headers = {"Host": host.encode()}
        url = f"{site.sandbox.idp_url}{path}"
        assert requests.get(url, headers=headers, timeout=5).status_code in (400, 421)

    @pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:5", "192.0.2.7:8001"])
    def test_what_only_this_machine_can_be_called_is_not(self, site, host):
        url = f"{site.sandbox.idp_url}/_sandbox/state"
        assert requests.get(url, headers={"Host": host}, timeout=5).ok

    def test_the_name_of_its_url_is_its_own(self, site):
        site.sandbox._api_url = "http://sandbox:9000"
        url = f"{site.sandbox.idp_url}/_sandbox/state"
        assert requests.get(url, headers={"Host": "sandbox:9000"}, timeout=5).ok


def test_a_script_without_a_django_site_can_use_it():
    """The documented one."""
    page = (Path(__file__).parents[2] / "docs/reference/sandbox.md").read_text(encoding="utf-8")
    [script] = re.findall(r"^```python script\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    clean = {name: text for name, text in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=clean,
        timeout=60,
    )
    assert (ran.stdout, ran.returncode) == ("3\n", 0), ran.stderr


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
    @pytest.mark.parametrize(
        "url", ["", "/callback/", "shop.test/back", "https://shop.test/#x", "https://shop.test/\n"]
    )
    def test_what_is_no_redirect_uri_is_named(self, url):
        with pytest.raises(CommandError, match="--redirect-uri takes a whole URL"):
            self.call("--redirect-uri", url)

    @override_settings(DEBUG=True)
    def test_what_is_not_installed_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "everifin_django.testing.sandbox", None)
        with pytest.raises(CommandError, match="everifin-django\\[sandbox\\]"):
            self.call()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_prints_what_to_paste_and_stops_when_told(self, number, tmp_path):
        data = tmp_path / "data.sqlite3"
        options = ["--port", "0", "--data", str(data), "--client-id", "me", "--rotation", "off"]
        options += ["--redirect-uri", "https://shop.test/back", "--require-pkce"]
        options += ["--redirect-uri", "shop.app://back", "--refresh-token-seconds", "60"]
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
            self.ask_for_logins(url)
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

    def ask_for_logins(self, url: str) -> None:
        """The options of redirect URIs and PKCE are in effect."""
        asked = {"client_id": "me", "response_type": "code", "scope": "openid", "state": "s"}
        address = f"{url}/auth/realms/everifin_app/protocol/openid-connect/auth"
        pkce = {"code_challenge": "x" * 43, "code_challenge_method": "S256"}
        for back in ("https://shop.test/back", "shop.app://back"):
            query = {**asked, **pkce, "redirect_uri": back}
            assert "Log in" in requests.get(address, query, timeout=5).text
            del query["code_challenge"], query["code_challenge_method"]
            answer = requests.get(address, query, timeout=5, allow_redirects=False)
            assert "error=invalid_request" in answer.headers["Location"]
        query = {**asked, **pkce, "redirect_uri": "https://shop.test/?a=%26"}
        page = requests.get(address, query, timeout=5).text
        assert "It was https://shop.test/?a=%26." in page
        assert "--redirect-uri" in page

"""``manage.py demo``: the example site and the sandbox, to click through or to walk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import requests
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from everifin_django.conf import SETTINGS
from scripts.demo.management.commands.demo_site import LOGIN
from scripts.demo.walk import Walk
from scripts.ports import HOST, unused_port

START_SECONDS = 120
STOP_SECONDS = 10
TOKEN_SECONDS = 300
WALK_TOKEN_SECONDS = 4
MANAGE = Path(__file__).resolve().parents[4] / "manage.py"
LAST_WORDS = 2000


class Command(BaseCommand):
    help = (
        "Starts the example site and the sandbox. With --walk it visits the site by itself, "
        "says what it saw, and stops."
    )
    # The process that serves the site runs them, with the settings that are made here.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="Of the site; 0: any free one.")
        parser.add_argument("--sandbox-port", type=int, default=8001, help="Of the sandbox.")
        parser.add_argument("--walk", action="store_true", help="Visit the site without a person.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEBUG:
            raise CommandError("The demo lets anybody in, so it runs only with DEBUG=1.")
        is_walk: bool = options["walk"]
        token_seconds = WALK_TOKEN_SECONDS if is_walk else TOKEN_SECONDS
        site_port = free_port(options["port"], "--port", is_any_welcome=is_walk)
        sandbox_port = free_port(options["sandbox_port"], "--sandbox-port", is_any_welcome=is_walk)
        try:
            with (
                interrupted_by(signal.SIGTERM),
                fake_everifin(sandbox_port, token_seconds) as sandbox,
                example_site(site_port, sandbox) as site,
            ):
                (self._walk if is_walk else self._wait)(site, sandbox)
        except KeyboardInterrupt:
            if is_walk:
                raise CommandError("The walk was stopped.") from None
            self._say("Stopped.")

    def _walk(self, site: Site, sandbox: Any) -> None:
        self._say(f"The site is at {site.url}, the sandbox at {sandbox.idp_url}.\n")
        walk = Walk.begin(site.url, sandbox.idp_url, token_seconds=sandbox.access_token_seconds)
        if walk.run(self._say):
            raise CommandError(f"The walk failed. The site's last words:\n{site.last_words()}")

    def _wait(self, site: Site, sandbox: Any) -> None:
        logins = " or ".join(f"{name} / {word}" for name, word in sandbox.demo_logins.items())
        self._say(f"""
The example site:      {site.url}/
The sandbox:           {sandbox.idp_url}/_sandbox/ (look inside, break things)

Log in at Everifin as  {logins}
Log in at the site as  {LOGIN} / {LOGIN}, also for {site.url}/admin/

Quit with Ctrl-C.
""")
        # A signal that another thread took is noticed when this one wakes up.
        while site.process.poll() is None:
            time.sleep(0.5)
        raise CommandError(f"The site stopped by itself. Its last words:\n{site.last_words()}")

    def _say(self, text: str) -> None:
        # A page's words may hold letters that this terminal cannot show.
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        self.stdout.write(text.encode(encoding, "replace").decode(encoding))
        self.stdout.flush()


@dataclass(frozen=True, slots=True)
class Site:
    """The example site, served by a process of its own. *url* has no slash at the end."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"The site did not start:\n{self.last_words()}")
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-LAST_WORDS:]

    def _answers(self) -> bool:
        with requests.Session() as session:
            session.trust_env = False
            try:
                return session.get(f"{self.url}/login/", timeout=5).ok
            except requests.RequestException:
                return False


@contextmanager
def example_site(port: int, sandbox: Any) -> Iterator[Site]:
    """Serve the example site until the block ends, on a database that is gone then as well."""
    with tempfile.TemporaryDirectory(prefix="everifin-demo-") as directory:
        log = Path(directory) / "site.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(MANAGE), "demo_site", f"{HOST}:{port}"],
                env=environment(sandbox, Path(directory)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the other
            )
        site = Site(f"http://{HOST}:{port}", process, log)
        try:
            site.await_start()
            yield site
        finally:
            site.stop()


def environment(sandbox: Any, directory: Path) -> dict[str, str]:
    """Return the site's: ours, but with *sandbox* for Everifin; a DATABASE_URL of ours counts."""
    left_out = {*SETTINGS, "ALLOWED_HOSTS", "HTTPS"} - {"EVERIFIN_ENCRYPTION_KEYS"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {
        "DATABASE_URL": f"sqlite:///{directory / 'db.sqlite3'}",
        **kept,
        "DJANGO_SETTINGS_MODULE": "scripts.demo.settings",
        "DEBUG": "1",
        "EVERIFIN_IDP_URL": sandbox.idp_url,
        "EVERIFIN_API_URL": sandbox.api_url,
        "EVERIFIN_REALM": sandbox.realm,
        "EVERIFIN_CLIENT_ID": sandbox.client_id,
        "EVERIFIN_CLIENT_SECRET": sandbox.client_secret,
    }


@contextmanager
def fake_everifin(port: int, token_seconds: int) -> Iterator[Any]:
    """Serve a sandbox until the block ends, in threads of this process."""
    # Imported when it runs: without the extra "sandbox" the command can still say what it does.
    from everifin_django.testing.sandbox import Sandbox
    from everifin_django.testing.sandbox.server import serve

    with serve(Sandbox(access_token_seconds=token_seconds), HOST, port) as server:
        yield server.sandbox


def free_port(wanted: int, option: str, *, is_any_welcome: bool) -> int:
    """Return *wanted* if nobody listens there, else another one if that is welcome as well."""
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or unused_port()))
        except OSError as error:
            if not is_any_welcome:
                raise CommandError(
                    f"Port {wanted} cannot be used: {error.strerror}. "
                    f"Choose another one with {option}, or {option} 0 for any free one."
                ) from error
            return free_port(0, option, is_any_welcome=False)
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Make the signal *number* do what Ctrl-C does."""

    def interrupt(*args: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)

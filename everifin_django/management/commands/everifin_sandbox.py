"""Serve the sandbox on this machine, to develop against."""

from __future__ import annotations

import signal
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

ROTATIONS = ("strict", "default", "off")


class Command(BaseCommand):
    help = (
        "Run a sandbox of Everifin with demo data: login page, tokens, bank API. "
        "Not for production."
    )
    # A site whose settings are not complete yet is the very one that needs what this prints.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="IP address to listen on.")
        parser.add_argument("--port", type=int, default=8001, help="Port; 0 picks a free one.")
        parser.add_argument("--url", default="", help="Its public URL, if it is not host and port.")
        parser.add_argument("--data", default=":memory:", help="File to store its state in.")
        parser.add_argument("--rotation", choices=ROTATIONS, default="strict")
        parser.add_argument("--access-token-seconds", type=int, default=300)
        parser.add_argument("--refresh-token-seconds", type=int, default=1800)
        parser.add_argument(
            "--redirect-uri",
            action="append",
            default=[],
            metavar="URL",
            help="Where it may send visitors back to, beside this machine; repeatable.",
        )
        parser.add_argument(
            "--require-pkce", action="store_true", help="Refuse a login without PKCE."
        )
        parser.add_argument("--client-id", default="everifin-sandbox")
        parser.add_argument("--client-secret", default="everifin-sandbox-secret")
        parser.add_argument("--realm", default="everifin_app")
        parser.add_argument(
            "--allow-remote",
            action="store_true",
            help="Listen where other machines can reach it, so that anybody can use its switches.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEBUG:
            raise CommandError(
                "The sandbox lets anybody in, so it runs only where DEBUG is True. "
                "Set DEBUG = True in the settings of your development machine."
            )
        server_module, sandbox_class = _load()
        if not options["allow_remote"] and not server_module.is_loopback(options["host"]):
            raise CommandError(
                f"Other machines could reach {options['host']}. Use --host 127.0.0.1, "
                "or add --allow-remote if that is what you want."
            )
        sandbox = sandbox_class(
            realm=options["realm"],
            client_id=options["client_id"],
            client_secret=options["client_secret"],
            rotation=options["rotation"],
            access_token_seconds=options["access_token_seconds"],
            refresh_token_seconds=options["refresh_token_seconds"],
            redirect_uris=_urls(options["redirect_uri"]),
            require_pkce=options["require_pkce"],
            data=_private_file(options["data"]),
        )
        with _stop_signals() as stop:
            try:
                with server_module.serve(
                    sandbox, options["host"], options["port"], url=options["url"]
                ):
                    self.stdout.write(_introduction(sandbox))
                    self.stdout.flush()
                    # A signal that another thread took is noticed when this one wakes up.
                    while not stop.wait(1):
                        pass
            except OSError as error:
                raise CommandError(
                    f"Cannot listen on {options['host']} port {options['port']}: {error.strerror}. "
                    "Choose another one with --port, or --port 0 for any free one."
                ) from error
        self.stdout.write("The sandbox has stopped.")


def _load() -> tuple[Any, Any]:
    # Imported when it runs: a site without the extra has this command too.
    try:
        from everifin_django.testing.sandbox import Sandbox, server
    except ModuleNotFoundError as error:
        raise CommandError(
            f"The sandbox needs {error.name}. Install it: pip install 'everifin-django[sandbox]'"
        ) from error
    return server, Sandbox


def _urls(given: list[str]) -> list[str]:
    """A path alone, or a space too many, would match nothing for ever."""
    for url in given:
        parts = urlsplit(url)
        if not (parts.scheme and parts.netloc) or parts.fragment or not url.isprintable():
            raise CommandError(f"--redirect-uri takes a whole URL without a fragment, not {url!r}.")
    return given


def _private_file(path: str) -> str:
    """Return *path* after making the file, readable by its owner only."""
    if path != ":memory:":
        try:
            Path(path).touch(mode=0o600)
        except OSError as error:
            raise CommandError(f"Cannot write to {path}: {error.strerror}.") from error
    return path


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT (Ctrl-C) or SIGTERM sets."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _introduction(sandbox: Any) -> str:
    logins = ", ".join(f"{name} / {password}" for name, password in sandbox.demo_logins.items())
    return f"""\
The sandbox is running. Nothing in it is real.

Settings to paste:

    EVERIFIN_IDP_URL = "{sandbox.idp_url}"
    EVERIFIN_API_URL = "{sandbox.api_url}"
    EVERIFIN_REALM = "{sandbox.realm}"
    EVERIFIN_CLIENT_ID = "{sandbox.client_id}"
    EVERIFIN_CLIENT_SECRET = "{sandbox.client_secret}"

Demo logins (username / password): {logins}
Look inside and break things: {sandbox.idp_url}/_sandbox/

Quit with Ctrl-C.
"""

"""A visitor of the example site, who does what pages ask, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from django.utils import timezone

from everifin_django.models import BankToken
from scripts.demo.browser import Browser, label
from tests.providers.keycloak.providers import Provider
from tests.providers.keycloak.site import Site, example_site

LONGEST_SECONDS = 120
ACCOUNTS, LOGIN, CONNECT = "/accounts/", "/everifin/login/", "/everifin/connect/"
PLACES = {LOGIN: "asked to log in", CONNECT: "asked to connect"}
MOST_PAGES = 5


class Sites:
    """The example sites under one server that use one provider, each started when it is needed."""

    def __init__(self, server: str, provider: Provider, directory: Path) -> None:
        self._server = server
        self.provider = provider
        self._directory = directory
        self._running: dict[tuple[tuple[str, str], ...], Site] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def with_settings(self, settings: Mapping[str, str]) -> Site:
        key = tuple(sorted(settings.items()))
        if key not in self._running:
            client = self.provider.contract
            told = {
                "EVERIFIN_CLIENT_ID": client.client_id,
                "EVERIFIN_CLIENT_SECRET": client.client_secret,
                **self.provider.settings(),
                **settings,
            }
            log = self._directory / f"log-{len(self._running)}"
            self._running[key] = self._stack.enter_context(example_site(self._server, told, log))
        return self._running[key]


class Visitor:
    """A visitor of *site*, known to its *provider* as alice."""

    def __init__(self, site: Site, provider: Provider) -> None:
        self.site = site
        self.provider = provider
        self.browser = Browser(time.monotonic() + LONGEST_SECONDS)
        self.asked_for: list[str] = []
        self._log_read = len(site.log.read_bytes())

    def open(self, path: str) -> str:
        """Open a page of the site; return what is seen there."""
        self.browser.open(self.site.url + path)
        return self.sees()

    def sees(self) -> str:
        """Name the page that the visitor is on."""
        page = self.browser.page
        if page.path == ACCOUNTS and page.all("iban"):
            return "accounts"
        if page.path == "/":
            return "logged in" if "Log out" in page.buttons else "logged out"
        return PLACES.get(page.path) or f"{page.status} {page.path}"

    def sign_in(self, button: str, answer: str = "Yes") -> str:
        """Press a button of the site, do what the provider asks, and return what is seen then."""
        self.asked_for = []
        page = self.browser.press(button)
        for _ in range(MOST_PAGES):
            if page.url.startswith(self.site.url):
                return self.sees()
            if answer in page.buttons:
                self.asked_for.append("consent")
                page = self.browser.press(answer)
                continue
            self.asked_for.append("password")
            log_in = label(page.button(beside="password"))
            page = self.browser.press(log_in, username="alice", password="alice")
        raise AssertionError(f"{MOST_PAGES} pages lead nowhere: {page.url.partition('?')[0]}")

    def log_in(self) -> str:
        self.open("/")
        return self.sign_in("Log in with Everifin")

    def log_in_here(self, user: Any, password: str) -> None:
        """With a password of the site."""
        self.open("/login/")
        self.browser.press("Log in", username=user.get_username(), password=password)
        assert self.sees() == "logged in", self.sees()

    def accounts_later(self) -> str:
        """Ask for the accounts once the access token has run out."""
        self.run_out()
        return self.open(ACCOUNTS)

    def run_out(self) -> None:
        """Let the access token run out, which is what waiting does."""
        BankToken.objects.update(
            issued_at=timezone.now() - timedelta(minutes=6),
            access_expires_at=timezone.now(),
            retry_after=None,
        )

    def stored(self) -> str:
        """Say what the site has of the connection."""
        row = BankToken.objects.first()
        return "nothing stored" if row is None else f"stored: {row.get_status_display().lower()}"

    def version(self) -> int:
        return BankToken.objects.get().token_version

    def sessions_there(self) -> str:
        return f"sessions there: {self.provider.live_sessions()}"

    def grants_there(self) -> str:
        return f"grants there: {self.provider.offline_sessions()}"

    def logged(self) -> str:
        """What the site has told its operator since the visit began."""
        return self.site.log.read_bytes()[self._log_read :].decode(errors="replace")

    def close(self) -> None:
        self.browser.close()

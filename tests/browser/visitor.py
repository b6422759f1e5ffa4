"""A person with a browser profile and tabs, and the site that they visit."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Error, Page, Request, Response

from scripts.demo.management.commands.demo import MANAGE, Site, environment
from scripts.ports import HOST, unused_port

LONGEST_SECONDS = 60
SESSION = "sessionid"


@dataclass(frozen=True)
class Served:
    """A running site. *sandbox* runs in this process."""

    port: int
    sandbox: Any

    def url(self, host: str) -> str:
        return f"http://{host}:{self.port}"


@contextmanager
def served(sandbox: Any, directory: Path, changes: Mapping[str, str]) -> Iterator[Served]:
    """Serve the site of tests/browser/settings.py until the block ends."""
    port, log = unused_port(), directory / "site.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(MANAGE), "demo_site", f"{HOST}:{port}"],
            env={
                **environment(sandbox, directory),
                # Not the one on which the tests run.
                "DATABASE_URL": f"sqlite:///{directory / 'db.sqlite3'}",
                "DJANGO_SETTINGS_MODULE": "tests.browser.settings",
                **changes,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    site = Site(f"http://{HOST}:{port}", process, log)
    try:
        site.await_start()
        yield Served(port, sandbox)
    finally:
        site.stop()


@dataclass
class Profile:
    """What one person has open: tabs that share their cookies."""

    context: BrowserContext
    served: Served
    person: str
    host: str
    violations: list[str] = field(default_factory=list)

    @property
    def site(self) -> str:
        return self.served.url(self.host)

    def tab(self, path: str = "/") -> Tab:
        tab = Tab(self, self.context.new_page())
        tab.open(path)
        return tab

    def session(self) -> str:
        """Return the session cookie of the site, an empty string without one."""
        found = [one for one in self.context.cookies(self.site) if one["name"] == SESSION]
        return found[0]["value"] if found else ""


class Tab:
    """One tab, which remembers what was asked for and what came."""

    def __init__(self, profile: Profile, page: Page) -> None:
        self.profile, self.page = profile, page
        self.callbacks: list[str] = []
        self.status = 0
        page.on("console", self._heard)
        page.on("request", self._asked)
        page.on("response", self._answered)

    def open(self, url: str) -> None:
        """Go to *url*, also where the page is just about to reload itself."""
        for is_last in (False, False, True):
            try:
                self.page.goto(url if "://" in url else self.profile.site + url)
            except Error as error:
                if is_last or "interrupted by another navigation" not in str(error):
                    raise
            else:
                return

    def press(self, button: str) -> None:
        """Press the button that reads so, and wait until another page has come."""
        with self.page.expect_navigation():
            self.button(button).click()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True).first

    def leave(self, button: str) -> None:
        """Press a button that leads to Everifin."""
        self.button(button).click()
        self.at_everifin()

    def at_everifin(self) -> None:
        self.page.wait_for_url(re.compile(re.escape(self.profile.served.sandbox.idp_url)))

    def begin_login(self, path: str = "/everifin/login/") -> None:
        """Stop where Everifin asks for consent."""
        self.open(path)
        self.leave("Log in with Everifin")
        self.log_in_there()

    def log_in_there(self) -> None:
        for name in ("username", "password"):
            self.page.locator(f"#{name}").fill(self.profile.person)
        self.press("Log in")

    def answer(self, answer: str = "Yes") -> None:
        self.button(answer).click()
        self.back()

    def answer_elsewhere(self) -> str:
        """Say yes without being sent back; return the URL that this would lead to."""
        form = self.page.locator("#kc-grant")
        pending = form.locator("[name=pending]").input_value()
        response = self.profile.context.request.post(
            urljoin(self.page.url, form.get_attribute("action")),
            form={"pending": pending, "accept": "yes"},
            max_redirects=0,
        )
        return response.headers["location"]

    def back(self) -> None:
        """Wait for the site."""
        self.page.wait_for_url(self.profile.site + "/**")

    def log_in(self, path: str = "/everifin/login/?next=/accounts/") -> None:
        self.begin_login(path)
        self.answer()

    @property
    def path(self) -> str:
        assert self.page.url.startswith(self.profile.site), self.page.url
        return urlsplit(self.page.url).path

    @property
    def text(self) -> str:
        return self.page.inner_text("body")

    def is_logged_in(self) -> bool:
        """Ask in a tab of its own."""
        other = self.profile.tab("/scripted/")
        try:
            return other.page.inner_text("h1") == "Logged in"
        finally:
            other.page.close()

    def _heard(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.profile.violations.append(message.text)

    def _asked(self, request: Request) -> None:
        if urlsplit(request.url).path == "/everifin/callback/":
            self.callbacks.append(request.url)

    def _answered(self, response: Response) -> None:
        if response.request.is_navigation_request():
            self.status = response.status

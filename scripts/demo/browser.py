"""A browser without a window, for the walk and for tests: MechanicalSoup, and what a page shows."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import mechanicalsoup
import requests
from bs4 import BeautifulSoup, Tag
from requests.cookies import RequestsCookieJar

CALL_SECONDS = 60


class Page:
    """What a response shows: its forms, buttons and links, and strings by their CSS class."""

    def __init__(self, response: requests.Response) -> None:
        mechanicalsoup.Browser.add_soup(response, {"features": "lxml"})
        self.url = response.url or ""
        self.status = response.status_code
        self.headers = response.headers
        soup: BeautifulSoup | None = response.soup  # type: ignore[attr-defined]
        self.soup = soup or BeautifulSoup("", "lxml")

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def heading(self) -> str:
        return next(iter(self.select("h1")), "")

    @property
    def buttons(self) -> list[str]:
        return [label(button) for button in self.soup.select(BUTTONS)]

    @property
    def links(self) -> list[tuple[str, str]]:
        """Return the words and the URL of each link."""
        found = self.soup.select("a[href]")
        return [(words(link), urljoin(self.url, str(link["href"]))) for link in found]

    @property
    def refresh(self) -> str:
        """Return the URL that the page goes on to at once, an empty string without one."""
        tag = self.soup.select_one('meta[http-equiv="refresh"]')
        seconds, _, url = str(tag["content"]).partition(";url=") if tag else ("", "", "")
        return urljoin(self.url, url) if seconds == "0" and url else ""

    def select(self, selector: str) -> list[str]:
        """Return the words of each element that this CSS selector finds."""
        return [words(element) for element in self.soup.select(selector)]

    def all(self, css_class: str) -> list[str]:
        return self.select(f".{css_class}")

    def first(self, css_class: str) -> str:
        return next(iter(self.all(css_class)), "nothing")

    def button(self, *, reads: str | None = None, name: str = "", beside: str | None = None) -> Tag:
        """
        Return the first button that *reads* so, has this *name*, or is *beside* a field.

        Errors: LookupError if there is none.
        """
        for button in self.soup.select(BUTTONS):
            fields = {field["name"] for field in button.find_parent("form").select("[name]")}  # type: ignore[union-attr]
            if label(button) == reads or name == button.get("name") or beside in fields:
                return button
        wanted = reads or name or f"beside {beside}"
        raise LookupError(f"there is no button {wanted!r} on {self}")

    def submission(self, button: Tag, filled_in: dict[str, str]) -> dict[str, Any]:
        """Return the request that pressing *button* sends, as arguments of ``requests.request``."""
        form = mechanicalsoup.Form(button.find_parent("form"))
        for name, value in filled_in.items():
            form.set(name, value)
        form.choose_submit(button)
        found: dict[str, Any] = mechanicalsoup.Browser.get_request_kwargs(form.form, self.url)
        return found

    def __str__(self) -> str:
        return f"{self.path} ({self.status}, {self.heading!r})"


BUTTONS = "form button:not([type=button], [type=reset]), form input[type=submit]"


def words(element: Tag) -> str:
    return " ".join(element.get_text().split())


def label(button: Tag) -> str:
    return words(button) or str(button.get("value", ""))


class LoopbackCookies(RequestsCookieJar):
    """As in a browser, this machine counts as secure, which cookies of a login page may ask for."""

    def set_cookie(self, cookie: Any, *args: Any, **kwargs: Any) -> None:
        cookie.secure = cookie.secure and not cookie.domain.startswith("127.")
        super().set_cookie(cookie, *args, **kwargs)


class Browser:
    """
    Units: *until* is a time of ``time.monotonic()``, after which no call is made any more.

    Errors: LookupError for a button or link that is not on the page; those of requests.
    """

    def __init__(self, until: float) -> None:
        self.page = Page(requests.Response())
        self._until = until
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.cookies = LoopbackCookies()
        self._session.headers["Accept"] = "text/html"

    def open(self, url: str) -> Page:
        return self._send(method="GET", url=url)

    def press(self, button: str, **filled_in: str) -> Page:
        """Fill in the form that has *button*, press it, and return the page that comes."""
        return self._send(**self.page.submission(self.page.button(reads=button), filled_in))

    def cookie(self, name: str) -> str | None:
        """Return the value of the cookie of this name, as the site of the page set it."""
        host = urlsplit(self.page.url).hostname or ""
        return self._session.cookies.get(name, domain=host)

    def close(self) -> None:
        self._session.close()

    def _send(self, **request: Any) -> Page:
        if self.page.url:
            request["headers"] = {"Referer": self.page.url}
        timeout = min(CALL_SECONDS, max(0.1, self._until - time.monotonic()))
        self.page = Page(self._session.request(**request, timeout=timeout))
        return self.open(self.page.refresh) if self.page.refresh else self.page

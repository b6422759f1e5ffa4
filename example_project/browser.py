"""A browser without a window: keeps cookies, follows redirects, reads pages, fills in forms."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.cookies import RequestsCookieJar

CALL_SECONDS = 15


@dataclass(slots=True)
class Form:
    """A form of a page. *buttons* maps the words on each button to what pressing it sends."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(slots=True)
class Page:
    url: str
    status: int
    headers: Any
    heading: str
    forms: list[Form]
    links: list[tuple[str, str]]
    texts: dict[str, list[str]]

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def buttons(self) -> list[str]:
        return [name for form in self.forms for name in form.buttons]

    def all(self, css_class: str) -> list[str]:
        """Return the texts of all elements of this class."""
        return self.texts.get(css_class, [])

    def first(self, css_class: str) -> str:
        return next(iter(self.all(css_class)), "nothing")


class _Cookies(RequestsCookieJar):
    """As a browser's: this machine counts as secure, which cookies of a login page may ask for."""

    def set_cookie(self, cookie: Any, *args: Any, **kwargs: Any) -> None:
        cookie.secure = cookie.secure and not cookie.domain.startswith("127.")
        super().set_cookie(cookie, *args, **kwargs)


class Browser:
    """
    Units: *until* is a moment of ``time.monotonic()``, after which no call is made any more.

    Errors: LookupError for a button or link that is not on the page; those of requests.
    """

    def __init__(self, until: float) -> None:
        self._until = until
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.cookies = _Cookies()
        self._session.headers["Accept"] = "text/html"
        self.page = Page("", 0, {}, "", [], [], {})

    def open(self, url: str) -> Page:
        return self._go("GET", url)

    def follow(self, words: str) -> Page:
        """Follow the first link that reads *words*."""
        for text, url in self.page.links:
            if text == words:
                return self._go("GET", url)
        raise LookupError(f"there is no link {words!r} on {self._here()}")

    def press(self, button: str, **filled_in: str) -> Page:
        """Fill in the form that has *button*, press it, and return the page that comes."""
        for form in self.page.forms:
            if button in form.buttons:
                return self._send(form, form.fields | filled_in | form.buttons[button])
        raise LookupError(f"there is no button {button!r} on {self._here()}")

    def cookie(self, name: str) -> str | None:
        """Return the value of the cookie of this name, as the site of the page set it."""
        host = urlsplit(self.page.url).hostname or ""
        return self._session.cookies.get(name, domain=host)

    def close(self) -> None:
        self._session.close()

    def _send(self, form: Form, content: dict[str, str]) -> Page:
        url = urljoin(self.page.url, form.action)
        if form.method == "get":
            return self._go("GET", url, params=content)
        return self._go("POST", url, data=content)

    def _go(self, method: str, url: str, **content: Any) -> Page:
        target = urljoin(self.page.url, url)
        response = self._session.request(
            method,
            target,
            headers={"Referer": self.page.url} if self.page.url else {},
            timeout=min(CALL_SECONDS, max(0.1, self._until - time.monotonic())),
            **content,
        )
        self.page = read(response)
        return self.page

    def _here(self) -> str:
        return f"{self.page.path} ({self.page.status}, {self.page.heading!r})"


def read(response: requests.Response) -> Page:
    reader = _Reader()
    reader.feed(response.text)
    reader.close()
    links = [(text, urljoin(response.url, url)) for text, url in reader.links]
    return Page(
        url=response.url,
        status=response.status_code,
        headers=response.headers,
        heading=next(iter(reader.texts.get("h1", [])), ""),
        forms=reader.forms,
        links=links,
        texts=reader.texts,
    )


VOID = frozenset({"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"})


class _Reader(HTMLParser):
    """Collects forms, links, and the texts of elements by their classes; of headings by name."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self._form: Form | None = None
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self._open.append((tag, attributes, []))
        if tag == "form":
            method = attributes.get("method", "get").lower()
            self._form = Form(attributes.get("action", ""), method)
            self.forms.append(self._form)
        elif self._form is not None and attributes.get("name"):
            self._fill(self._form, tag, attributes)
        elif self._form is not None and tag == "option" and self._select:
            self._choose(self._form, attributes)

    def handle_data(self, data: str) -> None:
        for _, _, pieces in self._open:
            pieces.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag not in [name for name, _, _ in self._open]:
            return
        while True:
            name, attributes, pieces = self._open.pop()
            self._finish(name, attributes, " ".join("".join(pieces).split()))
            if name == tag:
                return

    def _fill(self, form: Form, tag: str, attributes: dict[str, str]) -> None:
        kind = attributes.get("type", "text")
        if tag == "select":
            self._select = attributes["name"]
        elif tag == "input" and kind == "submit":
            form.buttons[attributes.get("value", "")] = {
                attributes["name"]: attributes.get("value", "")
            }
        elif tag == "input" and (kind not in {"checkbox", "radio"} or "checked" in attributes):
            form.fields[attributes["name"]] = attributes.get("value", "")

    def _choose(self, form: Form, attributes: dict[str, str]) -> None:
        if "selected" in attributes or self._select not in form.fields:
            form.fields[self._select] = attributes.get("value", "")

    def _finish(self, tag: str, attributes: dict[str, str], text: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "select":
            self._select = ""
        elif tag == "button" and self._form is not None:
            name = attributes.get("name")
            self._form.buttons[text] = {name: attributes.get("value", "")} if name else {}
        elif tag == "a" and "href" in attributes:
            self.links.append((text, attributes["href"]))
        names = attributes.get("class", "").split() + (["h1"] if tag == "h1" else [])
        for name in names:
            self.texts.setdefault(name, []).append(text)

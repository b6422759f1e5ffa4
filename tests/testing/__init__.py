"""A small site that speaks to the sandbox with requests alone, and a clock that stands still."""

from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import requests

from everifin_django.testing.sandbox import Sandbox

CALLBACK = "http://localhost:8000/everifin/callback/"
NOON = 1_795_435_200.0  # 2026-11-23 12:00 UTC


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    sandbox: Sandbox

    def endpoint(self, name: str) -> str:
        return f"{self.sandbox.issuer}/protocol/openid-connect/{name}"

    def authorization_url(self, **changes: str | None) -> str:
        parameters = {
            "client_id": self.sandbox.client_id,
            "redirect_uri": CALLBACK,
            "response_type": "code",
            "scope": "openid ais",
            "state": "a-state",
            "nonce": "a-nonce",
            **changes,
        }
        given = {name: value for name, value in parameters.items() if value is not None}
        return f"{self.endpoint('auth')}?{urlencode(given)}"

    def code(self, username: str = "alice", **changes: str | None) -> str:
        return query(self.sandbox.authorize(self.authorization_url(**changes), username))["code"]

    def post(self, name: str, **form: str) -> requests.Response:
        secrets = {
            "client_id": self.sandbox.client_id,
            "client_secret": self.sandbox.client_secret,
        }
        return requests.post(
            self.endpoint(name), data={**secrets, **form}, timeout=5, allow_redirects=False
        )

    def exchange(self, code: str, **form: str) -> requests.Response:
        form = {"grant_type": "authorization_code", "redirect_uri": CALLBACK, "code": code, **form}
        return self.post("token", **form)

    def tokens(self, username: str = "alice", **changes: str | None) -> dict[str, Any]:
        answer: dict[str, Any] = self.exchange(self.code(username, **changes)).json()
        return answer

    def refresh(self, refresh_token: str, **form: str) -> requests.Response:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token, **form}
        return self.post("token", **form)

    def get(self, path: str, token: str, **params: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(self.sandbox.api_url + path, params=params, headers=headers, timeout=5)


class Form(HTMLParser):
    """The form of a page with the given id: its action and its hidden fields."""

    def __init__(self, response: requests.Response, form_id: str) -> None:
        super().__init__()
        self.form_id, self.action, self.fields = form_id, "", dict[str, str]()
        self._is_inside = False
        self.feed(response.text)
        self.url = urljoin(response.url, self.action)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._is_inside = given.get("id") == self.form_id
            self.action = given["action"] if self._is_inside else self.action
        elif self._is_inside and given.get("type") == "hidden":
            self.fields[given["name"]] = given["value"]

    def submit(self, **fields: str) -> requests.Response:
        data = {**self.fields, **fields}
        return requests.post(self.url, data=data, timeout=5, allow_redirects=False)


def query(url: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}

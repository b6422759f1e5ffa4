"""Those who are asked: each an identity provider over HTTP, with its switches where it has any."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import requests
from bs4 import Tag

from everifin_django.testing.sandbox import Sandbox
from scripts.demo.browser import Page
from tests.providers.keycloak.server import Realm

CALL_SECONDS = 30
REDIRECT_URI = "http://localhost/everifin/callback/"
MOST_STEPS = 12


class NoSuchSwitchError(Exception):
    """The provider cannot be told to do this."""


class Switches(Protocol):
    def reset(self) -> None: ...
    def set_rotation(self, rotation: str) -> None: ...
    def end_sessions(self) -> None: ...
    def withdraw_consent(self) -> None: ...
    def disable_user(self) -> None: ...
    def rotate_key(self) -> None: ...
    def require_pkce(self) -> None: ...


@dataclass(frozen=True)
class Provider:
    """An identity provider, the client that is registered there, and somebody who can log in."""

    name: str
    issuer: str
    client_id: str
    client_secret: str
    switches: Switches
    username: str = "alice"
    password: str = "alice"
    redirect_uri: str = REDIRECT_URI

    def endpoint(self, name: str) -> str:
        return f"{self.issuer}/protocol/openid-connect/{name}"


class SandboxSwitches:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def reset(self) -> None:
        self.sandbox.rotation = "strict"
        self.sandbox.require_pkce = False

    def set_rotation(self, rotation: str) -> None:
        if rotation not in {"strict", "default"}:
            raise NoSuchSwitchError
        self.sandbox.rotation = rotation  # type: ignore[assignment]  # checked above

    def end_sessions(self) -> None:
        self.sandbox.end_sessions("alice")

    def withdraw_consent(self) -> None:
        self.sandbox.withdraw_consent("alice")

    def disable_user(self) -> None:
        raise NoSuchSwitchError

    def rotate_key(self) -> None:
        self.sandbox.rotate_signing_key()

    def require_pkce(self) -> None:
        self.sandbox.require_pkce = True


class KeycloakSwitches:
    def __init__(self, realm: Realm) -> None:
        self.realm = realm

    def reset(self) -> None:
        self.realm.set_rotation("strict")
        self.realm.set_client(attributes={"pkce.code.challenge.method": ""})
        self.realm.set_user("alice", enabled=True)
        self.realm.withdraw_consent("alice")

    def set_rotation(self, rotation: str) -> None:
        self.realm.set_rotation(rotation)

    def end_sessions(self) -> None:
        self.realm.end_sessions("alice")

    def withdraw_consent(self) -> None:
        self.realm.withdraw_consent("alice")

    def disable_user(self) -> None:
        self.realm.set_user("alice", enabled=False)

    def rotate_key(self) -> None:
        self.realm.rotate_key()

    def require_pkce(self) -> None:
        self.realm.set_client(attributes={"pkce.code.challenge.method": "S256"})


class NoSwitches:
    """Somebody else's: as it is."""

    def reset(self) -> None:
        """Nothing was changed."""

    def set_rotation(self, rotation: str) -> None:
        raise NoSuchSwitchError

    end_sessions = withdraw_consent = disable_user = rotate_key = require_pkce = lambda self: (
        self.set_rotation("")
    )


def from_sandbox(sandbox: Sandbox) -> Provider:
    return Provider(
        "sandbox",
        sandbox.issuer,
        sandbox.client_id,
        sandbox.client_secret,
        SandboxSwitches(sandbox),
    )


def from_keycloak(realm: Realm) -> Provider:
    name = "keycloak legacy" if realm.keycloak.is_legacy else "keycloak"
    client = realm.client
    return Provider(
        name, realm.issuer, client["clientId"], client["secret"], KeycloakSwitches(realm)
    )


def from_environment(environ: Mapping[str, str] = os.environ) -> Provider | None:
    """
    Return the provider that CONTRACT_IDP_URL names, None if it is not set.

    CONTRACT_REALM, CONTRACT_CLIENT_ID, CONTRACT_CLIENT_SECRET, CONTRACT_REDIRECT_URI,
    CONTRACT_USERNAME and CONTRACT_PASSWORD say the rest; the defaults are those of the sandbox.
    """
    if not environ.get("CONTRACT_IDP_URL"):
        return None

    def said(name: str, default: str) -> str:
        return environ.get(f"CONTRACT_{name}") or default

    return Provider(
        "other",
        f"{environ['CONTRACT_IDP_URL'].rstrip('/')}/auth/realms/{said('REALM', 'everifin_app')}",
        said("CLIENT_ID", "everifin-sandbox"),
        said("CLIENT_SECRET", "everifin-sandbox-secret"),
        NoSwitches(),
        said("USERNAME", "alice"),
        said("PASSWORD", "alice"),
        said("REDIRECT_URI", REDIRECT_URI),
    )


@dataclass(frozen=True)
class Back:
    """The visitor is sent back to the site."""

    parameters: dict[str, str]


class Visitor:
    """Somebody with a browser, and the site they use: what both can say to *provider*."""

    def __init__(self, provider: Provider, *, redirect_uri: str = "") -> None:
        self.provider = replace(provider, redirect_uri=redirect_uri or provider.redirect_uri)
        self.verifier = secrets.token_urlsafe(48)
        self.http = requests.Session()
        self.http.trust_env = False

    # The browser

    def open(self, endpoint: str = "auth", /, **changes: str | None) -> Page | Back:
        """Begin an authorization request; *changes* replaces parameters, None takes one out."""
        standard: dict[str, str | None] = {
            "client_id": self.provider.client_id,
            "redirect_uri": self.provider.redirect_uri,
            "response_type": "code",
            "scope": "openid ais",
            "state": "the-state",
            "nonce": "the-nonce",
            "code_challenge": self.challenge(),
            "code_challenge_method": "S256",
        }
        return self.go("GET", self.provider.endpoint(endpoint), parameters={**standard, **changes})

    def log_in(self, page: Page | Back, password: str | None = None) -> Page | Back:
        assert isinstance(page, Page), page
        filled_in = {
            "username": self.provider.username,
            "password": password or self.provider.password,
        }
        return self.send(page, page.button(beside="password"), filled_in)

    def decide(self, page: Page | Back, button: str) -> Page | Back:
        """Press the button of this name on the page that asks for consent."""
        assert isinstance(page, Page), page
        return self.send(page, page.button(name=button), {})

    def come_back(self, button: str = "accept", /, **changes: str | None) -> dict[str, str]:
        """Log in and decide; return what the visitor brings back."""
        return self._on(self.open(**changes), button)

    def agree(self, address: str) -> dict[str, str]:
        """Do the same where a site has sent the visitor."""
        return self._on(self.go("GET", address), "accept")

    def _on(self, answer: Page | Back, button: str) -> dict[str, str]:
        if isinstance(answer, Page):
            answer = self.log_in(answer)
        if isinstance(answer, Page):
            answer = self.decide(answer, button)
        assert isinstance(answer, Back), answer
        return answer.parameters

    def send(self, page: Page, button: Tag, filled_in: dict[str, str]) -> Page | Back:
        request = page.submission(button, filled_in)
        return self.go(request["method"].upper(), request["url"], form=dict(request["data"]))

    def go(
        self,
        method: str,
        url: str,
        *,
        parameters: Mapping[str, str | None] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> Page | Back:
        """Follow redirects until one leads to the site."""
        said = {name: value for name, value in (parameters or {}).items() if value is not None}
        target = f"{url}?{urlencode(said)}" if said else url
        for _ in range(MOST_STEPS):
            answer = self.http.request(
                method, target, data=form, timeout=CALL_SECONDS, allow_redirects=False
            )
            for cookie in self.http.cookies:
                # Browsers take this machine for secure, and Keycloak counts on that.
                cookie.secure = False
            if "Location" not in answer.headers:
                return Page(answer)
            target = urljoin(target, answer.headers["Location"])
            if target.startswith(self.provider.redirect_uri):
                parts = urlsplit(target)
                return Back(dict(parse_qsl(parts.query or parts.fragment)))
            method, form = "GET", None
        raise AssertionError(f"more than {MOST_STEPS} redirects")

    # The site

    def post(self, endpoint: str, **form: str | None) -> requests.Response:
        """Post as the client; None takes a field out."""
        standard: dict[str, str | None] = {
            "client_id": self.provider.client_id,
            "client_secret": self.provider.client_secret,
        }
        said = {name: value for name, value in {**standard, **form}.items() if value is not None}
        return requests.post(self.provider.endpoint(endpoint), data=said, timeout=CALL_SECONDS)

    def exchange(self, code: str, **changes: str | None) -> requests.Response:
        standard: dict[str, str | None] = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.provider.redirect_uri,
            "code_verifier": self.verifier,
        }
        return self.post("token", **{**standard, **changes})

    def refresh(self, token: str, **changes: str | None) -> requests.Response:
        form = {"grant_type": "refresh_token", "refresh_token": token, **changes}
        return self.post("token", **form)

    def tokens(self, **changes: str | None) -> dict[str, Any]:
        """Log in, and return what the token endpoint gives for it."""
        answer = self.exchange(self.come_back(**changes)["code"])
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, endpoint: str, *, token: str | None = None) -> requests.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return requests.get(self.provider.endpoint(endpoint), headers=headers, timeout=CALL_SECONDS)

    def challenge(self) -> str:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def wait_for_the_next_second(self) -> None:
        """Keycloak counts in whole seconds."""
        time.sleep(1.1 - time.time() % 1)

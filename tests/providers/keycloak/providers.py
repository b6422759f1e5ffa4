"""Identity providers that a site can have: a Keycloak of some version, and the sandbox."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import requests

from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.server import serve
from everifin_django.testing.sandbox.store import Session
from scripts.demo.browser import Browser
from tests.providers.contract.providers import NoSuchSwitchError, from_keycloak, from_sandbox
from tests.providers.contract.providers import Provider as ContractProvider
from tests.providers.keycloak.bank import Bank
from tests.providers.keycloak.server import Realm

CALL_SECONDS = 30


class Provider(Protocol):
    """
    An identity provider with a bank API behind it. *contract* has its switches and its client.

    Errors: NoSuchSwitchError for what it cannot do.
    """

    contract: ContractProvider
    title: str

    def settings(self) -> Mapping[str, str]:
        """What a site sets that uses it."""

    def know_site(self, url: str) -> None:
        """Begin anew, for the site at *url*: nobody logged in, every switch as at first."""

    def tell_nobody(self) -> None:
        """Send no logout token any more."""

    def live_sessions(self) -> int:
        """How many sessions alice has that end with her browser's."""

    def offline_sessions(self) -> int:
        """How many she has for when she is away."""

    def end_sessions(self) -> None:
        """Log alice out everywhere."""

    def end_one_session(self) -> None:
        """End what her browser has, but not what was granted for when she is away."""

    def log_out_there(self, browser: Browser) -> None:
        """Log out on the provider's own page."""

    def enable_user(self) -> None: ...

    def change_secret(self, secret: str) -> None: ...


class AtKeycloak:
    def __init__(self, realm: Realm, api_url: str) -> None:
        self.realm = realm
        self.api_url = api_url
        self.contract = from_keycloak(realm)
        self.title = f"Keycloak {realm.keycloak.version}"

    def settings(self) -> Mapping[str, str]:
        return {
            "EVERIFIN_IDP_URL": self.realm.keycloak.url,
            "EVERIFIN_API_URL": self.api_url,
            "EVERIFIN_LEGACY_LOGOUT": str(int(self.realm.keycloak.is_legacy)),
        }

    def know_site(self, url: str) -> None:
        self.tell_nobody()
        self.realm.set_client(
            secret=self.contract.client_secret,
            redirectUris=[*self.realm.client["redirectUris"], f"{url}/*"],
        )
        self.contract.switches.reset()
        self.realm.end_sessions("alice")
        told = {"backchannel.logout.url": f"{url}/everifin/backchannel-logout/"}
        self.realm.set_client(attributes=told)

    def leave(self) -> None:
        self.tell_nobody()
        self.realm.set_client(
            secret=self.contract.client_secret, redirectUris=self.realm.client["redirectUris"]
        )
        self.contract.switches.reset()

    def tell_nobody(self) -> None:
        self.realm.set_client(attributes={"backchannel.logout.url": ""})

    def live_sessions(self) -> int:
        return self.realm.live_sessions("alice")

    def offline_sessions(self) -> int:
        return self.realm.offline_sessions("alice")

    def end_sessions(self) -> None:
        self.realm.end_sessions("alice")

    def end_one_session(self) -> None:
        self.realm.end_browser_sessions("alice")

    def log_out_there(self, browser: Browser) -> None:
        page = browser.open(self.contract.endpoint("logout"))
        if "Logout" in page.buttons:  # version 17 does not ask
            browser.press("Logout")

    def enable_user(self) -> None:
        self.realm.set_user("alice", enabled=True)

    def change_secret(self, secret: str) -> None:
        self.realm.set_client(secret=secret)


class AtSandbox:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.contract = from_sandbox(sandbox)
        self.title = "sandbox"
        self._site = ""

    def settings(self) -> Mapping[str, str]:
        return {"EVERIFIN_IDP_URL": self.sandbox.idp_url, "EVERIFIN_API_URL": self.sandbox.api_url}

    def know_site(self, url: str) -> None:
        self.sandbox.client_secret = self.contract.client_secret
        self.contract.switches.reset()
        self.sandbox.end_sessions()
        self._site = url

    def tell_nobody(self) -> None:
        self._site = ""

    def live_sessions(self) -> int:
        return len([session for session in self._alive() if not session.is_offline])

    def offline_sessions(self) -> int:
        return len([session for session in self._alive() if session.is_offline])

    def end_sessions(self) -> None:
        with self._telling_the_site():
            self.sandbox.end_sessions("alice")

    def end_one_session(self) -> None:
        with self._telling_the_site():
            for session in self._alive():
                if not session.is_offline:
                    self.sandbox.store.end_session(session.id)

    def log_out_there(self, browser: Browser) -> None:
        with self._telling_the_site():
            browser.open(self.contract.endpoint("logout"))

    @contextmanager
    def _telling_the_site(self) -> Iterator[None]:
        """The sandbox makes logout tokens, and leaves it to others to carry them."""
        before = self._sids()
        yield
        for sid in before - self._sids() if self._site else ():
            answer = requests.post(
                f"{self._site}/everifin/backchannel-logout/",
                data={"logout_token": self.sandbox.logout_token(sid=sid, username="alice")},
                timeout=CALL_SECONDS,
            )
            assert answer.status_code == 200, answer.status_code

    def _sids(self) -> set[str]:
        return {session.sid for session in self._alive() if not session.is_offline}

    def enable_user(self) -> None:
        raise NoSuchSwitchError

    def change_secret(self, secret: str) -> None:
        self.sandbox.client_secret = secret

    def _alive(self) -> list[Session]:
        alice, now = self.sandbox.user("alice").sub, self.sandbox.now()
        return [one for one in self.sandbox.store.sessions(alice) if one.is_live(now)]


@contextmanager
def at_keycloak(realm: Realm) -> Iterator[Provider]:
    """Give the provider that *realm* is, and leave the realm as it was."""
    with serve(Bank(realm)) as bank:
        provider = AtKeycloak(realm, bank.url)
        try:
            yield provider
        finally:
            provider.leave()


@contextmanager
def at_sandbox() -> Iterator[Provider]:
    with serve(Sandbox(access_token_seconds=60)) as server:
        yield AtSandbox(server.sandbox)

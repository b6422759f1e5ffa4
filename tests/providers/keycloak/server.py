"""A Keycloak of one's own on loopback, and what its administrator can do there."""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import requests

from scripts.ports import unused_port
from tests.providers.keycloak.distribution import installed
from tests.support.servers import home

REALM = Path(__file__).with_name("realm.json")
CALL_SECONDS = 30
ADMIN_TOKEN_SECONDS = 30
START_SECONDS = 240
"""A cold Java on a busy machine."""

LEAN = "-Xms64m -Xmx512m -XX:TieredStopAtLevel=1"


@contextmanager
def keycloak(version: str) -> Iterator[Keycloak]:
    """
    Run Keycloak *version* until the block ends, its data in memory.

    Errors: AbsentError if it cannot be had; ServerError if it does not start.
    """
    directory = installed(version)
    port = unused_port()
    url, password = f"http://127.0.0.1:{port}", secrets.token_hex(16)
    is_legacy = int(version.partition(".")[0]) < 18
    options = [f"--http-port={port}", "--http-host=127.0.0.1", "--http-enabled=true"]
    options += ["--hostname-strict=false"]
    options += ["--hostname-strict-https=false"] if is_legacy else ["--optimized"]
    environment = {
        "JAVA_OPTS_APPEND": LEAN,
        # The first pair is what it was called until version 25.
        "KEYCLOAK_ADMIN": "admin",
        "KEYCLOAK_ADMIN_PASSWORD": password,
        "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
        "KC_BOOTSTRAP_ADMIN_PASSWORD": password,
    }
    with home(account="") as server_home, Keycloak(url, version, password) as server:
        server_home.environment.update(environment)
        server_home.owner.clear()  # the cache with the distribution is ours alone
        with server_home.serving(
            *["bash", str(directory / "bin" / "kc.sh"), "start", *options],
            is_ready=server.is_ready,
            stop=signal.SIGTERM,
            start_seconds=START_SECONDS,
        ):
            yield server


class Keycloak:
    """A running Keycloak, seen by its administrator. *url* has no slash at the end."""

    def __init__(self, url: str, version: str, password: str) -> None:
        self.url = url
        self.version = version
        self._password = password
        self._token, self._token_until = "", 0.0
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @property
    def is_legacy(self) -> bool:
        return int(self.version.partition(".")[0]) < 18

    def is_ready(self) -> bool:
        try:
            answer = self._session.get(f"{self.url}/auth/realms/master", timeout=CALL_SECONDS)
        except requests.RequestException:
            return False
        return answer.status_code == 200

    def import_realm(self, name: str) -> Realm:
        """Return a realm of its own, made of realm.json; one of the same name goes first."""
        told = json.loads(REALM.read_text(encoding="utf-8")) | {"realm": name}
        # A realm that is imported with scopes of its own gets none of Keycloak's.
        scopes, clients = told.pop("clientScopes"), told.pop("clients")
        self.call("DELETE", name, missing_is_fine=True)
        self.call("POST", "", json=told)
        realm = Realm(self, name)
        for client in clients:
            realm.call("POST", "clients", json=client)
        for scope in scopes:
            realm.call("POST", "client-scopes", json=scope)
            realm.offer_scope(scope["name"])
        return realm

    def call(self, method: str, path: str, *, missing_is_fine: bool = False, **content: Any) -> Any:
        """Return what the admin API answers. Errors: those of requests, also for a refusal."""
        answer = self._session.request(
            method,
            f"{self.url}/auth/admin/realms/{path}".rstrip("/"),
            headers={"Authorization": f"Bearer {self._access_token()}"},
            timeout=CALL_SECONDS,
            **content,
        )
        if answer.status_code == 404 and missing_is_fine:
            return None
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    def _access_token(self) -> str:
        """Keycloak spends much time on a password, and none on a token."""
        if time.monotonic() < self._token_until:
            return self._token
        self._token_until = time.monotonic() + ADMIN_TOKEN_SECONDS
        answer = self._session.post(
            f"{self.url}/auth/realms/master/protocol/openid-connect/token",
            data={
                "grant_type": "password",
                "client_id": "admin-cli",
                "username": "admin",
                "password": self._password,
            },
            timeout=CALL_SECONDS,
        )
        answer.raise_for_status()
        self._token = str(answer.json()["access_token"])
        return self._token


class Realm:
    """One realm, with its one client and its users."""

    def __init__(self, keycloak: Keycloak, name: str) -> None:
        self.keycloak = keycloak
        self.name = name
        self.client: dict[str, str] = json.loads(REALM.read_text(encoding="utf-8"))["clients"][0]

    @property
    def issuer(self) -> str:
        return f"{self.keycloak.url}/auth/realms/{self.name}"

    def call(self, method: str, path: str, **content: Any) -> Any:
        return self.keycloak.call(method, f"{self.name}/{path}", **content)

    # Settings

    def set(self, **settings: Any) -> None:
        self.keycloak.call("PUT", self.name, json=settings)

    def set_rotation(self, rotation: str) -> None:
        """Take a rotation as the sandbox names it, or "reuse 1"."""
        self.set(
            revokeRefreshToken=rotation != "default",
            refreshTokenMaxReuse=int(rotation == "reuse 1"),
        )

    def set_client(self, *, attributes: dict[str, str] | None = None, **settings: Any) -> None:
        known = self.call("GET", self._client_path())
        merged = {**known.get("attributes", {}), **(attributes or {})}
        self.call("PUT", self._client_path(), json={**known, **settings, "attributes": merged})

    def offer_scope(self, name: str) -> None:
        scopes = self.call("GET", "client-scopes")
        scope = next(scope["id"] for scope in scopes if scope["name"] == name)
        self.call("PUT", f"{self._client_path()}/optional-client-scopes/{scope}")

    def rotate_key(self) -> None:
        """Sign with a new key from now on; the old one stays published."""
        realm = self.call("GET", "")
        later_wins = str(time.time_ns())
        provider = {
            "name": f"key-{secrets.token_hex(4)}",
            "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "parentId": realm["id"],
            "config": {"priority": [later_wins], "algorithm": ["RS256"], "keySize": ["2048"]},
        }
        self.call("POST", "components", json=provider)

    # Users

    def user_id(self, username: str) -> str:
        return str(self.call("GET", f"users?username={username}&exact=true")[0]["id"])

    def set_user(self, username: str, **settings: Any) -> None:
        path = f"users/{self.user_id(username)}"
        self.call("PUT", path, json={**self.call("GET", path), **settings})

    def end_sessions(self, username: str) -> None:
        self.call("POST", f"users/{self.user_id(username)}/logout")

    def withdraw_consent(self, username: str) -> None:
        path = f"users/{self.user_id(username)}/consents/{self.client['clientId']}"
        self.call("DELETE", path, missing_is_fine=True)

    def live_sessions(self, username: str) -> int:
        return len(self.call("GET", f"users/{self.user_id(username)}/sessions"))

    def end_browser_sessions(self, username: str) -> None:
        """End each, and nothing else: no token from before becomes stale by it."""
        for session in self.call("GET", f"users/{self.user_id(username)}/sessions"):
            self.call("DELETE", f"sessions/{session['id']}")

    def offline_sessions(self, username: str) -> int:
        client = self._client_path().rpartition("/")[2]
        path = f"users/{self.user_id(username)}/offline-sessions/{client}"
        return len(self.call("GET", path))

    def client_sessions(self) -> list[str]:
        """Return the names of all sessions that the client has a part in."""
        found = self.call("GET", f"{self._client_path()}/user-sessions?max=100000")
        return [session["id"] for session in found]

    def _client_path(self) -> str:
        found = self.call("GET", f"clients?clientId={self.client['clientId']}")
        return f"clients/{found[0]['id']}"

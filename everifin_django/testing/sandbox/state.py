"""
What both halves of the sandbox share: options, clock, stored data and switches.

The switches and counters are inventions for development and tests; Everifin has none of them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cache
from typing import Any, Literal

from django.conf import ENVIRONMENT_VARIABLE, settings

from everifin_django.testing.sandbox.faults import Fault, Faults
from everifin_django.testing.sandbox.signing import Signer, SigningKey
from everifin_django.testing.sandbox.store import Session, Store, User

Rotation = Literal["strict", "default", "off"]
IDTokenHook = Callable[
    [dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]] | str
]

DEMO_LOGINS = {name: name for name in ("alice", "bob", "nina", "oto")}
_NAMES = {
    "alice": "Alica Ukážková",
    "bob": "Bob Vzorový",
    "nina": "Nina Nová",
    "oto": "Oto Maximilián Nekonečný-Predlhomenný z Horného Ukážkova",
}


def _configure_django() -> None:
    """Let a script without a Django site use the sandbox: Django gets its own defaults."""
    if not settings.configured and not os.environ.get(ENVIRONMENT_VARIABLE):
        settings.configure(USE_TZ=True)


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request the sandbox received. What may hold tokens stays out of the repr."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    form: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RecordedRefresh:
    """
    A refresh token that was shown, and what came of it. Tokens are named by their SHA-256.

    *given* is the token that follows it, None if it was refused (or none is rotated). *session* is
    the one it belongs to, None if nobody knows the token. With *fault* the caller may have heard
    something else, or nothing.
    """

    shown: str
    given: str | None
    session: str | None
    fault: Fault | None


class State:
    """
    Options, stored data and switches of one sandbox.

    *rotation* is what a refresh does. "strict" is Keycloak's "Revoke Refresh Token" with reuse 0:
    the old token is spent, and showing it again ends the session. "default" is Keycloak without
    that: a new token each time, the older ones work as long as the session lives. "off": the answer
    carries no refresh token, as RFC 6749, section 6, allows. Which one Everifin uses is not
    published.
    *id_token_hook* is called with headers and claims of each ID token about to be signed, and
    returns what to sign instead, or the finished token as text.
    *on_refresh* is called with each refresh token that was shown and reached the work: not where a
    fault stood in its way.
    *clock_skew_seconds* is how far this Everifin's clock runs ahead of *clock*.
    """

    demo_logins: Mapping[str, str] = DEMO_LOGINS

    def __init__(  # noqa: PLR0913 - one keyword for each option
        self,
        *,
        idp_url: str = "http://127.0.0.1:8001",
        api_url: str | None = None,
        realm: str = "everifin_app",
        client_id: str = "everifin-sandbox",
        client_secret: str = "everifin-sandbox-secret",
        redirect_uris: tuple[str, ...] | list[str] = (),
        rotation: Rotation = "strict",
        access_token_seconds: int = 300,
        refresh_token_seconds: int = 1800,
        issue_id_tokens: bool = True,
        require_pkce: bool = False,
        data: str = ":memory:",
        clock: Callable[[], float] = time.time,
    ) -> None:
        _configure_django()
        self.idp_url = idp_url.rstrip("/")
        self._api_url = api_url.rstrip("/") if api_url else None
        self.realm = realm
        self.client_id = client_id
        self.client_secret = client_secret
        self.redirect_uris = frozenset(redirect_uris)
        self.rotation = rotation
        self.access_token_seconds = access_token_seconds
        self.refresh_token_seconds = refresh_token_seconds
        self.issue_id_tokens = issue_id_tokens
        self.require_pkce = require_pkce
        self.clock = clock

        self.clock_skew_seconds: float = 0
        self.sleep: Callable[[float], object] = time.sleep
        self.id_token_hook: IDTokenHook | None = None
        self.on_refresh: Callable[[RecordedRefresh], object] | None = None
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.last_request: dict[str, RecordedRequest] = {}
        self.double_spends = 0
        self._refreshing_until: dict[str, float] = {}

        self.store = Store(str(data))
        self.signer = Signer(self.store)
        self._counting = threading.Lock()
        self.opened_on = date.fromisoformat(self.store.meta("opened_on", self.today().isoformat()))
        for username, password in DEMO_LOGINS.items():
            self.add_user(username, password=password, name=_NAMES[username])

    # Where and when

    @property
    def api_url(self) -> str:
        return self._api_url or self.idp_url

    @property
    def issuer(self) -> str:
        return f"{self.idp_url}/auth/realms/{self.realm}"

    def now(self) -> float:
        """Return this Everifin's idea of the time, in seconds since 1970."""
        return self.clock() + self.clock_skew_seconds

    def today(self) -> date:
        return datetime.fromtimestamp(self.now(), UTC).date()

    # Bank data

    def begin_refresh(self, sub: str, seconds: float) -> bool:
        """Begin a download of all accounts of user *sub*; False if one is running."""
        with self._counting:
            if self._refreshing_until.get(sub, 0) > self.now():
                return False
            self._refreshing_until[sub] = self.now() + seconds
            return True

    # Users

    def add_user(
        self,
        username: str,
        *,
        password: str = "",
        name: str = "",
        email: str = "",
        email_verified: bool = True,
        sub: str = "",
    ) -> str:
        """
        Return the sub of the user of this name, who exists from now on and has demo accounts.

        Without a password nobody can log in as this user on the page; `Sandbox.authorize` can.
        """
        user = User(
            sub=sub or str(uuid.uuid5(uuid.NAMESPACE_URL, f"everifin-sandbox:{username}")),
            username=username,
            password=_hash_new(password) if password else "",
            name=name or username.title(),
            email=email or f"{username}@example.test",
            email_verified=email_verified,
        )
        self.store.add_user(user)
        return self.user(username).sub

    def user(self, username: str) -> User:
        user = self.store.user(username=username)
        if user is None:
            raise ValueError(f"The sandbox has no user {username!r}: call add_user({username!r}).")
        return user

    def check_password(self, username: str, password: str) -> User | None:
        user = self.store.user(username=username)
        if user is None or not user.password:
            return None
        salt = user.password.partition("$")[0]
        is_right = hmac.compare_digest(user.password, _hash_password(password, salt=salt))
        return user if is_right else None

    # Switches

    def expire_access_tokens(self, username: str | None = None) -> None:
        """
        Make the bank API answer 401 to every access token issued until now (to one user).

        A token that a refresh gave works until it is 5 seconds old: a site takes the refusal of a
        new one for an outage of the bank API, which this is not.
        """
        if username is None:
            self.store.count_up("generation")
        else:
            self.expire_tokens_of(self.user(username).sub)

    def expire_tokens_of(self, sub: str) -> None:
        self.store.count_up(f"generation of {sub}")

    def generation(self, sub: str) -> str:
        """What access tokens of today carry for this user; those with another count as expired."""
        return (
            f"{self.store.meta('generation', '0')}.{self.store.meta(f'generation of {sub}', '0')}"
        )

    def end_sessions(self, username: str | None = None) -> None:
        """End every session (of one user), so that a refresh is answered "Session not active"."""
        for session in self._live_sessions(username):
            self.store.end_session(session.id)

    def withdraw_consent(self, username: str | None = None, *, keep_session: bool = False) -> None:
        """
        Take back the consent of every session (of one user): a refresh gives invalid_grant.

        With *keep_session* it gives invalid_scope, which Keycloak's code has for a session that
        goes on without the consent. A real one was seen to end both at once.
        """
        for session in self._live_sessions(username):
            self.store.withdraw_consent(session.id)
            if not keep_session:
                self.store.end_session(session.id)

    def rotate_signing_key(self, *, drop_old: bool = False) -> str:
        """Return the kid of a new key that signs from now on; old ones stay published, or not."""
        return self.signer.rotate(drop_old=drop_old).kid

    @property
    def signing_key(self) -> SigningKey:
        """The key that signs now, for tests that make tokens of their own."""
        return self.signer.published_keys()[0]

    def live_sessions(self, username: str | None = None) -> int:
        """Return how many logins (of one user) have something left that is alive."""
        return len({session.sid for session in self._live_sessions(username)})

    def logout_token(
        self,
        *,
        sid: str = "",
        username: str = "",
        headers: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """
        Return the logout token that tells a site of the end of a session, or of all sessions of a
        user. *headers* and *claims* replace what stands in it; None takes a claim out.

        Source: OpenID Connect Back-Channel Logout 1.0, section 2.4.
        """
        now = int(self.now())
        standard: dict[str, Any] = {
            "iss": self.issuer,
            "aud": self.client_id,
            "iat": now,
            "exp": now + 120,
            "jti": str(uuid.uuid4()),
            "sid": sid or None,
            "sub": self.user(username).sub if username else None,
            "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
        }
        said = {name: value for name, value in (standard | claims).items() if value is not None}
        return self.signing_key.sign(said, {"typ": "logout+jwt", **(headers or {})})

    # Counters

    def note(self, names: tuple[str, ...], request: RecordedRequest) -> None:
        self.count(names)
        with self._counting:
            self.last_request.update(dict.fromkeys(names, request))

    def count(self, names: tuple[str, ...]) -> None:
        with self._counting:
            self.calls.update(names)

    def note_double_spend(self) -> None:
        with self._counting:
            self.double_spends += 1

    def _live_sessions(self, username: str | None) -> list[Session]:
        sub = self.user(username).sub if username else None
        return [session for session in self.store.sessions(sub) if session.is_live(self.now())]


def _hash_new(password: str) -> str:
    is_demo = password in DEMO_LOGINS.values()
    return _hash_demo_password(password) if is_demo else _hash_password(password)


@cache
def _hash_demo_password(password: str) -> str:
    # Once a process: a suite makes a sandbox for each test, and hashing is slow even where cheap.
    return _hash_password(password)


def _hash_password(password: str, *, salt: str = "") -> str:
    # Cheap on purpose: it guards nothing, but a password used elsewhere should not lie open.
    salt = salt or secrets.token_hex(8)
    digest = hashlib.scrypt(password.encode(), salt=salt.encode(), n=1024, r=8, p=1)
    return f"{salt}${digest.hex()}"

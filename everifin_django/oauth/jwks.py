"""
The keys that Everifin signs its tokens with: fetched, cached, and chosen for a token.

Why PyJWT's PyJWKClient is not used
    Its lock is held during the request, so while the endpoint is slow every token with an unknown
    key holds a thread. Its cool-down begins after a success only, and its cache ends with its
    lifespan, outage or not. It looks for a key by ``kid`` alone. What would be left of it is one
    comparison of two times.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from time import monotonic
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from everifin_django.conf import conf
from everifin_django.exceptions import APIError, UnavailableError
from everifin_django.http.client import send

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
EC_ALGORITHMS: Mapping[str, str] = {
    "secp256r1": "ES256",
    "secp384r1": "ES384",
    "secp521r1": "ES512",
}
ALGORITHMS = RSA_ALGORITHMS | {*EC_ALGORITHMS.values(), "EdDSA"}
RSA_BITS = range(2048, 16_384 + 1)
MAX_BYTES = 64 * 1024
MAX_KEYS = 100
LIFESPAN_SECONDS = 3600
OUTAGE_SECONDS = 24 * 3600
"""How long the last good keys are used when no newer ones can be fetched."""

COOLDOWN_SECONDS = 10
WAIT_SECONDS = 0.5
"""How long a thread waits for another thread's fetch, if it needs the key."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A published key that may sign tokens, and the algorithms it may do so with."""

    key_id: object
    algorithms: frozenset[str]
    public: PublicKey


class SigningKeys:
    """
    The keys published at *uri*: cached for an hour, fetched anew for an unknown key id at most once
    in COOLDOWN_SECONDS, used for a day through an outage.

    One thread fetches. Others use the key that they have, or wait for WAIT_SECONDS.

    ``id_token_algorithm`` is the algorithm of the last ID token that these keys verified.
    """

    def __init__(self, uri: str) -> None:
        self.id_token_algorithm: str | None = None
        self._uri = uri
        self._fetching = Lock()
        self._fetches = 0
        self._keys: Sequence[SigningKey] = ()
        self._stale_at = self._next_search_at = self._unusable_at = 0.0

    def fitting(self, header: Mapping[str, Any]) -> SigningKey | None:
        """
        Return the one key that may have signed a token with *header*; None if none or several fit.

        Errors: UnavailableError if there are no keys at all, or the key is unknown while another
        thread is fetching.
        """
        fetches = self._fetches
        key = self._known(header)
        if key is not None and monotonic() < self._stale_at:
            return key
        is_done = self._fetched_since(fetches, WAIT_SECONDS if key is None else 0)
        key = self._known(header)
        if not self._usable or (key is None and not is_done):
            raise UnavailableError("Everifin's signing keys cannot be had for now.", method="GET")
        return key

    @property
    def _usable(self) -> Sequence[SigningKey]:
        return self._keys if monotonic() < self._unusable_at else ()

    def _known(self, header: Mapping[str, Any]) -> SigningKey | None:
        fitting = [key for key in self._usable if header["alg"] in key.algorithms]
        if header.get("kid") is not None:
            fitting = [key for key in fitting if key.key_id == header["kid"]]
        return fitting[0] if len(fitting) == 1 else None

    def _fetched_since(self, fetches: int, patience_seconds: float) -> bool:
        """
        Fetch the keys, unless it was done after *fetches* or is not due; return False if another
        thread is still at it after *patience_seconds*.
        """
        if not self._is_due:
            return True
        if not self._fetching.acquire(timeout=patience_seconds):
            return False
        try:
            if self._is_due and self._fetches == fetches:
                self._fetch()
        finally:
            self._fetching.release()
        return True

    @property
    def _is_due(self) -> bool:
        return monotonic() >= min(self._stale_at, self._next_search_at)

    def _fetch(self) -> None:
        keys = _published_keys(self._uri)
        now = monotonic()
        # The very first keys start no pause: a key that is newer than they are is found at once.
        if self._keys or not keys:
            self._next_search_at = now + COOLDOWN_SECONDS
        # An outage at Everifin is no reason to refuse a good token, for a day.
        self._stale_at = now + (LIFESPAN_SECONDS if keys else COOLDOWN_SECONDS)
        if keys:
            self._keys, self._unusable_at = keys, now + OUTAGE_SECONDS
        self._fetches += 1


def signing_keys() -> SigningKeys:
    """Return the keys of the configured issuer, as this process has them."""
    return _signing_keys(conf.endpoint("certs"), os.getpid())


def clear_signing_keys() -> None:
    """Empty the cache, as in a new process."""
    _signing_keys.cache_clear()


@lru_cache(maxsize=8)
def _signing_keys(uri: str, process_id: int) -> SigningKeys:
    """A forked child has another process id: it must not wait for a thread of its parent."""
    return SigningKeys(uri)


def _published_keys(uri: str) -> Sequence[SigningKey]:
    """The usable keys at *uri*, empty if they cannot be had. One request."""
    try:
        answer = send("GET", uri, headers={"Accept": "application/json"}, max_bytes=MAX_BYTES)
        return keys_in(answer.json() if answer.status == 200 else None)
    except APIError:
        return ()


def keys_in(decoded: Any) -> Sequence[SigningKey]:
    """Return the keys of a decoded JWKS that can verify a token."""
    jwks = decoded.get("keys") if isinstance(decoded, dict) else None
    if not isinstance(jwks, list):
        return ()
    keys = map(_signing_key, jwks[:MAX_KEYS])
    return tuple(key for key in keys if key is not None)


def _signing_key(jwk: Any) -> SigningKey | None:
    """The key that *jwk* describes, None if it cannot or must not verify a token."""
    try:
        if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
            return None
        public = jwt.PyJWK(jwk).key
        algorithms = _algorithms_of(public)
        if "alg" in jwk:
            algorithms &= {jwk["alg"]}
    except Exception:  # noqa: BLE001 - one odd key, in whatever way, is no reason to lose the others
        return None
    return SigningKey(jwk.get("kid"), algorithms, public) if algorithms else None


def _algorithms_of(key: Any) -> frozenset[str]:
    """
    Empty for a key that is private, shared, too short or too long: it proves nothing about who
    signed.
    """
    if isinstance(key, RSAPublicKey) and key.key_size in RSA_BITS:
        return RSA_ALGORITHMS
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in EC_ALGORITHMS:
        return frozenset({EC_ALGORITHMS[key.curve.name]})
    return frozenset({"EdDSA"} if isinstance(key, Ed25519PublicKey) else ())

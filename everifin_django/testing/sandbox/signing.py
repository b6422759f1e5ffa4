"""The sandbox's signing keys, and the tokens signed with them."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt import PyJWTError
from jwt.algorithms import RSAAlgorithm
from jwt.api_jws import PyJWS

from everifin_django.testing.sandbox.store import Store

ALGORITHM = "RS256"
_JWS = PyJWS()


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    private_key: RSAPrivateKey = field(repr=False)

    def jwk(self) -> dict[str, Any]:
        """Return the public half as published in the JWKS. Source: RFC 7517, section 4."""
        public = RSAAlgorithm.to_jwk(self.private_key.public_key(), as_dict=True)
        parts = {"kty": "RSA", "n": public["n"], "e": public["e"]}
        return {"kid": self.kid, "alg": ALGORITHM, "use": "sig", **parts}

    def sign(self, claims: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> str:
        """Return *claims* as a signed token. Nothing is checked: wrong ones can be signed too."""
        headers = {"kid": self.kid, **(headers or {})}
        return _JWS.encode(json.dumps(claims).encode(), self.private_key, ALGORITHM, headers)


class Signer:
    """Signs with the newest key in the store, and knows the published ones."""

    def __init__(self, store: Store) -> None:
        self._store = store
        if not store.signing_keys():
            store.add_signing_key(*_first_key())
        self._refresh_secret = store.meta("refresh_secret", secrets.token_hex(64))

    def published_keys(self) -> list[SigningKey]:
        """Return the published keys, newest first."""
        return [_load(kid, pem) for kid, pem in self._store.signing_keys()]

    def rotate(self, *, drop_old: bool) -> SigningKey:
        self._store.add_signing_key(*_new_key(), only=drop_old)
        return self.published_keys()[0]

    def sign(self, claims: Mapping[str, Any]) -> str:
        return self.published_keys()[0].sign(claims)

    def refresh_token(self, claims: Mapping[str, Any]) -> str:
        """Return a refresh token of Keycloak's kind: a token only its maker can read (HS512)."""
        return _JWS.encode(json.dumps(claims).encode(), self._refresh_secret, "HS512")

    def verify(self, token: str) -> Mapping[str, Any] | None:
        """Return the claims if a published key signed *token*. Nothing else is looked at."""
        return _verified(token, tuple(self._store.signing_keys()))


@lru_cache(maxsize=256)
def _verified(token: str, published: tuple[tuple[str, str], ...]) -> Mapping[str, Any] | None:
    # The bank API gets the same token many times; reading it is half of such a call.
    try:
        kid = _JWS.get_unverified_header(token).get("kid")
        key = next(_load(*key) for key in published if key[0] == kid)
        claims = json.loads(_JWS.decode(token, key.private_key.public_key(), [ALGORITHM]))
    except (PyJWTError, StopIteration, ValueError):
        return None
    return claims if isinstance(claims, dict) else None


@cache
def _first_key() -> tuple[str, str]:
    # Making an RSA key takes long enough to be felt in a suite with a sandbox for each test, so the
    # sandboxes of one process share the key they begin with.
    return _new_key()


def _new_key() -> tuple[str, str]:
    pem = generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return uuid.uuid4().hex, pem.decode()


@lru_cache(maxsize=64)
def _load(kid: str, pem: str) -> SigningKey:
    private_key = serialization.load_pem_private_key(pem.encode(), password=None)
    assert isinstance(private_key, RSAPrivateKey)
    return SigningKey(kid, private_key)

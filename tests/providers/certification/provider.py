"""The provider of the certification tests: the sandbox, with the switches those tests ask for."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from django.http import HttpRequest, HttpResponse, QueryDict
from jwt.algorithms import ECAlgorithm, OKPAlgorithm
from jwt.api_jws import PyJWS

from everifin_django.testing.sandbox import Sandbox, idp

AFTER_LOGOUT = "https://testserver/plain/"
"""Where the provider sends a visitor back to after a logout there."""

VSCHAR = "".join(map(chr, range(0x20, 0x7F)))
"""What a refresh token may consist of (RFC 6749, A.17)."""

Change = Callable[[dict[str, Any]], object]


class Provider(Sandbox):
    """
    The sandbox, which can also change what it says outside of ID tokens.

    *change_way_back* is given the parameters of each authorization answer, *change_token_answer*
    each answer of the token endpoint. *named_issuer* is who it says it is, wherever it says so.
    """

    change_way_back: Change | None = None
    change_token_answer: Change | None = None
    named_issuer: str | None = None

    @property
    def issuer(self) -> str:
        return self.named_issuer or super().issuer

    def authorize(self, url: str, username: str = "alice", *, consent: bool = True) -> str:
        back = super().authorize(url, username, consent=consent)
        if self.change_way_back is None:
            return back
        address, _, query = back.partition("?")
        parameters = QueryDict(query).dict()
        self.change_way_back(parameters)
        return f"{address}?{urlencode(parameters)}"

    def metadata(self) -> dict[str, Any]:
        """Return what is published for discovery, without counting as having been asked."""
        published: dict[str, Any] = json.loads(idp.discovery(self, HttpRequest()).content)
        return published

    def change_claims(self, **claims: Any) -> None:
        """Put *claims* into each ID token from now on; None leaves a claim out."""

        def change(headers: dict[str, Any], said: dict[str, Any]) -> tuple[dict[str, Any], Any]:
            changed = {**said, **claims}
            return headers, {name: value for name, value in changed.items() if value is not None}

        self.id_token_hook = change

    def change_metadata(self, **values: Any) -> None:
        """Publish *values* for discovery instead of the true ones."""
        changed = json.dumps({**self.metadata(), **values})
        self.faults.add("discovery", body=changed, content_type="application/json")

    def give_odd_refresh_tokens(self) -> None:
        """Let refresh tokens have every character that one may have, a space among them."""

        def token(claims: Mapping[str, Any]) -> str:
            return f"{claims['jti']}{VSCHAR}"

        self.signer.refresh_token = token  # type: ignore[method-assign]

    def publish_keys(self, *keys: Mapping[str, Any]) -> None:
        self.faults.add("certs", body={"keys": keys}, content_type="application/json")

    def sign_by(
        self,
        algorithm: str,
        key: Any,
        *,
        key_id: str | None = None,
        finish: Callable[[str], str] = str,
    ) -> None:
        """Sign each ID token so from now on, and hand the finished token through *finish*."""
        headers = {} if key_id is None else {"kid": key_id}
        self.id_token_hook = lambda _, claims: finish(signed(claims, algorithm, key, headers))

    def _answer(self, request: HttpRequest, timeout: float | None) -> HttpResponse:
        response = super()._answer(request, timeout)
        is_granted = request.path_info.endswith("/token") and response.status_code == 200
        if self.change_token_answer is not None and is_granted:
            answer = json.loads(response.content)
            self.change_token_answer(answer)
            response.content = json.dumps(answer).encode()
        return response


def signed(claims: Mapping[str, Any], algorithm: str, key: Any, headers: dict[str, Any]) -> str:
    """Return *claims* as a token; any claims, and any headers."""
    return PyJWS().encode(json.dumps(claims).encode(), key, algorithm, headers)


def with_broken_signature(token: str) -> str:
    """Return *token* with every byte of its signature changed, its length kept."""
    content, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    broken = base64.urlsafe_b64encode(bytes(byte ^ 0x5A for byte in raw)).rstrip(b"=").decode()
    return f"{content}.{broken}"


@cache
def curve_key() -> tuple[ec.EllipticCurvePrivateKey, dict[str, Any]]:
    """Return a key for ES256, and how it is published."""
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return key, {**jwk, "kid": "curve", "alg": "ES256", "use": "sig"}


@cache
def edwards_key() -> tuple[ed25519.Ed25519PrivateKey, dict[str, Any]]:
    """Return a key for EdDSA, and how it is published."""
    key = ed25519.Ed25519PrivateKey.generate()
    jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return key, {**jwk, "kid": "edwards", "alg": "EdDSA", "use": "sig"}


def path_of(url: str) -> str:
    return urlsplit(url).path

"""Tokens as a provider signs them, right and wrong, and what is made of them."""

import base64
import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS

from everifin_django.exceptions import (
    LoginError,
)
from everifin_django.oauth.id_token import (
    verify_id_token,
)
from everifin_django.secret import Secret
from tests.support.malicious_server import report

CLIENT_ID = "everifin-sandbox"
ISSUER = "https://idp.everifin.test/auth/realms/everifin_app"
SUBJECT = "canary-subject-6f"
NONCE = "canary-nonce-b2"
ACCESS = Secret("canary-access-0d")
AT_HASH = base64.urlsafe_b64encode(hashlib.sha256(b"canary-access-0d").digest()[:16])
HUGE = 10**30
OTHER_FORMS: list[Any] = [None, "", "x", 0, 1.5, True, [], ["x"], {}, HUGE]


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a right ID token, changed; ``...`` takes one out."""
    now = int(time.time())
    right = {
        "iss": ISSUER,
        "sub": SUBJECT,
        "aud": CLIENT_ID,
        "azp": CLIENT_ID,
        "exp": now + 300,
        "iat": now,
        "nonce": NONCE,
        "at_hash": AT_HASH.rstrip(b"=").decode(),
        "typ": "ID",
        "email": "canary@example.test",
    }
    return {name: value for name, value in (right | changes).items() if value is not ...}


def verify(token: str, **options: Any) -> Any:
    given = {"nonce": NONCE, "access_token": ACCESS, "started_at": datetime.now(UTC), **options}
    return verify_id_token(Secret(token), **given)


def refusal(token: str, **options: Any) -> str:
    """Return the reason why *token* is refused; the report of it shows nothing of the token."""
    with pytest.raises(LoginError) as caught:
        verify(token, **options)
    shown: str = report(caught.value)
    assert "canary" not in shown.replace(NONCE, "")  # the nonce is the caller's, and burned
    assert len(token) < 20 or token not in shown
    return str(caught.value.reason)


def base64url(text: bytes | str) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: Any, payload: Any, sign: Callable[[bytes], bytes] = lambda _: b"x") -> str:
    """Return a compact JWS of any two texts or objects."""
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (header, payload)]
    message = ".".join(map(base64url, texts))
    return f"{message}.{base64url(sign(message.encode()))}"


def jwk(key: Any, **changes: Any) -> dict[str, Any]:
    algorithm: Any = OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = RSAAlgorithm
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = ECAlgorithm
    made = algorithm.to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    described = {"kid": "one", "use": "sig", **made, **changes}
    return {name: value for name, value in described.items() if value is not ...}


def sign(key: Any, algorithm: str, changes: dict[str, Any] | None = None, **header: Any) -> str:
    given = {name: value for name, value in {"kid": "one", **header}.items() if value is not ...}
    # An at_hash is made for SHA-256; what the others make of it is tested by its own test.
    made = claims(at_hash=...) | (changes or {})
    return PyJWS().encode(json.dumps(made).encode(), key, algorithm, given)


def signed_by(key: Any, **header: Any) -> str:
    """Return a token as an attacker makes it, who does not ask a library what is allowed."""
    return signed(
        {"alg": "RS256", "kid": "one", **header},
        claims(at_hash=...),
        lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256()),
    )

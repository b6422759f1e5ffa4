"""What the tests of tokens and keys stand on."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from everifin_django.oauth import jwks
from everifin_django.testing.sandbox import SigningKey
from tests.oauth import claims


@pytest.fixture
def token(everifin) -> Callable[..., str]:
    """Give a function that signs changed claims, and a changed header, with Everifin's key."""

    def make(*, header: dict[str, Any] | None = None, **changes: Any) -> str:
        signing_key: SigningKey = everifin.signing_key
        return signing_key.sign(claims(**changes), header)

    return make


@pytest.fixture
def rs256(everifin) -> Callable[[bytes], bytes]:
    key = everifin.signing_key.private_key
    return lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256())


@pytest.fixture
def publish(everifin) -> Callable[..., None]:
    """Give a function that says which keys Everifin publishes from now on."""

    def make(*keys: Any) -> None:
        everifin.faults.clear()
        everifin.faults.add("certs", body={"keys": list(keys)}, content_type="application/json")

    return make


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Give the time that the cache of keys goes by; a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(jwks, "monotonic", lambda: now[0])
    return now


@pytest.fixture(scope="module")
def keys() -> dict[str, Any]:
    """Give one private key of each kind."""
    return {
        "RSA": rsa.generate_private_key(65537, 2048),
        "short": rsa.generate_private_key(65537, 1024),  # noqa: S505 - which is what is tested
        "P-256": ec.generate_private_key(ec.SECP256R1()),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    }

"""The sandbox's bank API, behind a real Keycloak: it takes the access tokens that one signed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jwt

from everifin_django.testing.sandbox import Sandbox
from tests.providers.keycloak.server import Realm


class Bank(Sandbox):
    def __init__(self, realm: Realm) -> None:
        self.realm_there = realm
        super().__init__()
        self.signer.verify = Verifier(realm, self.generation)  # type: ignore[method-assign]

    @property
    def issuer(self) -> str:
        return self.realm_there.issuer

    def add_user(self, username: str, **details: Any) -> str:
        """Know the users by the subs that Keycloak gave them."""
        return super().add_user(username, **details | {"sub": self.realm_there.user_id(username)})


class Verifier:
    """Returns the claims of a token that a published key of *realm* signed, else None."""

    def __init__(self, realm: Realm, generation: Callable[[str], str]) -> None:
        certs = f"{realm.issuer}/protocol/openid-connect/certs"
        # Keeps each key it has met, and asks at once for one it has not.
        self._keys = jwt.PyJWKClient(certs, cache_jwk_set=False, cache_keys=True)
        self._generation = generation

    def __call__(self, token: str) -> dict[str, Any] | None:
        try:
            key = self._keys.get_signing_key_from_jwt(token).key
            claims: dict[str, Any] = jwt.decode(
                token, key, ["RS256"], options={"verify_aud": False, "verify_exp": False}
            )
        except jwt.PyJWTError:
            return None
        # By its id the sandbox knows which of its own tokens it has let expire.
        return {**claims, "jti": f"{self._generation(claims['sub'])}:{claims['jti']}"}

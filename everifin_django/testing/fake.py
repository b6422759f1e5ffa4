"""
Everifin faked for a site's tests: the sandbox, and what ties it to the site's users.

Used by the pytest fixtures of `everifin_django.testing.plugin` and the test cases of
`everifin_django.testing.testcases` alike.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.contrib import auth
from django.urls import reverse
from django.utils import timezone

from everifin_django.backends import EverifinBackend
from everifin_django.conf import conf
from everifin_django.connections import grants, links, own_connection
from everifin_django.connections.refresh import clear_pauses
from everifin_django.models import BankToken, LoginLink, primary
from everifin_django.oauth import endpoints
from everifin_django.oauth.id_token import Identity
from everifin_django.oauth.jwks import clear_signing_keys
from everifin_django.testing.adapter import mount
from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.grants import identity

if TYPE_CHECKING:
    from django.test import Client

__all__ = ["FakeEverifin", "fake_everifin"]


class FakeEverifin(Sandbox):
    """A sandbox that knows the site under test."""

    def make_user(self, username: str = "alice") -> Any:
        """
        Return a new user of the site with a live connection, made the way a first login makes one.

        Errors: RuntimeError if the site's backend makes none; `connect` takes a user of your own.
        """
        claims = {"iss": self.issuer, **identity(self.user(username))}
        user = _backend().create_user(claims)
        if user is None:
            raise RuntimeError(
                "The site's Everifin backend makes no user here. Make one yourself, "
                "and give it to everifin.connect(user)."
            )
        who = Identity(self.issuer, self.user(username).sub)
        links.create(user, who, LoginLink.MadeBy.LOGIN)
        self.connect(user, username)
        return user

    def connect(self, user: Any, username: str = "alice", *, scope: str = "") -> BankToken:
        """
        Return the connection that *user* of the site has from now on, to *username* at Everifin.

        The short cut past the site's views: a grant of this sandbox is stored as they store one. No
        request, no call that counts, some three queries. *scope* defaults to that of the settings.
        """
        answer = self.grant(username, scope=scope or conf.scopes)
        granted = endpoints.read_tokens(answer, timezone.now())
        who = Identity(self.issuer, self.user(username).sub)
        return grants.save_grant(user, granted, who)

    def visit(self, client: Client, view: str, username: str = "alice", **data: str) -> Any:
        """
        Take *client* through the site's real views, to Everifin and back: *view* is "login" or
        "connect", *data* what its form sends. Returns the callback's response.
        """
        start = client.post(reverse(f"everifin_django:{view}"), data)
        return client.get(self.authorize(redirect_target(start), username))

    def expire_access_token(self, user: Any) -> None:
        """
        Let the access token of *user* be as good as expired, here and at Everifin: as if its time
        had passed, without moving any clock. The connection lives; the next use refreshes.

        Errors: BankToken.DoesNotExist if the user has no connection.
        """
        connection = primary(BankToken).get(user=user)
        self.expire_tokens_of(self._claims(connection).get("sub", ""))
        if connection.access_expires_at is None or connection.issued_at is None:
            return
        passed = connection.access_expires_at - timezone.now()
        primary(BankToken).filter(pk=connection.pk).update(
            issued_at=connection.issued_at - passed,
            access_expires_at=connection.access_expires_at - passed,
            refreshed_at=None,
        )

    def end_grant(self, user: Any) -> None:
        """
        Let *user* have ended the grant at Everifin: the next use finds that out, and the user has
        to connect again.

        Errors: BankToken.DoesNotExist if the user has no connection.
        """
        claims = self._claims(primary(BankToken).get(user=user))
        self.store.end_login(claims.get("sid", ""))
        self.expire_access_token(user)

    def _claims(self, connection: BankToken) -> Mapping[str, str]:
        """What the access token says; nothing for one that this sandbox did not make."""
        token = connection.open_token("access")
        return (token and self.signer.verify(token.reveal())) or {}


def redirect_target(response: Any) -> str:
    """
    Return the URL that *response* sends a browser to: a redirect's, or that of the small page with
    which the site's views answer a form that leads to Everifin or a bank.

    Takes responses of Django's test client and of requests. Errors: AssertionError without a URL.
    """
    for name in ("Location", "HX-Redirect"):
        if name in response.headers:
            return str(response.headers[name])
    refresh = re.search(rb'http-equiv="refresh" content="0;url=([^"]+)"', response.content)
    assert refresh is not None, f"The response leads nowhere (status {response.status_code})."
    return html.unescape(refresh[1].decode())


@contextmanager
def fake_everifin() -> Iterator[FakeEverifin]:
    """
    Let a sandbox answer for Everifin in this process until the block ends; every other host that
    requests is asked for is refused.

    Its addresses and client are those of the site's settings when the block begins.
    """
    everifin = FakeEverifin(**as_in_settings(), redirect_uris=callbacks())
    clear_signing_keys()
    clear_pauses()
    own_connection.is_of_a_test = _is_of_a_test
    try:
        with mount(everifin):
            yield everifin
    finally:
        own_connection.is_of_a_test = own_connection.never
    clear_signing_keys()


def as_in_settings() -> dict[str, Any]:
    """The addresses and the client of the site's settings, as a sandbox takes them."""
    return {
        "idp_url": conf.idp_url,
        "api_url": conf.api_url,
        "realm": conf.realm,
        "client_id": conf.client_id,
        "client_secret": conf.client_secret,
    }


def callbacks() -> tuple[str, ...]:
    """Where the site's callback is, for Django's test client."""
    if conf.redirect_uri:
        return (conf.redirect_uri,)
    path = reverse("everifin_django:callback")
    return (f"http://testserver{path}", f"https://testserver{path}")


def _is_of_a_test(connection: Any) -> bool:
    """Is the outermost transaction of *connection* one that Django's TestCase began?"""
    return any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def _backend() -> EverifinBackend:
    """The site's own, if it has one: it knows what a user of the site needs."""
    for backend in auth.get_backends():
        if isinstance(backend, EverifinBackend):
            return backend
    return EverifinBackend()

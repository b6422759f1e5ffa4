"""
Fixtures for a site's tests: a pretend Everifin in this very process, and users who are connected to
it.

pytest loads this module in every project that has everifin-django installed, so nothing else is
imported before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from django.test import Client

    from everifin_django.testing.sandbox import Sandbox


@pytest.fixture
def everifin() -> Iterator[Sandbox]:
    """
    Give the sandbox that answers for Everifin in this test; every other host is refused.

    Its addresses and client are those of the site's settings when the test begins. Needs the extra
    ``sandbox``.
    """
    from everifin_django.conf import conf
    from everifin_django.identity import forget_signing_keys
    from everifin_django.refresh import client_pause
    from everifin_django.testing.adapter import mount
    from everifin_django.testing.sandbox import Sandbox

    sandbox = Sandbox(
        idp_url=conf.idp_url,
        api_url=conf.api_url,
        realm=conf.realm,
        client_id=conf.client_id,
        client_secret=conf.client_secret,
        redirect_uris=_callbacks(),
    )
    forget_signing_keys()
    client_pause.end()
    with mount(sandbox):
        yield sandbox
    forget_signing_keys()


@pytest.fixture
def everifin_connect(everifin: Sandbox) -> Callable[..., Any]:
    """
    Give a function that takes a test client through the site's real views, to Everifin and back.

    ``everifin_connect(client)`` connects the user whom the client is logged in as;
    ``everifin_connect(client, door="login")`` logs a visitor in. *username* is who signs in at
    Everifin, *data* what the form sends (``next="/accounts/"``). Returns the callback's response.
    """

    def connect(
        client: Client, username: str = "alice", *, door: str = "connect", **data: str
    ) -> Any:
        from django.urls import reverse

        start = client.post(reverse(f"everifin_django:{door}"), data)
        return client.get(everifin.authorize(start["Location"], username))

    return connect


def _callbacks() -> tuple[str, ...]:
    """Where the site's callback is, for Django's test client."""
    from django.urls import reverse

    from everifin_django.conf import conf

    if conf.redirect_uri:
        return (conf.redirect_uri,)
    path = reverse("everifin_django:callback")
    return (f"http://testserver{path}", f"https://testserver{path}")

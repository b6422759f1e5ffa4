"""
Fixtures for a site's tests: the sandbox in this very process, and users who are connected to
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

    from everifin_django.testing.fake import FakeEverifin


@pytest.fixture
def everifin() -> Iterator[FakeEverifin]:
    """
    Give the sandbox that answers for Everifin in this test; every other host is refused.

    Its addresses and client are those of the site's settings when the test begins. Needs the extra
    ``sandbox``.
    """
    from everifin_django.testing.fake import fake_everifin

    with fake_everifin() as sandbox:
        yield sandbox


@pytest.fixture
def everifin_user(everifin: FakeEverifin, db: None) -> Any:
    """Give a user of the site with a live connection, who is alice at Everifin."""
    return everifin.make_user()


@pytest.fixture
def everifin_login(everifin: FakeEverifin, db: None) -> Callable[..., Any]:
    """
    Give a function that logs a test client in with Everifin, through the site's real views.

    *username* is who signs in at Everifin, *data* what the form sends (``next="/accounts/"``).
    Returns the callback's response.
    """

    def login(client: Client, username: str = "alice", **data: str) -> Any:
        return everifin.visit(client, "login", username, **data)

    return login


@pytest.fixture
def everifin_connect(everifin: FakeEverifin, db: None) -> Callable[..., Any]:
    """
    Give a function that connects the user whom a test client is logged in as, through the site's
    real views.

    Takes and returns what `everifin_login` does; ``view="login"`` logs a visitor in instead.
    """

    def connect(
        client: Client, username: str = "alice", *, view: str = "connect", **data: str
    ) -> Any:
        return everifin.visit(client, view, username, **data)

    return connect

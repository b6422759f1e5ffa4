"""
A fake Everifin for tests made of Django's own classes: what the pytest fixtures give, on self.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.test import TestCase

from everifin_django.testing.fake import FakeEverifin, fake_everifin

if TYPE_CHECKING:
    from django.test import SimpleTestCase as _Base
else:
    _Base = object

__all__ = ["EverifinMixin", "EverifinTestCase"]


class EverifinMixin(_Base):
    """
    Goes in front of any test case of Django: ``class AccountsTests(EverifinMixin, TestCase)``.

    ``self.everifin`` answers for Everifin in each test; every other host is refused. A test class
    with a ``setUp`` of its own calls ``super().setUp()`` first.
    """

    everifin: FakeEverifin

    def setUp(self) -> None:
        super().setUp()
        self.everifin = self.enterContext(fake_everifin())

    @cached_property
    def everifin_user(self) -> Any:
        """A user of the site with a live connection, who is alice at Everifin."""
        return self.everifin.make_user()

    def everifin_login(self, username: str = "alice", **data: str) -> Any:
        """Log ``self.client`` in with Everifin, through the site's real views."""
        return self.everifin.visit(self.client, "login", username, **data)

    def everifin_connect(self, username: str = "alice", **data: str) -> Any:
        """Connect the user whom ``self.client`` is logged in as, through the site's real views."""
        return self.everifin.visit(self.client, "connect", username, **data)


class EverifinTestCase(EverifinMixin, TestCase):
    """Django's TestCase with a fake Everifin."""

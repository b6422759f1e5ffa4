"""A visitor of the example site under real servers, driven through Keycloak's own pages."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.utils import timezone

from everifin_django.models import BankToken
from everifin_django.testing.sandbox.server import serve
from example_project.browser import Browser
from tests.contract.parties import from_keycloak
from tests.keycloak.bank import Bank
from tests.keycloak.site import SERVERS, example_site

pytestmark = [pytest.mark.keycloak, pytest.mark.django_db(transaction=True)]

LONGEST_SECONDS = 120
READY, AGAIN = "/accounts/", "/everifin/connect/"


class Tour:
    """A visitor of *site*, and the *realm* behind it."""

    def __init__(self, site: str, realm) -> None:
        self.site = site
        self.realm = realm
        self.browser = Browser(time.monotonic() + LONGEST_SECONDS)

    def open(self, path: str) -> str:
        """Open a page; return the path where that ended."""
        return self.browser.open(self.site + path).path

    def sign_in(self, button: str, answer: str = "Yes") -> str:
        """Press a button of the site, and do what Keycloak asks; return the path it leads to."""
        page = self.browser.press(button)
        if "Sign In" in page.buttons:
            page = self.browser.press("Sign In", username="alice", password="alice")
        if answer in page.buttons:
            page = self.browser.press(answer)
        assert page.url.startswith(self.site), page
        return page.path

    def log_in(self) -> None:
        self.open("/")
        assert self.sign_in("Log in with Everifin") == READY
        assert self.browser.page.all("iban")

    def run_out(self) -> None:
        """Let the access token run out, which is what waiting does."""
        BankToken.objects.update(
            asked_at=timezone.now() - timedelta(minutes=6), access_expires_at=timezone.now()
        )

    def version(self) -> int:
        return BankToken.objects.get().token_version


@pytest.fixture(params=sorted(SERVERS))
def tour(request, realm, tmp_path):
    from_keycloak(realm).switches.reset()
    realm.end_sessions("alice")
    with (
        serve(Bank(realm)) as bank,
        example_site(request.param, realm, bank.url, tmp_path) as site,
    ):
        realm.set_client(
            redirectUris=[*realm.client["redirectUris"], f"{site}/*"],
            attributes={"backchannel.logout.url": f"{site}/everifin/backchannel-logout/"},
        )
        tour = Tour(site, realm)
        yield tour
        tour.browser.close()


def test_log_in_read_expire_refresh_disconnect(tour):
    tour.log_in()
    for rotation, version in (("strict", 2), ("reuse 1", 3), ("default", 4)):
        tour.realm.set_rotation(rotation)
        tour.run_out()
        assert tour.open("/accounts/") == READY
        assert tour.version() == version
    tour.open("/")
    tour.browser.press("Disconnect Everifin")
    assert BankToken.objects.get().status == "disconnected"
    assert tour.realm.live_sessions("alice") == 0


def test_cancel(tour):
    tour.open("/")
    assert tour.sign_in("Log in with Everifin", answer="No") == "/everifin/login/"
    assert not BankToken.objects.exists()


def test_log_out_here_and_there(tour):
    tour.log_in()
    tour.browser.press("Log out")
    assert tour.browser.page.path == "/"
    assert "Log in with Everifin" in tour.browser.page.buttons
    assert tour.realm.live_sessions("alice") == 0


def test_another_signing_key(tour):
    tour.log_in()
    tour.realm.rotate_key()
    tour.run_out()
    assert tour.open("/accounts/") == READY


@pytest.mark.parametrize("end", ["withdraw_consent", "disable_user"])
def test_what_ends_the_grant_asks_for_a_new_one(tour, end):
    tour.realm.set_client(attributes={"backchannel.logout.url": ""})
    tour.log_in()
    getattr(from_keycloak(tour.realm).switches, end)()
    tour.run_out()
    assert tour.open("/accounts/") == AGAIN
    tour.realm.set_user("alice", enabled=True)
    assert tour.sign_in("Connect Everifin") == READY


def test_a_session_ended_by_the_administrator_ends_the_one_here(tour):
    """Keycloak tells the site by the back channel."""
    tour.log_in()
    tour.realm.end_sessions("alice")
    tour.open("/")
    assert "Log in with Everifin" in tour.browser.page.buttons


def test_pkce_where_it_is_required(tour):
    from_keycloak(tour.realm).switches.require_pkce()
    tour.log_in()


def test_a_wrong_client_secret(tour):
    tour.realm.set_client(secret="another one")
    try:
        tour.open("/")
        assert tour.sign_in("Log in with Everifin") == "/everifin/login/"
        assert not BankToken.objects.exists()
    finally:
        tour.realm.set_client(secret=tour.realm.client["secret"])

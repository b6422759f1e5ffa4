"""
What happens to a visitor of a real site, and what they and the provider are to see then.

The test suite and ``python -m tests.keycloak`` play these, each with every provider.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core.management import call_command
from django.utils.crypto import get_random_string

from everifin_django.models import BankToken
from tests.contract.differences import Difference
from tests.contract.parties import NoSuchSwitchError
from tests.keycloak.tour import Sites, Tour

PASSWORD = "a password of the site"
LONGEST_PAUSE_SECONDS = 20
POLL_SECONDS = 0.5
AWAY = {"EVERIFIN_SCOPES": "openid ais offline_access"}
NO_RETURN = {"EVERIFIN_POST_LOGOUT_REDIRECT_URI": ""}


Play = Callable[[Tour], str]
"""Does it, and returns what was observed."""


class Scenario(NamedTuple):
    """*settings* are those of the site, beside what it needs for the provider."""

    title: str
    expected: str
    play: Play
    settings: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.play.__name__


SCENARIOS: list[Scenario] = []


def scenario(title: str, expected: str, **settings: str) -> Callable[[Play], Play]:
    def add(play: Play) -> Play:
        SCENARIOS.append(Scenario(title, expected, play, settings))
        return play

    return add


def observe(scenario: Scenario, sites: Sites) -> str:
    """Play *scenario*, nobody being known to the site or logged in anywhere."""
    call_command("flush", interactive=False, verbosity=0)
    site = sites.with_settings(scenario.settings)
    sites.provider.know_site(site.url)
    tour = Tour(site, sites.provider)
    try:
        return scenario.play(tour)
    except NoSuchSwitchError:
        return UNABLE
    finally:
        tour.close()


# Coming


@scenario("log in, read accounts and transactions", "password, consent; accounts; transactions")
def log_in_and_read(tour: Tour) -> str:
    seen = tour.log_in()
    page = tour.browser.page
    account = next(url for _, url in page.links if re.fullmatch(r".+/accounts/\w+/", url))
    rows = tour.browser.open(account).all("transaction")
    asked = ", ".join(tour.asked_for)
    return f"{asked}; {seen}; {'transactions' if rows else 'no transactions'}"


@scenario("cancel the login", "asked to log in, nothing stored")
def cancel_a_login(tour: Tour) -> str:
    tour.open("/")
    return f"{tour.sign_in('Log in with Everifin', answer='No')}, {tour.stored()}"


@scenario("connect, logged in with a password of the site", "accounts, the session goes on")
def connect(tour: Tour) -> str:
    session = here(tour)
    seen = tour.sign_in("Connect Everifin")
    return f"{seen}, {goes_on(tour, session)}"


@scenario("cancel the connecting", "asked to connect, nothing stored, the session goes on")
def cancel_a_connection(tour: Tour) -> str:
    session = here(tour)
    seen = tour.sign_in("Connect Everifin", answer="No")
    return f"{seen}, {tour.stored()}, {goes_on(tour, session)}"


@scenario("PKCE is required, log in", "accounts")
def pkce_where_it_is_required(tour: Tour) -> str:
    tour.provider.party.switches.require_pkce()
    return tour.log_in()


@scenario("the client secret is wrong, log in", "asked to log in, nothing stored, operator told")
def a_wrong_secret_at_login(tour: Tour) -> str:
    tour.provider.change_secret("another one")
    return f"{tour.log_in()}, {tour.stored()}, {alarm(tour, 'refused the login code')}"


# Staying


def refreshed(tour: Tour, rotation: str) -> str:
    tour.provider.party.switches.set_rotation(rotation)
    tour.log_in()
    seen = [tour.accounts_later() for _ in range(2)]
    return f"{', '.join(seen)}; refreshes: {tour.version() - 1}"


def backup_restored(tour: Tour, rotation: str) -> str:
    tour.provider.party.switches.set_rotation(rotation)
    tour.log_in()
    old = BankToken.objects.get().refresh_ciphertext
    tour.accounts_later()
    BankToken.objects.update(refresh_ciphertext=old)
    return tour.accounts_later()


TWICE = "accounts, accounts; refreshes: 2"


@scenario("the access token runs out twice, Revoke Refresh Token with reuse 0", TWICE)
def refresh_strictly(tour: Tour) -> str:
    return refreshed(tour, "strict")


@scenario("the access token runs out twice, reuse 1", TWICE)
def refresh_with_reuse(tour: Tour) -> str:
    return refreshed(tour, "reuse 1")


@scenario("the access token runs out twice, Revoke Refresh Token off", TWICE)
def refresh_without_rotation(tour: Tour) -> str:
    return refreshed(tour, "default")


@scenario("the site shows a spent token (its backup was restored), reuse 0", "asked to connect")
def a_spent_token_strictly(tour: Tour) -> str:
    return backup_restored(tour, "strict")


@scenario("the site shows a spent token, reuse 1", "accounts")
def a_spent_token_with_reuse(tour: Tour) -> str:
    return backup_restored(tour, "reuse 1")


@scenario("the site shows a spent token, Revoke Refresh Token off", "accounts")
def a_spent_token_without_rotation(tour: Tour) -> str:
    return backup_restored(tour, "default")


@scenario("another key signs, refresh and log in again", "accounts, accounts")
def another_signing_key(tour: Tour) -> str:
    tour.log_in()
    tour.provider.party.switches.rotate_key()
    seen = tour.accounts_later()
    tour.open("/")
    tour.browser.press("Log out")
    return f"{seen}, {tour.log_in()}"


@scenario(
    "the client secret is wrong, refresh; it is put right",
    "503 /accounts/, stored: active, operator told; accounts",
)
def a_wrong_secret_at_a_refresh(tour: Tour) -> str:
    tour.log_in()
    tour.provider.change_secret("another one")
    seen = f"{tour.accounts_later()}, {tour.stored()}, {alarm(tour, 'Its tokens are kept.')}"
    tour.provider.change_secret(tour.provider.party.client_secret)
    # The site leaves Everifin alone for some seconds after such a refusal.
    until = time.monotonic() + LONGEST_PAUSE_SECONDS
    while (again := tour.accounts_later()) != "accounts" and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return f"{seen}; {again}"


# Ending


@scenario("disconnect", "logged in, stored: disconnected, sessions there: 0")
def disconnect(tour: Tour) -> str:
    tour.log_in()
    tour.open("/")
    tour.browser.press("Disconnect Everifin")
    return f"{tour.sees()}, {tour.stored()}, {tour.sessions_there()}"


@scenario("log out", "logged out, sessions there: 0, password asked for", **NO_RETURN)
def log_out(tour: Tour) -> str:
    return log_out_and_come_back(tour)


@scenario("log out, RP-initiated", "logged out, sessions there: 0, password asked for")
def log_out_by_the_browser(tour: Tour) -> str:
    return log_out_and_come_back(tour)


def log_out_and_come_back(tour: Tour) -> str:
    tour.log_in()
    tour.open("/")
    tour.browser.press("Log out")
    seen = f"{tour.sees()}, {tour.sessions_there()}"
    tour.log_in()
    return f"{seen}, password {'asked for' if 'password' in tour.asked_for else 'not asked for'}"


@scenario(
    "the administrator logs the user out, by the back channel", "logged out, connection ended"
)
def ended_by_the_administrator(tour: Tour) -> str:
    tour.log_in()
    tour.provider.end_sessions()
    return told_of_the_end(tour)


@scenario(
    "a logout at the provider's own page, by the back channel", "logged out, connection ended"
)
def logged_out_elsewhere(tour: Tour) -> str:
    tour.log_in()
    tour.provider.log_out_there(tour.browser)
    return told_of_the_end(tour)


def told_of_the_end(tour: Tour) -> str:
    seen = tour.open("/")
    goes_on = BankToken.objects.exclude(status=BankToken.Status.DISCONNECTED).exists()
    return f"{seen}, connection {'goes on' if goes_on else 'ended'}"


RECONNECTED = "asked to connect; accounts, the same connection"


@scenario("the administrator logs the user out, nobody is told; connect again", RECONNECTED)
def ended_unheard(tour: Tour) -> str:
    return reconnected(tour, tour.provider.end_sessions)


@scenario("the consent is withdrawn; connect again", RECONNECTED)
def consent_withdrawn(tour: Tour) -> str:
    return reconnected(tour, tour.provider.party.switches.withdraw_consent)


@scenario("the user is disabled, then enabled; connect again", RECONNECTED)
def user_disabled(tour: Tour) -> str:
    return reconnected(tour, tour.provider.party.switches.disable_user, tour.provider.enable_user)


def reconnected(
    tour: Tour, end: Callable[[], None], mend: Callable[[], None] = lambda: None
) -> str:
    tour.provider.tell_nobody()
    tour.log_in()
    row = BankToken.objects.get()
    end()
    seen = tour.accounts_later()
    mend()
    again = tour.sign_in("Connect Everifin")
    is_same = BankToken.objects.get().pk == row.pk
    return f"{seen}; {again}, {'the same connection' if is_same else 'another connection'}"


# While the user is away


def later(tour: Tour, end: Callable[[], None]) -> str:
    here(tour)
    seen = tour.sign_in("Connect Everifin")
    # Keycloak counts in whole seconds, and refuses what is from before.
    time.sleep(1.1 - time.time() % 1)
    end()
    return f"{seen}; {tour.accounts_later()}"


@scenario(
    "offline_access; the administrator ends the session, the access token runs out",
    "accounts; accounts",
    **AWAY,
)
def offline_access(tour: Tour) -> str:
    return later(tour, tour.provider.end_one_session)


@scenario(
    "offline_access; the administrator logs the user out, the access token runs out",
    "accounts; asked to connect",
    **AWAY,
)
def offline_access_logged_out(tour: Tour) -> str:
    return later(tour, tour.provider.end_sessions)


@scenario(
    "offline_access; the consent is withdrawn, the access token runs out",
    "accounts; asked to connect",
    **AWAY,
)
def offline_access_withdrawn(tour: Tour) -> str:
    return later(tour, tour.provider.party.switches.withdraw_consent)


@scenario("offline_access; disconnect", "logged in, stored: disconnected, grants there: 0", **AWAY)
def offline_access_disconnected(tour: Tour) -> str:
    here(tour)
    tour.sign_in("Connect Everifin")
    tour.open("/")
    tour.browser.press("Disconnect Everifin")
    return f"{tour.sees()}, {tour.stored()}, {tour.grants_there()}"


# Words for what is seen


def here(tour: Tour) -> str | None:
    """Log in with a password of the site; return the session's name."""
    # As the site hashes them; the hasher of the tests is another.
    hashed = PBKDF2PasswordHasher().encode(PASSWORD, get_random_string(22))
    user = get_user_model().objects.create(username="holder", password=hashed)
    tour.log_in_here(user, PASSWORD)
    return tour.browser.cookie("sessionid")


def goes_on(tour: Tour, session: str | None) -> str:
    tour.open("/")
    is_same = tour.sees() == "logged in" and tour.browser.cookie("sessionid") == session
    return f"the session {'goes on' if is_same else 'has changed'}"


def alarm(tour: Tour, words: str) -> str:
    return f"operator {'told' if words in tour.logged() else 'not told'}"


UNABLE = "(no such switch)"
DIFFERENCES: dict[tuple[str, str], Difference] = {
    **{
        (name, "sandbox"): Difference(UNABLE, "The sandbox spares no repeated token once.")
        for name in ("refresh_with_reuse", "a_spent_token_with_reuse")
    },
    ("user_disabled", "sandbox"): Difference(UNABLE, "The sandbox disables nobody."),
    ("logged_out_elsewhere", "sandbox"): Difference(
        UNABLE, "The sandbox's pages remember no browser, so nobody can log out on them."
    ),
    ("offline_access", "sandbox"): Difference(
        UNABLE, "The sandbox has one session for the browser and for when the user is away."
    ),
    **{
        (name, "keycloak legacy"): Difference(
            "logged in, connection goes on",
            "Its logout tokens have no exp, which OpenID Connect Back-Channel Logout 1.0, section "
            "2.4, requires; Keycloak's have it since the end of 2023 (keycloak/keycloak#25753).",
        )
        for name in ("ended_by_the_administrator", "logged_out_elsewhere")
    },
}
"""By the names of scenario and party; a difference that is no longer seen fails as well."""

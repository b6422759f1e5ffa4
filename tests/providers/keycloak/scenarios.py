"""
What happens to a visitor of a real site, and what they and the provider are to see then.

The test suite and ``python -m tests.providers.keycloak`` play these, each with every provider.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core.management import call_command
from django.utils.crypto import get_random_string

from everifin_django.models import BankToken
from tests.providers.contract.differences import Difference
from tests.providers.contract.providers import NoSuchSwitchError
from tests.providers.keycloak.visitor import Sites, Visitor

PASSWORD = "a password of the site"
LONGEST_PAUSE_SECONDS = 20
POLL_SECONDS = 0.5
AWAY = {"EVERIFIN_SCOPES": "openid ais offline_access"}
NO_RETURN = {"EVERIFIN_POST_LOGOUT_REDIRECT_URI": ""}
GOES_ON = {"EVERIFIN_LOGOUT_ENDS_CONNECTION": "0"}


Play = Callable[[Visitor], str]
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
    visitor = Visitor(site, sites.provider)
    try:
        return scenario.play(visitor)
    except NoSuchSwitchError:
        return UNABLE
    finally:
        visitor.close()


# Coming


@scenario("log in, read accounts and transactions", "password, consent; accounts; transactions")
def log_in_and_read(visitor: Visitor) -> str:
    seen = visitor.log_in()
    page = visitor.browser.page
    account = next(url for _, url in page.links if re.fullmatch(r".+/accounts/\w+/", url))
    rows = visitor.browser.open(account).all("transaction")
    asked = ", ".join(visitor.asked_for)
    return f"{asked}; {seen}; {'transactions' if rows else 'no transactions'}"


@scenario("cancel the login", "asked to log in, nothing stored")
def cancel_a_login(visitor: Visitor) -> str:
    visitor.open("/")
    return f"{visitor.sign_in('Log in with Everifin', answer='No')}, {visitor.stored()}"


@scenario("connect, logged in with a password of the site", "accounts, the session goes on")
def connect(visitor: Visitor) -> str:
    session = here(visitor)
    seen = visitor.sign_in("Connect Everifin")
    return f"{seen}, {goes_on(visitor, session)}"


@scenario("cancel the connecting", "asked to connect, nothing stored, the session goes on")
def cancel_a_connection(visitor: Visitor) -> str:
    session = here(visitor)
    seen = visitor.sign_in("Connect Everifin", answer="No")
    return f"{seen}, {visitor.stored()}, {goes_on(visitor, session)}"


@scenario("PKCE is required, log in", "accounts")
def pkce_where_it_is_required(visitor: Visitor) -> str:
    visitor.provider.contract.switches.require_pkce()
    return visitor.log_in()


@scenario("the client secret is wrong, log in", "asked to log in, nothing stored, operator told")
def a_wrong_secret_at_login(visitor: Visitor) -> str:
    visitor.provider.change_secret("another one")
    return f"{visitor.log_in()}, {visitor.stored()}, {alarm(visitor, 'refused the login code')}"


# Staying


def refreshed(visitor: Visitor, rotation: str) -> str:
    visitor.provider.contract.switches.set_rotation(rotation)
    visitor.log_in()
    seen = [visitor.accounts_later() for _ in range(2)]
    return f"{', '.join(seen)}; refreshes: {visitor.version() - 1}"


def backup_restored(visitor: Visitor, rotation: str) -> str:
    visitor.provider.contract.switches.set_rotation(rotation)
    visitor.log_in()
    old = BankToken.objects.get().refresh_ciphertext
    visitor.accounts_later()
    BankToken.objects.update(refresh_ciphertext=old)
    return visitor.accounts_later()


TWICE = "accounts, accounts; refreshes: 2"


@scenario("the access token runs out twice, Revoke Refresh Token with reuse 0", TWICE)
def refresh_strictly(visitor: Visitor) -> str:
    return refreshed(visitor, "strict")


@scenario("the access token runs out twice, reuse 1", TWICE)
def refresh_with_reuse(visitor: Visitor) -> str:
    return refreshed(visitor, "reuse 1")


@scenario("the access token runs out twice, Revoke Refresh Token off", TWICE)
def refresh_without_rotation(visitor: Visitor) -> str:
    return refreshed(visitor, "default")


@scenario("the site shows a spent token (its backup was restored), reuse 0", "asked to connect")
def a_spent_token_strictly(visitor: Visitor) -> str:
    return backup_restored(visitor, "strict")


@scenario("the site shows a spent token, reuse 1", "accounts")
def a_spent_token_with_reuse(visitor: Visitor) -> str:
    return backup_restored(visitor, "reuse 1")


@scenario("the site shows a spent token, Revoke Refresh Token off", "accounts")
def a_spent_token_without_rotation(visitor: Visitor) -> str:
    return backup_restored(visitor, "default")


@scenario("another key signs, refresh and log in again", "accounts, accounts")
def another_signing_key(visitor: Visitor) -> str:
    visitor.log_in()
    visitor.provider.contract.switches.rotate_key()
    seen = visitor.accounts_later()
    visitor.open("/")
    visitor.browser.press("Log out")
    return f"{seen}, {visitor.log_in()}"


@scenario(
    "the client secret is wrong, refresh; it is put right",
    "503 /accounts/, stored: active, operator told; accounts",
)
def a_wrong_secret_at_a_refresh(visitor: Visitor) -> str:
    visitor.log_in()
    visitor.provider.change_secret("another one")
    seen = (
        f"{visitor.accounts_later()}, {visitor.stored()}, {alarm(visitor, 'Its tokens are kept.')}"
    )
    visitor.provider.change_secret(visitor.provider.contract.client_secret)
    # The site leaves Everifin alone for some seconds after such a refusal.
    until = time.monotonic() + LONGEST_PAUSE_SECONDS
    while (again := visitor.accounts_later()) != "accounts" and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return f"{seen}; {again}"


# Ending


@scenario("disconnect", "logged in, stored: disconnected, sessions there: 0")
def disconnect(visitor: Visitor) -> str:
    visitor.log_in()
    visitor.open("/")
    visitor.browser.press("Disconnect Everifin")
    return f"{visitor.sees()}, {visitor.stored()}, {visitor.sessions_there()}"


@scenario("log out", "logged out, sessions there: 0, password asked for", **NO_RETURN)
def log_out(visitor: Visitor) -> str:
    return log_out_and_come_back(visitor)


@scenario("log out, RP-initiated", "logged out, sessions there: 0, password asked for")
def log_out_by_the_browser(visitor: Visitor) -> str:
    return log_out_and_come_back(visitor)


def log_out_and_come_back(visitor: Visitor) -> str:
    visitor.log_in()
    visitor.open("/")
    visitor.browser.press("Log out")
    seen = f"{visitor.sees()}, {visitor.sessions_there()}"
    visitor.log_in()
    return f"{seen}, password {'asked for' if 'password' in visitor.asked_for else 'not asked for'}"


@scenario(
    "the administrator logs the user out, by the back channel", "logged out, connection ended"
)
def ended_by_the_administrator(visitor: Visitor) -> str:
    visitor.log_in()
    visitor.provider.end_sessions()
    return told_of_the_end(visitor)


@scenario(
    "a logout at the provider's own page, by the back channel", "logged out, connection ended"
)
def logged_out_elsewhere(visitor: Visitor) -> str:
    visitor.log_in()
    visitor.provider.log_out_there(visitor.browser)
    return told_of_the_end(visitor)


def told_of_the_end(visitor: Visitor) -> str:
    seen = visitor.open("/")
    goes_on = BankToken.objects.exclude(status=BankToken.Status.DISCONNECTED).exists()
    return f"{seen}, connection {'goes on' if goes_on else 'ended'}"


# Two browsers of one user

ONE_AFTER_THE_OTHER = (
    "logged out, sessions there: 1; the other one: accounts; "
    "logged out, sessions there: 0, stored: disconnected"
)


@scenario("two browsers: the first logs out, then the second", ONE_AFTER_THE_OTHER, **NO_RETURN)
def two_browsers(visitor: Visitor) -> str:
    return one_after_the_other(visitor, is_first_the_older=True)


@scenario("two browsers, RP-initiated: the first logs out, then the second", ONE_AFTER_THE_OTHER)
def two_browsers_by_the_browser(visitor: Visitor) -> str:
    return one_after_the_other(visitor, is_first_the_older=True)


@scenario("two browsers, RP-initiated: the second logs out, then the first", ONE_AFTER_THE_OTHER)
def two_browsers_the_other_way(visitor: Visitor) -> str:
    return one_after_the_other(visitor, is_first_the_older=False)


def one_after_the_other(visitor: Visitor, *, is_first_the_older: bool) -> str:
    with closing(Visitor(visitor.site, visitor.provider)) as another:
        for each in (visitor, another):
            each.log_in()
        first, second = (visitor, another) if is_first_the_older else (another, visitor)
        seen = f"{logged_out(first)}, {first.sessions_there()}"
        seen += f"; the other one: {second.accounts_later()}"
        seen += f"; {logged_out(second)}, {second.sessions_there()}"
        return f"{seen}, {second.stored()}"


@scenario(
    "two browsers: a logout at the provider's own page in the first, by the back channel",
    "logged out; the other one: accounts",
)
def two_browsers_logged_out_elsewhere(visitor: Visitor) -> str:
    with closing(Visitor(visitor.site, visitor.provider)) as another:
        for each in (visitor, another):
            each.log_in()
        visitor.provider.log_out_there(visitor.browser)
        return f"{visitor.open('/')}; the other one: {another.accounts_later()}"


@scenario(
    "two browsers: the administrator logs the user out, by the back channel",
    "logged out, connection ended; the other one: logged out",
)
def two_browsers_ended_by_the_administrator(visitor: Visitor) -> str:
    with closing(Visitor(visitor.site, visitor.provider)) as another:
        for each in (visitor, another):
            each.log_in()
        visitor.provider.end_sessions()
        return f"{told_of_the_end(visitor)}; the other one: {another.open('/')}"


def logged_out(visitor: Visitor) -> str:
    visitor.open("/")
    visitor.browser.press("Log out")
    return visitor.sees()


RECONNECTED = "asked to connect; accounts, the same connection"


@scenario("the administrator logs the user out, nobody is told; connect again", RECONNECTED)
def ended_unheard(visitor: Visitor) -> str:
    return reconnected(visitor, visitor.provider.end_sessions)


@scenario("the consent is withdrawn; connect again", RECONNECTED)
def consent_withdrawn(visitor: Visitor) -> str:
    return reconnected(visitor, visitor.provider.contract.switches.withdraw_consent)


@scenario("the user is disabled, then enabled; connect again", RECONNECTED)
def user_disabled(visitor: Visitor) -> str:
    return reconnected(
        visitor, visitor.provider.contract.switches.disable_user, visitor.provider.enable_user
    )


def reconnected(
    visitor: Visitor, end: Callable[[], None], mend: Callable[[], None] = lambda: None
) -> str:
    visitor.provider.tell_nobody()
    visitor.log_in()
    row = BankToken.objects.get()
    end()
    seen = visitor.accounts_later()
    mend()
    again = visitor.sign_in("Connect Everifin")
    is_same = BankToken.objects.get().pk == row.pk
    return f"{seen}; {again}, {'the same connection' if is_same else 'another connection'}"


# While the user is away


def later(visitor: Visitor, end: Callable[[], None]) -> str:
    here(visitor)
    seen = visitor.sign_in("Connect Everifin")
    # Keycloak counts in whole seconds, and refuses what is from before.
    time.sleep(1.1 - time.time() % 1)
    end()
    return f"{seen}; {visitor.accounts_later()}"


@scenario(
    "offline_access; the administrator ends the session, the access token runs out",
    "accounts; accounts",
    **AWAY,
)
def offline_access(visitor: Visitor) -> str:
    return later(visitor, visitor.provider.end_one_session)


@scenario(
    "offline_access; the administrator logs the user out, the access token runs out",
    "accounts; asked to connect",
    **AWAY,
)
def offline_access_logged_out(visitor: Visitor) -> str:
    return later(visitor, visitor.provider.end_sessions)


@scenario(
    "offline_access; the consent is withdrawn, the access token runs out",
    "accounts; asked to connect",
    **AWAY,
)
def offline_access_withdrawn(visitor: Visitor) -> str:
    return later(visitor, visitor.provider.contract.switches.withdraw_consent)


@scenario("offline_access; disconnect", "logged in, stored: disconnected, grants there: 0", **AWAY)
def offline_access_disconnected(visitor: Visitor) -> str:
    here(visitor)
    visitor.sign_in("Connect Everifin")
    visitor.open("/")
    visitor.browser.press("Disconnect Everifin")
    return f"{visitor.sees()}, {visitor.stored()}, {visitor.grants_there()}"


@scenario(
    "offline_access; log out",
    "logged out, grants there: 0, stored: disconnected",
    **AWAY,
    **NO_RETURN,
)
def offline_access_log_out(visitor: Visitor) -> str:
    visitor.log_in()
    return what_is_left(visitor)


@scenario(
    "offline_access; log out, RP-initiated",
    "logged out, grants there: 0, stored: disconnected, sessions there: 0, password asked for",
    **AWAY,
)
def offline_access_log_out_by_the_browser(visitor: Visitor) -> str:
    visitor.log_in()
    seen = f"{what_is_left(visitor)}, {visitor.sessions_there()}"
    visitor.log_in()
    return f"{seen}, password {'asked for' if 'password' in visitor.asked_for else 'not asked for'}"


@scenario(
    "offline_access; log out, RP-initiated, where the connection goes on; log in again",
    "logged out, grants there: 1, stored: active, sessions there: 0; accounts",
    **AWAY,
    **GOES_ON,
)
def offline_access_goes_on(visitor: Visitor) -> str:
    visitor.log_in()
    return f"{what_is_left(visitor)}, {visitor.sessions_there()}; {visitor.log_in()}"


OFFLINE_ONE_AFTER_THE_OTHER = (
    "logged out, grants there: 1, stored: active; the other one: accounts; "
    "logged out, grants there: 0, stored: disconnected"
)


@scenario(
    "offline_access; two browsers: the first logs out, then the second",
    OFFLINE_ONE_AFTER_THE_OTHER,
    **AWAY,
    **NO_RETURN,
)
def offline_access_two_browsers(visitor: Visitor) -> str:
    return offline_one_after_the_other(visitor)


@scenario(
    "offline_access; two browsers, RP-initiated: the first logs out, then the second",
    f"{OFFLINE_ONE_AFTER_THE_OTHER}, sessions there: 0",
    **AWAY,
)
def offline_access_two_browsers_by_the_browser(visitor: Visitor) -> str:
    return f"{offline_one_after_the_other(visitor)}, {visitor.sessions_there()}"


@scenario(
    "offline_access; two browsers, RP-initiated, where the connection goes on",
    "logged out, stored: active; the other one: accounts",
    **AWAY,
    **GOES_ON,
)
def offline_access_two_browsers_goes_on(visitor: Visitor) -> str:
    with closing(Visitor(visitor.site, visitor.provider)) as another:
        for each in (visitor, another):
            each.log_in()
        seen = f"{logged_out(visitor)}, {visitor.stored()}"
        return f"{seen}; the other one: {another.accounts_later()}"


def offline_one_after_the_other(visitor: Visitor) -> str:
    with closing(Visitor(visitor.site, visitor.provider)) as another:
        for each in (visitor, another):
            each.log_in()
        first = what_is_left(visitor)
        seen = f"{first}; the other one: {another.accounts_later()}"
        return f"{seen}; {what_is_left(another)}"


def what_is_left(visitor: Visitor) -> str:
    """Log out, and say what goes on at the provider and here."""
    return f"{logged_out(visitor)}, {visitor.grants_there()}, {visitor.stored()}"


# Words for what is seen


def here(visitor: Visitor) -> str | None:
    """Log in with a password of the site; return the session's name."""
    # As the site hashes them; the hasher of the tests is another.
    hashed = PBKDF2PasswordHasher().encode(PASSWORD, get_random_string(22))
    user = get_user_model().objects.create(username="holder", password=hashed)
    visitor.log_in_here(user, PASSWORD)
    return visitor.browser.cookie("sessionid")


def goes_on(visitor: Visitor, session: str | None) -> str:
    visitor.open("/")
    is_same = visitor.sees() == "logged in" and visitor.browser.cookie("sessionid") == session
    return f"the session {'goes on' if is_same else 'has changed'}"


def alarm(visitor: Visitor, words: str) -> str:
    return f"operator {'told' if words in visitor.logged() else 'not told'}"


UNABLE = "(no such switch)"
DIFFERENCES: dict[tuple[str, str], Difference] = {
    **{
        (name, "sandbox"): Difference(UNABLE, "The sandbox spares no repeated token once.")
        for name in ("refresh_with_reuse", "a_spent_token_with_reuse")
    },
    ("user_disabled", "sandbox"): Difference(UNABLE, "The sandbox disables nobody."),
}
"""By the names of scenario and provider; a difference that is no longer seen fails as well."""

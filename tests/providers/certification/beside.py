"""
What a visitor can come to by a login although no test of the suite asks about it.

The names are ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from django.contrib.auth import get_user_model

from tests.providers.certification.cases import Case, asks_userinfo
from tests.providers.certification.provider import Provider
from tests.providers.certification.sites import LOGGED_IN, REFUSED, Visit

STAYS = "stays logged in"
LOGGED_OUT = "logged out"
SWITCHED = "switched to another user"
NOT_THEM = "not taken for them"
TAKEN_FOR_THEM = "taken for them"
LATER = "asked to come back later"

SKEW_SECONDS = 30


def be_ahead(provider: Provider) -> None:
    now = int(time.time()) + SKEW_SECONDS
    provider.change_claims(iat=now, exp=now + 300)


def name_another_issuer(provider: Provider) -> None:
    provider.named_issuer = f"{provider.issuer}/other"


def refuse_code(provider: Provider) -> None:
    provider.faults.add("token", status=400, body={"error": "invalid_grant"})


def be_down(provider: Provider) -> None:
    provider.faults.add("token", status=503, html=True)


def while_logged_in(go_on: Callable[[Visit], object]) -> Callable[[Visit], str]:
    """Return a play that goes on with who has logged in, and says who is logged in then."""

    def play(visit: Visit) -> str:
        if visit.log_in() != LOGGED_IN:
            return "not logged in"
        before = visit.user_pk
        go_on(visit)
        if visit.user_pk is None:
            return LOGGED_OUT
        return STAYS if visit.user_pk == before else SWITCHED

    return play


def cancel(visit: Visit) -> None:
    url = visit.site.start_once_more(visit.browser)
    visit.browser.get(visit.provider.authorize(url, visit.username, consent=False))


def follow_a_strangers_link(visit: Visit) -> None:
    visit.browser.get(visit.site.callback(), {"error": "access_denied", "state": "a-state"})


def choose_another_account(visit: Visit) -> None:
    url = visit.site.start_once_more(visit.browser)
    visit.browser.get(visit.provider.authorize(url, Visit(visit.site, visit.provider).username))


def log_in_where_somebody_has_the_address(visit: Visit) -> str:
    visit.username = f"{visit.username}-unverified"
    visit.provider.add_user(visit.username, email_verified=False)
    owner = get_user_model().objects.create_user(
        f"owner-of-{visit.username}", f"{visit.username}@example.test"
    )
    outcome = visit.log_in()
    if visit.user_pk is None:
        return NOT_THEM if outcome == REFUSED else outcome
    return TAKEN_FOR_THEM if visit.user_pk == str(owner.pk) else NOT_THEM


def log_in_during_an_outage(visit: Visit) -> str:
    outcome = visit.log_in()
    is_temporary = visit.answer.status_code == 503 and visit.answer.has_header("Retry-After")
    return LATER if is_temporary else outcome


BESIDE = (
    Case(
        name="cancelled-while-logged-in",
        provider_does="sends back a visitor who is logged in here and cancels there",
        right=(STAYS,),
        play=while_logged_in(cancel),
    ),
    Case(
        name="error-in-a-strangers-link",
        provider_does="is not asked: a link of somebody else's brings an `error` to the callback",
        right=(STAYS,),
        play=while_logged_in(follow_a_strangers_link),
    ),
    Case(
        name="another-account-while-logged-in",
        provider_does="sends back a visitor who is logged in here and chose another account there",
        right=(STAYS,),
        play=while_logged_in(choose_another_account),
    ),
    Case(
        name="email-of-another-user",
        provider_does="names the email address of a user of the site, and that it is not verified",
        right=(NOT_THEM,),
        play=log_in_where_somebody_has_the_address,
    ),
    Case(
        name="another-issuer-everywhere",
        provider_does="names another issuer than the one configured, wherever it names one",
        right=(REFUSED,),
        switch=name_another_issuer,
        complaint=asks_userinfo,
    ),
    Case(
        name="clock-ahead",
        provider_does=f"has a clock that is {SKEW_SECONDS} seconds ahead",
        right=(LOGGED_IN,),
        switch=be_ahead,
    ),
    Case(
        name="code-refused",
        provider_does="refuses the code with `invalid_grant`",
        right=(REFUSED,),
        switch=refuse_code,
    ),
    Case(
        name="token-endpoint-down",
        provider_does="answers the token request with 503 and a page",
        right=(LATER,),
        switch=be_down,
        play=log_in_during_an_outage,
    ),
)

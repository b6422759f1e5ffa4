"""
The certification tests of RP-initiated and back-channel logout: what the provider does, and what is
right.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import requests
from django.test import Client

from tests.providers.certification.cases import OIDCC, Case
from tests.providers.certification.provider import AFTER_LOGOUT, curve_key, signed
from tests.providers.certification.sites import LOGGED_IN, NO_SUCH_FEATURE, OURS, REFUSED, Visit

LOGGED_OUT = "logged out"
EVENT = "http://schemas.openid.net/event/backchannel-logout"
ASKED_AT_LOGOUT = {"id_token_hint", "client_id", "post_logout_redirect_uri"}

Sign = Callable[[Visit, dict[str, Any]], str]


def sign(visit: Visit, claims: dict[str, Any]) -> str:
    """As the suite does, which leaves it to the events what kind of token this is."""
    return visit.provider.signing_key.sign(claims)


def do_not_sign(visit: Visit, claims: dict[str, Any]) -> str:
    return signed(claims, "none", None, {})


def sign_by_es256(visit: Visit, claims: dict[str, Any]) -> str:
    """With a published key, but the client's ID tokens are signed by RS256."""
    key, jwk = curve_key()
    visit.provider.publish_keys(visit.provider.signing_key.jwk(), jwk)
    return signed(claims, "ES256", key, {"kid": jwk["kid"]})


def log_out(**changes: str | None) -> Callable[[Visit], str]:
    """Return a play that logs out here and at the provider; *changes* are to the way back."""

    def play(visit: Visit) -> str:
        if visit.log_in() != LOGGED_IN:
            return "not logged in"
        url = visit.site.log_out(visit.browser)
        if not url.startswith(visit.provider.metadata()["end_session_endpoint"]):
            return NO_SUCH_FEATURE
        if missing := ASKED_AT_LOGOUT - {*parse_qs(urlsplit(url).query)}:
            return f"asks without {', '.join(sorted(missing))}"
        answer = requests.get(url, allow_redirects=False, timeout=10)
        address, _, query = answer.headers["Location"].partition("?")
        parameters = {name: values[0] for name, values in parse_qs(query).items()} | changes
        sent = {name: value for name, value in parameters.items() if value is not None}
        back = visit.browser.get(f"{address}?{urlencode(sent)}")
        if back.status_code >= 400:
            return f"error {back.status_code}"
        is_live = visit.is_logged_in or visit.provider.live_sessions(visit.username)
        return "still logged in" if is_live else LOGGED_OUT

    return play


def be_logged_out(sign: Sign = sign, **changes: Any) -> Callable[[Visit], str]:
    """Return a play in which the provider says that the session ended; None leaves a claim out."""

    def play(visit: Visit) -> str:
        if visit.log_in() != LOGGED_IN:
            return "not logged in"
        url = visit.site.backchannel_logout()
        if url is None:
            return NO_SUCH_FEATURE
        [session] = visit.provider.store.sessions(visit.subject)
        claims = {
            "iss": visit.provider.issuer,
            "aud": visit.provider.client_id,
            "iat": int(time.time()),
            "exp": int(time.time()) + 120,
            "jti": uuid.uuid4().hex,
            "sub": visit.subject,
            "sid": session.id,
            "events": {EVENT: {}},
            **changes,
        }
        said = {name: value for name, value in claims.items() if value is not None}
        provider = Client(enforce_csrf_checks=True, raise_request_exception=False)
        status = provider.post(url, {"logout_token": sign(visit, said)}).status_code
        outcomes = {(200, False): LOGGED_OUT, (400, True): REFUSED}
        is_logged_in = visit.is_logged_in
        return outcomes.get((status, is_logged_in), f"{status}, logged in: {is_logged_in}")

    return play


def rp_initiated(name: str, provider_does: str, remark: str, **changes: str | None) -> Case:
    return Case(
        name=f"{OIDCC}-rp-init-logout{name}",
        provider_does=provider_does,
        right=(LOGGED_OUT,),
        play=log_out(**changes),
        settings={OURS.name: {"EVERIFIN_POST_LOGOUT_REDIRECT_URI": AFTER_LOGOUT}},
        remark=remark,
    )


def back_channel(
    name: str, provider_does: str, play: Callable[[Visit], str], remark: str = ""
) -> Case:
    return Case(
        name=f"{OIDCC}-rp-backchannel-rpinitlogout{name}",
        provider_does=provider_does,
        right=(REFUSED if name else LOGGED_OUT,),
        play=play,
        settings={OURS.name: {"EVERIFIN_BACKCHANNEL_LOGOUT": True}},
        remark=remark,
    )


UNCHECKED = "Nothing hangs on the return, so whatever `state` comes back is harmless."

RP_INITIATED = (
    rp_initiated(
        "",
        "does everything right",
        "`mozilla-django-oidc` leaves this to a function of the site's own.",
    ),
    rp_initiated("-other-state", "comes back with another `state`", UNCHECKED, state="another"),
    rp_initiated("-no-state", "comes back without `state`", UNCHECKED, state=None),
)

BACK_CHANNEL = (
    back_channel(
        "",
        "does everything right",
        be_logged_out(),
        "The suite sends its logout tokens during an RP-initiated logout; here they come while the "
        "visitor is logged in, so that one can see what they do. As in the suite, no logout token "
        "has a `typ`; `EnsureBackChannelLogoutUriResponseStatusCodeIs200` wants this one taken, "
        "and `EnsureBackChannelLogoutUriResponseStatusCodeIs400` all others refused.",
    ),
    back_channel("-alg-none", "does not sign the logout token", be_logged_out(do_not_sign)),
    back_channel(
        "-wrong-alg",
        "signs the logout token by ES256",
        be_logged_out(sign_by_es256),
        "With a key that is published (`OIDCCSignLogoutTokenWithWrongAlgorithm`): nothing is wrong "
        "but that the client is registered for RS256.",
    ),
    back_channel("-no-event", "leaves out `events`", be_logged_out(events=None)),
    back_channel(
        "-wrong-event",
        "names another event",
        be_logged_out(events={"http://schemas.openid.net/event/another": {}}),
    ),
    back_channel("-with-nonce", "adds a `nonce`", be_logged_out(nonce="a nonce")),
    back_channel("-wrong-aud", "names another audience", be_logged_out(aud="another-client")),
    back_channel("-wrong-iss", "names another issuer", be_logged_out(iss="https://other.example/")),
)

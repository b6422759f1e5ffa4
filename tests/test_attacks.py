"""The attacks that docs/evidence/security.md lists, tried the way an attacker would."""

from __future__ import annotations

import base64
import hmac
import json
import pickle
from collections import Counter
from collections.abc import Callable
from functools import partial
from traceback import TracebackException
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.test import Client
from jwt.algorithms import RSAAlgorithm

from everifin_django.connections import everifin_for
from everifin_django.exceptions import TokenUnreadableError
from everifin_django.models import BankToken, LoginFlow
from everifin_django.oauth import jwks
from everifin_django.oauth.jwks import clear_signing_keys
from everifin_django.testing.fake import redirect_target
from tests.oauth import signed
from tests.support.flows import change_flows

LOGIN = "/everifin/login/"
CONNECT = "/everifin/connect/"
CALLBACK = "/everifin/callback/"
LOGOUT = "/everifin/logout/"
DISCONNECT = "/everifin/disconnect/"
BACKCHANNEL = "/everifin/backchannel-logout/"
DEFAULT = "/accounts/profile/"

Forge = Callable[[Any, dict[str, Any], dict[str, Any]], Any]

pytestmark = pytest.mark.django_db


@pytest.fixture
def user(django_user_model) -> Any:
    return django_user_model.objects.create_user("ann", "ann@site.example", "a password")


@pytest.fixture
def browser(client, user) -> Any:
    """A browser in which Ann is logged in, by password."""
    client.force_login(user)
    return client


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Give the moment that the cache of keys goes by, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(jwks, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def asked(monkeypatch) -> set[str | None]:
    """Give the hosts that anything was sent to."""
    hosts: set[str | None] = set()
    send = requests.Session.send

    def listen(session: Any, request: Any, **options: Any) -> Any:
        hosts.add(urlsplit(request.url).hostname)
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", listen)
    return hosts


def query(url: str) -> dict[str, str]:
    return {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}


ELSEWHERE = [
    "http:///evil.example",
    "http:evil.example",
    "vbscript:alert(1)",
    "//testserver@evil.example/",
    "https://testserver\\@evil.example/",
    "https://testserver\t.evil.example/",
    " //evil.example",
    "\u3000//evil.example",
    "/\uff3cevil.example",
    "\uff3c\uff3cevil.example",
    "%00//evil.example",
    "/%5C%2fevil.example",
    "//" + "a" * 100_000,
]


@pytest.mark.parametrize("url", ELSEWHERE, ids=lambda url: ascii(url[:40]))
def test_a1_no_door_leads_elsewhere(everifin, browser, url):
    """The other spellings are in test_flows."""
    begun = browser.post(CONNECT, {"next": url})
    change_flows(next_url=url)
    back = everifin.authorize(redirect_target(begun))
    for response in (
        browser.get(back, query_params={**query(back), "next": url}),
        browser.post(DISCONNECT, {"next": url}),
        browser.get(LOGIN, {"next": url}),
        browser.post(LOGIN, {"next": url}),
    ):
        assert response["Location"] == DEFAULT
    assert browser.post(LOGOUT, {"next": url})["Location"] == "/"


def test_a1_a_line_break_in_the_way_back_makes_no_header(everifin_connect, browser):
    response = everifin_connect(browser, next="/a/\r\nSet-Cookie: evil=1")
    assert response["Location"] == "/a/%0D%0ASet-Cookie:%20evil=1"
    assert "evil" not in response.cookies


def test_a2_the_host_of_the_answer_does_not_change_the_redirect_uri(everifin, browser, settings):
    settings.ALLOWED_HOSTS = ["testserver", "other.example"]
    back = everifin.authorize(redirect_target(browser.post(CONNECT)))
    headers = {"host": "other.example", "x-forwarded-host": "evil.example"}
    assert browser.get(back, headers=headers).status_code == 302
    assert everifin.last_request["token"].form["redirect_uri"] == f"http://testserver{CALLBACK}"


def test_a2_a_forwarded_host_that_django_was_told_to_believe_must_be_allowed(client, settings):
    settings.USE_X_FORWARDED_HOST = True
    headers = {"x-forwarded-host": "evil.example"}
    assert client.post(LOGIN, headers=headers).status_code == 400
    assert not Session.objects.exists()


@pytest.mark.parametrize("is_spent", [True, False])
def test_a6_after_a_logout_a_state_serves_nobody_else_and_once(everifin, browser, user, is_spent):
    back = everifin.authorize(redirect_target(browser.post(CONNECT)))
    old_browser = Client()
    old_browser.cookies = browser.cookies.copy()
    if is_spent:
        assert browser.get(back).status_code == 302
    browser.post(LOGOUT)
    assert [one.get(back).status_code for one in (browser, old_browser)] == [400, 400]
    browser.force_login(get_user_model().objects.create_user("eve"))
    assert browser.get(back).status_code == 400
    assert everifin.calls["token"] == is_spent


def test_a6_an_old_flow_put_back_after_a_logout_revives_no_spent_state(everifin, browser, user):
    back = everifin.authorize(redirect_target(browser.post(CONNECT)))
    flow = LoginFlow.objects.get()
    browser.get(back)
    browser.post(LOGOUT)
    browser.force_login(user)
    flow.save()
    assert browser.get(back)["Location"] == DEFAULT
    assert everifin.calls["token"] == 1
    assert BankToken.objects.get().status == "disconnected"


def test_a9_without_pkce_the_nonce_stops_a_code_of_another_login(everifin, client, settings):
    settings.EVERIFIN_USE_PKCE = False
    victims = everifin.authorize(redirect_target(Client().post(LOGIN)), "bob")
    attackers = everifin.authorize(redirect_target(client.post(LOGIN)))
    url = attackers.replace(query(attackers)["code"], query(victims)["code"])
    assert client.get(url).status_code == 400
    assert_nobody_got_in(client, everifin, "bob")


@pytest.mark.parametrize("end", ["deactivate", "delete"])
def test_a13_a_user_who_goes_while_everifin_exchanges_the_code_leaves_no_live_grant(
    everifin, browser, user, end
):
    back = everifin.authorize(redirect_target(browser.post(CONNECT)))

    def hook(headers, claims):
        if end == "delete":
            user.delete()
        else:
            user.is_active = False
            user.save()
        return headers, claims

    everifin.id_token_hook = hook
    assert browser.get(back).status_code == 403
    assert not BankToken.objects.exists()
    assert everifin.live_sessions("alice") == 0


def test_a15_a_visitor_who_only_looks_leaves_no_row(everifin, client, settings):
    settings.EVERIFIN_BACKCHANNEL_LOGOUT = True

    def rows() -> Counter[str]:
        return Counter({one._meta.label: one._base_manager.count() for one in apps.get_models()})

    before = rows()
    for auth_view in (LOGIN, CONNECT, CALLBACK, LOGOUT, DISCONNECT, BACKCHANNEL, "/accounts/"):
        for parameters in ({}, {"state": "x", "code": "x"}, {"error": "x"}, {"next": "/a/"}):
            assert client.get(auth_view, parameters).status_code in {200, 302, 400, 405}
    assert rows() == before
    assert everifin.calls["token"] == 0


def assert_nobody_got_in(client: Client, everifin: Any, username: str = "alice") -> None:
    assert "_auth_user_id" not in client.session
    assert not get_user_model().objects.exists()
    assert not BankToken.objects.exists()
    assert everifin.live_sessions(username) == 0


def rs256(key: rsa.RSAPrivateKey) -> Callable[[bytes], bytes]:
    return lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def with_header(**changes: Any) -> Forge:
    """Signed by Everifin, as no library would do it."""
    return rewritten("", "", **changes)


def rewritten(old: str, new: str, **header: Any) -> Forge:
    def forge(everifin: Any, headers: dict[str, Any], claims: dict[str, Any]) -> str:
        text = json.dumps(claims).replace(old, new, 1)
        sign = rs256(everifin.signing_key.private_key)
        return signed({"alg": "RS256", **headers, **header}, text, sign)

    return forge


def with_claims(**changes: Any) -> Forge:
    """``...`` takes one out."""

    def forge(everifin: Any, headers: dict[str, Any], claims: dict[str, Any]) -> Any:
        changed = {**claims, **changes}
        return headers, {name: value for name, value in changed.items() if value is not ...}

    return forge


def unsigned(algorithm: str) -> Forge:
    def forge(everifin: Any, headers: dict[str, Any], claims: dict[str, Any]) -> str:
        return signed({**headers, "alg": algorithm}, claims).rpartition(".")[0] + "."

    return forge


def shared(name: str) -> Forge:
    """Signed by HMAC with what everybody knows, or this site alone instead of Everifin's key."""

    def forge(everifin: Any, headers: dict[str, Any], claims: dict[str, Any]) -> str:
        public = everifin.signing_key.private_key.public_key()
        secret = {
            "pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "jwk": json.dumps(everifin.signing_key.jwk()).encode(),
            "client secret": everifin.client_secret.encode(),
        }[name]
        sign = partial(hmac.digest, secret, digest="sha256")
        return signed({**headers, "alg": "HS256"}, claims, sign)

    return forge


ATTACKERS_KEY = rsa.generate_private_key(65537, 2048)


def by_attacker(**header: Any) -> Forge:
    def forge(everifin: Any, headers: dict[str, Any], claims: dict[str, Any]) -> str:
        return signed({"alg": "RS256", **headers, **header}, claims, rs256(ATTACKERS_KEY))

    return forge


def logout_token(everifin: Any, headers: dict[str, Any], claims: dict[str, Any]) -> str:
    token: str = everifin.logout_token(username="alice", headers={"typ": "JWT"})
    return token


JWK = RSAAlgorithm.to_jwk(ATTACKERS_KEY.public_key(), as_dict=True)
FORGERIES: dict[str, list[Forge]] = {
    "a17 alg": [
        *(unsigned(name) for name in ("none", "None", "NONE", "nOnE", "RS256", "HS256")),
        *(shared(name) for name in ("pem", "der", "jwk", "client secret")),
        with_header(alg="ES256"),
        with_header(alg="PS256"),
    ],
    "a18 header": [
        by_attacker(),
        by_attacker(jwk=JWK),
        by_attacker(jku="https://evil.example/keys", kid="evil"),
        by_attacker(x5u="https://evil.example/keys", kid="evil"),
        by_attacker(x5c=[base64.b64encode(b"x").decode()], kid="evil"),
        with_header(crit=["exp"]),
        with_header(b64=False, crit=["b64"]),
        with_header(b64=False),
    ],
    "a19 kid": [
        with_header(kid=kid)
        for kid in ("../../etc/passwd", "' OR 1=1 --", "https://evil.example/", "x" * 1000, "")
    ],
    "a22 claims": [
        *(with_claims(**{name: ...}) for name in ("iss", "sub", "aud", "exp", "iat", "nonce")),
        *(with_claims(exp=value) for value in ("9999999999", True, 10**30, 0)),
        with_claims(sub=5),
        with_claims(sub="x" * 256),
        with_claims(iss="https://evil.example/auth/realms/everifin_app"),
        rewritten('"sub":', '"sub": "other", "sub":'),
        rewritten('"iat":', '"more": NaN, "iat":'),
    ],
    "a23 another kind": [
        with_claims(aud=["everifin-sandbox", "other"]),
        with_claims(aud="other"),
        with_claims(azp="other"),
        with_claims(typ="Bearer"),
        with_claims(typ="Logout"),
        with_header(typ="at+jwt"),
        with_header(typ="logout+jwt"),
        logout_token,
    ],
    "a24 at_hash": [with_claims(at_hash="x"), with_claims(at_hash=None)],
}


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(forge, id=f"{attack} {number}")
        for attack, forgeries in FORGERIES.items()
        for number, forge in enumerate(forgeries)
    ],
)
def test_a17_a18_a19_a22_a23_a24_a_forged_id_token_lets_nobody_in(everifin, client, asked, forge):
    """Each piece of a token in every wrong form is in test_identity."""
    seen = []

    def hook(headers, claims):
        seen.append(claims)
        return forge(everifin, headers, claims)

    everifin.id_token_hook = hook
    response = client.get(everifin.authorize(redirect_target(client.post(LOGIN))))
    assert response.status_code == 400
    assert len(seen) == 1
    assert_nobody_got_in(client, everifin)
    assert asked == {"idp.everifin.test"}
    assert everifin.calls["certs"] <= 1


def test_a17_what_is_not_forged_gets_in(everifin, client):
    """So that the test above fails for its forgery and nothing else."""
    for forge in (with_header(), with_claims(), rewritten("", "")):
        everifin.id_token_hook = lambda headers, claims, forge=forge: forge(
            everifin, headers, claims
        )
        assert (
            client.get(everifin.authorize(redirect_target(client.post(LOGIN)))).status_code == 302
        )
        client.logout()


@pytest.mark.parametrize("fault", [None, {"status": 503}, {"body": "{}"}, {"html": True}], ids=str)
def test_a20_anybody_may_flood_the_logout_door_and_the_keys_are_hardly_asked_for(
    client, everifin, settings, clock, fault
):
    settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
    clear_signing_keys()
    if fault is not None:
        everifin.faults.add("certs", **fault)
    for number in range(200):
        token = everifin.logout_token(sid="x", headers={"kid": f"unknown-{number}"})
        assert client.post(BACKCHANNEL, {"logout_token": token}).status_code == 400
    # A key may be newer than the very first ones, so after these alone it is looked for at once.
    assert everifin.calls["certs"] == (2 if fault is None else 1)
    clock[0] += 10
    client.post(BACKCHANNEL, {"logout_token": token})
    assert everifin.calls["certs"] == (3 if fault is None else 2)


@pytest.mark.parametrize("drop_old", [True, False])
def test_a21_a_key_that_is_changed_during_a_login_signs_it(
    everifin, everifin_connect, client, clock, drop_old
):
    everifin_connect(Client(), username="bob", view="login")
    back = everifin.authorize(redirect_target(client.post(LOGIN)))
    everifin.rotate_signing_key(drop_old=drop_old)
    assert client.get(back).status_code == 302
    assert "_auth_user_id" in client.session


@pytest.mark.parametrize("auth_view", [LOGIN, CONNECT])
def test_a25_userinfo_about_somebody_else_is_not_even_asked_for(everifin, client, user, auth_view):
    if auth_view == CONNECT:
        client.force_login(user)
    everifin.faults.add("userinfo", body=json.dumps({"sub": everifin.user("bob").sub}))
    assert (
        client.get(everifin.authorize(redirect_target(client.post(auth_view)))).status_code == 302
    )
    assert BankToken.objects.get().subject == everifin.user("alice").sub
    assert everifin.calls["userinfo"] == 0


def test_a25_an_unsigned_jwt_from_userinfo_names_nobody(everifin, everifin_connect, browser):
    everifin.issue_id_tokens = False
    forged = signed({"alg": "none"}, {"sub": everifin.user("bob").sub}).rpartition(".")[0] + "."
    everifin.faults.add("userinfo", body=forged, content_type="application/jwt")
    assert everifin_connect(browser).status_code == 302
    assert everifin.calls["userinfo"] == 1
    # The access token, which is signed, says who it is.
    assert BankToken.objects.get().subject == everifin.user("alice").sub


@pytest.mark.parametrize(
    "forge",
    [
        unsigned("none"),
        unsigned("RS256"),
        shared("pem"),
        shared("client secret"),
        by_attacker(),
        by_attacker(jwk=JWK),
        by_attacker(jku="https://evil.example/keys", kid="evil"),
    ],
)
def test_a28_a_forged_logout_token_ends_nothing(
    everifin, everifin_connect, client, settings, asked, forge
):
    settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
    everifin_connect(client, view="login")
    row = BankToken.objects.get()
    head, payload, _ = everifin.logout_token(sid=row.sid).split(".")
    headers, claims = (
        json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        for part in (head, payload)
    )
    attacker = Client(enforce_csrf_checks=True)
    token = forge(everifin, headers, claims)
    assert attacker.post(BACKCHANNEL, {"logout_token": token}).status_code == 400
    assert client.get("/accounts/").status_code == 200
    assert asked == {"idp.everifin.test", "api.everifin.test"}


def test_a29_where_nobody_is_made_a_known_email_lets_nobody_in(
    everifin, everifin_connect, client, settings, django_user_model
):
    settings.EVERIFIN_CREATE_USERS = False
    django_user_model.objects.create_user("owner", everifin.user("alice").email, "a password")
    assert everifin_connect(client, view="login").status_code == 403
    assert "_auth_user_id" not in client.session
    assert not BankToken.objects.exists()
    assert everifin.live_sessions("alice") == 0


def flipped(at: int) -> Callable[[str], str]:
    def flip(text: str) -> str:
        position = at % len(text)
        other = "A" if text[position] != "A" else "B"
        return text[:position] + other + text[position + 1 :]

    return flip


CHANGES: dict[str, Callable[[str], str]] = {
    "first byte": flipped(0),
    "key id": lambda text: text.replace("test", "tset"),
    "key id in capitals": lambda text: text.replace("test", "TEST"),
    "nonce": flipped(12),
    "middle": flipped(200),
    "tag": flipped(-2),
    "cut": lambda text: text[:-20],
    "plain token": lambda _: "a.plain.token",
    "space behind": lambda text: text + " ",
}


@pytest.fixture
def others(everifin_connect, connected, django_user_model) -> BankToken:
    """Another user's connection."""
    other = Client()
    other.force_login(django_user_model.objects.create_user("other"))
    everifin_connect(other, username="bob")
    return BankToken.objects.exclude(pk=connected.pk).get()


@pytest.mark.parametrize("kind", ["access", "refresh"])
@pytest.mark.parametrize("change", [*CHANGES, "another user's", "another column's"])
def test_a34_a_changed_ciphertext_is_an_error_and_nothing_is_sent_or_written(
    everifin, connected, others, client, change, kind
):
    instead = {
        "another user's": getattr(others, f"{kind}_ciphertext"),
        "another column's": connected.id_ciphertext,
    }
    column = f"{kind}_ciphertext"
    changed = instead.get(change) or CHANGES[change](getattr(connected, column))
    assert changed != getattr(connected, column)
    expiry = {"access_expires_at": "2026-01-01T00:00Z"} if kind == "refresh" else {}
    BankToken.objects.filter(pk=connected.pk).update(**{column: changed}, **expiry)
    before, calls = BankToken.objects.filter(pk=connected.pk).values().get(), {**everifin.calls}
    response = client.get("/accounts/")
    assert response.status_code == 503
    assert BankToken.objects.filter(pk=connected.pk).values().get() == before
    assert everifin.calls == calls


@pytest.mark.parametrize("kind", ["access", "refresh", "id"])
def test_a34_no_byte_of_a_real_token_can_be_changed(connected, kind):
    sealed = getattr(connected, f"{kind}_ciphertext")
    for at in range(len(sealed)):
        setattr(connected, f"{kind}_ciphertext", flipped(at)(sealed))
        with pytest.raises(TokenUnreadableError):
            connected.open_token(kind)


def bank_job(user: Any, row: BankToken) -> float:
    """What a task queue runs; it fails with tokens in hand."""
    opened = [row.open_token(kind) for kind in ("access", "refresh", "id")]
    everifin = everifin_for(user)
    found = list(everifin.accounts())
    everifin.account("missing" if everifin.health() == "active" else "")
    return len(opened) / (len(found) - len(found))


@pytest.mark.parametrize(
    "fault",
    [{}, {"where": "api", "status": 500}, {"where": "api.account", "body": '{"data": {"id": 1}}'}],
    ids=str,
)
@pytest.mark.parametrize("is_expired", [True, False])
def test_a37_what_a_task_queue_keeps_of_a_failed_job_shows_no_token(
    everifin, connected, is_expired, fault
):
    """As Celery does: the error pickled and its traceback as text, here with local variables."""
    row = BankToken.objects.get()
    if fault:
        everifin.faults.add(**fault)
    if is_expired:
        BankToken.objects.update(access_expires_at="2026-01-01T00:00Z")
    with pytest.raises(Exception, match=r".") as caught:
        bank_job(connected.user, row)
    kept = "".join(
        TracebackException.from_exception(caught.value, capture_locals=True).format()
    ) + pickle.dumps(caught.value).decode("latin-1")
    assert "bank_job" in kept
    assert "opened = [Secret(" in kept
    secrets = [
        token.reveal()
        for one in (row, BankToken.objects.get())
        for kind in ("access", "refresh", "id")
        if (token := one.open_token(kind)) is not None
    ]
    assert len(secrets) == 6
    parts = [part for secret in secrets for part in secret.split(".")[1:]]
    assert not [part for part in parts if part[:40] in kept]

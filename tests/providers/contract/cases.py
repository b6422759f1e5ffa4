"""
What is asked of an identity provider. Each case returns what was observed, in few words, and stands
beside what the sandbox is to say; where Keycloak says it otherwise, `differences` has the reason.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jwt
import requests

from scripts.demo.browser import Page
from tests.providers.contract.providers import CALL_SECONDS, Back, Visitor

Ask = Callable[[Visitor], str]


@dataclass(frozen=True)
class Case:
    name: str
    expected: str
    ask: Ask


CASES: list[Case] = []


def case(expected: str) -> Callable[[Ask], Ask]:
    def add(ask: Ask) -> Ask:
        CASES.append(Case(ask.__name__, expected, ask))
        return ask

    return add


# Words for what was observed


def refusal(answer: requests.Response) -> str:
    """Return status, error and description; for an answer that is no refusal, its status alone."""
    try:
        said = answer.json()
    except ValueError:
        return str(answer.status_code)
    if not isinstance(said, dict) or "error" not in said:
        return str(answer.status_code)
    return f"{answer.status_code} {said['error']}: {said.get('error_description', '-')}"


def outcome(answer: Page | Back) -> str:
    if isinstance(answer, Page):
        return f"a page, {answer.status}"
    return f"sent back: {answer.parameters.get('error', 'code')}"


def listed(names: Iterable[str]) -> str:
    return " ".join(sorted(names))


def claims(token: str) -> dict[str, Any]:
    """Return what a token says, unverified."""
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def published(visitor: Visitor) -> list[dict[str, Any]]:
    keys = visitor.get("certs").json()["keys"]
    return [key for key in keys if key["use"] == "sig"]


# The authorization request


@case("a page, 200")
def authorize(visitor: Visitor) -> str:
    return outcome(visitor.open())


@case("a page, 400")
def authorize_for_an_unknown_client(visitor: Visitor) -> str:
    return outcome(visitor.open(client_id="nobody"))


@case("a page, 400")
def authorize_with_a_foreign_redirect_uri(visitor: Visitor) -> str:
    return outcome(visitor.open(redirect_uri="https://evil.example/"))


@case("sent back: invalid_scope")
def authorize_with_an_unknown_scope(visitor: Visitor) -> str:
    return outcome(visitor.open(scope="openid everything"))


@case("sent back: unsupported_response_type")
def authorize_with_an_unknown_response_type(visitor: Visitor) -> str:
    return outcome(visitor.open(response_type="money"))


@case("sent back: invalid_request")
def authorize_with_an_unknown_challenge_method(visitor: Visitor) -> str:
    return outcome(visitor.open(code_challenge_method="S512"))


@case("sent back: invalid_request")
def authorize_without_pkce_where_it_is_required(visitor: Visitor) -> str:
    visitor.provider.switches.require_pkce()
    return outcome(visitor.open(code_challenge=None, code_challenge_method=None))


@case("a page, 200")
def authorize_with_a_doubled_ampersand(visitor: Visitor) -> str:
    address = visitor.provider.endpoint("auth")
    query = f"client_id={visitor.provider.client_id}&&redirect_uri={visitor.provider.redirect_uri}"
    return outcome(visitor.go("GET", f"{address}?{query}&response_type=code&scope=ais"))


@case("a page, 200")
def authorize_with_a_slash_before_the_query(visitor: Visitor) -> str:
    return outcome(visitor.open("auth/"))


@case("404")
def a_realm_that_does_not_exist(visitor: Visitor) -> str:
    address = visitor.provider.issuer.rpartition("/")[0]
    return str(requests.get(f"{address}/no-such-realm", timeout=CALL_SECONDS).status_code)


# The visitor


@case("a page, 200")
def log_in_with_a_wrong_password(visitor: Visitor) -> str:
    return outcome(visitor.log_in(visitor.open(), password="not this one"))


@case("code iss session_state state, state kept")
def log_in_and_agree(visitor: Visitor) -> str:
    back = visitor.come_back()
    kept = "kept" if back["state"] == "the-state" else "changed"
    return f"{listed(back)}, state {kept}"


@case("error iss state: access_denied, state kept")
def log_in_and_cancel(visitor: Visitor) -> str:
    back = visitor.come_back("cancel", prompt="consent")
    kept = "kept" if back["state"] == "the-state" else "changed"
    names = listed(set(back) - {"error_description"})
    return f"{names}: {back['error']}, state {kept}"


# The code


@case(
    "access_token expires_in id_token not-before-policy refresh_expires_in refresh_token scope "
    "session_state token_type"
)
def exchange_a_code(visitor: Visitor) -> str:
    return listed(visitor.tokens())


@case("200")
def exchange_a_code_with_basic_authentication(visitor: Visitor) -> str:
    provider = visitor.provider
    form = {
        "grant_type": "authorization_code",
        "code": visitor.come_back()["code"],
        "redirect_uri": provider.redirect_uri,
        "code_verifier": visitor.verifier,
    }
    pair = (provider.client_id, provider.client_secret)
    answer = requests.post(provider.endpoint("token"), data=form, auth=pair, timeout=CALL_SECONDS)
    return refusal(answer)


@case("400 invalid_grant: Code not valid")
def exchange_a_code_twice(visitor: Visitor) -> str:
    code = visitor.come_back()["code"]
    visitor.exchange(code)
    return refusal(visitor.exchange(code))


@case("400 invalid_grant: Session doesn't have required client")
def refresh_after_the_code_was_shown_twice(visitor: Visitor) -> str:
    code = visitor.come_back()["code"]
    tokens = visitor.exchange(code).json()
    visitor.exchange(code)
    return refusal(visitor.refresh(tokens["refresh_token"]))


@case("400 invalid_grant: Code not valid")
def exchange_a_code_nobody_gave(visitor: Visitor) -> str:
    return refusal(visitor.exchange("made-up"))


@case("400 invalid_grant: Incorrect redirect_uri")
def exchange_a_code_with_another_redirect_uri(visitor: Visitor) -> str:
    code = visitor.come_back()["code"]
    return refusal(visitor.exchange(code, redirect_uri="http://localhost/elsewhere/"))


@case("400 invalid_grant: Incorrect redirect_uri")
def exchange_a_code_without_redirect_uri(visitor: Visitor) -> str:
    return refusal(visitor.exchange(visitor.come_back()["code"], redirect_uri=None))


@case("400 invalid_grant: PKCE code verifier not specified")
def exchange_a_code_without_verifier(visitor: Visitor) -> str:
    return refusal(visitor.exchange(visitor.come_back()["code"], code_verifier=None))


@case("400 invalid_grant: PKCE verification failed: Code mismatch")
def exchange_a_code_with_a_wrong_verifier(visitor: Visitor) -> str:
    code = visitor.come_back()["code"]
    return refusal(visitor.exchange(code, code_verifier="w" * 43))


@case("400 invalid_grant: Code not valid")
def exchange_a_code_after_a_wrong_verifier(visitor: Visitor) -> str:
    code = visitor.come_back()["code"]
    visitor.exchange(code, code_verifier="w" * 43)
    return refusal(visitor.exchange(code))


@case("401 unauthorized_client: Invalid client or Invalid client credentials")
def exchange_a_code_with_a_wrong_secret(visitor: Visitor) -> str:
    return refusal(visitor.exchange(visitor.come_back()["code"], client_secret="wrong"))


@case("200")
def exchange_a_code_after_a_wrong_secret(visitor: Visitor) -> str:
    code = visitor.come_back()["code"]
    visitor.exchange(code, client_secret="wrong")
    return refusal(visitor.exchange(code))


@case("401 invalid_client: Invalid client or Invalid client credentials")
def exchange_a_code_as_an_unknown_client(visitor: Visitor) -> str:
    return refusal(visitor.exchange(visitor.come_back()["code"], client_id="nobody"))


@case("400 unsupported_grant_type: Unsupported grant_type")
def ask_for_an_unknown_grant(visitor: Visitor) -> str:
    return refusal(visitor.post("token", grant_type="telepathy"))


@case("400 invalid_request: Missing form parameter: grant_type")
def ask_for_no_grant(visitor: Visitor) -> str:
    return refusal(visitor.post("token"))


# The refresh


@case("200, a new refresh token, the scope kept, an id_token")
def refresh(visitor: Visitor) -> str:
    before = visitor.tokens()
    answer = visitor.refresh(before["refresh_token"])
    after = answer.json()
    word = "a new" if after["refresh_token"] != before["refresh_token"] else "the same"
    scope = "kept" if set(after["scope"].split()) == set(before["scope"].split()) else "changed"
    has = "an" if "id_token" in after else "no"
    return f"{answer.status_code}, {word} refresh token, the scope {scope}, {has} id_token"


@case("400 invalid_grant: Maximum allowed refresh token reuse exceeded")
def refresh_twice_with_one_token(visitor: Visitor) -> str:
    first = visitor.tokens()["refresh_token"]
    visitor.refresh(first)
    return refusal(visitor.refresh(first))


@case("400 invalid_grant: Session doesn't have required client")
def refresh_with_the_successor_of_a_token_shown_twice(visitor: Visitor) -> str:
    first = visitor.tokens()["refresh_token"]
    second = visitor.refresh(first).json()["refresh_token"]
    visitor.refresh(first)
    return refusal(visitor.refresh(second))


@case("200 200 200")
def refresh_thrice_with_one_token_where_none_is_revoked(visitor: Visitor) -> str:
    visitor.provider.switches.set_rotation("default")
    token = visitor.tokens()["refresh_token"]
    return " ".join(refusal(visitor.refresh(token)) for _ in range(3))


@case("200 200 400 invalid_grant: Maximum allowed refresh token reuse exceeded")
def refresh_thrice_with_one_token_where_it_may_be_reused_once(visitor: Visitor) -> str:
    visitor.provider.switches.set_rotation("reuse 1")
    token = visitor.tokens()["refresh_token"]
    return " ".join(refusal(visitor.refresh(token)) for _ in range(3))


@case("400 invalid_grant: Invalid refresh token")
def refresh_with_a_token_nobody_gave(visitor: Visitor) -> str:
    return refusal(visitor.refresh("made-up"))


@case("400 invalid_grant: Invalid refresh token")
def refresh_with_an_access_token(visitor: Visitor) -> str:
    return refusal(visitor.refresh(visitor.tokens()["access_token"]))


@case("401 unauthorized_client: Invalid client or Invalid client credentials")
def refresh_with_a_wrong_secret(visitor: Visitor) -> str:
    return refusal(visitor.refresh(visitor.tokens()["refresh_token"], client_secret="wrong"))


@case("200")
def refresh_after_a_wrong_secret(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    visitor.refresh(token, client_secret="wrong")
    return refusal(visitor.refresh(token))


@case("200")
def refresh_with_a_wider_scope(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    return refusal(visitor.refresh(token, scope="openid ais pis")).partition(":")[0]


@case("400 invalid_grant: Session not active")
def refresh_after_the_session_was_ended_there(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    visitor.provider.switches.end_sessions()
    return refusal(visitor.refresh(token))


@case("400 invalid_grant: Session doesn't have required client")
def refresh_after_the_consent_was_withdrawn(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    visitor.provider.switches.withdraw_consent()
    return refusal(visitor.refresh(token))


@case("400 invalid_grant: User disabled")
def refresh_after_the_user_was_disabled(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    visitor.provider.switches.disable_user()
    return refusal(visitor.refresh(token))


@case("refresh_expires_in 0, Offline, expires: no")
def refresh_offline(visitor: Visitor) -> str:
    tokens = visitor.tokens(scope="openid ais offline_access")
    said = claims(tokens["refresh_token"])
    expires = "yes" if said.get("exp") else "no"
    return f"refresh_expires_in {tokens['refresh_expires_in']}, {said['typ']}, expires: {expires}"


# The end


@case("204, then 400 invalid_grant: Session not active")
def log_out_with_the_refresh_token(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    answer = visitor.post("logout", refresh_token=token)
    return f"{answer.status_code}, then {refusal(visitor.refresh(token))}"


@case("204")
def log_out_twice(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    visitor.post("logout", refresh_token=token)
    return refusal(visitor.post("logout", refresh_token=token))


@case("400 invalid_grant: Invalid refresh token")
def log_out_with_a_token_nobody_gave(visitor: Visitor) -> str:
    return refusal(visitor.post("logout", refresh_token="made-up"))


@case("401 unauthorized_client: Invalid client or Invalid client credentials")
def log_out_with_a_wrong_secret(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    return refusal(visitor.post("logout", refresh_token=token, client_secret="wrong"))


@case("200, then 400 invalid_grant: Session not active")
def revoke_the_refresh_token(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    answer = visitor.post("revoke", token=token)
    return f"{answer.status_code}, then {refusal(visitor.refresh(token))}"


@case("200")
def revoke_a_token_nobody_gave(visitor: Visitor) -> str:
    return str(visitor.post("revoke", token="made-up").status_code)


@case("sent back, state kept")
def log_out_in_the_browser(visitor: Visitor) -> str:
    hint = visitor.tokens()["id_token"]
    answer = visitor.go(
        "GET",
        visitor.provider.endpoint("logout"),
        parameters={
            "id_token_hint": hint,
            "post_logout_redirect_uri": visitor.provider.redirect_uri,
            "state": "bye",
        },
    )
    if isinstance(answer, Page):
        return outcome(answer)
    return f"sent back, state {'kept' if answer.parameters.get('state') == 'bye' else 'lost'}"


@case("a page, 400")
def log_out_in_the_browser_to_a_foreign_address(visitor: Visitor) -> str:
    hint = visitor.tokens()["id_token"]
    address = visitor.provider.endpoint("logout")
    back = {"id_token_hint": hint, "post_logout_redirect_uri": "https://evil.example/"}
    return outcome(visitor.go("GET", address, parameters=back))


# The person it was


@case("200: email email_verified name preferred_username sub")
def ask_who_it_is(visitor: Visitor) -> str:
    answer = visitor.get("userinfo", token=visitor.tokens()["access_token"])
    # Keycloak splits the name as well.
    return f"{answer.status_code}: {listed(set(answer.json()) - {'given_name', 'family_name'})}"


@case("401")
def ask_who_it_is_without_a_token(visitor: Visitor) -> str:
    return str(visitor.get("userinfo").status_code)


@case("401")
def ask_who_it_is_with_a_token_nobody_gave(visitor: Visitor) -> str:
    return str(visitor.get("userinfo", token="made-up").status_code)


@case("401")
def ask_who_it_is_after_the_logout(visitor: Visitor) -> str:
    tokens = visitor.tokens()
    visitor.post("logout", refresh_token=tokens["refresh_token"])
    return str(visitor.get("userinfo", token=tokens["access_token"]).status_code)


@case("403")
def ask_who_it_is_without_the_scope_openid(visitor: Visitor) -> str:
    return str(
        visitor.get("userinfo", token=visitor.tokens(scope="ais")["access_token"]).status_code
    )


@case("no id_token, scope has ais")
def log_in_without_the_scope_openid(visitor: Visitor) -> str:
    tokens = visitor.tokens(scope="ais")
    has = "an" if "id_token" in tokens else "no"
    return f"{has} id_token, scope {'has' if 'ais' in tokens['scope'].split() else 'lacks'} ais"


ID_TOKEN = {"iss", "aud", "sub", "azp", "exp", "iat", "auth_time", "jti", "nonce", "at_hash", "typ"}


@case("RS256, with all, right: aud azp iss nonce typ at_hash")
def the_id_token(visitor: Visitor) -> str:
    tokens = visitor.tokens()
    said = claims(tokens["id_token"])
    digest = hashlib.sha256(tokens["access_token"].encode()).digest()[:16]
    right = {
        "aud": visitor.provider.client_id,
        "azp": visitor.provider.client_id,
        "iss": visitor.provider.issuer,
        "nonce": "the-nonce",
        "typ": "ID",
        "at_hash": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
    }
    missing = ID_TOKEN - set(said)
    has = f"without {listed(missing)}" if missing else "with all"
    algorithm = jwt.get_unverified_header(tokens["id_token"])["alg"]
    return f"{algorithm}, {has}, right: {' '.join(k for k, v in right.items() if said.get(k) == v)}"


@case("RS256, Bearer, sid yes, verified by the JWKS")
def the_access_token(visitor: Visitor) -> str:
    token = visitor.tokens()["access_token"]
    said, header = claims(token), jwt.get_unverified_header(token)
    key = next(key for key in published(visitor) if key["kid"] == header["kid"])
    jwt.decode(token, jwt.PyJWK(key).key, ["RS256"], options={"verify_aud": False})
    sid = "yes" if said.get("sid") else "no"
    return f"{header['alg']}, {said['typ']}, sid {sid}, verified by the JWKS"


@case("HS512, Refresh")
def the_refresh_token(visitor: Visitor) -> str:
    token = visitor.tokens()["refresh_token"]
    return f"{jwt.get_unverified_header(token)['alg']}, {claims(token)['typ']}"


@case("alg e kid kty n use: RS256 RSA")
def the_keys(visitor: Visitor) -> str:
    key = next(key for key in published(visitor) if key["alg"] == "RS256")
    return f"{listed(set(key) - {'x5c', 'x5t', 'x5t#S256'})}: {key['alg']} {key['kty']}"


@case("another key signs, both are published")
def another_key(visitor: Visitor) -> str:
    before = jwt.get_unverified_header(visitor.tokens()["id_token"])["kid"]
    visitor.provider.switches.rotate_key()
    after = jwt.get_unverified_header(visitor.tokens()["id_token"])["kid"]
    keys = {key["kid"] for key in published(visitor)}
    word = "another key signs" if after != before else "the same key signs"
    return f"{word}, {'both are' if {before, after} <= keys else 'one is'} published"


PLACES = {
    "authorization_endpoint": "auth",
    "token_endpoint": "token",
    "userinfo_endpoint": "userinfo",
    "end_session_endpoint": "logout",
    "revocation_endpoint": "revoke",
    "jwks_uri": "certs",
}


@case("issuer and endpoints are as documented; S256 iss")
def the_discovery_document(visitor: Visitor) -> str:
    provider = visitor.provider
    address = f"{provider.issuer}/.well-known/openid-configuration"
    said = requests.get(address, timeout=CALL_SECONDS).json()
    wrong = [name for name, path in PLACES.items() if said.get(name) != provider.endpoint(path)]
    wrong += ["issuer"] if said["issuer"] != provider.issuer else []
    can = ["S256"] if "S256" in said.get("code_challenge_methods_supported", []) else []
    can += ["iss"] if said.get("authorization_response_iss_parameter_supported") else []
    where = f"otherwise: {listed(wrong)}" if wrong else "as documented"
    return f"issuer and endpoints are {where}; {' '.join(can)}"

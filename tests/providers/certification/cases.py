"""
What the provider does in each certification test, and what a right relying site does then.

The names are those of the OpenID Foundation's conformance suite.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

from tests.providers.certification.provider import (
    Provider,
    curve_key,
    edwards_key,
    path_of,
    signed,
    with_broken_signature,
)
from tests.providers.certification.sites import (
    LOGGED_IN,
    OURS,
    PLAIN,
    REFRESHED,
    REFUSED,
    STOPPED,
    Visit,
)

OIDCC = "oidcc-client-test"
FAPI = "fapi2-security-profile-final-client-test"
BY_HEADER = "by header"
DOES_NOT_APPLY = "does not apply"


def honest(provider: Provider) -> None:
    """Nothing is changed."""


def log_in(visit: Visit) -> str:
    return visit.log_in()


def no_complaint(visit: Visit) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    One test of the conformance suite.

    *right* is what may be observed, what we hold ourselves to coming first. *complaint* looks
    closer at a right outcome, and returns what was wrong about it all the same. *settings* are what
    each site, by its name, has to set for the test.
    """

    name: str
    provider_does: str
    right: tuple[str, ...]
    switch: Callable[[Provider], object] = honest
    play: Callable[[Visit], str] = log_in
    complaint: Callable[[Visit], str] = no_complaint
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remark: str = ""


# What the provider does


def sign_for_another_issuer(provider: Provider) -> None:
    provider.change_claims(iss=f"{provider.issuer}/other")


def hash_another_access_token(provider: Provider) -> None:
    provider.change_claims(at_hash="AAAAAAAAAAAAAAAAAAAAAA")


def leave_out_key_ids(provider: Provider) -> None:
    keys = [key.jwk() for key in provider.signer.published_keys()]
    for key in keys:
        del key["kid"]
    provider.publish_keys(*keys)
    provider.sign_by("RS256", provider.signing_key.private_key)


def leave_out_key_ids_of_two_keys(provider: Provider) -> None:
    provider.rotate_signing_key()
    leave_out_key_ids(provider)


def sign_by_eddsa(provider: Provider) -> None:
    """With its own hash of the access token: SHA-512."""
    key, jwk = edwards_key()
    provider.publish_keys(jwk)

    def sign_again(answer: dict[str, Any]) -> None:
        claims = jwt.decode(answer["id_token"], options={"verify_signature": False})
        half = hashlib.sha512(answer["access_token"].encode()).digest()[:32]
        claims["at_hash"] = base64.urlsafe_b64encode(half).rstrip(b"=").decode()
        answer["id_token"] = signed(claims, "EdDSA", key, {"kid": jwk["kid"]})

    provider.change_token_answer = sign_again


def publish_odd_keys_too(provider: Provider) -> None:
    keys = [key.jwk() for key in provider.signer.published_keys()]
    odd = [
        {"kty": "AKP", "alg": "ML-DSA-999", "pub": "AAAA", "use": "sig", "kid": "odd-1"},
        {"kty": "made-up", "use": "sig", "kid": "odd-2", "x": "AAAA"},
    ]
    provider.publish_keys(*odd, *keys)


def do_not_sign(provider: Provider) -> None:
    provider.sign_by("none", None)


def break_rs256(provider: Provider) -> None:
    key = provider.signing_key
    provider.sign_by("RS256", key.private_key, key_id=key.kid, finish=with_broken_signature)


def break_es256(provider: Provider) -> None:
    key, jwk = curve_key()
    provider.publish_keys(jwk)
    provider.sign_by("ES256", key, key_id=jwk["kid"], finish=with_broken_signature)


def break_hs256(provider: Provider) -> None:
    secret = provider.client_secret.encode().ljust(32, b"-")
    key_id = provider.signing_key.kid
    provider.sign_by("HS256", secret, key_id=key_id, finish=with_broken_signature)


def answer_userinfo_about_another(provider: Provider) -> None:
    bob = provider.user("bob")
    provider.faults.add("userinfo", body={"sub": bob.sub, "email": bob.email})


def publish_another_issuer(provider: Provider) -> None:
    provider.change_metadata(issuer=f"{provider.issuer}/other")


def change_way_back(**changes: str | None) -> Callable[[Provider], None]:
    """Return a switch that sets parameters of the authorization answer; None takes one out."""

    def switch(provider: Provider) -> None:
        def change(parameters: dict[str, Any]) -> None:
            parameters.update(changes)
            for name in [name for name, value in parameters.items() if value is None]:
                del parameters[name]

        provider.change_way_back = change

    return switch


def claim(**claims: Any) -> Callable[[Provider], None]:
    return lambda provider: provider.change_claims(**claims)


def claim_audiences(*others: str) -> Callable[[Provider], None]:
    return lambda provider: provider.change_claims(aud=[provider.client_id, *others])


def expire_before(provider: Provider) -> None:
    provider.change_claims(exp=int(time.time()) - 300)


def withhold_lifetime(provider: Provider) -> None:
    provider.change_token_answer = lambda answer: answer.pop("expires_in")


def change_case_of_token_type(provider: Provider) -> None:
    provider.change_token_answer = lambda answer: answer.update(token_type="bEARER")


# How the visit goes on


def log_in_around_a_rotation(visit: Visit) -> str:
    first = visit.log_in()
    visit.provider.rotate_signing_key(drop_old=True)
    return Visit(visit.site, visit.provider).log_in() if first == LOGGED_IN else first


def log_in_after_a_rotation_at_signing(visit: Visit) -> str:
    """The first login makes sure that who keeps keys has the old ones."""
    first = visit.log_in()

    def rotate(headers: dict[str, Any], claims: dict[str, Any]) -> Any:
        return {**headers, "kid": visit.provider.rotate_signing_key()}, claims

    visit.provider.id_token_hook = rotate
    return Visit(visit.site, visit.provider).log_in() if first == LOGGED_IN else first


def ask_userinfo(visit: Visit) -> str:
    if not visit.site.ask_userinfo(visit):
        return REFUSED
    request = visit.provider.last_request.get("userinfo")
    if request is None:
        return "not asked"
    is_elsewhere = "access_token" in {*request.query, *request.form}
    has_header = request.headers.get("Authorization", "").startswith("Bearer ")
    return BY_HEADER if has_header and not is_elsewhere else "by query or body"


def log_in_without_metadata(visit: Visit) -> str:
    outcome = visit.log_in()
    is_asked = visit.provider.calls["discovery"] > 0
    return DOES_NOT_APPLY if outcome == LOGGED_IN and not is_asked else outcome


def refresh(**changes: Any) -> Callable[[Visit], str]:
    """Return a play in which the refreshed ID token has other claims than the first."""

    def play(visit: Visit) -> str:
        outcome = visit.log_in()
        if changes:
            visit.provider.change_claims(**changes)
        return visit.site.refresh(visit) if outcome == LOGGED_IN else outcome

    return play


# What a right outcome may hide


def asks_userinfo(visit: Visit) -> str:
    """An ID token that is refused is not used: nothing more is asked in its name."""
    return "but asks UserInfo" if visit.provider.calls["userinfo"] else ""


def exchanges_code(visit: Visit) -> str:
    """An answer that is refused ends there: its code is not used."""
    return "but redeems the code" if visit.provider.calls["token"] else ""


def does_without_basic(visit: Visit) -> str:
    request = visit.provider.last_request["token"]
    has_header = request.headers.get("Authorization", "").startswith("Basic ")
    return "" if has_header and "client_secret" not in request.form else "without Basic"


def asks_for_no_claims(visit: Visit) -> str:
    scopes = " ".join(visit.asked_for["scope"]).split()
    return "" if {"profile", "email", "phone", "address"} & {*scopes} else "asking for no claims"


def takes_keys_elsewhere(visit: Visit) -> str:
    request = visit.provider.last_request.get("certs")
    published = path_of(visit.provider.metadata()["jwks_uri"])
    return "" if request and request.path == published else "with keys from elsewhere"


def uses_other_endpoints(visit: Visit) -> str:
    metadata = visit.provider.metadata()
    published = {path_of(metadata[name]) for name in ("token_endpoint", "jwks_uri")}
    asked = {visit.provider.last_request[endpoint].path for endpoint in ("token", "certs")}
    return "" if asked == published else "with other endpoints than published"


BASIC = (
    Case(
        name=OIDCC,
        provider_does="does everything right",
        right=(LOGGED_IN,),
    ),
    Case(
        name=f"{OIDCC}-invalid-iss",
        provider_does="names another issuer in the ID token",
        right=(REFUSED,),
        switch=sign_for_another_issuer,
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-missing-sub",
        provider_does="leaves out `sub`",
        right=(REFUSED,),
        switch=claim(sub=None),
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-invalid-aud",
        provider_does="names another audience",
        right=(REFUSED,),
        switch=claim(aud="another-client"),
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-missing-iat",
        provider_does="leaves out `iat`",
        right=(REFUSED,),
        switch=claim(iat=None),
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-kid-absent-single-jwks",
        provider_does="publishes one key, without `kid`, and names none",
        right=(LOGGED_IN,),
        switch=leave_out_key_ids,
    ),
    Case(
        name=f"{OIDCC}-kid-absent-multiple-jwks",
        provider_does="publishes two keys, without `kid`, and names none",
        right=(REFUSED, LOGGED_IN),
        switch=leave_out_key_ids_of_two_keys,
        remark="The suite lets a relying site try all keys; we refuse.",
    ),
    Case(
        name=f"{OIDCC}-idtoken-sig-rs256",
        provider_does="signs by RS256",
        right=(LOGGED_IN,),
    ),
    Case(
        name=f"{OIDCC}-idtoken-sig-none",
        provider_does="does not sign the ID token",
        right=(REFUSED,),
        switch=do_not_sign,
        complaint=asks_userinfo,
        remark="The suite registers the client for `none`, and skips sites that do not support "
        "it. Here the client is registered for RS256, so an unsigned token must be refused.",
    ),
    Case(
        name=f"{OIDCC}-invalid-sig-rs256",
        provider_does="breaks the signature",
        right=(REFUSED,),
        switch=break_rs256,
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-userinfo-invalid-sub",
        provider_does="answers UserInfo about another user",
        right=(LOGGED_IN, REFUSED),
        switch=answer_userinfo_about_another,
        remark="Anything is right that does not use that answer. We do not ask UserInfo about "
        "users who have an ID token.",
    ),
    Case(
        name=f"{OIDCC}-nonce-invalid",
        provider_does="changes `nonce`",
        right=(REFUSED,),
        switch=claim(nonce="another"),
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-scope-userinfo-claims",
        provider_does="gives the claims that the scope asks for",
        right=(LOGGED_IN,),
        complaint=asks_for_no_claims,
        settings={OURS.name: {"EVERIFIN_SCOPES": "openid email ais"}},
        remark="As a Keycloak does, the provider gives the claims in the ID token and at UserInfo.",
    ),
    Case(
        name=f"{OIDCC}-client-secret-basic",
        provider_does="expects the client secret by Basic",
        right=(LOGGED_IN,),
        complaint=does_without_basic,
        settings={
            OURS.name: {"EVERIFIN_CLIENT_AUTH": "client_secret_basic"},
            PLAIN.name: {"OIDC_TOKEN_USE_BASIC_AUTH": True},
        },
    ),
)

CORE = (
    Case(
        name=f"{OIDCC} with EdDSA",
        provider_does="signs by EdDSA, for a client that is registered for it",
        right=(LOGGED_IN,),
        switch=sign_by_eddsa,
        settings={
            OURS.name: {"EVERIFIN_ID_TOKEN_ALG": "EdDSA"},
            PLAIN.name: {"OIDC_RP_SIGN_ALGO": "EdDSA"},
        },
        remark="No test of its own in the suite: its modules take the algorithm that the client is "
        "registered for (`id_token_signed_response_alg`).",
    ),
    Case(
        name=f"{OIDCC}-ignores-unparseable-key-in-jwks",
        provider_does="publishes two keys beside its own that nobody can read",
        right=(LOGGED_IN,),
        switch=publish_odd_keys_too,
        remark="`AddUnparseableKeyToServerPublicJwks`.",
    ),
    Case(
        name=f"{OIDCC}-missing-aud",
        provider_does="leaves out `aud`",
        right=(REFUSED,),
        switch=claim(aud=None),
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-invalid-sig-es256",
        provider_does="signs by ES256 and breaks the signature",
        right=(REFUSED,),
        switch=break_es256,
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-invalid-sig-hs256",
        provider_does="signs by HS256 and breaks the signature",
        right=(REFUSED,),
        switch=break_hs256,
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-invalid-athash",
        provider_does="puts the hash of another access token",
        right=(REFUSED,),
        switch=hash_another_access_token,
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{OIDCC}-userinfo-bearer-header",
        provider_does="expects the access token in the header",
        right=(BY_HEADER,),
        play=ask_userinfo,
        remark="We ask UserInfo only about users who connect without an ID token, so the test "
        "does that.",
    ),
)

CONFIG = (
    Case(
        name=f"{OIDCC}-discovery-openid-config",
        provider_does="publishes its metadata",
        right=(LOGGED_IN,),
        complaint=uses_other_endpoints,
        remark="No metadata is read at run time: the endpoints are settings. The suite does not "
        "insist on it either (`OIDCCClientTestDiscoveryOpenIDConfiguration` has no condition of "
        "its own). The test checks that the endpoints used are those published.",
    ),
    Case(
        name=f"{OIDCC}-discovery-jwks-uri-keys",
        provider_does="publishes its keys at `jwks_uri`",
        right=(DOES_NOT_APPLY,),
        play=log_in_without_metadata,
        complaint=takes_keys_elsewhere,
        remark="The suite (`AddRandomJwksUriToServerConfiguration`) fails a site that begins a "
        "login before it has read the metadata. The test checks instead that the keys are those "
        "published.",
    ),
    Case(
        name=f"{OIDCC}-discovery-issuer-mismatch",
        provider_does="names another issuer in its metadata than the one configured",
        right=(DOES_NOT_APPLY,),
        switch=publish_another_issuer,
        play=log_in_without_metadata,
        remark="The suite (`ChangeIssuerInServerConfigurationToBeInvalid`) fails a site that does "
        "not stop once it has read the metadata, and none is read. A provider that names another "
        "issuer in what a login brings, too, is beside the suite below.",
    ),
    Case(
        name=f"{OIDCC}-signing-key-rotation",
        provider_does="changes its key between two logins",
        right=(LOGGED_IN,),
        play=log_in_around_a_rotation,
    ),
    Case(
        name=f"{OIDCC}-signing-key-rotation-just-before-signing",
        provider_does="changes its key just before it signs",
        right=(LOGGED_IN,),
        play=log_in_after_a_rotation_at_signing,
    ),
)

REFRESH = (
    Case(
        name=f"{OIDCC}-refresh-token",
        provider_does="does everything right, with refresh tokens of every character allowed",
        right=(REFRESHED,),
        switch=Provider.give_odd_refresh_tokens,
        play=refresh(),
        remark="`CreateRefreshToken` makes refresh tokens of any VSCHAR, so a space may be in "
        "them, and `ValidateRefreshToken` wants them back as they were. Here every token of these "
        "tests has each of those characters.",
    ),
    Case(
        name=f"{OIDCC}-refresh-token-invalid-issuer",
        provider_does="names another issuer in the refreshed ID token",
        right=(STOPPED,),
        switch=Provider.give_odd_refresh_tokens,
        play=refresh(iss="https://other.example/"),
    ),
    Case(
        name=f"{OIDCC}-refresh-token-invalid-sub",
        provider_does="names another `sub` in the refreshed ID token",
        right=(STOPPED,),
        switch=Provider.give_odd_refresh_tokens,
        play=refresh(sub="another"),
    ),
    Case(
        name=f"{OIDCC}-refresh-token-invalid-aud",
        provider_does="names another audience in the refreshed ID token",
        right=(STOPPED,),
        switch=Provider.give_odd_refresh_tokens,
        play=refresh(aud="another-client"),
        remark="`AddInvalidAudValueToIdToken`. Written for the suite, and in none of its plans.",
    ),
    Case(
        name=f"{OIDCC}-refresh-token-invalid-azp",
        provider_does="adds an `azp` to the refreshed ID token",
        right=(STOPPED,),
        switch=Provider.give_odd_refresh_tokens,
        play=refresh(azp="another-client"),
        remark="`AddInvalidAzpValueToIdToken`. Written for the suite, and in none of its plans.",
    ),
)

FAPI_2 = (
    Case(
        name=f"{FAPI}-invalid-authorization-response-iss",
        provider_does="names another issuer on the way back",
        right=(REFUSED,),
        switch=change_way_back(iss="https://other.example/"),
        complaint=exchanges_code,
    ),
    Case(
        name=f"{FAPI}-remove-authorization-response-iss",
        provider_does="announces `iss` on the way back, and leaves it out",
        right=(REFUSED,),
        switch=change_way_back(iss=None),
        complaint=exchanges_code,
        settings={OURS.name: {"EVERIFIN_REQUIRE_ISS": True}},
        remark="No metadata is read, so a site says by this setting that `iss` is announced; by "
        "default, an answer without it is accepted.",
    ),
    Case(
        name=f"{FAPI}-ensure-authorization-response-with-invalid-state-fails",
        provider_does="changes `state`",
        right=(REFUSED,),
        switch=change_way_back(state="another"),
        complaint=exchanges_code,
    ),
    Case(
        name=f"{FAPI}-ensure-authorization-response-with-invalid-missing-state-fails",
        provider_does="leaves out `state`",
        right=(REFUSED,),
        switch=change_way_back(state=None),
        complaint=exchanges_code,
    ),
    Case(
        name=f"{FAPI}-invalid-secondary-aud",
        provider_does="names a second audience beside the client",
        right=(REFUSED,),
        switch=claim_audiences("https://other.example/"),
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{FAPI}-invalid-missing-exp",
        provider_does="leaves out `exp`",
        right=(REFUSED,),
        switch=claim(exp=None),
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{FAPI}-invalid-expired-exp",
        provider_does="gives an ID token that ended five minutes ago",
        right=(REFUSED,),
        switch=expire_before,
        complaint=asks_userinfo,
    ),
    Case(
        name=f"{FAPI}-valid-aud-as-array",
        provider_does="names the client in an array",
        right=(LOGGED_IN,),
        switch=claim_audiences(),
    ),
    Case(
        name=f"{FAPI}-token-endpoint-response-without-expires_in",
        provider_does="does not say how long the access token lives",
        right=(LOGGED_IN,),
        switch=withhold_lifetime,
    ),
    Case(
        name=f"{FAPI}-token-type-case-insensitivity",
        provider_does="writes the token type as `bEARER`",
        right=(LOGGED_IN,),
        switch=change_case_of_token_type,
    ),
)

"""Whom a token is about: every claim and header in every wrong way."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm
from jwt.api_jws import PyJWS

from everifin_django.exceptions import (
    AnswerError,
    APIError,
    EverifinError,
    LoginError,
    NotAuthorizedError,
    UnavailableError,
)
from everifin_django.oauth import id_token
from everifin_django.oauth.id_token import (
    Identity,
    fetch_userinfo,
    identity_of,
    is_about,
    subject_of_access_token,
    verify_logout_token,
)
from everifin_django.secret import Secret
from tests.oauth import (
    ACCESS,
    AT_HASH,
    CLIENT_ID,
    HUGE,
    ISSUER,
    NONCE,
    OTHER_FORMS,
    SUBJECT,
    base64url,
    claims,
    jwk,
    refusal,
    sign,
    signed,
    signed_by,
    verify,
)
from tests.support.malicious_server import report
from tests.testing import Site


class TestRegisteredAlgorithm:
    """EVERIFIN_ID_TOKEN_ALG names the one that the client is registered with."""

    def test_a_token_of_another_one_is_refused(self, token, settings):
        settings.EVERIFIN_ID_TOKEN_ALG = "ES256"
        assert refusal(token()) == "id_token_alg"

    def test_a_token_of_that_one_is_believed(self, token, settings):
        settings.EVERIFIN_ID_TOKEN_ALG = "RS256"
        assert verify(token())["email"]


class TestRightTokens:
    def test_a_real_login_is_believed(self, everifin):
        site = Site(everifin)
        before = datetime.now(UTC)
        tokens = site.tokens(nonce=NONCE)
        access = Secret(tokens["access_token"])
        got = verify(tokens["id_token"], access_token=access, started_at=before)
        assert got["preferred_username"] == "alice"
        assert identity_of(got) == Identity(everifin.issuer, got["sub"])

    def test_the_claims_come_as_they_are(self, token):
        assert verify(token())["email"] == "canary@example.test"

    @pytest.mark.parametrize(
        "changes",
        [
            {"aud": [CLIENT_ID]},
            {"azp": ...},
            {"at_hash": ...},
            {"typ": ...},
            {"header": {"typ": "JWT"}},
            {"header": {"typ": None}},
            {"header": {"b64": True}},
            {"header": {"jku": "https://evil.test/", "jwk": {"kty": "oct", "k": "eA"}}},
            {"header": {"x5u": "https://evil.test/", "x5c": ["eA"]}},
            {"sub": "x" * 255},
            {"sub": "a b"},
            {"nbf": 0},
            {"auth_time": 0},
        ],
        ids=repr,
    )
    def test_what_may_differ_may_differ(self, token, everifin, changes):
        if changes.get("header") == {"typ": None}:
            changes = {}
        assert verify(token(**changes))["iss"] == ISSUER
        assert everifin.calls["certs"] == 1

    def test_clocks_may_differ_by_a_minute(self, token):
        now = int(time.time())
        assert verify(token(exp=now - 50, iat=now + 50, nbf=now + 50))
        assert verify(token(iat=now - 50))


class TestClaims:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            (name, value)
            for name in ("aud", "exp", "iat", "iss", "nonce", "sub")
            for value in [*OTHER_FORMS, ...]
            if (name, value) != ("sub", "x")
        ],
    )
    def test_required_claims_are_refused_in_every_other_form(self, token, name, value):
        assert refusal(token(**{name: value})).startswith(("token_", "id_token_"))

    @pytest.mark.parametrize("name", ["nbf", "auth_time"])
    @pytest.mark.parametrize("value", [None, "", "1", "x", True, [], {}, -1, HUGE], ids=repr)
    def test_other_times_are_refused_in_every_other_form(self, token, name, value):
        assert refusal(token(**{name: value})).startswith("token_")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"iss": ISSUER + "/"}, "token_invalidissuer"),
            ({"iss": ISSUER.upper()}, "token_invalidissuer"),
            ({"iss": [ISSUER]}, "token_invalidissuer"),
            ({"aud": "other"}, "id_token_audience"),
            ({"aud": [CLIENT_ID, "other"]}, "id_token_audience"),
            ({"aud": [CLIENT_ID, "other"], "azp": CLIENT_ID}, "id_token_audience"),
            ({"aud": [[CLIENT_ID]]}, "id_token_audience"),
            ({"aud": {CLIENT_ID: 1}}, "id_token_audience"),
            ({"azp": "other"}, "id_token_azp"),
            ({"azp": None}, "id_token_azp"),
            ({"azp": [CLIENT_ID]}, "id_token_azp"),
            ({"nonce": NONCE + "x"}, "id_token_nonce"),
            ({"nonce": NONCE.upper()}, "id_token_nonce"),
            ({"nonce": "\ud800"}, "id_token_nonce"),
            ({"at_hash": "x"}, "id_token_at_hash"),
            ({"at_hash": None}, "id_token_at_hash"),
            ({"at_hash": [AT_HASH.decode()]}, "id_token_at_hash"),
            ({"at_hash": AT_HASH.decode()}, "id_token_at_hash"),
            ({"typ": "Bearer"}, "id_token_type"),
            ({"typ": "Logout"}, "id_token_type"),
            ({"typ": None}, "id_token_type"),
            ({"header": {"typ": "at+jwt"}}, "id_token_type"),
            ({"header": {"typ": "logout+jwt"}}, "id_token_type"),
            ({"sub": "x" * 256}, "token_subject"),
            ({"sub": "ž"}, "token_subject"),
            ({"sub": "a\0"}, "token_subject"),
            ({"sub": "a\n"}, "token_subject"),
            ({"sub": ""}, "token_subject"),
        ],
        ids=repr,
    )
    def test_the_reason_is_named(self, token, changes, reason):
        assert refusal(token(**changes)) == reason

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"exp": -61}, "token_expiredsignature"),
            ({"iat": 70}, "token_immaturesignature"),
            ({"nbf": 70}, "token_immaturesignature"),
            ({"iat": -70}, "id_token_too_old"),
        ],
    )
    def test_times_are_held_against_the_clock(self, token, changes, reason):
        now = int(time.time())
        moved = {name: now + seconds for name, seconds in changes.items()}
        assert refusal(token(**moved)) == reason

    def test_a_token_older_than_the_login_is_refused(self, token):
        later = datetime.now(UTC) + timedelta(seconds=70)
        assert refusal(token(), started_at=later) == "id_token_too_old"

    def test_times_beyond_all_calendars_are_refused(self, token):
        assert refusal(token(exp=253_402_300_800)) == "token_times"
        assert verify(token(exp=253_402_300_799))

    def test_another_login_is_refused(self, token):
        assert refusal(token(), nonce="other") == "id_token_nonce"

    def test_an_access_token_is_no_id_token(self, everifin):
        access = Site(everifin).tokens(nonce=NONCE)["access_token"]
        assert refusal(access, access_token=Secret(access)) == "id_token_type"

    def test_nor_is_a_refresh_token(self, everifin):
        assert refusal(Site(everifin).tokens()["refresh_token"]) == "token_header"


class TestForm:
    @pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c", "a.b.c.d.e", "..", "ž.ž.ž", "!.!.!"])
    def test_what_is_no_token_is_malformed(self, everifin, text):
        assert refusal(text) == "token_malformed"
        assert everifin.calls["certs"] == 0

    def test_a_token_has_a_longest_size(self, token):
        short = token(more="")
        assert refusal(token(more="x" * (33_000 - len(short)))) == "token_too_long"
        assert verify(token(more="x" * 20_000))

    @pytest.mark.parametrize(
        "payload",
        [
            "[]",
            '"text"',
            "null",
            "{",
            "",
            '{"sub": "a", "sub": "b"}',
            '{"nonce": {"a": 1, "a": 2}}',
            '{"exp": NaN}',
            '{"exp": 1e999}',
            '{"a":' * 4500,
            "\ufeff{}",
        ],
    )
    def test_loose_json_is_malformed(self, everifin, rs256, payload):
        header = {"alg": "RS256", "kid": everifin.signing_key.kid}
        assert refusal(signed(header, payload, rs256)) == "token_malformed"

    def test_a_duplicate_among_right_claims_is_malformed(self, everifin, rs256):
        header = {"alg": "RS256", "kid": everifin.signing_key.kid}
        payload = json.dumps(claims())
        twice = payload[:-1] + ', "sub": "other"}'
        assert verify(signed(header, payload, rs256))
        assert refusal(signed(header, twice, rs256)) == "token_malformed"
        header_twice = json.dumps(header)[:-1] + ', "alg": "RS256"}'
        assert refusal(signed(header_twice, payload, rs256)) == "token_malformed"

    @pytest.mark.parametrize("mark", ["!", "=", "\n", " ", "+", "/"])
    def test_characters_outside_the_alphabet_are_malformed(self, token, mark):
        header, payload, signature = token().split(".")
        for parts in (
            (header + mark, payload, signature),
            (header, payload + mark, signature),
            (header, payload, signature + mark),
            (header, mark + payload, signature),
        ):
            assert refusal(".".join(parts)) == "token_malformed"

    @pytest.mark.parametrize(
        "change",
        [
            {"alg": "none"},
            {"alg": "None"},
            {"alg": "NONE"},
            {"alg": ""},
            {"alg": None},
            {"alg": ["RS256"]},
            {"alg": {}},
            {"alg": "HS256"},
            {"alg": "HS512"},
            {"alg": "rs256"},
            {"alg": "ES256K"},
            {"alg": "RSA-OAEP"},
            {"crit": ["exp"]},
            {"crit": []},
            {"crit": None},
            {"b64": False},
            {"b64": 1},
            {"b64": None},
        ],
        ids=repr,
    )
    def test_unknown_algorithms_and_extensions_are_refused(self, everifin, rs256, change):
        header = {"alg": "RS256", "kid": everifin.signing_key.kid, **change}
        assert refusal(signed(header, claims(), rs256)) == "token_header"
        assert everifin.calls["certs"] == 0

    def test_a_header_without_algorithm_is_refused(self, rs256):
        assert refusal(signed({"typ": "JWT"}, claims(), rs256)) == "token_header"

    @pytest.mark.parametrize("signature", ["", "x", "AAAA"])
    def test_an_unsigned_token_is_refused(self, token, signature):
        head = token().rpartition(".")[0]
        assert refusal(f"{head}.{signature}") in {"token_invalidsignature", "token_decode"}

    def test_a_changed_payload_is_refused(self, token):
        header, _, signature = token().split(".")
        other = base64url(json.dumps(claims(sub="other")))
        assert refusal(f"{header}.{other}.{signature}") == "token_invalidsignature"

    @pytest.mark.parametrize(
        ("encoding", "form"),
        [
            (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            (Encoding.PEM, PublicFormat.PKCS1),
            (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        ],
    )
    def test_the_public_key_is_no_shared_secret(self, everifin, encoding, form):
        secret = everifin.signing_key.private_key.public_key().public_bytes(encoding, form)
        self.assert_refused_as_shared_secret(everifin, secret)

    def test_nor_is_it_as_a_jwk(self, everifin):
        secret = json.dumps(everifin.signing_key.jwk()).encode()
        self.assert_refused_as_shared_secret(everifin, secret)

    def assert_refused_as_shared_secret(self, everifin, secret):

        header = {"alg": "HS256", "kid": everifin.signing_key.kid}
        sign = lambda message: hmac.digest(secret, message, "sha256")  # noqa: E731
        assert refusal(signed(header, claims(), sign)) == "token_header"
        assert (
            refusal(signed(header | {"alg": "RS256"}, claims(), sign)) == "token_invalidsignature"
        )

    def test_keys_within_the_token_are_not_asked(self, everifin):
        attackers = rsa.generate_private_key(65537, 2048)
        header = {
            "alg": "RS256",
            "kid": everifin.signing_key.kid,
            "jwk": RSAAlgorithm.to_jwk(attackers.public_key(), as_dict=True),
            "jku": "https://evil.test/keys",
            "x5u": "https://evil.test/keys",
        }
        assert refusal(signed_by(attackers, **header)) == "token_invalidsignature"


class TestAccessTokenHashes:
    @pytest.mark.parametrize(
        ("algorithm", "digest"), [("RS256", "sha256"), ("RS384", "sha384"), ("PS512", "sha512")]
    )
    def test_at_hash_goes_by_the_algorithm(self, publish, keys, algorithm, digest):
        publish(jwk(keys["RSA"]))
        whole = hashlib.new(digest, ACCESS.reveal().encode()).digest()
        right = base64url(whole[: len(whole) // 2])
        assert verify(sign(keys["RSA"], algorithm, {"at_hash": right}))
        wrong = base64url(whole[len(whole) // 2 :])
        assert refusal(sign(keys["RSA"], algorithm, {"at_hash": wrong})) == "id_token_at_hash"

    def test_the_hash_of_ed25519_is_sha512(self, publish, keys):
        publish(jwk(keys["Ed25519"]))
        whole = hashlib.sha512(ACCESS.reveal().encode()).digest()
        assert verify(sign(keys["Ed25519"], "EdDSA", {"at_hash": base64url(whole[:32])}))
        for wrong in (whole[32:], whole[:16], hashlib.sha256(ACCESS.reveal().encode()).digest()):
            token = sign(keys["Ed25519"], "EdDSA", {"at_hash": base64url(wrong)})
            assert refusal(token) == "id_token_at_hash"

    @pytest.mark.parametrize("at_hash", [None, "", "x"])
    def test_at_hash_in_another_form_is_refused(self, publish, keys, at_hash):
        publish(jwk(keys["Ed25519"]))
        token = sign(keys["Ed25519"], "EdDSA", {"at_hash": at_hash})
        assert refusal(token) == "id_token_at_hash"

    def test_at_hash_of_an_algorithm_without_a_settled_hash_is_refused(self, token, monkeypatch):
        monkeypatch.delitem(id_token.AT_HASH_DIGESTS, "RS256")
        assert refusal(token()) == "id_token_at_hash"
        assert verify(token(at_hash=...))

    def test_without_an_access_token_there_is_nothing_to_compare(self, token):
        assert verify(token(at_hash="x"), access_token=None)


class TestLogoutTokens:
    """The marks of a logout token; that it ends sessions is tested with the view."""

    EVENTS: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}

    @pytest.fixture
    def logout(self, token) -> Callable[..., str]:
        """Give a function that signs the claims of a logout token, changed."""
        own = {"jti": "one", "sid": "s-1", "events": self.EVENTS, "typ": ..., "nonce": ...}
        return lambda **changes: token(**{**own, "at_hash": ..., "azp": ..., **changes})

    def refusal(self, text: str) -> str:
        with pytest.raises(LoginError) as caught:
            verify_logout_token(Secret(text))
        assert text not in report(caught.value)
        assert SUBJECT not in report(caught.value)
        return str(caught.value.reason)

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"header": {"typ": "logout+jwt"}},
            {"header": {"typ": "Logout+JWT"}},
            {"header": {"typ": "JWT"}},
            {"header": {"typ": "jwt"}},
            {"typ": "Logout"},
            {"exp": ...},
            {"sid": ...},
            {"sub": ...},
            {"events": {**EVENTS, "http://other.test": 5}},
            {"aud": [CLIENT_ID]},
        ],
        ids=repr,
    )
    def test_what_may_differ_may_differ(self, logout, changes):
        got = verify_logout_token(Secret(logout(**changes)))
        assert got.token_id == "one"
        assert got.sid == ("" if changes.get("sid") is ... else "s-1")
        assert (got.identity is None) == (changes.get("sub") is ...)

    def test_a_token_without_any_typ_is_accepted(self, everifin, rs256):
        """PyJWT writes one into every header; the OpenID conformance suite and Dex write none."""
        header = {"alg": "RS256", "kid": everifin.signing_key.kid}
        said = claims(jti="one", sid="s-1", events=self.EVENTS, typ=..., nonce=...)
        assert verify_logout_token(Secret(signed(header, said, rs256))).sid == "s-1"

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"header": {"typ": "at+jwt"}}, "logout_token_type"),
            ({"header": {"typ": 5}}, "logout_token_type"),
            ({"header": {"typ": ["JWT"]}}, "logout_token_type"),
            ({"typ": "ID"}, "logout_token_type"),
            ({"typ": "Bearer"}, "logout_token_type"),
            ({"typ": None}, "logout_token_type"),
            ({"typ": "logout"}, "logout_token_type"),
            ({"nonce": NONCE}, "logout_token_type"),
            ({"nonce": None}, "logout_token_type"),
            ({"events": {}}, "logout_token_type"),
            ({"events": None}, "token_missingrequiredclaim"),
            ({"events": []}, "logout_token_type"),
            ({"events": list(EVENTS)}, "logout_token_type"),
            ({"events": "x"}, "logout_token_type"),
            ({"events": dict.fromkeys(EVENTS)}, "logout_token_type"),
            ({"events": dict.fromkeys(EVENTS, "x")}, "logout_token_type"),
            ({"events": {name: [] for name in EVENTS}}, "logout_token_type"),
            ({"events": ...}, "token_missingrequiredclaim"),
            ({"jti": ...}, "token_missingrequiredclaim"),
            ({"iat": ...}, "token_missingrequiredclaim"),
            ({"aud": "other"}, "logout_token_audience"),
            ({"sid": ..., "sub": ...}, "logout_token_incomplete"),
            ({"sid": ""}, "logout_token_incomplete"),
            ({"sid": None}, "logout_token_incomplete"),
            ({"sid": 5}, "logout_token_incomplete"),
            ({"sid": "a\0"}, "logout_token_incomplete"),
            ({"sid": "a\n"}, "logout_token_incomplete"),
            ({"sid": "a\x7f"}, "logout_token_incomplete"),
            ({"sid": "ž"}, "logout_token_incomplete"),
            ({"sid": "x" * 256}, "logout_token_incomplete"),
            ({"jti": ""}, "logout_token_incomplete"),
            ({"jti": "x" * 256}, "logout_token_incomplete"),
            ({"jti": "a\0"}, "logout_token_incomplete"),
            ({"jti": 5}, None),
            ({"sub": "a\0"}, "token_subject"),
            ({"sub": "a\n"}, "token_subject"),
            ({"exp": None}, None),
            ({"exp": "x"}, None),
            ({"exp": 5}, "token_expiredsignature"),
        ],
        ids=repr,
    )
    def test_the_reason_is_named(self, logout, changes, reason):
        got = self.refusal(logout(**changes))
        assert got == reason or (reason is None and got.startswith(("token_", "logout_")))

    @pytest.mark.parametrize("seconds", [-130, 70])
    @pytest.mark.parametrize("exp", [..., 10**9 * 4])
    def test_its_age_counts_with_or_without_an_end(self, logout, seconds, exp):
        self.refusal(logout(iat=int(time.time()) + seconds, exp=exp))
        verify_logout_token(Secret(logout(iat=int(time.time()) - 100, exp=exp)))

    def test_its_algorithm_is_that_of_this_issuers_id_tokens(self, publish, keys, settings):
        publish(jwk(keys["RSA"]), jwk(keys["P-256"], kid="two"))
        said = claims(jti="one", sid="s-1", events=self.EVENTS, typ=..., nonce=...)

        def logout(kind: str, algorithm: str, kid: str) -> str:
            return PyJWS().encode(json.dumps(said).encode(), keys[kind], algorithm, {"kid": kid})

        assert verify(sign(keys["RSA"], "RS256"))
        assert verify_logout_token(Secret(logout("RSA", "RS256", "one"))).sid == "s-1"
        for other in (logout("P-256", "ES256", "two"), logout("RSA", "PS256", "one")):
            assert self.refusal(other) == "logout_token_alg"

        settings.EVERIFIN_ID_TOKEN_ALG = "ES256"
        assert self.refusal(logout("RSA", "RS256", "one")) == "logout_token_alg"
        assert verify_logout_token(Secret(logout("P-256", "ES256", "two"))).sid == "s-1"


class TestSession:
    def test_a_session_that_can_be_stored_is_named(self):
        assert id_token.sid_of({"sid": "s-1"}) == "s-1"

    @pytest.mark.parametrize("sid", [None, "", "a\0", "a\n", "\ud800", "x" * 256, 5, ["a"], {}])
    def test_all_else_names_none(self, sid):
        assert id_token.sid_of({"sid": sid}) == id_token.sid_of({}) == ""


class TestAccessTokens:
    def test_a_real_one_names_its_user(self, everifin):
        site = Site(everifin)
        tokens = site.tokens()
        subject = jwt.decode(tokens["id_token"], options={"verify_signature": False})["sub"]
        access = Secret(tokens["access_token"])
        assert subject_of_access_token(access) == Identity(everifin.issuer, subject)

    @pytest.mark.parametrize("changes", [{"typ": "Bearer", "nonce": ...}, {"typ": ..., "azp": ...}])
    def test_what_may_differ_may_differ(self, token, changes):
        changed = token(aud="account", **changes)
        assert subject_of_access_token(Secret(changed)) == Identity(ISSUER, SUBJECT)

    @pytest.mark.parametrize(
        "changes",
        [
            {"typ": "ID"},
            {"typ": "Refresh"},
            {"azp": "other"},
            {"iss": "https://other.test"},
            {"exp": 5},
            {"exp": ...},
            {"sub": ...},
            {"sub": "ž"},
            {"header": {"kid": "unknown"}},
        ],
        ids=repr,
    )
    def test_all_else_names_nobody(self, token, changes):
        changed = token(**{"typ": "Bearer", **changes})
        assert subject_of_access_token(Secret(changed)) is None

    @pytest.mark.parametrize("text", ["opaque", "a.b.c", ""])
    def test_an_opaque_token_names_nobody(self, everifin, text):
        assert subject_of_access_token(Secret(text)) is None

    def test_without_keys_nobody_knows(self, everifin, token):
        everifin.faults.add("certs", status=503)
        text = token(typ="Bearer")
        with pytest.raises(UnavailableError) as caught:
            subject_of_access_token(Secret(text))
        assert text not in report(caught.value)


class TestUserInfo:
    def test_it_says_whom_the_token_is_about(self, everifin):
        tokens = Site(everifin).tokens()
        got = fetch_userinfo(Secret(tokens["access_token"]))
        assert got["preferred_username"] == "alice"
        request = everifin.last_request["userinfo"]
        assert request.method == "GET"
        assert request.headers["Authorization"] == f"Bearer {tokens['access_token']}"
        assert request.query == {}

    def test_a_refused_token_is_named(self, everifin):
        error = self.failure(NotAuthorizedError)
        assert error.status == 401

    @pytest.mark.parametrize("status", [429, 500, 502, 503])
    def test_an_outage_is_temporary(self, everifin, status):
        everifin.faults.add("userinfo", html=True, status=status, retry_after=7)
        error = self.failure(UnavailableError)
        assert (error.status, error.retry_after_seconds) == (status, 7)

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "[]",
            "null",
            "{}",
            '{"sub": null}',
            '{"sub": ""}',
            '{"sub": 5}',
            '{"sub": ["a"]}',
            '{"sub": "\u017e"}',
            '{"sub": "a", "sub": "b"}',
            f'{{"sub": "{"x" * 256}"}}',
            '{"name": "canary-name"}',
            "<html>canary-page",
            signed({"alg": "none"}, {"sub": "canary-subject"}),
        ],
        ids=lambda body: body[:20],
    )
    def test_all_but_claims_about_a_subject_is_refused(self, everifin, body):
        everifin.faults.add("userinfo", body=body)
        self.failure(AnswerError)

    @pytest.mark.parametrize("status", [201, 302, 400, 404])
    def test_so_is_every_other_status(self, everifin, status):
        everifin.faults.add("userinfo", status=status, body='{"sub": "canary"}')
        self.failure(AnswerError)

    def failure(self, kind: type[APIError]) -> Any:
        with pytest.raises(EverifinError) as caught:
            fetch_userinfo(ACCESS)
        assert type(caught.value) is kind
        assert "canary" not in report(caught.value)
        return caught.value


class TestEmail:
    @pytest.mark.parametrize("email", ["a@b.test", "ž@b.test", f"{'a' * 247}@b.test"])
    def test_an_email_that_can_be_stored_is_named(self, email):
        assert id_token.email_of({"email": email}) == email

    @pytest.mark.parametrize(
        "email",
        [
            None,
            "",
            "a",
            5,
            True,
            ["a@b.test"],
            {"a@b.test": 1},
            f"{'a' * 248}@b.test",
            "a@b.test\n",
            "a\r\nBcc: c@d.test@b.test",
            "a\0@b.test",
            "\ud800@b.test",
            "a b@b.test",
            "\u202ea@b.test",
        ],
        ids=lambda email: repr(email)[:20],
    )
    def test_all_else_names_none(self, email):
        assert id_token.email_of({"email": email}) == id_token.email_of({}) == ""


class TestRefreshedTokens:
    WHO = Identity(ISSUER, SUBJECT)

    @pytest.mark.parametrize(
        "changes", [{}, {"nonce": ...}, {"azp": ...}, {"aud": [CLIENT_ID]}, {"exp": 5}], ids=repr
    )
    def test_the_same_person_is_recognised(self, token, everifin, changes):
        assert is_about(Secret(token(**changes)), self.WHO)
        assert everifin.calls["certs"] == 0

    @pytest.mark.parametrize(
        "changes",
        [
            {"sub": SUBJECT.upper()},
            {"sub": SUBJECT + " "},
            {"sub": ...},
            {"sub": [SUBJECT]},
            {"iss": ISSUER + "/"},
            {"iss": ...},
            {"aud": "other"},
            {"aud": [CLIENT_ID, "other"]},
            {"aud": ...},
            {"aud": 5},
            {"aud": {CLIENT_ID: 1}},
            {"aud": None},
            {"azp": "other"},
            {"azp": None},
        ],
        ids=repr,
    )
    def test_anybody_else_is_not(self, token, changes):
        assert not is_about(Secret(token(**changes)), self.WHO)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "opaque",
            "a.b.c",
            signed("{}", "[]"),
            signed("{}", '{"a":' * 5000),
            signed("{}", f'{{"iss": "{ISSUER}", "sub": "a", "sub": "{SUBJECT}"}}'),
        ],
        ids=lambda text: text[:12],
    )
    def test_what_is_no_token_is_about_nobody(self, text):
        assert not is_about(Secret(text), self.WHO)


class TestIdentity:
    def test_equal_identities_have_one_digest(self):
        assert Identity("a", "b").digest == Identity("a", "b").digest
        assert len(Identity("a", "b").digest) == 64

    def test_the_digest_never_changes(self):
        """It is stored: with another one, nobody would find their account again."""
        expected = hashlib.sha256(b"\0\0\0\1a\0\0\0\2bc").hexdigest()
        assert Identity("a", "bc").digest == expected

    @pytest.mark.parametrize(
        "other",
        [
            Identity("https://idp.test", "Alice"),
            Identity("https://idp.test", "alice "),
            Identity("https://idp.test", " alice"),
            Identity("https://IDP.test", "alice"),
            Identity("https://idp.test/", "alice"),
            Identity("https://idp.testa", "lice"),
            Identity("", "https://idp.testalice"),
        ],
        ids=repr,
    )
    def test_any_difference_is_another_person(self, other):
        assert other.digest != Identity("https://idp.test", "alice").digest

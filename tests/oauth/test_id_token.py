"""Whom a token is about: every claim and header in every wrong way, and the keys through faults."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
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
    clear_signing_keys,
    fetch_userinfo,
    identity_of,
    is_about,
    subject_of_access_token,
    verify_id_token,
)
from everifin_django.secret import Secret
from everifin_django.testing.sandbox import SigningKey
from tests.support.malicious_server import report
from tests.testing import Site

CLIENT_ID = "everifin-sandbox"
ISSUER = "https://idp.everifin.test/auth/realms/everifin_app"
SUBJECT = "canary-subject-6f"
NONCE = "canary-nonce-b2"
ACCESS = Secret("canary-access-0d")
AT_HASH = base64.urlsafe_b64encode(hashlib.sha256(b"canary-access-0d").digest()[:16])
HUGE = 10**30
OTHER_FORMS: list[Any] = [None, "", "x", 0, 1.5, True, [], ["x"], {}, HUGE]


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a right ID token, changed; ``...`` takes one out."""
    now = int(time.time())
    right = {
        "iss": ISSUER,
        "sub": SUBJECT,
        "aud": CLIENT_ID,
        "azp": CLIENT_ID,
        "exp": now + 300,
        "iat": now,
        "nonce": NONCE,
        "at_hash": AT_HASH.rstrip(b"=").decode(),
        "typ": "ID",
        "email": "canary@example.test",
    }
    return {name: value for name, value in (right | changes).items() if value is not ...}


def verify(token: str, **options: Any) -> Any:
    given = {"nonce": NONCE, "access_token": ACCESS, "started_at": datetime.now(UTC), **options}
    return verify_id_token(Secret(token), **given)


def refusal(token: str, **options: Any) -> str:
    """Return the reason why *token* is refused; the report of it shows nothing of the token."""
    with pytest.raises(LoginError) as caught:
        verify(token, **options)
    shown: str = report(caught.value)
    assert "canary" not in shown.replace(NONCE, "")  # the nonce is the caller's, and burned
    assert len(token) < 20 or token not in shown
    return str(caught.value.reason)


def base64url(text: bytes | str) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: Any, payload: Any, sign: Callable[[bytes], bytes] = lambda _: b"x") -> str:
    """Return a compact JWS of any two texts or objects."""
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (header, payload)]
    message = ".".join(map(base64url, texts))
    return f"{message}.{base64url(sign(message.encode()))}"


@pytest.fixture
def token(everifin) -> Callable[..., str]:
    """Give a function that signs changed claims, and a changed header, with Everifin's key."""

    def make(*, header: dict[str, Any] | None = None, **changes: Any) -> str:
        signing_key: SigningKey = everifin.signing_key
        return signing_key.sign(claims(**changes), header)

    return make


@pytest.fixture
def rs256(everifin) -> Callable[[bytes], bytes]:
    key = everifin.signing_key.private_key
    return lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256())


@pytest.fixture
def publish(everifin) -> Callable[..., None]:
    """Give a function that says which keys Everifin publishes from now on."""

    def make(*keys: Any) -> None:
        everifin.faults.clear()
        everifin.faults.add("certs", body={"keys": list(keys)}, content_type="application/json")

    return make


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Give the moment that the cache of keys goes by; a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(id_token, "monotonic", lambda: now[0])
    return now


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


@pytest.fixture(scope="module")
def keys() -> dict[str, Any]:
    """Give one private key of each kind."""
    return {
        "RSA": rsa.generate_private_key(65537, 2048),
        "short": rsa.generate_private_key(65537, 1024),  # noqa: S505 - which is what is tested
        "P-256": ec.generate_private_key(ec.SECP256R1()),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    }


def jwk(key: Any, **changes: Any) -> dict[str, Any]:
    algorithm: Any = OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = RSAAlgorithm
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = ECAlgorithm
    made = algorithm.to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    described = {"kid": "one", "use": "sig", **made, **changes}
    return {name: value for name, value in described.items() if value is not ...}


def sign(key: Any, algorithm: str, changes: dict[str, Any] | None = None, **header: Any) -> str:
    given = {name: value for name, value in {"kid": "one", **header}.items() if value is not ...}
    # An at_hash is made for SHA-256; what the others make of it is tested by its own test.
    made = claims(at_hash=...) | (changes or {})
    return PyJWS().encode(json.dumps(made).encode(), key, algorithm, given)


class TestKeys:
    @pytest.mark.parametrize(
        ("kind", "algorithm"),
        [
            *(("RSA", name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
            ("P-256", "ES256"),
            ("P-384", "ES384"),
            ("P-521", "ES512"),
            ("Ed25519", "EdDSA"),
        ],
    )
    @pytest.mark.parametrize("is_stated", [True, False])
    def test_every_kind_of_key_signs(self, publish, keys, kind, algorithm, is_stated):
        publish(jwk(keys[kind], alg=algorithm if is_stated else ...))
        assert verify(sign(keys[kind], algorithm))["sub"] == SUBJECT

    @pytest.mark.parametrize(
        ("kind", "changes"),
        [
            ("RSA", {"use": "enc"}),
            ("RSA", {"use": None}),
            ("RSA", {"alg": "RS512"}),
            ("RSA", {"alg": "HS256"}),
            ("RSA", {"alg": "RSA-OAEP"}),
            ("RSA", {"alg": ["RS256"]}),
            ("RSA", {"kid": "other"}),
            ("RSA", {"kid": ...}),
            ("RSA", {"kty": "oct", "k": "eA"}),
            ("RSA", {"kty": "EC"}),
            ("RSA", {"kty": ...}),
            ("RSA", {"n": "!"}),
            ("RSA", {"n": 5}),
            ("RSA", {"n": ...}),
            ("RSA", {"e": "AA"}),
            ("short", {}),
            ("P-256", {}),
            ("secp256k1", {}),
            ("Ed25519", {}),
        ],
        ids=repr,
    )
    def test_a_key_of_another_kind_does_not_fit(self, publish, keys, kind, changes):
        with_right_key = jwk(keys["P-384"], kid="right")
        publish(with_right_key, jwk(keys[kind], **changes))
        signer = keys[kind] if kind in {"RSA", "short"} else keys["RSA"]
        assert refusal(signed_by(signer)) == "token_key"

    def test_a_private_key_that_was_published_is_nobodys(self, publish, keys):
        private = RSAAlgorithm.to_jwk(keys["RSA"], as_dict=True)
        publish({"kid": "one", **private}, jwk(keys["P-384"], kid="right"))
        assert refusal(sign(keys["RSA"], "RS256")) == "token_key"

    def test_a_shared_key_is_nobodys(self, publish, keys):
        publish(
            {"kid": "one", "kty": "oct", "alg": "RS256", "k": "eA"}, jwk(keys["RSA"], kid="right")
        )
        assert refusal(sign(keys["RSA"], "RS256")) == "token_key"

    def test_without_a_key_id_the_only_fitting_key_counts(self, publish, keys):
        publish(jwk(keys["RSA"]), jwk(keys["P-256"], kid="two"))
        assert verify(sign(keys["RSA"], "RS256", kid=...))
        assert verify(sign(keys["P-256"], "ES256", kid=...))

    def test_without_a_key_id_several_fitting_keys_are_too_many(self, publish, keys):
        other = rsa.generate_private_key(65537, 2048)
        publish(jwk(keys["RSA"]), jwk(other, kid="two"))
        assert refusal(sign(keys["RSA"], "RS256", kid=...)) == "token_key"
        assert verify(sign(keys["RSA"], "RS256"))

    def test_a_key_id_of_two_algorithms_names_the_fitting_one(self, publish, keys):
        publish(jwk(keys["P-256"]), jwk(keys["RSA"], alg="RS256"))
        assert verify(sign(keys["RSA"], "RS256"))
        assert verify(sign(keys["P-256"], "ES256"))

    @pytest.mark.parametrize(
        "kid",
        ["", "../../etc/passwd", "/dev/null", "' OR 1=1 --", "x" * 1000, "ž", "one\0", "\ud800"],
    )
    def test_a_key_id_is_only_compared(self, publish, keys, kid):
        publish(jwk(keys["RSA"]))
        assert refusal(signed_by(keys["RSA"], kid=kid)) == "token_key"

    @pytest.mark.parametrize("kid", [5, True, ["one"], {"kid": "one"}], ids=repr)
    def test_a_key_id_that_is_no_text_is_refused(self, publish, keys, kid):
        publish(jwk(keys["RSA"]))
        reason = refusal(signed_by(keys["RSA"], kid=kid))
        assert reason == "token_key"

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

    @pytest.mark.parametrize("at_hash", [None, "", "x"])
    def test_at_hash_of_an_unsettled_algorithm_is_refused(self, publish, keys, at_hash):
        publish(jwk(keys["Ed25519"]))
        token = sign(keys["Ed25519"], "EdDSA", {"at_hash": at_hash})
        assert refusal(token) == "id_token_at_hash"


def signed_by(key: Any, **header: Any) -> str:
    """Return a token as an attacker makes it, who does not ask a library what is allowed."""
    return signed(
        {"alg": "RS256", "kid": "one", **header},
        claims(at_hash=...),
        lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256()),
    )


class Announced:
    """A lock that tells of everyone who comes to it."""

    def __init__(self, arrived: threading.Semaphore) -> None:
        self.lock = threading.Lock()
        self.arrived = arrived

    def __enter__(self) -> None:
        self.arrived.release()
        self.lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self.lock.release()


class TestCache:
    def test_one_request_serves_many_logins(self, everifin, token):
        for _ in range(5):
            verify(token())
        assert everifin.calls["certs"] == 1
        headers = everifin.last_request["certs"].headers
        assert "Authorization" not in headers

    def test_keys_are_fetched_anew_after_an_hour(self, everifin, token, clock):
        verify(token())
        clock[0] += 3599
        verify(token())
        assert everifin.calls["certs"] == 1
        clock[0] += 1
        verify(token())
        assert everifin.calls["certs"] == 2

    @pytest.mark.parametrize("drop_old", [True, False])
    def test_a_key_that_is_new_since_the_last_login_is_found(self, everifin, token, drop_old):
        before = token()
        verify(before)
        everifin.rotate_signing_key(drop_old=drop_old)
        verify(token())
        assert everifin.calls["certs"] == 2

    def test_the_old_key_serves_on_while_it_is_published(self, everifin, token):
        before = token()
        everifin.rotate_signing_key()
        verify(token())
        verify(before)
        assert everifin.calls["certs"] == 1

    def test_a_key_that_was_withdrawn_is_forgotten_with_the_next_fetch(self, everifin, token):
        before = token()
        verify(before)
        everifin.rotate_signing_key(drop_old=True)
        verify(token())
        assert refusal(before) == "token_key"

    def test_a_flood_of_unknown_keys_is_one_fetch_in_ten_seconds(self, everifin, token, clock):
        verify(token())
        for number in range(20):
            assert refusal(token(header={"kid": f"unknown-{number}"})) == "token_key"
        assert everifin.calls["certs"] == 2
        clock[0] += 9.9
        refusal(token(header={"kid": "unknown"}))
        assert everifin.calls["certs"] == 2
        clock[0] += 0.2
        refusal(token(header={"kid": "unknown"}))
        refusal(token(header={"kid": "unknown"}))
        assert everifin.calls["certs"] == 3

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 503},
            {"status": 404, "html": True},
            {"html": True, "status": 200},
            {"lost": "before"},
            {"status": 302, "body": ""},
            {"body": "[]"},
            {"body": "null"},
            {"body": "{}"},
            {"body": '{"keys": {}}'},
            {"body": '{"keys": null}'},
            {"body": '{"keys": []}'},
            {"body": '{"keys": [null, 5, "x", [], {}]}'},
            {"body": '{"keys": [{"kty": "oct", "k": "eA", "kid": "x"}]}'},
            {"body": '{"keys": [], "keys": []}'},
            {"body": '{"keys": [' + " " * 70_000 + "]}"},
        ],
        ids=lambda fault: repr(fault)[:40],
    )
    def test_an_outage_leaves_the_known_keys(self, everifin, token, clock, fault):
        verify(token())
        everifin.faults.add("certs", **fault)
        clock[0] += 4000
        assert verify(token())
        assert verify(token())
        assert everifin.calls["certs"] == 2
        everifin.faults.clear()
        clock[0] += 10
        assert verify(token())
        assert everifin.calls["certs"] == 3
        clock[0] += 3000
        assert verify(token())
        assert everifin.calls["certs"] == 3

    @pytest.mark.parametrize("fault", [{"status": 503}, {"body": "{}"}, {"lost": "before"}])
    def test_without_any_key_the_login_waits(self, everifin, token, clock, fault):
        everifin.faults.add("certs", **fault)
        text = token()
        for _ in range(2):
            with pytest.raises(UnavailableError, match="signing keys") as caught:
                verify(text)
            assert text not in report(caught.value)
        assert everifin.calls["certs"] == 1
        everifin.faults.clear()
        clock[0] += 10
        assert verify(text)

    def test_keys_are_of_one_address(self, everifin, token, settings):
        verify(token())
        settings.EVERIFIN_REALM = everifin.realm = "other"
        assert verify(token(iss=everifin.issuer))
        assert everifin.calls["certs"] == 2

    def test_forgotten_keys_are_fetched_anew(self, everifin, token):
        verify(token())
        clear_signing_keys()
        verify(token())
        assert everifin.calls["certs"] == 2

    def test_threads_share_one_fetch(self, everifin, token):
        released = threading.Event()
        everifin.sleep = released.wait
        everifin.faults.add("certs", latency_seconds=5, times=1)
        text = token()
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(verify, text) for _ in range(8)]
            released.set()
            assert all(one.result() for one in waiting)
        assert everifin.calls["certs"] == 1

    def test_threads_share_one_failure(self, everifin, token):
        """Each for itself would wait for its own deadline, one after the other."""
        arrived, released = threading.Semaphore(0), threading.Event()
        everifin.sleep = released.wait
        everifin.faults.add("certs", status=503, latency_seconds=5)
        keys = id_token.SigningKeys(f"{everifin.issuer}/protocol/openid-connect/certs")
        keys._fetching = Announced(arrived)  # type: ignore[assignment]

        def fail() -> bool:
            with pytest.raises(UnavailableError):
                keys.fitting({"alg": "RS256", "kid": "x"})
            return True

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(fail) for _ in range(8)]
            for _ in waiting:
                assert arrived.acquire(timeout=60)
            released.set()
            assert all(one.result() for one in waiting)
        assert everifin.calls["certs"] == 1


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
    def test_all_but_claims_about_a_subject_is_dropped(self, everifin, body):
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

"""Signing keys: each kind, right and wrong, and the cache through faults."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from everifin_django.exceptions import UnavailableError
from everifin_django.oauth import jwks
from everifin_django.oauth.jwks import clear_signing_keys, signing_keys
from tests.oauth import SUBJECT, jwk, refusal, sign, signed_by, verify
from tests.support.malicious_server import report

ODD_KEYS: list[Any] = [
    None,
    5,
    "x",
    [],
    {"alg": "none"},
    {"alg": ["RS256"]},
    {"alg": {"RS256": 1}},
    {"alg": None},
    {"alg": 5},
    {"alg": "\ud800"},
    {"kty": ...},
    {"kty": None},
    {"kty": []},
    {"kty": {}},
    {"kty": 5},
    {"kty": "RSA", "n": None},
    {"kty": "RSA", "n": {}},
    {"kty": "RSA", "e": "AA"},
    {"kty": "RSA", "e": -1},
    {"kty": "EC"},
    {"kty": "EC", "crv": ["P-256"], "x": "AA", "y": "AA"},
    {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    {"kty": "EC", "crv": "P-256", "x": 5, "y": None},
    {"kty": "OKP", "crv": "X25519", "x": "AA"},
    {"kty": "OKP", "crv": {}, "x": "AA"},
    {"kty": "oct", "k": None},
    {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
    {"kid": {"one": 1}},
    {"kid": ["one"]},
    {"kid": 1.5},
    {"kid": None},
    {"use": ["sig"]},
    {"use": {}},
    {"key_ops": 5},
    {"key_ops": "verify"},
    {"key_ops": None},
    {"key_ops": {"verify": 1}},
    {"x5c": 5, "x5t": []},
    {"n": "A" * 30_000},
]


@pytest.fixture
def patient(monkeypatch) -> None:
    """Let threads wait for each other longer than any busy machine takes."""
    monkeypatch.setattr(jwks, "WAIT_SECONDS", 60)


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
            ("RSA", {"key_ops": ["sign", "wrapKey"]}),
            ("RSA", {"key_ops": []}),
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

    @pytest.mark.parametrize("odd", ODD_KEYS, ids=lambda odd: repr(odd)[:40])
    def test_an_odd_key_is_skipped_and_the_good_one_beside_it_serves(self, publish, keys, odd):
        if isinstance(odd, dict):
            odd = jwk(keys["RSA"], **{"kid": "odd", **odd})
        publish(odd, jwk(keys["P-256"], kid="one"), odd)
        assert verify(sign(keys["P-256"], "ES256"))

    def test_the_good_key_is_found_among_as_many_as_fit(self, publish, keys):
        publish(*[{}] * 99, jwk(keys["P-256"]), *[[]] * 1000)
        assert verify(sign(keys["P-256"], "ES256"))

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
    def test_a_key_id_that_is_not_a_string_is_refused(self, publish, keys, kid):
        publish(jwk(keys["RSA"]))
        reason = refusal(signed_by(keys["RSA"], kid=kid))
        assert reason == "token_key"


class Announced:
    """A lock that tells of everyone who comes to it."""

    def __init__(self, arrived: threading.Semaphore) -> None:
        self.lock = threading.Lock()
        self.arrived = arrived

    def acquire(self, *, timeout: float) -> bool:
        self.arrived.release()
        return self.lock.acquire(timeout=timeout)

    def release(self) -> None:
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

    def test_a_key_that_was_withdrawn_is_refused_after_the_next_fetch(self, everifin, token):
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

    @pytest.mark.parametrize("fault", [{"status": 503}, {"lost": "before"}, {"body": "{}"}])
    def test_an_outage_of_a_day_ends_the_known_keys(self, everifin, token, clock, fault):
        text = token()
        verify(text)
        everifin.faults.add("certs", **fault)
        clock[0] += 24 * 3600 - 1
        assert verify(text)
        clock[0] += 1
        with pytest.raises(UnavailableError, match="signing keys"):
            verify(text)
        everifin.faults.clear()
        clock[0] += 10
        assert verify(text)

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

    def test_keys_are_of_one_url(self, everifin, token, settings):
        verify(token())
        settings.EVERIFIN_REALM = everifin.realm = "other"
        assert verify(token(iss=everifin.issuer))
        assert everifin.calls["certs"] == 2

    def test_cleared_keys_are_fetched_anew(self, everifin, token):
        verify(token())
        clear_signing_keys()
        verify(token())
        assert everifin.calls["certs"] == 2

    def test_threads_share_one_fetch(self, everifin, token, patient):
        released = threading.Event()
        everifin.sleep = released.wait
        everifin.faults.add("certs", latency_seconds=5, times=1)
        text = token()
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(verify, text) for _ in range(8)]
            released.set()
            assert all(one.result() for one in waiting)
        assert everifin.calls["certs"] == 1

    def test_threads_share_one_failure(self, everifin, patient):
        """Each for itself would wait for its own deadline, one after the other."""
        arrived, released = threading.Semaphore(0), threading.Event()
        everifin.sleep = released.wait
        everifin.faults.add("certs", status=503, latency_seconds=5)
        keys = signing_keys()
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


class TestSlowEndpoint:
    """One thread waits for the endpoint; all others have their answer while it does."""

    @pytest.fixture
    def held(self, everifin, token, clock, monkeypatch) -> Iterator[str]:
        """Give a token of known keys, which are stale while a thread is held up fetching others."""
        monkeypatch.setattr(jwks, "WAIT_SECONDS", 0.01)
        text = token()
        verify(text)
        asked, released = threading.Event(), threading.Event()

        def sleep(seconds: float) -> None:
            asked.set()
            released.wait(60)

        everifin.sleep = sleep
        everifin.faults.add("certs", latency_seconds=5, times=1)
        clock[0] += 3601
        with ThreadPoolExecutor(1) as pool:
            fetching = pool.submit(verify, text)
            assert asked.wait(60)
            yield text
            released.set()
            assert fetching.result()

    def test_a_known_key_serves_on(self, held, everifin):
        for _ in range(8):
            assert verify(held)
        assert everifin.calls["certs"] == 2

    def test_an_unknown_key_is_a_matter_of_later(self, held, token, everifin):
        """It may be the new one that is being fetched: unknown is not refused."""
        for number in range(8):
            with pytest.raises(UnavailableError, match="signing keys"):
                verify(token(header={"kid": f"forged-{number}"}))
        assert everifin.calls["certs"] == 2

    def test_after_it_unknown_keys_are_refused_without_a_fetch(self, everifin, token, clock):
        verify(token())
        everifin.faults.add("certs", status=503)
        for number in range(8):
            assert refusal(token(header={"kid": f"forged-{number}"})) == "token_key"
        assert everifin.calls["certs"] == 2

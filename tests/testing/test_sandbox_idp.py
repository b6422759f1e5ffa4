"""The identity provider of the sandbox, entered through requests."""

import base64
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
import requests

from everifin_django.testing.adapter import mount
from everifin_django.testing.sandbox import Sandbox
from tests.testing import CALLBACK, Clock, Form, Site, query

VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode()[:-1]


@pytest.fixture
def make_site(clock: Clock) -> Iterator:
    """Give a function that mounts one sandbox with the options asked for."""
    mounted = []

    def make(**options) -> Site:
        sandbox = Sandbox(
            idp_url="https://idp.test", api_url="https://api.test", clock=clock, **options
        )
        mounted.append(mount(sandbox))
        mounted[-1].__enter__()
        return Site(sandbox)

    yield make
    for context in reversed(mounted):
        context.__exit__(None, None, None)


@pytest.fixture
def site(make_site):
    return make_site()


def error(response: requests.Response) -> tuple[int, str, str]:
    answer = response.json()
    return response.status_code, answer["error"], answer.get("error_description", "")


def claims_of(site: Site, token: str) -> dict:
    jwks = requests.get(site.endpoint("certs"), timeout=5).json()
    kid = jwt.get_unverified_header(token)["kid"]
    key = next(jwt.PyJWK(key) for key in jwks["keys"] if key["kid"] == kid)
    options: Any = {"verify_aud": False, "verify_exp": False, "verify_iat": False}
    return jwt.decode(token, key, algorithms=["RS256"], options=options)


class TestPages:
    def log_in(self, site: Site, **fields: str) -> requests.Response:
        page = requests.get(site.authorization_url(), timeout=5)
        return Form(page, "kc-form-login").submit(**fields)

    def test_a_headless_walk_ends_at_the_site_with_a_code(self, site):
        consent = self.log_in(site, username="alice", password="alice")
        assert "read your bank accounts" in consent.text
        back = Form(consent, "kc-grant").submit(accept="yes")
        assert back.status_code == 302
        assert back.headers["Location"].startswith(CALLBACK)
        parameters = query(back.headers["Location"])
        assert parameters["state"] == "a-state"
        assert parameters["iss"] == site.sandbox.issuer
        answer = site.exchange(parameters["code"]).json()
        assert answer["session_state"] == parameters["session_state"]

    def test_no_takes_the_visitor_back_with_a_refusal(self, site):
        consent = self.log_in(site, username="alice", password="alice")
        back = Form(consent, "kc-grant").submit(cancel="no")
        assert query(back.headers["Location"]) == {
            "error": "access_denied",
            "state": "a-state",
            "iss": site.sandbox.issuer,
        }

    def test_a_wrong_password_shows_the_form_again(self, site):
        page = self.log_in(site, username="alice", password="wrong")
        assert page.status_code == 200
        assert 'role="alert"' in page.text
        assert Form(page, "kc-form-login").submit(username="alice", password="alice").ok

    def test_consent_cannot_be_given_before_the_login(self, site):
        page = requests.get(site.authorization_url(), timeout=5)
        fields = Form(page, "kc-form-login").fields
        url = f"{site.sandbox.issuer}/login-actions/consent"
        answer = requests.post(url, data={**fields, "accept": "yes"}, timeout=5)
        assert answer.status_code == 400

    def test_consent_is_given_once(self, site):
        form = Form(self.log_in(site, username="bob", password="bob"), "kc-grant")
        assert form.submit(accept="yes").status_code == 302
        assert form.submit(accept="yes").status_code == 400

    def test_a_login_page_gets_too_old(self, site, clock):
        form = Form(requests.get(site.authorization_url(), timeout=5), "kc-form-login")
        clock.now += 3600
        answer = form.submit(username="alice", password="alice")
        assert (answer.status_code, "too old" in answer.text) == (400, True)

    def test_a_new_user_gets_accounts_of_their_own(self, site):
        page = requests.get(site.authorization_url(), timeout=5)
        form = Form(page, "kc-register-form")
        back = Form(form.submit(username="Carol", password="x", name="Carol <b>"), "kc-grant")
        code = query(back.submit(accept="yes").headers["Location"])["code"]
        token = site.exchange(code).json()["access_token"]
        accounts = site.get("/v1/bank-accounts", token).json()["data"]
        assert {account["ownerName"] for account in accounts} == {"Carol <b>"}
        alice = site.get("/v1/bank-accounts", site.tokens()["access_token"]).json()["data"]
        assert not {a["iban"] for a in alice} & {a["iban"] for a in accounts}

    def test_what_a_new_user_typed_is_escaped(self, site):
        form = Form(requests.get(site.authorization_url(), timeout=5), "kc-register-form")
        assert "Carol &lt;b&gt;" in form.submit(username="c2", password="x", name="Carol <b>").text

    @pytest.mark.parametrize(
        ("username", "password"), [("alice", "x"), ("x", "x"), ("white space", "x"), ("carol", "")]
    )
    def test_a_registration_that_cannot_be_says_why(self, site, username, password):
        form = Form(requests.get(site.authorization_url(), timeout=5), "kc-register-form")
        page = form.submit(username=username, password=password)
        assert 'id="registration-error"' in page.text

    def test_pages_say_that_nothing_is_real_and_stay_out_of_frames(self, site):
        page = requests.get(site.authorization_url(), timeout=5)
        assert '<html lang="en">' in page.text
        assert "sandbox for development: nothing here is real" in page.text
        assert page.headers["X-Frame-Options"] == "DENY"
        assert page.headers["Referrer-Policy"] == "same-origin"
        assert page.headers["Cache-Control"] == "no-store"


class TestAuthorizationRequest:
    def refused(self, url: str) -> dict[str, str]:
        answer = requests.get(url, timeout=5, allow_redirects=False)
        assert answer.status_code == 302
        return query(answer.headers["Location"])

    @pytest.mark.parametrize(("usual", "sample"), [("&redirect", "&&redirect"), ("?", "/?")])
    def test_everifins_own_samples_are_understood(self, site, usual, sample):
        url = site.authorization_url().replace(usual, sample, 1)
        assert "kc-form-login" in requests.get(url, timeout=5).text

    @pytest.mark.parametrize(
        "redirect_uri",
        [
            "https://evil.test/callback",
            "https://site.test/callback/",
            "http://localhost@evil.test/",
            "javascript:alert(1)",
            None,
        ],
    )
    def test_an_unknown_redirect_uri_is_never_followed(self, make_site, redirect_uri):
        site = make_site(redirect_uris=["https://site.test/callback"])
        url = site.authorization_url(redirect_uri=redirect_uri)
        answer = requests.get(url, timeout=5, allow_redirects=False)
        assert answer.status_code == 400
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "Location" not in answer.headers
        with pytest.raises(ValueError, match="refused"):
            site.sandbox.authorize(url)

    @pytest.mark.parametrize(
        "redirect_uri",
        ["https://site.test/callback", "http://127.0.0.1:4711/x?y=1", "http://[::1]:8000/"],
    )
    def test_registered_and_loopback_uris_are_known(self, make_site, redirect_uri):
        site = make_site(redirect_uris=["https://site.test/callback"])
        back = site.sandbox.authorize(site.authorization_url(redirect_uri=redirect_uri))
        assert back.startswith(redirect_uri)

    def test_an_unknown_client_is_never_sent_back(self, site):
        answer = requests.get(site.authorization_url(client_id="other"), timeout=5)
        assert answer.status_code == 400

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"scope": "openid secrets"}, "invalid_scope"),
            ({"response_type": "token"}, "unsupported_response_type"),
            ({"response_type": "code id_token"}, "unsupported_response_type"),
            ({"response_type": None}, "invalid_request"),
            ({"prompt": "none"}, "login_required"),
            ({"code_challenge": VERIFIER}, "invalid_request"),
            ({"code_challenge": VERIFIER, "code_challenge_method": "plain"}, "invalid_request"),
        ],
    )
    def test_other_mistakes_go_back_to_the_site(self, site, changes, expected):
        parameters = self.refused(site.authorization_url(**changes))
        assert parameters["error"] == expected
        assert parameters["state"] == "a-state"
        assert parameters["iss"] == site.sandbox.issuer

    def test_pkce_can_be_demanded(self, make_site):
        site = make_site(require_pkce=True)
        assert self.refused(site.authorization_url())["error"] == "invalid_request"

    def test_an_unknown_realm_is_named(self, site):
        url = site.authorization_url().replace("everifin_app", "other")
        answer = requests.get(url, timeout=5)
        assert (answer.status_code, answer.json()) == (404, {"error": "Realm does not exist"})

    def test_the_short_cut_can_refuse_consent(self, site):
        back = site.sandbox.authorize(site.authorization_url(), consent=False)
        assert query(back)["error"] == "access_denied"

    def test_the_short_cut_reports_mistakes_as_the_page_does(self, site):
        back = site.sandbox.authorize(site.authorization_url(scope="nothing"))
        assert query(back)["error"] == "invalid_scope"

    def test_the_short_cut_needs_a_user_that_exists(self, site):
        with pytest.raises(ValueError, match="add_user"):
            site.sandbox.authorize(site.authorization_url(), "nobody")


class TestCodeGrant:
    def test_the_answer_looks_like_keycloaks(self, site):
        response = site.exchange(site.code())
        answer = response.json()
        assert response.headers["Cache-Control"] == "no-store"
        assert set(answer) == {
            "access_token",
            "expires_in",
            "refresh_token",
            "refresh_expires_in",
            "token_type",
            "id_token",
            "not-before-policy",
            "session_state",
            "scope",
        }
        assert (answer["expires_in"], answer["refresh_expires_in"]) == (300, 1800)
        assert (answer["token_type"], answer["scope"]) == ("Bearer", "openid ais")
        tokens = answer["access_token"] + answer["refresh_token"] + answer["id_token"]
        assert tokens.isascii()
        assert tokens.isprintable()

    def test_the_id_token_names_user_and_client(self, site, clock):
        answer = site.tokens()
        claims = claims_of(site, answer["id_token"])
        digest = hashlib.sha256(answer["access_token"].encode()).digest()[:16]
        expected = {
            "iss": "https://idp.test/auth/realms/everifin_app",
            "aud": "everifin-sandbox",
            "azp": "everifin-sandbox",
            "sub": site.sandbox.user("alice").sub,
            "typ": "ID",
            "nonce": "a-nonce",
            "iat": int(clock.now),
            "exp": int(clock.now) + 300,
            "auth_time": int(clock.now),
            "sid": answer["session_state"],
            "at_hash": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "acr": "1",
            "preferred_username": "alice",
            "name": "Alica Ukážková",
            "email": "alice@example.test",
            "email_verified": True,
        }
        assert claims.items() >= expected.items()

    def test_the_access_token_names_scope_and_session(self, site):
        answer = site.tokens()
        claims = claims_of(site, answer["access_token"])
        assert (claims["typ"], claims["scope"]) == ("Bearer", "openid ais")
        assert (claims["azp"], claims["sid"]) == ("everifin-sandbox", answer["session_state"])

    def test_the_same_user_has_the_same_sub_in_every_sandbox(self, site):
        assert Sandbox().user("alice").sub == site.sandbox.user("alice").sub
        assert site.sandbox.user("bob").sub != site.sandbox.user("alice").sub

    def test_no_id_token_without_openid(self, site):
        answer = site.tokens(scope="ais")
        assert "id_token" not in answer
        assert "id_token" not in site.refresh(answer["refresh_token"]).json()

    def test_id_tokens_can_be_switched_off(self, make_site):
        site = make_site(issue_id_tokens=False)
        answer = site.tokens()
        assert "id_token" not in answer
        assert "id_token" not in site.refresh(answer["refresh_token"]).json()

    def test_without_a_scope_ais_is_granted(self, site):
        assert site.tokens(scope=None)["scope"] == "ais"

    def test_pkce_verifies(self, site):
        pkce = {"code_challenge": CHALLENGE, "code_challenge_method": "S256"}
        assert site.exchange(site.code(**pkce), code_verifier=VERIFIER).ok
        for form in ({}, {"code_verifier": "w" * 43}):
            refused = error(site.exchange(site.code(**pkce), **form))
            assert refused[:2] == (400, "invalid_grant")

    def test_a_code_works_once_and_the_second_use_ends_the_session(self, site):
        code = site.code()
        answer = site.exchange(code).json()
        assert error(site.exchange(code)) == (400, "invalid_grant", "Code not valid")
        assert error(site.refresh(answer["refresh_token"]))[1:] == (
            "invalid_grant",
            "Session not active",
        )

    def test_a_code_gets_old(self, site, clock):
        code = site.code()
        clock.now += 61
        assert error(site.exchange(code)) == (400, "invalid_grant", "Code not valid")

    def test_an_unknown_code_is_refused(self, site):
        assert error(site.exchange("guess")) == (400, "invalid_grant", "Code not valid")

    def test_the_redirect_uri_must_be_the_same(self, site):
        refused = site.exchange(site.code(), redirect_uri="http://localhost:8000/other/")
        assert error(refused) == (400, "invalid_grant", "Incorrect redirect_uri")
        form = {"grant_type": "authorization_code", "code": site.code()}
        assert error(site.post("token", **form)) == (400, "invalid_grant", "Incorrect redirect_uri")

    def test_the_client_may_use_basic_authentication(self, make_site):
        site = make_site(client_id="a client", client_secret="s:e%cret")
        form = {"grant_type": "authorization_code", "code": site.code(), "redirect_uri": CALLBACK}
        good, bad = ("a+client", "s%3Ae%25cret"), ("a+client", "wrong")
        refused = requests.post(site.endpoint("token"), data=form, auth=bad, timeout=5)
        assert refused.status_code == 401
        assert requests.post(site.endpoint("token"), data=form, auth=good, timeout=5).ok

    def test_a_wrong_client_does_not_spend_the_code(self, site):
        code = site.code()
        description = "Invalid client or Invalid client credentials"
        refused = site.exchange(code, client_secret="wrong")
        assert error(refused) == (401, "unauthorized_client", description)
        refused = site.exchange(code, client_id="wrong")
        assert error(refused) == (401, "invalid_client", description)
        assert site.exchange(code).ok

    @pytest.mark.parametrize(
        ("grant_type", "expected"),
        [
            ("", "invalid_request"),
            ("password", "unsupported_grant_type"),
            ("client_credentials", "unsupported_grant_type"),
        ],
    )
    def test_other_grants_are_refused(self, site, grant_type, expected):
        assert error(site.post("token", grant_type=grant_type))[:2] == (400, expected)

    def test_a_get_is_refused(self, site):
        answer = requests.get(site.endpoint("token"), timeout=5)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


class TestGrant:
    """The short cut past login and code."""

    @pytest.mark.parametrize("scope", ["openid ais", "ais pis", "openid ais offline_access"])
    def test_it_answers_as_the_token_endpoint_does(self, site, scope):
        short, real = site.sandbox.grant("bob", scope=scope), site.tokens("bob", scope=scope)
        assert short.keys() == real.keys()
        assert claims_of(site, short["access_token"]).keys() == (
            claims_of(site, real["access_token"]).keys()
        )
        assert short["scope"] == real["scope"] == scope
        assert short["refresh_expires_in"] == real["refresh_expires_in"]

    def test_its_tokens_work(self, site):
        tokens = site.sandbox.grant("bob")
        assert site.get("/v1/bank-accounts", tokens["access_token"]).status_code == 200
        assert claims_of(site, tokens["id_token"])["sub"] == site.sandbox.user("bob").sub
        assert site.refresh(tokens["refresh_token"]).status_code == 200
        assert site.post("logout", refresh_token=tokens["refresh_token"]).status_code == 204

    def test_it_outlives_a_code(self, site, clock):
        tokens = site.sandbox.grant()
        clock.now += 61
        assert site.refresh(tokens["refresh_token"]).status_code == 200

    def test_it_counts_as_no_call(self, site):
        site.sandbox.grant()
        assert not site.sandbox.calls
        assert site.sandbox.live_sessions("alice") == 1

    def test_an_unknown_scope_is_refused(self, site):
        with pytest.raises(ValueError, match="secrets"):
            site.sandbox.grant(scope="openid secrets")
        assert site.sandbox.live_sessions() == 0


class TestRefresh:
    def test_a_refresh_gives_everything_anew(self, site, clock):
        first = site.tokens()
        clock.now += 100
        second = site.refresh(first["refresh_token"]).json()
        assert set(second) == set(first)
        for name in ("access_token", "refresh_token", "id_token"):
            assert second[name] != first[name]
        assert second["session_state"] == first["session_state"]
        claims = claims_of(site, second["id_token"])
        assert "nonce" not in claims
        assert (claims["iat"], claims["auth_time"]) == (int(clock.now), int(clock.now) - 100)

    def test_strict_ends_the_session_when_a_spent_token_returns(self, site):
        first = site.tokens()
        second = site.refresh(first["refresh_token"]).json()
        reuse = "Maximum allowed refresh token reuse exceeded"
        assert error(site.refresh(first["refresh_token"])) == (400, "invalid_grant", reuse)
        assert error(site.refresh(second["refresh_token"]))[2] == "Session not active"
        assert site.sandbox.double_spends == 1
        assert site.sandbox.live_sessions() == 0

    def test_strict_lets_one_of_many_at_once_through(self, site):
        token = site.tokens()["refresh_token"]
        barrier, statuses = threading.Barrier(8), Counter[int]()

        def refresh():
            barrier.wait()
            statuses[site.refresh(token).status_code] += 1

        threads = [threading.Thread(target=refresh) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == {200: 1, 400: 7}
        assert site.sandbox.double_spends == 7

    def test_default_accepts_older_tokens_of_a_live_session(self, make_site):
        site = make_site(rotation="default")
        first = site.tokens()
        second = site.refresh(first["refresh_token"]).json()
        assert second["refresh_token"] != first["refresh_token"]
        assert site.refresh(first["refresh_token"]).ok
        assert site.sandbox.double_spends == 0

    def test_off_sends_no_new_refresh_token(self, make_site):
        site = make_site(rotation="off")
        token = site.tokens()["refresh_token"]
        for _ in range(2):
            answer = site.refresh(token).json()
            assert "refresh_token" not in answer
            assert answer["refresh_expires_in"] == 0

    def test_a_refresh_token_expires_when_it_is_not_used(self, site, clock):
        token = site.tokens()["refresh_token"]
        clock.now += 1700
        token = site.refresh(token).json()["refresh_token"]
        clock.now += 1700
        token = site.refresh(token).json()["refresh_token"]
        clock.now += 1800
        assert error(site.refresh(token)) == (400, "invalid_grant", "Token is not active")

    def test_offline_access_does_not_expire(self, site, clock):
        answer = site.tokens(scope="openid ais offline_access")
        assert answer["refresh_expires_in"] == 0
        clock.now += 10_000_000
        assert site.refresh(answer["refresh_token"]).ok

    def test_an_unknown_token_is_refused(self, site):
        assert error(site.refresh("guess")) == (400, "invalid_grant", "Invalid refresh token")

    def test_another_client_spends_nothing(self, site):
        token = site.tokens()["refresh_token"]
        assert site.refresh(token, client_secret="wrong").status_code == 401
        assert site.refresh(token).ok

    def test_a_wider_scope_is_refused_and_spends_nothing(self, site):
        token = site.tokens()["refresh_token"]
        assert error(site.refresh(token, scope="ais pis"))[:2] == (400, "invalid_scope")
        assert site.refresh(token).ok


class TestEnding:
    def test_logout_ends_the_session_but_not_the_access_token(self, site):
        answer = site.tokens()
        assert site.sandbox.live_sessions("alice") == 1
        response = site.post("logout", refresh_token=answer["refresh_token"])
        assert (response.status_code, response.content) == (204, b"")
        assert site.sandbox.live_sessions() == 0
        assert error(site.refresh(answer["refresh_token"]))[2] == "Session not active"
        assert site.get("/v1/bank-accounts", answer["access_token"]).ok
        assert site.post("logout", refresh_token=answer["refresh_token"]).status_code == 204

    def test_logout_asks_for_the_client(self, site):
        token = site.tokens()["refresh_token"]
        refused = site.post("logout", refresh_token=token, client_secret="wrong")
        assert refused.status_code == 401
        assert error(site.post("logout", refresh_token="guess"))[:2] == (400, "invalid_grant")
        assert site.sandbox.live_sessions() == 1

    def test_logout_in_the_browser_sends_back(self, site):
        parameters = {
            "id_token_hint": site.tokens()["id_token"],
            "post_logout_redirect_uri": "http://localhost:8000/",
            "state": "s",
        }
        url = site.endpoint("logout")
        answer = requests.get(url, params=parameters, timeout=5, allow_redirects=False)
        assert answer.headers["Location"] == "http://localhost:8000/?state=s"
        assert site.sandbox.live_sessions() == 0

    def test_logout_in_the_browser_redirects_to_known_places_only(self, site):
        hint = site.tokens()["id_token"]
        parameters = {"id_token_hint": hint, "post_logout_redirect_uri": "https://evil.test/"}
        url = site.endpoint("logout")
        assert requests.get(url, params=parameters, timeout=5).status_code == 400
        assert site.sandbox.live_sessions() == 1
        page = requests.get(url, params={"id_token_hint": hint}, timeout=5)
        assert "logged out" in page.text
        assert site.sandbox.live_sessions() == 0

    def test_a_forged_hint_ends_nothing(self, site):
        token = site.tokens()["id_token"]
        forged = token[:-8] + "AAAAAAAA"
        requests.get(site.endpoint("logout"), params={"id_token_hint": forged}, timeout=5)
        assert site.sandbox.live_sessions() == 1

    def test_the_logout_page_ends_what_its_browser_began(self, site):
        site.tokens()
        consent = TestPages().log_in(site, username="alice", password="alice")
        back = Form(consent, "kc-grant").submit(accept="yes")
        assert site.sandbox.live_sessions() == 2
        headers = {"Cookie": back.headers["Set-Cookie"].partition(";")[0]}
        requests.get(site.endpoint("logout"), headers=headers, timeout=5)
        assert site.sandbox.live_sessions() == 1

    def test_what_is_for_later_outlives_the_browsers_session(self, site):
        tokens = site.tokens(scope="openid ais offline_access")
        parameters = {"id_token_hint": tokens["id_token"]}
        requests.get(site.endpoint("logout"), params=parameters, timeout=5)
        again = site.refresh(tokens["refresh_token"]).json()
        assert claims_of(site, again["id_token"])["sid"] == tokens["session_state"]
        site.post("logout", refresh_token=again["refresh_token"])
        assert site.sandbox.live_sessions() == 0

    def test_ending_what_is_for_later_leaves_the_browsers_session(self, site):
        tokens = site.tokens(scope="openid ais offline_access")
        site.post("logout", refresh_token=tokens["refresh_token"])
        assert error(site.refresh(tokens["refresh_token"]))[2] == "Session not active"
        assert site.sandbox.live_sessions() == 1

    def test_revoking_a_refresh_token_ends_the_session(self, site):
        answer = site.tokens()
        assert site.post("revoke", token=answer["access_token"]).status_code == 200
        assert site.sandbox.live_sessions() == 1
        assert site.post("revoke", token=answer["refresh_token"]).status_code == 200
        assert site.sandbox.live_sessions() == 0
        assert site.post("revoke", token="unknown").status_code == 200
        assert site.post("revoke", token="x", client_secret="wrong").status_code == 401

    def test_sessions_can_be_ended_and_consent_withdrawn_per_user(self, site):
        alice, bob = site.tokens("alice"), site.tokens("bob")
        site.sandbox.end_sessions("alice")
        site.sandbox.withdraw_consent("bob")
        refused = error(site.refresh(alice["refresh_token"]))
        assert refused == (400, "invalid_grant", "Session not active")
        refused = error(site.refresh(bob["refresh_token"]))
        assert refused == (400, "invalid_grant", "Session doesn't have required client")
        assert site.refresh(site.tokens("bob")["refresh_token"]).ok

    def test_a_session_may_go_on_without_its_consent(self, site):
        token = site.tokens()["refresh_token"]
        site.sandbox.withdraw_consent(keep_session=True)
        assert error(site.refresh(token))[:2] == (400, "invalid_scope")
        assert site.sandbox.live_sessions() == 1


class TestUserInfo:
    def userinfo(self, site: Site, token: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(site.endpoint("userinfo"), headers=headers, timeout=5)

    def test_it_names_the_user_of_the_token(self, site):
        answer = self.userinfo(site, site.tokens("bob")["access_token"]).json()
        assert answer["sub"] == site.sandbox.user("bob").sub
        assert answer["preferred_username"] == "bob"

    def test_it_needs_openid(self, site):
        answer = self.userinfo(site, site.tokens(scope="ais")["access_token"])
        assert error(answer)[:2] == (403, "insufficient_scope")

    def test_it_needs_a_live_session(self, site):
        token = site.tokens()["access_token"]
        site.sandbox.end_sessions()
        answer = self.userinfo(site, token)
        assert error(answer)[:2] == (401, "invalid_token")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")

    def test_it_needs_a_token(self, site):
        assert requests.get(site.endpoint("userinfo"), timeout=5).status_code == 401


class TestKeys:
    def test_a_new_key_signs_and_the_old_one_stays_published(self, site):
        before = site.tokens()["id_token"]
        kid = site.sandbox.rotate_signing_key()
        after = site.tokens()["id_token"]
        assert jwt.get_unverified_header(after)["kid"] == kid
        assert claims_of(site, before)
        assert claims_of(site, after)

    def test_the_old_key_can_be_withdrawn(self, site):
        token = site.tokens()["access_token"]
        kid = site.sandbox.rotate_signing_key(drop_old=True)
        jwks = requests.get(site.endpoint("certs"), timeout=5).json()
        assert [key["kid"] for key in jwks["keys"]] == [kid]
        assert site.get("/v1/bank-accounts", token).status_code == 401

    def test_no_private_part_is_published(self, site):
        (key,) = requests.get(site.endpoint("certs"), timeout=5).json()["keys"]
        assert set(key) == {"kid", "alg", "use", "kty", "n", "e"}

    def test_discovery_names_the_endpoints(self, site):
        url = f"{site.sandbox.issuer}/.well-known/openid-configuration"
        document = requests.get(url, timeout=5).json()
        assert document["issuer"] == site.sandbox.issuer
        assert document["token_endpoint"] == site.endpoint("token")
        assert document["jwks_uri"] == site.endpoint("certs")
        assert document["code_challenge_methods_supported"] == ["S256"]

    def test_the_hook_changes_claims_and_headers(self, site):
        def hook(headers, claims):
            return {**headers, "typ": "logout+jwt"}, {**claims, "iss": 5}

        site.sandbox.id_token_hook = hook
        token = site.tokens()["id_token"]
        assert jwt.get_unverified_header(token)["typ"] == "logout+jwt"
        assert jwt.decode(token, options={"verify_signature": False})["iss"] == 5

    def test_the_hook_replaces_the_token(self, site):
        site.sandbox.id_token_hook = lambda *_: "not.a.token"
        assert site.tokens()["id_token"] == "not.a.token"

    def test_a_test_can_sign_with_the_key_of_the_sandbox(self, site):
        token = site.sandbox.signing_key.sign({"sub": "x"})
        assert claims_of(site, token) == {"sub": "x"}
        assert "key=" not in repr(site.sandbox.signing_key)

    def test_the_clock_can_run_ahead(self, site, clock):
        site.sandbox.clock_skew_seconds = 600
        assert claims_of(site, site.tokens()["id_token"])["iat"] == int(clock.now) + 600


class TestMemory:
    def test_a_file_remembers_over_a_restart(self, make_site, tmp_path):
        data = str(tmp_path / "sandbox.sqlite3")
        site = make_site(data=data)
        site.sandbox.add_user("carol", password="c")
        carol, alice = site.tokens("carol"), site.tokens("alice")
        site.sandbox.store.close()
        site = make_site(data=data)
        assert site.get("/v1/bank-accounts", carol["access_token"]).ok
        assert site.refresh(alice["refresh_token"]).ok
        assert site.refresh(alice["refresh_token"]).status_code == 400
        assert site.sandbox.check_password("carol", "c")

    def test_the_file_holds_no_token(self, make_site, tmp_path):
        site = make_site(data=str(tmp_path / "sandbox.sqlite3"))
        code = site.code()
        answer = site.exchange(code).json()
        site.sandbox.store.close()
        content = (tmp_path / "sandbox.sqlite3").read_bytes()
        for secret in (code, answer["access_token"], answer["refresh_token"], answer["id_token"]):
            assert secret.encode() not in content

    def test_sandboxes_in_memory_know_nothing_of_each_other(self, site, make_site):
        token = site.tokens()["refresh_token"]
        assert make_site().refresh(token).status_code == 400

    def test_add_user_chooses_identity(self, site):
        sub = site.sandbox.add_user("Eve", sub="ABC", email="a@b.test", email_verified=False)
        claims = claims_of(site, site.tokens("Eve")["id_token"])
        assert (sub, claims["sub"]) == ("ABC", "ABC")
        assert (claims["email"], claims["email_verified"]) == ("a@b.test", False)


def test_nothing_secret_is_logged(site, caplog):
    caplog.set_level(logging.DEBUG)
    code = site.code()
    answer = site.exchange(code).json()
    site.refresh(answer["refresh_token"])
    for secret in (code, answer["refresh_token"], answer["access_token"], "everifin-sandbox-sec"):
        assert secret not in caplog.text


def test_the_last_request_is_kept_with_headers_and_form(site):
    token = site.tokens()["refresh_token"]
    site.refresh(token)
    last = site.sandbox.last_request["token.refresh_token"]
    assert last is site.sandbox.last_request["token"]
    assert (last.method, last.form["refresh_token"]) == ("POST", token)
    assert last.headers["user-agent"].startswith("python-requests")
    assert token not in repr(last)
    assert site.sandbox.calls["token"] == 2
    assert site.sandbox.calls["token.refresh_token"] == 1

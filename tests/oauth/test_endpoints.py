"""The token endpoint: what is sent to it, and what is made of every answer it can give."""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import pytest
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.exceptions import (
    AnswerLostError,
    APIError,
    RefusedError,
    UnavailableError,
    UnreachableError,
)
from everifin_django.http.client import AGENT
from everifin_django.oauth.endpoints import (
    TokenSet,
    end_session,
    exchange_code,
    logout_page,
    refresh,
)
from everifin_django.secret import Secret
from tests.support import malicious_server
from tests.support.malicious_server import OK, Server, answer_json, closed_port, report
from tests.testing import CALLBACK, Site

CANARY = "canary-3ab950"
CODE = "canary-code-71"
TOKENS = {"access_token": f"a.{CANARY}", "token_type": "Bearer", "expires_in": 300}
NO_TOKENS = [f"{CANARY}\n", "ž", "\ud800", "a\0", "a\x7f", 5, True, ["a"], {"a": 1}]
"""What cannot be a token of any kind."""

EDGE = "<!DOCTYPE html><h1>400 Bad Request</h1>"


@pytest.fixture
def site(everifin) -> Site:
    return Site(everifin)


@pytest.fixture
def granted(site) -> TokenSet:
    return exchange_code(Secret(site.code()), redirect_uri=CALLBACK, code_verifier=None)


@pytest.fixture
def answer(everifin) -> Callable[..., None]:
    """Give a function that says what the token endpoint answers from now on."""

    def prepare(body: object, **options: Any) -> None:
        text = json.dumps(body) if isinstance(body, dict | list) else body
        everifin.faults.add("token", body=text, content_type="application/json", **options)

    return prepare


def changed(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return *body* with *changes*; ``...`` takes a member out."""
    return {name: value for name, value in (body | changes).items() if value is not ...}


def refused(call: Callable[[], object], kind: type[APIError], *more_canaries: str) -> Any:
    """Return the error of *call*, in whose report no canary is seen."""
    with pytest.raises(APIError) as caught:
        call()
    assert type(caught.value) is kind
    shown = report(caught.value)
    for canary in (CANARY, CODE, "everifin-sandbox-secret", *more_canaries):
        assert canary not in shown
    return caught.value


def refresh_canary() -> TokenSet:
    return refresh(Secret(CANARY))


class TestExchange:
    def test_a_code_becomes_tokens(self, site, everifin):
        before = timezone.now()
        granted = exchange_code(Secret(site.code()), redirect_uri=CALLBACK, code_verifier=None)
        assert granted.access is not None
        assert granted.access.reveal().count(".") == 2
        assert granted.refresh is not None
        assert granted.id is not None
        assert granted.scope == "openid ais"
        assert granted.sid
        assert before <= granted.issued_at <= timezone.now()
        assert granted.expires_at == granted.issued_at + timedelta(seconds=300)
        assert granted.refresh_expires_at == granted.issued_at + timedelta(seconds=1800)
        assert everifin.last_request["token"].form == {
            "grant_type": "authorization_code",
            "code": everifin.last_request["token"].form["code"],
            "redirect_uri": CALLBACK,
            "client_id": "everifin-sandbox",
            "client_secret": "everifin-sandbox-secret",
        }

    def test_the_verifier_goes_with_the_code(self, site, everifin):
        verifier = "v" * 43
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        code = site.code(code_challenge=challenge, code_challenge_method="S256")
        exchange_code(Secret(code), redirect_uri=CALLBACK, code_verifier=Secret(verifier))
        assert everifin.last_request["token"].form["code_verifier"] == verifier

    def test_tokens_do_not_show(self, granted):
        assert granted.access.reveal() not in repr(granted)

    def test_a_wrong_code_is_refused_with_everifins_word(self, everifin):
        error = refused(
            lambda: exchange_code(
                Secret(CODE), redirect_uri=CALLBACK, code_verifier=Secret(CANARY)
            ),
            RefusedError,
        )
        assert (error.code, error.status, error.method) == ("invalid_grant", 400, "POST")
        assert error.path.endswith("/token")
        assert "invalid_grant" in str(error)


class TestRefresh:
    def test_a_refresh_token_becomes_new_tokens(self, granted, everifin):
        again = refresh(granted.refresh)
        assert again.access != granted.access
        assert again.refresh != granted.refresh
        assert everifin.calls["token.refresh_token"] == 1

    def test_the_scope_is_not_asked_for_again(self, granted, everifin):
        refresh(granted.refresh)
        assert everifin.last_request["token"].form == {
            "grant_type": "refresh_token",
            "refresh_token": granted.refresh.reveal(),
            "client_id": "everifin-sandbox",
            "client_secret": "everifin-sandbox-secret",
        }

    def test_what_is_accepted_is_plain_json(self, granted, everifin):
        refresh(granted.refresh)
        headers = everifin.last_request["token"].headers
        assert headers["Accept"] == "application/json"
        assert headers["Accept-Encoding"] == "identity"
        assert headers["User-Agent"] == AGENT
        assert "Authorization" not in headers

    def test_an_answer_without_refresh_token_keeps_none(self, granted, everifin):
        everifin.rotation = "off"
        assert refresh(granted.refresh).refresh is None

    def test_a_spent_token_is_refused(self, granted):
        refresh(granted.refresh)
        error = refused(lambda: refresh(granted.refresh), RefusedError, granted.refresh.reveal())
        assert error.code == "invalid_grant"

    def test_a_withdrawn_consent_is_refused(self, granted, everifin):
        everifin.withdraw_consent(keep_session=True)
        error = refused(lambda: refresh(granted.refresh), RefusedError)
        assert error.code == "invalid_scope"

    @pytest.mark.parametrize("status", [400, 401])
    def test_a_refused_client_is_named(self, settings, granted, answer, status):
        answer({"error": "invalid_client", "error_description": CANARY}, status=status)
        error = refused(lambda: refresh(granted.refresh), RefusedError)
        assert (error.code, error.status) == ("invalid_client", status)

    def test_a_wrong_client_secret_is_refused(self, settings, granted):
        settings.EVERIFIN_CLIENT_SECRET = f"wrong-{CANARY}"
        error = refused(lambda: refresh(granted.refresh), RefusedError)
        assert (error.code, error.status) == ("unauthorized_client", 401)

    def test_each_request_has_a_connection_of_its_own(self, settings):
        with Server(malicious_server.answer(OK)) as server:
            settings.EVERIFIN_IDP_URL, settings.DEBUG = server.url, True
            for _ in range(2):
                refused(refresh_canary, AnswerLostError)
        assert [request.connection for request in server.requests] == [1, 2]
        assert [request.headers["connection"] for request in server.requests] == ["close"] * 2

    def test_a_deadline_can_be_given(self, everifin, granted):
        refused(lambda: refresh(granted.refresh, deadline_seconds=0), UnreachableError)
        assert everifin.calls["token.refresh_token"] == 0

    def test_without_a_connection_nothing_was_spent(self, settings):
        settings.EVERIFIN_IDP_URL, settings.DEBUG = f"http://127.0.0.1:{closed_port()}", True
        refused(refresh_canary, UnreachableError)

    def test_a_lost_answer_may_have_spent_it(self, everifin, granted):
        everifin.faults.add("token", lost="after")
        refused(lambda: refresh(granted.refresh), AnswerLostError, granted.refresh.reveal())
        assert everifin.calls["token.refresh_token"] == 1


class TestClientAuthentication:
    def test_basic_sends_both_halves_form_encoded(self, settings, everifin, site):
        settings.EVERIFIN_CLIENT_AUTH = "client_secret_basic"
        settings.EVERIFIN_CLIENT_ID = everifin.client_id = "site:~ &"
        settings.EVERIFIN_CLIENT_SECRET = everifin.client_secret = "a:b%c+d ="
        exchange_code(Secret(site.code()), redirect_uri=CALLBACK, code_verifier=None)
        request = everifin.last_request["token"]
        assert not {"client_id", "client_secret"} & request.form.keys()
        scheme, _, encoded = request.headers["Authorization"].partition(" ")
        halves = base64.b64decode(encoded).decode().split(":")
        assert scheme == "Basic"
        assert [unquote_plus(half) for half in halves] == ["site:~ &", "a:b%c+d ="]

    def test_basic_shows_the_secret_nowhere(self, settings, everifin):
        settings.EVERIFIN_CLIENT_AUTH = "client_secret_basic"
        encoded = base64.b64encode(b"everifin-sandbox:everifin-sandbox-secret").decode()
        refused(refresh_canary, RefusedError, encoded)

    def test_a_logout_authenticates_alike(self, settings, everifin, granted):
        settings.EVERIFIN_CLIENT_AUTH = "client_secret_basic"
        end_session(granted.refresh)
        request = everifin.last_request["logout"]
        assert request.headers["Authorization"].startswith("Basic ")
        assert request.form == {"refresh_token": granted.refresh.reveal()}


class TestAnswers:
    def test_the_least_answer_is_enough(self, answer):
        answer({"access_token": "a", "token_type": "bearer"})
        granted = refresh_canary()
        assert granted.access == Secret("a")
        assert (granted.refresh, granted.id) == (None, None)
        assert (granted.scope, granted.sid) == ("", "")
        assert granted.expires_at == granted.issued_at + timedelta(seconds=60)
        assert granted.refresh_expires_at is None

    @pytest.mark.parametrize("word", ["Bearer", "bearer", "BEARER", "bEaReR"])
    def test_the_token_type_comes_in_any_case(self, answer, word):
        answer({**TOKENS, "token_type": word})
        assert refresh_canary().access == Secret(f"a.{CANARY}")

    @pytest.mark.parametrize(
        ("stated", "seconds"),
        [
            (300, 300),
            ("300", 300),
            (300.9, 300),
            (None, 60),
            (0, 0),
            ("0", 0),
            (-5, 0),
            (86_401, 86_400),
            (10**30, 86_400),
            ("9" * 12, 86_400),
        ],
    )
    def test_the_lifetime_is_read_and_bounded(self, answer, stated, seconds):
        answer({**TOKENS, "expires_in": stated})
        granted = refresh_canary()
        assert granted.expires_at - granted.issued_at == timedelta(seconds=seconds)

    @pytest.mark.parametrize(
        "stated", [True, False, "soon", "", "-5", "3e2", "٣٠٠", "9" * 13, [300], {"s": 300}]
    )
    def test_a_lifetime_that_cannot_be_read_counts_as_unstated(self, answer, stated):
        answer({**TOKENS, "expires_in": stated})
        granted = refresh_canary()
        assert granted.expires_at - granted.issued_at == timedelta(seconds=60)

    @pytest.mark.parametrize("number", ["1e308", "-1e308"])
    def test_a_huge_lifetime_takes_no_time(self, answer, number):
        answer(f'{{"access_token": "a", "token_type": "Bearer", "expires_in": {number}}}')
        granted = refresh_canary()
        assert granted.expires_at - granted.issued_at in (timedelta(0), timedelta(days=1))

    @pytest.mark.parametrize(
        ("stated", "seconds"), [(1800, 1800), ("1800", 1800), (10**30, 10 * 365 * 86_400)]
    )
    def test_the_end_of_the_refresh_token_is_read(self, answer, stated, seconds):
        answer({**TOKENS, "refresh_expires_in": stated})
        granted = refresh_canary()
        assert granted.refresh_expires_at == granted.issued_at + timedelta(seconds=seconds)

    @pytest.mark.parametrize("stated", [0, "0", None, -1, True, "never", [1]])
    def test_an_end_that_is_none_costs_no_token(self, answer, stated):
        answer({**TOKENS, "refresh_expires_in": stated})
        assert refresh_canary().refresh_expires_at is None

    @pytest.mark.parametrize(
        "changes",
        [
            *({"access_token": token} for token in (*NO_TOKENS, "", " ", "a b", None, ...)),
            *({"token_type": word} for word in ("MAC", "DPoP", "N_A", 5, ["Bearer"], {"a": 1})),
        ],
        ids=repr,
    )
    def test_an_access_token_that_cannot_be_used_loses_an_answer_without_another(
        self, answer, changes
    ):
        answer(changed(TOKENS, **changes))
        error = refused(refresh_canary, AnswerLostError)
        assert str(error).endswith("/token answered 200 without usable tokens.")

    @pytest.mark.parametrize(
        "changes",
        [
            *({"access_token": token} for token in (*NO_TOKENS, "", " ", "a b", None, ...)),
            *({"token_type": word} for word in ("MAC", "DPoP", "N_A", 5, ["Bearer"], {"a": 1})),
        ],
        ids=repr,
    )
    def test_a_refresh_token_beside_it_is_kept_and_due_at_once(self, answer, changes):
        answer(changed({**TOKENS, "refresh_token": "r t"}, **changes))
        granted = refresh_canary()
        assert (granted.access, granted.refresh) == (None, Secret("r t"))
        assert granted.expires_at == granted.issued_at

    @pytest.mark.parametrize("token", ["\ud800", 5, 0, 1.5, True, False, ["a"], [], {"a": 1}, {}])
    def test_a_refresh_token_that_cannot_be_one_leaves_the_access_token(
        self, answer, caplog, token
    ):
        answer({**TOKENS, "refresh_token": token})
        granted = refresh_canary()
        assert (granted.access, granted.refresh) == (Secret(f"a.{CANARY}"), None)
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    @pytest.mark.parametrize("token", ["\ud800", 5, True, ["a"], {"a": 1}])
    def test_two_tokens_that_cannot_be_any_lose_the_answer(self, answer, token):
        answer({**TOKENS, "access_token": None, "refresh_token": token})
        refused(refresh_canary, AnswerLostError)

    @pytest.mark.parametrize(
        "token",
        [" ", "a b", " a", "a ", "~!\"#%&'()*+", "x" * 30_000, "a\n", "ž", "a\x7f", "😀", "a\0"],
    )
    def test_a_refresh_token_holds_whatever_a_form_carries(self, answer, token):
        answer({**TOKENS, "refresh_token": token})
        assert refresh_canary().refresh == Secret(token)

    @pytest.mark.parametrize("token", [' a+b c%20&=" ', "ž", "a\n", "a\0b", "😀"])
    def test_it_comes_back_as_it_was(self, everifin, answer, token):
        """Also a space at either end, and what a form encodes."""
        refused(lambda: refresh(Secret(token)), RefusedError)
        assert everifin.last_request["token"].form["refresh_token"] == token

    @pytest.mark.parametrize(
        "changes",
        [
            {"token_type": ...},
            {"token_type": None},
            {"token_type": ""},
            {"expires_in": ""},
            {"expires_in": ...},
            *({"id_token": token} for token in (*NO_TOKENS, "", " ", None)),
            *({"refresh_token": token} for token in ("", None)),
            {"scope": {"a": 1}},
            {"session_state": ["a\0"]},
            {"refresh_expires_in": "never"},
            {"more": "\ud800"},
        ],
        ids=repr,
    )
    def test_what_is_odd_beside_a_good_access_token_costs_nothing(self, answer, changes):
        answer(changed({**TOKENS, "refresh_token": "r"}, **changes))
        granted = refresh_canary()
        assert granted.access == Secret(f"a.{CANARY}")
        assert granted.refresh == (None if "refresh_token" in changes else Secret("r"))
        assert granted.id is None

    def test_an_id_token_is_kept_as_it_came(self, answer):
        answer({**TOKENS, "id_token": "a.b.c"})
        assert refresh_canary().id == Secret("a.b.c")

    @pytest.mark.parametrize("status", [201, 202, 203, 206, 299])
    def test_every_success_is_one(self, answer, status):
        answer(TOKENS, status=status)
        assert refresh_canary().access == Secret(f"a.{CANARY}")

    def test_a_byte_order_mark_is_skipped(self, answer):
        answer(b"\xef\xbb\xbf" + json.dumps(TOKENS).encode())
        assert refresh_canary().access == Secret(f"a.{CANARY}")

    @pytest.mark.parametrize(
        "body",
        [
            '{"access_token": "a", "access_token": "b", "refresh_token": "r"}',
            '{"access_token": "a", "refresh_token": "r", "expires_in": NaN}',
            '{"access_token": "a", "refresh_token": "r", "expires_in": 1e999999999}',
            '{"access_token": "a", "refresh_token": "r"} trailing',
            b'{"access_token": "a", "refresh_token": "r", "name": "\xff"}',
            '{"access_token": "a", "refresh_token": "r", "more": ' + "[" * 600 + "]" * 600 + "}",
        ],
        ids=lambda body: str(body)[-12:],
    )
    def test_of_loose_json_only_the_refresh_token_is_believed(self, answer, body):
        answer(body)
        granted = refresh_canary()
        assert (granted.access, granted.refresh) == (None, Secret("r"))

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "[]",
            "5",
            "null",
            '"Bearer"',
            EDGE,
            "{",
            b"\xff",
            '{"access_token": "a", "access_token": "b", "token_type": "Bearer"}',
            '{"access_token": "a", "token_type": "Bearer", "expires_in": NaN}',
            '{"access_token": "a", "token_type": "Bearer", "expires_in": 1e999999999}',
            json.dumps({**TOKENS, "more": "x" * 65_536}),
        ],
        ids=lambda body: f"{body[:10]!r}-{len(body)}",
    )
    def test_an_unreadable_answer_may_have_held_tokens(self, answer, body):
        answer(body, status=200)
        refused(refresh_canary, AnswerLostError)

    def test_sixty_four_kilobytes_are_read(self, answer):
        body = {**TOKENS, "more": ""}
        body["more"] = "x" * (65_536 - len(json.dumps(body)))
        answer(body)
        assert refresh_canary().access == Secret(f"a.{CANARY}")

    def test_the_longest_texts_that_fit_their_columns_are_kept(self, answer):
        scope, session = "s" * 1024, "s" * 255
        answer({**TOKENS, "scope": scope, "session_state": session}, times=1)
        granted = refresh_canary()
        assert (granted.scope, granted.sid) == (scope, session)
        answer({**TOKENS, "scope": scope + "s", "session_state": session + "s"})
        granted = refresh_canary()
        assert (granted.scope, granted.sid) == ("", "")

    @pytest.mark.parametrize("scope", [5, ["ais"], "x" * 1025, "a\nb", None])
    def test_a_scope_that_is_none_counts_as_unstated(self, answer, scope):
        answer({**TOKENS, "scope": scope, "session_state": scope})
        granted = refresh_canary()
        assert (granted.scope, granted.sid) == ("", "")

    def test_unknown_members_are_ignored(self, answer):
        answer({**TOKENS, "not-before-policy": 0, "more": {"a": [1]}})
        assert refresh_canary().access == Secret(f"a.{CANARY}")


class TestFailures:
    @pytest.mark.parametrize(
        "word", ["invalid_grant", "invalid_scope", "unauthorized_client", "temporarily_unavailable"]
    )
    def test_an_oauth_error_is_a_refusal(self, answer, word):
        answer({"error": word, "error_description": f"{CANARY} <b>"}, status=400)
        error = refused(refresh_canary, RefusedError)
        assert error.code == word

    @pytest.mark.parametrize(
        "body",
        [
            EDGE,
            "",
            "[]",
            "{}",
            {"error": None},
            {"error": ""},
            {"error": 5},
            {"error": ["invalid_grant"]},
            {"error": "HTTP 400 Bad Request"},
            {"error": "invalid_grant\r\nevil"},
            {"error": "žlté"},
            {"error": "x" * 65},
            '{"error": "other", "error": "invalid_grant"}',
        ],
    )
    @pytest.mark.parametrize("status", [400, 401])
    def test_all_else_with_the_same_status_is_temporary(self, answer, body, status):
        answer(body, status=status)
        error = refused(refresh_canary, UnavailableError)
        assert (error.status, error.code) == (status, None)
        assert str(error).endswith(f"/token answered {status} without an OAuth error.")

    @pytest.mark.parametrize(
        "status", [300, 302, 307, 403, 404, 405, 422, 425, 429, 500, 503, 521, 522]
    )
    @pytest.mark.parametrize("body", [EDGE, {"error": "invalid_grant"}], ids=["page", "json"])
    def test_other_statuses_are_temporary_whatever_they_say(self, answer, status, body):
        answer(body, status=status)
        error = refused(refresh_canary, UnavailableError)
        assert error.status == status

    @pytest.mark.parametrize("status", [200, 201, 204, 206, 408, 499, 502, 504, 520, 524])
    def test_some_statuses_leave_open_whether_it_was_done(self, answer, status):
        """As those of a gateway that did not wait for the server behind it."""
        answer(EDGE, status=status)
        refused(refresh_canary, AnswerLostError)

    def test_a_redirect_is_not_followed(self, settings):
        with Server(malicious_server.answer(OK)) as elsewhere:
            location = f"Location: {elsewhere.url}/\r\n"
            with Server(answer_json(b"", "307 Moved", location)) as server:
                settings.EVERIFIN_IDP_URL, settings.DEBUG = server.url, True
                refused(refresh_canary, UnavailableError)
        assert elsewhere.connections == []

    def test_everifin_says_when_to_try_again(self, answer):
        answer(EDGE, status=503, retry_after=7)
        assert refused(refresh_canary, UnavailableError).retry_after_seconds == 7

    def test_also_as_a_date(self, answer):
        at = datetime.now(UTC) + timedelta(seconds=100)
        answer(EDGE, status=429, retry_after=format_datetime(at, usegmt=True))
        assert 90 < refused(refresh_canary, UnavailableError).retry_after_seconds <= 100


class TestRevocation:
    """A token is revoked at EVERIFIN_REVOCATION_URL, where a site names one (RFC 7009)."""

    @pytest.fixture(autouse=True)
    def _at_the_sandbox(self, settings):
        settings.EVERIFIN_REVOCATION_URL = conf.endpoint("revoke")

    def test_the_grant_is_over(self, granted, everifin):
        end_session(granted.refresh)
        assert everifin.live_sessions() == 0
        assert everifin.calls["logout"] == 0
        assert everifin.last_request["revoke"].form == {
            "token": granted.refresh.reveal(),
            "token_type_hint": "refresh_token",
            "client_id": "everifin-sandbox",
            "client_secret": "everifin-sandbox-secret",
        }

    def test_a_token_that_is_dead_already_counts(self, granted, everifin):
        end_session(granted.refresh)
        end_session(granted.refresh)
        end_session(Secret("unknown"))
        assert everifin.calls["revoke"] == 3

    def test_an_empty_object_counts_too(self, everifin):
        everifin.faults.add("revoke", status=200, body={})
        end_session(Secret(CANARY))

    @pytest.mark.parametrize("status", [302, 403, 404, 429, 500, 503])
    def test_a_page_is_no_revocation(self, everifin, status):
        everifin.faults.add("revoke", html=True, status=status)
        refused(lambda: end_session(Secret(CANARY)), UnavailableError)

    def test_a_page_with_status_200_leaves_it_open(self, everifin):
        everifin.faults.add("revoke", html=True, status=200)
        refused(lambda: end_session(Secret(CANARY)), AnswerLostError)

    @pytest.mark.parametrize("word", ["invalid_client", "unsupported_token_type"])
    def test_a_refusal_is_named(self, everifin, word):
        everifin.faults.add("revoke", status=400, body={"error": word})
        assert refused(lambda: end_session(Secret(CANARY)), RefusedError).code == word


class TestEndSession:
    def test_the_session_is_over(self, granted, everifin):
        end_session(granted.refresh)
        assert everifin.live_sessions() == 0
        assert everifin.last_request["logout"].form == {
            "refresh_token": granted.refresh.reveal(),
            "client_id": "everifin-sandbox",
            "client_secret": "everifin-sandbox-secret",
        }

    def test_a_session_that_is_over_already_counts(self, granted, everifin):
        end_session(granted.refresh)
        end_session(granted.refresh)
        end_session(Secret("unknown"))
        assert everifin.calls["logout"] == 3

    @pytest.mark.parametrize("status", [302, 403, 404, 429, 500, 503])
    def test_a_page_is_no_logout(self, everifin, status):
        everifin.faults.add("logout", html=True, status=status)
        error = refused(lambda: end_session(Secret(CANARY)), UnavailableError)
        assert error.status == status

    @pytest.mark.parametrize("status", [200, 201, 408, 499, 502, 504, 520, 524])
    @pytest.mark.parametrize("body", [EDGE, ""], ids=["page", "empty"])
    def test_some_statuses_leave_open_whether_it_was_one(self, everifin, status, body):
        everifin.faults.add("logout", status=status, body=body)
        refused(lambda: end_session(Secret(CANARY)), AnswerLostError)

    @pytest.mark.parametrize("word", ["invalid_client", "unauthorized_client", "invalid_request"])
    def test_a_refused_client_is_named(self, everifin, word):
        everifin.faults.add("logout", status=400, body={"error": word})
        assert refused(lambda: end_session(Secret(CANARY)), RefusedError).code == word

    def test_a_lost_answer_raises(self, everifin):
        everifin.faults.add("logout", lost="after")
        refused(lambda: end_session(Secret(CANARY)), AnswerLostError)

    def test_a_deadline_can_be_given(self, everifin):
        refused(lambda: end_session(Secret(CANARY), deadline_seconds=0), UnreachableError)
        assert everifin.calls["logout"] == 0


class TestLogoutPage:
    BACK = "https://site.test/good-bye/?a=1&b=2"

    @pytest.fixture(autouse=True)
    def back(self, settings):
        settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = self.BACK

    def read(self, id_token: Secret | None) -> tuple[str, dict[str, str]]:
        page, _, query = logout_page(id_token, "a state").partition("?")
        return page, dict(parse_qsl(query, strict_parsing=True))

    def test_it_names_the_session_the_client_and_the_way_back(self, settings):
        page, query = self.read(Secret(CANARY))
        assert page == conf.endpoint("logout")
        assert query == {
            "client_id": settings.EVERIFIN_CLIENT_ID,
            "post_logout_redirect_uri": self.BACK,
            "id_token_hint": CANARY,
            "state": "a state",
        }

    def test_a_hint_that_makes_the_url_too_long_is_left_out(self):
        longest = 8000 - len(logout_page(Secret(""), "a state"))
        assert self.read(Secret("x" * longest))[1]["id_token_hint"] == "x" * longest
        for hint in ("x" * (longest + 1), "x" * 30_000, "é" * longest):
            assert self.read(Secret(hint))[1].keys() == {
                "client_id",
                "post_logout_redirect_uri",
                "state",
            }

    def test_without_an_id_token_there_is_no_hint(self):
        _, query = self.read(None)
        assert query.keys() == {"client_id", "post_logout_redirect_uri", "state"}

    def test_an_older_keycloak_is_told_where_to_go_only(self, settings):
        settings.EVERIFIN_LEGACY_LOGOUT = True
        assert self.read(Secret(CANARY)) == (conf.endpoint("logout"), {"redirect_uri": self.BACK})

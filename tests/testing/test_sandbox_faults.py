"""The switches that make the sandbox misbehave, by Python and over its control page."""

import threading
import time

import pytest
import requests

from everifin_django.testing.sandbox import Fault, RecordedRefresh
from everifin_django.testing.sandbox.faults import CALL_NAMES
from scripts.demo.browser import Browser
from tests.testing import Site

ACCOUNTS = "/v1/bank-accounts"


@pytest.fixture
def naps(site: Site) -> list[float]:
    """Give the list of naps the sandbox would have taken."""
    naps: list[float] = []
    site.sandbox.sleep = naps.append
    return naps


class TestAnswers:
    def test_a_status_replaces_the_work(self, site):
        token = site.tokens()["refresh_token"]
        site.sandbox.faults.add("token.refresh_token", status=503, retry_after=7)
        answer = site.refresh(token)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
        assert answer.json() == {"error": "unknown_error"}
        site.sandbox.faults.clear()
        assert site.refresh(token).ok

    def test_the_bank_api_fails_in_its_own_envelope(self, site):
        token = site.tokens()["access_token"]
        site.sandbox.faults.add("api", status=500)
        answer = site.get(ACCOUNTS, token)
        assert answer.status_code == 500
        assert answer.json()["errors"][0]["code"] == "INTERNAL_SERVER_ERROR"

    def test_a_body_can_be_given(self, site):
        site.sandbox.faults.add("certs", body={"keys": []}, times=1)
        site.sandbox.faults.add("certs", body="{", content_type="application/json", times=1)
        site.sandbox.faults.add("certs", body=b"\xff", status=502)
        url = site.endpoint("certs")
        assert requests.get(url, timeout=5).json() == {"keys": []}
        broken = requests.get(url, timeout=5)
        assert (broken.text, broken.headers["Content-Type"]) == ("{", "application/json")
        assert requests.get(url, timeout=5).content == b"\xff"

    def test_an_html_page_as_from_the_edge(self, site):
        token = site.tokens()["access_token"]
        site.sandbox.faults.add("api", html=True, times=1)
        answer = site.get(ACCOUNTS, token)
        assert answer.status_code == 400
        assert answer.headers["Content-Type"].startswith("text/html")
        site.sandbox.faults.add("api", html=True, status=502)
        assert site.get(ACCOUNTS, token).status_code == 502

    def test_half_an_answer_breaks_off(self, site):
        token = site.tokens()["access_token"]
        site.sandbox.faults.add("api.accounts", truncate=True)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            site.get(ACCOUNTS, token)

    def test_times_is_how_often_it_happens(self, site):
        token = site.tokens()["access_token"]
        site.sandbox.faults.add("api", status=500, times=2)
        statuses = [site.get(ACCOUNTS, token).status_code for _ in range(4)]
        assert statuses == [500, 500, 200, 200]
        assert len(site.sandbox.faults) == 0

    def test_the_oldest_fault_counts(self, site):
        site.sandbox.faults.add("certs", status=500, times=1)
        site.sandbox.faults.add("certs", status=501)
        url = site.endpoint("certs")
        assert [requests.get(url, timeout=5).status_code for _ in range(2)] == [500, 501]

    @pytest.mark.parametrize(
        ("where", "hits"),
        [
            ("token", {"code", "refresh"}),
            ("token.authorization_code", {"code"}),
            ("token.refresh_token", {"refresh"}),
            ("api", {"accounts", "banks"}),
            ("api.banks", {"banks"}),
        ],
    )
    def test_a_place_is_hit_and_no_other(self, site, where, hits):
        tokens, code = site.tokens(), site.code()
        site.sandbox.faults.add(where, status=418)
        answers = {
            "code": site.exchange(code),
            "refresh": site.refresh(tokens["refresh_token"]),
            "accounts": site.get(ACCOUNTS, tokens["access_token"]),
            "banks": site.get("/v1/banks", tokens["access_token"]),
        }
        assert {name for name, answer in answers.items() if answer.status_code == 418} == hits

    def test_a_failed_call_is_counted_too(self, site):
        site.sandbox.faults.add("certs", status=500)
        requests.get(site.endpoint("certs"), timeout=5)
        assert site.sandbox.calls["certs"] == 1


class TestLost:
    def test_before_the_work_nothing_is_spent(self, site):
        token = site.tokens()["refresh_token"]
        site.sandbox.faults.add("token", lost="before", times=1)
        with pytest.raises(requests.exceptions.ConnectionError, match="without response"):
            site.refresh(token)
        assert site.refresh(token).ok

    def test_after_the_work_the_token_is_spent(self, site):
        token = site.tokens()["refresh_token"]
        site.sandbox.faults.add("token", lost="after", times=1)
        with pytest.raises(requests.exceptions.ReadTimeout):
            site.refresh(token)
        assert site.refresh(token).status_code == 400
        assert site.sandbox.double_spends == 1

    def test_the_record_of_refreshes_tells_what_the_caller_never_heard(self, site):
        records: list[RecordedRefresh] = []
        site.sandbox.on_refresh = records.append
        session = site.tokens()
        token = session["refresh_token"]
        site.sandbox.faults.add("token", lost="before", times=1)
        lost = site.sandbox.faults.add("token", lost="after", times=1)
        for failure in (requests.ConnectionError, requests.Timeout):
            with pytest.raises(failure):
                site.refresh(token)
        site.refresh(token)
        site.refresh("unheard of")
        assert [(record.session, record.fault) for record in records] == [
            (session["session_state"], lost),
            (session["session_state"], None),
            (None, None),
        ]
        assert [record.given is not None for record in records] == [True, False, False]
        assert records[0].shown == records[1].shown != records[0].given
        assert token not in str(records)

    def test_after_the_work_another_answer_can_be_shown(self, site):
        token = site.tokens()["refresh_token"]
        site.sandbox.faults.add("token", lost="after", status=502, html=True, times=1)
        assert site.refresh(token).status_code == 502
        assert site.refresh(token).json()["error"] == "invalid_grant"


class TestLatency:
    def test_a_patient_caller_waits(self, site, naps):
        site.sandbox.faults.add("certs", latency_seconds=3)
        assert requests.get(site.endpoint("certs"), timeout=5).ok
        assert naps == [3]

    def test_an_impatient_caller_gives_up_and_the_work_is_done(self, site, naps):
        token = site.tokens()["refresh_token"]
        site.sandbox.faults.add("token", latency_seconds=30, times=1)
        with pytest.raises(requests.exceptions.ReadTimeout):
            site.refresh(token)
        assert naps == [5]
        assert site.refresh(token).status_code == 400

    def test_unless_it_was_lost_before(self, site, naps):
        token = site.tokens()["refresh_token"]
        site.sandbox.faults.add("token", latency_seconds=30, lost="before", times=1)
        with pytest.raises(requests.exceptions.ReadTimeout):
            site.refresh(token)
        assert site.refresh(token).ok


class TestFault:
    def test_a_place_that_is_none_is_refused(self, site):
        with pytest.raises(ValueError, match="choose from"):
            site.sandbox.faults.add("tokens", status=500)

    def test_lost_is_before_or_after(self):
        with pytest.raises(ValueError, match="before"):
            Fault(where="api", lost="between")  # type: ignore[arg-type]

    def test_every_place_is_real(self, site):
        """A name that no call has would be a switch without effect."""
        tokens = site.tokens()
        requests.get(site.authorization_url(), timeout=5)
        for name in ("certs", "userinfo", "logout"):
            requests.get(site.endpoint(name), timeout=5)
        site.post("revoke", token="x")
        site.refresh(tokens["refresh_token"])
        site.exchange(site.code())
        requests.get(f"{site.sandbox.issuer}/.well-known/openid-configuration", timeout=5)
        for action in ("authenticate", "registration", "consent"):
            requests.post(f"{site.sandbox.issuer}/login-actions/{action}", timeout=5)
        for path in ("", "/1", "/1/transactions", "/1/transactions/1"):
            site.get(ACCOUNTS + path, "x")
        requests.post(f"{site.sandbox.api_url}{ACCOUNTS}/refresh", timeout=5)
        site.get("/v1/banks", "x")
        for path in ("single", "single/1", "bulk", "bulk/1"):
            site.get(f"/v1/payments/{path}", "x")
        assert set(site.sandbox.calls) == CALL_NAMES

    def test_threads_share_a_fault_fairly(self, site):
        site.sandbox.faults.add("certs", status=500, times=5)
        statuses = []

        def call():
            statuses.append(requests.get(site.endpoint("certs"), timeout=5).status_code)

        threads = [threading.Thread(target=call) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses.count(500) == 5


class TestControlDoor:
    def post(self, site: Site, path: str, **json) -> requests.Response:
        return requests.post(f"{site.sandbox.idp_url}/_sandbox/{path}", json=json, timeout=5)

    def test_state_is_told(self, site):
        site.tokens()
        answer = requests.get(f"{site.sandbox.idp_url}/_sandbox/state", timeout=5).json()
        assert answer["calls"]["token"] == 1
        assert (answer["live_sessions"], answer["double_spends"], answer["faults"]) == (1, 0, 0)

    def test_faults_are_put_and_cleared(self, site):
        assert self.post(site, "faults", where="certs", status=500).json()["faults"] == 1
        assert requests.get(site.endpoint("certs"), timeout=5).status_code == 500
        url = f"{site.sandbox.idp_url}/_sandbox/faults/clear"
        assert requests.delete(url, timeout=5).json()["faults"] == 0
        assert requests.get(site.endpoint("certs"), timeout=5).ok

    @pytest.mark.parametrize("json", [{"where": "x"}, {"where": "api", "colour": 1}, {}])
    def test_a_wrong_fault_is_explained(self, site, json):
        answer = self.post(site, "faults", **json)
        assert answer.status_code == 400
        assert answer.json()["error"]

    def test_a_body_that_is_no_object_is_refused(self, site):
        for path in ("faults", "end-sessions"):
            url = f"{site.sandbox.idp_url}/_sandbox/{path}"
            assert requests.post(url, json=[1], timeout=5).status_code == 400

    def test_switches_work(self, site):
        alice, bob = site.tokens(), site.tokens("bob")
        self.post(site, "expire")
        assert site.get(ACCOUNTS, alice["access_token"]).status_code == 401
        self.post(site, "withdraw-consent", username="bob")
        assert site.refresh(bob["refresh_token"]).json()["error"] == "invalid_grant"
        again = site.tokens("bob")
        self.post(site, "withdraw-consent", username="bob", keep_session=True)
        assert site.refresh(again["refresh_token"]).json()["error"] == "invalid_scope"
        assert self.post(site, "end-sessions").json()["live_sessions"] == 0
        assert self.post(site, "end-sessions", username="nobody").status_code == 400
        kid = site.sandbox.signing_key.kid
        self.post(site, "rotate-key", drop_old=True)
        keys = requests.get(site.endpoint("certs"), timeout=5).json()["keys"]
        assert len(keys) == 1
        assert keys[0]["kid"] != kid

    def test_the_clock_is_set_and_put_right(self, site):
        token = site.tokens()["access_token"]
        assert self.post(site, "clock-skew", seconds=301).json()["clock_skew_seconds"] == 301
        assert site.get(ACCOUNTS, token).status_code == 401
        self.post(site, "clock-skew")
        assert site.get(ACCOUNTS, token).ok

    @pytest.mark.parametrize("seconds", ["soon", "nan", [1]])
    def test_a_clock_goes_by_numbers(self, site, seconds):
        assert self.post(site, "clock-skew", seconds=seconds).status_code == 400
        assert site.sandbox.clock_skew_seconds == 0

    def test_the_form_of_the_page_has_every_kind_of_fault(self, site):
        form = {"where": "api", "status": "429", "retry_after": "7", "times": "2"}
        form |= {"latency_seconds": "0.5", "html": "yes", "truncate": "yes", "lost": ""}
        url = f"{site.sandbox.idp_url}/_sandbox/faults"
        assert requests.post(url, data=form, timeout=5).ok
        (fault,) = site.sandbox.faults
        assert (fault.status, fault.retry_after, fault.times) == (429, "7", 2)
        assert (fault.latency_seconds, fault.html, fault.truncate) == (0.5, True, True)

    def test_the_page_shows_and_switches(self, site):
        url = f"{site.sandbox.idp_url}/_sandbox/"
        page = requests.get(url, timeout=5).text
        assert "Everything works." in page
        shown = (site.sandbox.idp_url, site.sandbox.api_url, "strict", "300 seconds", "alice")
        assert all(text in page for text in shown)
        headers = {"Accept": "text/html"}
        form = {"where": "api", "status": "503"}
        answer = requests.post(f"{url}faults", data=form, headers=headers, timeout=5)
        assert answer.history[0].status_code == 303
        assert "answers 503" in answer.text
        page = requests.post(f"{url}faults/clear", headers=headers, timeout=5).text
        assert "Everything works." in page

    def test_every_button_does_what_it_says(self, site):
        sandbox, pressed = site.sandbox, set()
        browser = Browser(time.monotonic() + 60)
        browser.open(f"{sandbox.idp_url}/_sandbox/")

        def press(button: str, **filled_in: str) -> None:
            pressed.add(button)
            page = browser.press(button, **filled_in)
            assert (page.status, page.path) == (200, "/_sandbox/")

        token, kid = site.tokens(), sandbox.signing_key.kid
        press("Expire all access tokens")
        assert site.get(ACCOUNTS, token["access_token"]).status_code == 401
        press("New signing key")
        assert kid in [key.kid for key in sandbox.signer.published_keys()[1:]]
        press("New signing key, withdraw the old")
        assert len(sandbox.signer.published_keys()) == 1
        press("Withdraw all consents")
        refused = site.refresh(token["refresh_token"]).json()
        assert refused["error_description"] == "Session doesn't have required client"
        token = site.tokens()
        press("End all sessions")
        refused = site.refresh(token["refresh_token"]).json()
        assert refused["error_description"] == "Session not active"
        press("Clock 5 minutes ahead")
        assert sandbox.clock_skew_seconds == 300
        press("Clock right")
        assert sandbox.clock_skew_seconds == 0
        press("Break it", where="certs", status="429", retry_after="7")
        assert requests.get(site.endpoint("certs"), timeout=5).headers["Retry-After"] == "7"
        press("Clear all faults")
        assert requests.get(site.endpoint("certs"), timeout=5).ok
        assert pressed == set(browser.page.buttons)
        browser.close()

    def test_a_switch_needs_a_post(self, site):
        site.tokens()
        url = f"{site.sandbox.idp_url}/_sandbox/end-sessions"
        assert requests.get(url, timeout=5).status_code == 404
        assert site.sandbox.live_sessions() == 1

    def test_the_front_door_leads_there(self, site):
        answer = requests.get(site.sandbox.idp_url, timeout=5)
        assert '<a href="/_sandbox/">' in answer.text
        assert requests.get(f"{site.sandbox.idp_url}/nothing", timeout=5).status_code == 404

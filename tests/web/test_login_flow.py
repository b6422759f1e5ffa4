"""The way to Everifin and back, as the visitor's session remembers it."""

import base64
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from everifin_django.connections import housekeeping
from everifin_django.models import LoginFlow, SpentState
from everifin_django.testing.fake import redirect_target
from everifin_django.web import login_flow
from tests.support.flows import change_flows, flows

LOGIN = "/everifin/login/"
CONNECT = "/everifin/connect/"
DEFAULT = "/accounts/profile/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser(client, django_user_model):
    client.force_login(django_user_model.objects.create_user("ann"))
    return client


def start(client, auth_view: str = LOGIN, **data: str) -> dict[str, str]:
    """What the start of a flow sends to Everifin."""
    response = client.post(auth_view, data)
    sent = parse_qs(urlsplit(redirect_target(response)).query)
    return {name: value for name, [value] in sent.items()}


class TestStart:
    def test_state_nonce_and_verifier_are_separate_and_new_each_time(self, client):
        first, second = start(client), start(client)
        one, another = flows()
        found = [first["state"], second["state"], first["nonce"], second["nonce"]]
        found += [one["code_verifier"], another["code_verifier"]]
        assert len(set(found)) == 6
        # 62 kinds of characters, so 43 of them are 256 bits.
        assert all(re.fullmatch(r"[A-Za-z0-9]{43,128}", text) for text in found)

    def test_what_the_answer_is_held_against_is_stored(self, browser):
        sent = start(browser, CONNECT, next="/accounts/")
        [flow] = flows()
        assert flow["kind"] == "connect"
        assert flow["user_pk"] == browser.session["_auth_user_id"]
        assert flow["issuer"] == "https://idp.everifin.test/auth/realms/everifin_app"
        assert flow["redirect_uri"] == sent["redirect_uri"]
        assert flow["nonce"] == sent["nonce"]
        assert flow["next_url"] == "/accounts/"

    def test_a_browser_keeps_the_ten_newest_flows(self, client, everifin):
        urls = [redirect_target(client.post(LOGIN)) for _ in range(12)]
        assert len(client.cookies) == 12
        assert sum(bool(cookie.value) for cookie in client.cookies.values()) == 10
        statuses = [client.get(everifin.authorize(url)).status_code for url in (urls[0], urls[-1])]
        assert statuses == [400, 302]

    def test_no_session_is_made_for_a_start(self, client):
        start(client)
        assert not Session.objects.exists()
        assert "sessionid" not in client.cookies

    def test_the_cookie_is_for_the_server_and_for_the_way_back(self, client, settings):
        settings.SESSION_COOKIE_SECURE = True
        settings.SESSION_COOKIE_DOMAIN = "testserver"
        start(client)
        [cookie] = client.cookies.values()
        attributes = (cookie["httponly"], cookie["secure"], cookie["samesite"], cookie["domain"])
        assert attributes == (True, True, "Lax", "testserver")

    def test_what_is_stored_is_encrypted_and_no_cookie_has_it(self, client):
        sent = start(client, next="/accounts/?iban=1")
        [flow] = flows()
        stored = repr(LoginFlow.objects.values().get()) + repr(client.cookies)
        for text in (sent["state"], flow["nonce"], flow["code_verifier"], "/accounts/"):
            assert text not in stored

    def test_the_keys_of_another_login_are_left_alone(self, client):
        session = client.session
        session.update({"oidc_states": {"theirs": 1}, "oidc_login_next": "/theirs/"})
        session.save()
        start(client)
        assert client.session["oidc_states"] == {"theirs": 1}
        assert client.session["oidc_login_next"] == "/theirs/"

    def test_the_repr_of_a_flow_shows_neither_nonce_nor_verifier(self, client):
        start(client)
        [record] = flows()
        shown = repr(login_flow.Flow(**record))
        assert record["nonce"] not in shown
        assert record["code_verifier"] not in shown


class TestRedirectUri:
    def test_it_is_this_sites_callback(self, client):
        assert start(client)["redirect_uri"] == "http://testserver/everifin/callback/"

    def test_it_is_https_on_a_secure_request(self, client):
        response = client.post(LOGIN, secure=True)
        assert "redirect_uri=https%3A%2F%2Ftestserver%2F" in redirect_target(response)

    def test_the_setting_comes_first(self, client, settings):
        settings.EVERIFIN_REDIRECT_URI = "https://site.example/back/"
        settings.ALLOWED_HOSTS = ["*"]
        assert start(client)["redirect_uri"] == "https://site.example/back/"

    @pytest.mark.parametrize("hosts", [["*"], ["good.example", ".example.org"]])
    def test_a_wildcard_in_allowed_hosts_asks_for_the_setting(self, client, settings, hosts):
        settings.ALLOWED_HOSTS = [*hosts, "testserver"]
        with pytest.raises(ImproperlyConfigured, match="EVERIFIN_REDIRECT_URI"):
            client.post(LOGIN)
        assert not Session.objects.exists()

    def test_a_host_that_is_not_allowed_gets_nowhere(self, client):
        response = client.post(LOGIN, headers={"host": "evil.example"})
        assert response.status_code == 400

    def test_a_forwarded_host_changes_nothing(self, client):
        response = client.post(LOGIN, headers={"x-forwarded-host": "evil.example"})
        assert "redirect_uri=http%3A%2F%2Ftestserver%2F" in redirect_target(response)


class TestFinish:
    """A state serves once, in the session it was made for, for a limited time."""

    @pytest.fixture
    def back(self, everifin, browser):
        """The address that Everifin sends a connecting user back to."""
        return everifin.authorize(redirect_target(browser.post(CONNECT)))

    def test_it_serves_once(self, everifin, browser, back):
        assert browser.get(back).status_code == 302
        assert browser.get(back)["Location"] == DEFAULT
        assert everifin.calls["token"] == 1

    def test_an_old_row_put_back_does_not_revive_it(self, everifin, browser, back):
        before = LoginFlow.objects.get()
        assert browser.get(back).status_code == 302
        before.save()
        assert browser.get(back)["Location"] == DEFAULT
        assert everifin.calls["token"] == 1

    def test_it_is_spent_even_if_the_answer_is_an_error(self, everifin, browser, back):
        browser.get(back.replace("code=", "error=access_denied&x="))
        assert browser.get(back)["Location"] == DEFAULT
        assert everifin.calls["token"] == 0

    @pytest.mark.parametrize(
        "change",
        [{"started": 0.0}, {"issuer": "https://idp.everifin.test/auth/realms/another"}],
        ids=["too old", "issuer changed"],
    )
    def test_a_flow_that_does_not_hold_any_more_is_refused(self, everifin, browser, back, change):
        change_flows(**change)
        assert browser.get(back).status_code == 400
        assert SpentState.objects.exists()
        assert everifin.calls["token"] == 0

    def test_a_flow_that_is_too_old_says_to_start_again(self, browser, back):
        change_flows(started=0.0)
        assert "within a short time" in browser.get(back).content.decode()

    @pytest.mark.parametrize(("seconds", "status"), [(1700, 302), (1900, 400)])
    def test_how_long_it_may_take_is_a_setting(self, settings, browser, back, seconds, status):
        settings.EVERIFIN_LOGIN_LIFETIME_SECONDS = 1800
        [record] = flows()
        change_flows(started=record["started"] - seconds)
        assert browser.get(back).status_code == status

    def test_clocks_of_two_hosts_may_differ_a_little(self, browser, back):
        [record] = flows()
        change_flows(started=record["started"] + 5)
        assert browser.get(back).status_code == 302

    def test_spent_states_are_deleted_after_hours(self, browser, back):
        SpentState.objects.create(digest="old")
        SpentState.objects.create(digest="new")
        SpentState.objects.filter(digest="old").update(spent_at="2026-01-01T00:00Z")
        browser.get(back)
        housekeeping.delete_old_states()
        assert not SpentState.objects.filter(digest="old").exists()
        assert SpentState.objects.count() == 2

    def test_flows_are_deleted_after_hours(self, browser, back):
        housekeeping.delete_old_flows()
        assert browser.get(back).status_code == 302
        LoginFlow.objects.update(started_at="2026-01-01T00:00Z")
        housekeeping.delete_old_flows()
        assert not LoginFlow.objects.exists()

    @pytest.mark.parametrize("change", ["key is gone", "changed", "not ours"])
    def test_a_flow_that_cannot_be_read_is_unknown(self, everifin, browser, back, settings, change):
        if change == "key is gone":
            key = base64.b64encode(b"b" * 32).decode()
            settings.EVERIFIN_ENCRYPTION_KEYS = [f"another:{key}"]
        else:
            sealed = LoginFlow.objects.get().flow_ciphertext
            changed = sealed[:-4] + "AAAA" if change == "changed" else "{}"
            LoginFlow.objects.update(flow_ciphertext=changed)
        assert "This link cannot be used" in browser.get(back).content.decode()
        assert everifin.calls["token"] == 0

    def test_a_spent_state_is_kept_as_a_hash(self, browser, back):
        browser.get(back)
        assert SpentState.objects.get().digest not in back


@pytest.mark.django_db(transaction=True)
class TestCost:
    """Statements, BEGIN and COMMIT among them."""

    def come_back(self, everifin, client) -> int:
        url = everifin.authorize(redirect_target(client.post(LOGIN)))
        with CaptureQueriesContext(connection) as queries:
            assert client.get(url).status_code == 302
        return len(queries)

    def test_a_user_who_logged_out_comes_back(self, everifin, client):
        self.come_back(everifin, client)
        client.post("/everifin/logout/")
        assert self.come_back(everifin, client) == 18

    def test_a_user_comes_back_in_another_browser(self, everifin, client):
        """The grant of the first one moves to its record: two more."""
        self.come_back(everifin, client)
        assert self.come_back(everifin, Client()) == 20


class TestNext:
    @pytest.mark.parametrize(
        "url",
        [
            "//evil.example",
            "///evil.example",
            "////evil.example",
            r"/\evil.example",
            r"\\evil.example",
            "https:evil.example",
            "https:/evil.example",
            "https://evil.example/",
            "https://testserver@evil.example/",
            "https://user@testserver/",
            "https://testserver.evil.example/",
            "https://testserver:8443/",
            "javascript:alert(1)",
            "JavaScript:alert(1)",
            "java\nscript:alert(1)",
            "data:text/html,x",
            "\t//evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "\r\n//evil.example",
            "\x08//evil.example",
            "/%2fevil.example",
            "/%2F%2Fevil.example",
            "%2f%2fevil.example",
            "/%5cevil.example",
            "/%09/evil.example",
            "/\uff0fevil.example",
            "\uff0f\uff0fevil.example",
            "/%EF%BC%8Fevil.example",
            "http://[evil.example",
            "/" + "a" * 100_000,
        ],
        ids=lambda url: ascii(url[:40]),
    )
    def test_an_address_elsewhere_becomes_the_default(
        self, everifin, everifin_connect, browser, url
    ):
        assert 'name="next"' not in browser.get(CONNECT, {"next": url}).content.decode()
        assert everifin_connect(browser, next=url)["Location"] == DEFAULT
        # Changed on the way, in the row itself.
        sent = browser.post(CONNECT)
        change_flows(next_url=url)
        assert browser.get(everifin.authorize(redirect_target(sent)))["Location"] == DEFAULT

    @pytest.mark.parametrize(
        "url",
        [
            "/accounts/",
            "/accounts/?iban=1&a=%2Fb",
            "/@me/",
            "/r%C3%A9sum%C3%A9/",
            "/go/?to=https%3A%2F%2Felsewhere.example%2F",
            "http://testserver/accounts/",
        ],
    )
    def test_an_address_on_this_site_is_kept(self, everifin_connect, browser, url):
        assert everifin_connect(browser, next=url)["Location"] == url

    @pytest.mark.parametrize(
        "url",
        [
            "/accounts/?a=" + "x" * 7900,
            "/" + "path/" * 1000,
            "/accounts/?note=" + "%0A" * 1500,
            "http://testserver/" + "%C3%A9" * 1000,
        ],
        ids=lambda url: url[:20],
    )
    def test_a_long_address_on_this_site_is_kept(self, everifin_connect, browser, url):
        assert everifin_connect(browser, next=url)["Location"] == url

    @pytest.mark.parametrize(
        "start", ["/{}/evil.example", "{}//evil.example", "{}https:evil.example"]
    )
    @pytest.mark.parametrize("filler", ["\t", "%09", "\n", "\x00", "\u200b", "%E2%80%8B"])
    def test_a_long_address_hides_no_host(self, filler, start):
        request = RequestFactory().get("/")
        url = start.format(filler * 2100)
        assert login_flow.safe_next(request, url) == ""

    def test_a_secure_site_is_not_left_for_plain_http(self):
        request = RequestFactory().get("/", secure=True)
        assert login_flow.safe_next(request, "https://testserver/a/") == "https://testserver/a/"
        assert login_flow.safe_next(request, "http://testserver/a/") == ""

    @pytest.mark.parametrize("url", [None, 1, ["/a/"]])
    def test_what_is_no_text_is_no_address(self, url):
        assert login_flow.safe_next(RequestFactory().get("/"), url) == ""

    def test_the_default_is_the_sites(self, settings, everifin_connect, browser):
        settings.LOGIN_REDIRECT_URL = "/home/"
        assert everifin_connect(browser)["Location"] == "/home/"

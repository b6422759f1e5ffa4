"""How a failure is answered: to a browser, to a script, to htmx."""

import json
import logging
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client

from everifin_django.exceptions import PaymentUncertainError
from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target
from everifin_django.web.responses import answer_for

PAGE = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
NAVIGATION = {**PAGE, "sec-fetch-mode": "navigate"}
JSON = {"accept": "application/json"}
FETCH = {"accept": "*/*", "sec-fetch-mode": "cors"}
XHR = {"accept": "text/html", "x-requested-with": "XMLHttpRequest"}
HTMX = {"accept": "*/*", "sec-fetch-mode": "cors", "hx-request": "true"}

CONNECT = "/everifin/connect/"
LOGIN = "/everifin/login/"

pytestmark = pytest.mark.django_db

# A decorated view is answered for before it begins, another one when it fails.
either_view = pytest.mark.parametrize("path", ["/accounts/", "/unmarked/"])


@pytest.fixture
def browser(client, django_user_model, everifin):
    client.force_login(django_user_model.objects.create_user("ann"))
    return client


@pytest.fixture
def connected(browser, everifin_connect):
    everifin_connect(browser)
    return browser


@either_view
class TestNotConnected:
    @pytest.mark.parametrize("headers", [{}, PAGE, NAVIGATION, {"accept": "*/*"}])
    def test_a_browser_is_sent_to_connect_and_comes_back(self, browser, path, headers):
        response = browser.get(path, {"a": "1&2"}, headers=headers)
        assert response.status_code == 302
        page, _, query = response["Location"].partition("?")
        assert page == CONNECT
        assert parse_qs(query) == {"next": [f"{path}?a=1%262"]}
        assert "no-store" in response["Cache-Control"]

    def test_the_way_back_leads_through_everifin(self, everifin, browser, path):
        """Connect page, button, Everifin, and the page that was asked for shows accounts."""
        page = browser.get(path, follow=True)
        assert f'name="next" value="{path}"' in page.content.decode()
        start = browser.post(CONNECT, {"next": path})
        back = browser.get(everifin.authorize(redirect_target(start)))
        assert back["Location"] == path
        assert browser.get(path).content.decode().startswith("SK")

    @pytest.mark.parametrize("headers", [JSON, FETCH, XHR])
    def test_a_script_gets_403_with_the_url(self, browser, path, headers):
        response = browser.get(path, headers=headers)
        assert response.status_code == 403
        assert response["Content-Type"] == "application/problem+json"
        assert "no-store" in response["Cache-Control"]
        assert response.json() == {
            "type": "urn:everifin-django:not-connected",
            "title": "Everifin is not connected.",
            "status": 403,
            "connect_url": f"http://testserver{CONNECT}",
        }

    @pytest.mark.parametrize("headers", [JSON, FETCH, XHR])
    def test_a_strangers_script_gets_401_with_the_url(self, everifin, client, path, headers):
        response = client.get(path, headers=headers)
        assert response.status_code == 401
        assert response["Content-Type"] == "application/problem+json"
        assert response["WWW-Authenticate"] == "Session"
        assert response.json() == {
            "type": "urn:everifin-django:login-required",
            "title": "Log in first.",
            "status": 401,
            "login_url": "http://testserver/accounts/login/",
        }

    def test_htmx_moves_the_page_that_is_seen(self, browser, path):
        seen = "http://testserver/dashboard/?tab=bank"
        response = browser.get(path, headers={**HTMX, "hx-current-url": seen})
        assert response.status_code == 200
        assert response.content == b""
        assert response["HX-Redirect"] == f"{CONNECT}?next=%2Fdashboard%2F%3Ftab%3Dbank"
        assert "no-store" in response["Cache-Control"]

    @pytest.mark.parametrize(
        ("seen", "expected"),
        [
            ("http://[", CONNECT),
            ("javascript:alert(1)", CONNECT),
            ("https://evil.example/a/", f"{CONNECT}?next=%2Fa%2F"),
        ],
    )
    def test_htmx_never_names_another_site(self, browser, path, seen, expected):
        response = browser.get(path, headers={**HTMX, "hx-current-url": seen})
        assert response["HX-Redirect"] == expected

    def test_a_doubled_slash_from_htmx_ends_at_the_default(self, browser, path, everifin_connect):
        headers = {**HTMX, "hx-current-url": "https://testserver//evil.example/"}
        url = browser.get(path, headers=headers)["HX-Redirect"]
        [back] = parse_qs(urlsplit(url).query)["next"]
        assert everifin_connect(browser, next=back)["Location"] == "/accounts/profile/"

    def test_htmx_without_an_address_is_sent_to_connect(self, browser, path):
        assert browser.get(path, headers=HTMX)["HX-Redirect"] == CONNECT

    def test_a_form_that_was_sent_is_not_returned_to(self, browser, path):
        assert browser.post(path)["Location"] == CONNECT

    def test_a_visitor_is_sent_to_log_in_at_the_sites_own_page(self, everifin, client, path):
        client.logout()
        response = client.get(path)
        assert response["Location"] == f"/accounts/login/?next={path.replace('/', '%2F')}"

    def test_a_visitor_is_sent_to_everifin_where_the_site_says_so(
        self, everifin, client, path, settings
    ):
        settings.EVERIFIN_USE_LOGIN_URL = False
        client.logout()
        response = client.get(path)
        assert response["Location"] == f"{LOGIN}?next={path.replace('/', '%2F')}"
        assert client.get(path, headers=JSON).json()["login_url"] == f"http://testserver{LOGIN}"

    @pytest.mark.parametrize(
        ("login_url", "expected"),
        [
            ("/enter/", "/enter/?next=%2Fa"),
            ("/enter/?lang=sk", "/enter/?lang=sk&next=%2Fa"),
            ("admin:login", "/admin/login/?next=%2Fa"),
        ],
    )
    def test_a_visitor_of_a_site_without_our_login_goes_to_the_sites_own(
        self, everifin, settings, path, login_url, expected
    ):
        settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
        settings.LOGIN_URL = login_url
        response = Client().get(path)
        assert response["Location"] == expected.replace("%2Fa", path.replace("/", "%2F"))

    def test_who_never_connected_is_told_nothing_of_an_end(self, browser, path):
        assert '<div role="status">' not in browser.get(path, follow=True).content.decode()


@either_view
class TestConnectionEnded:
    @pytest.fixture(autouse=True)
    def ended(self, everifin, connected):
        everifin.end_sessions()
        BankToken.objects.update(access_expires_at="2026-01-01T00:00Z")

    def test_the_connect_page_says_so_once(self, connected, path):
        page = connected.get(path, follow=True).content.decode()
        assert "<h2>Your connection to Everifin has ended</h2>" in page
        assert '<div role="status">' not in connected.get(CONNECT).content.decode()
        assert BankToken.objects.get().status == "needs_reconnect"

    def test_a_script_is_told_in_its_way(self, connected, path):
        response = connected.get(path, headers=JSON)
        problem = response.json()
        assert (response.status_code, problem["status"]) == (403, 403)
        assert problem["type"] == "urn:everifin-django:not-connected"
        assert problem["title"] == "Your connection to Everifin has ended"
        assert "everifin_notice" not in connected.session


class TestScopeMissing:
    """The site asks for the scope, and the user did not grant it."""

    @pytest.fixture(autouse=True)
    def requested(self, connected, settings):
        settings.EVERIFIN_SCOPES = "openid ais pis"

    def test_the_connect_page_says_so(self, connected):
        response = connected.get("/payments/", follow=True)
        assert response.redirect_chain == [(f"{CONNECT}?next=%2Fpayments%2F", 302)]
        assert "<h2>A permission is missing</h2>" in response.content.decode()

    @pytest.mark.parametrize("headers", [{}, JSON, HTMX], ids=["page", "script", "htmx"])
    def test_the_security_log_has_the_reason(self, connected, headers, caplog):
        caplog.set_level(logging.INFO, "everifin_django.security")
        connected.get("/payments/", headers=headers)
        [record] = [one for one in caplog.records if one.name == "everifin_django.security"]
        user_pk = BankToken.objects.get().user_id
        assert record.getMessage() == f"User {user_pk} is asked to connect again: scope_missing."

    def test_htmx_brings_the_page_that_says_so(self, connected):
        assert connected.get("/payments/", headers=HTMX)["HX-Redirect"] == CONNECT
        assert "<h2>A permission is missing</h2>" in connected.get(CONNECT).content.decode()

    def test_a_script_gets_403_of_its_own_type(self, connected):
        response = connected.get("/payments/", headers=JSON)
        problem = response.json()
        assert response.status_code == 403
        assert problem["type"] == "urn:everifin-django:scope-missing"
        assert problem["title"] == "A permission is missing"

    def test_connecting_with_the_scope_helps(self, connected, everifin_connect, settings):
        everifin_connect(connected)
        assert connected.get("/payments/").content == b"payments"

    @pytest.mark.parametrize("path", ["/payments/", "/hidden/payments/", "/ahidden/payments/"])
    def test_a_scope_that_the_site_never_asks_for_is_the_developers_mistake(
        self, connected, caplog, settings, path
    ):
        """The user would be sent round the connect page for ever."""
        settings.EVERIFIN_SCOPES = "openid ais"
        response = connected.get(path)
        assert response.status_code == 500
        assert "This page is not set up correctly" in response.content.decode()
        [record] = [one for one in caplog.records if one.name == "everifin_django.web.responses"]
        assert record.levelno == logging.ERROR
        assert "scope pis" in record.getMessage()
        assert "EVERIFIN_SCOPES" in record.getMessage()
        problem = connected.get(path, headers=JSON)
        assert problem.status_code == 500
        assert problem.json()["type"] == "urn:everifin-django:misconfigured"

    def test_a_scope_that_the_api_misses_is_answered_alike(self, everifin, connected):
        body = {"meta": {"status": "ERROR"}, "errors": [{"code": "INVALID_SCOPE", "title": ""}]}
        everifin.faults.add("api", status=403, body=body)
        page = connected.get("/unmarked/", follow=True).content.decode()
        assert "<h2>A permission is missing</h2>" in page


@either_view
class TestOutage:
    @pytest.fixture(autouse=True)
    def down(self, everifin, connected):
        everifin.faults.add("token", status=503, retry_after=17)
        BankToken.objects.update(access_expires_at="2026-01-01T00:00Z")

    def test_a_browser_gets_503_and_the_connection_stays(self, connected, path):
        response = connected.get(path, headers=PAGE)
        assert (response.status_code, response["Retry-After"]) == (503, "17")
        assert "no-store" in response["Cache-Control"]
        page = response.content.decode()
        assert "<h1>Everifin does not answer at the moment</h1>" in page
        assert f'<a href="{path}" class="everifin-button">Try again</a>' in page
        row = BankToken.objects.get()
        assert row.status == "active"
        assert row.refresh_ciphertext

    def test_a_form_that_was_sent_is_not_sent_again_by_a_link(self, connected, path):
        page = connected.post(path, headers=PAGE).content.decode()
        assert "Everifin does not answer" in page
        assert "Try again" not in page

    @pytest.mark.parametrize("headers", [JSON, FETCH, XHR, HTMX])
    def test_a_script_gets_a_problem(self, connected, path, headers):
        response = connected.get(path, headers=headers)
        assert (response.status_code, response["Retry-After"]) == (503, "17")
        assert response["Content-Type"] == "application/problem+json"
        assert response.json() == {
            "type": "urn:everifin-django:unavailable",
            "title": "Everifin does not answer at the moment",
            "status": 503,
        }


class TestOtherFailures:
    @either_view
    def test_a_token_that_cannot_be_read_is_503_and_stays(self, connected, path, settings, caplog):
        settings.EVERIFIN_ENCRYPTION_KEYS = ["other:" + "A" * 43 + "="]
        before = BankToken.objects.values().get()
        response = connected.get(path)
        assert (response.status_code, response["Retry-After"]) == (503, "30")
        assert BankToken.objects.values().get() == before
        assert "EVERIFIN_ENCRYPTION_KEYS" in caplog.text

    @pytest.mark.parametrize("fault", [{"status": 500}, {"lost": "before"}, {"status": 429}])
    @either_view
    def test_an_api_that_is_down_is_503(self, everifin, connected, path, fault):
        everifin.faults.add("api", **fault)
        assert connected.get(path).status_code == 503

    def test_somebody_elses_account_is_404(self, everifin, connected, client):
        bobs = "999999"
        assert connected.get(f"/accounts/{bobs}/").status_code == 404

    def test_what_the_developer_has_to_look_at_is_raised(self, everifin, connected, client):
        everifin.faults.add("api", status=200, body="[]")
        client.raise_request_exception = False
        assert connected.get("/accounts/").status_code == 500

    def test_errors_of_other_kinds_are_not_ours(self, connected):
        connected.raise_request_exception = False
        assert connected.get("/broken/").status_code == 500


class TestPaymentUncertain:
    """Nothing leads to paying again: it may have been made."""

    def test_a_person_is_told_to_look_first(self, rf, caplog):
        response = answer_for(rf.post("/pay/"), PaymentUncertainError("POST /v1 at Everifin"))
        assert response is not None
        page = response.content.decode()
        assert response.status_code == 502
        assert "We do not know whether your payment was made" in page
        assert "Try again" not in page
        assert "Retry-After" not in response.headers
        assert "may have been made" in caplog.text

    def test_a_script_gets_a_problem(self, rf):
        request = rf.post("/pay/", headers={"Accept": "application/json"})
        response = answer_for(request, PaymentUncertainError("POST /v1 at Everifin"))
        assert response is not None
        assert response.status_code == 502
        assert json.loads(response.content)["type"] == "urn:everifin-django:payment-uncertain"

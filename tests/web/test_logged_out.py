"""Where a logout was to lead, it leads after Everifin's logout page as well."""

from __future__ import annotations

import base64
import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from django.test import Client

from everifin_django.models import LoginFlow
from everifin_django.testing.fake import redirect_target
from tests.support.flows import change_flows

LOGIN, LOGOUT = "/everifin/login/", "/everifin/logout/"
CALLBACK, LOGGED_OUT = "/everifin/callback/", "/everifin/logged-out/"
SITE = "https://testserver"
HOME = "/bye/"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def way_back(settings, everifin):
    settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = SITE + LOGGED_OUT
    settings.LOGOUT_REDIRECT_URL = HOME
    everifin.redirect_uris |= {SITE + LOGGED_OUT}


@pytest.fixture
def browser(client, everifin_connect):
    """A browser that is logged in with Everifin."""
    everifin_connect(client, view="login")
    return client


def log_out(browser: Client, next_url: str) -> str:
    """Log out, here and there; return the URL at which Everifin sends the browser back."""
    page = redirect_target(browser.post(LOGOUT, {"next": next_url}))
    answer = requests.get(page, allow_redirects=False, timeout=5)
    return answer.headers["Location"].removeprefix(SITE)


def led_to(browser: Client, url: str) -> str:
    response = browser.get(url)
    assert response.status_code == 302
    assert "no-store" in response["Cache-Control"]
    return response["Location"]


@pytest.mark.parametrize("url", ["/plain/?a=b&c=%C3%A9", "/plain/?a=" + "x" * 7000])
def test_it_leads_on_also_at_a_reload(browser, url):
    back = log_out(browser, url)
    assert back.startswith(f"{LOGGED_OUT}?state=")
    assert "plain" not in back
    assert [led_to(browser, back) for _ in range(2)] == [url, url]
    assert "_auth_user_id" not in browser.session


@pytest.mark.parametrize(
    "url",
    ["", f"{SITE}.example/", "https://elsewhere.example/", "//elsewhere.example/", "/" * 9000],
)
def test_without_a_page_of_this_site_it_leads_home(browser, url):
    assert led_to(browser, log_out(browser, url)) == HOME


@pytest.mark.parametrize("query", ["", "?state=", "?state=unknown", "?state=a%00b&state=c"])
def test_an_unknown_state_leads_home(browser, query):
    log_out(browser, "/plain/")
    assert led_to(browser, LOGGED_OUT + query) == HOME


def test_another_browsers_state_leads_home(browser):
    assert led_to(Client(), log_out(browser, "/plain/")) == HOME


def test_much_later_it_leads_home(browser):
    back = log_out(browser, "/plain/")
    change_flows(started=time.time() - 3 * 3600)
    assert led_to(browser, back) == HOME


def test_without_its_key_it_leads_home(browser, settings):
    back = log_out(browser, "/plain/")
    settings.EVERIFIN_ENCRYPTION_KEYS = ["another:" + base64.b64encode(b"k" * 32).decode()]
    assert led_to(browser, back) == HOME


def test_the_state_of_a_login_leads_home(client):
    start = urlsplit(redirect_target(client.post(LOGIN, {"next": "/plain/"})))
    [state] = parse_qs(start.query)["state"]
    assert led_to(client, f"{LOGGED_OUT}?state={state}") == HOME


def test_the_callback_does_not_take_it_for_a_login(browser):
    state = urlsplit(log_out(browser, "/plain/")).query
    assert browser.get(f"{CALLBACK}?code=a-code&{state}").status_code == 400


def test_where_another_page_is_registered_nothing_is_stored(browser, settings):
    settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = SITE + CALLBACK
    before = LoginFlow.objects.count()
    browser.post(LOGOUT, {"next": "/plain/"})
    assert LoginFlow.objects.count() == before


def test_a_form_cannot_be_sent_to_it(client):
    assert client.post(LOGGED_OUT).status_code == 405

"""Front ends of another origin and mobile apps: where they send people, and get them back."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client

from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target

JSON = {"accept": "application/json"}
LOGIN = "/everifin/login/"
CONNECT = "/everifin/connect/"
DEFAULT = "/accounts/profile/"

pytestmark = pytest.mark.django_db


def begin(client: Client, view: str, next_url: Any = "", *, as_json: bool = True) -> Any:
    if as_json:
        body = json.dumps({"next": next_url})
        return client.post(view, body, content_type="application/json", headers=JSON)
    return client.post(view, {"next": next_url}, headers=JSON)


class TestBegin:
    @pytest.mark.parametrize("as_json", [True, False])
    @pytest.mark.parametrize("view", [LOGIN, CONNECT])
    def test_the_answer_says_where_to_send_the_browser(
        self, everifin, client, admin_client, view, as_json
    ):
        browser = client if view == LOGIN else admin_client
        answer = begin(browser, view, "/accounts/", as_json=as_json)
        assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
        assert "no-store" in answer["Cache-Control"]
        back = everifin.authorize(answer.json()["authorize_url"])
        assert browser.get(back)["Location"] == "/accounts/"
        assert BankToken.objects.get().status == "active"

    def test_nothing_but_the_url_is_in_it(self, client):
        answer = begin(client, LOGIN).json()
        assert list(answer) == ["authorize_url"]
        query = parse_qs(urlsplit(answer["authorize_url"]).query)
        assert "code_challenge" in query
        assert "code_verifier" not in query

    @pytest.mark.parametrize("accept", ["*/*", "text/html", "text/html,application/json;q=0.9", ""])
    def test_all_others_are_redirected_as_before(self, everifin, client, accept):
        answer = client.post(LOGIN, headers={"accept": accept})
        assert redirect_target(answer).startswith(everifin.issuer)

    def test_a_stranger_who_connects_is_told_to_log_in(self, client):
        answer = begin(client, CONNECT)
        assert answer.status_code == 401
        assert answer.json()["type"] == "urn:everifin-django:login-required"

    def test_who_is_logged_in_already_goes_on(self, admin_client):
        assert begin(admin_client, LOGIN, "/x/").json() == {"authorize_url": "/x/"}

    def test_csrf_is_checked(self):
        browser = Client(enforce_csrf_checks=True)
        assert begin(browser, LOGIN).status_code == 403

    @pytest.mark.parametrize(
        "body", ["", "{", "[]", "5", "null", '{"next": 5}', '{"next": "x", "next": "y"}', "\xff"]
    )
    def test_a_body_that_names_nothing_leads_to_the_usual_page(self, everifin, client, body):
        answer = client.post(LOGIN, body, content_type="application/json", headers=JSON)
        back = everifin.authorize(answer.json()["authorize_url"])
        assert client.get(back)["Location"] == DEFAULT


class TestReturn:
    def come_back(self, everifin, client, next_url: str) -> str:
        answer = begin(client, LOGIN, next_url)
        return str(client.get(everifin.authorize(answer.json()["authorize_url"]))["Location"])

    @pytest.fixture(autouse=True)
    def front_ends(self, settings):
        settings.EVERIFIN_RETURN_HOSTS = ["app.shop.example", "localhost:5173"]
        settings.EVERIFIN_RETURN_SCHEMES = ["example.shop.app"]

    @pytest.mark.parametrize(
        "url",
        [
            "https://app.shop.example/accounts?a=1#top",
            "http://localhost:5173/",
            "example.shop.app://done?x=1",
            "example.shop.app:/done",
            "/here/",
        ],
    )
    def test_it_leads_to_a_front_end_that_is_named(self, everifin, client, url):
        assert self.come_back(everifin, client, url) == url

    @pytest.mark.parametrize(
        "url",
        [
            "https://app.shop.example.evil.test/",
            "https://evil.test/",
            "https://app.shop.example:8443/",
            "https://app.shop.example@evil.test/",
            "http://localhost:5174/",
            "//evil.test/",
            "example.shop.app.evil://done",
            "example.shop:/done",
            "Example.Shop.App://done",
            " example.shop.app://done",
            "example.shop.app://do\tne",
            "example.shop.app://ž",
            "javascript:alert(1)",
            "javascript:example.shop.app:/",
            "data:text/html,x",
        ],
    )
    def test_it_leads_nowhere_else(self, everifin, client, url):
        assert self.come_back(everifin, client, url) == DEFAULT

    def test_a_secure_site_leads_to_no_plain_front_end(self, everifin, client):
        answer = client.post(LOGIN, {"next": "http://app.shop.example/"}, headers=JSON, secure=True)
        back = everifin.authorize(answer.json()["authorize_url"])
        assert client.get(back, secure=True)["Location"] == DEFAULT

    def test_a_front_end_that_is_named_no_longer_is_not_led_to(self, everifin, client, settings):
        answer = begin(client, LOGIN, "https://app.shop.example/")
        back = everifin.authorize(answer.json()["authorize_url"])
        settings.EVERIFIN_RETURN_HOSTS = []
        assert client.get(back)["Location"] == DEFAULT

    def test_so_do_disconnect_and_logout(self, everifin_connect, client):
        everifin_connect(client, view="login")
        for view in ("disconnect", "logout"):
            for url in ("https://app.shop.example/", "example.shop.app://out"):
                answer = client.post(f"/everifin/{view}/", {"next": url})
                assert answer["Location"] == url

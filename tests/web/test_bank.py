"""The page for who has no bank at Everifin yet, and the messages after what was done."""

import pytest
from django.contrib.messages import get_messages
from django.test import Client

BANK = "/everifin/bank/"

pytestmark = pytest.mark.django_db


class TestBank:
    def test_it_leads_to_everifins_app_and_back(self, admin_client):
        page = admin_client.get(BANK, {"next": "/accounts/?a=1&b=2"}).content.decode()
        assert '<a class="everifin-button" href="https://idp.everifin.test"' in page
        assert '<a href="/accounts/?a=1&amp;b=2">' in page
        assert page.count("<li>") == 4

    @pytest.mark.parametrize("next_url", ["https://evil.test/", "javascript:alert(1)", "", "//e.t"])
    def test_it_leads_nowhere_else(self, admin_client, next_url):
        page = admin_client.get(BANK, {"next": next_url}).content.decode()
        assert '<a href="/accounts/profile/">' in page

    def test_a_stranger_logs_in_first(self, client):
        assert client.get(BANK)["Location"].endswith("?next=/everifin/bank/")

    def test_who_has_none_yet_is_no_error(self, client, everifin_connect, admin_client):
        assert everifin_connect(admin_client, "nina").status_code == 302
        request = admin_client.get("/plain/").wsgi_request
        assert list(request.everifin.accounts()) == []
        assert request.everifin.is_connected()


class TestMessages:
    def said(self, response) -> list[str]:
        return [str(message) for message in get_messages(response.wsgi_request)]

    def test_each_step_is_said_once(self, everifin_connect, client):
        assert self.said(everifin_connect(client, view="login")) == [
            "You are logged in with Everifin."
        ]
        assert "Everifin is connected." in self.said(everifin_connect(client))
        assert "Everifin is disconnected." in self.said(client.post("/everifin/disconnect/"))
        assert "You are logged out." in self.said(client.post("/everifin/logout/"))

    def test_what_was_refused_says_nothing(self, client):
        assert self.said(client.get("/everifin/callback/?code=x&state=y")) == []
        assert self.said(client.post("/everifin/disconnect/")) == []

    def test_a_site_without_messages_has_none(self, settings, everifin_connect):
        settings.MIDDLEWARE = [one for one in settings.MIDDLEWARE if "messages" not in one]
        client = Client()
        assert everifin_connect(client, view="login").status_code == 302
        assert client.post("/everifin/logout/").status_code == 302

"""Buttons and the state of the connection, on a site's own pages."""

import re

import pytest
from django.template import Context, Template, TemplateSyntaxError
from django.test import Client

from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target

pytestmark = pytest.mark.django_db


def test_buttons_post_to_their_doors(client):
    page = client.get("/buttons/").content.decode()
    forms = re.findall(r'<form method="post" action="([^"]+)"', page)
    assert forms == [f"/everifin/{name}/" for name in ("login", "connect", "logout", "disconnect")]
    labels = re.findall(r'<button type="submit"[^>]*>([^<]+)</button>', page)
    assert labels == [
        "Log in with Everifin",
        "&lt;Connect&gt;",
        "Log out",
        "Disconnect Everifin",
    ]
    assert 'name="next" value="/accounts/?a=1&amp;b=2"' in page
    assert page.count('name="next"') == 1


def test_a_button_works_as_it_stands(everifin):
    client = Client(enforce_csrf_checks=True)
    page = client.get("/buttons/").content.decode()
    [token, *_] = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    response = client.post("/everifin/login/", {"csrfmiddlewaretoken": token})
    assert redirect_target(response).startswith(everifin.issuer)


def test_a_button_can_be_shown_without_a_request(django_assert_num_queries):
    template = Template('{% load everifin %}{% everifin_button "connect" %}')
    with django_assert_num_queries(0):
        assert "csrfmiddlewaretoken" not in template.render(Context())


def test_a_button_for_something_else_is_a_mistake_in_the_template():
    template = Template('{% load everifin %}{% everifin_button "pay" %}')
    with pytest.raises(TemplateSyntaxError, match="login, connect, logout, disconnect, not 'pay'"):
        template.render(Context())


def test_words_are_looked_up_when_they_are_shown(monkeypatch, client):
    """Lazily, in the language of the visitor and not of the process that started."""
    monkeypatch.setattr("django.utils.translation._trans.gettext", str.upper)
    assert "DISCONNECT EVERIFIN" in client.get("/buttons/").content.decode()
    assert "<h1>LOG IN WITH EVERIFIN</h1>" in client.get("/everifin/login/").content.decode()
    page = client.get("/everifin/callback/").content.decode()
    assert "<h1>THIS LINK CANNOT BE USED</h1>" in page


class TestHealth:
    def shown(self, client) -> str:
        page = client.get("/buttons/").content.decode()
        [health] = re.findall(r'<p id="health">([^<]+)</p>', page)
        return str(health)

    def test_a_visitor_has_none_and_costs_no_query(self, client, django_assert_num_queries):
        with django_assert_num_queries(0):
            assert self.shown(client) == "disconnected: not connected"

    def test_it_follows_the_connection(self, everifin_connect, admin_client):
        assert self.shown(admin_client) == "disconnected: not connected"
        everifin_connect(admin_client)
        assert self.shown(admin_client) == "active: connected"
        BankToken.objects.update(failures=1)
        assert self.shown(admin_client).startswith("degraded: ")
        BankToken.objects.update(status="needs_reconnect")
        assert self.shown(admin_client) == "needs_reconnect: to be connected again"
        admin_client.post("/everifin/disconnect/")
        assert self.shown(admin_client) == "disconnected: not connected"

    def test_it_costs_one_query(self, everifin_connect, admin_client, django_assert_num_queries):
        everifin_connect(admin_client)
        with django_assert_num_queries(3):  # session, user, connection
            self.shown(admin_client)

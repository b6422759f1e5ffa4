"""Buttons and the state of the connection, on a site's own pages."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser
from django.template import Context, RequestContext, Template, TemplateSyntaxError
from django.test import Client
from django.utils import timezone

from everifin_django.connections import everifin_for
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
    with pytest.raises(TemplateSyntaxError, match="logout, disconnect, bank, not 'pay'"):
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
        with django_assert_num_queries(4):  # session, user, connection; and for the button
            self.shown(admin_client)


def render(text: str, request) -> str:
    return Template("{% load everifin %}" + text).render(RequestContext(request)).strip()


@pytest.fixture
def request_of(rf):
    """Give a function that makes a request as EverifinMiddleware hands it on."""

    def request_of(user):
        request = rf.get("/mine/?page=2")
        request.user = user
        request.everifin = everifin_for(user)
        return request

    return request_of


class TestConnection:
    TEXT = (
        "{% everifin_connection as c %}{{ c.health.value }}|{{ c.reason }}|{{ c.is_connected }}|"
        "{{ c.can_be_ended }}|{{ c.ends_at|yesno:'ends,,' }}|{{ c.next_try_at|yesno:'next,,' }}"
    )

    @pytest.mark.parametrize(
        ("columns", "shown"),
        [
            ({}, "active||True|True|ends|"),
            ({"refresh_expires_at": None}, "active||True|True||"),
            (
                {"failures": 2, "retry_after": timezone.now() + timedelta(minutes=1)},
                (
                    "degraded|Everifin does not answer at the moment. Your connection is kept.|"
                    "True|True|ends|next"
                ),
            ),
            (
                {"status": "needs_reconnect", "last_error": "answer_lost"},
                (
                    "needs_reconnect|An answer of Everifin got lost, and it is given only once.|"
                    "False|True|ends|"
                ),
            ),
            (
                {"status": "needs_reconnect", "last_error": "<unknown>"},
                (
                    "needs_reconnect|Everifin asks for this from time to time, for your safety.|"
                    "False|True|ends|"
                ),
            ),
            (
                {"status": "disconnected", "end_reason": "admin"},
                "disconnected|The people who run this site ended it.|False|False||",
            ),
            ({"status": "disconnected", "end_reason": "?"}, "disconnected||False|False||"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_it_says_how_the_connection_is(self, connected, request_of, columns, shown):
        BankToken.objects.update(**columns)
        assert render(self.TEXT, request_of(connected.user)) == shown

    def test_a_visitor_has_none_and_costs_no_query(self, request_of, django_assert_num_queries):
        with django_assert_num_queries(0):
            shown = render(self.TEXT, request_of(AnonymousUser()))
        assert shown == "disconnected||False|False||"

    def test_who_never_connected_has_none_for_one_query(
        self, request_of, admin_user, django_assert_num_queries
    ):
        with django_assert_num_queries(1):
            assert render(self.TEXT, request_of(admin_user)) == "disconnected||False|False||"


class TestBanner:
    TEXT = "{% everifin_banner %}"

    def test_it_says_what_to_do_and_clears_itself(self, connected, request_of):
        request = request_of(connected.user)
        assert not render(self.TEXT, request)
        BankToken.objects.update(status="needs_reconnect")
        shown = render(self.TEXT, request)
        assert "Connect Everifin again" in shown
        assert 'name="next" value="/mine/?page=2"' in shown
        BankToken.objects.update(status="active", failures=1)
        assert "does not answer" in render(self.TEXT, request)
        BankToken.objects.update(failures=0)
        assert not render(self.TEXT, request)

    @pytest.mark.parametrize("reason", ["disconnected", "admin", "logout"])
    def test_it_does_not_nag_who_has_disconnected(self, connected, request_of, reason):
        BankToken.objects.update(status="disconnected", end_reason=reason)
        assert not render(self.TEXT, request_of(connected.user))

    def test_a_visitor_sees_none(self, request_of, django_assert_num_queries):
        with django_assert_num_queries(0):
            assert not render(self.TEXT, request_of(AnonymousUser()))

    def test_it_comes_back_where_the_page_says(self, connected, request_of):
        BankToken.objects.update(status="needs_reconnect")
        shown = render('{% everifin_banner next="/x/" %}', request_of(connected.user))
        assert 'name="next" value="/x/"' in shown


class TestBank:
    def test_the_button_leads_to_everifins_app(self, request_of, settings, admin_user):
        request = request_of(admin_user)
        assert 'href="https://idp.everifin.test"' in render('{% everifin_button "bank" %}', request)
        settings.EVERIFIN_WEB_APP_URL = "https://app.test/sk/?a=1&b=2"
        shown = render('{% everifin_button "bank" label="Add" %}', request)
        assert 'href="https://app.test/sk/?a=1&amp;b=2"' in shown
        assert ">Add</a>" in shown


def test_who_has_nothing_to_disconnect_sees_no_button(connected, request_of):
    text, request = '{% everifin_button "disconnect" %}', request_of(connected.user)
    assert "/everifin/disconnect/" in render(text, request)
    BankToken.objects.update(status="needs_reconnect")
    assert "/everifin/disconnect/" in render(text, request)
    BankToken.objects.update(status="disconnected")
    assert not render(text, request)

"""An answer of Everifin that comes second, late, or to a session that has moved on."""

import pytest
from django.test import Client

from everifin_django.testing.fake import redirect_target

LOGIN, CONNECT, CALLBACK = "/everifin/login/", "/everifin/connect/", "/everifin/callback/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def begin(everifin):
    """Give a function that begins a flow and returns the URL that Everifin sends back to."""

    def go(client, view=LOGIN, **data):
        return everifin.authorize(redirect_target(client.post(view, data)))

    return go


@pytest.fixture
def browser(client, django_user_model):
    client.force_login(django_user_model.objects.create_user("ann"))
    return client


class TestLoginInTwoTabs:
    def test_the_second_is_led_to_its_own_page(self, everifin, client, begin):
        first, second = begin(client, next="/plain/"), begin(client, next="/accounts/")
        assert client.get(first)["Location"] == "/plain/"
        user_pk = client.session["_auth_user_id"]
        assert client.get(second)["Location"] == "/accounts/"
        assert client.session["_auth_user_id"] == user_pk
        assert everifin.calls["token"] == 1

    def test_the_cookie_of_the_first_survives_the_second(self, client, begin):
        """Both were sent with the cookie from before; the second comes back last."""
        first, second = begin(client), begin(client)
        other_tab = Client()
        other_tab.cookies["sessionid"] = client.cookies["sessionid"].value
        client.get(first)
        response = other_tab.get(second)
        assert response.status_code == 400
        assert "sessionid" not in response.cookies


class TestReload:
    @pytest.mark.parametrize("path", ["/plain/", "/plain/?a=" + "x" * 1900])
    def test_a_login_leads_where_it_led(self, everifin, client, begin, path):
        back = begin(client, next=path)
        assert [client.get(back)["Location"] for _ in range(3)] == [path] * 3
        assert everifin.calls["token"] == 1

    def test_a_connection_does_too(self, everifin, browser, begin):
        back = begin(browser, CONNECT, next="/plain/")
        assert [browser.get(back)["Location"] for _ in range(2)] == ["/plain/"] * 2
        assert everifin.calls["token"] == 1

    def test_another_user_is_not_led_there(self, browser, begin, django_user_model):
        back = begin(browser, CONNECT, next="/plain/")
        browser.get(back)
        left = browser.session["everifin_finished_flows"]
        browser.force_login(django_user_model.objects.create_user("eve"))
        session = browser.session
        session["everifin_finished_flows"] = left
        session.save()
        assert browser.get(back).status_code == 400

    def test_no_secret_of_it_is_left(self, client, begin):
        back = begin(client)
        [flow] = client.session["everifin_flows"].values()
        client.get(back)
        left = repr(dict(client.session))
        assert flow["nonce"] not in left
        assert flow["code_verifier"] not in left
        assert len(client.session["everifin_finished_flows"]) == 1

    def test_what_is_remembered_is_bounded(self, browser, begin):
        for _ in range(12):
            browser.get(begin(browser, CONNECT))
        assert len(browser.session["everifin_finished_flows"]) == 10


class TestErrors:
    @pytest.mark.parametrize(
        "query",
        [
            "error=temporarily_unavailable&error_description=authentication_expired",
            "error=login_required",
            "error=interaction_required",
        ],
    )
    def test_begin_again_is_no_outage(self, client, query):
        client.post(LOGIN, {"next": "/plain/"})
        [state] = client.session["everifin_flows"]
        response = client.get(f"{CALLBACK}?state={state}&{query}", follow=True)
        page = response.content.decode()
        assert "<h2>That took too long</h2>" in page
        assert 'name="next" value="/plain/"' in page

    def test_an_outage_is_one(self, client):
        client.post(LOGIN)
        [state] = client.session["everifin_flows"]
        query = "error=temporarily_unavailable"
        page = client.get(f"{CALLBACK}?state={state}&{query}", follow=True).content.decode()
        assert "<h2>Everifin does not answer at the moment</h2>" in page

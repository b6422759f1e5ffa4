"""An answer of Everifin that comes second, late, or to a session that has moved on."""

from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client

from everifin_django.testing.fake import redirect_target
from tests.support.flows import flows

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


def state_of(client, **data):
    url = redirect_target(client.post(LOGIN, data))
    [state] = parse_qs(urlsplit(url).query)["state"]
    return state


class TestLoginInTwoTabs:
    def test_the_second_is_led_to_its_own_page(self, everifin, client, begin):
        first, second = begin(client, next="/plain/"), begin(client, next="/accounts/")
        assert client.get(first)["Location"] == "/plain/"
        user_pk = client.session["_auth_user_id"]
        assert client.get(second)["Location"] == "/accounts/"
        assert client.session["_auth_user_id"] == user_pk
        assert everifin.calls["token"] == 1

    def test_both_come_back_at_once(self, client, begin, django_user_model):
        """Both were sent with the cookies from before; the second comes back last."""
        session = client.session
        session["cart"] = 1
        session.save()
        client.cookies["sessionid"] = session.session_key
        first, second = begin(client, next="/plain/"), begin(client, next="/accounts/")
        other_tab = Client()
        other_tab.cookies = client.cookies.copy()
        assert client.get(first)["Location"] == "/plain/"
        assert other_tab.get(second)["Location"] == "/accounts/"
        user = django_user_model.objects.get()
        assert other_tab.session["_auth_user_id"] == str(user.pk)
        assert client.get("/everifin/connect/").status_code == 200

    @pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
    def test_an_error_in_one_logs_nobody_out_of_the_other(self, client, begin, order):
        first, second = begin(client), begin(client)
        error = second.replace("code=", "error=access_denied&x=")
        other_tab = Client()
        other_tab.cookies = client.cookies.copy()
        for browser, url in [(client, first), (other_tab, error)][order]:
            assert browser.get(url).status_code == 302
        assert "sessionid" not in other_tab.cookies
        assert client.get("/everifin/connect/").status_code == 200

    def test_two_starts_at_once_in_one_session_both_work(self, browser, begin):
        """Each request has read the session before the other one is answered."""
        other_tab = Client()
        other_tab.cookies = browser.cookies.copy()
        first, second = begin(browser, CONNECT), begin(other_tab, CONNECT)
        # The browser has the cookies of both responses.
        for name, cookie in other_tab.cookies.items():
            browser.cookies[name] = cookie.value
        assert [browser.get(url).status_code for url in (first, second)] == [302, 302]


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

    def test_a_prefetch_is_an_answer_like_any_other(self, everifin, client, begin):
        back = begin(client, next="/plain/")
        headers = {"sec-purpose": "prefetch;prerender", "purpose": "prefetch"}
        responses = [client.get(back, headers=headers), client.get(back)]
        assert [response["Location"] for response in responses] == ["/plain/"] * 2
        assert everifin.calls["token"] == 1

    def test_no_secret_of_it_is_left(self, client, begin):
        back = begin(client)
        [flow] = flows()
        client.get(back)
        left = repr(flows()) + repr(dict(client.session)) + repr(client.cookies)
        assert flow["nonce"] not in left
        assert flow["code_verifier"] not in left


class TestErrors:
    @pytest.mark.parametrize(
        "query",
        [
            "error=temporarily_unavailable&error_description=authentication_expired",
            "error=login_required",
            "error=interaction_required",
            "error=consent_required",
            "error=account_selection_required",
        ],
    )
    def test_begin_again_is_no_outage(self, client, query):
        state = state_of(client, next="/plain/")
        response = client.get(f"{CALLBACK}?state={state}&{query}", follow=True)
        page = response.content.decode()
        assert "<h2>Everifin asks you to start again</h2>" in page
        assert 'name="next" value="/plain/"' in page

    def test_an_outage_is_one(self, client):
        state = state_of(client)
        query = "error=temporarily_unavailable"
        page = client.get(f"{CALLBACK}?state={state}&{query}", follow=True).content.decode()
        assert "<h2>Everifin does not answer at the moment</h2>" in page

    @pytest.mark.parametrize("notice", ["taken", "misconfigured", "<script>", "nothing"])
    def test_a_link_cannot_make_the_start_page_say_anything_else(self, client, notice):
        page = client.get(LOGIN, {"notice": notice}).content.decode()
        assert "<h2>" not in page
        assert notice not in page


class TestSecretKey:
    """SECRET_KEY is rotated while the user is at Everifin."""

    @pytest.mark.parametrize("fallbacks", [[], ["old"]], ids=["at once", "with a fallback"])
    def test_a_login_goes_through(self, everifin, client, begin, settings, fallbacks):
        settings.SECRET_KEY = "old"
        back = begin(client, next="/plain/")
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", fallbacks
        assert client.get(back)["Location"] == "/plain/"
        assert client.get("/everifin/connect/").status_code == 200

    def test_a_user_who_connects_stays_logged_in(self, client, begin, settings, django_user_model):
        settings.SECRET_KEY = "old"
        client.force_login(django_user_model.objects.create_user("ann"))
        back = begin(client, CONNECT, next="/plain/")
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", ["old"]
        assert client.get(back)["Location"] == "/plain/"
        settings.SECRET_KEY_FALLBACKS = []
        assert client.get("/everifin/connect/").status_code == 200

    def test_without_a_fallback_the_user_is_told_and_led_back(
        self, everifin, client, begin, settings, django_user_model
    ):
        settings.SECRET_KEY = "old"
        client.force_login(django_user_model.objects.create_user("ann"))
        back = begin(client, CONNECT, next="/plain/")
        settings.SECRET_KEY = "new"
        page = client.get(back).content.decode()
        assert "<h1>You were logged out in the meantime</h1>" in page
        assert "/accounts/login/?next=/everifin/connect/%3Fnext%3D%252Fplain%252F" in page
        assert everifin.calls["token"] == 0


@pytest.mark.parametrize(
    "rules", [{"SESSION_SAVE_EVERY_REQUEST": True}, {"CSRF_USE_SESSIONS": True}], ids=str
)
def test_a_refusal_leaves_the_session_cookie_alone_whatever_the_site_does(
    browser, begin, settings, rules
):
    for name, value in rules.items():
        setattr(settings, name, value)
    back = begin(browser, CONNECT)
    stranger = Client()
    stranger.cookies["sessionid"] = "a-session-that-is-gone"
    for client in (browser, stranger):
        for url in (f"{CALLBACK}?state=unknown", CALLBACK, back.replace("code=", "error=x&y=")):
            assert "sessionid" not in client.get(url).cookies

"""What a site adds to the request to Everifin, and what the ID token has to prove of it."""

import time
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured

from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target

LOGIN, CONNECT = "/everifin/login/", "/everifin/connect/"
ANEW = "Please sign in at Everifin again"
BETTER = "This site needs a stronger sign-in"

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser(client, django_user_model):
    client.force_login(django_user_model.objects.create_user("ann", "ann@site.example"))
    return client


@pytest.fixture
def claim(everifin):
    """Give a function that changes the claims of ID tokens; None leaves a claim out."""

    def change(**changes):
        def hook(headers, claims):
            changed = {**claims, **changes}
            return headers, {name: one for name, one in changed.items() if one is not None}

        everifin.id_token_hook = hook

    return change


def sent_by(response) -> dict[str, str]:
    query = parse_qs(urlsplit(redirect_target(response)).query)
    return {name: value for name, [value] in query.items()}


def login_hint(request):
    return {"login_hint": request.user.email or "čaj@site.example", "max_age": 60}


def wrong(request):
    return WRONG[request.POST["case"]]


WRONG = {
    "not a dict": None,
    "a parameter of ours": {"state": "canary"},
    "of ours in capitals": {"Redirect_URI": "https://canary.example"},
    "no string": {"login_hint": ["canary"]},
    "prompt none": {"prompt": "none"},
    "max_age": {"max_age": "canary"},
}


class TestRequest:
    def test_each_kind_has_parameters_of_its_own(self, client, browser, settings):
        settings.EVERIFIN_LOGIN_PARAMS = {"kc_idp_hint": "bank", "ui_locales": "sk en"}
        settings.EVERIFIN_CONNECT_PARAMS = {"prompt": "login consent", "max_age": 0}
        sent = sent_by(browser.post(CONNECT))
        assert (sent["prompt"], sent["max_age"]) == ("login consent", "0")
        assert "kc_idp_hint" not in sent
        client.logout()
        sent = sent_by(client.post(LOGIN))
        assert (sent["kc_idp_hint"], sent["ui_locales"]) == ("bank", "sk en")
        assert "prompt" not in sent

    def test_a_function_of_the_site_sees_the_request(self, client, browser, settings):
        settings.EVERIFIN_CONNECT_PARAMS = "tests.web.test_login_params.login_hint"
        sent = sent_by(browser.post(CONNECT))
        assert (sent["login_hint"], sent["max_age"]) == ("ann@site.example", "60")

    @pytest.mark.parametrize("case", WRONG)
    def test_a_function_that_returns_something_else_stops_the_start(self, browser, settings, case):
        settings.EVERIFIN_CONNECT_PARAMS = "tests.web.test_login_params.wrong"
        with pytest.raises(ImproperlyConfigured, match="EVERIFIN_CONNECT_PARAMS") as raised:
            browser.post(CONNECT, {"case": case})
        assert "canary" not in str(raised.value)

    @pytest.mark.parametrize("params", [{"state": "x"}, {"NONCE": "x"}, {"prompt": "login none"}])
    def test_what_the_login_depends_on_stops_the_start(self, browser, settings, params):
        settings.EVERIFIN_CONNECT_PARAMS = params
        with pytest.raises(ImproperlyConfigured, match="EVERIFIN_CONNECT_PARAMS must not have"):
            browser.post(CONNECT)


PARAMS_AND_CLAIMS = [
    ({"max_age": 300}, {"auth_time": -200}, None),
    ({"max_age": 300}, {"auth_time": -340}, None),
    ({"max_age": 300}, {"auth_time": -400}, ANEW),
    ({"max_age": "300"}, {"auth_time": None}, ANEW),
    ({"max_age": 300}, {"auth_time": 0}, None),
    ({"max_age": 300}, {"auth_time": 300}, ANEW),
    ({"max_age": 0}, {"auth_time": -30}, None),
    ({"max_age": 0}, {"auth_time": -90}, ANEW),
    ({"prompt": "login"}, {"auth_time": -90}, ANEW),
    ({"prompt": "consent login", "max_age": 300}, {"auth_time": -90}, ANEW),
    ({"prompt": "login"}, {"auth_time": 0}, None),
    ({"prompt": "login"}, {"auth_time": None}, None),
    ({"prompt": "consent"}, {"auth_time": -9000}, None),
    ({}, {"auth_time": -9000, "acr": None}, None),
    ({"acr_values": "2 3"}, {"acr": "3"}, None),
    ({"acr_values": "2 3"}, {"acr": "1"}, BETTER),
    ({"acr_values": "2 3"}, {"acr": "2 3"}, BETTER),
    ({"acr_values": "2 3"}, {"acr": None}, BETTER),
    ({"acr_values": "2 3"}, {"acr": 2}, BETTER),
    ({"acr_values": "2 3"}, {"acr": ["2"]}, BETTER),
]


class TestProof:
    @pytest.mark.parametrize("case", PARAMS_AND_CLAIMS, ids=repr)
    def test_the_id_token_has_to_prove_it(self, everifin, browser, settings, claim, case):
        settings.EVERIFIN_CONNECT_PARAMS, claims, title = case
        if claims.get("auth_time") is not None:
            claims = {**claims, "auth_time": int(time.time()) + claims["auth_time"]}
        claim(**claims)
        back = everifin.authorize(redirect_target(browser.post(CONNECT, {"next": "/plain/"})))
        response = browser.get(back)
        if title is None:
            assert response["Location"] == "/plain/"
        else:
            self.assert_is_refused(everifin, response, CONNECT, title)

    @pytest.mark.parametrize(
        ("params", "title"), [({"max_age": 0}, ANEW), ({"acr_values": "2"}, BETTER)]
    )
    def test_at_a_login_as_well(self, everifin, client, settings, claim, params, title):
        settings.EVERIFIN_LOGIN_PARAMS = params
        claim(auth_time=int(time.time()) - 90)
        back = everifin.authorize(redirect_target(client.post(LOGIN, {"next": "/plain/"})))
        self.assert_is_refused(everifin, client.get(back), LOGIN, title)
        assert "_auth_user_id" not in client.session

    def assert_is_refused(self, everifin, response, start, title):
        page = response.content.decode()
        assert response.status_code == 403
        assert f"<h1>{title}</h1>" in page
        assert f'href="{start}?next=%2Fplain%2F"' in page
        assert not BankToken.objects.exists()
        assert everifin.live_sessions("alice") == 0

    @pytest.mark.parametrize("params", [{"max_age": 300}, {"acr_values": "2"}])
    def test_without_an_id_token_nothing_proves_it(
        self, everifin, everifin_connect, browser, settings, params, caplog
    ):
        everifin.issue_id_tokens = False
        settings.EVERIFIN_CONNECT_PARAMS = params
        response = everifin_connect(browser)
        assert response.status_code == 400
        assert "<h1>Everifin could not finish this</h1>" in response.content.decode()
        assert "EVERIFIN_SCOPES" in caplog.text
        assert everifin.live_sessions("alice") == 0
        settings.EVERIFIN_CONNECT_PARAMS = {"prompt": "login"}
        assert everifin_connect(browser).status_code == 302

    def test_what_was_asked_counts_not_what_the_settings_say_by_now(
        self, everifin, browser, settings, claim
    ):
        settings.EVERIFIN_CONNECT_PARAMS = {"acr_values": "2"}
        back = everifin.authorize(redirect_target(browser.post(CONNECT)))
        settings.EVERIFIN_CONNECT_PARAMS = {}
        assert browser.get(back).status_code == 403

    def test_everifin_may_say_itself_that_it_cannot_be_met(self, client):
        state = sent_by(client.post(LOGIN))["state"]
        error = {"state": state, "error": "unmet_authentication_requirements"}
        page = client.get("/everifin/callback/", error, follow=True).content.decode()
        assert f"<h2>{BETTER}</h2>" in page

"""The views: begin, come back, log out, disconnect."""

import base64
import hashlib
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from threading import Barrier
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from asgiref.sync import async_to_sync
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections
from django.test import AsyncClient, Client
from django.test.utils import override_script_prefix
from django.utils import translation

from everifin_django.models import BankToken, PendingRevocation, SpentState
from everifin_django.secret import Secret
from everifin_django.testing.fake import redirect_target
from everifin_django.web import login_flow
from tests.support.flows import flows
from tests.support.grants import refresh_again

LOGIN = "/everifin/login/"
CONNECT = "/everifin/connect/"
CALLBACK = "/everifin/callback/"
LOGOUT = "/everifin/logout/"
DISCONNECT = "/everifin/disconnect/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def user(django_user_model):
    return django_user_model.objects.create_user("ann", "ann@site.example", "a password")


@pytest.fixture
def browser(client, user):
    """A browser in which Ann is logged in, by password."""
    client.force_login(user)
    return client


@pytest.fixture
def to_everifin(everifin) -> Callable[..., str]:
    """Give a function that begins a flow, and returns the address Everifin sends back to."""

    def go(client: Client, auth_view: str = CONNECT, username: str = "alice", **options) -> str:
        url: str = everifin.authorize(redirect_target(client.post(auth_view)), username, **options)
        return url

    return go


def query(url: str) -> dict[str, str]:
    return {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}


def user_of(client: Client | AsyncClient) -> str | None:
    user_pk: str | None = client.session.get("_auth_user_id")
    return user_pk


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, response) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: dict[str, str] = {}
        self.links: dict[str, str | None] = {}
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.content = response.content.decode()
        self.feed(self.content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes[tag] = dict(attrs)

    def handle_data(self, data):
        self.text.setdefault(self.tags[-1] if self.tags else "", data.strip())
        if self.lasttag == "a" and data.strip():
            self.links[data.strip()] = self.attributes["a"]["href"]

    def assert_is_in_order(self) -> None:
        """Language, title, one heading, a main part; no script, nothing from elsewhere."""
        assert self.content.startswith("<!doctype html>")
        assert self.attributes["html"]["lang"]
        assert self.text["title"]
        assert self.text["h1"]
        assert (self.tags.count("h1"), self.tags.count("main")) == (1, 1)
        assert not {"script", "style", "iframe", "img"} & {*self.tags}
        assert self.tags.count("link") == 1
        assert str(self.attributes["link"]["href"]).startswith("/static/")
        assert "onclick" not in self.content


class TestStartPage:
    @pytest.mark.parametrize("method", ["get", "head"])
    def test_a_visitor_who_only_looks_gets_no_session(self, client, method):
        assert getattr(client, method)(LOGIN, {"next": "/accounts/"}).status_code == 200
        assert not Session.objects.exists()
        assert "sessionid" not in client.cookies

    @pytest.mark.parametrize("auth_view", [LOGIN, CONNECT])
    def test_it_shows_one_button(self, client, user, auth_view):
        if auth_view == CONNECT:
            client.force_login(user)
        page = Page(client.get(auth_view, {"next": "/accounts/?a=1&b=2"}))
        page.assert_is_in_order()
        assert (page.tags.count("form"), page.tags.count("button")) == (1, 1)
        assert (
            page.attributes["form"] | {"method": "post", "action": auth_view}
            == (page.attributes["form"])
        )
        assert 'name="next" value="/accounts/?a=1&amp;b=2"' in page.content
        assert "Everifin" in page.text["button"]

    def test_the_form_starts_with_its_csrf_token_only(self, everifin):
        client = Client(enforce_csrf_checks=True)
        assert client.post(LOGIN).status_code == 403
        page = client.get(LOGIN).content.decode()
        [token] = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        response = client.post(LOGIN, {"csrfmiddlewaretoken": token, "next": "/accounts/"})
        assert redirect_target(response).startswith(everifin.issuer)
        # As a cross-site form would send it.
        assert client.post(LOGIN, {"next": "/"}).status_code == 403

    def test_csrf_is_checked_without_djangos_middleware_too(self, settings, user):
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
        client = Client(enforce_csrf_checks=True)
        assert client.post(LOGIN).status_code == 403
        client.force_login(user)
        for auth_view in (CONNECT, LOGOUT, DISCONNECT):
            assert client.post(auth_view).status_code == 403
        assert user_of(client) is not None

    def test_what_is_sent_to_everifin(self, client, settings):
        settings.EVERIFIN_SCOPES = "openid ais pis"
        url = redirect_target(client.post(LOGIN))
        sent = query(url)
        assert url.partition("?")[0] == (
            "https://idp.everifin.test/auth/realms/everifin_app/protocol/openid-connect/auth"
        )
        [flow] = flows()
        digest = hashlib.sha256(flow["code_verifier"].encode()).digest()
        assert sent == {
            "response_type": "code",
            "scope": "openid ais pis",
            "client_id": "everifin-sandbox",
            "redirect_uri": "http://testserver/everifin/callback/",
            "state": sent["state"],
            "nonce": flow["nonce"],
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }

    def test_pkce_can_be_turned_off(self, everifin, everifin_connect, browser, settings):
        settings.EVERIFIN_USE_PKCE = False
        assert "code_challenge" not in query(redirect_target(browser.post(CONNECT)))
        assert everifin_connect(browser).status_code == 302
        assert "code_verifier" not in everifin.last_request["token"].form

    def test_pkce_is_proven_to_everifin(self, everifin, everifin_connect, browser):
        everifin.require_pkce = True
        assert everifin_connect(browser).status_code == 302
        assert everifin.last_request["token"].form["code_verifier"]

    def test_another_logins_settings_change_nothing(self, client, settings):
        expected = {*query(redirect_target(client.post(LOGIN)))}
        settings.OIDC_RP_CLIENT_ID = "theirs"
        settings.OIDC_OP_AUTHORIZATION_ENDPOINT = "https://theirs.example/auth"
        settings.OIDC_USE_NONCE = False
        settings.OIDC_MAX_STATES = 0
        settings.OIDC_AUTH_REQUEST_EXTRA_PARAMS = {"redirect_uri": "https://theirs.example/"}
        sent = query(redirect_target(client.post(LOGIN)))
        assert {*sent} == expected
        assert sent["client_id"] == "everifin-sandbox"
        assert sent["redirect_uri"] == "http://testserver/everifin/callback/"

    def test_to_connect_one_logs_in_here_first(self, client):
        for response in (client.get(f"{CONNECT}?next=/a/"), client.post(f"{CONNECT}?next=/a/")):
            assert response["Location"] == ("/accounts/login/?next=/everifin/connect/%3Fnext%3D/a/")
        assert not Session.objects.exists()

    def test_who_is_logged_in_does_not_log_in_again(self, browser):
        assert browser.get(LOGIN, {"next": "/a/"})["Location"] == "/a/"
        assert redirect_target(browser.post(LOGIN, {"next": "/a/"})) == "/a/"
        assert browser.get(LOGIN, {"next": "//evil.example"})["Location"] == "/accounts/profile/"

    def test_to_log_in_the_backend_has_to_be_listed(self, client, settings):
        settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
        assert client.get(LOGIN).status_code == 404
        assert client.post(LOGIN).status_code == 404

    def test_connecting_works_without_the_backend(self, everifin_connect, browser, settings):
        settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
        assert everifin_connect(browser, next="/a/")["Location"] == "/a/"
        assert BankToken.objects.get().status == "active"

    @pytest.mark.parametrize("method", ["put", "patch", "delete"])
    def test_other_methods_are_not_allowed(self, browser, method):
        for auth_view in (CONNECT, CALLBACK, LOGOUT, DISCONNECT):
            assert getattr(browser, method)(auth_view).status_code == 405

    @pytest.mark.parametrize("auth_view", [LOGIN, CONNECT, CALLBACK, LOGOUT, DISCONNECT])
    def test_no_answer_is_kept_by_a_cache(self, browser, auth_view):
        for response in (browser.get(auth_view), browser.post(auth_view)):
            assert "no-store" in response["Cache-Control"]

    @pytest.mark.parametrize("auth_view", [LOGIN, CONNECT, CALLBACK, LOGOUT, DISCONNECT])
    def test_no_other_site_can_frame_a_door_without_djangos_middleware_too(
        self, browser, settings, auth_view
    ):
        """A visitor who thinks they press something else would press our button."""
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "XFrame" not in name]
        for response in (browser.get(auth_view), browser.post(auth_view)):
            assert response["X-Frame-Options"] == "DENY"

    def test_the_page_speaks_the_visitors_language_and_direction(self, client):
        with translation.override("ar"):
            page = Page(client.get(LOGIN))
        assert (page.attributes["html"]["lang"], page.attributes["html"]["dir"]) == ("ar", "rtl")


CHANGES = {
    "nothing at all": (r"[?].*", ""),
    "no state": ("state=[^&]+", ""),
    "empty state": ("state=[^&]+", "state="),
    "state as an array": ("state=", "state%5B%5D="),
    "unknown state": ("state=[^&]+", "state=unknown"),
    "state that is no text": ("state=[^&]+", "state=%00%ff%ed%a0%80"),
    "state with something before": ("[&]state=", "&state=x"),
    "state with something behind": ("([&]state=[^&]+)", r"\1x"),
    "two states": ("$", "&state=another"),
    "the same state twice": ("([&]state=[^&]+)", r"\1\1"),
    "overlong state": ("[&]state=[^&]+", "&state=" + "a" * 129),
    "1 MB of state": ("[&]state=[^&]+", "&state=" + "a" * 1_000_000),
    "no code": ("code=[^&]+", ""),
    "empty code": ("code=[^&]+", "code="),
    "two codes": ("$", "&code=another"),
    "overlong code": ("code=[^&]+", "code=" + "a" * 2049),
    "empty iss": ("iss=[^&]+", "iss="),
    "foreign iss": ("iss=[^&]+", "iss=https://evil.example/"),
    "iss in capitals": ("idp.everifin.test", "IDP.everifin.test"),
    "iss with a slash": ("(iss=[^&]+)", r"\1/"),
    "two isses": ("$", "&iss=another"),
    "two errors": ("$", "&error=a&error=b"),
    "overlong error": ("$", "&error=" + "a" * 65),
    "everything behind the hash": ("[?]", "#"),
    "tokens instead of a code": ("[?].*", "?access_token=a&id_token=b&token_type=bearer"),
}
"""What is changed about the address Everifin sends back to: a pattern, and what replaces it."""


class TestForgedAnswer:
    """An answer that is not trusted changes nothing, and no request goes out."""

    @pytest.fixture(autouse=True)
    def nothing_changes(self, everifin, browser, user):
        before = user_of(browser)
        yield
        assert user_of(browser) == before
        assert everifin.calls["token"] == 0
        assert not BankToken.objects.exists()

    def assert_is_refused(self, response, title="This link cannot be used") -> None:
        assert response.status_code == 400
        assert response["Referrer-Policy"] == "same-origin"
        assert "no-store" in response["Cache-Control"]
        page = Page(response)
        page.assert_is_in_order()
        assert page.text["h1"] == title
        assert page.links.pop("Go to the start page") == "/"
        [way_on] = page.links.values()
        assert way_on in (CONNECT, LOGIN, f"/accounts/login/?next={CONNECT}")

    @pytest.mark.parametrize(("part", "instead"), CHANGES.values(), ids=CHANGES)
    def test_a_changed_answer(self, browser, to_everifin, part, instead):
        self.assert_is_refused(browser.get(re.sub(part, instead, to_everifin(browser))))

    def test_an_answer_without_iss_where_the_site_requires_it(
        self, browser, to_everifin, settings, caplog
    ):
        settings.EVERIFIN_REQUIRE_ISS = True
        self.assert_is_refused(browser.get(re.sub("&iss=[^&]+", "", to_everifin(browser))))
        assert "issuer_missing" in caplog.text

    def test_an_answer_to_another_session(self, browser, to_everifin, django_user_model):
        attacker = Client()
        attacker.force_login(django_user_model.objects.create_user("mallory"))
        self.assert_is_refused(browser.get(to_everifin(attacker)))
        self.assert_is_refused(browser.get(to_everifin(Client(), LOGIN)))

    def test_an_answer_to_a_victim_who_is_not_logged_in(self, to_everifin):
        self.assert_is_refused(Client().get(to_everifin(Client(), LOGIN)))

    def test_another_user_is_logged_in_meanwhile(self, browser, to_everifin, django_user_model):
        url = to_everifin(browser)
        self.switch_user(browser, django_user_model.objects.create_user("eve"))
        self.assert_is_refused(browser.get(url), "Another user is logged in by now")
        browser.force_login(django_user_model.objects.get(username="ann"))

    def test_the_user_has_logged_out_meanwhile(self, browser, to_everifin, user):
        url = to_everifin(browser)
        self.switch_user(browser, None)
        self.assert_is_refused(browser.get(url), "You were logged out in the meantime")
        browser.force_login(user)

    def switch_user(self, browser, user) -> None:
        """Log *user* in, or nobody, in the same browser."""
        browser.session.flush()
        browser.cookies.pop("sessionid")
        if user is not None:
            browser.force_login(user)

    def test_the_user_was_deactivated_meanwhile(self, browser, to_everifin, user):
        url = to_everifin(browser)
        type(user).objects.update(is_active=False)
        self.assert_is_refused(browser.get(url), "You were logged out in the meantime")

    def test_somebody_logged_in_during_a_login(self, client, user, to_everifin):
        client.logout()
        url = to_everifin(client, LOGIN)
        client.force_login(user)
        assert client.get(url)["Location"] == "/accounts/profile/"

    def test_the_session_ends_while_the_answer_is_looked_at(
        self, browser, to_everifin, settings, user
    ):
        url = to_everifin(browser)
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.web.test_views.end_the_session"]
        same_browser = Client()
        same_browser.cookies = browser.cookies.copy()
        self.assert_is_refused(same_browser.get(url), "You were logged out in the meantime")
        browser.force_login(user)

    @pytest.mark.parametrize("method", ["post", "head", "put"])
    def test_another_method(self, browser, to_everifin, method):
        url = to_everifin(browser)
        assert getattr(browser, method)(url).status_code == 405
        assert not SpentState.objects.exists()

    def test_an_error_without_a_valid_state_logs_nobody_out(self, browser, everifin):
        for parameters in ({}, {"state": "unknown"}):
            error = {"error": "access_denied"}
            self.assert_is_refused(browser.get(CALLBACK, error | parameters))

    def test_it_is_told_to_the_security_log_by_its_reason(self, browser, caplog):
        browser.get(CALLBACK, {"state": "a\r\nforged line", "code": "a-code"})
        [record] = [one for one in caplog.records if one.name == "everifin_django.security"]
        assert record.levelno == logging.WARNING
        assert record.getMessage().endswith("stopped: state_unknown.")
        assert "forged" not in caplog.text


def end_the_session(get_response):
    """Middleware: the session is loaded, and gone from the database a moment later."""

    def middleware(request):
        if request.path == CALLBACK:
            assert request.session["_auth_user_id"]
            Session.objects.all().delete()
        return get_response(request)

    return middleware


class TestRefusedAtEverifin:
    @pytest.mark.parametrize(("auth_view", "is_logged_in"), [(CONNECT, True), (LOGIN, False)])
    def test_who_cancels_is_back_at_the_button(
        self, client, user, everifin, auth_view, is_logged_in
    ):
        if is_logged_in:
            client.force_login(user)
        url = redirect_target(client.post(auth_view, {"next": "/a/?b=c"}))
        response = client.get(everifin.authorize(url, consent=False))
        assert response["Location"] == f"{auth_view}?next=%2Fa%2F%3Fb%3Dc&notice=cancelled"
        page = Page(client.get(response["Location"]))
        page.assert_is_in_order()
        assert page.text["h2"] == "You cancelled at Everifin"
        assert page.attributes["div"]["role"] == "status"
        assert user_of(client) == (str(user.pk) if is_logged_in else None)
        # Said on that page alone.
        assert "You cancelled" not in client.get(auth_view).content.decode()

    @pytest.mark.parametrize(
        ("error", "title"),
        [
            ("server_error", "Everifin does not answer at the moment"),
            ("temporarily_unavailable", "Everifin does not answer at the moment"),
            ("invalid_scope", "Everifin could not finish this"),
            ("<script>", "Everifin could not finish this"),
        ],
    )
    def test_each_error_has_its_words_and_none_is_everifins_own(
        self, browser, caplog, error, title
    ):
        state = query(redirect_target(browser.post(CONNECT)))["state"]
        texts = {"error_description": "<b>canary</b>\r\ncanary", "error_uri": "//canary.example"}
        response = browser.get(CALLBACK, {"error": error, "state": state, **texts})
        assert response["Location"].partition("?")[0] == CONNECT
        page = browser.get(response["Location"]).content.decode()
        assert f"<h2>{title}</h2>" in page
        assert not [text for text in (page, caplog.text) if "canary" in text or "<script" in text]

    def test_the_issuer_is_looked_at_first(self, browser):
        state = query(redirect_target(browser.post(CONNECT)))["state"]
        forged = {"error": "access_denied", "state": state, "iss": "https://evil.example"}
        assert browser.get(CALLBACK, forged).status_code == 400


class TestConnect:
    def test_it_keeps_the_login_and_stores_the_tokens(self, everifin_connect, browser, user):
        key = browser.session.session_key
        response = everifin_connect(browser, next="/accounts/")
        assert response["Location"] == "/accounts/"
        assert response["Referrer-Policy"] == "same-origin"
        assert (browser.session.session_key, user_of(browser)) == (key, str(user.pk))
        connection = BankToken.objects.get()
        assert (connection.user, connection.status) == (user, "active")
        assert connection.subject
        user.refresh_from_db()
        assert user.email == "ann@site.example"

    def test_an_answer_without_iss_is_accepted(self, browser, to_everifin):
        url = re.sub("&iss=[^&]+", "", to_everifin(browser))
        assert browser.get(url).status_code == 302
        assert BankToken.objects.exists()

    def test_somebody_elses_everifin_account_is_refused_and_its_grant_ended(
        self, everifin, everifin_connect, browser, django_user_model
    ):
        owner = Client()
        owner.force_login(django_user_model.objects.create_user("owner"))
        everifin_connect(owner)
        before = BankToken.objects.values().get()
        response = everifin_connect(browser)
        assert response.status_code == 409
        page = Page(response)
        page.assert_is_in_order()
        assert page.text["h1"] == "This Everifin account belongs to another user here"
        assert page.links == {"Start again": CONNECT, "Go to the start page": "/"}
        assert "sign out at Everifin" in page.content
        assert "owner" not in page.content.replace("users", "")
        assert BankToken.objects.values().get() == before
        assert everifin.live_sessions("alice") == 1
        assert not PendingRevocation.objects.exists()
        assert user_of(browser) is not None

    @pytest.mark.parametrize("scopes", ["openid ais", "ais"])
    def test_without_an_id_token_the_identity_is_found_all_the_same(
        self, everifin, everifin_connect, browser, settings, scopes
    ):
        everifin.issue_id_tokens = False
        settings.EVERIFIN_SCOPES = scopes
        assert everifin_connect(browser).status_code == 302
        connection = BankToken.objects.get()
        assert connection.subject == everifin.user("alice").sub
        assert connection.id_ciphertext == ""

    def test_the_access_token_tells_the_identity_where_userinfo_is_down(
        self, everifin, everifin_connect, browser
    ):
        everifin.issue_id_tokens = False
        everifin.faults.add("userinfo", status=500)
        everifin_connect(browser)
        assert BankToken.objects.get().subject == everifin.user("alice").sub

    def test_an_identity_that_cannot_be_known_is_left_open(
        self, everifin, browser, to_everifin, settings
    ):
        settings.EVERIFIN_SCOPES = "ais"
        tokens = {"access_token": "opaque", "refresh_token": "opaque", "token_type": "Bearer"}
        everifin.faults.add("token", body=tokens)
        assert browser.get(to_everifin(browser)).status_code == 302
        connection = BankToken.objects.get()
        assert (connection.subject, connection.identity_digest) == ("", None)

    def test_a_failure_after_the_exchange_ends_the_grant(
        self, everifin, everifin_connect, browser, monkeypatch
    ):
        def fail(*args, **kwargs):
            raise RuntimeError

        monkeypatch.setattr(BankToken, "sealed", fail)
        with pytest.raises(RuntimeError):
            everifin_connect(browser)
        assert everifin.calls["token"] == 1
        assert everifin.live_sessions("alice") == 0

    @pytest.mark.parametrize("change", ["logs out", "logs in as another"])
    def test_a_session_that_changes_during_the_exchange_ends_the_grant(
        self, everifin, browser, to_everifin, django_user_model, change
    ):
        url = to_everifin(browser)

        def hook(headers, claims):
            another_tab = Client()
            another_tab.cookies = browser.cookies.copy()
            if change == "logs out":
                another_tab.logout()
            else:
                session = another_tab.session
                session["_auth_user_id"] = str(django_user_model.objects.create_user("eve").pk)
                session.save()
            return headers, claims

        everifin.id_token_hook = hook
        assert browser.get(url).status_code == 400
        assert not BankToken.objects.exists()
        assert everifin.live_sessions("alice") == 0

    def test_what_another_tab_changes_during_the_exchange_stays(
        self, everifin, browser, to_everifin
    ):
        url = to_everifin(browser)
        states = []

        def hook(headers, claims):
            states.append(query(redirect_target(browser.post(CONNECT)))["state"])
            return headers, {**claims, "nonce": "wrong"}

        everifin.id_token_hook = hook
        assert browser.get(url).status_code == 400
        [state] = states
        assert login_flow.find(Secret(state)) is not None

    def test_two_answers_at_once_are_one_token_request(
        self, transactional_db, everifin, browser, to_everifin, settings
    ):
        url = to_everifin(browser)
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.web.test_views.load_sessions_together"]

        def come_back(_: int) -> int:
            client = Client()
            client.cookies = browser.cookies.copy()
            try:
                return client.get(url).status_code
            finally:
                connections.close_all()

        with ThreadPoolExecutor(2) as executor:
            assert sorted(executor.map(come_back, range(2))) == [302, 302]
        assert everifin.calls["token"] == 1
        assert BankToken.objects.get().status == "active"


together = Barrier(2, timeout=30)


def load_sessions_together(get_response):
    """Middleware: two requests have both read the session before one of them goes on."""

    def middleware(request):
        assert request.session["_auth_user_id"]
        together.wait()
        return get_response(request)

    return middleware


class TestLogin:
    def test_it_makes_a_user_and_a_new_session_key(
        self, everifin_connect, client, django_user_model
    ):
        client.post(LOGIN)
        anonymous_key = client.session.session_key
        response = everifin_connect(client, view="login", next="/accounts/")
        assert response["Location"] == "/accounts/"
        assert response["Referrer-Policy"] == "same-origin"
        assert client.session.session_key != anonymous_key
        assert not Session.objects.filter(pk=anonymous_key).exists()
        user = django_user_model.objects.get()
        assert user_of(client) == str(user.pk)
        assert BankToken.objects.get().user == user

    def test_a_second_login_finds_the_same_user(self, everifin_connect, client):
        everifin_connect(client, view="login")
        first = user_of(client)
        everifin_connect(another := Client(), view="login")
        assert user_of(another) == first

    def test_nobody_is_made_where_the_site_does_not_want_it(
        self, everifin, everifin_connect, client, settings, django_user_model
    ):
        settings.EVERIFIN_CREATE_USERS = False
        response = everifin_connect(client, view="login")
        assert response.status_code == 403
        page = Page(response)
        page.assert_is_in_order()
        assert page.text["h1"] == "Nobody here has this Everifin account"
        assert not django_user_model.objects.exists()
        assert everifin.live_sessions("alice") == 0
        assert user_of(client) is None

    def test_who_has_connected_can_log_in_where_nobody_is_made(
        self, everifin_connect, browser, user, settings
    ):
        settings.EVERIFIN_CREATE_USERS = False
        everifin_connect(browser)
        everifin_connect(another := Client(), view="login")
        assert user_of(another) == str(user.pk)

    def test_an_inactive_user_stays_out_and_the_grant_is_ended(
        self, everifin, everifin_connect, client, django_user_model, settings
    ):
        everifin_connect(client, view="login")
        django_user_model.objects.update(is_active=False)
        everifin.end_sessions()
        response = everifin_connect(another := Client(), view="login")
        assert response.status_code == 403
        page = Page(response)
        assert page.text["h1"] == "Your user here is deactivated"
        assert page.links.keys() == {"Go to the start page"}
        assert user_of(another) is None
        assert everifin.live_sessions("alice") == 0

    @pytest.mark.parametrize("scopes", ["openid ais", "ais"])
    def test_without_an_id_token_nobody_is_logged_in_and_the_log_says_why(
        self, everifin, everifin_connect, client, settings, caplog, scopes
    ):
        everifin.issue_id_tokens = False
        settings.EVERIFIN_SCOPES = scopes
        response = everifin_connect(client, view="login")
        assert response.status_code == 400
        assert Page(response).text["h1"] == "Everifin could not finish this"
        [message] = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
        assert "EVERIFIN_SCOPES" in message
        assert user_of(client) is None
        assert everifin.live_sessions("alice") == 0

    def test_an_id_token_that_is_not_believed_ends_the_grant(
        self, everifin, everifin_connect, client, django_user_model
    ):
        everifin.id_token_hook = lambda headers, claims: (headers, {**claims, "nonce": "another"})
        assert everifin_connect(client, view="login").status_code == 400
        assert not django_user_model.objects.exists()
        assert everifin.live_sessions("alice") == 0

    @pytest.mark.parametrize("claims", [{"aud": "another"}, {"exp": 1}])
    def test_what_is_wrong_with_an_id_token_is_not_said_to_be_the_visitors_fault(
        self, everifin, everifin_connect, client, claims
    ):
        everifin.id_token_hook = lambda headers, given: (headers, {**given, **claims})
        response = everifin_connect(client, view="login")
        assert response.status_code == 400
        page = Page(response)
        assert page.text["h1"] == "Everifin could not finish this"
        assert page.links["Start again"] == LOGIN

    def test_a_failure_after_the_grant_is_stored_leaves_it_alive(
        self, everifin, everifin_connect, client
    ):
        """It is the user's by now, and would be missed."""

        def fail(**kwargs):
            raise RuntimeError

        user_logged_in.connect(fail)
        try:
            with pytest.raises(RuntimeError):
                everifin_connect(client, view="login")
        finally:
            user_logged_in.disconnect(fail)
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions("alice") == 1

    def test_a_code_of_another_flow_fails_at_everifin(self, everifin, client):
        """The victim's code, put into the attacker's own answer."""
        victims = everifin.authorize(redirect_target(Client().post(LOGIN)), "bob")
        attackers = everifin.authorize(redirect_target(client.post(LOGIN)))
        url = attackers.replace(query(attackers)["code"], query(victims)["code"])
        assert client.get(url)["Location"] == f"{LOGIN}?notice=failed"
        assert user_of(client) is None

    def test_the_session_names_the_backend_as_the_settings_do(
        self, everifin_connect, client, settings
    ):
        settings.AUTHENTICATION_BACKENDS = ["tests.test_backends.Ours"]
        everifin_connect(client, view="login")
        assert client.get("/plain/").wsgi_request.user.is_authenticated

    def test_it_works_under_asgi(self, everifin):
        client = AsyncClient()
        start = async_to_sync(client.post)(LOGIN)
        url = everifin.authorize(redirect_target(start))
        response = async_to_sync(client.get)(url)
        assert response.status_code == 302
        assert user_of(client) is not None
        request = response.asgi_request
        assert request.scope["query_string"] == b""
        assert query(url)["code"] not in repr((request.scope, request.META, request.GET))


class TestTokenEndpointFails:
    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 500},
            {"status": 503, "retry_after": 7},
            {"status": 429},
            {"status": 400, "html": True},
            {"html": True, "status": 200},
            {"lost": "before"},
            {"lost": "after"},
            {"truncate": True},
            {"latency_seconds": 60},
            {"body": "[]"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("auth_view", [LOGIN, CONNECT])
    def test_an_outage_is_503_with_retry_after(
        self, client, user, everifin, fault, auth_view, caplog
    ):
        caplog.set_level(logging.INFO, "everifin_django.security")
        everifin.sleep = [].append
        if auth_view == CONNECT:
            client.force_login(user)
        before = user_of(client)
        everifin.faults.add("token", **fault)
        response = client.get(everifin.authorize(redirect_target(client.post(auth_view))))
        assert response.status_code == 503
        assert response["Retry-After"] == str(fault.get("retry_after", 30))
        assert response["Referrer-Policy"] == "same-origin"
        assert "no-store" in response["Cache-Control"]
        page = Page(response)
        page.assert_is_in_order()
        assert page.text["h1"] == "Everifin does not answer at the moment"
        assert page.links == {"Start again": auth_view, "Go to the start page": "/"}
        assert "with Everifin was not finished: unavailable." in caplog.text
        assert user_of(client) == before
        assert not BankToken.objects.exists()

    def test_keys_that_cannot_be_had_are_503_and_the_grant_is_ended(
        self, everifin, everifin_connect, browser
    ):
        everifin.faults.add("certs", status=500)
        assert everifin_connect(browser).status_code == 503
        assert everifin.live_sessions("alice") == 0

    def test_a_code_that_is_refused_starts_again(self, browser, to_everifin, caplog):
        url = re.sub("code=[^&]+", "code=a-wrong-code", to_everifin(browser))
        response = browser.get(url)
        assert response["Location"] == f"{CONNECT}?notice=failed"
        page = browser.get(response["Location"]).content.decode()
        assert "<h2>Everifin could not finish this</h2>" in page
        assert "invalid_grant" in caplog.text
        assert "a-wrong-code" not in page + caplog.text

    def test_a_wrong_client_secret_is_said_to_the_operator(
        self, everifin, everifin_connect, browser, caplog
    ):
        everifin.client_secret = "another"
        assert everifin_connect(browser)["Location"] == f"{CONNECT}?notice=failed"
        assert "unauthorized_client" in caplog.text

    def test_without_a_key_the_code_is_not_spent(self, everifin, browser, to_everifin, settings):
        url = to_everifin(browser)
        settings.EVERIFIN_ENCRYPTION_KEYS = []
        with pytest.raises(ImproperlyConfigured, match="EVERIFIN_ENCRYPTION_KEYS"):
            browser.get(url)
        assert everifin.calls["token"] == 0


class TestNothingOfTheAnswerIsLeft:
    """A report about a later error shows neither code nor state."""

    @pytest.mark.parametrize("is_good", [True, False])
    def test_in_the_request(self, browser, to_everifin, is_good):
        url = to_everifin(browser) if is_good else f"{CALLBACK}?state=a-state&code=a-code"
        path = url.removeprefix("http://testserver")
        copies = {"RAW_URI": path, "REQUEST_URI": path, "HTTP_X_ORIGINAL_URI": url}
        response = browser.get(url, **copies)
        request = response.wsgi_request
        assert {name: request.META[name] for name in copies} == {
            "RAW_URI": f"{CALLBACK}?",
            "REQUEST_URI": f"{CALLBACK}?",
            "HTTP_X_ORIGINAL_URI": url.partition("?")[0] + "?",
        }
        sent = query(url)
        shown = repr([request, request.META, request.GET, request.get_full_path()])
        assert sent["code"] not in shown
        assert sent["state"] not in shown
        assert request.build_absolute_uri() == f"http://testserver{CALLBACK}"

    def test_in_the_session(self, browser, to_everifin):
        url = to_everifin(browser)
        [flow] = flows()
        browser.get(url)
        kept = repr({**browser.session}) + repr(flows())
        sent = query(url)
        secrets = (sent["state"], sent["code"], flow["nonce"], flow["code_verifier"])
        assert not [text for text in secrets if text in kept]

    def test_other_headers_stay_as_they_are(self, browser):
        response = browser.get(f"{CALLBACK}?state", HTTP_X_NAME="my-state")
        assert response.wsgi_request.META["HTTP_X_NAME"] == "my-state"


class TestLogout:
    def test_it_ends_everything(self, everifin, everifin_connect, client):
        everifin_connect(client, view="login")
        key = client.session.session_key
        response = client.post(LOGOUT)
        assert response["Location"] == "/"
        assert not Session.objects.filter(pk=key).exists()
        connection = BankToken.objects.get()
        assert connection.status == "disconnected"
        assert (connection.access_ciphertext, connection.refresh_ciphertext) == ("", "")
        assert connection.id_ciphertext == ""
        assert everifin.live_sessions("alice") == 0
        assert everifin.calls["logout"] == 1
        assert not PendingRevocation.objects.exists()

    def test_it_ends_the_connection_of_who_logged_in_by_password_too(
        self, everifin, everifin_connect, browser
    ):
        everifin_connect(browser)
        browser.post(LOGOUT)
        assert everifin.live_sessions("alice") == 0
        assert user_of(browser) is None

    @pytest.mark.parametrize("auth_view", [LOGOUT, DISCONNECT])
    @pytest.mark.parametrize("method", ["get", "head"])
    def test_a_link_cannot_do_it(self, everifin, everifin_connect, browser, auth_view, method):
        everifin_connect(browser)
        assert getattr(browser, method)(auth_view).status_code == 405
        assert user_of(browser) is not None
        assert everifin.live_sessions("alice") == 1

    @pytest.mark.parametrize("auth_view", [LOGOUT, DISCONNECT])
    def test_another_sites_form_cannot_do_it(self, everifin, everifin_connect, browser, auth_view):
        everifin_connect(browser)
        strict = Client(enforce_csrf_checks=True)
        strict.cookies = browser.cookies
        assert strict.post(auth_view).status_code == 403
        assert user_of(browser) is not None
        assert everifin.live_sessions("alice") == 1

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 500},
            {"status": 429},
            {"html": True},
            {"lost": "before"},
            {"lost": "after"},
            {"latency_seconds": 60},
        ],
        ids=str,
    )
    def test_however_everifin_fails_the_local_part_is_done_by_the_deadline(
        self, everifin, everifin_connect, client, settings, fault
    ):
        everifin_connect(client, view="login")
        slept: list[float] = []
        everifin.sleep = slept.append
        everifin.faults.add("logout", **fault)
        assert client.post(LOGOUT).status_code == 302
        assert user_of(client) is None
        assert BankToken.objects.get().refresh_ciphertext == ""
        assert PendingRevocation.objects.count() == 1
        assert sum(slept) <= 10

    @pytest.mark.parametrize("auth_view", ["login", "connect"])
    def test_everifin_may_be_down(self, everifin, everifin_connect, client, user, auth_view):
        if auth_view == "connect":
            client.force_login(user)
        everifin_connect(client, view=auth_view)
        everifin.faults.add("logout", status=503)
        assert client.post(LOGOUT).status_code == 302
        assert user_of(client) is None
        assert BankToken.objects.get().status == "disconnected"
        [waiting] = PendingRevocation.objects.all()
        assert waiting.last_error == "unavailable"
        assert everifin.live_sessions("alice") == 1
        everifin.faults.clear()
        PendingRevocation.objects.update(retry_after=None)
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 0
        assert not PendingRevocation.objects.exists()

    def test_twice_is_once(self, everifin, everifin_connect, client):
        everifin_connect(client, view="login")
        client.post(LOGOUT)
        assert client.post(LOGOUT).status_code == 302
        assert everifin.calls["logout"] == 1

    def test_a_visitor_may_log_out(self, everifin, client):
        assert client.post(LOGOUT)["Location"] == "/"
        assert client.post(DISCONNECT).status_code == 302
        assert not everifin.calls

    def test_where_it_leads_is_the_sites_choice(self, browser, settings):
        settings.LOGOUT_REDIRECT_URL = "/bye/"
        assert browser.post(LOGOUT)["Location"] == "/bye/"

    def test_a_site_below_a_prefix_is_not_left(self, browser, settings):
        settings.STATIC_URL = "/static/"  # a relative one would keep the prefix for later tests
        with override_script_prefix("/shop/"):
            assert 'href="/shop/"' in browser.get(CALLBACK).content.decode()
            assert browser.post(LOGOUT)["Location"] == "/shop/"


def _id_token(connection: BankToken) -> str:
    token = connection.open_token("id")
    assert token is not None
    return token.reveal()


class TestLogoutAtEverifin:
    """The browser logs out there too, and comes back."""

    @pytest.fixture(autouse=True)
    def back(self, settings, everifin) -> str:
        settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = f"https://testserver{CALLBACK}"
        assert settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI in everifin.redirect_uris
        return f"https://testserver{CALLBACK}"

    def test_everifin_is_told_whose_session_ends_and_where_to_go(
        self, everifin, everifin_connect, client, back
    ):
        everifin_connect(client, view="login")
        id_token = _id_token(BankToken.objects.get())
        page = redirect_target(client.post(LOGOUT))
        assert page.startswith(f"{everifin.issuer}/protocol/openid-connect/logout?")
        assert len(query(page).pop("state")) >= 43
        assert query(page) | {"state": ""} == {
            "client_id": everifin.client_id,
            "post_logout_redirect_uri": back,
            "id_token_hint": id_token,
            "state": "",
        }
        assert user_of(client) is None
        assert BankToken.objects.get().status == "disconnected"
        answer = requests.get(page, allow_redirects=False, timeout=5)
        assert (answer.status_code, answer.headers["Location"]) == (
            302,
            f"{back}?state={query(page)['state']}",
        )

    def test_a_refresh_without_an_id_token_keeps_the_one_there_is(
        self, everifin, everifin_connect, client
    ):
        everifin_connect(client, view="login")
        row = BankToken.objects.get()
        id_token = _id_token(row)
        everifin.issue_id_tokens = False
        refresh_again(row.user)
        assert query(redirect_target(client.post(LOGOUT)))["id_token_hint"] == id_token

    def test_without_an_id_token_everifin_asks_the_user_itself(
        self, everifin, everifin_connect, browser
    ):
        everifin.issue_id_tokens = False
        everifin_connect(browser)
        assert "id_token_hint" not in query(redirect_target(browser.post(LOGOUT)))

    def test_so_it_does_where_the_id_token_cannot_be_read(self, everifin_connect, client, settings):
        everifin_connect(client, view="login")
        settings.EVERIFIN_ENCRYPTION_KEYS = ["other:" + "A" * 43 + "="]
        assert "id_token_hint" not in query(redirect_target(client.post(LOGOUT)))
        assert user_of(client) is None

    def test_an_older_keycloak_is_told_in_its_way(self, everifin_connect, client, settings, back):
        settings.EVERIFIN_LEGACY_LOGOUT = True
        everifin_connect(client, view="login")
        assert query(redirect_target(client.post(LOGOUT))) == {"redirect_uri": back}

    def test_it_leads_there_though_everifin_is_down(self, everifin, everifin_connect, client):
        everifin_connect(client, view="login")
        everifin.faults.add("logout", status=503)
        assert "id_token_hint" in redirect_target(client.post(LOGOUT))
        assert user_of(client) is None
        assert PendingRevocation.objects.count() == 1

    def test_who_has_no_session_at_everifin_stays_here(self, everifin_connect, client, browser):
        assert redirect_target(Client().post(LOGOUT)) == "/"
        everifin_connect(browser)
        browser.post(DISCONNECT)
        assert redirect_target(browser.post(LOGOUT)) == "/"

    @pytest.mark.parametrize("more", ["?state=another", "?state=a&state=b", "?error=x", ""])
    def test_whatever_comes_back_with_the_browser_changes_nothing(self, browser, more):
        """The page people come back to is any page of the site; nothing hangs on the return."""
        assert browser.get(f"/plain/{more}").status_code == 200
        assert user_of(browser) is not None


class TestDisconnect:
    def test_it_ends_the_connection_and_keeps_the_session(
        self, everifin, everifin_connect, browser, user
    ):
        everifin_connect(browser)
        key = browser.session.session_key
        response = browser.post(DISCONNECT, {"next": "/settings/"})
        assert response["Location"] == "/settings/"
        assert (browser.session.session_key, user_of(browser)) == (key, str(user.pk))
        assert BankToken.objects.get().status == "disconnected"
        assert everifin.live_sessions("alice") == 0

    def test_the_way_back_stays_on_this_site(self, browser):
        response = browser.post(DISCONNECT, {"next": "//evil.example"})
        assert response["Location"] == "/accounts/profile/"

    def test_one_can_connect_again(self, everifin, everifin_connect, browser):
        everifin_connect(browser)
        browser.post(DISCONNECT)
        everifin_connect(browser)
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions("alice") == 1


@pytest.mark.django_db(transaction=True)
class TestAtomicRequests:
    @pytest.fixture(autouse=True)
    def atomic_requests(self, monkeypatch):
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)

    def test_no_door_runs_in_the_transaction_of_the_request(self, everifin, browser, to_everifin):
        seen = []

        def hook(headers, claims):
            seen.append(connections["default"].in_atomic_block)
            return headers, claims

        everifin.id_token_hook = hook
        assert browser.get(to_everifin(browser)).status_code == 302
        assert browser.post(DISCONNECT).status_code == 302
        assert browser.post(LOGOUT).status_code == 302
        # In a transaction the grant could only be ended after the request.
        assert (seen, everifin.calls["logout"]) == ([False], 1)


def test_nothing_else_is_asked(everifin, everifin_connect, client):
    """A whole login asks the token endpoint once, and only the first one for the keys."""
    everifin_connect(client, view="login")
    assert everifin.calls == {"auth": 1, "token.authorization_code": 1, "token": 1, "certs": 1}
    everifin.calls.clear()
    everifin_connect(Client(), view="login")
    assert everifin.calls == {"auth": 1, "token.authorization_code": 1, "token": 1}

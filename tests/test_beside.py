"""
Everifin beside another identity provider, which plain mozilla-django-oidc logs in with.

Both have a user of the same name, subject and e-mail address. The project in ``projects/allauth``
runs these tests once more, with django-allauth installed.
"""

import re
import time
from pathlib import Path
from typing import Any

import mozilla_django_oidc
import pytest
from django.contrib import auth
from django.contrib.auth.views import LogoutView
from django.test import Client
from django.urls import include, path

from everifin_django.conf import SETTINGS
from everifin_django.models import BankToken
from everifin_django.testing.adapter import mount
from everifin_django.testing.fake import redirect_target
from everifin_django.testing.sandbox import Sandbox
from tests import urls

OURS = "everifin_django.backends.EverifinBackend"
THEIRS = "mozilla_django_oidc.auth.OIDCAuthenticationBackend"
REALM = "https://idp.theirs.test/auth/realms/theirs"
OPENID = f"{REALM}/protocol/openid-connect"
CALLBACKS = ("/oidc/callback/", "/allauth/oidc/theirs/login/callback/")
SOURCES = Path(mozilla_django_oidc.__file__).parent.glob("*.py")
THEIR_SETTINGS = {name for one in SOURCES for name in re.findall(r"\bOIDC_\w+", one.read_text())}

urlpatterns = [
    path("oidc/", include("mozilla_django_oidc.urls")),
    path("logout/", LogoutView.as_view(next_page="/")),
    *urls.urlpatterns,
]

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="session")
def their_key():
    """Made once: it takes long enough to be felt."""
    sandbox = Sandbox()
    sandbox.rotate_signing_key()
    return sandbox.store.signing_keys()[0]


@pytest.fixture
def theirs(everifin, their_key):
    """The other identity provider, with a key of its own."""
    sandbox = Sandbox(
        idp_url="https://idp.theirs.test",
        realm="theirs",
        client_id="theirs",
        client_secret="their secret",
        redirect_uris=[f"http://testserver{callback}" for callback in CALLBACKS],
    )
    sandbox.store.add_signing_key(*their_key, only=True)
    with mount(everifin, sandbox):
        yield sandbox


@pytest.fixture(autouse=True, params=[(OURS, THEIRS), (THEIRS, OURS)], ids=["first", "last"])
def site(request, settings):
    """A site with both, and mozilla-django-oidc's middleware; our backend stands first or last."""
    others = [one for one in settings.AUTHENTICATION_BACKENDS if one != OURS]
    settings.AUTHENTICATION_BACKENDS = [*others, *request.param]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "mozilla_django_oidc.middleware.SessionRefresh"]
    if settings.ROOT_URLCONF == "tests.urls":
        settings.ROOT_URLCONF = __name__
    settings.LOGIN_REDIRECT_URL = settings.LOGOUT_REDIRECT_URL = "/plain/"
    settings.OIDC_OP_AUTHORIZATION_ENDPOINT = f"{OPENID}/auth"
    settings.OIDC_OP_TOKEN_ENDPOINT = f"{OPENID}/token"
    settings.OIDC_OP_USER_ENDPOINT = f"{OPENID}/userinfo"
    settings.OIDC_OP_JWKS_ENDPOINT = f"{OPENID}/certs"
    settings.OIDC_RP_CLIENT_ID = "theirs"
    settings.OIDC_RP_CLIENT_SECRET = "their secret"
    settings.OIDC_RP_SIGN_ALGO = "RS256"
    return settings


@pytest.fixture
def log_in_with_everifin(everifin_connect):
    def log_in(client: Client) -> Any:
        return everifin_connect(client, view="login")

    return log_in


@pytest.fixture
def log_in_with_theirs(theirs):
    def log_in(client: Client) -> Any:
        start = client.get("/oidc/authenticate/")
        return client.get(theirs.authorize(redirect_target(start)))

    return log_in


def backend_of(client: Client) -> str | None:
    return client.session.get(auth.BACKEND_SESSION_KEY)


def user_of(client: Client) -> str | None:
    return client.session.get(auth.SESSION_KEY)


def keys_of(client: Client, prefix: str) -> list[str]:
    return [key for key in client.session.keys() if key.startswith(prefix)]  # noqa: SIM118 - a session is no dict


def renew(theirs: Sandbox, client: Client, away: str) -> Any:
    """Go to the other provider and back. The sandbox remembers no browser, so it has to ask."""
    assert "&prompt=none" in away
    return client.get(theirs.authorize(away.replace("&prompt=none", "")))


def expire(client: Client) -> None:
    """As if mozilla-django-oidc had logged somebody in an hour ago."""
    session = client.session
    session["oidc_id_token_expiration"] = time.time() - 3600
    session.save()


class TestLogin:
    def test_each_redeems_its_own_code_alone(
        self, everifin, theirs, log_in_with_everifin, log_in_with_theirs
    ):
        one, other = Client(), Client()
        assert log_in_with_everifin(one)["Location"] == "/plain/"
        assert backend_of(one) == OURS
        assert (everifin.calls["token"], theirs.calls["token"]) == (1, 0)
        assert log_in_with_theirs(other)["Location"] == "/plain/"
        assert backend_of(other) == THEIRS
        assert (everifin.calls["token"], theirs.calls["token"]) == (1, 1)

    def test_an_answer_at_the_wrong_door_is_redeemed_by_nobody(self, client, everifin, theirs):
        ours = everifin.authorize(redirect_target(client.post("/everifin/login/")))
        other = theirs.authorize(client.get("/oidc/authenticate/")["Location"])
        at_theirs = client.get("/oidc/callback/?" + ours.partition("?")[2])
        at_ours = client.get("/everifin/callback/?" + other.partition("?")[2])
        assert (at_theirs.status_code, at_ours.status_code) == (400, 400)
        assert (everifin.calls["token"], theirs.calls["token"]) == (0, 0)
        assert user_of(client) is None

    def test_we_do_not_take_their_user(
        self, log_in_with_everifin, log_in_with_theirs, django_user_model
    ):
        one, other = Client(), Client()
        log_in_with_theirs(one)
        log_in_with_everifin(other)
        assert user_of(one) != user_of(other)
        assert BankToken.objects.get().user_id != int(user_of(one) or 0)
        emails = django_user_model.objects.values_list("email", flat=True)
        assert list(emails) == ["alice@example.test"] * 2

    def test_their_default_takes_whoever_has_the_email_as_readme_says(
        self, log_in_with_everifin, log_in_with_theirs
    ):
        one, other = Client(), Client()
        log_in_with_everifin(one)
        log_in_with_theirs(other)
        assert user_of(one) == user_of(other)

    def test_two_under_way_at_once_both_finish(self, client, everifin, theirs):
        ours = everifin.authorize(redirect_target(client.post("/everifin/login/")))
        other = theirs.authorize(client.get("/oidc/authenticate/")["Location"], "bob")
        assert client.get(ours).status_code == 302
        assert backend_of(client) == OURS
        assert client.get(other).status_code == 302
        assert backend_of(client) == THEIRS
        assert (everifin.calls["token"], theirs.calls["token"]) == (1, 1)

    def test_who_came_in_by_theirs_meanwhile_stays_who_they_are(self, client, everifin, theirs):
        ours = everifin.authorize(redirect_target(client.post("/everifin/login/")))
        other = theirs.authorize(client.get("/oidc/authenticate/")["Location"], "bob")
        client.get(other)
        before = user_of(client)
        assert client.get(ours)["Location"] == "/plain/"
        assert (backend_of(client), user_of(client)) == (THEIRS, before)
        assert everifin.calls["token"] == 0

    def test_their_user_connects_while_their_own_login_is_renewed(
        self, client, everifin, theirs, log_in_with_theirs
    ):
        log_in_with_theirs(client)
        back = everifin.authorize(redirect_target(client.post("/everifin/connect/")))
        expire(client)
        away = client.get("/plain/")["Location"]
        assert renew(theirs, client, away)["Location"] == "/plain/"
        assert client.get(back).status_code == 302
        assert client.get("/accounts/").status_code == 200

    @pytest.mark.parametrize("is_ours_configured", [True, False])
    def test_a_password_still_opens_the_admin(
        self, client, admin_user, everifin, theirs, site, is_ours_configured
    ):
        if not is_ours_configured:
            del site.EVERIFIN_CLIENT_ID
        credentials = {"username": admin_user.username, "password": "password"}
        response = client.post("/admin/login/?next=/admin/", credentials)
        assert response["Location"] == "/admin/"
        assert client.get("/admin/").status_code == 200
        assert not everifin.calls
        assert not theirs.calls


class TestSession:
    def test_neither_writes_into_the_others_part(
        self, everifin, theirs, log_in_with_everifin, log_in_with_theirs
    ):
        one, other = Client(), Client()
        one.post("/everifin/login/")
        assert not keys_of(one, "oidc_")
        log_in_with_everifin(one)
        assert not keys_of(one, "oidc_")
        log_in_with_theirs(other)
        assert not keys_of(other, "everifin_")

    @pytest.mark.parametrize("is_left_over", [False, True])
    def test_their_middleware_leaves_our_session_alone(
        self, client, log_in_with_everifin, theirs, is_left_over
    ):
        log_in_with_everifin(client)
        if is_left_over:
            expire(client)
        assert client.get("/plain/").status_code == 200
        assert client.get("/accounts/").status_code == 200
        assert not theirs.calls

    def test_their_middleware_renews_their_session(
        self, client, theirs, log_in_with_theirs, everifin_connect
    ):
        log_in_with_theirs(client)
        everifin_connect(client)
        expire(client)
        away = client.get("/accounts/")["Location"]
        assert away.startswith(f"{OPENID}/auth?")
        assert renew(theirs, client, away)["Location"] == "/accounts/"
        assert client.get("/accounts/").status_code == 200

    @pytest.mark.parametrize("is_exempt", [True, False])
    def test_our_callback_is_spared_the_detour_if_it_is_exempt(
        self, client, everifin, log_in_with_theirs, site, is_exempt
    ):
        site.OIDC_EXEMPT_URLS = ["everifin_django:callback"] if is_exempt else []
        log_in_with_theirs(client)
        back = everifin.authorize(redirect_target(client.post("/everifin/connect/")))
        expire(client)
        assert client.get(back)["Location"].startswith(f"{OPENID}/auth?") is not is_exempt
        assert BankToken.objects.exists() is is_exempt


class TestSettings:
    def test_ours_does_not_read_theirs(self, client, everifin, log_in_with_everifin, site):
        assert len(THEIR_SETTINGS) > 30
        for name in THEIR_SETTINGS:
            setattr(site, name, object())
        # Django makes every backend for every login, and theirs looks into this one.
        site.OIDC_RP_SIGN_ALGO = "RS256"
        # mozilla-django-oidc reads this one past the hook by which we answer for ourselves.
        site.OIDC_MAX_STATES = 0
        start = client.post("/everifin/login/?next=/garbage/", {"next": "/accounts/"})
        assert client.get(everifin.authorize(redirect_target(start)))["Location"] == "/accounts/"
        assert client.get("/accounts/").status_code == 200
        client.post("/everifin/logout/")
        assert everifin.live_sessions() == 0

    def test_theirs_does_not_read_ours(self, client, everifin, log_in_with_theirs, site):
        # This one is read when the site starts, for every page.
        for name in SETTINGS.keys() - {"EVERIFIN_REFRESH_EVERY_VIEW"}:
            setattr(site, name, object())
        assert log_in_with_theirs(client)["Location"] == "/plain/"
        assert client.get("/plain/").status_code == 200
        client.post("/oidc/logout/")
        assert user_of(client) is None
        assert not everifin.calls


class TestLogout:
    @pytest.mark.parametrize("auth_view", ["/everifin/logout/", "/logout/", "/oidc/logout/"])
    def test_our_session_ends_at_everifin(
        self, client, everifin, theirs, log_in_with_everifin, auth_view
    ):
        log_in_with_everifin(client)
        client.post(auth_view)
        assert user_of(client) is None
        assert everifin.live_sessions() == 0
        assert not theirs.calls

    @pytest.mark.parametrize("auth_view", ["/logout/", "/oidc/logout/"])
    def test_their_session_ends_without_the_users_connection(
        self, client, everifin, log_in_with_theirs, everifin_connect, auth_view
    ):
        log_in_with_theirs(client)
        everifin_connect(client)
        client.post(auth_view)
        assert user_of(client) is None
        assert everifin.live_sessions() == 1
        assert BankToken.objects.get().status == BankToken.Status.ACTIVE

    def test_our_logout_ends_nothing_at_theirs(
        self, client, everifin, theirs, log_in_with_theirs, everifin_connect
    ):
        log_in_with_theirs(client)
        everifin_connect(client)
        calls = theirs.calls.copy()
        client.post("/everifin/logout/")
        assert (everifin.live_sessions(), theirs.live_sessions()) == (0, 1)
        assert theirs.calls == calls

"""The fixtures for a site's tests."""

import subprocess
import sys

import pytest
import requests
from django.apps import apps
from django.contrib.auth import get_user, get_user_model
from django.urls import include, path
from django.utils import timezone

from everifin_django.backends import EverifinBackend
from everifin_django.models import BankToken
from everifin_django.testing import factories
from everifin_django.testing.adapter import NetworkRefusedError
from everifin_django.testing.factories import BankTokenFactory
from everifin_django.testing.testcases import EverifinTestCase

urlpatterns = [path("bank/", include("everifin_django.urls"))]


class NoNewUsers(EverifinBackend):
    def create_user(self, claims):
        return None


def test_loading_it_imports_neither_django_nor_the_app():
    """pytest loads it in every project that has the package installed."""
    script = "import sys, everifin_django.testing.plugin; print('django' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


class TestEverifin:
    def test_it_is_at_the_urls_of_the_settings(self, settings, request):
        settings.EVERIFIN_IDP_URL = "https://idp.example/"
        settings.EVERIFIN_API_URL = "https://api.example"
        settings.EVERIFIN_REALM = "another"
        sandbox = request.getfixturevalue("everifin")
        assert sandbox.issuer == "https://idp.example/auth/realms/another"
        answer = requests.get(f"{sandbox.issuer}/.well-known/openid-configuration", timeout=5)
        assert answer.json()["issuer"] == sandbox.issuer
        assert requests.get("https://api.example/v1/banks", timeout=5).status_code == 401

    @pytest.mark.parametrize("url", ["https://app.everifin.com/", "http://127.0.0.1:9/"])
    def test_every_other_host_is_refused(self, everifin, url):
        with pytest.raises(NetworkRefusedError):
            requests.get(url, timeout=5)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_it_knows_the_sites_callback(self, settings, request, scheme):
        settings.ROOT_URLCONF = "tests.testing.test_plugin"
        sandbox = request.getfixturevalue("everifin")
        assert f"{scheme}://testserver/bank/callback/" in sandbox.redirect_uris

    def test_it_knows_the_callback_of_the_settings(self, settings, request):
        settings.EVERIFIN_REDIRECT_URI = "https://site.example/back/"
        sandbox = request.getfixturevalue("everifin")
        assert sandbox.redirect_uris == {"https://site.example/back/"}

    def test_each_test_has_its_own(self, everifin):
        assert not everifin.calls
        assert everifin.live_sessions() == 0


@pytest.mark.django_db
class TestConnect:
    def test_it_connects_the_user_who_is_logged_in(
        self, everifin_connect, admin_client, admin_user
    ):
        response = everifin_connect(admin_client, next="/accounts/")
        assert response["Location"] == "/accounts/"
        assert BankToken.objects.get().user == admin_user
        assert admin_client.get("/accounts/").status_code == 200

    def test_it_takes_another_person_at_everifin(self, everifin, everifin_connect, admin_client):
        everifin_connect(admin_client, "bob")
        assert BankToken.objects.get().subject == everifin.user("bob").sub

    def test_it_logs_a_visitor_in(self, everifin_connect, client):
        everifin_connect(client, view="login")
        assert get_user(client).is_authenticated

    def test_an_error_of_the_site_is_seen_in_the_answer(
        self, everifin, everifin_connect, admin_client
    ):
        everifin.faults.add("token", status=500)
        assert everifin_connect(admin_client).status_code == 503


class TestUser:
    def test_its_connection_is_live(self, everifin, everifin_user, client):
        client.force_login(everifin_user)
        assert client.get("/accounts/").status_code == 200
        assert BankToken.objects.get().subject == everifin.user("alice").sub
        assert everifin.live_sessions("alice") == 1

    def test_it_is_made_without_the_sites_views(self, everifin, everifin_user):
        assert not everifin_user.has_usable_password()
        assert not everifin.calls

    def test_a_site_whose_backend_makes_none_is_told(self, everifin, settings, db):
        settings.AUTHENTICATION_BACKENDS = ["tests.testing.test_plugin.NoNewUsers"]
        with pytest.raises(RuntimeError, match="give it to everifin"):
            everifin.make_user()


class TestLogin:
    def test_it_goes_through_the_sites_views(self, everifin_login, client):
        assert everifin_login(client, "bob", next="/accounts/")["Location"] == "/accounts/"
        assert get_user(client).is_authenticated


class TestExpiry:
    def test_the_next_use_refreshes_once(self, everifin, everifin_user, client):
        client.force_login(everifin_user)
        everifin.expire_access_token(everifin_user)
        for _ in range(2):
            assert client.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1
        assert everifin.calls["api.accounts"] == 2

    def test_everifin_too_takes_the_token_for_expired(self, everifin, everifin_user):
        token = BankToken.objects.get().open_token("access")
        assert token is not None
        everifin.expire_access_token(everifin_user)
        header = {"Authorization": f"Bearer {token.reveal()}"}
        answer = requests.get(f"{everifin.api_url}/v1/banks", headers=header, timeout=5)
        assert answer.status_code == 401

    def test_another_users_token_stays_good(self, everifin, everifin_user, client):
        other = everifin.make_user("bob")
        everifin.expire_access_token(everifin_user)
        client.force_login(other)
        assert client.get("/accounts/").status_code == 200
        assert not everifin.calls["token.refresh_token"]

    def test_a_row_of_a_factory_expires_as_well(self, everifin, db):
        row = BankTokenFactory()
        everifin.expire_access_token(row.user)
        row.refresh_from_db()
        assert row.access_expires_at <= timezone.now()

    def test_who_ended_the_grant_has_to_connect_again(self, everifin, everifin_user, client):
        client.force_login(everifin_user)
        everifin.end_grant(everifin_user)
        assert "/everifin/connect/" in client.get("/accounts/")["Location"]
        assert BankToken.objects.get().status == "needs_reconnect"


class TestFactories:
    def test_each_model_has_one_that_makes_rows(self, db):
        models = {model.__name__ for model in apps.get_app_config("everifin_django").get_models()}
        for name in models:
            getattr(factories, f"{name}Factory").create_batch(2)
        assert models


class TestTestCase(EverifinTestCase):
    def test_its_user_is_connected(self):
        self.client.force_login(self.everifin_user)
        assert self.client.get("/accounts/").status_code == 200

    def test_it_logs_in(self):
        self.everifin_login("bob", next="/accounts/")
        assert self.client.get("/accounts/").status_code == 200

    def test_it_connects(self):
        self.client.force_login(get_user_model().objects.create_user("anna"))
        self.everifin_connect()
        assert self.client.get("/accounts/").status_code == 200

    def test_every_other_host_is_refused(self):
        with pytest.raises(NetworkRefusedError):
            requests.get("https://app.everifin.com/", timeout=5)

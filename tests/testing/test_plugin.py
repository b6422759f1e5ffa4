"""The fixtures for a site's tests."""

import subprocess
import sys

import pytest
import requests
from django.contrib.auth import get_user
from django.urls import include, path

from everifin_django.models import BankToken
from everifin_django.testing.adapter import NetworkRefusedError

urlpatterns = [path("bank/", include("everifin_django.urls"))]


def test_loading_it_imports_neither_django_nor_the_app():
    """pytest loads it in every project that has the package installed."""
    script = "import sys, everifin_django.testing.plugin; print('django' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


class TestEverifin:
    def test_it_stands_where_the_settings_say(self, settings, request):
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
    def test_it_connects_who_is_logged_in(self, everifin_connect, admin_client, admin_user):
        response = everifin_connect(admin_client, next="/accounts/")
        assert response["Location"] == "/accounts/"
        assert BankToken.objects.get().user == admin_user
        assert admin_client.get("/accounts/").status_code == 200

    def test_it_takes_another_person_at_everifin(self, everifin, everifin_connect, admin_client):
        everifin_connect(admin_client, "bob")
        assert BankToken.objects.get().subject == everifin.user("bob").sub

    def test_it_logs_a_visitor_in(self, everifin_connect, client):
        everifin_connect(client, door="login")
        assert get_user(client).is_authenticated

    def test_an_error_of_the_site_is_seen_in_the_answer(
        self, everifin, everifin_connect, admin_client
    ):
        everifin.faults.add("token", status=500)
        assert everifin_connect(admin_client).status_code == 503

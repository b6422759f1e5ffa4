"""What ends a grant although nobody pressed a button."""

from typing import Any

import pytest
from django.contrib import auth
from django.contrib.auth.signals import user_logged_out
from django.contrib.auth.views import LogoutView
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models.deletion import Collector
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import include, path

from everifin_django.connections import grants
from everifin_django.models import BankToken, PendingRevocation
from tests.support.grants import refresh_again


def own_logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return HttpResponse()


urlpatterns = [
    path("logout/", LogoutView.as_view(next_page="/")),
    path("own-logout/", own_logout),
    path("everifin/", include("everifin_django.urls")),
]

pytestmark = pytest.mark.django_db


@pytest.fixture
def user(django_user_model):
    return django_user_model.objects.create_user("ann", password="a password")


@pytest.fixture
def browser(client, user):
    client.force_login(user)
    return client


@pytest.fixture
def connected(everifin_connect, browser):
    everifin_connect(browser)
    return browser


@pytest.fixture
def proxy(django_user_model):
    """The user model under another name, as many an admin has it."""
    meta = type("Meta", (), {"proxy": True, "app_label": "auth"})
    name = "Person"
    made: Any = type(name, (django_user_model,), {"__module__": __name__, "Meta": meta})
    yield made
    made._meta.apps.all_models["auth"].pop(name.lower())
    made._meta.apps.clear_cache()


class TestDeletion:
    @pytest.fixture(autouse=True)
    def token(self, connected):
        return BankToken.objects.get().refresh_ciphertext

    @pytest.mark.parametrize(
        "delete",
        [
            lambda user: user.delete(),
            lambda user: type(user).objects.all().delete(),
            lambda user: user.bank_token.delete(),
            lambda user: BankToken.objects.filter(user=user).delete(),
        ],
        ids=["user", "users", "connection", "connections"],
    )
    def test_the_live_grant_goes_to_the_outbox_and_ends(self, everifin, user, token, delete):
        delete(user)
        assert not BankToken.objects.exists()
        assert PendingRevocation.objects.get().refresh_ciphertext == token
        assert everifin.calls["logout"] == 0
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 0
        assert not PendingRevocation.objects.exists()

    def test_no_key_is_needed(self, user, settings):
        settings.EVERIFIN_ENCRYPTION_KEYS = []
        user.delete()
        assert PendingRevocation.objects.exists()

    def test_a_connection_that_is_ended_leaves_nothing_behind(self, connected, user):
        connected.post("/everifin/disconnect/")
        user.delete()
        assert not PendingRevocation.objects.exists()

    @pytest.mark.parametrize(
        "delete", [lambda row: row.delete(), lambda row: row.user.delete()], ids=["row", "user"]
    )
    def test_f27_what_was_refreshed_since_it_was_read_goes_to_the_outbox(
        self, everifin, user, token, delete
    ):
        read_before = BankToken.objects.select_related("user").get()
        refresh_again(user)
        delete(read_before)
        assert PendingRevocation.objects.get().refresh_ciphertext != token
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 0

    def test_f27_what_is_refreshed_after_the_rows_were_collected_goes_to_the_outbox(
        self, everifin, user, token
    ):
        collector = Collector(using=DEFAULT_DB_ALIAS)
        collector.collect([user])
        refresh_again(user)
        collector.delete()
        assert PendingRevocation.objects.get().refresh_ciphertext != token
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 0

    def test_f27_a_connection_made_again_since_it_was_read_ends(
        self, everifin, everifin_connect, connected, token
    ):
        read_before = BankToken.objects.get()
        everifin_connect(connected)
        read_before.delete()
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 0

    def test_f27_what_was_ended_since_it_was_read_is_not_listed_twice(self, everifin, user):
        read_before = BankToken.objects.get()
        assert grants.disconnect(user)
        read_before.delete()
        assert not PendingRevocation.objects.exists()
        assert not BankToken.objects.exists()


class TestDeactivation:
    def test_it_ends_the_connection(self, everifin, connected, user):
        user.is_active = False
        user.save()
        assert BankToken.objects.get().status == "disconnected"
        assert everifin.live_sessions("alice") == 0

    def test_a_proxy_of_the_user_model_counts(self, everifin, connected, user, proxy):
        person = proxy.objects.get()
        person.is_active = False
        person.save()
        assert everifin.live_sessions("alice") == 0

    def test_in_a_transaction_everifin_hears_of_it_after_the_commit(
        self, everifin, connected, user, django_capture_on_commit_callbacks
    ):
        with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
            user.is_active = False
            user.save()
            assert everifin.calls["logout"] == 0
        assert everifin.live_sessions("alice") == 0

    @pytest.mark.parametrize("is_raw", [True, False])
    def test_other_saves_change_nothing(self, everifin, connected, user, is_raw):
        if is_raw:
            user.is_active = False
            user.save_base(raw=True)
        else:
            user.save()
        assert BankToken.objects.get().status == "active"

    def test_who_is_made_inactive_costs_no_query(
        self, django_user_model, django_assert_num_queries
    ):
        with django_assert_num_queries(1):
            django_user_model(username="new", is_active=False).save()


class TestDjangosOwnLogout:
    @pytest.fixture(params=["view", "function"])
    def log_out(self, request, settings):
        """Both ways a site has that does not use ours."""
        settings.ROOT_URLCONF = "tests.test_receivers"
        path = {"view": "/logout/", "function": "/own-logout/"}[request.param]
        return lambda client: client.post(path)

    def test_who_logged_in_with_everifin_logs_out_of_it(
        self, everifin, everifin_connect, client, log_out
    ):
        everifin_connect(client, view="login")
        log_out(client)
        assert client.session.is_empty()
        assert BankToken.objects.get().status == "disconnected"
        assert everifin.live_sessions("alice") == 0

    def test_so_does_a_site_with_a_backend_of_its_own(
        self, everifin, everifin_connect, client, log_out, settings
    ):
        settings.AUTHENTICATION_BACKENDS = ["tests.test_backends.Ours"]
        everifin_connect(client, view="login")
        log_out(client)
        assert everifin.live_sessions("alice") == 0

    def test_who_logged_in_by_password_stays_connected(self, everifin, connected, log_out):
        log_out(connected)
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions("alice") == 1

    def test_everifin_may_be_down(self, everifin, everifin_connect, client, log_out):
        everifin_connect(client, view="login")
        everifin.faults.add("logout", lost="before")
        log_out(client)
        assert client.session.is_empty()
        assert PendingRevocation.objects.count() == 1

    def test_a_visitor_may_log_out(self, everifin, client, log_out):
        log_out(client)
        assert not everifin.calls


class TestOtherSenders:
    """Apps for tokens and APIs send Django's signal with requests of their own kind."""

    @pytest.mark.parametrize("request_", [None, HttpRequest()], ids=["none", "no session"])
    def test_a_logout_without_a_session_is_not_ours(self, everifin, connected, user, request_):
        user_logged_out.send(type(user), request=request_, user=user)
        assert BankToken.objects.get().status == "active"

    def test_a_session_without_a_backend_is_not_ours(self, everifin, connected, user):
        request = HttpRequest()
        request.session = Client().session
        user_logged_out.send(type(user), request=request, user=user)
        assert BankToken.objects.get().status == "active"


def test_no_other_model_of_the_site_is_listened_to(django_user_model):
    from django.contrib.auth.models import Group
    from django.contrib.sessions.models import Session
    from django.db.models.signals import post_save

    from everifin_django.receivers import disconnect_inactive_user

    def is_heard(model):
        found = post_save._live_receivers(model)
        return any(disconnect_inactive_user in each for each in found)

    assert is_heard(django_user_model)
    assert not any(map(is_heard, (Group, Session, BankToken)))

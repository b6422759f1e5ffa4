"""Logging out ends what this browser's login began, and nothing else."""

import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib import auth
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import OperationalError, connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import include, path

from everifin_django.connections import grants, key_rotation, login_sessions
from everifin_django.connections.refresh import Attempt
from everifin_django.models import BankToken, LoginSession, PendingRevocation
from everifin_django.testing.fake import redirect_target

MODEL = "django.contrib.auth.backends.ModelBackend"
LOGOUT = "/everifin/logout/"
OWN_LOGOUT = "/own-logout/"

pytestmark = pytest.mark.django_db


def own_logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    if "fail" in request.GET:
        raise RuntimeError
    return HttpResponse()


def act_as(request: Any, name: str) -> HttpResponse:
    """As django-hijack does: log in as somebody else, who is marked by a later middleware."""
    user = auth.get_user_model().objects.get(username=name)
    auth.login(request, user, backend=MODEL)
    return HttpResponse()


urlpatterns = [
    path("own-logout/", own_logout),
    path("act-as/<name>/", act_as),
    path("everifin/", include("everifin_django.urls")),
]


class MarkImpersonation:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request.user.is_hijacked = True
        return self.get_response(request)


@pytest.fixture(autouse=True)
def urls(settings):
    settings.ROOT_URLCONF = __name__


@pytest.fixture
def browsers(everifin_connect):
    """Two browsers in which the same person has logged in with Everifin, one after the other."""
    first, second = Client(), Client()
    everifin_connect(first, view="login")
    everifin_connect(second, view="login")
    return first, second


def is_logged_in(client: Client) -> bool:
    return client.get("/everifin/connect/").status_code == 200


def sid_of(client: Client) -> str:
    record = LoginSession.objects.get(pk=client.session["everifin_login"][0])
    return record.sid


def query_of(response: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(redirect_target(response)).query)


class TestTwoBrowsers:
    def test_a_second_login_ends_nothing_of_the_first(self, browsers, everifin):
        call_command("everifin_revoke_pending")
        assert not PendingRevocation.objects.exists()
        assert everifin.live_sessions("alice") == 2
        assert all(map(is_logged_in, browsers))

    def test_the_grant_of_the_first_moves_to_its_record_encrypted_anew(self, browsers):
        first, second = browsers
        connection_row = BankToken.objects.get()
        assert connection_row.sid == sid_of(second)
        record = LoginSession.objects.get(sid=sid_of(first))
        assert record.open_token("refresh") is not None
        assert LoginSession.objects.get(sid=sid_of(second)).refresh_ciphertext == ""

    @pytest.mark.parametrize("path", [LOGOUT, OWN_LOGOUT])
    @pytest.mark.parametrize("leaver", [0, 1])
    def test_one_leaves_and_the_other_goes_on(self, browsers, everifin, path, leaver):
        sids = [sid_of(browser) for browser in browsers]
        browsers[leaver].post(path)
        assert [is_logged_in(browser) for browser in browsers] == [leaver == 1, leaver == 0]
        row = BankToken.objects.get()
        assert (row.status, row.sid) == ("active", sids[1 - leaver])
        assert everifin.live_sessions("alice") == 1
        assert grants.get_access_token(row.user)
        browsers[1 - leaver].post(path)
        assert everifin.live_sessions("alice") == 0
        assert BankToken.objects.get().status == "disconnected"
        assert not LoginSession.objects.exists()
        assert not PendingRevocation.objects.exists()

    @pytest.mark.parametrize("leaver", [0, 1])
    def test_the_hint_is_the_id_token_of_this_browser(self, browsers, settings, everifin, leaver):
        settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = "https://testserver/everifin/callback/"
        record = LoginSession.objects.get(sid=sid_of(browsers[leaver]))
        id_token = record.open_token("id")
        assert id_token is not None
        response = browsers[leaver].post(LOGOUT)
        assert query_of(response)["id_token_hint"] == [id_token.reveal()]

    def test_a_grant_of_another_identity_is_never_taken_instead(self, everifin, everifin_connect):
        first, second = Client(), Client()
        everifin_connect(first, view="login")
        user = BankToken.objects.get().user
        from everifin_django.connections import link

        link(user, everifin.issuer, everifin.user("bob").sub)
        everifin_connect(second, "bob", view="login")
        first.post(LOGOUT)
        assert BankToken.objects.get().status == "disconnected"
        assert is_logged_in(second)
        assert everifin.live_sessions("bob") == 1

    def test_where_no_sid_is_known_each_still_ends_its_own(self, everifin, everifin_connect):
        def without_sid(headers: Any, claims: Any) -> Any:
            return headers, {**claims, "sid": None}

        everifin.id_token_hook = without_sid
        first, second = Client(), Client()
        for browser in (first, second):
            everifin_connect(browser, view="login")
            BankToken.objects.update(sid="")
            LoginSession.objects.update(sid="")
        first.post(LOGOUT)
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions("alice") == 1
        second.post(LOGOUT)
        assert everifin.live_sessions("alice") == 0


class TestRefreshOfAReplacedGrant:
    """The answer comes after a login elsewhere has taken the connection over."""

    def test_the_record_of_the_browser_gets_the_new_token(self, everifin, everifin_connect):
        first, second = Client(), Client()
        everifin_connect(first, view="login")
        attempt = Attempt(BankToken.objects.select_related("user").get(), time.monotonic() + 10)
        assert attempt.claim()
        granted = attempt.send()
        everifin_connect(second, view="login")
        attempt.store(granted)
        record = LoginSession.objects.get(sid=sid_of(first))
        assert record.open_token("refresh") == granted.refresh
        first.post(LOGOUT)
        assert everifin.live_sessions("alice") == 1

    def test_so_does_the_outbox(self, everifin, everifin_connect, connected, client):
        attempt = Attempt(connected, time.monotonic() + 10)
        assert attempt.claim()
        granted = attempt.send()
        everifin_connect(client)
        attempt.store(granted)
        assert PendingRevocation.objects.get().open_token() == granted.refresh
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 1


class TestTheSitesOwnLogout:
    def test_the_receiver_asks_nothing(self, browsers):
        first, _ = browsers
        request = first.get("/everifin/connect/").wsgi_request
        request.session["everifin_login"]
        with CaptureQueriesContext(connection) as queries:
            auth.user_logged_out.send(sender=None, request=request, user=request.user)
        assert not queries.captured_queries
        assert request.everifin_logged_out == request.session["everifin_login"]

    @pytest.mark.django_db(transaction=True)
    def test_a_view_that_fails_and_is_rolled_back_ends_it_all_the_same(
        self, monkeypatch, browsers, everifin
    ):
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
        first, _ = browsers
        first.raise_request_exception = False
        assert first.post(f"{OWN_LOGOUT}?fail").status_code == 500
        assert not is_logged_in(first)
        assert everifin.live_sessions("alice") == 1

    def test_who_logged_in_by_password_keeps_the_connection(self, connected, client, everifin):
        client.post(OWN_LOGOUT)
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions() == 1

    @pytest.mark.parametrize("request_or_not", [None, HttpRequest()])
    def test_a_logout_without_a_session_is_not_stopped(self, request_or_not):
        auth.user_logged_out.send(sender=None, request=request_or_not, user=None)


class TestImpersonation:
    @pytest.fixture
    def staff(self, client, browsers, django_user_model):
        """A member of staff who acts as the customer."""
        customer = BankToken.objects.get().user
        client.force_login(django_user_model.objects.create_user("staff"), backend=MODEL)
        client.get(f"/act-as/{customer.username}/")
        return client

    def test_the_sites_logout_leaves_the_customer_connected(self, staff, browsers):
        staff.post(OWN_LOGOUT)
        assert BankToken.objects.get().status == "active"
        assert all(map(is_logged_in, browsers))

    def test_ours_too(self, staff, browsers, settings):
        mark = "tests.web.test_logout.MarkImpersonation"
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, mark]
        same_browser = Client()
        same_browser.cookies = staff.cookies
        same_browser.post(LOGOUT)
        assert BankToken.objects.get().status == "active"

    def test_a_login_of_the_staffs_own_is_what_ends(self, everifin, everifin_connect, browsers):
        everifin_connect(staff := Client(), "bob", view="login")
        customer = BankToken.objects.exclude(user__pk=staff.session["_auth_user_id"]).get().user
        staff.get(f"/act-as/{customer.username}/")
        staff.post(OWN_LOGOUT)
        assert BankToken.objects.get(user=customer).status == "active"


class TestOurLogout:
    def test_the_browser_is_told_to_forget(self, browsers):
        response = browsers[0].post(LOGOUT)
        assert response["Clear-Site-Data"] == '"cache", "storage"'
        assert "no-store" in response["Cache-Control"]

    @pytest.mark.parametrize(
        ("given", "led_to"), [("/bye/", "/bye/"), ("https://evil.example/", "/"), ("", "/")]
    )
    def test_next_is_honoured(self, browsers, given, led_to):
        assert browsers[0].post(LOGOUT, {"next": given})["Location"] == led_to

    def test_a_database_that_fails_after_the_flush_leaves_nobody_logged_in(self, browsers, caplog):
        def fail(execute: Any, sql: str, *args: Any) -> Any:
            if "everifin_django_loginsession" in sql:
                raise OperationalError("Lock wait timeout exceeded.")
            return execute(sql, *args)

        with connection.execute_wrapper(fail):
            assert browsers[0].post(LOGOUT).status_code == 302
        assert not is_logged_in(browsers[0])
        assert "A logout was not told to Everifin: OperationalError." in caplog.text

    def test_a_login_that_everifin_has_ended_before_leads_nowhere_else(self, browsers, settings):
        settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = "https://testserver/everifin/callback/"
        LoginSession.objects.all().delete()
        assert browsers[0].post(LOGOUT)["Location"] == "/"


class TestOfflineAccess:
    @pytest.fixture(autouse=True)
    def scopes(self, settings):
        settings.EVERIFIN_SCOPES = "openid ais offline_access"

    @pytest.mark.parametrize(("ends", "status"), [(True, "disconnected"), (False, "active")])
    def test_logging_out_ends_the_connection_unless_the_site_says_no(
        self, everifin_connect, settings, ends, status
    ):
        settings.EVERIFIN_LOGOUT_ENDS_CONNECTION = ends
        everifin_connect(client := Client(), view="login")
        client.post(LOGOUT)
        assert not is_logged_in(client)
        assert BankToken.objects.get().status == status

    def test_a_password_users_connection_stays_too(self, connected, client, settings):
        settings.EVERIFIN_LOGOUT_ENDS_CONNECTION = False
        client.post(LOGOUT)
        assert BankToken.objects.get().status == "active"

    def test_the_browser_is_led_to_everifins_logout_page(self, everifin_connect, settings):
        settings.EVERIFIN_LOGOUT_ENDS_CONNECTION = False
        settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = "https://testserver/everifin/callback/"
        everifin_connect(client := Client(), view="login")
        assert "id_token_hint" in query_of(client.post(LOGOUT))


class TestConnectingInABrowserWithARecord:
    def test_the_record_is_brought_up_to_date(self, everifin, everifin_connect):
        everifin_connect(client := Client(), view="login")
        everifin_connect(client)
        row = BankToken.objects.get()
        assert sid_of(client) == row.sid
        assert row.login_session_id == LoginSession.objects.get().pk
        # What was replaced belongs to no browser any more.
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 1
        client.post(LOGOUT)
        assert everifin.live_sessions("alice") == 0

    def test_after_a_disconnect_a_login_keeps_its_grant_in_its_record(
        self, everifin, everifin_connect
    ):
        everifin_connect(client := Client(), view="login")
        client.post("/everifin/disconnect/")
        assert is_logged_in(client)
        client.post(LOGOUT)
        everifin_connect(client, view="login")
        assert LoginSession.objects.get().open_token("refresh") is not None
        assert BankToken.objects.get().refresh_ciphertext == ""
        assert everifin.live_sessions("alice") == 1
        client.post(LOGOUT)
        assert everifin.live_sessions("alice") == 0

    def test_what_everifin_says_of_a_disconnect_logs_nobody_out(
        self, everifin, everifin_connect, settings
    ):
        settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
        everifin_connect(client := Client(), view="login")
        sid = sid_of(client)
        client.post("/everifin/disconnect/")
        token = everifin.logout_token(sid=sid, username="alice")
        said = Client().post("/everifin/backchannel-logout/", {"logout_token": token})
        assert said.status_code == 200
        assert is_logged_in(client)


class TestEndOfRecords:
    def test_a_session_that_expired_ends_its_grant(self, browsers, everifin):
        first, _ = browsers
        Session.objects.filter(pk=first.session.session_key).delete()
        LoginSession.objects.update(check_after="2020-01-01T00:00Z")
        call_command("everifin_revoke_pending")
        assert LoginSession.objects.count() == 1
        assert everifin.live_sessions("alice") == 1

    def test_the_connection_outlives_the_session_that_it_came_from(self, browsers, everifin):
        _, second = browsers
        Session.objects.filter(pk=second.session.session_key).delete()
        LoginSession.objects.update(check_after="2020-01-01T00:00Z")
        call_command("everifin_revoke_pending")
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions("alice") == 2

    def test_nothing_grows_without_cron(self, everifin_connect):
        for _ in range(40):
            everifin_connect(Client(), view="login")
            Session.objects.all().delete()
            LoginSession.objects.update(check_after="2020-01-01T00:00Z")
        assert LoginSession.objects.count() < 36

    def test_a_deleted_user_leaves_no_live_grant(self, browsers, everifin):
        BankToken.objects.get().user.delete()
        assert PendingRevocation.objects.count() == 2
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 0

    def test_neither_does_one_who_is_deactivated(self, browsers, everifin):
        user = BankToken.objects.get().user
        user.is_active = False
        user.save()
        call_command("everifin_revoke_pending")
        assert everifin.live_sessions("alice") == 0
        assert not LoginSession.objects.exists()

    def test_nor_by_a_bulk_update(self, browsers, everifin, django_user_model):
        django_user_model.objects.update(is_active=False)
        call_command("everifin_revoke_pending")
        assert BankToken.objects.get().end_reason == "user_inactive"
        assert everifin.live_sessions("alice") == 0
        assert not LoginSession.objects.exists()


class TestKeys:
    def test_a_new_key_takes_over_what_records_hold(self, browsers, settings):
        first, second = browsers
        old = settings.EVERIFIN_ENCRYPTION_KEYS
        settings.EVERIFIN_ENCRYPTION_KEYS = ["new:" + "A" * 43 + "=", *old]
        assert key_rotation.keys_in_use()["test"] > 4
        call_command("everifin_rotate_keys")
        assert set(key_rotation.keys_in_use()) == {"new"}
        settings.EVERIFIN_ENCRYPTION_KEYS = settings.EVERIFIN_ENCRYPTION_KEYS[:1]
        for browser in (first, second):
            record = LoginSession.objects.get(sid=sid_of(browser))
            assert login_sessions.session_keys(record) == [browser.session.session_key]
            browser.post(LOGOUT)
        assert not PendingRevocation.objects.exists()


def test_without_the_login_backend_nothing_is_asked(settings, connected, client):
    settings.AUTHENTICATION_BACKENDS = [MODEL]
    with CaptureQueriesContext(connection) as queries:
        client.get("/everifin/connect/")
        client.post(OWN_LOGOUT)
    assert not [one for one in queries if "loginsession" in one["sql"]]

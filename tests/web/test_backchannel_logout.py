"""Back-channel logout: Everifin ends sessions of this site, and nobody else can."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from everifin_django.connections import grants, login_sessions
from everifin_django.connections.refresh import Attempt
from everifin_django.exceptions import TokenMissingError
from everifin_django.models import BankToken, LoginSession, PendingRevocation
from everifin_django.secret import Secret
from everifin_django.signals import everifin_disconnected
from everifin_django.testing.factories import BankTokenFactory, LoginSessionFactory
from everifin_django.testing.fake import redirect_target
from everifin_django.web import backchannel_logout

pytestmark = pytest.mark.django_db

PATH = "/everifin/backchannel-logout/"
EVENT = "http://schemas.openid.net/event/backchannel-logout"


@pytest.fixture(autouse=True)
def switched_on(settings):
    settings.EVERIFIN_BACKCHANNEL_LOGOUT = True


@pytest.fixture
def logged_in(client, everifin, everifin_connect) -> BankToken:
    """The connection of somebody whom ``client`` has logged in with Everifin."""
    everifin_connect(client, view="login")
    everifin.calls.clear()
    return BankToken.objects.select_related("user").get()


def is_logged_in(client: Client) -> bool:
    return client.get("/everifin/connect/").status_code == 200  # else a redirect to the login


def say(token: str | list[str], **more: Any) -> Any:
    """Everifin's own request: no cookies, no CSRF token."""
    everifin = Client(enforce_csrf_checks=True)
    return everifin.post(PATH, {"logout_token": token}, **more)


def test_a_session_that_ended_at_everifin_ends_here(client, everifin, logged_in):
    response = say(everifin.logout_token(sid=logged_in.sid))
    assert response.status_code == 200
    assert response.content == b""
    assert "no-store" in response["Cache-Control"]
    assert not is_logged_in(client)
    assert not LoginSession.objects.exists()


def test_its_tokens_go_without_a_word_to_everifin(
    everifin, logged_in, django_capture_on_commit_callbacks
):
    heard = []

    def hear(**kwargs: Any) -> None:
        heard.append(kwargs["connection_id"])

    everifin_disconnected.connect(hear)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            say(everifin.logout_token(sid=logged_in.sid))
    finally:
        everifin_disconnected.disconnect(hear)
    row = BankToken.objects.get()
    assert row.status == BankToken.Status.DISCONNECTED
    assert row.access_ciphertext + row.refresh_ciphertext + row.id_ciphertext == ""
    assert not PendingRevocation.objects.exists()
    assert everifin.calls["logout"] == everifin.calls["token"] == 0
    assert heard == [row.pk]
    with pytest.raises(TokenMissingError):
        grants.get_access_token(row.user)


def test_a_user_who_logged_out_everywhere_is_logged_out_of_every_browser(
    client, everifin, everifin_connect, logged_in
):
    another = Client()
    everifin_connect(another, view="login")
    bob = Client()
    everifin_connect(bob, username="bob", view="login")
    assert LoginSession.objects.count() == 3
    assert say(everifin.logout_token(username="alice")).status_code == 200
    assert [is_logged_in(one) for one in (client, another, bob)] == [False, False, True]
    assert BankToken.objects.get(status="active").user.pk == int(bob.session["_auth_user_id"])


def test_another_session_of_the_user_stays(client, everifin, everifin_connect, logged_in):
    another = Client()
    everifin_connect(another, view="login")
    newer = BankToken.objects.get().sid
    assert say(everifin.logout_token(sid=logged_in.sid)).status_code == 200
    assert [is_logged_in(one) for one in (client, another)] == [False, True]
    assert BankToken.objects.get().status == "active"
    assert say(everifin.logout_token(sid=newer, username="alice")).status_code == 200
    assert not is_logged_in(another)


def test_who_logged_in_by_password_loses_the_connection_only(connected, client, everifin):
    assert say(everifin.logout_token(sid=connected.sid)).status_code == 200
    assert is_logged_in(client)
    assert BankToken.objects.get().status == "disconnected"


def test_who_disconnects_stays_logged_in_though_everifin_tells_of_the_end(
    client, everifin, everifin_connect, logged_in
):
    another = Client()
    everifin_connect(another, view="login")
    newer = BankToken.objects.get().sid
    client.post("/everifin/disconnect/")
    assert say(everifin.logout_token(sid=newer)).status_code == 200
    assert [is_logged_in(one) for one in (client, another)] == [True, True]
    # What the other browser has at Everifin is not what was ended.
    assert say(everifin.logout_token(sid=logged_in.sid)).status_code == 200
    assert [is_logged_in(one) for one in (client, another)] == [False, True]


def test_a_grant_for_when_the_user_is_away_stays(client, everifin, logged_in):
    BankToken.objects.update(scope="openid ais offline_access")
    assert say(everifin.logout_token(sid=logged_in.sid)).status_code == 200
    assert not is_logged_in(client)
    assert BankToken.objects.get().status == "active"


def test_a_refresh_in_flight_loses_and_its_new_token_is_ended(everifin, logged_in):
    attempt = Attempt(logged_in, time.monotonic() + 10)
    assert attempt.claim()
    granted = attempt.send()
    say(everifin.logout_token(sid=logged_in.sid))
    with pytest.raises(TokenMissingError):
        attempt.store(granted)
    assert BankToken.objects.get().refresh_ciphertext == ""
    assert everifin.live_sessions() == 0


def test_a_session_nobody_here_has_is_no_error(everifin, logged_in, client):
    assert say(everifin.logout_token(sid="another site's")).status_code == 200
    assert is_logged_in(client)


@pytest.mark.parametrize(
    ("claims", "headers"),
    [
        ({"iss": "https://evil.test/auth/realms/everifin_app"}, {}),
        ({"iss": None}, {}),
        ({"aud": "another"}, {}),
        ({"aud": ["everifin-sandbox", "another"]}, {}),
        ({"aud": None}, {}),
        ({"iat": None}, {}),
        ({"iat": 1}, {}),
        ({"iat": "now"}, {}),
        ({"exp": 1}, {}),
        ({"jti": None}, {}),
        ({"jti": ""}, {}),
        ({"jti": 5}, {}),
        ({"jti": "x" * 256}, {}),
        ({"jti": "a\0"}, {}),
        ({"sid": None}, {}),
        ({"sid": "a\0"}, {}),
        ({"sub": "a\0"}, {}),
        ({"sid": 5}, {}),
        ({"sid": ""}, {}),
        ({"sub": 5}, {}),
        ({"sub": ""}, {}),
        ({"nonce": "n"}, {}),
        ({"events": None}, {}),
        ({"events": {}}, {}),
        ({"events": []}, {}),
        ({"events": {"another": {}}}, {}),
        ({"events": {EVENT: "x"}}, {}),
        ({"events": {EVENT: None}}, {}),
        ({}, {"typ": "at+jwt"}),
        ({"typ": "ID"}, {"typ": "JWT"}),
        ({}, {"crit": ["exp"]}),
        ({}, {"kid": "unknown"}),
    ],
)
def test_a28_what_is_not_right_in_every_part_ends_nothing(
    client, everifin, logged_in, claims, headers, caplog
):
    said = {"sid": logged_in.sid, **claims}
    response = say(everifin.logout_token(headers=headers, **said))
    assert response.status_code == 400
    assert response.content == b""
    assert is_logged_in(client)
    assert BankToken.objects.get().status == "active"
    assert "A logout from Everifin was refused" in caplog.text
    assert logged_in.sid not in caplog.text


@pytest.mark.parametrize(
    ("claims", "headers"),
    [
        ({}, {"typ": "JWT"}),
        ({}, {"typ": "logout+jwt"}),
        ({"typ": "Logout"}, {"typ": "JWT"}),
        ({"exp": None}, {}),
        ({"exp": None}, {"typ": "JWT"}),
    ],
)
def test_what_providers_leave_out_is_no_reason_to_refuse(
    client, everifin, logged_in, claims, headers
):
    """Dex and the OpenID conformance suite mark no type; Keycloak up to about 22 has no ``exp``."""
    said = {"sid": logged_in.sid, **claims}
    assert say(everifin.logout_token(headers=headers, **said)).status_code == 200
    assert not is_logged_in(client)


def test_a28_a_logout_token_of_two_minutes_ago_is_too_old(client, everifin, logged_in):
    sid, now = logged_in.sid, int(time.time())
    assert say(everifin.logout_token(sid=sid, iat=now - 130, exp=now + 60)).status_code == 400
    assert say(everifin.logout_token(sid=sid, iat=now - 100, exp=now + 60)).status_code == 200


def test_a28_it_serves_once(client, everifin, everifin_connect, logged_in):
    token = everifin.logout_token(username="alice")
    assert say(token).status_code == 200
    everifin_connect(client, view="login")
    assert say(token).status_code == 400
    assert is_logged_in(client)


def test_a28_another_kind_of_token_is_none(client, everifin, logged_in):
    for kind in ("id", "access"):
        token = logged_in.open_token(kind)
        assert token is not None
        assert say(token.reveal()).status_code == 400
    assert is_logged_in(client)


@pytest.mark.parametrize("header", ["JWT", None])
def test_keycloak_marks_the_token_in_its_payload(client, everifin, logged_in, header):
    token = everifin.logout_token(sid=logged_in.sid, typ="Logout", headers={"typ": header})
    assert say(token).status_code == 200
    assert not is_logged_in(client)


def test_a_token_that_is_not_signed_by_everifin_ends_nothing(client, everifin, logged_in):
    head, payload, signature = everifin.logout_token(sid=logged_in.sid).split(".")
    assert say(f"{head}.{payload}.{signature[::-1]}").status_code == 400
    assert is_logged_in(client)


def test_without_the_keys_nothing_is_believed(client, everifin, logged_in):
    from everifin_django.oauth.jwks import clear_signing_keys

    clear_signing_keys()
    everifin.faults.add("certs", status=503)
    assert say(everifin.logout_token(sid=logged_in.sid)).status_code == 400
    assert is_logged_in(client)


@pytest.mark.parametrize("token", ["", "a.b.c", "x" * 40_000, ["a", "b"], []])
def test_what_is_no_token_ends_nothing(client, logged_in, token):
    assert say(token).status_code == 400
    assert is_logged_in(client)


def test_two_tokens_are_none(client, everifin, logged_in):
    token = everifin.logout_token(sid=logged_in.sid)
    assert say([token, token]).status_code == 400
    assert is_logged_in(client)


@pytest.mark.parametrize("method", ["get", "head", "put", "delete"])
def test_other_methods_are_not_allowed(client, method):
    assert getattr(client, method)(PATH).status_code == 405


class TestSwitchedOff:
    @pytest.fixture(autouse=True)
    def off(self, settings):
        settings.EVERIFIN_BACKCHANNEL_LOGOUT = False

    def test_there_is_no_door(self, client, everifin, logged_in):
        assert say(everifin.logout_token(sid=logged_in.sid)).status_code == 404
        assert is_logged_in(client)

    def test_a_login_has_its_record_all_the_same(self, logged_in):
        assert LoginSession.objects.exists()


def keys_of(record: LoginSession) -> list[str]:
    return login_sessions.session_keys(record)


class TestRecords:
    def test_a_login_has_one_bound_to_its_session(self, client, logged_in):
        record = LoginSession.objects.get()
        assert keys_of(record) == [client.session.session_key]
        assert (record.sid, record.user_id) == (logged_in.sid, logged_in.user_id)
        assert record.identity_digest == logged_in.identity_digest
        assert record.refresh_ciphertext == ""
        assert client.session.session_key not in str(LoginSession.objects.values().get())
        assert str(record) == str(record.pk)

    def test_a_connection_made_by_a_password_user_has_none(self, connected):
        assert not LoginSession.objects.exists()

    def test_a_hundred_earlier_logins_cost_a_login_nothing(
        self, everifin, everifin_connect, logged_in
    ):
        def queries_of_a_login() -> int:
            with CaptureQueriesContext(connection) as queries:
                everifin_connect(Client(), view="login")
            return len(queries)

        few = queries_of_a_login()
        LoginSessionFactory.create_batch(
            100, user=logged_in.user, identity_digest=logged_in.identity_digest
        )
        assert queries_of_a_login() == few

    def test_logins_are_found_and_never_looked_through(
        self, client, everifin, logged_in, django_assert_max_num_queries
    ):
        LoginSessionFactory.create_batch(50)
        BankTokenFactory.create_batch(5)
        token = Secret(everifin.logout_token(sid=logged_in.sid))
        with django_assert_max_num_queries(25):
            assert backchannel_logout.end_sessions(token) == 1


CHANGES_OF_THE_KEY = {
    "a new password": "/change-password/",
    "a cycled key": "/cycle/",
    "a cycled key, async": "/acycle/",
}


class TestChangedSessionKeys:
    @pytest.fixture(autouse=True)
    def urls(self, settings):
        settings.ROOT_URLCONF = "tests.web.session_views"

    @pytest.mark.parametrize("path", CHANGES_OF_THE_KEY.values(), ids=CHANGES_OF_THE_KEY)
    def test_the_session_is_ended_all_the_same(self, client, everifin, logged_in, path):
        before = client.session.session_key
        assert client.get(path).status_code == 200
        assert client.session.session_key != before
        assert set(keys_of(LoginSession.objects.get())) == {before, client.session.session_key}
        assert say(everifin.logout_token(sid=logged_in.sid)).status_code == 200
        assert not is_logged_in(client)

    def test_a_rotated_secret_key_loses_nothing(self, client, everifin, logged_in, settings):
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "another"
        assert is_logged_in(client)
        say(everifin.logout_token(sid=logged_in.sid))
        assert not is_logged_in(client)

    def test_a_record_that_ended_meanwhile_ends_the_session(self, client, logged_in):
        LoginSession.objects.all().delete()
        client.get("/cycle/")
        assert not is_logged_in(client)

    def test_old_keys_that_the_store_no_longer_has_are_removed(self, client, logged_in):
        for _ in range(8):
            client.get("/cycle/")
        keys = keys_of(LoginSession.objects.get())
        assert client.session.session_key in keys
        assert len(keys) <= login_sessions.MAX_KEYS + 1

    def test_a_page_that_changes_nothing_costs_no_query(self, client, logged_in):
        with CaptureQueriesContext(connection) as queries:
            client.get("/look/")
        assert not [one for one in queries if "loginsession" in one["sql"]]

    def test_a_key_that_cannot_be_written_down_still_shows_the_page(
        self, client, logged_in, settings, caplog
    ):
        settings.EVERIFIN_ENCRYPTION_KEYS = ["other:" + "A" * 43 + "="]
        assert client.get("/cycle/").status_code == 200
        assert "A login could not be followed: UnknownKeyError." in caplog.text


class TestTwoThatMeet:
    """A logout at Everifin while a login is under way here."""

    @pytest.mark.parametrize("named", ["sid", "user"])
    def test_a_logout_between_exchange_and_login_ends_that_login(
        self, client, everifin, logged_in, named
    ):
        visitor = Client()
        start = visitor.post("/everifin/login/")
        url = everifin.authorize(redirect_target(start))

        def log_out(headers: Any, claims: Any) -> Any:
            who = {"sid": claims["sid"]} if named == "sid" else {"username": "alice"}
            assert say(everifin.logout_token(**who)).status_code == 200
            return headers, claims

        everifin.id_token_hook = log_out
        assert visitor.get(url).status_code == 400
        assert not is_logged_in(visitor)
        everifin.id_token_hook = None
        assert BankToken.objects.filter(status="active").count() == (named == "sid")

    def test_a_login_begun_after_the_logout_of_the_user_is_good(
        self, client, everifin, everifin_connect, logged_in
    ):
        assert say(everifin.logout_token(username="alice")).status_code == 200
        everifin_connect(client, view="login")
        assert is_logged_in(client)

    def test_a_token_that_met_a_database_fault_is_good_for_its_repeat(
        self, client, everifin, logged_in
    ):
        token = everifin.logout_token(sid=logged_in.sid)

        def fail(execute: Any, sql: str, *args: Any) -> Any:
            if sql.startswith("DELETE") and "loginsession" in sql:
                raise OperationalError("The database went away.")
            return execute(sql, *args)

        with connection.execute_wrapper(fail), pytest.raises(OperationalError):
            say(token)
        assert is_logged_in(client)
        assert say(token).status_code == 200
        assert not is_logged_in(client)


class TestWhatIsNamed:
    def test_a_login_without_a_sid_is_found_by_a_token_with_both(self, client, everifin, logged_in):
        LoginSession.objects.update(sid="")
        assert say(everifin.logout_token(sid=logged_in.sid, username="alice")).status_code == 200
        assert not is_logged_in(client)

    def test_a_login_with_another_sid_is_not(self, client, everifin, everifin_connect, logged_in):
        another = Client()
        everifin_connect(another, view="login")
        sid = BankToken.objects.get().sid
        assert say(everifin.logout_token(sid=sid, username="alice")).status_code == 200
        assert [is_logged_in(one) for one in (client, another)] == [True, False]

    def test_the_grant_of_the_other_browser_becomes_the_connection(
        self, client, everifin, everifin_connect, logged_in
    ):
        another = Client()
        everifin_connect(another, view="login")
        say(everifin.logout_token(sid=BankToken.objects.get().sid))
        row = BankToken.objects.get()
        assert (row.status, row.sid) == ("active", logged_in.sid)
        assert grants.get_access_token(row.user)

    @pytest.mark.parametrize("position", ["beside", "inside"])
    def test_offline_grants_end_if_everifin_says_so(self, client, everifin, logged_in, position):
        BankToken.objects.update(scope="openid ais offline_access")
        flag = {"revoke_offline_access": True}
        events = {EVENT: {}, **flag} if position == "beside" else {EVENT: flag}
        assert say(everifin.logout_token(sid=logged_in.sid, events=events)).status_code == 200
        assert BankToken.objects.get().status == "disconnected"

    def test_a_session_that_a_password_began_is_left_alone(self, connected, client, everifin):
        assert say(everifin.logout_token(username="alice")).status_code == 200
        assert is_logged_in(client)

"""The life of a user's tokens: stored, used, ended; and the bank API as that user."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.utils import timezone

from everifin_django.bank.client import EndUser
from everifin_django.connections import grants
from everifin_django.connections.ends import ON_PURPOSE
from everifin_django.connections.grants import Everifin, everifin_for
from everifin_django.encryption import active_key
from everifin_django.exceptions import (
    ConsentExpiredError,
    IdentityMismatchError,
    IdentityTakenError,
    LoginError,
    ScopeMissingError,
    TokenMissingError,
    UnavailableError,
    UnknownKeyError,
)
from everifin_django.models import BankToken, PendingRevocation, in_database_seconds
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from everifin_django.signals import everifin_connected, everifin_disconnected
from everifin_django.testing.factories import BankTokenFactory, UserFactory

pytestmark = pytest.mark.django_db

ALICE = Identity("https://idp.everifin.test/auth/realms/everifin_app", "alice")


def granted(**changes) -> TokenSet:
    now = timezone.now()
    grant = TokenSet(
        access=Secret("access"),
        refresh=Secret("refresh"),
        id=Secret("id"),
        scope="openid ais",
        sid="session-1",
        issued_at=now,
        expires_at=now + timedelta(minutes=5),
        refresh_expires_at=now + timedelta(minutes=30),
    )
    return replace(grant, **changes)


@pytest.fixture
def heard():
    """Give the signals that were sent, in their order."""
    events = []

    def hear(signal, **kwargs):
        events.append((signal, kwargs))

    for signal in (everifin_connected, everifin_disconnected):
        signal.connect(hear)
    yield events
    for signal in (everifin_connected, everifin_disconnected):
        signal.disconnect(hear)


class TestGetAccessToken:
    def test_a_fresh_token_costs_one_query(self, django_assert_num_queries):
        user = BankTokenFactory(access_token="access").user
        with django_assert_num_queries(1):
            access_token = grants.get_access_token(user)
        assert access_token.token == Secret("access")
        assert access_token.scopes == {"openid", "ais"}

    @pytest.mark.django_db(transaction=True)
    def test_a_token_that_is_being_refreshed_costs_two_queries_while_it_is_good(
        self, connected, age, django_assert_num_queries
    ):
        age(connected, seconds=270)
        BankToken.objects.update(lease_until=in_database_seconds(30))
        user = connected.user
        with django_assert_num_queries(2):
            assert grants.get_access_token(user).version == 1

    def test_who_never_connected_has_no_token(self):
        with pytest.raises(TokenMissingError):
            grants.get_access_token(UserFactory())

    def test_who_is_not_active_has_no_token(self):
        row = BankTokenFactory(user=UserFactory(is_active=False))
        with pytest.raises(TokenMissingError):
            grants.get_access_token(row.user)

    def test_an_active_connection_without_an_access_token_is_none(self):
        with pytest.raises(TokenMissingError, match=r"^The user has no connection to Everifin\.$"):
            grants.get_access_token(BankTokenFactory(access_token=None).user)

    def test_a_connection_that_ended_says_why(self):
        row = BankTokenFactory(status="needs_reconnect", last_error="consent_withdrawn")
        with pytest.raises(ConsentExpiredError) as caught:
            grants.get_access_token(row.user)
        assert caught.value.reason == "consent_withdrawn"

    def test_an_unreadable_token_leaves_the_row_as_it_is(self, settings):
        row = BankTokenFactory()
        before = BankToken.objects.values().get()
        settings.EVERIFIN_ENCRYPTION_KEYS = ["other:" + "A" * 43 + "="]
        with pytest.raises(UnknownKeyError):
            grants.get_access_token(row.user)
        assert BankToken.objects.values().get() == before


class TestSaveGrant:
    def test_a_first_grant_makes_the_connection(self, heard, django_capture_on_commit_callbacks):
        user = UserFactory()
        with django_capture_on_commit_callbacks(execute=True):
            row = grants.save_grant(user, granted(), ALICE)
        stored = BankToken.objects.get(user=user)
        assert stored == row
        assert stored.open_token("refresh") == Secret("refresh")
        assert (stored.issuer, stored.subject) == (ALICE.issuer, ALICE.subject)
        assert stored.identity_digest == ALICE.digest
        assert (stored.status, stored.token_version) == ("active", 1)
        [(signal, kwargs)] = heard
        assert signal is everifin_connected
        assert (kwargs["user"], kwargs["connection_id"]) == (user, row.pk)
        assert (kwargs["sender"], kwargs["scope"]) == (BankToken, "openid ais")

    def test_the_log_names_the_connection(self, caplog):
        caplog.set_level(logging.INFO, "everifin_django.connections.grants")
        row = grants.save_grant(UserFactory(), granted(), ALICE)
        assert caplog.messages == [f"Connection {row.pk} was stored."]

    def test_a_later_grant_replaces_the_tokens_in_place(self):
        row = BankTokenFactory(
            subject="alice", status="needs_reconnect", last_error="invalid_grant", failures=3
        )
        grants.save_grant(row.user, granted(id=None), ALICE)
        stored = BankToken.objects.get()
        assert stored.pk == row.pk
        assert stored.open_token("access") == Secret("access")
        assert stored.open_token("id") is None
        assert (stored.status, stored.last_error, stored.failures) == ("active", "", 0)
        assert stored.token_version == row.token_version + 1

    def test_what_is_returned_is_what_is_stored(self):
        row = grants.save_grant(BankTokenFactory(subject="alice").user, granted(), ALICE)
        stored = BankToken.objects.values().get()
        assert {name: getattr(row, name) for name in stored} == stored

    def test_nobody_elses_connection_is_touched(self):
        other = BankToken.objects.filter(pk=BankTokenFactory().pk).values()
        before = other.get()
        grants.save_grant(BankTokenFactory().user, granted(), None)
        assert other.get() == before

    def test_a_replaced_grant_of_another_session_is_to_be_ended(self):
        row = BankTokenFactory(subject="alice", sid="session-0", refresh_token="old")
        grants.save_grant(row.user, granted(), ALICE)
        pending = PendingRevocation.objects.get()
        assert (pending.open_token(), pending.reason) == (Secret("old"), "replaced")

    def test_a_replaced_grant_that_shares_the_session_is_left_alone(self):
        row = BankTokenFactory(subject="alice", sid="session-1")
        grants.save_grant(row.user, granted(), ALICE)
        assert not PendingRevocation.objects.exists()

    @pytest.mark.parametrize(("old", "new"), [("", "session-1"), ("session-0", ""), ("", "")])
    def test_a_replaced_grant_whose_session_is_not_known_is_to_be_ended(self, old, new):
        row = BankTokenFactory(subject="alice", sid=old)
        grants.save_grant(row.user, granted(sid=new), ALICE)
        assert PendingRevocation.objects.get().reason == "replaced"

    def test_somebody_elses_identity_is_refused_and_nothing_changes(self):
        owner = BankTokenFactory(subject="alice")
        before = BankToken.objects.values().get()
        with pytest.raises(IdentityTakenError):
            grants.save_grant(UserFactory(), granted(), Identity(owner.issuer, "alice"))
        assert BankToken.objects.values().get() == before

    def test_an_unknown_identity_leaves_the_known_one(self):
        row = BankTokenFactory(subject="alice")
        saved = grants.save_grant(row.user, granted(id=None), None)
        assert (saved.subject, saved.identity_digest) == ("alice", row.identity_digest)

    def test_another_identity_than_the_known_one_is_refused_and_nothing_changes(self):
        row = BankTokenFactory(subject="bob")
        before = BankToken.objects.values().get()
        with pytest.raises(IdentityMismatchError):
            grants.save_grant(row.user, granted(), ALICE)
        assert BankToken.objects.values().get() == before

    def test_a_user_deactivated_since_they_were_looked_at_gets_no_connection(
        self, django_user_model
    ):
        user = UserFactory()
        django_user_model.objects.update(is_active=False)
        with pytest.raises(LoginError, match="user_inactive"):
            grants.save_grant(user, granted(), ALICE)
        assert not BankToken.objects.exists()

    def test_an_unknown_identity_is_kept_as_unknown(self):
        row = grants.save_grant(UserFactory(), granted(), None)
        assert (row.issuer, row.subject, row.identity_digest) == ("", "", None)

    def test_a_scope_that_everifin_does_not_name_is_the_one_asked_for(self):
        assert grants.save_grant(UserFactory(), granted(scope=""), ALICE).scope == "openid ais"

    def test_two_first_logins_at_once_make_one_connection(self):
        user = UserFactory()
        with _before_first("INSERT", lambda: BankTokenFactory(user=user, subject="alice")):
            grants.save_grant(user, granted(), ALICE)
        assert BankToken.objects.get(user=user).open_token("access") == Secret("access")

    def test_a_refresh_between_read_and_write_does_not_win_over_a_new_grant(self):
        row = BankTokenFactory(subject="alice")
        moved = BankToken.objects.filter(pk=row.pk)
        with _before_first("UPDATE", lambda: moved.update(token_version=7)):
            grants.save_grant(row.user, granted(), ALICE)
        stored = BankToken.objects.get()
        # The other one's change is of the same transaction here, and was undone with the first try.
        assert (stored.token_version, stored.open_token("access")) == (2, Secret("access"))

    def test_a_row_the_database_refuses_is_an_error_and_no_endless_loop(self):
        def refuse(execute, sql, *args):
            if sql.startswith("INSERT"):
                raise IntegrityError("The user is gone.")
            return execute(sql, *args)

        user = UserFactory()
        with connection.execute_wrapper(refuse), pytest.raises(IntegrityError):
            grants.save_grant(user, granted(), ALICE)

    def test_a_connection_that_never_rests_is_an_error(self):
        row = BankTokenFactory(subject="alice")
        moved = BankToken.objects.filter(pk=row.pk)
        versions = iter(range(10, 100))
        moving: list[bool] = []

        def move(execute, sql, *args):
            if sql.startswith("UPDATE") and not moving:
                moving.append(True)
                moved.update(token_version=next(versions))
                moving.clear()
            return execute(sql, *args)

        message = r"^The connection kept changing while it was to be stored\.$"
        with connection.execute_wrapper(move), pytest.raises(OperationalError, match=message):
            grants.save_grant(row.user, granted(), ALICE)


class TestDisconnect:
    def test_the_connection_ends_here_and_at_everifin(
        self, connected, everifin, heard, django_capture_on_commit_callbacks
    ):
        before = BankToken.objects.get()
        with django_capture_on_commit_callbacks(execute=True):
            assert grants.disconnect(connected.user)
        connected.refresh_from_db()
        assert connected.status == "disconnected"
        assert connected.token_version == before.token_version + 1
        assert connected.updated_at > before.updated_at
        assert not connected.access_ciphertext + connected.refresh_ciphertext
        assert not connected.id_ciphertext
        assert everifin.live_sessions() == 0
        assert not PendingRevocation.objects.exists()
        [(signal, kwargs)] = heard
        assert signal is everifin_disconnected
        assert (kwargs["user"], kwargs["connection_id"]) == (connected.user, connected.pk)

    def test_the_log_names_the_connection_and_the_reason(self, caplog):
        caplog.set_level(logging.INFO, "everifin_django.connections.grants")
        row = BankTokenFactory(refresh_token=None)
        grants.disconnect(row.user, "user_deleted")
        assert caplog.messages == [f"Connection {row.pk} was ended: user_deleted."]

    def test_nobody_elses_connection_is_touched(self):
        other = BankToken.objects.filter(pk=BankTokenFactory().pk).values()
        before = other.get()
        grants.disconnect(BankTokenFactory(refresh_token=None).user)
        assert other.get() == before

    def test_the_identity_stays_at_a_logout_so_that_no_other_takes_its_place(self, connected):
        grants.disconnect(connected.user, "logout")
        assert BankToken.objects.get().identity_digest == connected.identity_digest

    @pytest.mark.parametrize("reason", sorted(ON_PURPOSE))
    def test_an_end_on_purpose_gives_the_identity_free(self, connected, reason):
        grants.disconnect(connected.user, "logout")
        grants.disconnect(connected.user, reason)
        row = BankToken.objects.get()
        assert (row.issuer, row.subject, row.identity_digest) == ("", "", None)
        assert row.end_reason == reason

    def test_an_outage_delays_only_everifins_part(self, connected, everifin):
        everifin.faults.add("logout", status=503)
        assert not grants.disconnect(connected.user)
        assert BankToken.objects.get().status == "disconnected"
        pending = PendingRevocation.objects.get()
        assert (pending.last_error, pending.reason) == ("unavailable", "disconnected")

    def test_who_is_not_connected_has_nothing_to_forget(self, everifin):
        assert grants.disconnect(UserFactory())
        assert grants.disconnect(BankTokenFactory(status="disconnected").user)
        assert everifin.calls["logout"] == 0

    def test_tokens_refreshed_in_the_same_moment_are_the_ones_that_end(self, connected, everifin):
        same = BankToken.objects.filter(pk=connected.pk)
        refreshed = connected.sealed(granted(refresh=Secret("newest")), active_key())
        everifin.faults.add("logout", status=503)
        with _before_first("UPDATE", lambda: same.update(token_version=9, **refreshed)):
            grants.disconnect(connected.user)
        assert PendingRevocation.objects.get().open_token() == Secret("newest")


class TestMarkDisconnected:
    def test_the_connection_ends_without_a_word_to_everifin(
        self, everifin, heard, caplog, django_capture_on_commit_callbacks
    ):
        caplog.set_level(logging.INFO)
        row = BankTokenFactory(sid="session-1", token_version=7)
        with django_capture_on_commit_callbacks(execute=True):
            grants.mark_disconnected(row, "backchannel_logout")
        disconnected = BankToken.objects.get()
        assert (disconnected.status, disconnected.token_version) == ("disconnected", 8)
        assert (
            disconnected.access_ciphertext
            + disconnected.refresh_ciphertext
            + disconnected.id_ciphertext
            == ""
        )
        assert (disconnected.sid, disconnected.lease_id) == ("", None)
        assert disconnected.updated_at > row.updated_at
        assert disconnected.identity_digest == row.identity_digest
        assert not PendingRevocation.objects.exists()
        assert not everifin.calls
        [(signal, said)] = heard
        assert signal is everifin_disconnected
        assert (said["user"], said["connection_id"]) == (row.user, row.pk)
        assert f"Connection {row.pk} was ended: backchannel_logout." in caplog.messages

    def test_nobody_elses_connection_is_touched(self):
        row = BankTokenFactory(sid="session-1")
        BankTokenFactory(sid="session-1")
        grants.mark_disconnected(row, "backchannel_logout")
        assert BankToken.objects.filter(status="active").count() == 1

    @pytest.mark.parametrize(
        "columns", [{"sid": "session-2"}, {"status": BankToken.Status.DISCONNECTED}]
    )
    def test_one_that_was_connected_again_or_ended_meanwhile_stays_as_it_is(self, heard, columns):
        row = BankTokenFactory(sid="session-1")
        BankToken.objects.update(**columns)
        before = BankToken.objects.values().get()
        grants.mark_disconnected(row, "backchannel_logout")
        assert BankToken.objects.values().get() == before
        assert heard == []


@pytest.mark.django_db(transaction=True)
class TestDisconnectInATransaction:
    def test_everifin_is_told_after_the_commit(self, connected, everifin):
        with transaction.atomic():
            assert not grants.disconnect(connected.user)
            assert everifin.calls["logout"] == 0
        assert everifin.calls["logout"] == 1
        assert not PendingRevocation.objects.exists()

    def test_a_rollback_brings_the_connection_back_alive(self, connected, everifin):
        with transaction.atomic():
            grants.disconnect(connected.user)
            transaction.set_rollback(True)
        bank = everifin_for(connected.user)
        assert list(bank.accounts())
        assert everifin.live_sessions() == 1

    def test_a_database_that_fails_after_the_commit_leaves_the_grant_in_the_outbox(
        self, connected, everifin
    ):
        def refuse(execute, sql, *args):
            if sql.startswith("UPDATE") and "everifin_django_pendingrevocation" in sql:
                raise OperationalError("The database went away.")
            return execute(sql, *args)

        with connection.execute_wrapper(refuse), transaction.atomic():
            grants.disconnect(connected.user)
        assert BankToken.objects.get().status == "disconnected"
        assert PendingRevocation.objects.count() == 1
        assert everifin.calls["logout"] == 0


class Router:
    """Writes this app's rows to "writer"; who reads without asking for it meets no database."""

    def db_for_write(self, model, **hints):
        return "writer" if model and model._meta.app_label == "everifin_django" else None

    def db_for_read(self, model, **hints):
        return "replica"

    def allow_relation(self, *objects, **hints):
        return True


@pytest.mark.django_db(transaction=True)
class TestRouter:
    @pytest.fixture
    def user(self, settings):
        """Give a user of a site where "writer" is the test's database, and "default" is none."""
        user = UserFactory()
        none: Any = None
        connections["writer"], connections["default"] = connections["default"], none
        settings.DATABASE_ROUTERS = ["tests.connections.test_grants.Router"]
        yield user
        connections["default"] = connections["writer"]
        del connections["writer"]

    def test_all_happens_in_the_database_that_is_written_to(self, user, everifin):
        for session in ("session-1", "session-2"):
            grants.save_grant(user, granted(sid=session), ALICE)
        assert grants.get_access_token(user).version == 2
        with transaction.atomic(using="writer"):
            grants.disconnect(user)
            assert everifin.calls["logout"] == 0
        assert everifin.calls["logout"] == 1
        assert BankToken.objects.using("writer").get().status == "disconnected"
        assert PendingRevocation.objects.using("writer").get().reason == "replaced"


class TestEverifin:
    def test_making_one_costs_nothing(self, django_assert_num_queries):
        with django_assert_num_queries(0):
            everifin_for(UserFactory.build())

    def test_calls_of_one_object_get_a_token_once(self, connected, django_assert_num_queries):
        bank = everifin_for(connected.user)
        with django_assert_num_queries(1):
            account = next(bank.accounts())
            bank.account(account.id)
            bank.ensure_token(frozenset({"ais"}))

    def test_a_token_that_runs_out_while_the_object_lives_is_replaced(
        self, connected, everifin, age, monkeypatch
    ):
        bank = everifin_for(connected.user)
        bank.ensure_token()
        later = timezone.now() + timedelta(minutes=6)
        monkeypatch.setattr(timezone, "now", lambda: later)
        list(bank.accounts())
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_token_is_replaced_from_the_very_moment_it_is_overdue(
        self, connected, everifin, monkeypatch
    ):
        bank = everifin_for(connected.user)
        bank.ensure_token()
        overdue_at = grants.get_access_token(connected.user).overdue_at
        monkeypatch.setattr(timezone, "now", lambda: overdue_at)
        bank.ensure_token()
        assert everifin.calls["token.refresh_token"] == 1

    def test_the_end_user_is_named_to_the_bank(self, connected, everifin):
        list(Everifin(connected.user, end_user=EndUser(ip="203.0.113.7")).accounts())
        headers = everifin.last_request["api.accounts"].headers
        assert headers["client-ip-address"] == "203.0.113.7"

    def test_a_token_everifin_refuses_is_refreshed_once_and_the_call_repeated(
        self, connected, everifin
    ):
        everifin.expire_access_tokens()
        bank = everifin_for(connected.user)
        assert list(bank.accounts())
        assert everifin.calls["token.refresh_token"] == 1
        assert everifin.calls["api.accounts"] == 2

    def test_a_refusal_for_ever_ends_in_an_outage_after_one_refresh(self, connected, everifin):
        body = '{"meta": {"status": "ERROR"}, "errors": [{"code": "INVALID_ACCESS_TOKEN"}]}'
        everifin.faults.add("api", status=401, body=body)
        bank = everifin_for(connected.user)
        with pytest.raises(UnavailableError):
            list(bank.accounts())
        assert everifin.calls["token.refresh_token"] == 1
        assert everifin.calls["api.accounts"] == 2

    def test_a_token_that_another_process_refreshed_is_used_without_a_refresh(
        self, connected, everifin
    ):
        bank = everifin_for(connected.user)
        other = everifin_for(connected.user)
        bank.ensure_token()
        everifin.expire_access_tokens()
        list(other.accounts())
        list(bank.accounts())
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_scope_that_was_not_granted_is_named(self):
        with pytest.raises(ScopeMissingError) as caught:
            Everifin(BankTokenFactory().user).ensure_token(frozenset({"ais", "pis"}))
        assert caught.value.missing == {"pis"}

    @pytest.mark.parametrize(
        ("columns", "is_connected"),
        [({}, True), ({"failures": 2}, True), ({"status": "needs_reconnect"}, False)],
    )
    def test_health_and_is_connected(self, columns, is_connected):
        assert Everifin(BankTokenFactory(**columns).user).is_connected() is is_connected

    @pytest.mark.parametrize("user", [UserFactory, AnonymousUser])
    def test_who_never_connected_is_disconnected(self, user):
        everifin = Everifin(user())
        assert everifin.connection() is None
        assert everifin.health() == BankToken.Health.DISCONNECTED
        assert not everifin.is_connected()


@pytest.mark.django_db(transaction=True)
def test_the_awaitable_twins_give_the_same(connected):
    user = connected.user

    async def read():
        bank = everifin_for(user)
        accounts = [account async for account in bank.aaccounts()]
        first = await bank.aaccount(accounts[0].id)
        await bank.aensure_token(frozenset({"ais"}))
        assert await bank.ahealth() == BankToken.Health.ACTIVE
        await sync_to_async(connections.close_all)()
        return accounts, first

    accounts, first = asyncio.run(read())
    bank = everifin_for(connected.user)
    assert accounts == list(bank.accounts())
    assert first == accounts[0]


def _before_first(verb, action):
    """While active, do *action* once, before the first statement that begins with *verb*."""
    done: list[bool] = []

    def wrapper(execute, sql, *args):
        if sql.startswith(verb) and "everifin_django_banktoken" in sql and not done:
            done.append(True)
            action()
        return execute(sql, *args)

    return connection.execute_wrapper(wrapper)

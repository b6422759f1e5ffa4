"""The outbox: what is taken from a connection is ended at Everifin, now or later."""

import time
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from everifin_django.connections import bulk, bulk_disconnect, grants, revocation
from everifin_django.connections.refresh import Attempt
from everifin_django.exceptions import TokenMissingError
from everifin_django.models import (
    BankToken,
    LoginSession,
    PendingRevocation,
    in_database_seconds,
)
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.secret import Secret
from everifin_django.testing.factories import BankTokenFactory, PendingRevocationFactory

pytestmark = pytest.mark.django_db


def _taken(connection, reason) -> Any:
    """The entry that takes over a connection's token."""
    return revocation.enqueue(connection, reason)


def test_a_connections_token_moves_encrypted_without_any_key(settings):
    row = BankTokenFactory()
    settings.EVERIFIN_ENCRYPTION_KEYS = []
    pending = _taken(row, "deleted")
    assert pending.refresh_ciphertext == row.refresh_ciphertext
    assert pending.expires_at == row.refresh_expires_at


def test_a_connection_without_a_refresh_token_leaves_nothing():
    assert revocation.enqueue(BankTokenFactory(refresh_token=None), "deleted") is None
    assert not PendingRevocation.objects.exists()


def test_a_token_that_was_taken_over_is_ended_at_everifin(connected, everifin):
    pending = _taken(connected, "deleted")
    assert revocation.revoke(pending)
    assert everifin.live_sessions() == 0
    assert not PendingRevocation.objects.exists()


def test_a_dead_token_counts_as_ended(connected, everifin):
    everifin.end_sessions()
    assert revocation.revoke(_taken(connected, "deleted"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 503}, "unavailable"),
        ({"lost": "before"}, "unavailable"),
        ({"html": True}, "unavailable"),
        ({"status": 401, "body": '{"error": "invalid_client"}'}, "invalid_client"),
    ],
)
def test_what_everifin_cannot_end_now_waits_with_its_reason(connected, everifin, fault, reason):
    everifin.faults.add("logout", **fault)
    pending = _taken(connected, "logout")
    assert not revocation.revoke(pending)
    pending.refresh_from_db()
    assert (pending.attempts, pending.last_error) == (1, reason)
    assert pending.retry_after > timezone.now()
    assert everifin.live_sessions() == 1


def test_what_waits_is_ended_by_a_later_try(connected, everifin):
    everifin.faults.add("logout", status=503, times=1)
    revocation.revoke(_taken(connected, "logout"))
    assert revocation.revoke_due() == (0, 1)
    PendingRevocation.objects.update(retry_after=in_database_seconds(-1))
    assert revocation.revoke_due() == (1, 0)
    assert everifin.live_sessions() == 0


def test_an_entry_is_tried_by_one_process_at_a_time(connected, everifin):
    pending = _taken(connected, "logout")
    same = PendingRevocation.objects.get()
    everifin.faults.add("logout", status=503)
    revocation.revoke(pending)
    assert not revocation.revoke(same)
    assert everifin.calls["logout"] == 1


def test_the_pauses_between_tries_grow_to_an_hour(everifin):
    everifin.faults.add("logout", status=503)
    pending: Any = PendingRevocationFactory(attempts=20)
    revocation.revoke(pending)
    pending.refresh_from_db()
    assert pending.retry_after - timezone.now() < timedelta(seconds=3601)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_all_that_is_due_is_worked_off(everifin, concurrency):
    PendingRevocationFactory.create_batch(7)
    later: Any = PendingRevocationFactory(retry_after=in_database_seconds(60))
    assert revocation.revoke_due(concurrency=concurrency) == (7, 1)
    assert list(PendingRevocation.objects.all()) == [later]
    assert everifin.calls["logout"] == 7


def test_more_entries_than_a_page_are_worked_off(everifin, monkeypatch):
    monkeypatch.setattr(bulk.pages, "__defaults__", ("pk", 2))
    PendingRevocationFactory.create_batch(5)
    assert revocation.revoke_due() == (5, 0)


@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"status": 401, "body": '{"error": "invalid_client"}'}],
    ids=["down", "client refused"],
)
def test_an_outage_leaves_the_rest_due(everifin, fault):
    everifin.faults.add("logout", **fault)
    PendingRevocationFactory.create_batch(9)
    assert revocation.revoke_due() == (0, 9)
    assert everifin.calls["logout"] == bulk.FAILURES_OF_AN_OUTAGE
    assert PendingRevocation.objects.filter(attempts=0).count() == 4


def test_single_failures_do_not_stop_it(everifin):
    PendingRevocationFactory.create_batch(9)
    everifin.faults.add("logout", status=503, times=bulk.FAILURES_OF_AN_OUTAGE - 1)
    assert revocation.revoke_due() == (5, 4)


def test_nothing_is_begun_after_its_time(everifin):
    PendingRevocationFactory.create_batch(2)
    assert revocation.revoke_due(max_seconds=0) == (0, 2)
    assert everifin.calls["logout"] == 0


def test_the_rate_has_its_bound(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    pace = bulk.Pace(4)
    for _ in range(12):
        pace.wait()
    assert clock[0] == pytest.approx(102, abs=0.3)


def test_an_expired_token_is_deleted_without_a_request(everifin):
    PendingRevocationFactory(expires_at=timezone.now() - timedelta(minutes=1))
    assert revocation.revoke_due() == (1, 0)
    assert everifin.calls["logout"] == 0


def test_an_unreadable_entry_is_kept(everifin, settings):
    pending = PendingRevocationFactory()
    settings.EVERIFIN_ENCRYPTION_KEYS = ["other:" + "A" * 43 + "="]
    assert not revocation.revoke(pending)
    pending.refresh_from_db()
    assert pending.last_error == "unreadable"
    assert everifin.calls["logout"] == 0


def _token_set(refresh: Secret | None) -> TokenSet:
    now = timezone.now()
    return TokenSet(Secret("access"), refresh, None, "", "", now, now, None)


def test_a_grant_nobody_will_have_is_ended(everifin):
    revocation.revoke_unused(_token_set(Secret("a refresh token")), "login_failed")
    assert everifin.calls["logout"] == 1


def test_a_grant_without_a_refresh_token_needs_no_end(everifin):
    revocation.revoke_unused(_token_set(None), "login_failed")
    assert everifin.calls["logout"] == 0


def test_a_grant_in_the_session_of_a_live_connection_is_left_to_end_with_it(connected, everifin):
    shared = replace(_token_set(Secret("another")), sid=connected.sid)
    revocation.revoke_unused(shared, "identity_taken")
    assert everifin.calls["logout"] == 0
    assert everifin.live_sessions() == 1


def test_a_missing_setting_leaves_the_entry_for_later(settings, everifin):
    pending: Any = PendingRevocationFactory()
    del settings.EVERIFIN_CLIENT_SECRET
    assert not revocation.revoke(pending)
    pending.refresh_from_db()
    assert pending.last_error == "misconfigured"


@pytest.fixture
def ended(connected, settings) -> Any:
    """A connection that has had to be made again for as long as the site keeps its tokens."""
    settings.EVERIFIN_RETENTION_DAYS = 7
    row = BankToken.objects.filter(pk=connected.pk)
    row.update(status="needs_reconnect", updated_at=timezone.now() - timedelta(days=7, seconds=1))
    return row.get()


def test_what_ended_long_ago_is_emptied_and_what_may_live_of_it_is_ended(ended, everifin):
    assert revocation.purge_ended() == 1
    ended.refresh_from_db()
    assert [ended.open_token(one) for one in ("access", "refresh", "id")] == [None, None, None]
    assert ended.status == "needs_reconnect"
    assert revocation.revoke_due() == (1, 0)
    assert everifin.live_sessions() == 0


def test_it_is_emptied_once(ended):
    assert [revocation.purge_ended(), revocation.purge_ended()] == [1, 0]


@pytest.mark.parametrize(
    "change", [{"status": "active"}, {"updated_at": timezone.now()}], ids=["active", "not long ago"]
)
def test_other_connections_are_not_emptied(ended, change):
    BankToken.objects.update(**change)
    assert revocation.purge_ended() == 0
    assert BankToken.objects.get().refresh_ciphertext == ended.refresh_ciphertext
    assert not PendingRevocation.objects.exists()


def test_a_connection_with_an_unknown_status_is_emptied_as_well(ended):
    BankToken.objects.update(status="banned")
    assert revocation.purge_ended() == 1
    assert BankToken.objects.get().refresh_ciphertext == ""


def test_a_connection_made_again_meanwhile_is_not_emptied(ended, monkeypatch):
    monkeypatch.setattr(revocation, "pages", lambda _: [[ended]])
    BankToken.objects.update(status="active", token_version=ended.token_version + 1)
    assert revocation.purge_ended() == 0
    assert BankToken.objects.get().refresh_ciphertext == ended.refresh_ciphertext
    assert not PendingRevocation.objects.exists()


class TestSpentToken:
    """A refresh sent the token, and nobody knows what came back for it."""

    @pytest.mark.parametrize("trace", [{"lease_id": uuid.uuid4()}, {"last_error": "answer_lost"}])
    def test_that_everifin_does_not_know_it_is_no_end(self, connected, everifin, trace):
        BankToken.objects.filter(pk=connected.pk).update(**trace)
        everifin.faults.add("logout", status=400, body='{"error": "invalid_grant"}')
        connected.refresh_from_db()
        pending = _taken(connected, "deleted")
        assert not revocation.revoke(pending)
        pending.refresh_from_db()
        assert (pending.is_spent, pending.last_error) == (True, "spent")

    def test_it_is_ended_where_everifin_still_knows_it(self, connected, everifin):
        BankToken.objects.update(last_error="answer_lost")
        connected.refresh_from_db()
        assert revocation.revoke(_taken(connected, "deleted"))
        assert everifin.live_sessions() == 0

    def test_a_leak_is_answered_alike(self, connected):
        BankToken.objects.update(last_error="answer_lost")
        bulk_disconnect.disable(BankToken.objects.all(), "incident")
        assert list(bulk_disconnect.move_all()) == [1]
        assert PendingRevocation.objects.get().is_spent

    def test_so_it_is_after_a_login_elsewhere_has_replaced_it(self, everifin, everifin_connect):
        """Its browser's record holds it until that logs out."""
        first, second = Client(), Client()
        everifin_connect(first, view="login")
        BankToken.objects.update(lease_id=uuid.uuid4())
        everifin_connect(second, view="login")
        assert LoginSession.objects.filter(is_spent=True).count() == 1
        everifin.faults.add("logout", status=400, body='{"error": "invalid_grant"}', times=1)
        first.post("/everifin/logout/")
        pending = PendingRevocation.objects.get()
        assert (pending.is_spent, pending.last_error) == (True, "spent")

    def test_it_is_known_when_the_connection_gets_it_back(self, everifin, everifin_connect):
        first, second = Client(), Client()
        everifin_connect(first, view="login")
        BankToken.objects.update(last_error="answer_lost")
        everifin_connect(second, view="login")
        assert BankToken.objects.get().last_error == ""
        second.post("/everifin/logout/")
        assert BankToken.objects.get().last_error == "answer_lost"
        assert not LoginSession.objects.get().is_spent

    def test_an_answer_that_comes_late_is_unspent_there(self, everifin, everifin_connect):
        first, second = Client(), Client()
        everifin_connect(first, view="login")
        attempt = Attempt(BankToken.objects.get(), time.monotonic() + 10)
        assert attempt.claim()
        granted = attempt.send()
        everifin_connect(second, view="login")
        attempt.store(granted)
        [record] = LoginSession.objects.exclude(refresh_ciphertext="")
        assert (record.is_spent, record.open_token("refresh")) == (False, granted.refresh)

    def test_the_answer_takes_its_place(self, connected, everifin):
        """It comes after the user has disconnected."""
        attempt = Attempt(connected, deadline=time.monotonic() + 9)
        assert attempt.claim()
        tokens = attempt.send()
        grants.disconnect(connected.user)
        with pytest.raises(TokenMissingError):
            attempt.store(tokens)
        assert everifin.live_sessions() == 0
        assert not PendingRevocation.objects.exists()

    def test_many_of_them_are_no_outage(self, connected, everifin):
        everifin.faults.add("logout", status=400, body='{"error": "invalid_grant"}')
        for _ in range(bulk.FAILURES_OF_AN_OUTAGE):
            BankToken.objects.update(last_error="answer_lost")
            connected.refresh_from_db()
            _taken(connected, "deleted")
        assert revocation.revoke_due() == (0, bulk.FAILURES_OF_AN_OUTAGE)
        assert PendingRevocation.objects.filter(last_error="spent").count() == 5

"""The outbox: what is taken from a connection is ended at Everifin, now or later."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone

from everifin_django.connections import revocation
from everifin_django.models import BankToken, PendingRevocation, in_database_seconds
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


def test_a_connection_made_again_meanwhile_is_not_emptied(ended, monkeypatch):
    as_read = SimpleNamespace(iterator=lambda: [ended])
    monkeypatch.setattr(BankToken.objects, "ended_before", lambda _: as_read)
    BankToken.objects.update(status="active", token_version=ended.token_version + 1)
    assert revocation.purge_ended() == 0
    assert BankToken.objects.get().refresh_ciphertext == ended.refresh_ciphertext
    assert not PendingRevocation.objects.exists()

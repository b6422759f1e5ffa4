"""Ending many connections at once: unusable by one statement, then moved to the outbox."""

from __future__ import annotations

import base64
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from everifin_django.connections import bulk_disconnect, grants, logout, revocation
from everifin_django.connections.refresh import Attempt
from everifin_django.exceptions import TokenMissingError
from everifin_django.models import (
    BankToken,
    Incident,
    LoginLink,
    LoginSession,
    PendingRevocation,
)
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from everifin_django.signals import everifin_disconnected
from everifin_django.testing.factories import (
    BankTokenFactory,
    LoginLinkFactory,
    LoginSessionFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

NEW_KEY = "new:" + base64.b64encode(bytes(range(1, 33))).decode()


def rows() -> Any:
    return BankToken.objects.order_by("user_id")


def new_tokens(sid: str) -> TokenSet:
    now = timezone.now()
    later = now + timedelta(hours=1)
    return TokenSet(Secret("access"), Secret("new"), None, "openid ais", sid, now, later, later)


def test_one_statement_makes_all_of_them_unusable(django_assert_num_queries):
    made = BankTokenFactory.create_batch(3)
    with django_assert_num_queries(1):
        assert bulk_disconnect.disable(rows(), "incident") == 3
    for one in made:
        with pytest.raises(TokenMissingError):
            grants.get_access_token(one.user)
    assert bulk_disconnect.disable(rows(), "incident") == 0


def test_it_needs_a_reason_of_an_end_on_purpose():
    with pytest.raises(ValueError, match="no end on purpose"):
        bulk_disconnect.disable(rows(), "logout")


def test_their_tokens_move_as_they_are_and_without_a_key(settings):
    made = {one.pk: one for one in BankTokenFactory.create_batch(3, id_token="an ID token")}
    settings.EVERIFIN_ENCRYPTION_KEYS = []
    bulk_disconnect.disable(rows(), "incident")
    assert list(bulk_disconnect.move_all(2)) == [2, 1]
    for entry in PendingRevocation.objects.all():
        was = made.pop(entry.connection_id)
        assert entry.refresh_ciphertext == was.refresh_ciphertext
        assert entry.user_pk == str(was.user_id)
        assert entry.expires_at == was.refresh_expires_at
        assert (entry.reason, entry.attempts, entry.retry_after) == ("incident", 0, None)
        assert abs(entry.created_at - timezone.now()) < timedelta(minutes=1)
    assert made == {}
    for row in rows():
        assert (row.access_ciphertext, row.refresh_ciphertext, row.id_ciphertext) == ("", "", "")
        assert (row.identity_digest, row.subject, row.end_reason) == (None, "", "incident")


def test_what_was_moved_can_be_ended(everifin, connected):
    bulk_disconnect.disable(rows(), "incident")
    assert list(bulk_disconnect.move_all()) == [1]
    assert revocation.revoke_due() == (1, 0)
    assert everifin.live_sessions() == 0


def test_it_can_be_stopped_after_any_batch_and_goes_on_where_it_was():
    BankTokenFactory.create_batch(3)
    bulk_disconnect.disable(rows(), "incident")
    assert next(bulk_disconnect.move_all(1)) == 1
    assert PendingRevocation.objects.count() == 1
    assert sum(bulk_disconnect.move_all(1)) == 2
    assert PendingRevocation.objects.count() == 3
    assert list(bulk_disconnect.move_all(1)) == []


def test_a_batch_costs_the_same_for_one_connection_and_for_many():
    def cost(many: int) -> int:
        BankTokenFactory.create_batch(many)
        bulk_disconnect.disable(rows(), "incident")
        with CaptureQueriesContext(database) as queries:
            assert sum(bulk_disconnect.move_all()) == many
        return len(queries)

    assert cost(1) == cost(9)


def test_connections_that_hold_no_refresh_token_are_emptied():
    BankTokenFactory(refresh_token=None)
    bulk_disconnect.disable(rows(), "admin")
    assert sum(bulk_disconnect.move_all()) == 1
    assert not PendingRevocation.objects.exists()
    assert rows().get().access_ciphertext == ""


def test_a_row_that_does_not_say_whose_tokens_it_holds_is_its_users():
    row: Any = BankTokenFactory(encrypted_for="")
    bulk_disconnect.disable(rows(), "incident")
    assert sum(bulk_disconnect.move_all()) == 1
    assert PendingRevocation.objects.get().user_pk == str(row.user_id)
    assert PendingRevocation.objects.get().open_token() == Secret("a refresh token")


def test_others_are_left_alone():
    mine: Any = BankTokenFactory()
    other: Any = BankTokenFactory()
    assert bulk_disconnect.disable(rows().filter(pk=mine.pk), "admin") == 1
    assert sum(bulk_disconnect.move_all()) == 1
    assert BankToken.objects.values().get(pk=other.pk)["refresh_ciphertext"]
    assert grants.get_access_token(other.user).token == Secret("an access token")


def test_links_that_connecting_made_are_removed_and_others_stay():
    row: Any = BankTokenFactory()
    LoginLinkFactory(user=row.user, made_by=LoginLink.MadeBy.CONNECT)
    stays: Any = LoginLinkFactory(user=row.user)
    bulk_disconnect.disable(rows(), "incident")
    assert sum(bulk_disconnect.move_all()) == 1
    assert LoginLink.objects.get() == stays


def test_receivers_hear_of_each_connection_once(django_capture_on_commit_callbacks):
    made = BankTokenFactory.create_batch(2)
    heard = []

    def receiver(sender: Any, user: Any, connection_id: Any, **_: Any) -> None:
        heard.append((user.pk, connection_id))

    everifin_disconnected.connect(receiver)
    try:
        bulk_disconnect.disable(rows(), "incident")
        with django_capture_on_commit_callbacks(execute=True):
            assert sum(bulk_disconnect.move_all()) == 2
            assert sum(bulk_disconnect.move_all()) == 0
    finally:
        everifin_disconnected.disconnect(receiver)
    assert sorted(heard) == sorted((one.user_id, one.pk) for one in made)


@pytest.mark.parametrize("sid", ["the same session", "another"])
def test_who_connects_again_before_the_token_has_moved_gets_it_ended(sid):
    """Even where both share one session at Everifin: what has leaked must end."""
    row: Any = BankTokenFactory(sid="the same session")
    bulk_disconnect.disable(rows(), "incident")
    grants.save_grant(row.user, new_tokens(sid), None)
    entry = PendingRevocation.objects.get()
    assert (entry.refresh_ciphertext, entry.reason) == (row.refresh_ciphertext, "incident")
    assert list(bulk_disconnect.move_all()) == []
    assert rows().get().open_token("refresh") == Secret("new")


def test_a_back_channel_logout_does_not_bring_an_ended_connection_back():
    row: Any = BankTokenFactory(sid="a session")
    LoginSessionFactory(
        user=row.user, identity_digest=row.identity_digest, refresh_token="of another browser"
    )
    bulk_disconnect.disable(rows(), "incident")
    logout.take_over_or_mark_disconnected(rows().get())
    assert rows().get().status == "disconnected"
    assert LoginSession.objects.get().refresh_ciphertext


def test_a_token_that_is_refreshed_meanwhile_is_ended(connected, everifin, age):
    age(connected, minutes=5)
    attempt = Attempt(rows().get(), deadline=float("inf"))
    assert attempt.claim()
    tokens = attempt.send()
    bulk_disconnect.disable(rows(), "incident")
    with pytest.raises(TokenMissingError):
        attempt.store(tokens)
    assert everifin.live_sessions() == 0


class TestIncident:
    """An incident makes what it covers unusable without a change of any row."""

    def test_one_row_makes_all_connections_unusable_at_once(self):
        made = BankTokenFactory.create_batch(3)
        before = list(BankToken.objects.order_by("pk").values())
        bulk_disconnect.begin()
        for one in made:
            with pytest.raises(TokenMissingError):
                grants.get_access_token(one.user)
        assert list(BankToken.objects.order_by("pk").values()) == before

    def test_users_are_told_that_they_are_not_connected(self):
        row: Any = BankTokenFactory()
        assert grants.everifin_for(row.user).is_connected()
        bulk_disconnect.begin()
        assert grants.everifin_for(row.user).health() == "disconnected"
        assert not grants.everifin_for(row.user).is_connected()

    def test_a_due_token_is_not_refreshed(self, connected, everifin, age):
        bulk_disconnect.begin()
        age(connected, minutes=5)
        with pytest.raises(TokenMissingError):
            grants.get_access_token(connected.user)
        assert everifin.calls["token.refresh"] == 0

    def test_all_of_them_are_moved(self):
        BankTokenFactory.create_batch(2)
        BankTokenFactory(status="needs_reconnect")
        BankTokenFactory(status="disconnected", end_reason="logout", refresh_token=None)
        bulk_disconnect.begin()
        assert sum(bulk_disconnect.move_all(2)) == 4
        assert set(rows().values_list("status", "end_reason")) == {
            ("disconnected", "incident"),
            ("disconnected", "logout"),
        }
        assert PendingRevocation.objects.filter(reason="incident").count() == 3
        assert not bulk_disconnect.is_anything_left()

    def test_what_is_connected_afterwards_is_not_covered(self):
        before: Any = BankTokenFactory()
        bulk_disconnect.begin()
        user: Any = UserFactory()
        for one in (user, before.user):
            grants.save_grant(one, new_tokens("a session"), None)
            assert grants.get_access_token(one).token == Secret("access")
        assert list(bulk_disconnect.move_all()) == []
        assert PendingRevocation.objects.get().refresh_ciphertext == before.refresh_ciphertext

    def test_a_login_does_not_connect_again(self):
        row: Any = BankTokenFactory()
        bulk_disconnect.begin()
        identity = Identity(row.issuer, row.subject)
        record_id = uuid.uuid4()
        assert grants.save_login_grant(row.user, new_tokens("s"), identity, record_id) is None
        assert sum(bulk_disconnect.move_all()) == 1
        assert LoginSession.objects.get(pk=record_id).refresh_ciphertext

    def test_only_what_is_encrypted_with_the_leaked_key_is_covered(self, settings):
        old: Any = BankTokenFactory()
        settings.EVERIFIN_ENCRYPTION_KEYS = [NEW_KEY, *settings.EVERIFIN_ENCRYPTION_KEYS]
        new: Any = BankTokenFactory()
        LoginSessionFactory(refresh_token="of another browser")
        bulk_disconnect.begin(encrypted_by="test")
        assert grants.get_access_token(new.user).token == Secret("an access token")
        assert sum(bulk_disconnect.move_all()) == 1
        assert PendingRevocation.objects.get().connection_id == old.pk

    def test_only_what_was_issued_since_is_covered(self):
        now = timezone.now()
        early: Any = BankTokenFactory(issued_at=now - timedelta(hours=2))
        late: Any = BankTokenFactory(issued_at=now - timedelta(hours=1))
        unknown: Any = BankTokenFactory()
        early_today = now - timedelta(hours=3)
        rows().filter(pk=unknown.pk).update(issued_at=None, updated_at=early_today)
        other: Any = LoginSessionFactory(user=late.user, refresh_token="of another browser")
        LoginSession.objects.update(created_at=now - timedelta(days=1))
        bulk_disconnect.begin(issued_since=now - timedelta(minutes=90))
        assert sum(bulk_disconnect.move_all()) == 3
        moved = set(PendingRevocation.objects.values_list("connection_id", flat=True))
        assert moved == {late.pk, unknown.pk, other.pk}
        assert rows().get(pk=early.pk).status == "active"

    def test_all_tokens_are_in_the_outbox_before_a_row_changes(self, monkeypatch):
        monkeypatch.setattr(bulk_disconnect, "COPIED_AT_ONCE", 1)
        made = BankTokenFactory.create_batch(5)
        bulk_disconnect.begin()
        moving = bulk_disconnect.move_all(2)
        assert [next(moving) for _ in range(3)] == [2, 2, 1]
        assert PendingRevocation.objects.count() == len(made)
        assert BankToken.objects.filter(status="active").count() == len(made)
        assert list(moving) == [0, 0, 0]
        assert PendingRevocation.objects.count() == len(made)
        assert set(rows().values_list("status", "refresh_ciphertext")) == {("disconnected", "")}

    def test_it_goes_on_after_the_last_token_that_was_copied(self, monkeypatch):
        monkeypatch.setattr(bulk_disconnect, "COPIED_AT_ONCE", 1)
        BankTokenFactory.create_batch(3)
        bulk_disconnect.begin()
        assert next(bulk_disconnect.move_all(2)) == 2
        assert sum(bulk_disconnect.move_all(2)) == 1
        assert PendingRevocation.objects.count() == 3

    def test_a_token_that_was_refreshed_after_it_was_copied_is_ended(
        self, connected, everifin, age
    ):
        age(connected, minutes=5)
        attempt = Attempt(rows().get(), deadline=float("inf"))
        assert attempt.claim()
        bulk_disconnect.begin()
        moving = bulk_disconnect.move_all()
        assert next(moving) == 1
        attempt.store(attempt.send())
        newest = rows().get().open_token("refresh")
        list(moving)
        tokens = [entry.open_token() for entry in PendingRevocation.objects.all()]
        assert newest in tokens
        revocation.revoke_due()
        assert everifin.live_sessions() == 0

    def test_a_token_that_came_from_a_login_after_it_was_copied_is_ended(self):
        row: Any = BankTokenFactory()
        bulk_disconnect.begin()
        moving = bulk_disconnect.move_all()
        assert next(moving) == 1
        given = BankTokenFactory.build(id=row.pk, user=row.user, refresh_token="of a login")
        rows().update(
            refresh_ciphertext=given.refresh_ciphertext,
            issued_at=None,
            updated_at=timezone.now(),
        )
        list(moving)
        tokens = [entry.open_token() for entry in PendingRevocation.objects.order_by("pk")]
        assert tokens == [Secret("a refresh token"), Secret("of a login")]

    def test_it_is_remembered_for_a_while_and_then_over(self):
        """A transaction that began before it may yet be committed."""
        BankTokenFactory()
        bulk_disconnect.begin()
        assert sum(bulk_disconnect.move_all()) == 1
        late: Any = BankTokenFactory(connected_at=timezone.now() - timedelta(minutes=12))
        Incident.objects.update(started_at=timezone.now() - timedelta(minutes=11))
        with pytest.raises(TokenMissingError):
            grants.get_access_token(late.user)
        assert sum(bulk_disconnect.move_all()) == 1
        assert not Incident.objects.exists()


class TestLogins:
    """The grants that logins in other browsers hold."""

    def test_they_move_and_the_logins_stay(self):
        holding: Any = LoginSessionFactory(refresh_token="of another browser")
        LoginSessionFactory()
        assert bulk_disconnect.release_logins(LoginSession.objects.all()) == 1
        assert list(bulk_disconnect.move_all()) == [1]
        entry = PendingRevocation.objects.get()
        assert entry.open_token() == Secret("of another browser")
        assert (entry.connection_id, entry.reason) == (holding.pk, "incident")
        assert LoginSession.objects.count() == 2
        assert not LoginSession.objects.exclude(refresh_ciphertext="").exists()

    def test_those_that_were_not_chosen_keep_theirs(self):
        LoginSessionFactory(refresh_token="of another browser")
        assert list(bulk_disconnect.move_all()) == []
        assert LoginSession.objects.get().refresh_ciphertext


@pytest.mark.django_db(transaction=True)
def test_several_workers_move_each_token_once():
    BankTokenFactory.create_batch(12)
    bulk_disconnect.begin()
    assert sum(bulk_disconnect.move_all(2, workers=3)) == 12
    assert PendingRevocation.objects.values("connection_id").distinct().count() == 12
    assert PendingRevocation.objects.count() == 12
    assert not bulk_disconnect.is_anything_left()


@pytest.mark.django_db(transaction=True)
def test_what_a_worker_raises_is_raised(monkeypatch):
    BankTokenFactory()
    bulk_disconnect.begin()

    def broken(*_: Any) -> None:
        raise RuntimeError("the database is full")

    monkeypatch.setattr(bulk_disconnect, "_move", broken)
    with pytest.raises(RuntimeError, match="full"):
        list(bulk_disconnect.move_all(workers=2))
    assert bulk_disconnect.is_anything_left()

"""
The refresh protocol under every fault of its table.

The names F1 to F27 are those of the table in docs/explanation/refresh.md. Races between threads
and processes are in tests/protocol.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.utils import timezone

from everifin_django.conf import DEFAULT_KEY_PROVIDER, conf
from everifin_django.connections import grants, own_connection, refresh
from everifin_django.connections.refresh import Attempt, ensure_fresh
from everifin_django.exceptions import (
    ConsentExpiredError,
    KeysUnavailableError,
    RefreshInTransactionError,
    TokenMissingError,
    UnavailableError,
    UnknownKeyError,
)
from everifin_django.models import (
    BankToken,
    EndpointState,
    PendingRevocation,
    in_database_seconds,
)
from everifin_django.secret import Secret
from everifin_django.signals import consent_expired, token_refreshed
from everifin_django.testing.factories import BankTokenFactory, UserFactory
from everifin_django.testing.sandbox import Sandbox

pytestmark = pytest.mark.django_db

WITHOUT_SANDBOX = requests.Session.get_adapter
IMPATIENCE = {
    "sqlite": "PRAGMA busy_timeout = 10",
    "postgresql": "SET lock_timeout = '100ms'",
    "mysql": "SET innodb_lock_wait_timeout = 1",
}
"""A statement waits hardly for a lock, by database."""


@pytest.fixture
def overdue(connected, age):
    """A live connection whose access token ran out a minute ago."""
    age(connected, minutes=6)
    return _now(connected)


@pytest.fixture
def due(connected, age):
    """A live connection whose access token is good for 30 seconds more."""
    age(connected, seconds=270)
    return _now(connected)


@pytest.fixture
def begin_as(monkeypatch):
    """Give a function that sets how SQLite's transactions begin; no matter elsewhere."""

    def begin_as(mode):
        if connection.vendor == "sqlite":
            connection.ensure_connection()
            monkeypatch.setattr(connections["default"], "transaction_mode", mode)

    return begin_as


@pytest.fixture
def heard():
    """Give the signals that were sent, in their order."""
    events = []

    def hear(signal, **kwargs):
        events.append((signal, kwargs.get("reason")))

    token_refreshed.connect(hear)
    consent_expired.connect(hear)
    yield events
    token_refreshed.disconnect(hear)
    consent_expired.disconnect(hear)


@pytest.fixture
def meanwhile(everifin):
    """Give a function that does something while Everifin is at work on the next refresh."""

    def meanwhile(action):
        everifin.sleep = lambda _seconds: action()
        everifin.faults.add("token.refresh_token", latency_seconds=1, times=1)

    return meanwhile


def _now(row) -> Any:
    """The connection as the database has it now."""
    return BankToken.objects.select_related("user").get(pk=row.pk)


def _pause(caught) -> float:
    """For how many seconds an error asks to be left alone."""
    return caught.value.retry_after_seconds or 0


def _attempt(row):
    """A try of a process of its own, which read the connection just now."""
    return Attempt(_now(row), time.monotonic() + 10)


def _let_lease_run_out(row):
    BankToken.objects.filter(pk=row.pk).update(lease_until=in_database_seconds(-1))


def _is_alive(row, everifin):
    """Does Everifin accept the refresh token that is stored?"""
    before = _now(row).token_version
    BankToken.objects.filter(pk=row.pk).update(access_expires_at=timezone.now())
    return ensure_fresh(_now(row).user).token_version == before + 1 and everifin.double_spends == 0


class TestWindows:
    def test_a_fresh_token_is_left_alone(self, connected, everifin, django_assert_num_queries):
        user = connected.user
        with django_assert_num_queries(1):
            assert ensure_fresh(user).token_version == 1
        assert everifin.calls["token.refresh_token"] == 0

    def test_a_fresh_connection_has_the_values_that_the_orm_reads(self, connected):
        row, stored = ensure_fresh(connected.user), _now(connected)
        for field in BankToken._meta.concrete_fields:
            assert getattr(row, field.attname) == getattr(stored, field.attname)
        assert row.seen() == stored.seen()

    def test_a_site_may_rename_the_tables(self, connected, monkeypatch):
        monkeypatch.setattr(BankToken._meta, "db_table", "renamed")
        with pytest.raises(DatabaseError, match="renamed"):
            ensure_fresh(connected.user)

    def test_an_overdue_token_is_refreshed_once(self, overdue, everifin, heard):
        row: Any = ensure_fresh(overdue.user)
        assert row.token_version == 2
        assert row.access_expires_at > timezone.now() + timedelta(minutes=4)
        assert _now(overdue).open_token("access") == row.open_token("access")
        assert _now(overdue).lease_id is None
        assert everifin.calls["token.refresh_token"] == 1
        assert heard == [(token_refreshed, None)]
        assert _is_alive(overdue, everifin)

    def test_a_due_token_is_refreshed_before_it_runs_out(self, due, everifin):
        assert ensure_fresh(due.user).token_version == 2
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_four_second_token_is_not_refreshed_on_every_request(self, overdue, everifin):
        everifin.access_token_seconds = 4
        for _ in range(5):
            row = ensure_fresh(overdue.user)
        assert row.token_version == 2
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_rejected_token_is_refreshed_although_it_is_fresh(self, connected, everifin):
        seen = connected.seen()
        assert ensure_fresh(connected.user, rejected=seen).token_version == 2
        assert ensure_fresh(connected.user, rejected=seen).token_version == 2
        assert everifin.calls["token.refresh_token"] == 1

    def test_no_scope_is_sent_along(self, overdue, everifin):
        ensure_fresh(overdue.user)
        assert "scope" not in everifin.last_request["token.refresh_token"].form


class TestFaultTable:
    def test_f2_while_one_refreshes_the_others_use_the_token_that_is_still_good(
        self, due, everifin, meanwhile
    ):
        others = []
        meanwhile(lambda: others.append(ensure_fresh(due.user).token_version))
        assert ensure_fresh(due.user).token_version == 2
        assert others == [1]
        assert everifin.calls["token.refresh_token"] == 1

    def test_f5_crash_before_sending(self, overdue, everifin):
        assert _attempt(overdue).claim()
        _let_lease_run_out(overdue)
        assert ensure_fresh(overdue.user).token_version == 2
        assert everifin.double_spends == 0

    def test_f6_crash_between_answer_and_store_with_strict_rotation(
        self, overdue, everifin, monkeypatch
    ):
        monkeypatch.setattr(refresh, "TAKEOVER_PATIENCE_SECONDS", 0)
        crashed = _attempt(overdue)
        crashed.claim()
        crashed.send()
        _let_lease_run_out(overdue)
        with pytest.raises(ConsentExpiredError) as caught:
            ensure_fresh(overdue.user)
        assert caught.value.reason == "answer_lost"
        assert _now(overdue).status == "needs_reconnect"

    @pytest.mark.parametrize("rotation", ["default", "off"])
    def test_f6_crash_between_answer_and_store_when_a_repeat_works(
        self, overdue, everifin, rotation
    ):
        everifin.rotation = rotation
        crashed = _attempt(overdue)
        crashed.claim()
        crashed.send()
        _let_lease_run_out(overdue)
        assert ensure_fresh(overdue.user).token_version == 2

    def test_f7_lost_before_the_work_is_repeated_at_once(self, overdue, everifin):
        everifin.faults.add("token.refresh_token", lost="before", times=1)
        assert ensure_fresh(overdue.user).token_version == 2
        assert everifin.calls["token.refresh_token"] == 2

    def test_f7_lost_after_the_work_with_strict_rotation_says_so(self, overdue, everifin):
        everifin.faults.add("token.refresh_token", lost="after", times=1)
        with pytest.raises(ConsentExpiredError) as caught:
            ensure_fresh(overdue.user)
        assert caught.value.reason == "answer_lost"

    def test_f7_lost_after_the_work_is_mended_where_a_repeat_works(self, overdue, everifin):
        everifin.rotation = "default"
        everifin.faults.add("token.refresh_token", lost="after", times=1)
        assert ensure_fresh(overdue.user).token_version == 2

    def test_f7_lost_twice_keeps_the_tokens_and_tries_later(self, overdue, everifin):
        everifin.faults.add("token.refresh_token", lost="before", times=2)
        self._assert_temporary(overdue, "answer_lost")
        BankToken.objects.update(retry_after=in_database_seconds(-1))
        assert ensure_fresh(overdue.user).token_version == 2

    def test_f7_a_timeout_is_not_repeated_while_the_first_request_may_be_at_work(
        self, overdue, everifin, settings
    ):
        settings.EVERIFIN_DEADLINE_SECONDS = 0.5
        everifin.sleep = lambda _seconds: None
        everifin.faults.add("token.refresh_token", latency_seconds=5)
        self._assert_temporary(overdue, "answer_lost")
        assert everifin.calls["token.refresh_token"] == 1

    def test_f7_a_lost_answer_is_remembered_through_later_failures(self, overdue, everifin):
        everifin.faults.add("token.refresh_token", lost="after", times=1)
        everifin.faults.add("token.refresh_token", status=503, times=1)
        self._assert_ends_as_answer_lost(overdue)

    def test_f6_a_crash_is_remembered_through_later_failures(self, overdue, everifin, monkeypatch):
        monkeypatch.setattr(refresh, "TAKEOVER_PATIENCE_SECONDS", 0)
        crashed = _attempt(overdue)
        crashed.claim()
        crashed.send()
        _let_lease_run_out(overdue)
        everifin.faults.add("token.refresh_token", status=503, times=1)
        self._assert_ends_as_answer_lost(overdue)

    def _assert_ends_as_answer_lost(self, overdue):
        with pytest.raises(UnavailableError):
            ensure_fresh(overdue.user)
        BankToken.objects.update(retry_after=None)
        with pytest.raises(ConsentExpiredError) as caught:
            ensure_fresh(overdue.user)
        assert caught.value.reason == "answer_lost"

    def test_f7_who_has_waited_long_sends_nothing_that_would_be_cut_off(self, overdue, everifin):
        reading = refresh._read(overdue.user, overdue.seen())
        nearly_over = time.monotonic() + conf.deadline_seconds * 0.4
        assert refresh._try(reading, nearly_over) is None
        assert everifin.calls["token.refresh_token"] == 0

    def test_f8_nothing_was_sent(self, overdue, monkeypatch, settings):
        settings.EVERIFIN_IDP_URL = "http://127.0.0.1:9"  # where nobody listens
        settings.DEBUG = True
        with monkeypatch.context() as patch:
            patch.setattr(requests.Session, "get_adapter", WITHOUT_SANDBOX)
            self._assert_temporary(overdue, "unreachable")

    def test_f8_a_token_that_is_still_good_is_used_through_an_outage(self, due, everifin):
        everifin.faults.add("token.refresh_token", status=503)
        assert ensure_fresh(due.user).token_version == 1
        assert ensure_fresh(due.user).token_version == 1
        assert everifin.calls["token.refresh_token"] == 1
        assert _now(due).health() == BankToken.Health.DEGRADED

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
    def test_f9_a_server_that_cannot_is_left_alone_for_a_while(self, overdue, everifin, status):
        everifin.faults.add("token.refresh_token", status=status)
        reason = "answer_lost" if status in (502, 504) else "unavailable"
        self._assert_temporary(overdue, reason)
        calls = everifin.calls["token.refresh_token"]
        self._assert_temporary(overdue, reason)
        assert everifin.calls["token.refresh_token"] == calls

    @pytest.mark.parametrize(
        ("asked", "kept"), [(30, 30), (600, 600), (86_400, 86_400), (10**7, 86_400)]
    )
    def test_f9_retry_after_is_kept_as_asked_up_to_a_day(self, overdue, everifin, asked, kept):
        everifin.faults.add("token.refresh_token", status=503, retry_after=asked)
        with pytest.raises(UnavailableError) as caught:
            ensure_fresh(overdue.user)
        assert kept - 5 < _pause(caught) <= kept
        with pytest.raises(UnavailableError) as caught:
            ensure_fresh(overdue.user)
        assert kept - 25 < _pause(caught) <= kept
        assert everifin.calls["token.refresh_token"] == 1

    def test_f9_retry_after_holds_for_every_connection_of_the_process(self, overdue, everifin):
        another = BankTokenFactory(access_expires_at=timezone.now())
        everifin.faults.add("token.refresh_token", status=429, retry_after=600)
        for row in (overdue, another):
            with pytest.raises(UnavailableError) as caught:
                ensure_fresh(row.user)
            assert 500 < _pause(caught) <= 600
        assert everifin.calls["token.refresh_token"] == 1

    def test_f9_pauses_grow_with_each_failure(self, overdue, everifin):
        everifin.faults.add("token.refresh_token", status=503)
        pauses = []
        for _ in range(7):
            with pytest.raises(UnavailableError) as caught:
                ensure_fresh(overdue.user)
            pauses.append(_pause(caught))
            BankToken.objects.update(retry_after=None)
        assert 2 <= pauses[0] <= 4
        assert 30 <= pauses[-1] <= 60
        assert _now(overdue).failures == 7

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 200, "body": "certainly", "content_type": "application/json"},
            {"status": 200, "body": "{}", "content_type": "application/json"},
            {"status": 200, "body": "x" * 70_000, "content_type": "application/json"},
            {"truncate": True},
        ],
    )
    def test_f10_an_answer_that_makes_no_sense_counts_as_lost(self, overdue, everifin, fault):
        everifin.rotation = "default"
        everifin.faults.add("token.refresh_token", **fault)
        self._assert_temporary(overdue, "answer_lost")
        assert everifin.calls["token.refresh_token"] == 2

    def test_f11_invalid_grant_asks_the_user_to_connect_again(self, overdue, everifin, heard):
        everifin.end_sessions()
        for _ in range(2):
            with pytest.raises(ConsentExpiredError) as caught:
                ensure_fresh(overdue.user)
            assert caught.value.reason == "invalid_grant"
        row = _now(overdue)
        assert (row.status, row.token_version) == ("needs_reconnect", 1)
        assert row.refresh_ciphertext == overdue.refresh_ciphertext
        assert everifin.calls["token.refresh_token"] == 1
        assert heard == [(consent_expired, "invalid_grant")]

    def test_f12_invalid_grant_when_another_process_was_faster(self, overdue, everifin):
        slow = _attempt(overdue)
        slow.claim()
        _let_lease_run_out(overdue)
        assert ensure_fresh(overdue.user).token_version == 2
        assert slow.run().token_version == 2
        assert _now(overdue).status == "active"

    @pytest.mark.parametrize("error", ["invalid_client", "unauthorized_client"])
    def test_f13_a_refused_client_is_the_operators_matter(self, overdue, everifin, error, caplog):
        everifin.faults.add(
            "token.refresh_token",
            status=401,
            body=f'{{"error": "{error}"}}',
            content_type="application/json",
        )
        self._assert_temporary(overdue, error)
        assert [record.levelno for record in caplog.records if "not be" in record.message] == [
            logging.ERROR
        ]

    def test_f13_a_401_without_an_oauth_error_is_the_operators_matter(
        self, overdue, everifin, caplog
    ):
        everifin.faults.add("token.refresh_token", status=401, html=True)
        self._assert_temporary(overdue, "unavailable")
        assert caplog.records[-1].levelno == logging.ERROR

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 401, "body": '{"error": "invalid_client"}'},
            {"status": 400, "body": '{"error": "unauthorized_client"}'},
            {"status": 401, "html": True},
        ],
    )
    def test_f13_after_it_no_process_tries_any_connection_for_a_moment(
        self, overdue, everifin, monkeypatch, fault
    ):
        another = BankTokenFactory(access_expires_at=timezone.now())
        everifin.faults.add("token.refresh_token", content_type="application/json", **fault)
        for row in (overdue, another):
            with pytest.raises(UnavailableError) as caught:
                ensure_fresh(row.user)
        assert everifin.calls["token.refresh_token"] == 1
        assert 0 < (caught.value.retry_after_seconds or 0) <= refresh.CLIENT_REFUSED_PAUSE_SECONDS
        another.refresh_from_db()
        assert (another.failures, another.retry_after) == (0, None)

        refresh.clear_pauses()  # as in another process
        with pytest.raises(UnavailableError):
            ensure_fresh(another.user)
        assert everifin.calls["token.refresh_token"] == 1

        EndpointState.objects.update(paused_until=timezone.now() - timedelta(seconds=1))
        with pytest.raises(UnavailableError):
            ensure_fresh(another.user)
        assert everifin.calls["token.refresh_token"] == 2

    @pytest.mark.parametrize("error", ["invalid_request", "temporarily_unavailable"])
    def test_f13_another_refusal_pauses_its_own_connection_only(self, overdue, everifin, error):
        everifin.faults.add(
            "token.refresh_token",
            status=400,
            body=f'{{"error": "{error}"}}',
            content_type="application/json",
        )
        self._assert_temporary(overdue, error)
        assert refresh.endpoint_pause.seconds_left == 0

    @pytest.mark.parametrize(
        "fault",
        [
            {"html": True},
            {"status": 403, "body": "no", "content_type": "text/plain"},
            {"status": 404, "body": "{}", "content_type": "application/json"},
            {"status": 302, "body": "", "content_type": "text/html"},
        ],
    )
    def test_f14_an_error_in_no_oauth_words_is_temporary(self, overdue, everifin, fault):
        everifin.faults.add("token.refresh_token", **fault)
        self._assert_temporary(overdue, "unavailable")

    def test_f15_a_withdrawn_consent_asks_the_user_to_connect_again(self, overdue, everifin):
        everifin.withdraw_consent(keep_session=True)
        with pytest.raises(ConsentExpiredError) as caught:
            ensure_fresh(overdue.user)
        assert caught.value.reason == "consent_withdrawn"

    @pytest.mark.parametrize("claim", ["sub", "iss", "aud", "azp"])
    def test_f16_an_id_token_of_somebody_else_stops_the_connection(
        self, overdue, everifin, claim, caplog
    ):
        everifin.id_token_hook = lambda headers, claims: (headers, {**claims, claim: "other"})
        with pytest.raises(ConsentExpiredError) as caught:
            ensure_fresh(overdue.user)
        assert caught.value.reason == "identity_changed"
        row = _now(overdue)
        assert row.access_ciphertext == overdue.access_ciphertext
        assert everifin.live_sessions() == 0
        assert "CRITICAL" in caplog.text

    def test_f16_an_id_token_that_is_none_stops_the_connection(self, overdue, everifin):
        everifin.id_token_hook = lambda _headers, _claims: "not a token"
        with pytest.raises(ConsentExpiredError):
            ensure_fresh(overdue.user)

    def test_f17_an_answer_without_a_refresh_token_keeps_the_old_one(self, overdue, everifin):
        everifin.rotation = "off"
        ensure_fresh(overdue.user)
        assert _now(overdue).open_token("refresh") == overdue.open_token("refresh")

    def test_f19_a_late_good_answer_wins_over_a_premature_death(
        self, overdue, everifin, monkeypatch
    ):
        monkeypatch.setattr(refresh, "TAKEOVER_PATIENCE_SECONDS", 0)
        # The provider forgives the replay here: what is tried is our own bookkeeping.
        everifin.rotation = "default"
        holder = _attempt(overdue)
        holder.claim()
        answer = holder.send()
        _let_lease_run_out(overdue)
        everifin.faults.add(
            "token.refresh_token",
            status=400,
            body='{"error": "invalid_grant"}',
            content_type="application/json",
            times=1,
        )
        with pytest.raises(ConsentExpiredError):
            ensure_fresh(overdue.user)
        assert holder.store(answer).token_version == 2
        assert _now(overdue).status == "active"
        assert _is_alive(overdue, everifin)

    def test_f19_who_took_over_waits_for_the_holders_answer(self, overdue, everifin, monkeypatch):
        holder = _attempt(overdue)
        holder.claim()
        answer = holder.send()
        _let_lease_run_out(overdue)
        monkeypatch.setattr(time, "sleep", lambda _seconds: holder.store(answer))
        assert ensure_fresh(overdue.user).token_version == 2
        assert _now(overdue).status == "active"

    @pytest.mark.parametrize("storing", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    def test_a50_two_takeovers_in_a_row_keep_one_good_answer(self, overdue, everifin, storing):
        everifin.rotation = "default"  # under strict rotation, the first takeover ends the session
        tries = [_attempt(overdue) for _ in range(3)]
        answers = []
        for attempt in tries:
            assert attempt.claim()
            answers.append(attempt.send())
            _let_lease_run_out(overdue)
        for number in storing:
            assert tries[number].store(answers[number]).token_version == 2
        assert _now(overdue).open_token("access") == answers[storing[0]].access
        assert everifin.live_sessions() == 1
        assert not PendingRevocation.objects.exists()
        assert _is_alive(overdue, everifin)

    def test_f20_a_disconnect_in_flight_wins_and_the_new_token_is_ended(
        self, overdue, everifin, meanwhile
    ):
        meanwhile(lambda: grants.disconnect(overdue.user))
        with pytest.raises(TokenMissingError):
            ensure_fresh(overdue.user)
        row = _now(overdue)
        assert (row.status, row.refresh_ciphertext) == ("disconnected", "")
        assert everifin.live_sessions() == 0
        assert not PendingRevocation.objects.exists()

    def test_f21_a_new_grant_in_flight_stays_and_the_late_answer_is_dropped(
        self, overdue, everifin, everifin_connect, client, meanwhile
    ):
        client.force_login(overdue.user)
        meanwhile(lambda: everifin_connect(client))
        row = ensure_fresh(overdue.user)
        assert row.token_version == 2
        assert row.sid != overdue.sid
        assert _is_alive(overdue, everifin)

    def test_f22_a_stale_reading_claims_nothing(self, overdue, everifin):
        stale = _attempt(overdue)
        ensure_fresh(overdue.user)
        assert not stale.claim()
        assert everifin.calls["token.refresh_token"] == 1

    @pytest.mark.parametrize("skew", [-600, 600])
    def test_f23_clocks_that_differ_cost_no_grant(self, overdue, everifin, skew):
        everifin.clock_skew_seconds = skew
        ensure_fresh(overdue.user)
        assert _is_alive(overdue, everifin)

    def test_f24_a_missing_key_stops_before_anything_is_sent_or_written(
        self, overdue, everifin, settings
    ):
        before = BankToken.objects.values().get()
        settings.EVERIFIN_ENCRYPTION_KEYS = ["other:" + "A" * 43 + "="]
        with pytest.raises(UnknownKeyError):
            ensure_fresh(overdue.user)
        assert BankToken.objects.values().get() == before
        assert everifin.calls["token.refresh_token"] == 0

    def test_f24_keys_that_fail_while_everifin_answers_cost_no_token(
        self, overdue, everifin, settings
    ):
        attempt = Attempt(overdue, time.monotonic() + 10)
        assert attempt.claim()
        granted = attempt.send()
        settings.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.BrokenVault"
        stored = attempt.store(granted)
        assert stored is not None
        assert stored.token_version == 2
        with pytest.raises(KeysUnavailableError):
            grants.get_access_token(overdue.user)

        settings.EVERIFIN_KEY_PROVIDER = DEFAULT_KEY_PROVIDER
        assert grants.get_access_token(overdue.user).version == 2
        assert everifin.calls["token.refresh_token"] == 1

    def test_f24_keys_that_fail_stop_a_refresh_before_anything_is_sent_or_written(
        self, overdue, everifin, settings
    ):
        before = BankToken.objects.values().get()
        settings.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.BrokenVault"
        with pytest.raises(KeysUnavailableError):
            ensure_fresh(overdue.user)
        assert BankToken.objects.values().get() == before
        assert everifin.calls["token.refresh_token"] == 0

    def test_f26_an_answer_that_is_already_expired_makes_no_loop(self, overdue, everifin):
        everifin.faults.add(
            "token.refresh_token",
            status=200,
            body='{"access_token": "a", "refresh_token": "r", "token_type": "bearer", '
            '"expires_in": 0}',
            content_type="application/json",
        )
        for _ in range(3):
            with pytest.raises(UnavailableError):
                ensure_fresh(overdue.user)
        assert everifin.calls["token.refresh_token"] == 1
        row = _now(overdue)
        assert (row.token_version, row.open_token("refresh")) == (2, Secret("r"))
        assert timedelta(0) < row.retry_after - timezone.now() <= timedelta(seconds=5)

    def test_f27_a_user_deleted_in_flight_leaves_no_live_token(self, overdue, everifin, meanwhile):
        meanwhile(overdue.user.delete)
        with pytest.raises(TokenMissingError):
            ensure_fresh(overdue.user)
        assert everifin.live_sessions() == 0

    def _assert_temporary(self, row, reason):
        """The tokens are kept, nobody is asked to connect again, and the next try waits."""
        with pytest.raises(UnavailableError) as caught:
            ensure_fresh(row.user)
        assert _pause(caught) > 0
        now = _now(row)
        assert now.status == "active"
        assert now.refresh_ciphertext == row.refresh_ciphertext
        assert now.lease_until is None
        assert now.retry_after > timezone.now()
        assert now.last_error == reason


class TestDeadConnections:
    def test_a_user_who_is_not_active_is_not_refreshed(self, overdue, everifin):
        overdue.user.is_active = False
        with pytest.raises(TokenMissingError):
            ensure_fresh(overdue.user)
        assert everifin.calls["token.refresh_token"] == 0

    def test_a_disconnect_between_reading_and_refusal_is_what_counts(
        self, overdue, everifin, meanwhile
    ):
        everifin.end_sessions()
        meanwhile(lambda: grants.disconnect(overdue.user))
        with pytest.raises(TokenMissingError):
            ensure_fresh(overdue.user)

    def test_a_grant_stored_while_giving_up_is_used(self, overdue, everifin, monkeypatch):
        everifin.end_sessions()
        attempt = _attempt(overdue)
        attempt.claim()
        give_up = Attempt._same_version
        store = BankToken.objects.filter(pk=overdue.pk)

        def overtaken(self):
            store.update(token_version=5)
            return give_up(self)

        monkeypatch.setattr(Attempt, "_same_version", overtaken)
        assert attempt.run().token_version == 5

    def test_without_a_refresh_token_the_access_token_is_used_to_its_end(self, everifin, age):
        row = BankTokenFactory(refresh_token=None)
        age(row, seconds=270)
        assert ensure_fresh(row.user).token_version == 1
        age(row, minutes=6)
        with pytest.raises(ConsentExpiredError) as caught:
            ensure_fresh(row.user)
        assert caught.value.reason == "no_refresh_token"
        assert _now(row).status == "needs_reconnect"

    def test_a_waiter_gives_up_at_its_deadline(self, overdue, everifin, settings):
        settings.EVERIFIN_DEADLINE_SECONDS = 0.01
        _attempt(overdue).claim()
        with pytest.raises(UnavailableError):
            ensure_fresh(overdue.user)
        assert everifin.calls["token.refresh_token"] == 0

    def test_a_waiter_takes_what_the_holder_stored(self, overdue, everifin, monkeypatch):
        holder = _attempt(overdue)
        holder.claim()
        monkeypatch.setattr(time, "sleep", lambda _seconds: holder.run())
        assert ensure_fresh(overdue.user).token_version == 2
        assert everifin.calls["token.refresh_token"] == 1


@pytest.mark.django_db(transaction=True)
class TestDatabaseFaults:
    """F18: the database connection dies before the store."""

    @pytest.fixture
    def faults(self):
        """Give a list of how often the next store shall still fail."""
        left = [0]

        def fail(execute, sql, params, many, context):
            if sql.startswith("UPDATE") and "access_ciphertext" in sql and left[0] > 0:
                left[0] -= 1
                raise OperationalError("server closed the connection unexpectedly")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(fail):
            yield left

    def test_f18_the_store_is_repeated_over_a_new_connection(
        self, overdue, everifin, faults, monkeypatch
    ):
        monkeypatch.setattr(refresh, "POLL_SECONDS", (0, 0))
        faults[0] = 2
        before = connection.connection
        assert ensure_fresh(overdue.user).token_version == 2
        assert connection.connection is not before
        assert _now(overdue).token_version == 2

    def test_a49_a_lock_on_the_row_that_outlasts_the_patience_at_the_store_costs_no_token(
        self, overdue, everifin, monkeypatch
    ):
        attempt = _attempt(overdue)
        assert attempt.claim()
        answer = attempt.send()
        is_locked, may_end = threading.Event(), threading.Event()

        def lock_the_row():
            with transaction.atomic():
                BankToken.objects.filter(pk=overdue.pk).update(scope="locked")
                is_locked.set()
                may_end.wait(60)
                transaction.set_rollback(True)
            connections.close_all()

        other = threading.Thread(target=lock_the_row)
        pauses = []

        def pause(seconds):
            pauses.append(seconds)
            may_end.set()
            other.join()

        with connection.cursor() as cursor:
            cursor.execute(IMPATIENCE[connection.vendor])
        other.start()
        assert is_locked.wait(60)
        monkeypatch.setattr(time, "sleep", pause)
        assert attempt.store(answer).token_version == 2
        assert len(pauses) == 1
        assert _now(overdue).open_token("access") == answer.access

    def test_f18_when_it_stays_away_this_request_is_served_and_the_alarm_raised(
        self, overdue, everifin, faults, monkeypatch, caplog
    ):
        monkeypatch.setattr(refresh, "STORE_RETRY_SECONDS", 0)
        faults[0] = 99
        row = ensure_fresh(overdue.user)
        assert row.open_token("access") != overdue.open_token("access")
        assert _now(overdue).token_version == 1
        assert "CRITICAL" in caplog.text


@pytest.mark.django_db(transaction=True)
class TestTransactions:
    def test_a_testcase_around_a_test_is_no_transaction(self):
        assert not refresh.in_transaction("default")
        with transaction.atomic():
            assert refresh.in_transaction("default")

    def test_without_autocommit_everything_is_a_transaction(self):
        transaction.set_autocommit(False)
        try:
            assert refresh.in_transaction("default")
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    def test_a_due_token_is_used_as_it_is_inside_a_transaction(self, due, everifin):
        with transaction.atomic():
            assert ensure_fresh(due.user).token_version == 1
        assert everifin.calls["token.refresh_token"] == 0

    @pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has room for one writer")
    def test_f4_new_tokens_outlive_the_rollback_of_the_transaction_they_were_needed_in(
        self, overdue, everifin
    ):
        user = overdue.user
        with transaction.atomic():
            UserFactory()
            assert ensure_fresh(user).token_version == 2
            transaction.set_rollback(True)
        assert _now(overdue).token_version == 2
        assert _is_alive(overdue, everifin)

    def test_f4_a_rejected_token_is_refreshed_inside_a_transaction_that_has_locked_nothing(
        self, connected, everifin, begin_as
    ):
        begin_as(None)
        user = connected.user
        with transaction.atomic():
            assert ensure_fresh(user, rejected=connected.seen()).token_version == 2
            transaction.set_rollback(True)
        assert _now(connected).token_version == 2
        assert _is_alive(connected, everifin)

    @pytest.mark.skipif("connection.vendor != 'sqlite'", reason="SQLite has room for one writer")
    @pytest.mark.parametrize("mode", [None, "IMMEDIATE"])
    def test_f4_a_transaction_that_has_locked_sqlite_is_told_so_before_anything_is_sent(
        self, overdue, everifin, monkeypatch, begin_as, mode
    ):
        begin_as(mode)
        monkeypatch.setattr(own_connection, "SQLITE_LOCK_SECONDS", 0.01)
        user = overdue.user
        with transaction.atomic(), pytest.raises(RefreshInTransactionError, match="everifin_req"):
            ensure_fresh(user)
        assert everifin.calls["token.refresh_token"] == 0
        assert ensure_fresh(user).token_version == 2

    @pytest.mark.skipif("connection.vendor != 'sqlite'", reason="SQLite has room for one writer")
    def test_f4_a_transaction_that_has_locked_sqlite_holds_no_other_refresh_up(
        self, overdue, everifin, settings, begin_as
    ):
        begin_as("IMMEDIATE")
        settings.EVERIFIN_DEADLINE_SECONDS = 0.5
        assert _attempt(overdue).claim()
        user = overdue.user
        with transaction.atomic(), pytest.raises(RefreshInTransactionError):
            ensure_fresh(user)

    @pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has room for one writer")
    def test_f4_a_row_the_transaction_has_locked_costs_no_token(self, overdue, everifin, settings):
        settings.EVERIFIN_DEADLINE_SECONDS = 2
        user = overdue.user
        with transaction.atomic():
            BankToken.objects.filter(pk=overdue.pk).update(scope="openid")
            with pytest.raises(UnavailableError):
                ensure_fresh(user)
        assert everifin.calls["token.refresh_token"] == 0
        assert ensure_fresh(user).token_version == 2

    @pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has room for one writer")
    def test_f22_a_snapshot_does_not_hide_what_another_process_refreshed(self, overdue, everifin):
        user = overdue.user
        with transaction.atomic():
            BankToken.objects.count()
            assert ensure_fresh(user).token_version == 2
            assert ensure_fresh(user).token_version == 2
        assert everifin.calls["token.refresh_token"] == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.protocol.site")
class TestAtomicRequests:
    """Whole requests of a site with ATOMIC_REQUESTS."""

    @pytest.fixture(autouse=True)
    def atomic_requests(self, monkeypatch):
        monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    @pytest.fixture
    def site(self, client):
        client.raise_request_exception = False
        return client

    def test_f3_a_view_that_raises_keeps_the_token_refreshed_for_it(self, overdue, everifin, site):
        assert site.get("/marked-then-error/").status_code == 500
        assert _now(overdue).token_version == 2
        assert _is_alive(overdue, everifin)

    @pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has room for one writer")
    def test_f4_a_view_without_the_mark_keeps_its_refreshed_token_too(
        self, overdue, everifin, site
    ):
        assert site.get("/unmarked-then-error/").status_code == 500
        assert _now(overdue).token_version == 2
        assert site.get("/unmarked/").status_code == 200
        assert _is_alive(overdue, everifin)

    @pytest.mark.skipif("connection.vendor != 'sqlite'", reason="SQLite has room for one writer")
    def test_f4_on_sqlite_an_unmarked_view_is_refreshed_after_its_rollback_and_asked_again(
        self, overdue, everifin, site, caplog
    ):
        answer = site.get("/unmarked/", headers={"accept": "text/html"})
        assert (answer.status_code, answer["Retry-After"], answer["Refresh"]) == (503, "1", "1")
        assert "tests.protocol.site.unmarked" in caplog.text
        assert everifin.calls["token.refresh_token"] == 1
        assert site.get("/unmarked/").status_code == 200
        assert _is_alive(overdue, everifin)

    def test_a_token_everifin_rejects_inside_the_view_is_refreshed_there(
        self, connected, everifin, site, begin_as
    ):
        begin_as(None)
        everifin.expire_access_tokens()
        assert site.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1


class TestOddAnswers:
    """A refresh token that came is kept, whatever is odd beside it."""

    @pytest.fixture
    def twist(self, monkeypatch):
        """Give a function that changes what the token endpoint answers, after it did its work."""

        def twist(*, times: int, **changes: Any) -> None:
            call, left = Sandbox.__call__, iter(range(times))

            def answer(self: Sandbox, environ: Any, start_response: Any) -> list[bytes]:
                heads: list[Any] = []
                body = b"".join(call(self, environ, lambda *head: heads.append(head)))
                if environ["PATH_INFO"].endswith("/token") and next(left, None) is not None:
                    body = json.dumps(json.loads(body) | changes).encode()
                status, headers = heads[0]
                start_response(
                    status, [*dict(headers, **{"Content-Length": f"{len(body)}"}).items()]
                )
                return [body]

            monkeypatch.setattr(Sandbox, "__call__", answer)

        return twist

    @pytest.mark.parametrize(
        "changes",
        [{"access_token": "a b"}, {"access_token": None}, {"token_type": "DPoP"}],
        ids=repr,
    )
    def test_an_access_token_that_cannot_be_used_is_refreshed_once_more(
        self, overdue, everifin, twist, changes
    ):
        everifin.calls.clear()
        twist(times=1, **changes)
        access = grants.get_access_token(overdue.user)
        assert everifin.calls["token.refresh_token"] == 2
        assert access.token.reveal().count(".") == 2
        row = _now(overdue)
        assert (row.status, row.last_error, row.failures) == ("active", "", 0)
        assert row.token_version == overdue.token_version + 2

    def test_if_that_does_not_help_it_pauses_and_the_newest_token_is_kept(
        self, overdue, everifin, twist
    ):
        everifin.calls.clear()
        twist(times=2, access_token="a b")
        for _ in range(3):
            with pytest.raises(UnavailableError) as caught:
                grants.get_access_token(overdue.user)
            assert 0 < _pause(caught) <= 5
        assert everifin.calls["token.refresh_token"] == 2
        row = _now(overdue)
        assert (row.status, row.last_error) == ("active", "no_access_token")
        BankToken.objects.update(retry_after=None)
        assert grants.get_access_token(overdue.user).token.reveal().count(".") == 2

    @pytest.mark.parametrize(
        "changes",
        [{"id_token": ""}, {"expires_in": ""}, {"token_type": None}, {"refresh_token": ""}],
        ids=repr,
    )
    def test_all_else_that_is_odd_costs_nothing(self, overdue, everifin, twist, changes):
        everifin.calls.clear()
        twist(times=1, **changes)
        assert grants.get_access_token(overdue.user).token.reveal().count(".") == 2
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_login_whose_access_token_cannot_be_used_refreshes_when_it_is_needed(
        self, client, everifin, everifin_connect, twist
    ):
        twist(times=1, access_token="a b")
        everifin_connect(client, view="login")
        assert client.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1

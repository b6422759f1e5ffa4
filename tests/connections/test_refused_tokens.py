"""What is spent on a token that Everifin refuses, and for how long Everifin is left alone."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.utils import timezone

from everifin_django.connections import everifin_for, refresh
from everifin_django.connections.refresh import ensure_fresh
from everifin_django.exceptions import ConsentExpiredError, UnavailableError
from everifin_django.models import BankToken, in_database_seconds
from everifin_django.testing.factories import BankTokenFactory, UserFactory
from tests.protocol.threads import together

REFUSED: dict[str, Any] = {
    "status": 401,
    "body": '{"meta": {"status": "ERROR"}, "errors": [{"code": "INVALID_ACCESS_TOKEN"}]}',
    "content_type": "application/json",
}
THREADS = 8


@pytest.mark.django_db(transaction=True)
def test_threads_that_share_a_client_refresh_once_for_one_refused_token(connected, everifin):
    bank = everifin_for(connected.user)
    bank.ensure_token()
    refused = bank._source.get()
    everifin.expire_access_tokens()
    answers = together(THREADS, lambda: [account.id for account in bank.accounts()])
    assert answers == [answers[0]] * THREADS
    assert everifin.calls["token.refresh_token"] == 1
    # A refusal that is heard late, when the token has been replaced long since.
    assert bank._source.refresh(refused) == bank._source.get()
    assert everifin.calls["token.refresh_token"] == 1


@pytest.mark.django_db
@pytest.mark.urls("tests.protocol.site")
def test_tokens_that_the_sandbox_expires_again_and_again_are_no_outage(connected, everifin, client):
    for _ in range(3):
        everifin.expire_access_tokens()
        assert client.get("/accounts/").status_code == 200
    assert everifin.calls["token.refresh_token"] == 1
    # Some seconds later, the new token has expired as well.
    everifin.clock_skew_seconds = 6
    BankToken.objects.update(refreshed_at=F("refreshed_at") - timedelta(seconds=6))
    assert client.get("/accounts/").status_code == 200
    assert everifin.calls["token.refresh_token"] == 2


@pytest.mark.django_db
@pytest.mark.urls("tests.protocol.site")
class TestABankAPIThatRefusesAllTokens:
    @pytest.fixture(autouse=True)
    def refusing(self, everifin):
        everifin.faults.add("api", **REFUSED)

    def let_pass(self, minutes: float) -> None:
        """Let time pass for the connection, in this process and for the others."""
        by = timedelta(minutes=minutes)
        times = ("issued_at", "access_expires_at", "refreshed_at", "rejected_at")
        BankToken.objects.update(**{name: F(name) - by for name in times})
        refresh.clear_pauses()

    def test_page_views_one_after_another_refresh_once(self, connected, everifin, client):
        for _ in range(25):
            assert client.get("/accounts/").status_code == 503
        assert everifin.calls["token.refresh_token"] == 1
        assert BankToken.objects.get().health() == BankToken.Health.DEGRADED

    def test_an_hour_of_page_views_costs_what_expiry_costs_and_six_more_at_most(
        self, connected, everifin, client
    ):
        for _ in range(25):
            assert client.get("/accounts/").status_code == 503
            self.let_pass(minutes=2.4)
        assert everifin.calls["token.refresh_token"] <= 60 / 5 + 60 / 10 + 1

    def test_a_token_that_was_refreshed_just_now_is_not_refreshed_again(
        self, connected, everifin, age
    ):
        age(connected, minutes=6)
        with pytest.raises(UnavailableError):
            list(everifin_for(connected.user).accounts())
        assert everifin.calls["token.refresh_token"] == 1
        assert BankToken.objects.get().rejected_at is not None

    def test_another_process_sees_the_pause_in_the_row(self, connected, everifin):
        with pytest.raises(UnavailableError):
            list(everifin_for(connected.user).accounts())
        refresh.clear_pauses()
        BankToken.objects.update(refreshed_at=None)
        with pytest.raises(UnavailableError):
            list(everifin_for(connected.user).accounts())
        assert everifin.calls["token.refresh_token"] == 1

    def test_the_process_pauses_only_when_several_connections_meet_it(self, everifin):
        users = [UserFactory() for _ in range(4)]
        for number, user in enumerate(users):
            everifin.add_user(f"person-{number}")
            everifin.connect(user, f"person-{number}")
        for user in users:
            with pytest.raises(UnavailableError):
                list(everifin_for(user).accounts())
        assert everifin.calls["token.refresh_token"] == refresh.REJECTED_CONNECTIONS

    def test_when_the_bank_api_is_back_the_token_serves(self, connected, everifin, client):
        assert client.get("/accounts/").status_code == 503
        everifin.faults.clear()
        assert client.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_token_that_runs_out_meanwhile_is_refreshed_all_the_same(
        self, connected, everifin, client
    ):
        assert client.get("/accounts/").status_code == 503
        everifin.faults.clear()
        self.let_pass(minutes=6)
        assert client.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 2


@pytest.mark.django_db
class TestAnErrorObjectThatNeverEnds:
    """Dex answers ``invalid_request`` for a refresh token that is dead."""

    @pytest.fixture
    def overdue(self, connected, age):
        age(connected, minutes=6)
        return connected

    def refuse(self, everifin: Any, error: str, status: int = 400) -> None:
        everifin.faults.clear()
        everifin.faults.add(
            "token.refresh_token",
            status=status,
            body=json.dumps({"error": error}),
            content_type="application/json",
        )

    def try_after(self, row: BankToken, seconds: float) -> None:
        """Try to refresh, let *seconds* pass since the first refusal, and try again."""
        with pytest.raises(UnavailableError):
            ensure_fresh(row.user)
        BankToken.objects.filter(pk=row.pk, refused_since__isnull=False).update(
            refused_since=in_database_seconds(-seconds)
        )
        BankToken.objects.update(retry_after=None)
        ensure_fresh(row.user)

    def another_was_refreshed(self, minutes_ago: float) -> None:
        BankTokenFactory(refreshed_at=timezone.now() - timedelta(minutes=minutes_ago))

    def test_after_an_hour_the_user_is_asked_to_connect_again(self, overdue, everifin):
        self.another_was_refreshed(minutes_ago=30)
        self.refuse(everifin, "invalid_request")
        with pytest.raises(ConsentExpiredError) as caught:
            self.try_after(overdue, 3601)
        assert caught.value.reason == "invalid_request"
        row = BankToken.objects.get(pk=overdue.pk)
        assert (row.status, row.last_error) == ("needs_reconnect", "invalid_request")
        assert row.refresh_ciphertext == overdue.refresh_ciphertext

    def test_before_the_hour_is_over_it_is_temporary(self, overdue, everifin):
        self.another_was_refreshed(minutes_ago=30)
        self.refuse(everifin, "invalid_request")
        with pytest.raises(UnavailableError):
            self.try_after(overdue, 3500)

    @pytest.mark.parametrize("minutes_ago", [None, 61])
    def test_without_another_refresh_in_that_hour_it_is_temporary(
        self, overdue, everifin, minutes_ago
    ):
        if minutes_ago is not None:
            self.another_was_refreshed(minutes_ago)
        self.refuse(everifin, "invalid_request")
        with pytest.raises(UnavailableError):
            self.try_after(overdue, 3601)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            ("temporarily_unavailable", 400),
            ("server_error", 400),
            ("invalid_client", 400),
            ("unauthorized_client", 400),
            ("invalid_request", 403),
            ("invalid_request", 404),
            ("invalid_request", 500),
        ],
    )
    def test_what_is_temporary_or_about_the_client_stays_temporary(
        self, overdue, everifin, error, status, monkeypatch
    ):
        monkeypatch.setattr(refresh, "CLIENT_REFUSED_PAUSE_SECONDS", 0)
        self.another_was_refreshed(minutes_ago=30)
        self.refuse(everifin, error, status)
        with pytest.raises(UnavailableError):
            self.try_after(overdue, 3601)
        assert BankToken.objects.get(pk=overdue.pk).refused_since is None

    def test_a_refresh_that_succeeds_ends_the_hour(self, overdue, everifin):
        self.refuse(everifin, "invalid_request")
        with pytest.raises(UnavailableError):
            ensure_fresh(overdue.user)
        BankToken.objects.update(retry_after=None)
        everifin.faults.clear()
        assert ensure_fresh(overdue.user).token_version == 2
        assert BankToken.objects.get().refused_since is None

    def test_a_good_answer_that_comes_late_revives_it(self, overdue, everifin):
        everifin.rotation = "default"
        row = BankToken.objects.select_related("user").get()
        holder = refresh.Attempt(row, time.monotonic() + 10)
        assert holder.claim()
        answer = holder.send()
        BankToken.objects.update(
            status=BankToken.Status.NEEDS_RECONNECT, last_error="invalid_request"
        )
        assert holder.store(answer) is not None
        assert BankToken.objects.get().status == "active"

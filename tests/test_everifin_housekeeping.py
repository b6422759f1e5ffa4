"""``everifin_housekeeping``: the one line for cron."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.utils import timezone

from everifin_django.connections import bulk_disconnect, housekeeping
from everifin_django.models import (
    BankToken,
    LoginFlow,
    LoginSession,
    LogoutSeen,
    PendingRevocation,
    SpentState,
)
from everifin_django.testing.factories import (
    BankTokenFactory,
    LoginFlowFactory,
    LoginSessionFactory,
    LogoutSeenFactory,
    PendingRevocationFactory,
    SpentStateFactory,
)

pytestmark = pytest.mark.django_db

ENDED = {
    "status": "disconnected",
    "end_reason": "logout",
    "access_token": None,
    "refresh_token": None,
}


def run(*options: str) -> tuple[str, int]:
    """What the command prints, and its exit code."""
    written = StringIO()
    try:
        call_command("everifin_housekeeping", *options, stdout=written, stderr=written)
    except SystemExit as end:
        return written.getvalue(), int(str(end.code))
    return written.getvalue(), 0


def test_there_may_be_nothing_to_do(everifin):
    assert run() == ("left in the outbox: 0\n", 0)


def test_it_does_everything_that_ages(everifin):
    long_ago = timezone.now() - timedelta(days=400)
    stale: Any = BankTokenFactory(status="needs_reconnect")
    ended: Any = BankTokenFactory(**ENDED)
    BankToken.objects.filter(pk__in=[stale.pk, ended.pk]).update(updated_at=long_ago)
    inactive: Any = BankTokenFactory()
    get_user_model()._base_manager.filter(pk=inactive.user_id).update(is_active=False)
    stopped: Any = BankTokenFactory()
    bulk_disconnect.disable(BankToken.objects.filter(pk=stopped.pk), "admin")
    LoginSessionFactory(refresh_token="of another browser", check_after=long_ago)
    SpentStateFactory(spent_at=long_ago)
    LoginFlowFactory(started_at=long_ago)
    LogoutSeenFactory(seen_at=long_ago)
    summary = (
        "tokens moved to the outbox after an incident: 1\n"
        "users who are no longer active: 1\n"
        "connections whose tokens were deleted: 1\n"
        "rows of ended connections deleted: 1\n"
        "logins whose sessions are over: 1\n"
        "used login states deleted: 1\n"
        "logins that were begun long ago deleted: 1\n"
        "logouts seen deleted: 1\n"
        "grants ended at Everifin: 4\n"
        "left in the outbox: 0\n"
    )
    assert run() == (summary, 0)
    assert everifin.calls["logout"] == 4
    for model in (LoginSession, LoginFlow, SpentState, LogoutSeen, PendingRevocation):
        assert not model._default_manager.exists()
    assert set(BankToken.objects.values_list("pk", "refresh_ciphertext")) == {
        (row.pk, "") for row in (stale, inactive, stopped)
    }


def test_live_connections_are_left_alone(connected, everifin):
    before = BankToken.objects.values().get()
    run()
    assert BankToken.objects.values().get() == before
    assert everifin.live_sessions() == 1


def test_users_who_were_deactivated_together_are_found_and_nobody_waits(everifin):
    everifin.faults.add("logout", status=503)
    BankTokenFactory.create_batch(8)
    get_user_model()._base_manager.update(is_active=False)
    written, code = run()
    assert "users who are no longer active: 8\n" in written
    assert (written.splitlines()[-1], code) == ("left in the outbox: 8", 0)
    assert set(BankToken.objects.values_list("status", "end_reason")) == {
        ("disconnected", "user_inactive")
    }


@pytest.mark.parametrize("reason", ["disconnected", "admin", "incident"])
def test_an_end_on_purpose_is_remembered(everifin, reason):
    """A login must not connect again, however long ago it was."""
    row: Any = BankTokenFactory(status="disconnected", end_reason=reason, refresh_token=None)
    BankToken.objects.update(updated_at=timezone.now() - timedelta(days=4000))
    bulk = BankToken.objects.filter(pk=row.pk)
    run()
    assert bulk.get().end_reason == reason


def test_ended_rows_are_deleted_when_their_time_is_over(settings, everifin):
    settings.EVERIFIN_DISCONNECTED_RETENTION_DAYS = 10
    BankTokenFactory(**ENDED)
    BankToken.objects.update(updated_at=timezone.now() - timedelta(days=9))
    run()
    assert BankToken.objects.count() == 1
    BankToken.objects.update(updated_at=timezone.now() - timedelta(days=11))
    run()
    assert BankToken.objects.count() == 0


def test_a_task_that_fails_keeps_no_other_from_being_done(everifin, monkeypatch, caplog):
    def broken() -> int:
        raise RuntimeError("with a secret in it")

    monkeypatch.setattr(
        housekeeping, "TASKS", {"the first": broken, **housekeeping.TASKS}, raising=True
    )
    PendingRevocationFactory()
    written, code = run()
    assert code == 1
    assert "the first: failed (RuntimeError)\n" in written
    assert "grants ended at Everifin: 1\n" in written
    assert "secret" not in written + caplog.text


def test_what_is_given_up_wakes_somebody(everifin):
    everifin.faults.add("logout", status=503)
    PendingRevocationFactory()
    PendingRevocation.objects.update(created_at=timezone.now() - timedelta(days=31))
    written, code = run()
    assert "grants given up: 1\n" in written
    assert code == 1


@pytest.mark.parametrize("options", [["--concurrency", "0"], ["--max-seconds", "0"]])
def test_wrong_bounds_are_refused(options):
    with pytest.raises(CommandError, match="above 0"):
        run(*options)

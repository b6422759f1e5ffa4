"""The tasks, by each scheduler that knows them."""

from datetime import timedelta
from decimal import Decimal
from io import StringIO

import django
import pytest
from celery import Celery
from django.core.management import CommandError, call_command
from django.utils import timezone

from everifin_django import tasks
from everifin_django.bank.payments import SinglePayment
from everifin_django.connections import everifin_for, housekeeping
from everifin_django.models import BankToken, Payment, SpentState
from everifin_django.testing.factories import BankTokenFactory
from everifin_django.testing.sandbox.data import iban

pytestmark = pytest.mark.django_db


@pytest.fixture
def lost(settings, everifin, django_user_model):
    """A payment whose answer was lost after the work."""
    settings.EVERIFIN_SCOPES = "openid ais pis"
    settings.EVERIFIN_REDIRECT_URI = "https://shop.test/everifin/callback/"
    user = django_user_model.objects.create_user("payer")
    everifin.connect(user)
    everifin.faults.add("api.payments", lost="after", times=1)
    payment = SinglePayment(
        amount=Decimal("12.30"), currency="EUR", recipient_iban=iban("SK", "9991", 7)
    )
    row = everifin_for(user).pay_once("order-1", payment)
    assert row.state == Payment.State.UNCERTAIN
    return row


def is_found() -> bool:
    return Payment.objects.get().state == Payment.State.OPEN


def test_a_plain_call(lost):
    assert tasks.resolve_payments() == {"open": 1}
    assert is_found()


def test_none_is_looked_for_beyond_the_limit(lost):
    assert tasks.resolve_payments(limit=0) == tasks.resolve_payments(limit=-1) == {}
    assert not is_found()


def test_celery(lost):
    app = Celery("site", set_as_current=False)
    app.conf.task_always_eager = True
    task = app.tasks["everifin_django.tasks.resolve_payments"]
    assert task.delay(limit=5).get() == {"open": 1}
    assert is_found()


@pytest.mark.skipif(django.VERSION < (6, 0), reason="Django has tasks from 6.0 on")
def test_djangos_own(lost):
    result = tasks.resolve_payments_task.enqueue(limit=5)
    assert result.return_value == {"open": 1}
    assert is_found()


class TestRefreshing:
    @pytest.fixture(autouse=True)
    def due(self, settings, everifin, django_user_model):
        settings.EVERIFIN_SCOPES = "openid ais offline_access"
        everifin.connect(django_user_model.objects.create_user("absent"))
        now = timezone.now()
        BankToken.objects.update(
            issued_at=now - timedelta(days=30), refresh_expires_at=now + timedelta(hours=2)
        )

    def test_a_plain_call(self):
        assert tasks.refresh_due(within_seconds=3600) == {}
        assert tasks.refresh_due(not_refreshed_for_seconds=1200) == {"refreshed": 1}
        assert tasks.refresh_due() == {}

    def test_an_end_before_everything_is_done_is_logged(self, caplog):
        assert tasks.refresh_due(max_seconds=0) == {}
        assert "ended early: the time is over." in caplog.text

    def test_celery(self):
        app = Celery("site", set_as_current=False)
        app.conf.task_always_eager = True
        task = app.tasks["everifin_django.tasks.refresh_due"]
        assert task.delay(within_seconds=10_800).get() == {"refreshed": 1}

    @pytest.mark.skipif(django.VERSION < (6, 0), reason="Django has tasks from 6.0 on")
    def test_djangos_own(self):
        result = tasks.refresh_due_task.enqueue(within_seconds=10_800, concurrency=2)
        assert result.return_value == {"refreshed": 1}


class TestHousekeeping:
    def test_a_plain_call(self):
        SpentState.objects.create(digest="0" * 64, spent_at=timezone.now() - timedelta(days=1))
        found = tasks.run_housekeeping()
        assert sum(found.values()) == 1
        assert not SpentState.objects.exists()

    def test_a_part_that_fails_is_left_out_and_logged(self, monkeypatch, caplog):
        def fail() -> int:
            raise LookupError

        monkeypatch.setitem(housekeeping.TASKS, "old things", fail)
        assert "old things" not in tasks.run_housekeeping()
        assert "old things failed: LookupError" in caplog.text

    @pytest.mark.skipif(django.VERSION < (6, 0), reason="Django has tasks from 6.0 on")
    def test_djangos_own(self):
        assert sum(tasks.run_housekeeping_task.enqueue(max_seconds=5).return_value.values()) == 0


NAN = float("nan")


class TestBounds:
    """What no run can be given is an error at once, and says so."""

    @pytest.mark.parametrize("seconds", [-1, -1e300, 1e11, 1e300, float("inf"), NAN])
    @pytest.mark.parametrize(
        "name", ["within_seconds", "access_within_seconds", "not_refreshed_for_seconds"]
    )
    def test_times(self, name, seconds):
        with pytest.raises(ValueError, match="10 years"):
            tasks.refresh_due(**{name: seconds})

    @pytest.mark.parametrize("task", [tasks.refresh_due, tasks.run_housekeeping])
    @pytest.mark.parametrize(
        "given",
        [{"concurrency": 0}, {"concurrency": 10**9}, {"max_seconds": NAN}, {"max_seconds": -1}],
        ids=str,
    )
    def test_runs(self, task, given):
        with pytest.raises(ValueError, match="must be"):
            task(**given)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["everifin_refresh", "--max-seconds", "nan"],
            ["everifin_housekeeping", "--max-seconds", "nan"],
            ["everifin_housekeeping", "--concurrency", "257"],
            ["everifin_disconnect", "--all", "--workers", "257"],
        ],
        ids=" ".join,
    )
    def test_commands(self, arguments):
        with pytest.raises(CommandError, match="must be"):
            call_command(*arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["everifin_payments", "--limit"],
            ["everifin_rotate_keys", "--batch-size"],
        ],
        ids=" ".join,
    )
    def test_more_rows_than_a_database_can_count(self, arguments):
        BankTokenFactory()
        call_command(*arguments, str(10**24), stdout=StringIO())

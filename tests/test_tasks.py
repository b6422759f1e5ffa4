"""The tasks, by each scheduler that knows them."""

from decimal import Decimal

import django
import pytest
from celery import Celery

from everifin_django import tasks
from everifin_django.bank.payments import SinglePayment
from everifin_django.connections import everifin_for
from everifin_django.models import Payment
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

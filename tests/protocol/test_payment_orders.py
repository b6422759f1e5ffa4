"""
Two calls of ``pay_once`` with one key, played in every order with every failure.

Each process takes the ledger's own steps: record, claim, send, store. Every order of the two is
played with no failure, with a crash of either process after each of its steps, and with each fault
of Everifin at the request that creates the payment. Whatever happens, Everifin makes one payment at
most, and once the leases have passed the row tells the truth about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from everifin_django.bank.payments import SinglePayment
from everifin_django.connections import everifin_for, ledger
from everifin_django.exceptions import EverifinError, PaymentUncertainError, RefusedError
from everifin_django.models import Payment
from everifin_django.testing.sandbox.data import iban

STEPS = ("record", "claim", "send", "store")
FAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "lost before the work": {"lost": "before"},
    "lost after the work": {"lost": "after"},
    "503 instead of the work": {"status": 503},
    "502 after the work": {"status": 502, "lost": "after", "html": True},
    "401 of a gateway after the work": {"status": 401, "lost": "after", "html": True},
    "refused": {
        "status": 400,
        "body": {"meta": {"status": "ERROR"}, "errors": [{"code": "INPUT_DATA_ERROR"}]},
    },
}
QUICK = {"none", "lost after the work"}
CRASHES = [
    None,
    *(
        pytest.param(crash, marks=pytest.mark.exhaustive)
        for crash in itertools.product((0, 1), range(len(STEPS)))
    ),
]
ORDERS = sorted(set(itertools.permutations((0,) * len(STEPS) + (1,) * len(STEPS))))

pytestmark = [pytest.mark.django_db]


@dataclass
class Purchase:
    """One purchase that two processes try to pay: the user, the key, and who talks to Everifin."""

    user: Any
    key: str

    @property
    def payment(self) -> SinglePayment:
        return SinglePayment(
            amount=Decimal("5.00"),
            currency="EUR",
            recipient_iban=iban("SK", "9991", 7),
            recipient_name="Anna",
        )

    def process(self) -> Iterator[str]:
        """The steps of ``pay_once``, one for each turn."""
        client = everifin_for(self.user)
        row = ledger.record(self.user, self.key, self.payment)
        yield "record"
        value = ledger.claim(row) if row.state == Payment.State.RECORDED else None
        yield "claim"
        if value is None:
            return
        asked: Any = ledger.with_way_back(row, "https://shop.test/back/")
        try:
            everifin_id = client.create_payment(asked)
        except PaymentUncertainError:
            yield "send"
            ledger.mark_uncertain(row, "answer_lost")
        except RefusedError:
            yield "send"
            ledger.finish(row, Payment.State.REFUSED, reason="refused")
        except EverifinError:
            yield "send"
            ledger.release(row)
        else:
            yield "send"
            ledger.store_created(row, everifin_id)
        yield "store"

    def play(self, order: tuple[int, ...], crash: tuple[int, int] | None) -> None:
        processes = [self.process(), self.process()]
        taken = [0, 0]
        for who in order:
            if crash is not None and crash[0] == who and taken[who] > crash[1]:
                continue
            next(processes[who], None)
            taken[who] += 1


@pytest.fixture
def payer(settings, everifin, django_user_model):
    settings.EVERIFIN_SCOPES = "openid ais pis"
    user = django_user_model.objects.create_user("payer")
    everifin.connect(user)
    return user


def made(everifin: Any, row: Payment) -> int:
    """How many payments Everifin made for the row."""
    payments = everifin.store.payments(everifin.user("alice").sub, "single")
    return sum(one.document["sent"].get("externalId") == row.external_id for one in payments)


def let_time_pass(row: Payment) -> Payment:
    """Return the row after its lease has passed and it was looked for a day later."""
    long_ago = timezone.now() - timedelta(days=2)
    Payment.objects.filter(pk=row.pk, lease_until__isnull=False).update(lease_until=long_ago)
    Payment.objects.filter(pk=row.pk, sent_at__isnull=False).update(sent_at=long_ago)
    return ledger.look(everifin_for(row.user), ledger.reread(row))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[] if fault in QUICK else pytest.mark.exhaustive)
        for fault in FAULTS
    ],
)
@pytest.mark.parametrize("crash", CRASHES, ids=str)
def test_no_order_of_two_processes_pays_twice(everifin, payer, fault, crash):
    """With each fault, and with each crash; on SQLite with each of both, too."""
    if connection.vendor != "sqlite" and crash is not None and fault != "none":
        pytest.skip("a server has each fault and each crash by itself")
    for number, order in enumerate(ORDERS):
        everifin.faults.clear()
        if FAULTS[fault]:
            everifin.faults.add("api.payments", times=1, **FAULTS[fault])
        purchase = Purchase(payer, f"order-{number}")
        purchase.play(order, crash)
        everifin.faults.clear()
        row = Payment.objects.get(key=purchase.key)
        count = made(everifin, row)
        assert count <= 1, (order, row.state)
        row = let_time_pass(row)
        if count:
            assert row.state == Payment.State.OPEN, order
            assert row.everifin_id, order
        else:
            expected = {Payment.State.RECORDED, Payment.State.ABSENT, Payment.State.REFUSED}
            assert row.state in expected, order


def test_there_are_as_many_orders_as_combinatorics_says():
    assert len(ORDERS) == 70
    assert len(CRASHES) == 1 + 2 * len(STEPS)

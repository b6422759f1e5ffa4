"""
Many payments, each tried by several processes, while processes are killed and answers are lost.

``PAYMENT_CRASH_RUN_PAYMENTS`` says how many payments (60 by default), and
``PAYMENT_CRASH_RUN_SEED`` repeats what was drawn.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from everifin_django.connections import everifin_for, ledger
from everifin_django.models import Payment
from everifin_django.testing.factories import UserFactory
from everifin_django.testing.fake import FakeEverifin, as_in_settings
from everifin_django.testing.sandbox import Fault, Sandbox
from everifin_django.testing.sandbox.api import accounts_of
from everifin_django.testing.sandbox.data import iban
from everifin_django.testing.sandbox.server import serve
from tests.protocol.crash_run import Weather
from tests.protocol.payment_worker import STEPS

CHECKOUT = Path(__file__).parents[2]
PROCESSES = 8
TRIES_OF_A_KEY = 3
WORKER_SECONDS = 120
MAX_ROUNDS = 40
REFUSED_TOKEN = json.dumps(
    {
        "meta": {"status": "ERROR"},
        "errors": [{"code": "INVALID_ACCESS_TOKEN", "title": "No"}],
    }
)


def faults() -> dict[Fault, float]:
    """What calls that pay meet, and how often."""
    found: dict[Fault, float] = {}
    for where in ("api.payments", "api.payment"):
        found |= {
            Fault(where=where, lost="before"): 0.04,
            Fault(where=where, lost="after"): 0.04,
            Fault(where=where, status=401, html=True, lost="after"): 0.03,
            Fault(
                where=where, status=401, body=REFUSED_TOKEN, content_type="application/json"
            ): 0.03,
            Fault(where=where, status=503): 0.03,
            Fault(where=where, status=502, html=True, lost="after"): 0.03,
        }
    return found


@pytest.mark.django_db(transaction=True)
@pytest.mark.exhaustive
def test_no_crash_pays_twice(settings):
    count = int(os.environ.get("PAYMENT_CRASH_RUN_PAYMENTS", "60"))
    seed = int(os.environ.get("PAYMENT_CRASH_RUN_SEED", random.randrange(2**32)))
    draw = random.Random(seed)
    settings.EVERIFIN_SCOPES = "openid ais pis"
    sandbox = FakeEverifin(**as_in_settings())
    weather = Weather(draw, faults())
    with serve(sandbox) as server:
        at_everifin = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
            "EVERIFIN_SCOPES": settings.EVERIFIN_SCOPES,
            "EVERIFIN_REDIRECT_URI": "https://shop.test/everifin/callback/",
            "EVERIFIN_DEADLINE_SECONDS": 3,
        }
        for name, value in at_everifin.items():
            setattr(settings, name, value)
        user = UserFactory()
        sandbox.connect(user, scope=settings.EVERIFIN_SCOPES)
        sandbox.faults = weather  # type: ignore[assignment]  # stands for them
        killed = pay_all(sandbox, user, draw, at_everifin, count)
        weather.is_calm = True
        states = settle(user)
        made = Counter(
            one.document["sent"]["externalId"]
            for one in sandbox.store.payments(sandbox.user("alice").sub, "single")
        )
        print(f"\n{count} payments, --seed {seed}")
        print("killed", dict(killed), "faults", dict(weather.seen), "states", dict(states))
        rows = list(Payment.objects.all())
        assert len(rows) == count
        assert [row.key for row in rows if made[row.external_id] > 1] == []
        assert [row.key for row in rows if is_untrue(sandbox, row, made)] == []


def pay_all(
    sandbox: Sandbox, user: Any, draw: random.Random, settings: dict[str, Any], count: int
) -> Counter[str]:
    """Let the processes pay until each key was tried as often as is wanted; return who died."""
    sender = next(
        one.iban
        for one in accounts_of(sandbox, sandbox.user("alice"))
        if one.plan.bank.id == "eftdemo3"
    )
    queue = [f"order-{number}" for number in range(count)] * TRIES_OF_A_KEY
    draw.shuffle(queue)
    killed: Counter[str] = Counter()
    for number in range(MAX_ROUNDS):
        shares = [queue[start::PROCESSES] for start in range(PROCESSES)]
        queue = []
        workers = [
            (share, step := draw.choice(STEPS), start(user, share, step, number, sender, settings))
            for share in shares
            if share
        ]
        for share, step, worker in workers:
            done, _ = worker.communicate(timeout=WORKER_SECONDS)
            if worker.returncode:
                killed[step] += 1
                # The key in hand was tried; the others wait for another process.
                queue += share[len(done.split()) + 1 :]
        if not queue:
            return killed
    raise AssertionError(f"{len(queue)} tries are left after {MAX_ROUNDS} rounds")


def start(
    user: Any, keys: list[str], step: str, seed: int, sender: str, settings: dict[str, Any]
) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.protocol.payment_worker"],
        cwd=CHECKOUT,
        env={**os.environ, "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    orders = {
        "keys": keys,
        "step": step,
        "seed": f"{seed}.{keys[0]}",
        "user": user.pk,
        "sender": sender,
        "payee": iban("SK", "9991", 7),
        "settings": settings,
    }
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(orders) + "\n")
    worker.stdin.flush()
    return worker


def settle(user: Any) -> Counter[str]:
    """Look for what is unfinished, days later, and return the states that are left."""
    long_ago = timezone.now() - timedelta(days=3)
    for _ in range(3):
        Payment.objects.exclude(lease_until=None).update(lease_until=long_ago)
        Payment.objects.exclude(sent_at=None).update(sent_at=long_ago)
        ledger.look_at_all(everifin_for, limit=10_000)
    return Counter(Payment.objects.values_list("state", flat=True))


def is_untrue(sandbox: Sandbox, row: Payment, made: Counter[str]) -> bool:
    """Does the row say something else than Everifin knows?"""
    State = Payment.State  # noqa: N806 - it is a class
    if not made[row.external_id]:
        return row.state not in {State.RECORDED, State.ABSENT, State.REFUSED}
    found = everifin_for(row.user).payment(row.everifin_id)
    if found.status.is_final:
        return row.state != (State.PAID if found.status.is_paid else State.FAILED)
    return row.state != State.OPEN

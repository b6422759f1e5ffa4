"""
One process of a site that pays: for each key it is given, ``pay_once`` and then step after step.

Started by ``test_payment_crashes``. At the step that its orders name, the process ends itself by
SIGKILL. Prints each key that it is done with.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

STEPS = (
    "after record",
    "after claim",
    "after send",
    "after store",
    "before step",
    "after step",
)
MAX_STEPS = 8


def main() -> None:
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.auth import get_user_model

    orders = json.loads(sys.stdin.readline())
    for name, value in orders["settings"].items():
        setattr(settings, name, value)
    end_at(orders["step"], random.Random(orders["seed"]))
    user = get_user_model().objects.get(pk=orders["user"])
    for key in orders["keys"]:
        pay(user, key, orders["sender"], orders["payee"])
        print(key, flush=True)


def end_at(step: str, draw: random.Random) -> None:
    """Let the ledger's steps end this process, now and then, at *step*."""
    from everifin_django.connections import ledger

    watched: Any = ledger

    def meet(label: str) -> None:
        if label == step and draw.random() < 0.3:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(name: str, *, before: str = "", after: str = "") -> None:
        inner: Callable[..., Any] = getattr(watched, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            meet(before)
            result = inner(*args, **kwargs)
            meet(after)
            return result

        setattr(watched, name, outer)

    watch("record", after="after record")
    watch("claim", after="after claim")
    watch("_send", after="after send")
    watch("store_created", after="after store")
    watch("_take_one_step", before="before step", after="after step")


def pay(user: Any, key: str, sender: str, payee: str) -> None:
    from everifin_django.bank.client import EndUser
    from everifin_django.bank.payments import SinglePayment
    from everifin_django.connections import ledger
    from everifin_django.connections.grants import Everifin
    from everifin_django.exceptions import EverifinError

    payment = SinglePayment(
        amount=Decimal("1.00"),
        currency="EUR",
        recipient_iban=payee,
        recipient_name="Anna",
        sender_iban=sender,
    )
    everifin = Everifin(user, end_user=EndUser(ip="203.0.113.9", user_agent="Browser/1"))
    for _ in range(MAX_STEPS):
        try:
            row = everifin.pay_once(key, payment)
            if row.is_final or row.state == row.State.UNCERTAIN:
                return
            if row.state == row.State.OPEN:
                ledger.take_step(everifin, row)
        except EverifinError:
            pass
        time.sleep(0.01)


if __name__ == "__main__":
    main()

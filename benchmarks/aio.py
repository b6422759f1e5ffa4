"""
What async calls gain: ``python -m benchmarks.aio``.

Three calls of half a second each that are gathered, beside the slowest one; and the rows of a list
by ``async for``, beside ``for``. The sandbox answers within this process. What is printed are
ratios within the run, as quartiles.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import django

ROUNDS = 15
LATENCY_SECONDS = 0.5


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from everifin_django.bank.client import Client
    from everifin_django.secret import Secret
    from everifin_django.testing.fake import fake_everifin
    from tests.testing import Site

    class Source:
        def get(self) -> Secret:
            return token

        def refresh(self, rejected: Secret) -> Secret:
            return token

        def reject(self, rejected: Secret) -> None:
            pass

    with fake_everifin() as everifin:
        token = Secret(Site(everifin).tokens()["access_token"])
        client = Client(Source())
        account = next(client.accounts()).id
        count = len(list(client.transactions(account)))

        async def rows() -> None:
            async for _ in client.atransactions(account, page_size=50):
                pass

        print_ratio(
            f"{count} rows by async for / by for",
            lambda: asyncio.run(rows()),
            lambda: list(client.transactions(account, page_size=50)),
        )
        everifin.faults.add("api", latency_seconds=LATENCY_SECONDS)

        async def gathered() -> None:
            await asyncio.gather(*(client.abalances(account) for _ in range(3)))

        print_ratio(
            f"three gathered calls of {LATENCY_SECONDS} s / one",
            lambda: asyncio.run(gathered()),
            lambda: client.balances(account),
        )


def print_ratio(name: str, one: Callable[[], Any], other: Callable[[], Any]) -> None:
    ratios = [seconds(one) / seconds(other) for _ in range(ROUNDS)]
    quartiles = statistics.quantiles(ratios, n=4)
    print("{}: quartiles {:.2f} {:.2f} {:.2f}".format(name, *quartiles))


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

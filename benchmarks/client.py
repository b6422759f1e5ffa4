"""
What the bank client costs beside bare requests, and what a million rows take:
``python -m benchmarks.client``.

A process of its own answers over HTTP, at once and with answers made before. What is compared takes
turns in every round, and what is printed are ratios within the run of the processor's time of this
process. The time of the server, which is the same for each way, is not in it: it would only bring
the ways nearer to each other. Rows a second are by the clock.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import django
import requests

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from everifin_django.bank.client import Client

ROUNDS, CALLS = 41, 50
PAGE_ROWS = 50
FIRST = datetime(2025, 3, 4, 8, 11, 2)  # noqa: DTZ001 - written with a Z
ROW = {
    "id": "70231",
    "direction": "IN",
    "amount": 125.5,
    "currency": "EUR",
    "type": "TRANSFER",
    "bookingDate": "2025-03-04T00:00:00.000Z",
    "valueDate": "2025-03-05T00:00:00.000Z",
    "counterpartyName": "Ukážka s.r.o.",
    "counterpartyIban": "SK3112000000198742637541",
    "counterpartyBic": "TESTSKBX",
    "variableSymbol": "20250017",
    "constantSymbol": "0308",
    "specificSymbol": None,
    "reference": None,
    "paymentMessage": "Faktúra 20250017",
    "status": "BOOKED",
    "createdAt": "2025-03-04T08:11:02.120Z",
    "lastUpdated": "2025-03-06T08:11:02.120Z",
}
ACCOUNT = {
    "id": "1",
    "iban": "SK3112000000198742637541",
    "name": "Účet",
    "currency": "EUR",
    "balances": [{"type": "CLBD", "amount": 1250.5, "currency": "EUR"}],
}


class Token:
    """Lends the same token for ever."""

    def get(self) -> Any:
        from everifin_django.secret import Secret

        return Secret("benchmark")

    renew = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, options.rows))
    server.start()
    try:
        measure(f"http://127.0.0.1:{here.recv()}", options.rows)
    finally:
        server.terminate()
        server.join()


def measure(url: str, rows: int) -> None:
    from django.test import override_settings

    from everifin_django.bank.client import Client, EndUser

    with override_settings(EVERIFIN_API_URL=url):
        # The memory first: what the others leave behind would hide it.
        measure_rows(Client(Token()), rows)  # type: ignore[arg-type]
        end_user = EndUser("192.0.2.7", "Mozilla/5.0")
        measure_calls(url, Client(Token(), end_user=end_user))  # type: ignore[arg-type]
    measure_decoding()


def measure_rows(client: Client, rows: int) -> None:
    for _ in client.transactions("1", page_size=PAGE_ROWS, direction="IN"):
        break
    gc.collect()
    before, began = peak_mb(), time.perf_counter()
    number = sum(1 for _ in client.transactions("1", page_size=PAGE_ROWS))
    seconds = time.perf_counter() - began
    if number != rows:
        raise SystemExit(f"{number} rows came, not {rows}.")
    print(f"{number} rows: {number / seconds:.0f} rows/s, peak {peak_mb() - before:.1f} MB more")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_calls(url: str, client: Client) -> None:
    address = f"{url}/v1/bank-accounts/1"
    headers = {
        "Authorization": "Bearer benchmark",
        "Accept": "application/json",
        "Accept-Encoding": "gzip",
        "Content-Type": "application/json",
        "User-Agent": "Mozilla/5.0",
        "client-ip-address": "192.0.2.7",
    }
    session = requests.Session()
    ways: dict[str, Callable[[], Any]] = {
        "client": partial(client.account, "1"),
        "session": lambda: session.get(address, headers=headers, timeout=10).json(),
        "new connection": lambda: requests.get(address, headers=headers, timeout=10).json(),
    }
    taken = in_turn(ways, CALLS)
    print(f"one account, {ROUNDS} rounds of {CALLS} calls each way, quartiles:")
    for other in ("session", "new connection"):
        print(f"  client / {other}:", ratio(taken["client"], taken[other]))


def measure_decoding() -> None:
    """
    From the bytes of a page to its rows, as the client does it, and from what JSON says to its rows
    alone. Pages in turn, whose rows differ, so that nothing is found ready from the round before.
    """
    from everifin_django.bank import accounts
    from everifin_django.bank.errors import envelope
    from everifin_django.bank.pages import read_page
    from everifin_django.http.client import Answer
    from everifin_django.http.strict_json import strict_json

    starts = range(0, CALLS * PAGE_ROWS, PAGE_ROWS)
    texts = [_text([row(start + number) for number in range(PAGE_ROWS)]) for start in starts]
    answers = [Answer("GET", "/", 200, {}, text) for text in texts]
    decoded = [strict_json(text)["data"] for text in texts]
    read = accounts.transaction_reader()
    ways: dict[str, Callable[[], Any]] = {
        "json": lambda: [json.loads(text) for text in texts],
        "whole": lambda: [read_page(read, envelope(answer), "/", 1) for answer in answers],
        "strict": lambda: [strict_json(text) for text in texts],
        "rows": lambda: [[read(row) for row in rows] for rows in decoded],
    }
    taken = in_turn(ways, 1)
    print(
        f"{PAGE_ROWS} rows of {len(texts[0])} bytes, {ROUNDS} rounds of {CALLS} pages, quartiles:"
    )
    print("  bytes to dataclasses / json.loads:", ratio(taken["whole"], taken["json"]))
    print("    of that, strict JSON / json.loads:", ratio(taken["strict"], taken["json"]))
    print("    of that, dataclasses / json.loads:", ratio(taken["rows"], taken["json"]))


def row(number: int) -> dict[str, Any]:
    """Return a row that differs from all others where real ones do."""
    created = FIRST + timedelta(minutes=37 * number, milliseconds=number % 1000)
    day = created.replace(hour=0, minute=0, second=0, microsecond=0)
    moments = {
        "bookingDate": day,
        "valueDate": day + timedelta(days=1),
        "createdAt": created,
        "lastUpdated": created if number % 3 else created + timedelta(days=2),
    }
    return {
        **ROW,
        "id": str(70_000 + number),
        "amount": number + 0.25,
        "counterpartyName": f"Ukážka {number}",
        **{name: f"{at.isoformat(timespec='milliseconds')}Z" for name, at in moments.items()},
    }


def _text(rows: list[dict[str, Any]]) -> bytes:
    page = {"meta": {"status": "SUCCESS"}, "data": rows}
    return json.dumps(page, ensure_ascii=False).encode()


def in_turn(ways: dict[str, Callable[[], Any]], calls: int) -> dict[str, list[float]]:
    """
    Return the seconds of processor each of *ways* took in each round, the first of which does not
    count.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, call in ways.items():
            began = time.process_time()
            for _ in range(calls):
                call()
            taken[name].append(time.process_time() - began)
    return {name: seconds[1:] for name, seconds in taken.items()}


def ratio(ours: list[float], theirs: list[float]) -> str:
    each = [one / other for one, other in zip(ours, theirs, strict=True)]
    return "{:.3f} {:.3f} {:.3f}".format(*statistics.quantiles(each, n=4))


# The server


def serve(pipe: Connection, rows: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        threading.Thread(target=_converse, args=(connection, rows), daemon=True).start()


def _converse(connection: socket.socket, rows: int) -> None:
    account = _answer({"meta": {"status": "SUCCESS"}, "data": ACCOUNT})
    with connection:
        while text := connection.recv(65_536):
            target = text.split(b" ", 2)[1].decode()
            page = parse_qs(urlsplit(target).query).get("page")
            connection.sendall(_page(int(page[0]), rows) if page else account)


def _page(number: int, rows: int) -> bytes:
    first = (number - 1) * PAGE_ROWS
    last = -(-rows // PAGE_ROWS)
    data = [{**ROW, "id": str(number)} for number in range(first, min(first + PAGE_ROWS, rows))]
    following = f"/?page={number + 1}" if number < last else None
    pagination = {"page": number, "last": last, "nextPageUrl": following}
    return _answer({"meta": {"status": "SUCCESS", "pagination": pagination}, "data": data})


def _answer(content: Any) -> bytes:
    body = json.dumps(content, ensure_ascii=False).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


if __name__ == "__main__":
    main()

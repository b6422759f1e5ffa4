"""Rows in an answer that is sent while they come."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.http import StreamingHttpResponse

from everifin_django.bank.streaming import until_error
from everifin_django.connections import everifin_for
from everifin_django.exceptions import EverifinError, UnavailableError

pytestmark = pytest.mark.django_db


def name(error: EverifinError) -> str:
    return type(error).__name__


@pytest.fixture
def rows(everifin, connected):
    """Give an account's id and its client, whose second page fails."""
    client = everifin_for(connected.user)
    account = next(iter(client.accounts()))
    ids = [row.id for row in client.transactions(account.id, page_size=5)[:5]]
    everifin.faults.clear()
    return client, account.id, ids


def test_an_error_becomes_the_last_row(rows, everifin, caplog):
    client, account_id, ids = rows
    transactions = client.transactions(account_id, page_size=5)
    seen = [next(transactions).id for _ in range(5)]
    everifin.faults.add("api", status=503)
    rest = list(until_error(transactions, name))
    assert (seen, rest) == (ids, ["UnavailableError"])
    [record] = [one for one in caplog.records if "ended early" in one.getMessage()]
    assert record.levelno == logging.ERROR
    assert account_id not in record.getMessage()


def test_without_an_error_nothing_is_added(rows):
    client, account_id, _ = rows
    found = list(until_error(client.transactions(account_id), name))
    assert found == list(client.transactions(account_id))


def test_other_errors_go_on():
    def broken():
        yield 1
        raise ZeroDivisionError

    shown = until_error(broken(), name)
    assert next(shown) == 1
    with pytest.raises(ZeroDivisionError):
        next(shown)


def test_async_rows_are_ended_the_same_way():
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise UnavailableError("not now")

    async def read() -> list[int | str]:
        return [row async for row in until_error(broken(), name)]

    assert asyncio.run(read()) == [1, "UnavailableError"]


def test_a_stream_that_is_closed_closes_its_rows():
    closed = []

    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    async def leave() -> None:
        source = rows()
        shown = until_error(source, name)
        assert await anext(shown) == 1
        await shown.aclose()  # type: ignore[attr-defined]  # as a server does
        await source.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert closed == [True]


def test_a_response_is_whole_lines_with_the_error_at_its_end(rows, everifin):
    client, account_id, ids = rows
    lines = (json.dumps({"id": row.id}) for row in client.transactions(account_id, page_size=5))
    ended = until_error(lines, lambda error: json.dumps({"error": name(error)}))
    response = StreamingHttpResponse(f"{line}\n" for line in ended)
    sent: Any = response.streaming_content
    got = [next(sent) for _ in range(5)]
    everifin.faults.add("api", status=503)
    got += list(sent)
    decoded = [json.loads(line) for line in got]
    assert decoded == [*({"id": one} for one in ids), {"error": "UnavailableError"}]

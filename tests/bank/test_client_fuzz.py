"""Whatever the bank API answers becomes rows or one of our errors, never anything else."""

import json
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from everifin_django.bank import accounts
from everifin_django.bank.client import Client
from everifin_django.exceptions import EverifinError
from everifin_django.secret import Secret
from everifin_django.testing.adapter import mount
from everifin_django.testing.sandbox import Sandbox

MOMENT = "2025-03-04T08:11:02.120Z"
ROW = {
    "id": "70231",
    "direction": "IN",
    "amount": 125.5,
    "currency": "EUR",
    "bookingDate": MOMENT,
    "counterpartyName": "Ukážka s.r.o.",
    "reference": None,
    "lastUpdated": MOMENT,
}
PAGES = {"page": 1, "last": 1, "nextPageUrl": None}
ANSWERS: list[dict[str, Any]] = [
    {"meta": {"status": "SUCCESS", "pagination": PAGES}, "data": [ROW, {**ROW, "id": 7}]},
    {
        "meta": {"status": "ERROR"},
        "errors": [
            {
                "code": "REQUEST_VALIDATION_ERROR",
                "title": "Invalid query",
                "detail": {"rule": "enum", "field": "direction", "message": "no"},
            }
        ],
    },
    {"type": "bank-login-url", "status": "ERROR", "errors": [{"code": "INTERNAL_SERVER_ERROR"}]},
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from([10**400, "1e999999", "2025-13-01", "\ud83d", "9" * 5000, [], {}, [[]], [{}]]),
)
CUTS = st.tuples(st.integers(0, 600), st.integers(0, 40), st.binary(max_size=8))


def positions(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in *value* with every key in it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, dict | list):
            yield from positions(inner)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A real-looking answer, some of its values odd, some of its bytes changed."""
    answer = json.loads(json.dumps(draw(st.sampled_from(ANSWERS))))
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(list(positions(answer))))
        with suppress(KeyError, IndexError):  # an earlier change took it away
            # A copy: a later change may go into it, and the next example draws it as it was.
            container[key] = deepcopy(draw(ODD))
    text = json.dumps(answer, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.booleans()):
        start, length, bytes_put_in = draw(CUTS)
        text = text[:start] + bytes_put_in + text[start + length :]
    return text


class Source:
    def get(self) -> Secret:
        return Secret("token")

    def refresh(self, rejected: Secret) -> Secret:
        return rejected

    def reject(self, rejected: Secret) -> None:
        pass


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(idp_url="https://fuzz.test")
    with mount(sandbox):
        yield sandbox


@settings(max_examples=200, deadline=None)
@given(body=bodies(), status=st.sampled_from([200, 400, 403, 404, 422]))
def test_an_answer_is_rows_or_one_of_our_errors(sandbox, body, status):
    sandbox.faults.clear()
    sandbox.faults.add("api", body=body, status=status)
    with override_settings(EVERIFIN_API_URL=sandbox.api_url):
        rows = Client(Source()).transactions("1")
        try:
            found = list(rows)
        except EverifinError:
            return
    assert all(isinstance(row, accounts.Transaction) for row in found)
    assert all(row.amount.is_finite() for row in found)
    assert all(row.last_updated is None or row.last_updated.tzinfo for row in found)

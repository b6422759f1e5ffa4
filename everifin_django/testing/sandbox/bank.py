"""
The bank API: accounts, their balances and transactions, the manual refresh, and the demo banks.

The filters ending in From are documented by Everifin. Inferred: paths, the filters ending in To,
and which values are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import lru_cache

from django.http import HttpRequest, HttpResponse

from everifin_django.testing.sandbox import data
from everifin_django.testing.sandbox.api import (
    PAGING,
    Refusal,
    Row,
    accounts_of,
    for_user,
    no_such_entity,
    read_query,
    reply_list,
    reply_one,
    wrong,
)
from everifin_django.testing.sandbox.state import State
from everifin_django.testing.sandbox.store import User

REFRESH_SECONDS = 5


# Views


@for_user(scope="ais")
def accounts(state: State, request: HttpRequest, user: User) -> HttpResponse:
    query = read_query(request, allowed=PAGING)
    today = state.today()
    rows = [data.account_as_json(account, today) for account in accounts_of(state, user)]
    return reply_list(query, rows, sortable=("id", "name", "createdAt", "lastUpdated"))


@for_user(scope="ais")
def account(state: State, request: HttpRequest, user: User, account_id: str) -> HttpResponse:
    read_query(request, allowed=())
    return reply_one(data.account_as_json(_account(state, user, account_id), state.today()))


@for_user(scope="ais")
def transactions(state: State, request: HttpRequest, user: User, account_id: str) -> HttpResponse:
    query = read_query(request, allowed=(*PAGING, *FILTERS, "direction"))
    filters = tuple((name, query[name]) for name in (*FILTERS, "direction") if name in query)
    rows = _matching(_account(state, user, account_id), state.today(), filters)
    sortable = ("id", "amount", "bookingDate", "valueDate", "createdAt", "lastUpdated")
    return reply_list(query, rows, sortable=sortable)


@for_user(scope="ais")
def transaction(
    state: State, request: HttpRequest, user: User, account_id: str, transaction_id: str
) -> HttpResponse:
    read_query(request, allowed=())
    for row in data.transactions(_account(state, user, account_id), state.today()):
        if row["id"] == transaction_id:
            return reply_one(row)
    raise no_such_entity()


@for_user(scope="ais")
def refresh(state: State, request: HttpRequest, user: User) -> HttpResponse:
    """
    One download for all accounts of the user, which takes a few seconds and finds nothing new. That
    there is one endpoint for all, and its error, are documented; path, status and answer are not.
    """
    if not state.begin_refresh(user.sub, REFRESH_SECONDS):
        title = "The refresh of the account is already running."
        raise Refusal(409, "ACCOUNT_REFRESH_ALREADY_RUNNING", title)
    return HttpResponse(status=204)


@for_user(scope=None)
def banks(state: State, request: HttpRequest, user: User) -> HttpResponse:
    query = read_query(request, allowed=(*PAGING, "countryCode"))
    country = query.get("countryCode", data.COUNTRY)
    rows = [bank.as_json() for bank in data.BANKS if country == data.COUNTRY]
    return reply_list(query, rows, sortable=("id", "name"))


def _account(state: State, user: User, account_id: str) -> data.Account:
    for account in accounts_of(state, user):
        if account.id == account_id:
            return account
    raise no_such_entity()


# Filters

FILTERS = {
    "updatedFrom": ("lastUpdated", str.__ge__),
    "createdFrom": ("createdAt", str.__ge__),
    "bookingDateFrom": ("bookingDate", str.__ge__),
    "bookingDateTo": ("bookingDate", str.__le__),
    "valueDateFrom": ("valueDate", str.__ge__),
    "valueDateTo": ("valueDate", str.__le__),
}


# The pages of a list are asked for one by one, and each would filter the same rows again.
@lru_cache(maxsize=64)
def _matching(
    account: data.Account, today: date, filters: tuple[tuple[str, str], ...]
) -> tuple[Row, ...]:
    tests = [_test(name, text) for name, text in filters]
    rows = data.transactions(account, today)
    return tuple(row for row in rows if all(test(row) for test in tests))


def _test(name: str, text: str) -> Callable[[Row], bool]:
    return _direction(text) if name == "direction" else _comparison(name, text)


def _direction(text: str) -> Callable[[Row], bool]:
    choices = ["IN", "OUT"]
    if text not in choices:
        raise wrong("enum", "direction", {"choices": choices})
    return lambda row: row["direction"] == text


def _comparison(name: str, text: str) -> Callable[[Row], bool]:
    field, compare = FILTERS[name]
    try:
        moment = datetime.fromisoformat(text)
        bound = data.iso(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise wrong("date", name) from None
    # The API writes every time in the same form, so the texts sort as the times do.
    return lambda row: compare(row[field], bound)

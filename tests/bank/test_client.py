"""The bank API: what is sent, what is made of the answers, and who is told what went wrong."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from datetime import timezone as offset
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.paginator import Paginator
from django.utils import timezone

from everifin_django.api_names import DEFAULT_API_PATHS
from everifin_django.bank import decoding
from everifin_django.bank.accounts import Account, Direction
from everifin_django.bank.aio import CALLS_AT_ONCE
from everifin_django.bank.changes import OVERLAP
from everifin_django.bank.client import Client, EndUser
from everifin_django.bank.pages import MAX_EMPTY_PAGES
from everifin_django.exceptions import (
    AnswerError,
    AnswerLostError,
    EverifinError,
    InvalidRequestError,
    NotAuthorizedError,
    NotFoundError,
    PaymentNotEditableError,
    PaymentRejectedError,
    PaymentUncertainError,
    RateLimitedError,
    RefreshRunningError,
    RefusedError,
    ScopeMissingError,
    TokenMissingError,
    UnavailableError,
)
from everifin_django.http import client as http_client
from everifin_django.http.client import AGENT
from everifin_django.secret import Secret
from tests.support import malicious_server
from tests.support.malicious_server import Server, answer_json, report
from tests.testing import Site

CANARY = "canary-d07e5b"
EDGE = f"<!DOCTYPE html><h1>Blocked</h1>{CANARY}"


@dataclass
class Source:
    """Gives a token, and a newer one when it is refused."""

    token: Secret
    newer: Callable[[], Secret] | None = None
    given: int = 0
    rejected: list[Secret] = field(default_factory=list)

    def get(self) -> Secret:
        self.given += 1
        return self.token

    def refresh(self, rejected: Secret) -> Secret:
        self.rejected.append(rejected)
        self.token = self.newer() if self.newer else self.token
        return self.token

    def reject(self, rejected: Secret) -> None:
        pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """Leave out the pauses between tries; ``tests/http/test_client.py`` looks at them."""
    monkeypatch.setattr(http_client, "sleep", lambda _seconds: None)


@pytest.fixture
def source(everifin) -> Source:
    site = Site(everifin)
    return Source(Secret(site.tokens()["access_token"]))


@pytest.fixture
def client(source) -> Client:
    return Client(source)


@pytest.fixture
def account_id(everifin, client) -> str:
    first: Account = next(iter(client.accounts()))
    everifin.calls.clear()
    return first.id


@pytest.fixture
def answer(everifin) -> Callable[..., None]:
    """Give a function that says what the bank API answers from now on."""

    def prepare(body: object, *, where: str = "api", **options: Any) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        everifin.faults.add(where, body=text, content_type="application/json", **options)

    return prepare


@pytest.fixture
def logged(caplog, monkeypatch) -> Any:
    """What the bank's modules log, whatever an earlier test made of the logging of this process."""
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    for name in ("decoding", "errors"):
        logger = logging.getLogger(f"everifin_django.bank.{name}")
        monkeypatch.setattr(logger, "disabled", False)
        monkeypatch.setattr(logger, "propagate", False)
        monkeypatch.setattr(logger, "handlers", [caplog.handler])
        caplog.set_level(logging.WARNING, logger.name)
    return caplog


LAST: dict[str, Any] = {"nextPageUrl": None}


def error_body(code: object, **more: object) -> dict[str, Any]:
    return {"meta": {"status": "ERROR"}, "errors": [{"code": code, "title": CANARY, **more}]}


def page(*rows: Any, **pagination: Any) -> dict[str, Any]:
    return {"meta": {"status": "SUCCESS", "pagination": pagination}, "data": list(rows)}


def refused(call: Callable[[], object], kind: type[EverifinError], *canaries: str) -> Any:
    """Return the error of *call*, in whose report no canary is seen."""
    with pytest.raises(EverifinError) as caught:
        call()
    assert type(caught.value) is kind
    shown = report(caught.value)
    for canary in (CANARY, *canaries):
        assert canary not in shown
    return caught.value


class TestReading:
    def test_accounts_come_with_balances(self, client):
        accounts = list(client.accounts())
        assert len(accounts) == 3
        assert all(isinstance(account, Account) for account in accounts)
        assert all(account.balance and account.balance.currency for account in accounts)
        assert isinstance(accounts[0].balances[0].amount, Decimal)

    def test_one_account(self, client, account_id):
        account = client.account(account_id)
        assert account.id == account_id
        assert client.account(int(account_id)) == account

    def test_transactions_come_over_all_pages(self, client, account_id, everifin):
        rows = list(client.transactions(account_id))
        assert len({row.id for row in rows}) == len(rows) > 500
        assert everifin.calls["api.transactions"] == -(-len(rows) // 50)

    def test_balances_are_those_of_the_account(self, client, account_id, everifin):
        assert client.balances(account_id) == client.account(account_id).balances
        assert client.balances(account_id)[0].currency == "EUR"
        assert everifin.calls["api.account"] == 3

    def test_the_size_of_a_page_can_be_chosen(self, client, everifin):
        assert len(list(client.accounts(page_size=2))) == 3
        assert everifin.calls["api.accounts"] == 2
        assert everifin.last_request["api.accounts"].query == {"countPerPage": "2", "page": "2"}
        next(client.banks(page_size=7))
        assert everifin.last_request["api.banks"].query == {"countPerPage": "7", "page": "1"}

    def test_the_order_can_be_chosen(self, client, account_id):
        names = [one.name for one in client.accounts(sort="name:desc")]
        assert names == sorted(names, reverse=True) != sorted(names)
        amounts = [row.amount for row in client.transactions(account_id, sort="amount:asc")]
        assert amounts == sorted(amounts)
        error = refused(lambda: list(client.banks(sort="colour:asc")), InvalidRequestError)
        assert error.field == "sort"

    @pytest.mark.parametrize("size", [0, -1])
    def test_a_page_has_at_least_one_row(self, client, account_id, size):
        lists = (client.accounts, client.banks, client.payments, client.bulk_payments)
        for call in (*lists, partial(client.transactions, account_id)):
            with pytest.raises(ValueError, match="at least one row"):
                call(page_size=size)

    def test_one_transaction(self, client, account_id):
        first = next(iter(client.transactions(account_id)))
        assert client.transaction(account_id, first.id) == first

    def test_banks(self, client):
        assert {one.country_code for one in client.banks()} == {"EFT"}

    def test_any_other_call(self, client, account_id):
        envelope = client.request("GET", f"/v1/bank-accounts/{account_id}", params={})
        assert envelope["data"]["id"] == account_id
        assert envelope["meta"] == {"status": "SUCCESS"}
        amount = envelope["data"]["balances"][0]["amount"]
        assert isinstance(amount, Decimal | int)

    def test_a_call_without_content_gives_an_empty_envelope(self, client, everifin):
        everifin.faults.add("api", status=204, body="")
        assert client.request("GET", "/v1/banks") == {}

    def test_corrected_paths_are_used(self, client, settings, everifin):
        settings.EVERIFIN_API_PATHS = {
            "accounts": "/api/v1/bank-accounts",
            "account": "/api/v1/bank-accounts/{account_id}",
        }
        first = next(iter(client.accounts()))
        assert everifin.last_request["api.accounts"].path == "/api/v1/bank-accounts"
        assert client.account(first.id) == first

    def test_corrected_names_are_used(self, client, settings, everifin, answer):
        settings.EVERIFIN_API_FIELDS = {
            "transaction": {"amount": "sum"},
            "query": {
                "updated_from": "changedSince",
                "direction": "way",
                "page": "pageNumber",
                "page_size": "perPage",
            },
            "pagination": {"last": "pages", "next_page_url": "next"},
        }
        answer(page({"id": 1, "sum": 1.5}, pages=2, next="/?page=2"), times=1)
        answer(page({"id": 2, "sum": 2.5}, pages=2, nextPageUrl="/?page=3"), times=1)
        rows = client.transactions("1", updated_from="2025-03-04", direction="IN", page_size=1)
        assert [row.amount for row in rows] == [Decimal("1.5"), Decimal("2.5")]
        asked = everifin.last_request["api.transactions"].query
        assert asked == {
            "changedSince": "2025-03-04T00:00:00.000Z",
            "way": "IN",
            "pageNumber": "2",
            "perPage": "1",
        }

    def test_every_path_can_be_corrected(self, client, settings, everifin, account_id):
        """The sandbox answers below /api/v1 as well, as one of Everifin's samples has it."""
        settings.EVERIFIN_API_PATHS = {
            name: f"/api{path}" for name, path in DEFAULT_API_PATHS.items()
        }
        list(client.accounts())
        list(client.banks())
        client.account(account_id)
        client.balances(account_id)
        row = next(client.transactions(account_id))
        client.transaction(account_id, row.id)
        client.refresh_transactions()
        asked = {name for name in everifin.calls if name.startswith("api.")}
        assert asked == {
            f"api.{name}"
            for name in ("accounts", "account", "transactions", "transaction", "refresh", "banks")
        }
        assert all(everifin.last_request[name].path.startswith("/api/v1/") for name in asked)

    def test_the_clients_repr_shows_no_token(self, client, source):
        assert source.token.reveal() not in repr(client) + repr(source)


class TestRequests:
    def headers(self, everifin) -> Any:
        return everifin.last_request["api.accounts"].headers

    def test_the_token_and_the_kind_of_content_are_sent(self, client, source, everifin):
        list(client.accounts())
        headers = self.headers(everifin)
        assert headers["Authorization"] == f"Bearer {source.token.reveal()}"
        assert headers["Accept"] == "application/json"
        assert headers["Content-Type"] == "application/json"
        assert headers["Accept-Encoding"] == "gzip"

    def test_the_person_present_is_named(self, source, everifin):
        person = EndUser(ip="203.0.113.7", user_agent="Mozilla/5.0 (X11)")
        list(Client(source, end_user=person).accounts())
        headers = self.headers(everifin)
        assert headers["User-Agent"] == "Mozilla/5.0 (X11)"
        assert headers["client-ip-address"] == "203.0.113.7"

    @pytest.mark.parametrize("person", [None, EndUser(), EndUser(user_agent=" ")])
    def test_nobody_is_named_when_nobody_is_there(self, source, everifin, person):
        list(Client(source, end_user=person).accounts())
        headers = self.headers(everifin)
        assert headers["User-Agent"] == AGENT
        assert "client-ip-address" not in headers

    @pytest.mark.parametrize("agent", [" Mozilla/5.0 ", "Mozilla/5.0"])
    def test_spaces_around_the_agent_are_cut(self, source, everifin, agent):
        list(Client(source, end_user=EndUser(user_agent=agent)).accounts())
        assert self.headers(everifin)["User-Agent"] == "Mozilla/5.0"

    @pytest.mark.parametrize("ip", ["203.0.113.7", "2001:db8::1"])
    def test_ip_addresses_are_those_of_the_internet(self, ip):
        assert EndUser(ip=ip).ip == ip

    @pytest.mark.parametrize("ip", ["10.0.0.5", "127.0.0.1", "::1", "fd00::1", "100.64.0.1"])
    def test_no_private_ip_address_is_sent(self, ip):
        with pytest.raises(ValueError, match="public internet"):
            EndUser(ip=ip)

    def test_ipv4_within_ipv6_is_ipv4(self):
        assert EndUser(ip="::ffff:203.0.113.7").ip == "203.0.113.7"

    @pytest.mark.parametrize(
        "ip",
        ["", "localhost", "1.2.3", "1.2.3.4:80", "fe80::1%eth0", "1.2.3.4\r\nX: y", "1.2.3.4 "],
    )
    def test_all_else_is_no_ip_address(self, ip):
        with pytest.raises(ValueError, match="ip is not an IP address") as caught:
            EndUser(ip=ip)
        assert not ip or ip not in str(caught.value)

    @pytest.mark.parametrize("agent", ["a\r\nX-Evil: 1", "ž", "a\0", "a\t"])
    def test_an_agent_is_printable(self, agent):
        with pytest.raises(ValueError, match="user_agent is not printable"):
            EndUser(user_agent=agent)

    def test_a_token_with_a_line_break_is_not_sent(self, everifin):
        call = Client(Source(Secret(f"{CANARY}\r\nX-Evil: 1"))).accounts()
        refused(lambda: next(call), InvalidRequestError)
        assert everifin.calls["api"] == 0

    def test_filters_are_sent_in_everifins_spelling(self, client, account_id, everifin):
        moment = datetime(2026, 3, 4, 9, 11, 2, 120_999, tzinfo=offset(timedelta(hours=1)))
        list(
            client.transactions(
                account_id,
                updated_from=moment,
                created_from=datetime(2026, 3, 4, tzinfo=UTC),
                booking_date_from=date(2026, 3, 4),
                booking_date_to="2027-01-01",
                value_date_from=date(2026, 3, 5),
                value_date_to=date(2027, 1, 1),
                direction=Direction.IN,
                page_size=20,
            )
        )
        assert everifin.last_request["api.transactions"].query == {
            "updatedFrom": "2026-03-04T08:11:02.120Z",
            "createdFrom": "2026-03-04T00:00:00.000Z",
            "bookingDateFrom": "2026-03-04T00:00:00.000Z",
            "bookingDateTo": "2027-01-01T23:59:59.999Z",
            "valueDateFrom": "2026-03-05T00:00:00.000Z",
            "valueDateTo": "2027-01-01T23:59:59.999Z",
            "direction": "IN",
            "countPerPage": "20",
            "page": everifin.last_request["api.transactions"].query["page"],
        }

    def test_filters_filter(self, client, account_id):
        everything = list(client.transactions(account_id))
        middle = everything[len(everything) // 2].booking_date
        assert type(middle) is date
        outgoing = list(client.transactions(account_id, booking_date_from=middle, direction="OUT"))
        assert outgoing == [
            row
            for row in everything
            if row.booking_date >= middle and row.direction is Direction.OUT
        ]

    def test_filters_that_are_not_given_are_not_sent(self, client, account_id, everifin):
        next(iter(client.transactions(account_id)))
        query = everifin.last_request["api.transactions"].query
        assert query == {"page": "1", "countPerPage": "50"}

    @pytest.mark.parametrize("use_tz", [True, False])
    @pytest.mark.parametrize(
        ("zone", "sent"),
        [
            ("America/New_York", "2026-03-04T13:11:02.000Z"),
            ("Europe/Bratislava", "2026-03-04T07:11:02.000Z"),
        ],
    )
    @pytest.mark.parametrize("given", [datetime(2026, 3, 4, 8, 11, 2), "2026-03-04T08:11:02"])  # noqa: DTZ001 - as with USE_TZ off
    def test_a_datetime_without_time_zone_is_of_the_current_one(  # noqa: PLR0913, PLR0917
        self, client, account_id, everifin, settings, use_tz, zone, sent, given
    ):
        settings.USE_TZ, settings.TIME_ZONE = use_tz, zone
        list(islice(client.transactions(account_id, updated_from=given), 1))
        assert everifin.last_request["api.transactions"].query["updatedFrom"] == sent

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_what_django_calls_now_is_now(self, client, account_id, everifin, settings, use_tz):
        settings.USE_TZ, settings.TIME_ZONE = use_tz, "America/New_York"
        list(islice(client.transactions(account_id, created_from=timezone.now()), 1))
        sent = everifin.last_request["api.transactions"].query["createdFrom"]
        assert abs(datetime.fromisoformat(sent) - datetime.now(UTC)) < timedelta(minutes=10)

    @pytest.mark.parametrize(
        ("zone", "given"),
        [("Europe/Bratislava", "0001-01-01T00:00:00"), ("America/New_York", "9999-12-31T23:59:59")],
    )
    def test_a_datetime_at_the_edge_of_the_calendar_is_named(
        self, client, account_id, settings, zone, given
    ):
        settings.TIME_ZONE = zone
        call = partial(client.transactions, account_id, updated_from=given)
        assert refused(call, InvalidRequestError).field == "updatedFrom"

    @pytest.mark.parametrize("given", [5, True, 1.5, [], b"2026-03-04", time(8)])
    def test_what_is_no_date_at_all_is_named(self, client, account_id, given):
        with pytest.raises(TypeError, match="valueDateTo takes a date"):
            client.transactions(account_id, value_date_to=given)

    @pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-03-04T25:00Z"])
    def test_a_text_that_is_no_date_is_named_before_anything_is_sent(
        self, client, account_id, everifin, text
    ):
        call = partial(client.transactions, account_id, value_date_from=text)
        error = refused(call, InvalidRequestError)
        assert (error.field, error.rule, error.status) == ("valueDateFrom", "date", None)
        assert everifin.calls["api"] == 0

    @pytest.mark.parametrize(
        ("text", "sent"),
        [
            ("2026-03-04", "2026-03-04T00:00:00.000Z"),
            ("20260304", "2026-03-04T00:00:00.000Z"),
            ("2026-03-04T08:11:02Z", "2026-03-04T08:11:02.000Z"),
            ("2026-03-04T08:11:02.120+00:00", "2026-03-04T08:11:02.120Z"),
            ("2026-03-04 09:11:02+01:00", "2026-03-04T08:11:02.000Z"),
        ],
    )
    def test_texts_are_sent_in_everifins_spelling(self, client, account_id, everifin, text, sent):
        list(islice(client.transactions(account_id, updated_from=text), 1))
        assert everifin.last_request["api.transactions"].query["updatedFrom"] == sent


class TestChanges:
    def test_the_first_download_is_everything(self, client, account_id):
        changes = client.transaction_changes(account_id)
        assert changes.cursor is None
        rows = list(changes)
        assert rows == list(client.transactions(account_id))
        assert changes.cursor == max(row.last_updated for row in rows) - OVERLAP

    def test_the_next_one_is_what_is_new_or_changed(self, client, account_id, everifin):
        rows = list(client.transactions(account_id))
        latest = sorted(row.last_updated for row in rows)[-3]
        changes = client.transaction_changes(account_id, since=latest)
        assert list(changes) == [row for row in rows if row.last_updated >= latest]
        query = everifin.last_request["api.transactions"].query
        assert query["updatedFrom"].startswith(latest.isoformat()[:19])
        again = client.transaction_changes(account_id, since=changes.cursor)
        assert list(again) == [row for row in rows if row.last_updated >= changes.cursor]
        assert again.cursor == changes.cursor

    def test_a_row_that_changed_comes_again(self, client, answer):
        old = {"id": "1", "amount": 1, "lastUpdated": "2025-03-04T08:11:02.120Z"}
        answer(page(old, **LAST), times=1)
        changes = client.transaction_changes("7")
        assert [row.amount for row in changes] == [1]
        new = {**old, "amount": 2, "lastUpdated": "2025-03-05T08:11:02.120Z"}
        answer(page(new, **LAST), times=1)
        changes = client.transaction_changes("7", since=changes.cursor)
        assert [(row.id, row.amount) for row in changes] == [("1", 2)]
        assert changes.cursor == datetime(2025, 3, 5, 8, 11, 2, 120_000, tzinfo=UTC) - OVERLAP

    def test_a_download_that_stops_early_begins_again(self, client, account_id):
        since = datetime(2020, 1, 1, tzinfo=UTC)
        changes = client.transaction_changes(account_id, since=since)
        list(islice(changes, 60))
        assert changes.cursor == since

    def test_a_download_that_meets_an_error_begins_again(self, client, account_id, everifin):
        changes = client.transaction_changes(account_id)
        list(islice(changes, 50))
        everifin.faults.add("api", status=503)
        refused(lambda: next(changes), UnavailableError)
        assert changes.cursor is None

    def test_what_is_stored_meanwhile_comes_next_time(self, client, answer):
        """A page that was read already may have got a row; so the cursor does not pass it."""
        answer(page({"id": "1", "amount": 1, "lastUpdated": "2999-01-01T00:00:00.000Z"}, **LAST))
        before = datetime.now(UTC)
        changes = client.transaction_changes("7")
        list(changes)
        assert before <= changes.cursor + OVERLAP <= datetime.now(UTC)

    @pytest.mark.parametrize(
        "pages",
        [
            [(1, {"nextPageUrl": "/?page=2", "countTotal": 2}), (2, {**LAST, "countTotal": 3})],
            [(1, {"nextPageUrl": "/?page=2", "countTotal": "3"}), (2, {**LAST, "countTotal": 3})],
            [(1, {"nextPageUrl": None, "last": 3})],
        ],
        ids=["the total changed", "rows are missing", "a last page further on"],
    )
    def test_the_cursor_stays_where_the_list_was_not_complete(self, client, answer, pages):
        for number, pagination in pages:
            row = {"id": number, "amount": 1, "lastUpdated": "2026-03-04T08:11:02.120Z"}
            answer(page(row, **pagination), times=1)
        changes = client.transaction_changes("7", since="2026-01-01")
        assert len(list(changes)) == len(pages)
        assert changes.cursor == datetime(2026, 1, 1, tzinfo=UTC)

    def test_a_row_stored_late_is_not_lost(self, client, answer):
        """It carries an earlier time than one that came before, or the very same millisecond."""
        seen = {"id": "1", "amount": 1, "lastUpdated": "2026-03-04T08:11:02.120Z"}
        answer(page(seen, **LAST), times=1)
        changes = client.transaction_changes("7")
        list(changes)
        assert changes.cursor < datetime(2026, 3, 4, 8, 10, tzinfo=UTC)

    def test_the_cursor_never_goes_back(self, client, answer):
        answer(page({"id": "1", "amount": 1, "lastUpdated": "2025-03-04T08:11:02.120Z"}, **LAST))
        changes = client.transaction_changes("7", since="2026-01-01")
        list(changes)
        assert changes.cursor == datetime(2026, 1, 1, tzinfo=UTC)

    def test_rows_without_a_time_move_nothing(self, client, answer):
        answer(page({"id": "1", "amount": 1}, **LAST))
        changes = client.transaction_changes("7")
        assert len(list(changes)) == 1
        assert changes.cursor is None

    def test_history_can_be_left_out(self, client, account_id, everifin):
        day = date(2026, 1, 1)
        rows = list(client.transaction_changes(account_id, booking_date_from=day, page_size=100))
        assert rows == list(client.transactions(account_id, booking_date_from=day))
        assert everifin.last_request["api.transactions"].query["bookingDateFrom"]


class TestRefresh:
    def test_a_second_one_is_running_already(self, client, everifin):
        assert client.refresh_transactions() is None
        error = refused(client.refresh_transactions, RefreshRunningError)
        assert (error.code, error.status) == ("ACCOUNT_REFRESH_ALREADY_RUNNING", 409)
        assert everifin.last_request["api.refresh"].method == "POST"

    def test_after_a_while_the_next_one_begins(self, client, everifin):
        client.refresh_transactions()
        everifin.clock_skew_seconds += 6
        client.refresh_transactions()
        assert everifin.calls["api.refresh"] == 2

    def test_users_do_not_wait_for_each_other(self, client, everifin):
        client.refresh_transactions()
        token = Secret(Site(everifin).tokens("bob")["access_token"])
        Client(Source(token)).refresh_transactions()

    def test_running_already_is_no_outage_whatever_the_status(self, client, answer):
        answer(error_body("ACCOUNT_REFRESH_ALREADY_RUNNING"), status=500)
        refused(client.refresh_transactions, RefreshRunningError)

    def test_a_lost_answer_is_not_asked_for_again(self, client, everifin):
        everifin.faults.add("api", lost="after")
        refused(client.refresh_transactions, AnswerLostError)
        assert everifin.calls["api.refresh"] == 1


class TestTries:
    """A GET that fails for now is tried again; nothing else is."""

    @pytest.mark.parametrize("fault", [{"status": 503}, {"lost": "before"}, {"lost": "after"}])
    def test_a_get_is_tried_three_times(self, client, everifin, fault):
        everifin.faults.add("api", times=2, **fault)
        assert len(list(client.accounts())) == 3
        assert everifin.calls["api"] == 3
        everifin.faults.add("api", times=3, **fault)
        with pytest.raises(UnavailableError):
            list(client.accounts())
        assert everifin.calls["api"] == 6

    @pytest.mark.parametrize("fault", [{"status": 503}, {"lost": "before"}, {"lost": "after"}])
    def test_all_else_once(self, client, everifin, fault):
        everifin.faults.add("api", **fault)
        with pytest.raises(UnavailableError):
            client.request("POST", "/v1/bank-accounts/refresh")
        assert everifin.calls["api"] == 1

    def test_nor_is_a_get_with_content(self, client, everifin):
        everifin.faults.add("api", status=503)
        with pytest.raises(UnavailableError):
            client.request("GET", "/v1/banks", json={})
        assert everifin.calls["api"] == 1

    def test_a_refusal_is_an_answer(self, client, everifin, answer):
        answer(error_body("DATA_NOT_FOUND"), status=404)
        refused(lambda: client.account("1"), NotFoundError)
        assert everifin.calls["api"] == 1


class TestPages:
    def test_nothing_is_sent_before_the_first_item(self, client, source, account_id, everifin):
        everifin.calls.clear()
        given = source.given
        lists: list[Iterator[Any]] = [
            client.accounts(),
            client.transactions(account_id),
            client.banks(),
        ]
        assert (everifin.calls["api"], source.given) == (0, given)
        for one in lists:
            next(one)
        assert everifin.calls["api"] == 3

    def test_a_list_that_is_left_early_asks_for_no_more(self, client, account_id, everifin):
        assert len(list(islice(client.transactions(account_id), 50))) == 50
        assert everifin.calls["api"] == 1
        assert len(list(islice(client.transactions(account_id), 51))) == 51
        assert everifin.calls["api"] == 3

    def test_errors_come_while_iterating(self, client, account_id, everifin):
        rows = client.transactions(account_id)
        list(islice(rows, 50))
        everifin.faults.add("api", status=503)
        refused(lambda: next(rows), UnavailableError)

    @pytest.mark.parametrize(
        ("pagination", "requests"),
        [
            ({"nextPageUrl": None}, 1),
            ({"nextPageUrl": False}, 1),
            ({"nextPageUrl": ""}, 1),
            ({"nextPageUrl": None, "last": 9}, 1),
            ({"last": 2}, 2),
            ({"last": 1}, 1),
            ({"last": 0}, 1),
            ({"last": "2"}, 2),
            ({"last": "3", "page": "1"}, 3),
        ],
        ids=repr,
    )
    def test_the_last_page_is_known(self, client, everifin, answer, pagination, requests):
        for number in range(1, requests + 2):
            answer(page({"id": number}, **pagination), times=1)
        assert [one.id for one in client.banks()] == [str(n + 1) for n in range(requests)]
        assert everifin.calls["api"] == requests

    @pytest.mark.parametrize("following", ["/?page=2", 2, "https://evil.test/?page=2", {}])
    @pytest.mark.parametrize("last", [0, 1, 2, "2"])
    def test_a_next_page_that_is_named_is_asked_for(
        self, client, everifin, answer, following, last
    ):
        """Also after the last one, where an empty page ends the list at once."""
        told = {"nextPageUrl": following, "last": last}
        for rows in ([{"id": 1}], [{"id": 2}], [{"id": 3}], []):
            answer(page(*rows, **told), times=1)
        assert [one.id for one in client.banks()] == ["1", "2", "3"]
        assert everifin.calls["api"] == 4

    @pytest.mark.parametrize(
        "told",
        [
            [{"nextPageUrl": "/?page=2"}, {"nextPageUrl": "/?page=3"}, {"nextPageUrl": None}],
            [{"last": 3}, {"last": 3}, {"last": 3}],
            [{"last": "3"}, {"last": "3"}, {"last": "3"}],
        ],
    )
    def test_an_empty_page_that_names_a_next_one_is_not_the_last(self, client, answer, told):
        for ids, pagination in zip(((1, 2), (), (3,)), told, strict=True):
            answer(page(*({"id": number} for number in ids), **pagination), times=1)
        assert [one.id for one in client.banks()] == ["1", "2", "3"]

    def test_empty_pages_that_name_a_next_one_for_ever_are_an_error(self, client, everifin, answer):
        answer(page({"id": 1}, nextPageUrl="/?page=2"), times=1)
        answer(page(nextPageUrl="/?page=3"))
        refused(lambda: list(client.banks()), AnswerError)
        assert everifin.calls["api"] == 1 + MAX_EMPTY_PAGES

    @pytest.mark.parametrize(
        "meta",
        [
            None,
            5,
            [],
            {},
            {"pagination": None},
            {"pagination": []},
            {"pagination": {}},
            {"status": "SUCCESS"},
            {"pagination": {"current": 1, "pages": 2, "next": "/?page=2"}},
            {"pagination": {"last": False}},
            {"pagination": {"last": "two"}},
            {"pagination": {"countTotal": 3}},
        ],
    )
    @pytest.mark.parametrize("end", [[], [{"id": 3}]], ids=["empty", "the same"])
    def test_without_a_word_about_pages_the_next_one_is_asked_for(
        self, client, everifin, answer, meta, end
    ):
        for rows in ([{"id": 1}, {"id": 2}], [{"id": 3}], end):
            answer({"meta": meta, "data": rows}, times=1)
        assert [one.id for one in client.banks()] == ["1", "2", "3"]
        assert everifin.calls["api"] == 3

    def test_an_empty_first_page_without_a_word_is_the_last(self, client, everifin, answer):
        answer({"data": []})
        assert list(client.banks()) == []
        assert everifin.calls["api"] == 1

    @pytest.mark.parametrize("pagination", [{}, {"nextPageUrl": "/?page=9"}, {"last": 99}])
    def test_pages_in_a_circle_are_an_error(self, client, everifin, answer, pagination):
        for number in (1, 2, 3, 1):
            answer(page({"id": number, "name": f"{CANARY}{number}"}, **pagination), times=1)
        refused(lambda: list(client.banks()), AnswerError)
        assert everifin.calls["api"] == 4

    def test_the_same_page_again_is_an_error_not_a_circle(self, client, everifin, answer):
        answer(page({"id": 1, "name": CANARY}, nextPageUrl="/?page=2"))
        refused(lambda: list(client.banks()), AnswerError)
        assert everifin.calls["api"] == 2


class TestOpenedAtAPage:
    def test_page_20_costs_one_request(self, client, account_id, everifin):
        everything = list(client.transactions(account_id, page_size=10))
        everifin.calls.clear()
        page = client.transactions(account_id, page_size=10).page(20)
        assert page.rows == everything[190:200]
        assert (page.has_next, page.total, everifin.calls["api"]) == (True, len(everything), 1)

    @pytest.mark.parametrize("number", [0, -1])
    def test_the_first_page_is_number_1(self, client, account_id, number):
        with pytest.raises(ValueError, match="number 1"):
            client.transactions(account_id).page(number)

    def test_whether_there_is_more_may_be_unknown(self, client, account_id, everifin):
        everifin.faults.add("api", odd="no_pagination")
        page = client.transactions(account_id).page(1)
        assert (page.has_next, page.total) == (None, None)
        everifin.faults.clear()
        assert client.banks().page(1).has_next is False

    def test_djangos_paginator_works(self, client, account_id, everifin):
        everything = list(client.transactions(account_id))
        everifin.calls.clear()
        paginator = Paginator(client.transactions(account_id, page_size=20), 20)
        assert list(paginator.page(20)) == everything[380:400]
        assert (paginator.count, everifin.calls["api"]) == (len(everything), 2)
        assert list(paginator.page(paginator.num_pages)) == everything[-(len(everything) % 20) :]

    def test_a_slice_of_one_page_may_have_a_step(self, client, account_id):
        everything = list(client.transactions(account_id))
        assert client.transactions(account_id, page_size=20)[0:20:3] == everything[0:20:3]

    def test_a_row_by_its_number_is_an_error_that_names_what_works(self, client):
        with pytest.raises(TypeError, match=r"list\(rows\)\[0\]"):
            client.accounts()[0]

    @pytest.mark.parametrize("odd", ["capped_pages", "no_pagination", "no_pagination capped_pages"])
    def test_it_shows_the_same_where_less_is_told(self, client, account_id, everifin, odd):
        accounts = list(client.accounts())
        recent = list(islice(client.transactions(account_id), 60))
        day = min(row.booking_date for row in recent)
        expected = list(client.transactions(account_id, booking_date_from=day))
        everifin.faults.add("api", odd=odd)
        rows = client.transactions(account_id, booking_date_from=day, page_size=10)
        paginator = Paginator(rows, 10)
        assert [row for page in paginator for row in page] == expected
        assert client.accounts()[:2] == accounts[:2]


class TestOddities:
    """The sandbox plays them: a stand-in that is kinder than the real thing proves nothing."""

    @pytest.fixture
    def ids(self, client, account_id, everifin) -> list[str]:
        found = [row.id for row in client.transactions(account_id)]
        everifin.calls.clear()
        return found

    @pytest.mark.parametrize(
        "odd",
        [
            "no_pagination",
            "other_names",
            "capped_pages",
            "capped_pages no_pagination",
            "capped_pages other_names",
            "string_numbers",
            "string_numbers capped_pages",
            "nul",
            "bad_dates",
        ],
    )
    def test_every_row_comes(self, client, account_id, everifin, ids, odd):
        everifin.faults.add("api", odd=odd)
        since = "2000-01-01"
        assert [row.id for row in client.transactions(account_id, page_size=100)] == ids
        changes = client.transaction_changes(account_id, since=since, page_size=100)
        assert [row.id for row in changes] == ids
        assert "\0" not in repr([row.raw for row in client.accounts()])

    def test_an_empty_page_in_the_middle_takes_only_its_own_rows(
        self, client, account_id, everifin, ids
    ):
        rows = client.transactions(account_id)
        first = list(islice(rows, 50))
        everifin.faults.add("api", odd="empty_page", times=1)
        assert [row.id for row in (*first, *rows)] == ids[:50] + ids[100:]
        assert not rows.is_complete

    def test_a_number_of_a_page_that_is_ignored_ends_the_list_where_nothing_is_said(
        self, client, account_id, everifin, ids
    ):
        everifin.faults.add("api", odd=("same_page", "no_pagination"))
        assert [row.id for row in client.transactions(account_id)] == ids[:50]
        everifin.faults.clear()
        everifin.faults.add("api", odd="same_page")
        assert [row.id for row in islice(client.transactions(account_id), 50)] == ids[:50]

    def test_an_account_without_amounts_is_an_account(self, client, account_id, everifin):
        everifin.faults.add("api", odd="null_amounts")
        assert [one.balances for one in client.accounts()] == [(), (), ()]
        refused(lambda: list(client.transactions(account_id)), AnswerError)


class TestShapes:
    @pytest.mark.parametrize(
        "body",
        [
            "[]",
            "null",
            "5",
            f'{{"data": {{"id": "1", "name": "{CANARY}"}}, "data": 1}}',
            {"meta": {"status": "SUCCESS"}},
            {"data": None},
            {"data": CANARY},
            {"data": [CANARY]},
            {"data": [{"name": CANARY}]},
            {"data": [{"id": None, "name": CANARY}]},
            {"data": [{"id": 1, "name": CANARY}, {"id": [CANARY]}]},
            {"data": {"name": CANARY}},
            {"meta": {"status": "ERROR"}, "data": {"id": 1, "name": CANARY}},
        ],
        ids=lambda body: repr(body)[:40],
    )
    def test_a_shape_that_is_not_everifins_shows_no_data(self, client, answer, body):
        answer(body)
        for call in (lambda: list(client.accounts()), lambda: client.account("1")):
            error = refused(call, AnswerError)
            assert error.path.startswith("/v1/bank-accounts")
            assert error.method == "GET"

    @pytest.mark.parametrize(
        "body",
        ["", EDGE, f'{{"data": [{{"id": 1, "name": "{CANARY}'],
        ids=["empty", "maintenance", "cut short"],
    )
    def test_what_is_not_json_is_an_outage_and_an_error_for_the_operator(
        self, client, answer, logged, body
    ):
        answer(body)
        for call in (lambda: list(client.accounts()), lambda: client.account("1")):
            logged.clear()
            refused(call, UnavailableError)
            (record,) = logged.records
            assert (record.levelname, CANARY in record.getMessage()) == ("ERROR", False)

    def test_a_row_that_cannot_be_used_is_named(self, client, answer):
        answer({"data": [{"id": 1, "amount": 1}, {"id": "a7", "amount": None}]})
        error = refused(lambda: list(client.transactions("1")), AnswerError)
        assert str(error).endswith("Row 2 (a7): its amount is missing or cannot be read.")
        answer({"data": [{"name": "x"}]}, where="api.banks")
        everywhere = refused(lambda: list(client.transactions("1")), AnswerError)
        assert "Row 2" in str(everywhere)

    def test_optional_fields_that_cannot_be_read_are_none_and_logged_once(
        self, client, answer, logged, monkeypatch
    ):
        monkeypatch.setattr(decoding, "reported", set())
        odd = {"valueDate": CANARY, "currency": [CANARY], "direction": {"a": CANARY}}
        answer(page({"id": 1, "amount": 1, **odd}, {"id": 2, "amount": 2, **odd}, **LAST))
        rows = [*client.transactions("1"), *client.transactions("1")]
        assert [(row.value_date, row.currency, row.direction) for row in rows] == (
            [(None, None, None)] * 4
        )
        assert rows[0].raw["valueDate"] == CANARY
        lines = [record.getMessage() for record in logged.records]
        assert len(lines) == 3
        assert any("Transaction.valueDate" in line for line in lines)
        assert CANARY not in "".join(lines)

    def test_a_balance_without_an_amount_takes_no_account_with_it(self, client, answer):
        balances = [{"type": "CLBD", "amount": None}, {"type": "ITAV", "amount": 5}]
        answer({"data": [{"id": 1, "balances": balances}, {"id": 2, "balances": CANARY}]})
        first, second = client.accounts()
        assert [one.type for one in first.balances] == ["ITAV"]
        assert (first.raw["balances"], second.balances) == (balances, ())

    def test_a_nul_becomes_a_question_mark(self, client, answer):
        answer('{"data": [{"id": 1, "name": "a\\u0000b", "more": {"\\u0000": "\\\\u0000"}}]}')
        (only,) = client.banks()
        assert only.name == "a?b"
        assert only.raw["more"] == {"?": "\\u0000"}

    def test_half_an_emoji_becomes_a_question_mark(self, client, answer):
        """As JavaScript cuts texts; a database would refuse the half, in ``raw`` too."""
        answer('{"data": [{"id": 1, "name": "a\\ud83d", "more": [{"\\uDE00": "\\ud83d\\ude00"}]}]}')
        (only,) = client.banks()
        assert only.name == "a?"
        assert only.raw["more"] == [{"?": "😀"}]

    @pytest.mark.parametrize("number", ["1e999999999", "1e-400", "9" * 5000])
    def test_money_that_is_none_is_not_understood_and_its_row_is_named(
        self, client, answer, number
    ):
        answer(f'{{"data": [{{"id": 1, "amount": 2}}, {{"id": 7, "amount": {number}}}]}}')
        error = refused(lambda: list(client.transactions("1")), AnswerError)
        assert "Row 2 (7)" in str(error)

    @pytest.mark.parametrize("number", ["1e999999999", "1e-400", "9" * 5000])
    @pytest.mark.parametrize("name", ["variableSymbol", "valueDate", "lastUpdated", "unknown"])
    def test_a_number_without_end_is_no_other_rows_trouble(self, client, answer, name, number):
        rows = f'[{{"id": 1, "amount": 2}}, {{"id": 7, "amount": 1, "{name}": {number}}}]'
        answer(f'{{"data": {rows}, "meta": {{"pagination": {{"last": 1}}}}}}')
        _, odd = client.transactions("1")
        assert (odd.id, odd.raw[name], odd.value_date) == ("7", number, None)

    def test_an_answer_that_is_too_long_is_lost(self, client, everifin):
        everifin.faults.add("api", body=" " * (10 * 1024 * 1024 + 1))
        refused(lambda: list(client.accounts()), AnswerLostError)


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("DATA_NOT_FOUND", NotFoundError),
            ("NOT_FOUND", NotFoundError),
            ("REQUEST_VALIDATION_ERROR", InvalidRequestError),
            ("INPUT_DATA_ERROR", InvalidRequestError),
            ("NOT_AUTHORIZED", NotAuthorizedError),
            ("INVALID_AUTH_HEADER", NotAuthorizedError),
            ("INVALID_ACCESS_TOKEN", NotAuthorizedError),
            ("NOT_EDITABLE", PaymentNotEditableError),
            ("PAYMENT_REJECTED", PaymentRejectedError),
            ("TRANSACTION_REFRESH_ERROR", UnavailableError),
            ("ACCOUNT_REFRESH_ALREADY_RUNNING", RefreshRunningError),
            ("SOMETHING_NEW", RefusedError),
        ],
    )
    @pytest.mark.parametrize("status", [200, 400, 403, 404, 409, 422])
    def test_the_code_decides(self, client, answer, code, kind, status):
        answer(error_body(code), status=status)
        error = refused(lambda: client.request("GET", "/v1/banks"), kind)
        assert (error.code, error.status) == (code, status)
        assert (error.method, error.path) == ("GET", "/v1/banks")
        what = "for now" if kind is UnavailableError else code
        assert str(error) == f"GET /v1/banks answered {status} {what}."

    @pytest.mark.parametrize("status", [200, 400, 401, 403])
    def test_a_missing_scope_is_the_users_to_grant(self, client, answer, status):
        answer(error_body("INVALID_SCOPE"), status=status)
        assert refused(lambda: client.account("1"), ScopeMissingError).missing == frozenset()

    def test_a_real_missing_scope(self, everifin):
        token = Site(everifin).tokens(scope="openid pis")["access_token"]
        call = Client(Source(Secret(token))).accounts()
        refused(lambda: next(call), ScopeMissingError, token)

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (500, error_body("SOME_CODE")),
            (503, error_body("SOME_CODE")),
            (400, error_body("INTERNAL_SERVER_ERROR")),
            (200, error_body("INTERNAL_SERVER_ERROR")),
        ],
    )
    def test_trouble_at_everifin_is_temporary(self, client, answer, status, body):
        answer(body, status=status, retry_after=7)
        error = refused(lambda: client.account("1"), UnavailableError)
        assert error.code == body["errors"][0]["code"]
        assert (error.status, error.retry_after_seconds) == (status, 7)

    @pytest.mark.parametrize("body", [EDGE, "", error_body("SOME_CODE")])
    @pytest.mark.parametrize("retry_after", [None, 7])
    def test_too_many_calls_are_an_error_of_their_own(self, client, answer, body, retry_after):
        answer(body, status=429, retry_after=retry_after)
        error = refused(lambda: client.account("1"), RateLimitedError)
        assert (error.status, error.retry_after_seconds) == (429, retry_after)
        assert error.code == (None if isinstance(body, str) else "SOME_CODE")

    @pytest.mark.parametrize("status", [408, 425, 499, 500, 502, 504, 520, 524])
    def test_also_without_a_word_of_everifins(self, client, answer, status):
        answer(EDGE, status=status)
        error = refused(lambda: client.account("1"), UnavailableError)
        assert (error.status, error.code, error.retry_after_seconds) == (status, None, None)

    @pytest.mark.parametrize("status", [301, 302, 307, 400, 403, 404, 418])
    @pytest.mark.parametrize(
        "body",
        [
            EDGE,
            "",
            "[]",
            {},
            {"errors": None},
            {"errors": []},
            {"errors": {}},
            {"errors": CANARY},
            {"errors": [CANARY]},
            error_body(None),
            error_body(5),
            error_body([CANARY]),
            error_body(f"SOME {CANARY}"),
            error_body("A" * 65),
            error_body("some_code"),
            error_body("A\n"),
            {"data": [{"id": 1, "name": CANARY}]},
        ],
        ids=lambda body: repr(body)[:40],
    )
    def test_a_refusal_in_other_words_is_not_understood(self, client, answer, status, body):
        answer(body, status=status)
        error = refused(lambda: client.account("1"), AnswerError)
        assert (error.status, error.code) == (status, None)

    @pytest.mark.parametrize(
        ("detail", "field", "rule"),
        [
            ({"rule": "enum", "field": "direction", "message": CANARY}, "direction", "enum"),
            ({"field": 5, "rule": None}, None, None),
            ({}, None, None),
            (CANARY, None, None),
            ([CANARY], None, None),
            (None, None, None),
        ],
    )
    def test_a_wrong_value_is_named(self, client, answer, detail, field, rule):
        """Everifin's sentence is kept only if nothing of a person can stand in it."""
        answer(error_body("REQUEST_VALIDATION_ERROR", detail=detail), status=422)
        error = refused(lambda: client.account("1"), InvalidRequestError)
        assert (error.field, error.rule, error.message) == (field, rule, None)

    def test_a_real_wrong_value_is_named(self, client, account_id):
        rows = client.transactions(account_id, direction="SIDEWAYS")
        error = refused(lambda: next(rows), InvalidRequestError)
        assert (error.field, error.rule, error.status) == ("direction", "enum", 422)
        assert error.message == "enum validation failed on direction"

    def test_an_account_of_somebody_else_is_not_found(self, client, everifin):
        token = Secret(Site(everifin).tokens("bob")["access_token"])
        theirs = next(iter(Client(Source(token)).accounts()))
        refused(lambda: client.account(theirs.id), NotFoundError)

    def test_a_lost_answer_names_the_call(self, client, everifin):
        everifin.faults.add("api", lost="after")
        error = refused(lambda: client.account("1"), AnswerLostError)
        assert (error.method, error.path) == ("GET", "/v1/bank-accounts/1")


OWN = error_body("INVALID_ACCESS_TOKEN")


class TestRefusedTokens:
    def test_a_refused_token_is_renewed_once(self, client, source, everifin):
        old = source.token
        everifin.expire_access_tokens()
        source.newer = lambda: Secret(Site(everifin).tokens()["access_token"])
        assert len(list(client.accounts())) == 3
        assert source.rejected == [old]
        assert everifin.calls["api"] == 2

    def test_a_token_refused_for_ever_is_given_up_after_two_calls(self, client, source, everifin):
        everifin.expire_access_tokens()
        error = refused(lambda: next(client.accounts()), NotAuthorizedError, source.token.reveal())
        assert (error.code, error.status) == ("INVALID_ACCESS_TOKEN", 401)
        assert (everifin.calls["api"], len(source.rejected)) == (2, 1)

    @pytest.mark.parametrize("body", [EDGE, "", "[]", {}, {"errors": [CANARY]}, error_body(5)])
    def test_the_status_is_enough(self, client, source, everifin, answer, body):
        answer(body, status=401)
        error = refused(lambda: client.account("1"), NotAuthorizedError)
        assert (error.status, error.code) == (401, None)
        assert (everifin.calls["api"], len(source.rejected)) == (2, 1)

    @pytest.mark.parametrize("status", [400, 403])
    def test_so_is_the_code(self, client, source, everifin, answer, status):
        answer(error_body("INVALID_ACCESS_TOKEN"), status=status, times=1)
        assert len(list(client.accounts())) == 3
        assert (everifin.calls["api"], len(source.rejected)) == (2, 1)

    def test_another_code_renews_nothing(self, client, source, everifin, answer):
        answer(error_body("NOT_AUTHORIZED"), status=403)
        refused(lambda: client.account("1"), NotAuthorizedError)
        assert (everifin.calls["api"], source.rejected) == (1, [])

    @pytest.mark.parametrize(
        ("answers", "kind"),
        [
            ([answer_json(json.dumps(OWN).encode(), "401 Unauthorized")], AnswerLostError),
            ([answer_json(EDGE.encode(), "401 Unauthorized")], PaymentUncertainError),
            ([answer_json(b"", "503 Busy")], UnavailableError),
            ([answer_json(b"", "500 Broken")], UnavailableError),
            ([], AnswerLostError),
        ],
        ids=["401", "a gateway's 401", "503", "500", "lost"],
    )
    def test_a_payment_is_sent_again_only_after_a_refused_token(self, settings, answers, kind):
        source = Source(Secret(CANARY))

        def behave(server: Server, connection: socket.socket) -> None:
            number = len(server.requests) - 1
            one = answers[number] if number < len(answers) else malicious_server.hang_up
            one(server, connection)

        with Server(behave) as server:
            settings.EVERIFIN_API_URL = server.url
            pay = partial(Client(source).request, "POST", "/v1/payments", json={"amount": 1})
            refused(pay, kind)
        is_refused_token = kind is AnswerLostError and bool(answers)
        assert [json.loads(one.body) for one in server.requests] == (
            [{"amount": 1}] * (2 if is_refused_token else 1)
        )
        assert len(source.rejected) == is_refused_token

    def test_what_the_source_raises_is_passed_on(self, everifin):
        class Empty:
            def get(self) -> Secret:
                raise TokenMissingError("no connection")

            def refresh(self, rejected: Secret) -> Secret:
                raise NotImplementedError

            def reject(self, rejected: Secret) -> None:
                pass

        refused(lambda: Client(Empty()).account("1"), TokenMissingError)
        assert everifin.calls["api"] == 0


class TestPaths:
    @pytest.mark.parametrize(
        "wrong",
        [
            "",
            ".",
            "..",
            "...",
            "/",
            "a/b",
            "../banks",
            "1/../../banks",
            "..\\banks",
            "1?x=1",
            "1#x",
            "%2e%2e",
            "%2E%2E%2Fbanks",
            "..%2fbanks",
            "1 ",
            "1\r\n",
            "1\0",
            "ž",
            "\ud800",
            "x" * 256,
            "1;x",
            "{account_id}",
            "1&x",
        ],
    )
    def test_no_id_leads_elsewhere(self, client, everifin, wrong):
        calls: list[Callable[[], object]] = [
            lambda: client.account(wrong),
            lambda: client.transactions(wrong),
            lambda: client.transaction(wrong, "1"),
            lambda: client.transaction("1", wrong),
        ]
        for call in calls:
            error = refused(call, NotFoundError)
            assert error.status is None
        assert everifin.calls["api"] == 0

    @pytest.mark.parametrize("right", ["1", "a-b_c.d~e", "a:b@c=d+e", "..a", "x" * 255])
    def test_ids_arrive_as_they_are(self, client, everifin, right):
        refused(lambda: client.account(right), NotFoundError)
        assert everifin.last_request["api.account"].path == f"/v1/bank-accounts/{right}"

    @pytest.mark.parametrize(
        "path",
        [
            "",
            "v1/banks",
            "https://evil.test/v1/banks",
            "//evil.test/banks",
            "@evil.test/banks",
            ":80/banks",
            "/v1/../banks",
            "/v1/./banks",
            "/v1/..",
            "/..",
            "/v1/%2e%2e/banks",
            "/v1/%2E./banks",
            "/v1/..%2fbanks",
            "/v1/..%5cbanks",
            "/v1/..\\banks",
            "/v1/banks#x",
            "/v1/banks\r\nX-Evil: 1",
            "/v1/banks\0",
            "/v1/ž",
        ],
    )
    def test_no_path_leads_elsewhere(self, client, everifin, path):
        error = refused(lambda: client.request("GET", path), InvalidRequestError)
        assert error.status is None
        assert everifin.calls["api"] == 0

    @pytest.mark.parametrize(
        "path", ["/v1/banks", "/v1/banks?countryCode=EFT", "/v1/banks?sort=name:asc"]
    )
    def test_other_paths_arrive_as_they_are(self, client, everifin, path):
        assert client.request("GET", path, params={"page": 1})["data"]
        assert everifin.last_request["api.banks"].path == "/v1/banks"
        assert everifin.last_request["api.banks"].query["page"] == "1"


class TestAsync:
    def test_lists_have_async_versions(self, client, account_id):
        async def read() -> list[list[Any]]:
            day = date(2026, 1, 1)
            return [
                [one async for one in client.aaccounts()],
                [one async for one in client.abanks()],
                [one async for one in client.atransactions(account_id, booking_date_from=day)],
            ]

        assert asyncio.run(read()) == [
            list(client.accounts()),
            list(client.banks()),
            list(client.transactions(account_id, booking_date_from=date(2026, 1, 1))),
        ]

    def test_calls_have_async_versions(self, client, account_id):
        first = next(iter(client.transactions(account_id)))

        async def read() -> list[Any]:
            return [
                await client.aaccount(account_id),
                await client.abalances(account_id),
                await client.atransaction(account_id, first.id),
                await client.arefresh_transactions(),
                await client.arequest("GET", "/v1/banks", params={"page": 1}),
            ]

        assert asyncio.run(read()) == [
            client.account(account_id),
            client.balances(account_id),
            first,
            None,
            client.request("GET", "/v1/banks", params={"page": 1}),
        ]

    def test_a_download_has_one(self, client, account_id):
        async def read() -> tuple[list[Any], Any]:
            changes = client.atransaction_changes(account_id, booking_date_from="2026-01-01")
            assert changes.cursor is None
            return [row async for row in changes], changes.cursor

        changes = client.transaction_changes(account_id, booking_date_from="2026-01-01")
        assert asyncio.run(read()) == (list(changes), changes.cursor)

    def test_every_call_has_one(self):
        calls = {name for name in vars(Client) if not name.startswith("_")}
        versions = {name for name in calls if name.startswith("a") and name[1:] in calls}
        assert versions == {f"a{name}" for name in calls - versions}

    def test_they_are_as_lazy(self, client, account_id, everifin):
        async def read() -> int:
            rows = client.atransactions(account_id)
            before = everifin.calls["api"]
            await anext(rows)
            return int(everifin.calls["api"] - before)

        everifin.calls.clear()
        assert asyncio.run(read()) == 1

    def test_gathered_calls_run_side_by_side(self, client, everifin, account_id):
        """Each of three goes on only when all three have arrived at Everifin."""
        arrived = threading.Barrier(3)
        everifin.sleep = lambda _: arrived.wait(30)
        everifin.faults.add("api", latency_seconds=1, times=3)

        async def read() -> tuple[Any, ...]:
            calls = (client.aaccount(account_id), client.abalances(account_id))
            return await asyncio.gather(*calls, client.arequest("GET", "/v1/banks"))

        assert len(asyncio.run(read())) == 3

    def test_the_threads_of_a_client_are_bounded(self, client, everifin, account_id):
        threads = set()
        everifin.sleep = lambda _: threads.add(threading.get_ident())
        everifin.faults.add("api", latency_seconds=1)

        async def read() -> None:
            await asyncio.gather(*(client.aaccount(account_id) for _ in range(40)))

        asyncio.run(read())
        assert 1 <= len(threads) <= CALLS_AT_ONCE

    def test_the_token_is_read_in_the_thread_of_the_request_and_its_context(self, source, answer):
        tenant: ContextVar[str] = ContextVar("tenant")
        seen = []

        class Watched(Source):
            def get(self) -> Secret:
                seen.append(("get", threading.get_ident(), tenant.get()))
                return self.token

            def refresh(self, rejected: Secret) -> Secret:
                seen.append(("refresh", threading.get_ident(), tenant.get()))
                return self.token

            def reject(self, rejected: Secret) -> None:
                seen.append(("reject", threading.get_ident(), tenant.get()))

        answer({"error": {"code": "INVALID_ACCESS_TOKEN"}}, status=401)

        async def read() -> int:
            tenant.set("north")
            with pytest.raises(RefusedError):
                await Client(Watched(source.token)).aaccount("1")
            return int(await sync_to_async(threading.get_ident)())

        thread = asyncio.run(read())
        names = ["get", "refresh", "reject"]
        assert seen == [(name, thread, "north") for name in names]

    def test_the_event_loop_is_left_once_for_each_page(self, client, account_id):
        async def read() -> int:
            rows = client.atransactions(account_id, page_size=10)
            await anext(rows)
            for _ in range(9):
                # Comes at once: a coroutine that had to wait would not have returned.
                with pytest.raises(StopIteration):
                    anext(rows).send(None)
            return len([row async for row in rows])

        assert asyncio.run(read()) == len(list(client.transactions(account_id))) - 10

    def test_they_raise_alike(self, client, answer, source):
        answer(error_body("DATA_NOT_FOUND"), status=404)

        async def read() -> None:
            await client.aaccount("1")

        async def read_all() -> None:
            async for _ in client.aaccounts():
                pass

        token = source.token.reveal()
        refused(lambda: asyncio.run(read()), NotFoundError, token)
        refused(lambda: asyncio.run(read_all()), NotFoundError, token)


class TestCancelled:
    """A cancelled call ends in its thread, and its HTTP connection stays usable."""

    @pytest.mark.parametrize(
        ("end", "is_reusable"),
        [
            (malicious_server.answer_json(b'{"data": {"id": "1"}}'), True),
            (malicious_server.reset, False),
        ],
        ids=["answered", "reset"],
    )
    def test_the_next_call_has_its_own_answer(self, settings, end, is_reusable):
        is_begun, is_given_up = threading.Event(), threading.Event()

        def behave(server: Server, connection: socket.socket) -> None:
            if len(server.requests) == 1:
                is_begun.set()
                assert is_given_up.wait(60)
                end(server, connection)
            else:
                name = server.latest(connection).line.split()[1].rpartition("/")[2]
                answer_json(f'{{"data": {{"id": "{name}"}}}}'.encode())(server, connection)

        async def give_up() -> str:
            bank_client = Client(Source(Secret("token")))
            call = asyncio.create_task(bank_client.aaccount("1"))
            assert await asyncio.to_thread(is_begun.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            is_given_up.set()
            return (await bank_client.aaccount("2")).id

        with Server(behave) as server:
            settings.EVERIFIN_API_URL = server.url
            assert asyncio.run(give_up()) == "2"
        first, *later = [request.connection for request in server.requests]
        assert is_reusable or first not in later

    def test_a_download_begins_again_where_it_began(self, client, account_id, everifin):
        is_begun, is_given_up = threading.Event(), threading.Event()

        def hold(_seconds: float) -> None:
            is_begun.set()
            assert is_given_up.wait(60)

        async def give_up() -> Any:
            rows = client.atransaction_changes(account_id, since="2025-01-01")
            for _ in range(50):
                await anext(rows)
            everifin.sleep = hold
            everifin.faults.add("api.transactions", latency_seconds=1, times=1)
            step = asyncio.ensure_future(anext(rows))
            assert await asyncio.to_thread(is_begun.wait, 10)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
            is_given_up.set()
            await client.aaccount(account_id)  # behind the step, in the same thread
            return rows.cursor

        assert asyncio.run(give_up()) == datetime(2025, 1, 1, tzinfo=UTC)


class TestThreads:
    CALLERS, CALLS = 200, 3

    def test_a47_hundreds_of_threads_on_one_client_mix_nothing(self, settings):
        """Each call has a token of its own; every third one is refused, and gets another."""
        settings.EVERIFIN_CONNECT_TIMEOUT_SECONDS = settings.EVERIFIN_DEADLINE_SECONDS = 60
        current = threading.local()

        class Tokens:
            def get(self) -> Secret:
                current.number = getattr(current, "number", -1) + 1
                return self._token("fresh" if current.number % 3 else "stale")

            def refresh(self, rejected: Secret) -> Secret:
                assert rejected == self._token("stale")
                return self._token("fresh")

            def reject(self, rejected: Secret) -> None:
                pass

            def _token(self, state: str) -> Secret:
                return Secret(f"{state}.{threading.get_ident()}.{current.number}")

        def tell_token(server: Server, connection: socket.socket) -> None:
            token = server.latest(connection).headers["authorization"].removeprefix("Bearer ")
            body = json.dumps({"data": {"id": token}}).encode()
            status = "401 Expired" if token.startswith("stale") else "200 OK"
            malicious_server.answer_json(body, status, f"Set-Cookie: token={token}\r\n")(
                server, connection
            )

        barrier = threading.Barrier(self.CALLERS)

        def call(_: int) -> bool:
            barrier.wait(60)
            return all(
                bank_client.account("1").id == f"fresh.{threading.get_ident()}.{number}"
                for number in range(self.CALLS)
            )

        bank_client = Client(Tokens())
        with Server(tell_token) as server, ThreadPoolExecutor(self.CALLERS) as pool:
            settings.EVERIFIN_API_URL = server.url
            assert all(pool.map(call, range(self.CALLERS)))
        assert len(server.requests) == self.CALLERS * (self.CALLS + 1)
        assert not any("cookie" in request.headers for request in server.requests)

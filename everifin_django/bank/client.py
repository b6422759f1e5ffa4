"""
Everifin's REST API for a given bearer token. Knows no users and no models.

Lists are iterators that fetch page by page: nothing is asked before the first item is, so errors
come while iterating. Every call has an awaitable twin with a leading ``a``, which runs the call in
a thread. Cancelled, the twin raises CancelledError at once; the thread ends the call within the
deadline, its connection stays whole, and its answer is dropped.

Source: Everifin's BankConnect pages "HTTP requests", "Errors", "Accessing Bank Account Data" and
those on payments. Paths and names of fields stand in ``spelling``, where it says which are
inferred, and a site can correct them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from ipaddress import ip_address
from itertools import islice
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack
from urllib.parse import quote, unquote

from asgiref.sync import sync_to_async
from django.utils import timezone

from everifin_django.bank import payments as pay
from everifin_django.bank.accounts import (
    Account,
    Balance,
    Bank,
    Direction,
    Transaction,
    account_reader,
    bank_reader,
    transaction_reader,
)
from everifin_django.bank.decoding import Raw, replace_surrogates
from everifin_django.conf import conf
from everifin_django.exceptions import (
    AnswerError,
    AnswerLostError,
    EndUserMissingError,
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
    UnavailableError,
)
from everifin_django.http.client import AGENT, Answer, bearer, read, send
from everifin_django.secret import Secret

MAX_BYTES = 10 * 1024 * 1024
PAGE_SIZE = 50
T = TypeVar("T")

CODE = re.compile(r"[A-Z][A-Z_]{0,63}")
ID = re.compile(r"[A-Za-z0-9._~:@=+-]{1,255}")
"""What an id may consist of: Everifin's are numbers and UUIDs, and a slash would lead elsewhere."""

ERRORS_BY_CODE: Mapping[str, type[RefusedError]] = {
    "NOT_AUTHORIZED": NotAuthorizedError,
    "INVALID_AUTH_HEADER": NotAuthorizedError,
    "INVALID_ACCESS_TOKEN": NotAuthorizedError,
    "DATA_NOT_FOUND": NotFoundError,
    "NOT_FOUND": NotFoundError,
    "REQUEST_VALIDATION_ERROR": InvalidRequestError,
    "INPUT_DATA_ERROR": InvalidRequestError,
    "PAYMENT_REJECTED": PaymentRejectedError,
    "NOT_EDITABLE": PaymentNotEditableError,
    "ACCOUNT_REFRESH_ALREADY_RUNNING": RefreshRunningError,
}
"""Everifin's codes are documented, most of their HTTP statuses are not: so the code decides."""


PASSING_CODES = frozenset({"INTERNAL_SERVER_ERROR", "TRANSACTION_REFRESH_ERROR"})
VALIDATION_MESSAGE = re.compile(r"\w{1,64} validation failed on [\w.]{1,64}", re.ASCII)
SURROGATE = re.compile(rb"\\u[dD]")
MILLISECOND = timedelta(milliseconds=1)


class TokenSource(Protocol):
    """Where the client gets its access token from."""

    def get(self) -> Secret:
        """Return an access token that is good to use."""

    def refresh(self, rejected: Secret) -> Secret:
        """Return another one, because Everifin refused *rejected*."""


@dataclass(frozen=True, slots=True)
class EndUser:
    """
    The person present, whom Everifin names to the bank; leave both out when nobody is.

    Source: Everifin documents the headers ``User-Agent`` and ``client-ip-address`` as the end
    user's.
    """

    ip: str | None = None
    user_agent: str | None = None

    def __post_init__(self) -> None:
        if self.ip is not None and not _is_address(self.ip):
            raise ValueError("The end user's ip is not an IP address without a zone.")
        agent = self.user_agent or ""
        if not (agent.isascii() and agent.isprintable()):
            raise ValueError("The end user's user_agent is not printable ASCII.")


class Paging(TypedDict, total=False):
    """How a list is read, for the awaitable twins."""

    page_size: int | None
    sort: str | None


class TransactionFilters(TypedDict, total=False):
    """The filters of ``Client.transactions``, for its awaitable twin."""

    updated_from: date | str | None
    created_from: date | str | None
    booking_date_from: date | str | None
    booking_date_to: date | str | None
    value_date_from: date | str | None
    value_date_to: date | str | None
    direction: Direction | str | None
    page_size: int
    sort: str | None


class StepAnswer(TypedDict, total=False):
    """The arguments of ``Client.process_payment``, for its awaitable twin."""

    inputs: pay.Inputs | None
    step: pay.PaymentStep | None
    key_of: pay.KeyOf


@dataclass(frozen=True, slots=True)
class _Lost:
    """How a payment is found again whose answer was lost."""

    payment_id: str | None = None
    external_id: str | None = field(default=None, repr=False)

    def error(
        self, method: str, path: str, cause: EverifinError | None = None
    ) -> PaymentUncertainError:
        error = PaymentUncertainError(
            f"{method} {path} at Everifin: it is not known what became of this payment. Look "
            "before paying again: see payment_id and external_id of this error.",
            method=method,
            path=path,
            status=getattr(cause, "status", None),
            code=getattr(cause, "code", None),
        )
        error.payment_id, error.external_id = self.payment_id, self.external_id
        return error


class ChangesOptions(TypedDict, total=False):
    """The options of ``Client.transaction_changes``, for its awaitable twin."""

    since: date | str | None
    booking_date_from: date | str | None
    page_size: int


class TransactionChanges(Iterator[Transaction]):
    """
    One download of the rows of an account that are new or changed; ``cursor`` says where the next
    one begins.
    """

    def __init__(self, rows: Iterator[Transaction], since: datetime | None) -> None:
        self._rows = rows
        self._latest: datetime | None = None
        self._begins_at: datetime | None = None
        self.cursor = since
        """
        What to keep, and to give as *since* next time. It moves when the last row has come: rows
        do not come by their time of change, so who stops early begins again where this began.
        """

    def __next__(self) -> Transaction:
        self._begins_at = self._begins_at or timezone.now()
        try:
            row = next(self._rows)
        except StopIteration:
            self._move_cursor(self._begins_at)
            raise
        if row.last_updated is not None:
            self._latest = max(row.last_updated, self._latest or row.last_updated)
        return row

    def _move_cursor(self, begins_at: datetime) -> None:
        if self._latest is None:
            return
        # A row that is stored meanwhile may stand on a page that was read already, and one with a
        # later time be seen: so nothing later than the beginning counts as read.
        reached = min(self._latest + MILLISECOND, begins_at)
        self.cursor = max(reached, self.cursor or reached)


class AsyncTransactionChanges(AsyncIterator[Transaction]):
    """The same, to be awaited row by row."""

    def __init__(self, rows: TransactionChanges) -> None:
        self._sync = rows
        self._rows = _in_thread(rows)

    @property
    def cursor(self) -> datetime | None:
        return self._sync.cursor

    async def __anext__(self) -> Transaction:
        return await anext(self._rows)


class Client:
    """
    Calls the bank API with the tokens of *source*.

    Each call is one request, and one more if Everifin refuses the token and *source* has a newer
    one.
    Errors: everything below APIError, ScopeMissingError, and what *source* raises.
    """

    def __init__(self, source: TokenSource, *, end_user: EndUser | None = None) -> None:
        self._source = source
        self._end_user = end_user or EndUser()

    def accounts(
        self, *, page_size: int | None = None, sort: str | None = None
    ) -> Iterator[Account]:
        """
        Iterate over the user's bank accounts. One request a page.

        Shape: ``Account``; *sort* is ``"name:asc"`` or ``"name:desc"``, with Everifin's name of a
        field. Source: Everifin documents the list; its path, *page_size* and *sort*, which are not
        sent unless you give them, are inferred.
        """
        paging = _paging(page_size, sort)
        return self._list(account_reader(), conf.api_paths["accounts"], paging)

    def account(self, account_id: str) -> Account:
        """
        Return one bank account. One request.

        Errors: NotFoundError, also for an account of somebody else. Source: the path is inferred.
        """
        return self._one(account_reader(), _path("account", account_id=account_id))

    def balances(self, account_id: str) -> tuple[Balance, ...]:
        """
        Return the balances of one bank account, read anew. One request.

        Errors: NotFoundError. Source: inferred; Everifin names no call for balances alone, so they
        are those of the account.
        """
        return self.account(account_id).balances

    def transactions(  # noqa: PLR0913 - one argument for each filter
        self,
        account_id: str,
        *,
        updated_from: date | str | None = None,
        created_from: date | str | None = None,
        booking_date_from: date | str | None = None,
        booking_date_to: date | str | None = None,
        value_date_from: date | str | None = None,
        value_date_to: date | str | None = None,
        direction: Direction | str | None = None,
        page_size: int = PAGE_SIZE,
        sort: str | None = None,
    ) -> Iterator[Transaction]:
        """
        Iterate over an account's transactions that match all filters. One request a page.

        *updated_from* finds rows new or changed since, *created_from* only new ones. A date counts
        from midnight UTC; texts are ISO 8601.
        Errors: NotFoundError; InvalidRequestError names the filter Everifin refused, or the text
        that is no date, before anything is sent.
        Source: Everifin documents the four ``_from`` filters; the ``_to`` ones, *direction*, paging
        and *sort* are inferred.
        """
        names = conf.api_fields["query"]
        moments = {
            names["updated_from"]: updated_from,
            names["created_from"]: created_from,
            names["booking_date_from"]: booking_date_from,
            names["booking_date_to"]: booking_date_to,
            names["value_date_from"]: value_date_from,
            names["value_date_to"]: value_date_to,
        }
        params = {
            name: _timestamp(moment)
            for name, value in moments.items()
            if (moment := _moment(name, value)) is not None
        }
        if direction is not None:
            params[names["direction"]] = str(direction)
        path = _path("transactions", account_id=account_id)
        return self._list(transaction_reader(), path, {**params, **_paging(page_size, sort)})

    def transaction(self, account_id: str, transaction_id: str) -> Transaction:
        """Return one transaction. Errors: NotFoundError."""
        path = _path("transaction", account_id=account_id, transaction_id=transaction_id)
        return self._one(transaction_reader(), path)

    def transaction_changes(
        self,
        account_id: str,
        *,
        since: date | str | None = None,
        booking_date_from: date | str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> TransactionChanges:
        """
        Iterate over an account's transactions that are new or changed since the last download.

        Store each under its id, over the one that is there. When the last one has come, keep
        ``cursor`` and give it as *since* next time; without *since* everything comes. Without the
        whole history, but with *booking_date_from*, the first download is short: rows of the
        history may be stored, and so changed, later than newer ones. One request a page.
        Units: ``cursor`` is the latest ``last_updated`` and one millisecond, or the moment the
        download began, if that is earlier; *since* itself if nothing came.
        Errors: as ``transactions``.
        Source: "Accessing Bank Account Data" documents the rule and both filters.
        """
        begin = _moment(conf.api_fields["query"]["updated_from"], since)
        rows = self.transactions(
            account_id,
            updated_from=begin,
            booking_date_from=booking_date_from,
            page_size=page_size,
        )
        return TransactionChanges(rows, begin)

    def refresh_transactions(self) -> None:
        """
        Have Everifin download all accounts of the user from their banks now. One request, never
        sent twice but after a refused token.

        It returns at once; new rows come through ``transactions`` later. Everifin does this by
        itself every minute while the user is present and every half hour otherwise, so call it
        only when the user asks for it.
        Errors: RefreshRunningError if that is going on already; UnavailableError if it failed.
        Source: the call and its errors are documented, its path and method are not published:
        correct the path with ``EVERIFIN_API_PATHS["refresh"]``.
        """
        self.request("POST", conf.api_paths["refresh"])

    def banks(self, *, page_size: int | None = None, sort: str | None = None) -> Iterator[Bank]:
        """
        Iterate over the banks a user can connect. One request a page. Source: the path is inferred.
        """
        paging = _paging(page_size, sort)
        return self._list(bank_reader(), conf.api_paths["banks"], paging)

    def create_payment(self, payment: pay.SinglePayment) -> str:
        """
        Return the id of *payment*, which Everifin knows from now on. Process it to have it paid.

        One request on a connection of its own, never repeated but after a refused token.
        Errors: PaymentUncertainError if it may exist or not: ask ``find_payment(external_id)``
        before paying again.
        """
        return self._create("payments", payment)

    def create_bulk_payment(self, payment: pay.BulkPayment) -> str:
        """Return the id of the bulk *payment*. Else as ``create_payment``."""
        return self._create("bulk_payments", payment)

    def process_payment(
        self,
        payment_id: str,
        *,
        inputs: pay.Inputs | None = None,
        step: pay.PaymentStep | None = None,
        key_of: pay.KeyOf = pay.encryption_key,
    ) -> pay.PaymentStep:
        """
        Take the next step of a payment, and return what has to happen then. One request, as
        ``create_payment``.

        *inputs* are the values the last answer asked for, or all query parameters of the return
        from the bank (``request.GET.dict()``): they are passed on and never believed. With that
        answer as *step*, sensitive inputs are encrypted where it asks for it; *key_of* reads its
        key.
        Errors: EndUserMissingError if nobody is present; PaymentRejectedError;
        PaymentNotEditableError; PaymentUncertainError if it may have been paid: ask
        ``payment(payment_id)``.
        """
        path = _path("payment", payment_id=payment_id)
        return self._process(payment_id, path, inputs or {}, step, key_of)

    def process_bulk_payment(
        self,
        payment_id: str,
        *,
        inputs: pay.Inputs | None = None,
        step: pay.PaymentStep | None = None,
        key_of: pay.KeyOf = pay.encryption_key,
    ) -> pay.PaymentStep:
        """Take the next step of a bulk payment. Else as ``process_payment``."""
        path = _path("bulk_payment", payment_id=payment_id)
        return self._process(payment_id, path, inputs or {}, step, key_of)

    def payment(self, payment_id: str) -> pay.PaymentDetail:
        """Return one single payment. Errors: NotFoundError."""
        return self._one(pay.payment_reader(), _path("payment", payment_id=payment_id))

    def bulk_payment(self, payment_id: str) -> pay.BulkPaymentDetail:
        """Return one bulk payment. Errors: NotFoundError."""
        return self._one(pay.bulk_payment_reader(), _path("bulk_payment", payment_id=payment_id))

    def payments(
        self, *, page_size: int | None = None, sort: str | None = None
    ) -> Iterator[pay.PaymentDetail]:
        """Iterate over the user's single payments. One request a page. The path is inferred."""
        paging = _paging(page_size, sort)
        return self._list(pay.payment_reader(), conf.api_paths["payments"], paging)

    def bulk_payments(
        self, *, page_size: int | None = None, sort: str | None = None
    ) -> Iterator[pay.BulkPaymentDetail]:
        """Iterate over the user's bulk payments. One request a page."""
        paging = _paging(page_size, sort)
        return self._list(pay.bulk_payment_reader(), conf.api_paths["bulk_payments"], paging)

    def find_payment(self, external_id: str) -> pay.PaymentDetail | None:
        """
        Return the single payment you gave this *external_id*, None if Everifin has none. Reads the
        list until it is found.

        That the list tells the external id is inferred.
        """
        return next((one for one in self.payments() if one.external_id == external_id), None)

    def find_bulk_payment(self, external_id: str) -> pay.BulkPaymentDetail | None:
        """Return the bulk payment you gave this *external_id*. Else as ``find_payment``."""
        return next((one for one in self.bulk_payments() if one.external_id == external_id), None)

    def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> dict[str, Any]:
        """
        Return the decoded envelope of any call, for what this class has no method for.

        *path* begins with "/" and is sent to EVERIFIN_API_URL and nowhere else.
        A GET that fails for now is tried again within EVERIFIN_DEADLINE_SECONDS; all else is sent
        once, and once more only if the token was refused.
        Shape: ``{"meta": ..., "data": ...}``, fractions as Decimal; empty for an answer without
        content.
        """
        token = self._source.get()
        answer = self._send(token, method, path, params, json)
        if _refuses_token(answer):
            answer = self._send(self._source.refresh(token), method, path, params, json)
        envelope = _envelope(answer)
        if isinstance(envelope, EverifinError):
            raise envelope
        return envelope

    async def aaccounts(self, **paging: Unpack[Paging]) -> AsyncIterator[Account]:
        async for account in _in_thread(self.accounts(**paging)):
            yield account

    async def aaccount(self, account_id: str) -> Account:
        return await sync_to_async(self.account)(account_id)

    async def abalances(self, account_id: str) -> tuple[Balance, ...]:
        return await sync_to_async(self.balances)(account_id)

    async def atransactions(
        self, account_id: str, **filters: Unpack[TransactionFilters]
    ) -> AsyncIterator[Transaction]:
        async for transaction in _in_thread(self.transactions(account_id, **filters)):
            yield transaction

    async def atransaction(self, account_id: str, transaction_id: str) -> Transaction:
        return await sync_to_async(self.transaction)(account_id, transaction_id)

    def atransaction_changes(
        self, account_id: str, **options: Unpack[ChangesOptions]
    ) -> AsyncTransactionChanges:
        """As ``transaction_changes``, for ``async for``."""
        return AsyncTransactionChanges(self.transaction_changes(account_id, **options))

    async def arefresh_transactions(self) -> None:
        await sync_to_async(self.refresh_transactions)()

    async def abanks(self, **paging: Unpack[Paging]) -> AsyncIterator[Bank]:
        async for one in _in_thread(self.banks(**paging)):
            yield one

    async def acreate_payment(self, payment: pay.SinglePayment) -> str:
        """
        As ``create_payment``.

        Who cancels this does not know whether the payment exists, as after a PaymentUncertainError:
        ask ``afind_payment(payment.external_id)``.
        """
        return await sync_to_async(self.create_payment)(payment)

    async def acreate_bulk_payment(self, payment: pay.BulkPayment) -> str:
        return await sync_to_async(self.create_bulk_payment)(payment)

    async def aprocess_payment(
        self, payment_id: str, **answer: Unpack[StepAnswer]
    ) -> pay.PaymentStep:
        """
        As ``process_payment``. Who cancels this does not know whether the step was taken: ask
        ``apayment(payment_id)``.
        """
        return await sync_to_async(self.process_payment)(payment_id, **answer)

    async def aprocess_bulk_payment(
        self, payment_id: str, **answer: Unpack[StepAnswer]
    ) -> pay.PaymentStep:
        return await sync_to_async(self.process_bulk_payment)(payment_id, **answer)

    async def apayment(self, payment_id: str) -> pay.PaymentDetail:
        return await sync_to_async(self.payment)(payment_id)

    async def abulk_payment(self, payment_id: str) -> pay.BulkPaymentDetail:
        return await sync_to_async(self.bulk_payment)(payment_id)

    async def apayments(self, **paging: Unpack[Paging]) -> AsyncIterator[pay.PaymentDetail]:
        async for payment in _in_thread(self.payments(**paging)):
            yield payment

    async def abulk_payments(
        self, **paging: Unpack[Paging]
    ) -> AsyncIterator[pay.BulkPaymentDetail]:
        async for payment in _in_thread(self.bulk_payments(**paging)):
            yield payment

    async def afind_payment(self, external_id: str) -> pay.PaymentDetail | None:
        return await sync_to_async(self.find_payment)(external_id)

    async def afind_bulk_payment(self, external_id: str) -> pay.BulkPaymentDetail | None:
        return await sync_to_async(self.find_bulk_payment)(external_id)

    async def arequest(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> dict[str, Any]:
        return await sync_to_async(self.request)(method, path, params=params, json=json)

    def _create(self, name: str, payment: pay.SinglePayment | pay.BulkPayment) -> str:
        lost = _Lost(external_id=payment.external_id)
        body = pay.sealed_body(payment.body())
        return self._pay("POST", conf.api_paths[name], body, pay.created_id, lost, {})

    def _process(
        self,
        payment_id: str,
        path: str,
        inputs: pay.Inputs,
        step: pay.PaymentStep | None,
        key_of: pay.KeyOf,
    ) -> pay.PaymentStep:
        headers = self._sender_headers()
        if pay.names_to_encrypt(inputs, step):
            headers["x-user-data-encryption-method"] = pay.ENCRYPTION
        body = pay.sealed_inputs(inputs, step, key_of)
        del inputs  # what the user typed is in no frame of an error from here on
        if body is None:
            raise InvalidRequestError(
                "The key Everifin wants the user's inputs encrypted with cannot be read, or is too "
                "short for one of them. Nothing was sent: see process_payment's key_of."
            )
        return self._pay("PATCH", path, body, pay.step, _Lost(payment_id=payment_id), headers)

    def _sender_headers(self) -> dict[str, str]:
        ip, agent = self._end_user.ip, (self._end_user.user_agent or "").strip()
        if ip is None or not agent:
            raise EndUserMissingError(
                "To process a payment, Everifin needs address and browser of the person who pays. "
                "Nothing was sent."
            )
        return {"x-ef-sender-ip": ip, "x-ef-sender-user-agent": agent}

    def _pay(
        self,
        method: str,
        path: str,
        body: Secret,
        decode: Callable[[Raw], T],
        lost: _Lost,
        headers: Mapping[str, str],
    ) -> T:
        """
        The decoded answer to a request that may move money.

        Sent once. Only a refused token, which Everifin looks at before anything else, lets it be
        sent again; after all else that leaves doubt the error says that there is doubt.
        """
        token = self._source.get()
        answer = self._pay_once(token, method, path, body, lost, headers)
        if _refuses_token(answer):
            renewed = self._source.refresh(token)
            answer = self._pay_once(renewed, method, path, body, lost, headers)
        outcome = _outcome(decode, answer)
        if outcome is None:
            raise lost.error(method, path)
        if isinstance(outcome, EverifinError):
            raise lost.error(method, path, outcome) if _leaves_doubt(outcome) else outcome
        return outcome

    def _pay_once(
        self,
        token: Secret,
        method: str,
        path: str,
        body: Secret,
        lost: _Lost,
        headers: Mapping[str, str],
    ) -> Answer:
        try:
            # Its own connection: a kept one may have been closed at the other end, and nobody could
            # tell whether the payment was read before.
            return self._send(token, method, path, None, body, headers=headers, fresh=True)
        except AnswerLostError:
            pass
        raise lost.error(method, path)

    def _list(
        self, decode: Callable[[Raw], T], path: str, params: Mapping[str, str]
    ) -> Iterator[T]:
        before: list[T] = []
        number = 1
        page_name = conf.api_fields["query"]["page"]
        while True:
            page = _page(
                decode, self.request("GET", path, params={**params, page_name: str(number)})
            )
            # The same page again would come for ever.
            if page is None or (page.rows and page.rows == before):
                raise _not_understood(path)
            yield from page.rows
            if not page.rows or page.is_last(number):
                return
            before, number = page.rows, number + 1

    def _one(self, decode: Callable[[Raw], T], path: str) -> T:
        decoded = _decoded(decode, self.request("GET", path).get("data"))
        if decoded is None:
            raise _not_understood(path)
        return decoded

    def _send(  # noqa: PLR0913 - what a request consists of
        self,
        token: Secret,
        method: str,
        path: str,
        params: Any,
        content: Any,
        *,
        headers: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> Answer:
        all_headers: dict[str, str | Secret] = {
            **(headers or {}),
            "Authorization": bearer(token),
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "Content-Type": "application/json",
            "User-Agent": (self._end_user.user_agent or "").strip() or AGENT,
        }
        if self._end_user.ip is not None:
            all_headers["client-ip-address"] = self._end_user.ip
        url = _url(path)
        if method.upper() == "GET" and content is None:
            return read(url, headers=all_headers, params=params, max_bytes=MAX_BYTES)
        return send(
            method,
            url,
            headers=all_headers,
            params=params,
            content=content,
            max_bytes=MAX_BYTES,
            fresh_connection=fresh,
        )


async def _in_thread(rows: Iterator[T]) -> AsyncIterator[T]:
    """
    The rows of a blocking iterator; each step runs in the thread that Django keeps for this
    request.
    """
    step = sync_to_async(lambda: list(islice(rows, 1)))
    while found := await step():
        yield found[0]


def _is_address(text: str) -> bool:
    try:
        return getattr(ip_address(text), "scope_id", None) is None
    except ValueError:
        return False


def _url(path: str) -> str:
    resource = path.split("?", maxsplit=1)[0]
    # Read as a server or a proxy might: with the escapes decoded.
    segments = unquote(resource).replace("\\", "/").split("/")
    is_plain = path.isascii() and path.isprintable() and "#" not in path
    is_absolute = path.startswith("/") and not path.startswith("//")
    if not (is_plain and is_absolute) or {".", ".."}.intersection(segments):
        raise InvalidRequestError(
            "A path begins with one '/', has no '.' or '..' in it, and all else than ASCII escaped."
        )
    return conf.api_url + path


def _path(name: str, **ids: str) -> str:
    template = conf.api_paths[name]
    texts = {key: str(value) for key, value in ids.items()}
    if not all(ID.fullmatch(text) and text.strip(".") for text in texts.values()):
        raise NotFoundError("Nothing at Everifin has such an id.", method="GET", path=template)
    return template.format(**{key: quote(text, safe="") for key, text in texts.items()})


def _paging(page_size: int | None, sort: str | None) -> dict[str, str]:
    if page_size is not None and page_size < 1:
        raise ValueError("A page has at least one row.")
    names = conf.api_fields["query"]
    given = {names["page_size"]: page_size, names["sort"]: sort}
    return {name: str(value) for name, value in given.items() if value is not None}


def _moment(name: str, value: date | str | None) -> datetime | None:
    """The moment in UTC that a filter means, whose *name* an error tells."""
    if isinstance(value, str):
        value = _parsed(name, value)
    if value is None:
        return None
    moment = value if isinstance(value, datetime) else datetime.combine(value, time(), UTC)
    if moment.tzinfo is None:
        raise ValueError("A datetime for Everifin needs a time zone.")
    return moment.astimezone(UTC)


def _parsed(name: str, text: str) -> date:
    for parse in (date.fromisoformat, datetime.fromisoformat):
        try:
            return parse(text)
        except ValueError:
            pass
    error = InvalidRequestError(f"{name} is not a date or moment in ISO 8601.")
    error.field, error.rule = name, "date"
    raise error


def _timestamp(moment: datetime) -> str:
    """Everifin's spelling of a moment: ISO 8601 in UTC with milliseconds (documented)."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# The next functions return errors rather than raise them: the frames of an exception from here
# would hold a person's data.


def _refuses_token(answer: Answer) -> bool:
    # Everifin documents the status for an expired token, and the code without a status.
    return answer.status == 401 or (
        answer.status in {400, 403} and _first_error(answer).get("code") == "INVALID_ACCESS_TOKEN"
    )


def _envelope(answer: Answer) -> dict[str, Any] | EverifinError:
    if answer.status == 204:
        return {}
    decoded = _decoded_json(answer)
    if answer.status == 200 and isinstance(decoded, dict) and not _says_error(decoded):
        return decoded
    return _refusal(answer, _first_error(answer))


def _outcome(decode: Callable[[Raw], T], answer: Answer) -> T | EverifinError | None:
    """What *answer* says; None if that is not understood."""
    envelope = _envelope(answer)
    if isinstance(envelope, EverifinError):
        return envelope
    return _decoded(decode, envelope.get("data"))


def _leaves_doubt(error: EverifinError) -> bool:
    """May a payment exist after *error*? A 429 is a refusal, whatever its shape."""
    is_refusal = isinstance(error, UnavailableError) and error.status == 429
    return isinstance(error, UnavailableError | AnswerError) and not is_refusal


def _says_error(decoded: Mapping[str, Any]) -> bool:
    meta = decoded.get("meta")
    return bool(decoded.get("errors")) or (isinstance(meta, dict) and meta.get("status") == "ERROR")


def _first_error(answer: Answer) -> Mapping[str, Any]:
    """Everifin's own error, empty if the answer has none, because a proxy wrote it."""
    decoded = _decoded_json(answer)
    errors = decoded.get("errors") if isinstance(decoded, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    return first if isinstance(first, dict) else {}


def _decoded_json(answer: Answer) -> Any:
    try:
        decoded = answer.json()
    except AnswerError:
        return None
    # Halves of characters come as escapes only: bytes of one are not UTF-8.
    return (
        replace_surrogates(decoded)
        if b"\\" in answer.body and SURROGATE.search(answer.body)
        else decoded
    )


def _refusal(answer: Answer, first: Mapping[str, Any]) -> EverifinError:
    code = first.get("code")
    if not isinstance(code, str) or not CODE.fullmatch(code):
        code = None
    if answer.status == 429:
        return answer.error(RateLimitedError, "for now", code=code)
    is_running = code == "ACCOUNT_REFRESH_ALREADY_RUNNING"
    if code in PASSING_CODES or (answer.status >= 500 and not is_running):
        return answer.error(UnavailableError, "for now", code=code)
    if code is None and answer.status != 401:
        return answer.error(AnswerError, "in a shape that is not Everifin's")
    if code == "INVALID_SCOPE":
        return ScopeMissingError()
    kind = NotAuthorizedError if code is None else ERRORS_BY_CODE.get(code, RefusedError)
    error = answer.error(kind, code or "without an error code", code=code)
    if isinstance(error, InvalidRequestError):
        error.field, error.rule = _text_in(first, "field"), _text_in(first, "rule")
        message = _text_in(first, "message") or ""
        error.message = message if VALIDATION_MESSAGE.fullmatch(message) else None
    return error


def _text_in(first: Mapping[str, Any], name: str) -> str | None:
    detail = first.get("detail")
    text = detail.get(name) if isinstance(detail, dict) else None
    return text if isinstance(text, str) else None


def _not_understood(path: str) -> AnswerError:
    return AnswerError(
        f"GET {path} answered in a shape that is not Everifin's.", method="GET", path=path
    )


@dataclass(frozen=True, slots=True)
class _Page(Generic[T]):
    rows: list[T]
    has_next: bool
    last: int | None

    def is_last(self, number: int) -> bool:
        return not self.has_next or (self.last is not None and number >= self.last)


def _page(decode: Callable[[Raw], T], envelope: Mapping[str, Any]) -> _Page[T] | None:
    raw_rows, meta = envelope.get("data"), envelope.get("meta")
    if not isinstance(raw_rows, list):
        return None
    rows = [_decoded(decode, row) for row in raw_rows]
    understood = [row for row in rows if row is not None]
    pagination = meta.get("pagination") if isinstance(meta, dict) else None
    if not isinstance(pagination, dict):
        pagination = {}
    names = conf.api_fields["pagination"]
    number = pagination.get(names["last"])
    last = number if isinstance(number, int) else None
    # Without the address of a next page, the number of the last one is what there is to go by.
    has_next = bool(pagination.get(names["next_page_url"], last is not None))
    return _Page(understood, has_next, last) if len(understood) == len(rows) else None


def _decoded(decode: Callable[[Raw], T], row: Any) -> T | None:
    try:
        return decode(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None

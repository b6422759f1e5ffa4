"""
Everifin's REST API for a given bearer token. Knows no users and no models.

Lists are iterators that fetch page by page: nothing is asked before the first row is, so errors
come while iterating. Every call has an async version with a leading ``a`` (``bank.aio``).

Source: Everifin's BankConnect pages "HTTP requests", "Errors", "Accessing Bank Account Data" and
those on payments. Paths and names of fields are in ``api_names``, which says which of them are
inferred; a site can correct them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, unquote
from uuid import UUID

from everifin_django.bank import dates, errors
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
from everifin_django.bank.aio import AsyncCalls, TokenSource, async_call, async_changes, async_rows
from everifin_django.bank.changes import TransactionChanges
from everifin_django.bank.decoding import RowError
from everifin_django.bank.end_user import is_public, parse_ip
from everifin_django.bank.pages import Page, Row, Rows, not_understood, read_page
from everifin_django.conf import conf
from everifin_django.exceptions import (
    AnswerError,
    AnswerLostError,
    EndUserMissingError,
    InvalidRequestError,
    NotFoundError,
    PaymentUncertainError,
    RefusedError,
    ScopeMissingError,
)
from everifin_django.http.client import AGENT, Answer, bearer, read, send
from everifin_django.secret import Secret, hides_frames

MAX_BYTES = 10 * 1024 * 1024
MAX_PATH_LENGTH = 2000
PAGE_SIZE = 50
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
T = TypeVar("T")
R = TypeVar("R", bound=Row)
D = TypeVar("D", bound=pay.PaymentDetail | pay.BulkPaymentDetail)

ID = re.compile(r"[A-Za-z0-9._~:@=+-]{1,255}")
"""What an id may consist of: Everifin's are numbers and UUIDs, and a slash would lead elsewhere."""

MAX_ID = 10**18
Id: TypeAlias = str | int | UUID


@dataclass(frozen=True, slots=True)
class EndUser:
    """
    The user who is present; leave both out in a background job.

    Errors: ValueError for an *ip* that is no public IP address, and for a *user_agent* that is not
    printable ASCII (see ``sendable_user_agent``).
    Source: Everifin documents the headers ``User-Agent`` and ``client-ip-address`` as the end
    user's.
    """

    ip: str | None = None
    user_agent: str | None = None

    def __post_init__(self) -> None:
        if self.ip is not None:
            parsed = parse_ip(self.ip)
            if parsed is None or not is_public(parsed):
                raise ValueError("The end user's ip is not an IP address of the public internet.")
            object.__setattr__(self, "ip", str(parsed))
        agent = self.user_agent or ""
        if not (agent.isascii() and agent.isprintable()):
            raise ValueError("The end user's user_agent is not printable ASCII.")


class Client(AsyncCalls):
    """
    Calls the bank API with the tokens of *source*.

    Each call is one request, and one more if Everifin refuses the token and *source* has a newer
    one. The result of a cancelled async call is unknown: after ``acreate_payment``
    and ``aprocess_payment`` look as after a PaymentUncertainError.
    Errors: everything below APIError, ScopeMissingError, and what *source* raises.
    """

    def __init__(self, source: TokenSource, *, end_user: EndUser | None = None) -> None:
        self._source = source
        self._end_user = end_user or EndUser()

    def accounts(self, *, page_size: int | None = None, sort: str | None = None) -> Rows[Account]:
        """
        Iterate over the user's bank accounts. One request a page.

        Shape: ``Account``; *sort* is ``"name:asc"`` or ``"name:desc"``, with Everifin's name of a
        field. Source: Everifin documents the list; its path, *page_size* and *sort*, which are not
        sent unless you give them, are inferred.
        """
        paging = _paging(page_size, sort)
        return self._list(account_reader(), conf.api_paths["accounts"], paging)

    def account(self, account_id: Id) -> Account:
        """
        Return one bank account. One request.

        Errors: NotFoundError, also for an account of somebody else. Source: the path is inferred.
        """
        return self._one(account_reader(), _path("account", account_id=account_id))

    def balances(self, account_id: Id) -> tuple[Balance, ...]:
        """
        Return the balances of one bank account, read anew. One request.

        Errors: NotFoundError. Source: inferred; Everifin names no call for balances alone, so they
        are those of the account.
        """
        return self.account(account_id).balances

    def transactions(  # noqa: PLR0913 - one argument for each filter
        self,
        account_id: Id,
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
    ) -> Rows[Transaction]:
        """
        Iterate over an account's transactions that match all filters. One request a page.

        *updated_from* finds rows new or changed since, *created_from* only new ones. A date counts
        from midnight UTC, and as a ``_to`` until its end; a datetime without a time zone is of
        Django's current one; strings are ISO 8601.
        Errors: NotFoundError; InvalidRequestError names the filter Everifin refused, or the string
        that is no date, before anything is sent.
        Source: Everifin documents the four ``_from`` filters; the ``_to`` ones, *direction*, paging
        and *sort* are inferred.
        """
        names = conf.api_fields["query"]
        filters: dict[str, tuple[date | str | None, time]] = {
            names["updated_from"]: (updated_from, time()),
            names["created_from"]: (created_from, time()),
            names["booking_date_from"]: (booking_date_from, time()),
            names["booking_date_to"]: (booking_date_to, dates.DAY_END),
            names["value_date_from"]: (value_date_from, time()),
            names["value_date_to"]: (value_date_to, dates.DAY_END),
        }
        params = {
            name: dates.timestamp(found)
            for name, (value, at) in filters.items()
            if (found := dates.parse(name, value, at)) is not None
        }
        if direction is not None:
            params[names["direction"]] = str(direction)
        path = _path("transactions", account_id=account_id)
        return self._list(transaction_reader(), path, {**params, **_paging(page_size, sort)})

    def transaction(self, account_id: Id, transaction_id: Id) -> Transaction:
        """Return one transaction. Errors: NotFoundError."""
        path = _path("transaction", account_id=account_id, transaction_id=transaction_id)
        return self._one(transaction_reader(), path)

    def transaction_changes(
        self,
        account_id: Id,
        *,
        since: date | str | None = None,
        booking_date_from: date | str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> TransactionChanges:
        """
        Iterate over an account's transactions that are new or changed since the last download.

        Store each under its id, over the one that is there. When the last one has come, keep
        ``cursor`` and give it as *since* next time; without *since* everything comes. With
        *booking_date_from* the first download can leave out the history, whose rows may be stored,
        and so changed, later than newer ones. One request a page.
        Units: ``cursor`` is five minutes before the latest ``last_updated``, or before the
        beginning of the download if that is earlier, and never before *since*; so the latest rows
        may come again. It stays where the list was not complete.
        Errors: as ``transactions``.
        Source: "Accessing Bank Account Data" documents the rule and both filters.
        """
        begin = dates.parse(conf.api_fields["query"]["updated_from"], since)
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

    def banks(self, *, page_size: int | None = None, sort: str | None = None) -> Rows[Bank]:
        """
        Iterate over the banks a user can connect. One request a page. Source: the path is inferred.
        """
        paging = _paging(page_size, sort)
        return self._list(bank_reader(), conf.api_paths["banks"], paging)

    @hides_frames
    def create_payment(self, payment: pay.SinglePayment) -> str:
        """
        Return the id of *payment*, which Everifin knows from now on. Process it to have it paid.

        One request on a connection of its own, never repeated but after a refused token.
        Errors: PaymentUncertainError if it may exist or not: ask ``find_payment(external_id)``
        before paying again.
        """
        return self._create("payments", payment)

    @hides_frames
    def create_bulk_payment(self, payment: pay.BulkPayment) -> str:
        """Return the id of the bulk *payment*. Else as ``create_payment``."""
        return self._create("bulk_payments", payment)

    @hides_frames
    def process_payment(
        self,
        payment_id: Id,
        *,
        inputs: pay.Inputs | None = None,
        step: pay.PaymentStep | None = None,
        key_of: pay.KeyOf = pay.encryption_key,
    ) -> pay.PaymentStep:
        """
        Take the next step of a payment, and return what has to happen then. One request, as
        ``create_payment``.

        *inputs* are the values that the last answer asked for, or all query parameters of the
        return from the bank (``request.GET.dict()``), which are passed on and never believed. They
        need that answer as *step*, so that what it wants encrypted never goes out in clear;
        *key_of* reads its key.
        Errors: EndUserMissingError if nobody is present; InvalidRequestError if *inputs* do not
        answer *step*, or cannot be encrypted, and nothing was sent; PaymentRejectedError;
        PaymentNotEditableError; PaymentUncertainError if it may have been paid: ask
        ``payment(payment_id)``.
        """
        path = _path("payment", payment_id=payment_id)
        return self._process(payment_id, path, inputs, step, key_of)

    @hides_frames
    def process_bulk_payment(
        self,
        payment_id: Id,
        *,
        inputs: pay.Inputs | None = None,
        step: pay.PaymentStep | None = None,
        key_of: pay.KeyOf = pay.encryption_key,
    ) -> pay.PaymentStep:
        """Take the next step of a bulk payment. Else as ``process_payment``."""
        path = _path("bulk_payment", payment_id=payment_id)
        return self._process(payment_id, path, inputs, step, key_of)

    def payment(self, payment_id: Id) -> pay.PaymentDetail:
        """Return one single payment. Errors: NotFoundError."""
        return self._one(pay.payment_reader(), _path("payment", payment_id=payment_id))

    def bulk_payment(self, payment_id: Id) -> pay.BulkPaymentDetail:
        """Return one bulk payment. Errors: NotFoundError."""
        return self._one(pay.bulk_payment_reader(), _path("bulk_payment", payment_id=payment_id))

    def payments(
        self, *, page_size: int | None = None, sort: str | None = None
    ) -> Rows[pay.PaymentDetail]:
        """Iterate over the user's single payments. One request a page. The path is inferred."""
        paging = _paging(page_size, sort)
        return self._list(pay.payment_reader(), conf.api_paths["payments"], paging)

    def bulk_payments(
        self, *, page_size: int | None = None, sort: str | None = None
    ) -> Rows[pay.BulkPaymentDetail]:
        """Iterate over the user's bulk payments. One request a page."""
        paging = _paging(page_size, sort)
        return self._list(pay.bulk_payment_reader(), conf.api_paths["bulk_payments"], paging)

    def find_payment(self, external_id: Id) -> pay.PaymentDetail | None:
        """
        Return the single payment you gave this *external_id*; None if Everifin has none. Reads the
        whole list. Of several with one external id it is the one that is paid.

        Errors: PaymentUncertainError, whose ``payment_ids`` are to be compared, where "none" cannot
        be told, because the list is not complete, cannot be read, or has a row without external id
        (that it has one is inferred) or with this one in another case; and where several have this
        one and not just one of them is paid.
        InvalidRequestError without an external id.
        """
        return _found(self.payments(), external_id, conf.api_paths["payments"])

    def find_bulk_payment(self, external_id: Id) -> pay.BulkPaymentDetail | None:
        """Return the bulk payment you gave this *external_id*. Else as ``find_payment``."""
        return _found(self.bulk_payments(), external_id, conf.api_paths["bulk_payments"])

    def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> dict[str, Any]:
        """
        Return the decoded envelope of any call, for what this class has no method for.

        *path* begins with "/" and is sent to EVERIFIN_API_URL and nowhere else.
        A GET that fails for now is tried again within EVERIFIN_DEADLINE_SECONDS; all else is sent
        once, and once more only if Everifin itself refused the token.
        Shape: ``{"meta": ..., "data": ...}``, fractions as Decimal; empty for an answer without
        content.
        Errors: PaymentUncertainError for what writes and got a 401 that is not Everifin's.
        """
        answer = self._answer(method, path, params, json)
        if answer.status == 401 and not _is_reading(method) and errors.leaves_doubt(answer):
            raise answer.error(
                PaymentUncertainError,
                "in words that are not Everifin's: it is not known what became of this request",
            )
        return errors.envelope(answer)

    aaccounts = async_rows(accounts)
    aaccount = async_call(account)
    abalances = async_call(balances)
    atransactions = async_rows(transactions)
    atransaction = async_call(transaction)
    atransaction_changes = async_changes(transaction_changes)
    arefresh_transactions = async_call(refresh_transactions)
    abanks = async_rows(banks)
    acreate_payment = async_call(create_payment)
    acreate_bulk_payment = async_call(create_bulk_payment)
    aprocess_payment = async_call(process_payment)
    aprocess_bulk_payment = async_call(process_bulk_payment)
    apayment = async_call(payment)
    abulk_payment = async_call(bulk_payment)
    apayments = async_rows(payments)
    abulk_payments = async_rows(bulk_payments)
    afind_payment = async_call(find_payment)
    afind_bulk_payment = async_call(find_bulk_payment)
    arequest = async_call(request)

    def _create(self, name: str, payment: pay.SinglePayment | pay.BulkPayment) -> str:
        pay.check_way_back(payment)
        doubt = {"external_id": str(payment.external_id) if payment.external_id else None}
        body = pay.to_json(payment.body())
        return self._pay("POST", conf.api_paths[name], body, pay.created_id, doubt)

    def _process(
        self,
        payment_id: Id,
        path: str,
        inputs: pay.Inputs | None,
        step: pay.PaymentStep | None,
        key_of: pay.KeyOf,
    ) -> pay.PaymentStep:
        headers = self._sender_headers()
        body, is_encrypted = pay.answer_step(step, inputs or {}, key_of)
        if is_encrypted:
            headers["x-user-data-encryption-method"] = pay.ENCRYPTION
        doubt = {"payment_id": str(payment_id)}
        return self._pay("PATCH", path, body, pay.PaymentStep.from_raw, doubt, headers)

    def _sender_headers(self) -> dict[str, str]:
        ip, agent = self._end_user.ip, (self._end_user.user_agent or "").strip()
        if ip is None or not agent:
            raise EndUserMissingError(
                "To process a payment, Everifin needs the IP address and the browser of the person "
                "who pays. Nothing was sent: see EVERIFIN_TRUSTED_PROXIES if the site is behind a "
                "proxy; a private or loopback IP address counts as unknown."
            )
        return {"x-ef-sender-ip": ip, "x-ef-sender-user-agent": agent}

    def _pay(
        self,
        method: str,
        path: str,
        body: Secret,
        decode: Callable[[Any], T],
        doubt: Mapping[str, str | None],
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """
        The decoded answer to a request that may move money.

        Sent once, on its own connection: an idle one may have been closed at the other end, and
        nobody could tell whether the payment was read before. Only a refused token, which Everifin
        looks at before anything else, lets it be sent again; whatever else leaves doubt is
        PaymentUncertainError.
        """
        token = self._source.get()
        answer = self._pay_once(token, method, path, body, doubt, headers)
        if errors.refuses_token(answer):
            token = self._source.refresh(token)
            answer = self._pay_once(token, method, path, body, doubt, headers)
            if errors.refuses_token(answer):
                self._source.reject(token)
        try:
            return decode(errors.envelope(answer).get("data"))
        except Exception as error:
            # The error of a 429 tells by its code whether it is in Everifin's own words.
            is_refused = isinstance(error, RefusedError | ScopeMissingError)
            if answer.status == 429 or (is_refused and not errors.leaves_doubt(answer)):
                raise
            raise _uncertain(method, path, doubt, answer) from error

    def _pay_once(
        self,
        token: Secret,
        method: str,
        path: str,
        body: Secret,
        doubt: Mapping[str, str | None],
        headers: Mapping[str, str] | None,
    ) -> Answer:
        try:
            return self._send(token, method, path, None, body, headers=headers, fresh=True)
        except AnswerLostError as error:
            raise _uncertain(method, path, doubt) from error

    def _answer(self, method: str, path: str, params: Any = None, content: Any = None) -> Answer:
        """The answer to a request, which is sent once more after a refused token."""
        token = self._source.get()
        answer = self._send(token, method, path, params, content)
        if _refuses_token(method, answer):
            token = self._source.refresh(token)
            answer = self._send(token, method, path, params, content)
            if _refuses_token(method, answer):
                self._source.reject(token)
        return answer

    def _list(self, decode: Callable[[Any], R], path: str, params: Mapping[str, str]) -> Rows[R]:
        page_name = conf.api_fields["query"]["page"]

        def fetch(number: int) -> Page[R]:
            answer = self._answer("GET", path, {**params, page_name: str(number)})
            return read_page(decode, errors.envelope(answer), path, number)

        size = params.get(conf.api_fields["query"]["page_size"])
        return Rows(fetch, int(size) if size else None)

    @hides_frames
    def _one(self, decode: Callable[[Any], T], path: str) -> T:
        try:
            return decode(errors.envelope(self._answer("GET", path)).get("data"))
        except RowError as error:
            raise not_understood(path, f"{error}.") from error

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


def _refuses_token(method: str, answer: Answer) -> bool:
    """Was the token refused? What only reads may be sent again after any 401."""
    return errors.refuses_token(answer) or (_is_reading(method) and answer.status == 401)


def _is_reading(method: str) -> bool:
    return method.upper() in READING_METHODS


def _uncertain(
    method: str, path: str, doubt: Mapping[str, str | None], answer: Answer | None = None
) -> PaymentUncertainError:
    """The error that says how to look for a payment: *doubt* has its id, or its external id."""
    error = PaymentUncertainError(
        f"{method} {path} at Everifin: it is not known what became of this payment. Look "
        "before paying again: see payment_id and external_id of this error.",
        method=method,
        path=path,
        status=answer.status if answer else None,
        code=errors.code_of(answer) if answer else None,
    )
    error.payment_id, error.external_id = doubt.get("payment_id"), doubt.get("external_id")
    return error


def _found(rows: Rows[D], external_id: Any, path: str) -> D | None:
    wanted = _external_id(external_id)
    all_rows, why = _read_all(rows)
    # One payment may come twice, when the list moves between two pages.
    by_id = {row.id: row for row in all_rows}
    same = [row for row in by_id.values() if row.external_id == wanted]
    paid = [row for row in same if row.status.is_paid]
    if len(paid) == 1 or (len(same) == 1 and not why):
        return (paid or same)[0]
    if len(same) > 1:
        raise _not_identified(path, wanted, same, "several payments have this external id")
    if why or len(by_id) < len(all_rows):
        why = why or "the list of payments is not complete"
        raise _not_identified(path, wanted, list(by_id.values()), why)
    unsure = [row for row in all_rows if _may_be(row.external_id, wanted)]
    if unsure:
        raise _not_identified(path, wanted, unsure, "the list does not tell each external id")
    return None


def _read_all(rows: Rows[D]) -> tuple[list[D], str]:
    """The rows, and why they may not be all."""
    found: list[D] = []
    try:
        found.extend(rows)
    except AnswerError as error:
        return found, f"the list of payments cannot be read ({error})"
    return found, "" if rows.is_complete else "the list of payments is not complete"


def _may_be(told: str | None, wanted: str) -> bool:
    """Is it not told, or told in another case or with other spaces, as a UUID may be?"""
    plain = (told or "").strip().casefold()
    return not plain or plain == wanted.strip().casefold()


def _external_id(value: Any) -> str:
    found = pay.to_string(value, "external_id") or ""
    if not found.strip():
        error = InvalidRequestError("A payment is found by its external id, and none was given.")
        error.field, error.rule = "externalId", "required"
        raise error
    return found


def _not_identified(path: str, external_id: str, rows: list[D], why: str) -> PaymentUncertainError:
    error = PaymentUncertainError(
        f"GET {path} at Everifin does not tell whether the payment exists: {why}. Before paying "
        "again, compare amount, recipient and time of the payments in payment_ids.",
        method="GET",
        path=path,
    )
    error.external_id, error.payment_ids = external_id, tuple(row.id for row in rows)
    return error


def _url(path: str) -> str:
    resource = path.split("?", maxsplit=1)[0]
    # Read as a server or a proxy might: with escapes decoded, also twice, and parameters cut off.
    decoded = unquote(unquote(resource)).replace("\\", "/")
    segments = [segment.partition(";")[0] for segment in decoded.split("/")]
    is_plain = path.isascii() and path.isprintable() and "#" not in path and decoded.isprintable()
    is_absolute = path.startswith("/") and not path.startswith("//")
    is_short = len(path) <= MAX_PATH_LENGTH
    if not (is_plain and is_absolute and is_short) or {".", ".."}.intersection(segments):
        raise InvalidRequestError(
            "A path begins with one '/', has no '.' or '..' in it, all else than ASCII escaped, "
            f"and at most {MAX_PATH_LENGTH} characters."
        )
    return conf.api_url + path


def _path(name: str, **ids: Any) -> str:
    template = conf.api_paths[name]
    strings = {key: _id(value) for key, value in ids.items()}
    if not all(ID.fullmatch(found) and found.strip(".") for found in strings.values()):
        raise NotFoundError("Nothing at Everifin has such an id.", method="GET", path=template)
    return template.format(**{key: quote(found, safe="") for key, found in strings.items()})


def _id(value: Any) -> str:
    """*value* as a string; empty if it is no id."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_ID
    return str(value) if is_whole or isinstance(value, str | UUID) else ""


def _paging(page_size: int | None, sort: str | None) -> dict[str, str]:
    if page_size is not None and page_size < 1:
        raise ValueError("A page has at least one row.")
    names = conf.api_fields["query"]
    given = {names["page_size"]: page_size, names["sort"]: sort}
    return {name: str(value) for name, value in given.items() if value is not None}

"""
Everifin's REST API for a given bearer token. Knows no users and no models.

Lists are iterators that fetch page by page: nothing is asked before the first item is, so errors
come while iterating. Every call has an awaitable twin with a leading ``a``, which runs the call in
a thread.

Source: Everifin's BankConnect pages "HTTP requests", "Errors" and "Accessing Bank Account Data".
The paths of this part of the API are inferred; they stand in ``conf.DEFAULT_API_PATHS`` and a site
can correct them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from ipaddress import ip_address
from itertools import islice
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack
from urllib.parse import quote, unquote

from asgiref.sync import sync_to_async

from everifin_django import bank
from everifin_django.conf import conf
from everifin_django.exceptions import (
    AnswerError,
    EverifinError,
    InvalidRequestError,
    NotAuthorizedError,
    NotFoundError,
    RefusedError,
    ScopeMissingError,
    UnavailableError,
)
from everifin_django.secret import Secret
from everifin_django.transport import AGENT, Answer, bearer, send

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
}
"""Everifin's codes are documented, most of their HTTP statuses are not: so the code decides."""


class TokenSource(Protocol):
    """Where the client gets its access token from."""

    def lend(self) -> Secret:
        """Return an access token that is good to use."""

    def renew(self, rejected: Secret) -> Secret:
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


class TransactionFilters(TypedDict, total=False):
    """The filters of ``Client.transactions``, for its awaitable twin."""

    updated_from: date | str | None
    created_from: date | str | None
    booking_date_from: date | str | None
    booking_date_to: date | str | None
    value_date_from: date | str | None
    value_date_to: date | str | None
    direction: bank.Direction | str | None
    page_size: int


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

    def accounts(self) -> Iterator[bank.Account]:
        """Iterate over the user's bank accounts. One request a page."""
        return self._list(bank.account, conf.api_paths["accounts"], {})

    def account(self, account_id: str) -> bank.Account:
        """Return one bank account. Errors: NotFoundError, also for an account of somebody else."""
        return self._one(bank.account, _path("account", account_id=account_id))

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
        direction: bank.Direction | str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[bank.Transaction]:
        """
        Iterate over an account's transactions that match all filters. One request a page.

        *updated_from* finds rows new or changed since, *created_from* only new ones. A date counts
        from midnight UTC.
        Errors: NotFoundError; InvalidRequestError names the filter Everifin refused.
        Source: Everifin documents the four ``_from`` filters; the ``_to`` ones, *direction* and
        paging are inferred.
        """
        filters = {
            "updatedFrom": _timestamp(updated_from),
            "createdFrom": _timestamp(created_from),
            "bookingDateFrom": _timestamp(booking_date_from),
            "bookingDateTo": _timestamp(booking_date_to),
            "valueDateFrom": _timestamp(value_date_from),
            "valueDateTo": _timestamp(value_date_to),
            "direction": direction,
        }
        params = {name: str(value) for name, value in filters.items() if value is not None}
        path = _path("transactions", account_id=account_id)
        return self._list(bank.transaction, path, {**params, "countPerPage": str(page_size)})

    def transaction(self, account_id: str, transaction_id: str) -> bank.Transaction:
        """Return one transaction. Errors: NotFoundError."""
        path = _path("transaction", account_id=account_id, transaction_id=transaction_id)
        return self._one(bank.transaction, path)

    def banks(self) -> Iterator[bank.Bank]:
        """Iterate over the banks a user can connect. One request a page."""
        return self._list(bank.bank, conf.api_paths["banks"], {})

    def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> dict[str, Any]:
        """
        Return the decoded envelope of any call, for what this class has no method for.

        *path* begins with "/" and is sent to EVERIFIN_API_URL and nowhere else.
        Shape: ``{"meta": ..., "data": ...}``, fractions as Decimal; empty for an answer without
        content.
        """
        token = self._source.lend()
        answer = self._send(token, method, path, params, json)
        if _refuses_token(answer):
            answer = self._send(self._source.renew(token), method, path, params, json)
        envelope = _envelope(answer)
        if isinstance(envelope, EverifinError):
            raise envelope
        return envelope

    async def aaccounts(self) -> AsyncIterator[bank.Account]:
        async for account in _in_thread(self.accounts()):
            yield account

    async def aaccount(self, account_id: str) -> bank.Account:
        return await sync_to_async(self.account)(account_id)

    async def atransactions(
        self, account_id: str, **filters: Unpack[TransactionFilters]
    ) -> AsyncIterator[bank.Transaction]:
        async for transaction in _in_thread(self.transactions(account_id, **filters)):
            yield transaction

    async def atransaction(self, account_id: str, transaction_id: str) -> bank.Transaction:
        return await sync_to_async(self.transaction)(account_id, transaction_id)

    async def abanks(self) -> AsyncIterator[bank.Bank]:
        async for one in _in_thread(self.banks()):
            yield one

    async def arequest(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> dict[str, Any]:
        return await sync_to_async(self.request)(method, path, params=params, json=json)

    def _list(
        self, decode: Callable[[bank.Raw], T], path: str, params: Mapping[str, str]
    ) -> Iterator[T]:
        before: list[T] = []
        number = 1
        while True:
            page = _page(decode, self.request("GET", path, params={**params, "page": str(number)}))
            # The same page again would come for ever.
            if page is None or (page.rows and page.rows == before):
                raise _not_understood(path)
            yield from page.rows
            if not page.rows or page.is_last(number):
                return
            before, number = page.rows, number + 1

    def _one(self, decode: Callable[[bank.Raw], T], path: str) -> T:
        decoded = _decoded(decode, self.request("GET", path).get("data"))
        if decoded is None:
            raise _not_understood(path)
        return decoded

    def _send(self, token: Secret, method: str, path: str, params: Any, content: Any) -> Answer:
        headers: dict[str, str | Secret] = {
            "Authorization": bearer(token),
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "Content-Type": "application/json",
            "User-Agent": (self._end_user.user_agent or "").strip() or AGENT,
        }
        if self._end_user.ip is not None:
            headers["client-ip-address"] = self._end_user.ip
        return send(
            method, _url(path), headers=headers, params=params, content=content, max_bytes=MAX_BYTES
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


def _timestamp(value: date | str | None) -> str | None:
    """
    Everifin's spelling of a moment: ISO 8601 in UTC with milliseconds (documented). Text is sent as
    it is.
    """
    if value is None or isinstance(value, str):
        return value
    moment = value if isinstance(value, datetime) else datetime.combine(value, time(), UTC)
    if moment.tzinfo is None:
        raise ValueError("A datetime for Everifin needs a time zone.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
        return answer.json()
    except AnswerError:
        return None


def _refusal(answer: Answer, first: Mapping[str, Any]) -> EverifinError:
    code = first.get("code")
    if not isinstance(code, str) or not CODE.fullmatch(code):
        code = None
    if answer.status == 429 or answer.status >= 500 or code == "INTERNAL_SERVER_ERROR":
        return answer.error(UnavailableError, "for now", code=code)
    if code is None and answer.status != 401:
        return answer.error(AnswerError, "in a shape that is not Everifin's")
    if code == "INVALID_SCOPE":
        return ScopeMissingError()
    kind = NotAuthorizedError if code is None else ERRORS_BY_CODE.get(code, RefusedError)
    error = answer.error(kind, code or "without an error code", code=code)
    if isinstance(error, InvalidRequestError):
        error.field, error.rule = _text_in(first, "field"), _text_in(first, "rule")
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


def _page(decode: Callable[[bank.Raw], T], envelope: Mapping[str, Any]) -> _Page[T] | None:
    raw_rows, meta = envelope.get("data"), envelope.get("meta")
    if not isinstance(raw_rows, list):
        return None
    rows = [_decoded(decode, row) for row in raw_rows]
    understood = [row for row in rows if row is not None]
    pagination = meta.get("pagination") if isinstance(meta, dict) else None
    if not isinstance(pagination, dict):
        pagination = {}
    last = pagination.get("last") if isinstance(pagination.get("last"), int) else None
    # Without the address of a next page, the number of the last one is what there is to go by.
    has_next = bool(pagination.get("nextPageUrl", last is not None))
    return _Page(understood, has_next, last) if len(understood) == len(rows) else None


def _decoded(decode: Callable[[bank.Raw], T], row: Any) -> T | None:
    try:
        return decode(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None

"""
What Everifin's answers become when they are no data: which error for which code, and what a refused
token proves.

Everifin documents its codes, and few of their HTTP statuses: so the code decides.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from everifin_django.bank.decoding import replace_unstorable, whole_number
from everifin_django.exceptions import (
    AnswerError,
    EverifinError,
    InvalidRequestError,
    NotAuthorizedError,
    NotFoundError,
    PaymentNotEditableError,
    PaymentRejectedError,
    RateLimitedError,
    RefreshRunningError,
    RefusedError,
    ScopeMissingError,
    UnavailableError,
)
from everifin_django.http.client import PASSING_STATUSES, Answer
from everifin_django.secret import hides_frames

logger = logging.getLogger(__name__)

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
PASSING_CODES = frozenset({"INTERNAL_SERVER_ERROR", "TRANSACTION_REFRESH_ERROR"})
TOKEN_CODES = frozenset({"INVALID_ACCESS_TOKEN", "INVALID_AUTH_HEADER"})
TOKEN_STATUSES = frozenset({400, 401, 403})
GOOD_STATUSES = frozenset({200, 201, 202})

CODE = re.compile(r"[A-Z][A-Z_]{0,63}")
NAME = re.compile(r"[A-Za-z_][\w.\[\]-]{0,63}", re.ASCII)
"""A field or a rule. Anything else may be personal data."""

VALIDATION_MESSAGE = re.compile(r"\w{1,64} validation failed on [\w.]{1,64}", re.ASCII)
UNSTORABLE = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
INVALID_TOKEN = re.compile(
    r"(?:^|,)\s*bearer\s+(?:[\w-]+\s*=\s*[^\s,]+\s*,\s*)*"
    r"error\s*=\s*invalid_token\s*(?:,|$)",
    re.ASCII | re.IGNORECASE,
)
"""Source: RFC 6750, section 3. For a challenge without quotation marks."""

ERROR_PARAMETER = re.compile(r"\berror\s*=", re.ASCII | re.IGNORECASE)
MAX_HEADER_LENGTH = 1000


@hides_frames
def envelope(answer: Answer) -> dict[str, Any]:
    """
    Return the decoded envelope of *answer*; empty for one without content.

    Errors: everything below APIError; ScopeMissingError. What a GET gets that is not JSON (a
    maintenance page, half an answer) is UnavailableError, and logged as an error.
    """
    if answer.status == 204:
        return {}
    decoded = _decoded(answer)
    if answer.status in GOOD_STATUSES:
        if decoded is None and answer.method == "GET" and not _is_json(answer.body):
            logger.error("GET %s answered %s without JSON.", answer.path, answer.status)
            raise answer.error(UnavailableError, "with something other than JSON")
        if isinstance(decoded, dict) and not _says_error(decoded):
            return decoded
    raise _refusal(answer, decoded)


@hides_frames
def refuses_token(answer: Answer) -> bool:
    """
    Did Everifin itself refuse the token, which it looks at before anything else?

    This is the only proof that nothing was done. A status alone proves nothing: a gateway answers
    401 too, and Everifin may pass on a bank's.
    """
    if answer.status not in TOKEN_STATUSES:
        return False
    if answer.status == 401 and _is_invalid_token(answer.headers.get("WWW-Authenticate", "")):
        return True
    return _own_code(_decoded(answer)) in TOKEN_CODES


@hides_frames
def leaves_doubt(answer: Answer) -> bool:
    """
    May the work of a request that writes be done, in spite of an answer that refuses it?

    Only Everifin's own envelope of an error proves that it is not: a gateway's list of errors may
    have codes as well. Of a 401 it has to be a refused token, or NOT_AUTHORIZED.
    """
    if refuses_token(answer):
        return False
    code = _own_code(_decoded(answer))
    return code != "NOT_AUTHORIZED" if answer.status == 401 else code is None


def _is_invalid_token(challenge: str) -> bool:
    """Does a Bearer challenge say invalid_token? What another one only quotes proves nothing."""
    if len(challenge) > MAX_HEADER_LENGTH:
        return False
    plain = QUOTED.sub(_unquoted, challenge)
    is_told = '"' not in plain and INVALID_TOKEN.search(plain) is not None
    return is_told and len(ERROR_PARAMETER.findall(plain)) == 1


def _unquoted(found: re.Match[str]) -> str:
    return "invalid_token" if found[0] == '"invalid_token"' else "quoted"


@hides_frames
def code_of(answer: Answer) -> str | None:
    """Return Everifin's error code, if *answer* has one."""
    return _code(_first_error(_decoded(answer)))


def _own_code(decoded: Any) -> str | None:
    """The error code, if *decoded* is Everifin's whole envelope of one error, without data."""
    if not isinstance(decoded, dict) or decoded.get("data"):
        return None
    meta, listed = decoded.get("meta"), decoded.get("errors")
    is_own = isinstance(meta, dict) and meta.get("status") == "ERROR"
    is_one = isinstance(listed, list) and len(listed) == 1
    return _code(_first_error(decoded)) if is_own and is_one else None


def _code(first: Mapping[str, Any]) -> str | None:
    code = first.get("code")
    return code if isinstance(code, str) and CODE.fullmatch(code) else None


def _says_error(decoded: Mapping[str, Any]) -> bool:
    meta = decoded.get("meta")
    return bool(decoded.get("errors")) or (isinstance(meta, dict) and meta.get("status") == "ERROR")


def _first_error(decoded: Any) -> Mapping[str, Any]:
    """Everifin's own error; empty if the answer has none, because a proxy wrote it."""
    errors = decoded.get("errors") if isinstance(decoded, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    return first if isinstance(first, dict) else {}


def _decoded(answer: Answer) -> Any:
    """The decoded JSON without what no database takes; None for all else than JSON."""
    try:
        decoded = answer.json(numbers_as_text=True)
        # Both come as escapes only: their bytes are not UTF-8, or not JSON.
        if b"\\" in answer.body and UNSTORABLE.search(answer.body):
            decoded = replace_unstorable(decoded)
    except Exception:  # noqa: BLE001 - also RecursionError, for what is nested too deep
        return None
    return decoded


def _is_json(body: bytes) -> bool:
    """Is it JSON for those who are less strict? Then it is neither a page nor cut short."""
    try:
        json.loads(body)
    except Exception:  # noqa: BLE001 - also RecursionError
        return False
    return True


def _refusal(answer: Answer, decoded: Any) -> EverifinError:
    if answer.status == 429:
        # Anybody on the way may say this, after the work, too: a code is Everifin's word for it.
        return answer.error(RateLimitedError, "for now", code=_own_code(decoded))
    first = _first_error(decoded)
    code = _code(first)
    is_running = code == "ACCOUNT_REFRESH_ALREADY_RUNNING"
    is_passing = answer.status >= 500 or (code is None and answer.status in PASSING_STATUSES)
    if code in PASSING_CODES or (is_passing and not is_running):
        return answer.error(UnavailableError, "for now", code=code)
    if code is None and answer.status != 401:
        return answer.error(AnswerError, "in a shape that is not Everifin's")
    if code == "INVALID_SCOPE":
        return ScopeMissingError()
    kind = NotAuthorizedError if code is None else ERRORS_BY_CODE.get(code, RefusedError)
    if issubclass(kind, InvalidRequestError):
        return _invalid(answer, kind, str(code), first)
    return answer.error(kind, code or "without an error code", code=code)


def _invalid(
    answer: Answer, kind: type[InvalidRequestError], code: str, first: Mapping[str, Any]
) -> InvalidRequestError:
    """The error that names the field and the rule, and the limits where the answer tells them."""
    found = first.get("detail")
    detail = found if isinstance(found, dict) else {}
    field, rule = (_matching(NAME, detail.get(name)) for name in ("field", "rule"))
    what = f"{code} for {field}: {rule or 'not accepted'}{_limits(detail)}" if field else code
    error = answer.error(kind, what, code=code)
    error.field, error.rule = field, rule
    error.message = _matching(VALIDATION_MESSAGE, detail.get("message"))
    return error


def _limits(detail: Mapping[str, Any]) -> str:
    found = detail.get("args")
    args = found if isinstance(found, dict) else {}
    limits = {name: whole_number(value) for name, value in args.items() if NAME.fullmatch(name)}
    told = [f"{name} {number}" for name, number in limits.items() if number is not None]
    return f" ({', '.join(told[:4])})" if told else ""


def _matching(pattern: re.Pattern[str], value: Any) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None

"""
Send HTTP requests: a deadline always set, redirects never followed, the answer bounded, errors
translated.

What is not trusted: the environment, cookies, redirects (a 307 would send the refresh token and
client secret again), the length, speed and encoding of an answer, and its media type.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import uniform
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import requests
from django.core.exceptions import ImproperlyConfigured
from urllib3.util import Timeout

from everifin_django import __version__
from everifin_django.conf import conf, is_secure
from everifin_django.exceptions import (
    AnswerError,
    AnswerLostError,
    APIError,
    InvalidRequestError,
    UnavailableError,
    UnreachableError,
)
from everifin_django.http.deadline import nothing_was_sent, session
from everifin_django.http.strict_json import strict_json
from everifin_django.instrumentation import observed
from everifin_django.secret import Secret, hides_frames

E = TypeVar("E", bound=APIError)

AGENT = f"everifin-django/{__version__}"
CHUNK_BYTES = 16_384
MAX_RETRY_AFTER_SECONDS = 24 * 3600
MAX_RETRY_AFTER_LENGTH = 64
_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+)?(\s*,\s*[0-9]+(\.[0-9]+)?)*")

FIRST_PAUSE_SECONDS = 0.1
PASSING_STATUSES = frozenset({408, 425, 429, 499, 500, 502, 503, 504, 520, 521, 522, 523, 524})
"""
What may be over at the next try. 499 is nginx's, 520 to 524 are Cloudflare's: the server behind
them was slow, silent or not reached.
"""

MAYBE_DONE_STATUSES = frozenset({408, 499, 502, 504, 520, 524})
"""A gateway gave up waiting for a server that may have done the work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    An answer. The body stays out of the repr, because it may hold tokens or a person's data.
    """

    method: str
    path: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @hides_frames
    def json(self, *, numbers_as_text: bool = False) -> Any:
        """
        Return the decoded body, with or without a byte order mark (RFC 8259, section 8.1).

        Errors: AnswerError for anything but strict JSON, as ``strict_json`` has it.
        """
        try:
            body = self.body.removeprefix(BOM_UTF8)
            return strict_json(body, numbers_as_text=numbers_as_text)
        except ValueError as error:
            raise self.error(AnswerError, "with something other than JSON") from error

    def error(self, kind: type[E], what: str, *, code: str | None = None) -> E:
        """Return an error about this answer, whose message ends with *what*."""
        error = kind(
            f"{self.method} {self.path} answered {self.status} {what}.",
            method=self.method,
            path=self.path,
            status=self.status,
            code=code,
        )
        if isinstance(error, UnavailableError):
            error.retry_after_seconds = self.retry_after_seconds
        return error

    @property
    def retry_after_seconds(self) -> float | None:
        """
        What Retry-After asks for, as seconds from now, at most a day; None without a usable header.
        Source: RFC 9110, 10.2.3.
        """
        value = self.headers.get("Retry-After", "").strip()[:MAX_RETRY_AFTER_LENGTH]
        if _NUMBERS.fullmatch(value):
            # Two headers, of the server and of a proxy before it, arrive as one with a comma.
            seconds = max(float(one) for one in value.split(","))
        else:
            try:
                at = parsedate_to_datetime(value)
                seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
            except Exception:  # noqa: BLE001 - whatever the parser makes of a stranger's header
                return None
        return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


@hides_frames
def send(  # noqa: PLR0913 - what a request consists of, and its two bounds
    method: str,
    url: str,
    *,
    headers: Mapping[str, str | Secret],
    params: Mapping[str, Any] | None = None,
    form: Mapping[str, str | Secret] | None = None,
    content: Any = None,
    max_bytes: int,
    deadline_seconds: float | None = None,
    fresh_connection: bool = False,
) -> Answer:
    """
    Return the answer to one request, whatever its status.

    One request, no retry. *params* that are None are left out, *form* is sent form-encoded,
    *content* as JSON, unless it is a Secret, which is JSON already. The deadline (default
    EVERIFIN_DEADLINE_SECONDS) bounds connecting, waiting and reading together; only a name look-up
    is outside it. An answer is taken in no encoding but the one that *headers* accept.

    Errors: UnreachableError if nothing was sent; AnswerLostError for everything that goes wrong
    between sending and a whole answer of *max_bytes* or less; InvalidRequestError for what HTTP
    cannot carry. None of them refers to the request, so no report of an error can show what was
    sent.
    """
    request = _Request(method.upper(), _with(_secure(url), params), headers, form, _json(content))
    seconds = conf.deadline_seconds if deadline_seconds is None else deadline_seconds
    if seconds <= 0:
        raise request.error(UnreachableError)
    with (
        observed("request", method=request.method, url=url) as facts,
        session(fresh=fresh_connection) as sender,
    ):
        prepared, options = _prepared(sender, request), _options(seconds)
        try:
            with sender.send(prepared, **options) as response:
                facts["status"] = response.status_code
                body = _body(response, prepared.headers["Accept-Encoding"], max_bytes)
                return request.answer(response, body)
        except Exception as error:
            # No list of classes: each new version of a library may add one.
            kind = UnreachableError if nothing_was_sent(error) else AnswerLostError
            raise request.error(kind) from error


@hides_frames
def read(
    url: str,
    *,
    headers: Mapping[str, str | Secret],
    params: Mapping[str, Any] | None = None,
    max_bytes: int,
) -> Answer:
    """
    Return the answer to a GET, which is tried EVERIFIN_MAX_TRIES times at most before its failure
    counts.

    Before the next try is a pause that doubles, with jitter, or is as long as Retry-After asks for.
    There is none if less than half of EVERIFIN_DEADLINE_SECONDS would be left for it, nor after a
    429 without Retry-After. For what must not be carried out twice there is ``send``.

    Errors: as ``send``.
    """
    end = monotonic() + conf.deadline_seconds
    latest_start = end - conf.deadline_seconds / 2
    number = 1
    while True:
        is_last = number == conf.max_tries
        pause = _backoff(number)
        try:
            answer = send(
                "GET",
                url,
                headers=headers,
                params=params,
                max_bytes=max_bytes,
                deadline_seconds=end - monotonic(),
            )
        except UnavailableError:
            if is_last or monotonic() + pause > latest_start:
                raise
        else:
            pause = max(pause, answer.retry_after_seconds or 0)
            if is_last or not _is_passing(answer) or monotonic() + pause > latest_start:
                return answer
        sleep(pause)
        number += 1


def bearer(token: Secret) -> Secret:
    """Return the value of the Authorization header for *token*. Source: RFC 6750, section 2.1."""
    return Secret(f"Bearer {token.reveal()}")


def _backoff(number: int) -> float:
    """How long to wait after try *number*."""
    jitter = uniform(0.5, 1)  # noqa: S311 - no secret
    return jitter * FIRST_PAUSE_SECONDS * (1 << (number - 1))


def _is_passing(answer: Answer) -> bool:
    is_told_when = answer.status != 429 or answer.retry_after_seconds is not None
    return answer.status in PASSING_STATUSES and is_told_when


_FAILURES: Mapping[type[APIError], str] = {
    UnreachableError: "no connection was made",
    AnswerLostError: "the answer was lost",
    InvalidRequestError: "its URL or a header has a character that HTTP does not carry",
}


@dataclass(frozen=True, slots=True)
class _Request:
    """One request with its secrets still closed."""

    method: str
    url: str
    headers: Mapping[str, str | Secret]
    form: Mapping[str, str | Secret] | None
    content: bytes | Secret | None = field(repr=False)

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    def answer(self, response: requests.Response, body: bytes) -> Answer:
        return Answer(self.method, self.path, response.status_code, response.headers, body)

    def error(self, kind: type[E]) -> E:
        message = f"{self.method} {self.path} at Everifin: {_FAILURES[kind]}."
        return kind(message, method=self.method, path=self.path)


def _prepared(sender: requests.Session, request: _Request) -> requests.PreparedRequest:
    """What goes out, its secrets opened. Errors: InvalidRequestError if HTTP cannot carry it."""
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", **_revealed(request.headers)}
    if not all(_is_plain(value) for value in (request.method, *headers.values())):
        raise request.error(InvalidRequestError)
    try:
        return sender.prepare_request(
            requests.Request(request.method, request.url, headers=headers, data=_data(request))
        )
    except Exception as error:
        raise request.error(InvalidRequestError) from error


def _options(seconds: float) -> dict[str, Any]:
    """How to send it. Errors: ImproperlyConfigured, before anything is sent."""
    return {
        "timeout": Timeout(connect=min(conf.connect_timeout_seconds, seconds), total=seconds),
        "allow_redirects": False,
        "stream": True,
        "verify": conf.ca_bundle or True,
        "proxies": dict(conf.proxies),
    }


def _body(response: requests.Response, accepted: str, max_bytes: int) -> bytes:
    """The whole body. Errors: ValueError if it is beyond bounds; whatever the libraries raise."""
    encoding = response.headers.get("Content-Encoding", "").lower()
    # An encoding that was not requested would let the server choose the parser.
    if encoding not in {"", "identity", accepted}:
        raise ValueError("The answer has an encoding that was not asked for.")
    body = bytearray()
    for chunk in response.iter_content(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise ValueError("The answer is too long.")
    return bytes(body)


def _data(request: _Request) -> Any:
    if request.form:
        return _revealed(request.form)
    content = request.content
    return content.reveal().encode() if isinstance(content, Secret) else content


def _secure(url: str) -> str:
    if not is_secure(url):
        parts = urlsplit(url)
        raise ImproperlyConfigured(
            f"{parts.scheme}://{parts.hostname} is not https, so no token is sent there."
        )
    return url


def _with(url: str, params: Mapping[str, Any] | None) -> str:
    given = {name: value for name, value in (params or {}).items() if value is not None}
    if not given:
        return url
    query = urlencode(given, doseq=True, errors="replace")
    return f"{url}{'&' if '?' in url else '?'}{query}"


def _json(content: Any) -> bytes | Secret | None:
    if content is None or isinstance(content, Secret):
        return content
    return json.dumps(content, allow_nan=False).encode()


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def _revealed(values: Mapping[str, str | Secret]) -> dict[str, str]:
    return {
        name: value.reveal() if isinstance(value, Secret) else value
        for name, value in values.items()
    }

"""
The one way to send HTTP: a deadline always set, redirects never followed, the answer bounded,
errors translated.

What is not trusted: the environment (no proxies, .netrc or CA bundles from it), cookies (none are
kept), redirects (a 307 would send the refresh token and client secret again), the length and speed
of an answer, and its media type.

Sessions are pooled, one a process: threads share it, a forked child gets its own.
"""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import (
    Clamped,
    Context,
    DecimalException,
    Inexact,
    InvalidOperation,
    Overflow,
    Subnormal,
)
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.client import HTTPException, HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from random import uniform
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import requests
from django.core.exceptions import ImproperlyConfigured
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError
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
from everifin_django.secret import Secret

E = TypeVar("E", bound=APIError)

AGENT = f"everifin-django/{__version__}"
CHUNK_BYTES = 16_384
MAX_RETRY_AFTER_SECONDS = 24 * 3600

FIRST_PAUSE_SECONDS = 0.1
PASSING_STATUSES = frozenset({429, 500, 502, 503, 504})
"""What may be over at the next try."""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What came back. The body stays out of the repr, because it may hold tokens or a person's data.
    """

    method: str
    path: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """
        Return the decoded body.

        Errors: AnswerError for anything but strict JSON.
        """
        try:
            return strict_json(self.body)
        except ValueError:
            pass
        raise self.error(AnswerError, "with something other than JSON")

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
        What Retry-After asks for, as seconds from now; None without a usable header. Source: RFC
        9110, 10.2.3.
        """
        value = self.headers.get("Retry-After", "").strip()
        if value.isascii() and value.isdecimal() and len(value) < 10:
            seconds = float(value)
        else:
            try:
                at = parsedate_to_datetime(value)
            except (ValueError, OverflowError):
                return None
            seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


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
    is outside it.

    Errors: UnreachableError if nothing was sent; AnswerLostError if it was and no whole answer
    came, or one of more than *max_bytes*; InvalidRequestError for what HTTP cannot carry. None of
    them refers to the request, so no report of an error can show what was sent.
    """
    seconds = conf.deadline_seconds if deadline_seconds is None else deadline_seconds
    request = _Request(method.upper(), _with(_secure(url), params), headers, form, _json(content))
    outcome: Answer | type[APIError] = UnreachableError
    if seconds > 0:
        pool = (
            _new_session(1)
            if fresh_connection
            else nullcontext(_pooled_session(os.getpid(), conf.pool_size))
        )
        with pool as session:
            outcome = _exchange(session, request, seconds, max_bytes)
    if isinstance(outcome, Answer):
        return outcome
    path = urlsplit(url).path
    raise outcome(f"{method} {path} at Everifin: {_FAILURES[outcome]}.", method=method, path=path)


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
    seconds, tries = conf.deadline_seconds, conf.max_tries
    end = monotonic() + seconds
    number = 1
    while True:
        outcome = _tried(url, headers, params, max_bytes, end - monotonic())
        pause = _pause_after(outcome, number)
        if number == tries or pause is None or monotonic() + pause > end - seconds / 2:
            break
        sleep(pause)
        number += 1
    if isinstance(outcome, UnavailableError):
        raise outcome
    return outcome


def _tried(
    url: str,
    headers: Mapping[str, str | Secret],
    params: Mapping[str, Any] | None,
    max_bytes: int,
    seconds: float,
) -> Answer | UnavailableError:
    try:
        return send(
            "GET",
            url,
            headers=headers,
            params=params,
            max_bytes=max_bytes,
            deadline_seconds=seconds,
        )
    except UnavailableError as error:
        return error


def _pause_after(outcome: Answer | UnavailableError, number: int) -> float | None:
    """How long to wait before the next try; None if there is to be none."""
    jitter = uniform(0.5, 1)  # noqa: S311 - no secret
    backoff = jitter * FIRST_PAUSE_SECONDS * (1 << (number - 1))
    if isinstance(outcome, UnavailableError):
        return backoff
    asked = outcome.retry_after_seconds
    is_passing = outcome.status in PASSING_STATUSES and (outcome.status != 429 or asked is not None)
    return max(backoff, asked or 0) if is_passing else None


_FAILURES: Mapping[type[APIError], str] = {
    UnreachableError: "no connection came about",
    AnswerLostError: "the answer was lost",
    InvalidRequestError: "its address or a header has a character that HTTP does not carry",
}


@dataclass(frozen=True, slots=True)
class _Request:
    """One request with its secrets still closed."""

    method: str
    url: str
    headers: Mapping[str, str | Secret]
    form: Mapping[str, str | Secret] | None
    content: bytes | Secret | None = field(repr=False)


def _exchange(
    session: requests.Session, request: _Request, seconds: float, max_bytes: int
) -> Answer | type[APIError]:
    """
    The answer, or the class of the error to raise: raised here, it would carry the opened secrets
    along in its frames.
    """
    prepared = _prepared(session, request)
    if prepared is None:
        return InvalidRequestError
    try:
        with session.send(
            prepared,
            # requests hands urllib3's own Timeout through; its stubs do not know.
            timeout=Timeout(connect=min(conf.connect_timeout_seconds, seconds), total=seconds),  # type: ignore[arg-type]
            allow_redirects=False,
            stream=True,
            verify=conf.ca_bundle or True,
            proxies=dict(conf.proxies),
        ) as response:
            body = _read(response, max_bytes)
            if body is None:
                return AnswerLostError
            path = urlsplit(request.url).path
            return Answer(request.method, path, response.status_code, response.headers, body)
    except (requests.RequestException, HTTPError, OSError) as error:
        return UnreachableError if _nothing_was_sent(error) else AnswerLostError


def _prepared(session: requests.Session, request: _Request) -> requests.PreparedRequest | None:
    """What goes out, its secrets opened; None if HTTP cannot carry it."""
    headers = {"User-Agent": AGENT, **_revealed(request.headers)}
    if not all(_is_plain(text) for text in (request.method, *headers.values())):
        return None
    try:
        return session.prepare_request(
            requests.Request(request.method, request.url, headers=headers, data=_data(request))
        )
    except (requests.RequestException, HTTPError, ValueError):
        return None


def _data(request: _Request) -> Any:
    if request.form:
        return _revealed(request.form)
    content = request.content
    return content.reveal().encode() if isinstance(content, Secret) else content


def bearer(token: Secret) -> Secret:
    """Return the value of the Authorization header for *token*. Source: RFC 6750, section 2.1."""
    return Secret(f"Bearer {token.reveal()}")


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


def _read(response: requests.Response, max_bytes: int) -> bytes | None:
    body = bytearray()
    for chunk in response.iter_content(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def _nothing_was_sent(error: BaseException) -> bool:
    """
    Did *error* come from ``_Connection.connect``?

    Followed is what each library wraps; an exception's context may be of the caller's making.
    """
    wrapped: list[BaseException] = [error]
    for one in wrapped:
        if isinstance(one, NewConnectionError):
            return True
        inner = (getattr(one, "reason", None), *one.args)
        wrapped += [cause for cause in inner if isinstance(cause, BaseException)]
    return False


class _DeadlineReader(io.RawIOBase):
    """
    Reads a socket until a moment in time, and not a byte later.

    A socket's own timeout starts again with every byte, so an answer that drips would hold a worker
    for hours.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
        self._end = monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError("The deadline for the answer has passed.")
        self._sock.settimeout(left)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _DeadlineSocket:
    """What http.client asks of a socket to read an answer: a file."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._seconds = seconds

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._seconds))


class _Connection(HTTPConnection):
    """
    A connection that comes about in ``timeout`` or not at all, and an answer that does likewise.

    urllib3 sets ``timeout`` twice: to the time for a connection, later to what is left of the
    total.
    """

    timeout: float  # urllib3 resolves all other forms before

    def connect(self) -> None:
        try:
            super().connect()
        except (OSError, HTTPException, HTTPError, UnicodeError) as error:
            # Also a handshake or a proxy that failed, or a name that is none: the request itself
            # was not sent yet.
            raise NewConnectionError(self, "no connection came about") from error

    def _new_conn(self) -> socket.socket:
        """
        As urllib3's, which has ``timeout`` for each address of the host anew.
        """
        end = monotonic() + self.timeout
        host = self._dns_host.strip("[]")
        addresses = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        for place, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(end - monotonic(), 0.001) / (len(addresses) - place))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A handshake has what is left.
                sock.settimeout(max(end - monotonic(), 0.001))
            except OSError:
                sock.close()
            else:
                return sock
        raise OSError("None of the host's addresses takes a connection.")

    # http.client has the response class as an attribute, which a property may stand in for.
    @property
    def response_class(self) -> Any:  # type: ignore[override]
        seconds = self.timeout

        def response(sock: socket.socket, *args: Any, **kwargs: Any) -> HTTPResponse:
            bounded: Any = _DeadlineSocket(sock, seconds)
            return HTTPResponse(bounded, *args, **kwargs)

        return response


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection  # type: ignore[assignment]  # urllib3 types it as a protocol


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection  # type: ignore[assignment]  # as above


_POOLS = {"http": _Pool, "https": _SecurePool}


class _DeadlineAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """
        None: requests reads the whole body of a redirect, however long, also of one that it is told
        not to follow.
        """


def _new_session(pool_size: int) -> requests.Session:
    session = _Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    adapter = _DeadlineAdapter(pool_connections=4, pool_maxsize=pool_size)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


@lru_cache(maxsize=1)
def _pooled_session(process_id: int, size: int) -> requests.Session:
    """
    The session of this process. A forked child has another id: two processes that write to one
    socket would read each other's answers.
    """
    return _new_session(size)


_FRACTIONS = Context(
    # Beyond a float's range it is no amount, but int() or format() of it would run for hours.
    Emax=308,
    Emin=-308,
    prec=400,
    traps=[Clamped, Inexact, InvalidOperation, Overflow, Subnormal],
)


def strict_json(text: str | bytes) -> Any:
    """
    Return decoded JSON, its fractions as Decimal, because they may be money.

    Errors: ValueError, also for a key that stands twice, NaN, bytes that are not UTF-8, nesting
    and numbers without end.
    """
    decoded = text.decode() if isinstance(text, bytes) else text
    try:
        return json.loads(
            decoded,
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_FRACTIONS.create_decimal,
        )
    except (RecursionError, DecimalException):
        pass
    raise ValueError("The JSON is nested too deeply, or a number has no end.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise ValueError("A key stands twice.")
    return decoded


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON.")

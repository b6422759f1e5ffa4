"""
Sends requests to a WSGI application in the same process: no socket, no port, no waiting.

It replaces the transport adapter of requests, so it serves every caller that uses requests: this
package, mozilla-django-oidc, and the code of a test.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPMessage, RemoteDisconnected
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout
from urllib3 import HTTPHeaderDict, HTTPResponse
from urllib3.exceptions import ProtocolError
from urllib3.util import Timeout

from everifin_django.testing.sandbox.app import TIMEOUT, Sandbox
from everifin_django.testing.sandbox.faults import AnswerLost

_patching = threading.Lock()

WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class NetworkRefusedError(RuntimeError):
    """
    A request went to a host that no mounted sandbox serves. Mount one, or correct the URL.

    Not one of requests' errors, so that no code takes it for an outage and carries on.
    """


class WSGIAdapter(HTTPAdapter):
    """
    A transport adapter that calls a WSGI application instead of opening a connection.

    What comes back is built as for a real connection, so streaming, decoding and cookies work
    alike. `AnswerLost` becomes what a real connection would raise.
    """

    def __init__(self, app: WSGIApplication) -> None:
        super().__init__()
        self.app = app

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - the signature is that of requests
        timeout: Any = None,
        verify: Any = True,  # noqa: FBT002
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        environ = _environ(request)
        environ[TIMEOUT] = read_timeout_seconds(timeout)
        try:
            answer = _run(self.app, environ)
        except AnswerLost as lost:
            if lost.timed_out:
                raise ReadTimeout("Read timed out.", request=request) from lost
            gone = RemoteDisconnected("Remote end closed connection without response")
            raise RequestsConnectionError(
                ProtocolError("Connection aborted.", gone), request=request
            ) from lost
        return self.build_response(request, answer)


@contextmanager
def mount(*sandboxes: Sandbox) -> Iterator[None]:
    """
    Serve every request for the URLs of *sandboxes* in this process, and refuse all others.

    Holds for every `requests.Session`, old or new, in every thread, until the block ends.
    """
    adapters = [(sandbox, WSGIAdapter(sandbox)) for sandbox in sandboxes]

    def get_adapter(session: requests.Session, url: str | bytes) -> HTTPAdapter:
        text = url.decode() if isinstance(url, bytes) else url
        for sandbox, adapter in adapters:
            if any(_is_below(text, base) for base in (sandbox.idp_url, sandbox.api_url)):
                return adapter
        parts = urlsplit(text)
        raise NetworkRefusedError(
            f"No sandbox is mounted at {parts.scheme}://{parts.hostname}: "
            "a test must not reach for the network."
        )

    with _patching:
        before = requests.Session.get_adapter
        requests.Session.get_adapter = get_adapter  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        with _patching:
            requests.Session.get_adapter = before  # type: ignore[method-assign]


def read_timeout_seconds(timeout: Any) -> float | None:
    """Return how long a caller waits for an answer, from any form of timeout requests takes."""
    if isinstance(timeout, Timeout):
        clone = timeout.clone()
        clone.start_connect()
        seconds = clone.read_timeout
    else:
        seconds = timeout[1] if isinstance(timeout, tuple) else timeout
    return float(seconds) if isinstance(seconds, int | float) else None


def _is_below(url: str, base: str) -> bool:
    return url == base or url.startswith((f"{base}/", f"{base}?"))


def _run(app: WSGIApplication, environ: dict[str, Any]) -> HTTPResponse:
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        started.append((status, headers))
        return written.append

    written: list[bytes] = []
    chunks = app(environ, start_response)
    try:
        written.extend(chunks)
    except AnswerLost:
        # The connection broke off within the body; the caller finds out by the length.
        if not written:
            raise
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    status, headers = started[-1]
    if "Date" not in dict(headers):
        # A server adds it. Source: RFC 9110, section 6.6.1.
        headers = [*headers, ("Date", formatdate(usegmt=True))]
    return _urllib3_response(environ["REQUEST_METHOD"], status, headers, b"".join(written))


def _urllib3_response(
    method: str, status: str, headers: list[tuple[str, str]], body: bytes
) -> HTTPResponse:
    code, _, reason = status.partition(" ")
    return HTTPResponse(
        body=io.BytesIO(b"" if method == "HEAD" else body),
        headers=HTTPHeaderDict(headers),
        status=int(code),
        reason=reason or HTTPStatus(int(code)).phrase,
        version=11,
        version_string="HTTP/1.1",
        preload_content=False,
        decode_content=False,
        original_response=_Original(headers),  # type: ignore[arg-type]
        request_method=method,
    )


class _Original:
    """What requests and urllib3 ask of the http.client response below: its headers, for cookies."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.msg = HTTPMessage()
        for name, value in headers:
            self.msg[name] = value

    def close(self) -> None: ...

    def isclosed(self) -> bool:
        return True


def _environ(request: requests.PreparedRequest) -> dict[str, Any]:
    """Return *request* as PEP 3333 wants it."""
    parts = urlsplit(str(request.url))
    body = _body(request.body)
    headers = {_text(name): _text(value) for name, value in request.headers.items()}
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method or "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(parts.path or "/").decode("latin-1"),
        "QUERY_STRING": parts.query,
        "SERVER_NAME": parts.hostname or "",
        "SERVER_PORT": str(parts.port or {"https": 443}.get(parts.scheme, 80)),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": parts.netloc.rpartition("@")[2],
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        # Django's server removes headers with an underscore too: WSGI could not tell them from
        # those with a hyphen.
        if "_" not in name:
            key = name.upper().replace("-", "_")
            is_own = key in {"CONTENT_TYPE", "CONTENT_LENGTH"}
            environ[key if is_own else f"HTTP_{key}"] = value
    return environ


def _body(body: Any) -> bytes:
    if body is None:
        return b""
    if hasattr(body, "read"):
        body = body.read()
    if isinstance(body, str):
        return body.encode()
    return body if isinstance(body, bytes) else b"".join(body)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value

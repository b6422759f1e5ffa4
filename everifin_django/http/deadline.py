"""
Connections that are made within a deadline, and answers that are read within one.

Sessions are pooled, one for each process: threads share it, a forked child gets its own. They take
nothing from the environment (proxies, .netrc, CA bundles), keep no cookies and follow no redirect.
"""

from __future__ import annotations

import io
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from time import monotonic
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError

from everifin_django.conf import conf

MAX_LINE_BYTES = 65_536


def session(*, fresh: bool) -> AbstractContextManager[requests.Session]:
    """
    Return the session of this process, or one for a single request, whose connection is closed
    after it.
    """
    return _new_session(1) if fresh else nullcontext(_pooled_session(os.getpid(), conf.pool_size))


def nothing_was_sent(error: BaseException) -> bool:
    """
    Does *error* come from ``_Connection.connect``?

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
    Reads a socket up to a point in time, and not a byte later.

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


class _BoundedLines(io.BufferedReader):
    """Bounds the lines that urllib3 reads whole, however long they are: the sizes of chunks."""

    def readline(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            return super().readline(size)
        line = super().readline(MAX_LINE_BYTES)
        if len(line) == MAX_LINE_BYTES:
            raise OSError("The answer has a line without end.")
        return line


class _DeadlineSocket:
    """A socket as far as http.client needs one to read an answer: it gives a file."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._seconds = seconds

    def makefile(self, mode: str) -> io.BufferedReader:
        return _BoundedLines(_DeadlineReader(self._sock, self._seconds))


class _Connection(HTTPConnection):
    """
    A connection that is made within ``timeout`` or not at all, and an answer likewise.

    urllib3 sets ``timeout`` twice: to the time for connecting, later to what is left of the total.
    """

    timeout: float  # urllib3 has resolved all other forms

    def connect(self) -> None:
        try:
            super().connect()
        except Exception as error:
            # Whatever it is, a handshake, a proxy or an invalid name: the request itself was not
            # sent yet.
            raise NewConnectionError(self, "no connection was made") from error

    def _new_conn(self) -> socket.socket:
        """
        As urllib3's, which allows ``timeout`` for each IP address of the host anew.
        """
        end = monotonic() + self.timeout
        host = self._dns_host.strip("[]")
        found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        for left, (family, kind, protocol, _, ip_and_port) in zip(
            range(len(found), 0, -1), found, strict=True
        ):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(end - monotonic(), 0.001) / left)
                sock.connect(ip_and_port)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A handshake has what is left.
                sock.settimeout(max(end - monotonic(), 0.001))
            except OSError:
                sock.close()
            else:
                return sock
        raise OSError("None of the host's IP addresses takes a connection.")

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
        Return None: requests reads the whole body of a redirect, however long, even of one that it
        is told not to follow.
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

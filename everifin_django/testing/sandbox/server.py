"""
The sandbox as an HTTP server, on Django's own development server.

Not for production, as Django says of its server too. Request lines are logged without their query,
which may hold login codes.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from everifin_django.testing.sandbox.app import Sandbox

logger = logging.getLogger("everifin_django.sandbox")


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers in threads of its own. *url* has no slash at the end."""

    url: str
    sandbox: Sandbox


@contextmanager
def serve(
    sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0, *, url: str = ""
) -> Iterator[RunningServer]:
    """
    Serve *sandbox* over HTTP until the block ends; port 0 picks a free one.

    The port is taken first, then the sandbox learns its URL, which is part of every token it
    issues: *url*, or else the one made of host and port.

    Errors: OSError if the port is taken or the host is not one of this machine.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    is_ipv6 = family == socket.AF_INET6
    with _Server((host, port), _RequestHandler, ipv6=is_ipv6) as server:
        name = f"[{host}]" if is_ipv6 else host
        sandbox.idp_url = url.rstrip("/") or f"http://{name}:{server.server_port}"
        server.set_app(sandbox)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield RunningServer(sandbox.idp_url, sandbox)
        finally:
            server.shutdown()
            thread.join()


def is_loopback(host: str) -> bool:
    """Is *host* reached from this machine only? A name other than localhost counts as remote."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadedWSGIServer):
    """Closes every connection at the end: a stopped server answers on no open connection."""

    # If many connect at once and the queue is full, the kernel makes the rest wait for a second.
    request_queue_size = 128

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _RequestHandler(WSGIRequestHandler):
    # Head and body are written apart: the body must not wait for the caller to confirm the head.
    disable_nagle_algorithm = True
    _is_answered: bool

    def handle_one_request(self) -> None:
        """Answer once. An answer that was lost on purpose leaves a closed connection behind."""
        self._is_answered = False
        super().handle_one_request()
        if not self._is_answered:
            self.close_connection = True

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        # Called when an answer is out, and only then.
        self._is_answered = True
        logger.info("%s %s", self.requestline.partition("?")[0], code)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is Django's
        """Complaints about broken requests, which may quote them: left out."""

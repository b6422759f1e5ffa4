"""How these tests send a request, and look at what is raised."""

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from everifin_django.exceptions import APIError
from everifin_django.http.client import Answer, bearer, send
from everifin_django.secret import Secret
from tests.support.malicious_server import Server, report

CANARY = "canary-91ac7e"
SHORT_SECONDS = 1
"""A deadline that a busy machine leaves time enough to connect and to send in."""
SOON_SECONDS = 60
"""Long before any of the servers here would end by itself, and enough for a busy machine."""


def ask(server: Server, path: str = "/v1/things", **options: Any) -> Answer:
    options = {"headers": {"Authorization": bearer(Secret(CANARY))}, "max_bytes": 1000, **options}
    return send(options.pop("method", "GET"), server.url + path, **options)


def knock(url: str) -> Answer:
    return send("GET", url, headers={"Authorization": bearer(Secret(CANARY))}, max_bytes=1)


def fails(kind: type[APIError], call: Callable[[], object]) -> APIError:
    """Return the error of *call*, which came in time and shows no secret."""
    started = time.monotonic()
    with pytest.raises(APIError) as caught:
        call()
    assert time.monotonic() - started < SOON_SECONDS
    assert type(caught.value) is kind
    assert CANARY not in report(caught.value)
    return caught.value


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let every name have these addresses."""
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)

"""Ports for servers that are started by the demo and by tests."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
# Below those that systems give to outgoing connections: one of them could take the port before the
# server listens there.
CANDIDATES = range(20_000, 30_000)


def unused_port() -> int:
    """Return a port on which nobody listens."""
    while True:
        port = random.choice(CANDIDATES)  # noqa: S311 - no secret
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                return port

"""
Do work over a database connection of its own, beside the transaction that waits for it.

What is written there outlives a rollback of that transaction. The work runs in a thread, because
Django keeps one connection for each thread and alias. The thread is given the alias and a copy of
the caller's context variables, and nothing else; what it finds has to be compared with what the
caller has seen.

Why the second connection is not from the pool
    The caller holds one of the pool's connections while it waits. Threads that each hold one and
    wait for another stop each other. The second connection is opened and closed here, so nothing
    that is set on it is left behind either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from django.db import connections as db_connections

T = TypeVar("T")

MOST_CONNECTIONS = 8
"""How many such connections a process has open at once."""
CONNECT_SECONDS = 3
SQLITE_LOCK_SECONDS = 0.2
WAITING_SHARE = 0.5

slots = threading.BoundedSemaphore(MOST_CONNECTIONS)


def never(connection: Any) -> bool:
    return False


is_of_a_test: Callable[[Any], bool] = never
"""
Tells whether the outermost transaction of a connection is that of a test. The testing tools set it:
what a test has written is visible on its own connection only.
"""


class BusyError(Exception):
    """The work was not done within the deadline, or was not begun."""


def run(alias: str, work: Callable[[], T], deadline: float) -> T:
    """
    Return what *work* returns, which finds a new connection under *alias*.

    Waits no longer than until *deadline* (``time.monotonic()``). The thread then continues alone,
    and what it stores serves the next request.
    Errors: BusyError; what *work* raises.
    """
    seconds = deadline - time.monotonic()
    if not slots.acquire(timeout=max(0.0, seconds * WAITING_SHARE)):
        raise BusyError
    result: Future[T] = Future()
    caller: Any = db_connections[alias]
    connection_class, settings = type(caller), _without_pool(caller)
    tenant = getattr(caller, "tenant", None)

    def run_in_thread() -> None:
        try:
            second = connection_class(settings, alias)
            if tenant is not None:  # as django-tenants' connections have it
                second.set_tenant(tenant)
            db_connections[alias] = second
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread instead
            result.set_exception(error)
        finally:
            with suppress(Exception):  # a dead connection may fail to close
                db_connections.close_all()
            slots.release()

    thread = threading.Thread(
        target=copy_context().run, args=(run_in_thread,), name="everifin-refresh"
    )
    try:
        thread.start()
    except RuntimeError:  # the process has no room for another thread
        slots.release()
        raise BusyError from None
    try:
        return result.result(max(0.1, deadline - time.monotonic()))
    except TimeoutError:
        raise BusyError from None


def _without_pool(connection: Any) -> dict[str, Any]:
    """The settings of *connection* for one that is not pooled and does not wait for long."""
    options = dict(connection.settings_dict.get("OPTIONS") or {})
    options.pop("pool", None)
    if connection.vendor in ("postgresql", "mysql"):
        # For PostgreSQL 0 and less mean without end.
        given = int(options.get("connect_timeout") or 0)
        options["connect_timeout"] = CONNECT_SECONDS if given < 1 else min(given, CONNECT_SECONDS)
    if connection.vendor == "sqlite":
        options["timeout"] = SQLITE_LOCK_SECONDS
    return {**connection.settings_dict, "OPTIONS": options}

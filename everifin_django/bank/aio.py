"""
The async version of a call that blocks: it runs in a thread of a small pool, and comes back to the
request's own thread, where the database connection is, for the access token.

So calls of one request that are gathered run side by side. A task that is cancelled raises
CancelledError at once; the thread ends the call within the deadline, its connection stays usable,
and its answer is discarded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from asgiref.sync import sync_to_async

from everifin_django.bank.accounts import Transaction
from everifin_django.bank.changes import TransactionChanges
from everifin_django.bank.pages import Rows
from everifin_django.conf import conf
from everifin_django.exceptions import UnavailableError
from everifin_django.secret import Secret

CALLS_AT_ONCE = 8
"""How many async calls of one client run side by side. More wait for their turn."""

P = ParamSpec("P")
C = TypeVar("C", bound="AsyncCalls")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])


class TokenSource(Protocol):
    """Where the client gets its access token from."""

    def get(self) -> Secret:
        """Return an access token that is good to use."""

    def refresh(self, rejected: Secret) -> Secret:
        """Return another one, because Everifin refused *rejected*."""

    def reject(self, rejected: Secret) -> None:
        """Take note that Everifin refused the one that ``refresh`` gave, too. May raise."""


def in_request_thread(call: Callable[P, T]) -> Callable[P, T]:
    """
    Return the function by which other threads have *call* run in the thread of the request. Call
    this in the event loop.

    Errors: what *call* raises; UnavailableError if that thread is busy with something else for
    twice the deadline.

    Not by ``async_to_sync``, which has what it calls come back to the thread that called it.
    """
    loop = asyncio.get_running_loop()
    in_own_thread = sync_to_async(call)

    def wait_for_call(*args: P.args, **kwargs: P.kwargs) -> T:
        running = asyncio.run_coroutine_threadsafe(in_own_thread(*args, **kwargs), loop)
        try:
            # An event loop that was stopped would never answer.
            return running.result(2 * conf.deadline_seconds)
        except TimeoutError:
            running.cancel()
        raise UnavailableError("The thread of the request is too busy to give an access token.")

    return wait_for_call


class _RequestThreadSource:
    """A source of tokens for other threads: each call runs in the thread of the request."""

    def __init__(self, source: TokenSource) -> None:
        self.get = in_request_thread(source.get)
        self.refresh = in_request_thread(source.refresh)
        self.reject = in_request_thread(source.reject)


class AsyncCalls:
    """The threads of a client's async calls: the first makes them, and they end with the client."""

    _source: TokenSource

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="everifin-call")

    def _for_threads(self) -> Self:
        """Return the client to use in one of these threads. Call it in the event loop."""
        beside = copy(self)
        beside._source = _RequestThreadSource(self._source)
        return beside

    def _in_thread(self, call: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        return sync_to_async(call, thread_sensitive=False, executor=self._threads)


class AsyncTransactionChanges(AsyncIterator[Transaction]):
    """``TransactionChanges`` for ``async for``."""

    def __init__(self, client: AsyncCalls, rows: TransactionChanges) -> None:
        self._sync = rows
        self._rows = _page_by_page(client, rows)

    @property
    def cursor(self) -> datetime | None:
        return self._sync.cursor

    async def __anext__(self) -> Transaction:
        return await anext(self._rows)


def async_call(
    call: Callable[Concatenate[C, P], T],
) -> Callable[Concatenate[C, P], Coroutine[Any, Any, T]]:
    """Return the method that awaits *call*, with the same arguments."""

    async def method(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        in_thread = self._in_thread(getattr(self._for_threads(), call.__name__))(*args, **kwargs)
        # What a user typed is in no frame of an error, asgiref's included.
        del args, kwargs
        try:
            return await in_thread  # type: ignore[no-any-return]  # asgiref loses the type
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        del in_thread
        raise failure

    return _documented(method, call)


def async_rows(
    call: Callable[Concatenate[C, P], Iterator[T]],
) -> Callable[Concatenate[C, P], AsyncIterator[T]]:
    """Return the method whose ``async for`` gives the rows of *call*, with the same arguments."""

    async def method(self: C, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        rows = getattr(self._for_threads(), call.__name__)(*args, **kwargs)
        async for row in _page_by_page(self, rows):
            yield row

    return _documented(method, call)


def async_changes(
    call: Callable[Concatenate[C, P], TransactionChanges],
) -> Callable[Concatenate[C, P], AsyncTransactionChanges]:
    """Return the same for a download of changes, whose ``cursor`` can be read."""

    def method(self: C, /, *args: P.args, **kwargs: P.kwargs) -> AsyncTransactionChanges:
        rows = getattr(self._for_threads(), call.__name__)(*args, **kwargs)
        return AsyncTransactionChanges(self, rows)

    return _documented(method, call)


async def _page_by_page(client: AsyncCalls, rows: Any) -> AsyncIterator[Any]:
    """Iterate over *rows*, and leave the event loop once for each page."""
    next_rows = client._in_thread(_fetch)
    while found := await next_rows(rows):
        for row in found:
            yield row


def _fetch(rows: Rows[Any] | TransactionChanges) -> list[Any]:
    """Return the rows of the next page, none at the end."""
    return [row for first in islice(rows, 1) for row in (first, *islice(rows, rows.fetched))]


def _documented(method: M, call: Callable[..., Any]) -> M:
    method.__name__ = f"a{call.__name__}"
    method.__qualname__ = f"a{call.__name__}"
    method.__doc__ = f"The async version of ``{call.__name__}``.\n{call.__doc__ or ''}"
    return method

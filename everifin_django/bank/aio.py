"""
The async version of a call that blocks: it runs in the thread that Django keeps for the request.

A task that is cancelled raises CancelledError at once; the thread ends the call within the
deadline, its connection stays usable, and its answer is discarded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

from everifin_django.bank.accounts import Transaction
from everifin_django.bank.changes import TransactionChanges

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])


class AsyncTransactionChanges(AsyncIterator[Transaction]):
    """``TransactionChanges`` for ``async for``."""

    def __init__(self, rows: TransactionChanges) -> None:
        self._sync = rows
        self._rows = in_thread(rows)

    @property
    def cursor(self) -> datetime | None:
        return self._sync.cursor

    async def __anext__(self) -> Transaction:
        return await anext(self._rows)


def async_call(
    call: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return the method that awaits *call*, with the same arguments."""

    async def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        in_thread = sync_to_async(getattr(self, call.__name__))(*args, **kwargs)
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
    call: Callable[Concatenate[S, P], Iterator[T]],
) -> Callable[Concatenate[S, P], AsyncIterator[T]]:
    """Return the method whose ``async for`` gives the rows of *call*, with the same arguments."""

    async def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        async for row in in_thread(getattr(self, call.__name__)(*args, **kwargs)):
            yield row

    return _documented(method, call)


def async_changes(
    call: Callable[Concatenate[S, P], TransactionChanges],
) -> Callable[Concatenate[S, P], AsyncTransactionChanges]:
    """Return the same for a download of changes, whose ``cursor`` can be read."""

    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> AsyncTransactionChanges:
        return AsyncTransactionChanges(getattr(self, call.__name__)(*args, **kwargs))

    return _documented(method, call)


async def in_thread(rows: Iterator[T]) -> AsyncIterator[T]:
    """Iterate over the rows of a blocking iterator."""
    step = sync_to_async(lambda: list(islice(rows, 1)))
    while found := await step():
        yield found[0]


def _documented(method: M, call: Callable[..., Any]) -> M:
    method.__name__ = f"a{call.__name__}"
    method.__qualname__ = f"a{call.__name__}"
    method.__doc__ = f"The async version of ``{call.__name__}``.\n{call.__doc__ or ''}"
    return method

"""
Rows in an answer that is sent while they come, where an error has no other way out.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TypeVar, overload

from everifin_django.exceptions import EverifinError

__all__ = ["until_error"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
L = TypeVar("L")


@overload
def until_error(
    rows: AsyncIterable[T], last: Callable[[EverifinError], L]
) -> AsyncIterator[T | L]: ...
@overload
def until_error(rows: Iterable[T], last: Callable[[EverifinError], L]) -> Iterator[T | L]: ...
def until_error(
    rows: Iterable[T] | AsyncIterable[T], last: Callable[[EverifinError], L]
) -> Iterator[T | L] | AsyncIterator[T | L]:
    """
    Yield *rows*; where an EverifinError ends them, then what *last* makes of it.

    For a StreamingHttpResponse: its status is sent before the first row is asked for, so an error
    would only cut the connection. It is logged by its class. An iterator for an iterable, an
    asynchronous one for an asynchronous one; other errors are not caught.
    """
    return _async(rows, last) if isinstance(rows, AsyncIterable) else _sync(rows, last)


def _sync(rows: Iterable[T], last: Callable[[EverifinError], L]) -> Iterator[T | L]:
    try:
        yield from rows
    except EverifinError as error:
        _log(error)
        yield last(error)


async def _async(
    rows: AsyncIterable[T], last: Callable[[EverifinError], L]
) -> AsyncIterator[T | L]:
    try:
        async for row in rows:
            yield row
    except EverifinError as error:
        _log(error)
        yield last(error)


def _log(error: EverifinError) -> None:
    logger.error("Rows that were being sent ended early: %s.", type(error).__name__)

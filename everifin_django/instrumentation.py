"""
Let an observer see each operation at Everifin begin and end. There is none unless a site sets one,
as ``contrib.opentelemetry`` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)

Facts: TypeAlias = dict[str, Any]
Observer: TypeAlias = Callable[[str, Facts], Callable[[], None]]
"""Called with name and facts when an operation begins; what it returns is called at the end."""

_observers: list[Observer] = []


def add_observer(observer: Observer) -> None:
    if observer not in _observers:
        _observers.append(observer)


def remove_observer(observer: Observer) -> None:
    if observer in _observers:
        _observers.remove(observer)


@contextmanager
def observed(name: str, **facts: Any) -> Iterator[Facts]:
    """
    Show the block to the observers, with *facts*, to which the block may add; ``error`` is the name
    of the class it raised. No fact is a secret.

    An observer that fails is logged, and changes nothing: the block may hold tokens that are not
    stored yet.
    """
    ends = [_quietly(observer, name, facts) for observer in tuple(_observers)]
    try:
        yield facts
    except BaseException as error:
        facts["error"] = type(error).__name__
        raise
    finally:
        for end in filter(None, reversed(ends)):
            _quietly(end)


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's exporter raises
        logger.error("An observer of calls to Everifin failed: %s.", type(error).__name__)  # noqa: TRY400 - its frames may hold what was sent

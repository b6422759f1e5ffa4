"""
JSON as it should be written: what is ambiguous, endless or nested without reason is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Clamped, Context, Decimal, Inexact, InvalidOperation, Overflow, Subnormal
from typing import Any

from everifin_django.secret import hides_frames

MAX_DIGITS = 400
"""Python itself refuses to read more than some thousands."""

MAX_DEPTH = 100
"""Far below what makes a recursive function fail, and far above what anybody means."""

_CONTAINERS = frozenset({dict, list})
"""What decoding makes, and no subclass of them."""

_FRACTIONS = Context(
    # Beyond a float's range it is no amount, but int() or format() of it would run for hours.
    Emax=308,
    Emin=-308,
    prec=400,
    traps=[Clamped, Inexact, InvalidOperation, Overflow, Subnormal],
)


@hides_frames
def strict_json(text: str | bytes, *, numbers_as_text: bool = False) -> Any:
    """
    Return decoded JSON, its fractions as Decimal, because they may be money. With *numbers_as_text*
    a number without end is its text: whoever reads that field decides what it means.

    Errors: ValueError for all else, also for a repeated key, NaN, bytes that are not UTF-8, numbers
    without end, and more than MAX_DEPTH levels.
    """
    try:
        decoded = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_fraction_or_text if numbers_as_text else _FRACTIONS.create_decimal,
            parse_int=_whole_or_text if numbers_as_text else None,
        )
    except Exception as error:
        # One of our own: a JSONDecodeError carries the whole text.
        raise ValueError("This is not JSON, or not in its strict form.") from error
    if _depth_exceeds(MAX_DEPTH, decoded):
        raise ValueError("The JSON is nested too deeply.")
    return decoded


def _fraction_or_text(text: str) -> Decimal | str:
    try:
        return _FRACTIONS.create_decimal(text)
    except ArithmeticError:
        return text


def _whole_or_text(text: str) -> int | str:
    return int(text) if len(text) <= MAX_DIGITS else text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise ValueError("A key is repeated.")
    return decoded


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON.")


def _depth_exceeds(depth: int, decoded: Any) -> bool:
    """Level by level, because a function that calls itself is what the bound protects."""
    level: list[Any] = [decoded] if decoded.__class__ in _CONTAINERS else []
    for _ in range(depth + 1):
        if not level:
            return False
        level = [inner for one in level for inner in _containers_in(one)]
    return True


def _containers_in(one: Any) -> Iterable[Any]:
    values = one.values() if one.__class__ is dict else one
    # Most hold none. To see that in C takes a quarter of the time of a loop.
    if _CONTAINERS.isdisjoint(map(type, values)):
        return ()
    return [value for value in values if value.__class__ in _CONTAINERS]

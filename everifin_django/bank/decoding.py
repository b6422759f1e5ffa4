"""
How an object of Everifin's becomes a frozen dataclass: each field by its type, under the name that
Everifin has for it.

An optional field that cannot be read is None: one odd value must not take all rows with it. It is
logged once in a process, by its path and never with its value, and stays in ``raw``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import MAXYEAR, MINYEAR, UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar, get_type_hints

logger = logging.getLogger(__name__)

Raw = Mapping[str, Any]
Read = Callable[[Any, str], Any]
"""What becomes of a value; the name is for the error."""

T = TypeVar("T")

MAX_EXPONENT = 30
"""More digits no amount has, and arithmetic with millions of them would take a worker hours."""

MAX_ID_LENGTH = 255
# Written as unions they would be made anew for each value.
_OF_AN_AMOUNT = (Decimal, int, str)
_OF_AN_ID = (str, int)

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
"""Python would also read spaces, underscores and other alphabets' digits."""
MAX_COUNT = 10**9

reported: set[str] = set()
"""The paths of the fields that were logged as unreadable."""


class RowError(ValueError):
    """An object lacks what it cannot be used without. The message names the field, no value."""


class ReprById:
    """Shows its id alone: the rest is a person's data."""

    __slots__ = ()
    id: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


def reader(kind: type[T], names: Mapping[str, str], **own: Read) -> Callable[[Any], T]:
    """
    Return a function that makes a *kind* of an object of Everifin's.

    Shape: *kind* is a frozen dataclass with slots, of which ``raw`` has the whole object. *names*
    has Everifin's name of each other field but ``id``; *own* says how a field is read whose type
    does not tell.
    Errors: the function raises RowError for what is no object, and for one without an id or without
    an amount where that is needed.
    """
    hints = _hints_of(kind)
    # A slot's own setter: a frozen dataclass sets each field past its own guard, which would take
    # most of the time of reading a row.
    setters = {field.name: vars(kind)[field.name].__set__ for field in fields(kind)}  # type: ignore[arg-type]
    set_raw = setters.pop("raw")
    reads = {name: own.get(name) or _READS[hints[name]] for name in setters}
    # Most of a page is strings, which need no more than a look.
    texts = [(setters[n], names[n]) for n, decode in reads.items() if decode is text]
    others = [
        (setters[name], names.get(name, name), decode, hints[name] in _NEEDED)
        for name, decode in reads.items()
        if decode is not text
    ]
    title = kind.__name__

    def read(raw: Any) -> T:
        if not isinstance(raw, dict):
            raise RowError(f"it is no {title} object")
        get = raw.get
        made = object.__new__(kind)
        for set_field, name, decode, is_needed in others:
            try:
                value = decode(get(name), name)
            except Exception as error:
                if is_needed:
                    raise RowError(f"its {name} is missing or cannot be read") from error
                unreadable(f"{title}.{name}")
                value = None
            set_field(made, value)
        for set_field, name in texts:
            value = get(name)
            if value is not None and value.__class__ is not str:
                value = _text_or_none(value, f"{title}.{name}")
            set_field(made, value)
        set_raw(made, raw)
        return made

    return read


# Evaluating the annotations takes longer than reading many a page.
_hints_of: Callable[[Any], Mapping[str, Any]] = cache(get_type_hints)


def _text_or_none(value: Any, path: str) -> str | None:
    try:
        return text(value, path)
    except Exception:  # noqa: BLE001 - such as a number with more digits than Python writes
        unreadable(path)
        return None


def unreadable(path: str) -> None:
    """Log once in a process that the field at *path* cannot be read."""
    if path not in reported:
        reported.add(path)
        logger.warning("Everifin's %s cannot be read; it is left out, and kept in raw.", path)


def rows_of(found: Any, read: Callable[[Any], T], path: str) -> tuple[T, ...]:
    """Return the objects of the list *found* that can be read; the others are left out."""
    if found is None:
        return ()
    if not isinstance(found, list):
        unreadable(path)
        return ()
    rows = []
    for one in found:
        try:
            rows.append(read(one))
        except RowError:
            unreadable(f"{path}[]")
    return tuple(rows)


def identifier(value: Any, name: str) -> str:
    """Return an id as a string. Errors: TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, _OF_AN_ID):
        raise TypeError(f"{name} is not a string or a whole number")
    found = str(value)
    if not 0 < len(found) <= MAX_ID_LENGTH:
        raise ValueError(f"{name} is empty or too long")
    return found


def text(value: Any, name: str) -> str | None:
    """Return a string or a number as a string. Errors: TypeError, ValueError."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"{name} is not a string")
    return str(value)


def amount(value: Any, name: str) -> Decimal:
    """Return an amount of money. Errors: TypeError, ArithmeticError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, _OF_AN_AMOUNT):
        raise TypeError(f"{name} is not a number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError(f"{name} is no number")
    number = value if isinstance(value, Decimal) else Decimal(value)
    if number.is_finite() and -MAX_EXPONENT <= number.adjusted() <= MAX_EXPONENT:
        return number
    raise ValueError(f"{name} is no amount of money")


def amount_or_none(value: Any, name: str) -> Decimal | None:
    return None if value is None else amount(value, name)


def whole_number(value: Any) -> int | None:
    """Return a whole number, also one that came as digits; None for all else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    return None


def moment(value: Any, name: str) -> datetime | None:
    """Return an aware datetime; without an offset it is UTC. Errors: TypeError, ValueError."""
    if value is None:
        return None
    found = datetime.fromisoformat(value)
    if not MINYEAR < found.year < MAXYEAR:
        # Arithmetic with those, or in another time zone, may leave the calendar.
        raise ValueError(f"{name} is out of range")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def day(value: Any, name: str) -> date | None:
    """Return the date as it was written, whatever its time and offset. Errors: as of ``moment``."""
    found = moment(value, name)
    return None if found is None else found.date()


_READS: Mapping[Any, Read] = {
    str: identifier,
    str | None: text,
    Decimal: amount,
    Decimal | None: amount_or_none,
    datetime | None: moment,
    date | None: day,
    int | None: lambda value, _: whole_number(value),
}
_NEEDED = (str, Decimal)


def replace_unstorable(value: Any) -> Any:
    """
    Return decoded JSON with a question mark for each NUL and each half of a character.

    A string that was cut within an emoji ends in half of it. No database takes that, and PostgreSQL
    takes no NUL.
    """
    if isinstance(value, dict):
        return {replace_unstorable(key): replace_unstorable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [replace_unstorable(inner) for inner in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode().replace("\0", "?")
    return value

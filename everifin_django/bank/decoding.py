"""
How an object of Everifin's becomes a frozen dataclass: each field by its type, under the name that
Everifin has for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, make_dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

Raw = Mapping[str, Any]
Read = Callable[[Any, str], Any]
"""What becomes of a value; the name is for the error."""

T = TypeVar("T")

MAX_EXPONENT = 30
"""More digits no amount has, and arithmetic with millions of them would take a worker hours."""


class ReprById:
    """Shows its id alone: the rest is a person's data."""

    __slots__ = ()
    id: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


def reader(kind: type[T], names: Mapping[str, str], **own: Read) -> Callable[[Raw], T]:
    """
    Return a function that makes a *kind* of an object of Everifin's.

    Shape: *kind* is a frozen dataclass with slots, of which ``raw`` has the whole object. *names*
    has Everifin's name of each other field but ``id``; *own* says how a field is read whose type
    does not tell.
    Errors: the function raises ValueError, TypeError or AttributeError for another shape.
    """
    twin, texts, others = _opened(kind)  # type: ignore[arg-type]  # classes can be hashed
    text_names = [names[field] for field in texts]
    reads = [
        (names.get(field, field), own.get(field) or _READS[of_type])
        for field, of_type in others.items()
    ]

    def read(raw: Raw) -> T:
        get = raw.get
        made: Any = twin(
            *[
                # Most of a page is texts and needs no more than this look.
                value
                if (value := get(name)) is None or value.__class__ is str
                else text(value, name)
                for name in text_names
            ],
            *[read_one(get(name), name) for name, read_one in reads],
            raw,
        )
        made.__class__ = kind
        return made  # type: ignore[no-any-return]

    return read


@lru_cache
def _opened(kind: type) -> tuple[type, Sequence[str], Mapping[str, Any]]:
    """
    The twin of *kind* that is not frozen, and how it is filled: with fields that are texts, with
    the others, whose types are told, and with ``raw``.

    A frozen dataclass sets each field past its own guard, which would take most of the time of
    reading a row. The twin has the same slots and sets them like any class; then it becomes one of
    *kind*.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name != "raw"]
    texts = [name for name in names if hints[name] == str | None]
    others = {name: hints[name] for name in names if name not in texts}
    order = [*texts, *others, "raw"]
    twin = make_dataclass(kind.__name__, order, bases=kind.__bases__, slots=True)
    return twin, texts, others


def identifier(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is not text or a whole number")
    return str(value)


def text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise TypeError(f"{name} is not text")
    return str(value)


def amount(value: Any, name: str) -> Decimal:
    number = value if isinstance(value, Decimal) else _number(value, name)
    if number.is_finite() and -MAX_EXPONENT <= number.adjusted() <= MAX_EXPONENT:
        return number
    raise ValueError(f"{name} is no amount of money")


def _number(value: Any, name: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"{name} is not a number")
    try:
        return Decimal(value)
    except InvalidOperation:
        return Decimal("NaN")


def amount_or_none(value: Any, name: str) -> Decimal | None:
    return None if value is None else amount(value, name)


def moment(value: Any, name: str) -> datetime | None:
    if value is None:
        return None
    found = datetime.fromisoformat(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


_READS: Mapping[Any, Read] = {
    str: identifier,
    Decimal: amount,
    Decimal | None: amount_or_none,
    datetime | None: moment,
}


def replace_surrogates(value: Any) -> Any:
    """
    Return decoded JSON with a question mark for each half of a character.

    A text that was cut within an emoji ends in half of it, which no database takes.
    """
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [replace_surrogates(inner) for inner in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value

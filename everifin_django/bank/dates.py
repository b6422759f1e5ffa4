"""Dates and datetimes on their way to Everifin."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

from everifin_django.exceptions import InvalidRequestError

DAY_END = time(23, 59, 59, 999_000)


def parse(name: str, value: date | str | None, at: time = time()) -> datetime | None:
    """
    Return the datetime in UTC that *value* of the filter *name* means; a date counts from *at*.

    Errors: InvalidRequestError for a string that is no date in ISO 8601, or beyond the calendar;
    ValueError for a datetime without a time zone.
    """
    found = _parsed(name, value) if isinstance(value, str) else value
    if found is None:
        return None
    try:
        return in_utc(found, at)
    except OverflowError:
        pass
    raise _wrong(name)


def in_utc(value: date, at: time = time()) -> datetime:
    """Return *value* in UTC; a date is that day *at* a time. Errors: ValueError, OverflowError."""
    found = value if isinstance(value, datetime) else datetime.combine(value, at, UTC)
    if found.tzinfo is None:
        raise ValueError("A datetime for Everifin needs a time zone.")
    return found.astimezone(UTC)


def timestamp(value: datetime) -> str:
    """Return a datetime in UTC as Everifin writes it: ISO 8601 with milliseconds (documented)."""
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parsed(name: str, text: str) -> date:
    for parsed in (date.fromisoformat, datetime.fromisoformat):
        try:
            return parsed(text)
        except ValueError:
            pass
    raise _wrong(name)


def _wrong(name: str) -> InvalidRequestError:
    error = InvalidRequestError(f"{name} is not a date or datetime in ISO 8601.")
    error.field, error.rule = name, "date"
    return error

"""Dates and datetimes on their way to Everifin."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

from django.utils import timezone

from everifin_django.exceptions import InvalidRequestError

DAY_END = time(23, 59, 59, 999_000)


def parse(name: str, value: date | str | None, at: time = time()) -> datetime | None:
    """
    Return the datetime in UTC that *value* of the filter *name* means; a date counts from *at*.

    Errors: InvalidRequestError for a string that is no date in ISO 8601, or beyond the calendar;
    TypeError for what is neither.
    """
    found = _parsed(name, value) if isinstance(value, str) else value
    if found is None:
        return None
    if not isinstance(found, date):
        raise TypeError(f"{name} takes a date, a datetime or a string.")
    try:
        return in_utc(found, at)
    except OverflowError:
        pass
    raise _wrong(name)


def in_utc(value: date, at: time = time()) -> datetime:
    """
    Return *value* in UTC; a date is that day *at* a time, and a datetime without a time zone, as
    Django makes them with USE_TZ off, is of the current one. Errors: OverflowError.
    """
    found = value if isinstance(value, datetime) else datetime.combine(value, at, UTC)
    return (timezone.make_aware(found) if timezone.is_naive(found) else found).astimezone(UTC)


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

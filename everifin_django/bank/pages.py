"""
Lists that come page by page, and how their end is told.

The shape of Everifin's pagination is inferred, so what is not said counts as unknown, never as "no
more". A list ends where its end was told: by a next page that is named as none, by the number of
the last page, or by a next page that was asked for and came empty or the same. A short page tells
nothing, since a server may cap its pages; nor does an empty one that names a next page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from everifin_django.bank.decoding import RowError, whole_number
from everifin_django.conf import conf
from everifin_django.exceptions import AnswerError
from everifin_django.secret import hides_frames

MAX_PAGES = 100_000
MAX_EMPTY_PAGES = 20
"""How many empty pages in a row may each name a next one."""


class Row(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """
    One page of a list.

    *has_next* is None where the page does not tell; *last* and *total* are the numbers of the last
    page and of all rows, None where they are not told.
    """

    number: int
    rows: list[R]
    has_next: bool | None
    last: int | None
    total: int | None

    @property
    def key(self) -> int:
        """What tells this page from another: which rows it has."""
        return hash(tuple(row.id for row in self.rows))

    @property
    def is_end(self) -> bool:
        return self.has_next is False or (self.has_next is None and not self.rows)

    @property
    def contradicts_itself(self) -> bool:
        """Does it name no next page, and a last one that is further on?"""
        return self.has_next is False and self.last is not None and self.last > self.number


class Rows(Iterator[R]):
    """
    The rows of a list, in their order; a page is asked for when its first row is.

    ``page(20)`` opens it at a page, by one request, and Django's Paginator works with it: its pages
    are Everifin's where both have the same size.

    ``is_complete`` tells, once the last row has come, whether these are all: it stays False after
    an error, and when the pages disagreed on how many rows there are.
    Errors: AnswerError for pages in a circle, and for too many.
    """

    def __init__(self, fetch: Callable[[int], Page[R]], page_size: int | None = None) -> None:
        self._fetch = fetch
        self._page_size = page_size
        self._rows = self._read()
        self._count: int | None = None
        self.fetched = 0
        """How many rows can be had without a request."""
        self.is_complete = False

    def __next__(self) -> R:
        return next(self._rows)

    def __getitem__(self, where: Any) -> list[R]:
        """
        Return the rows of a slice. One request where it is a page of Everifin's; else all pages up
        to its end. Errors: TypeError for an index, ValueError for a negative one.
        """
        if not isinstance(where, slice):
            raise TypeError("Rows are read in order: use next(rows), a slice, or list(rows)[0].")
        start, stop = where.start or 0, where.stop
        size = self._page_size
        if size and stop is not None and start % size == 0 and 0 < stop - start <= size:
            page = self.page(start // size + 1)
            # A short page that is not the last has another size than was asked for.
            if len(page.rows) == size or page.is_end:
                return page.rows[: stop - start : where.step]
        return list(islice(Rows(self._fetch), start, stop, where.step))

    def page(self, number: int) -> Page[R]:
        """Return one page, the first of which is number 1. One request. Errors: ValueError."""
        if number < 1:
            raise ValueError("The first page is number 1.")
        return self._fetch(number)

    def count(self) -> int:
        """
        Return how many rows there are: what the first page tells, by one request, or else what they
        are counted to be, by all pages.
        """
        if self._count is None:
            total = self.page(1).total
            self._count = sum(1 for _ in Rows(self._fetch)) if total is None else total
        return self._count

    def _read(self) -> Iterator[R]:
        totals: set[int] = set()
        count = 0
        for page in self._pages():
            self.fetched = len(page.rows)
            for row in page.rows:
                self.fetched -= 1
                yield row
            count += len(page.rows)
            if page.total is not None:
                totals.add(page.total)
        is_all = count >= max(totals, default=0) and not page.contradicts_itself
        self.is_complete = len(totals) <= 1 and is_all

    def _pages(self) -> Iterator[Page[R]]:
        seen: set[int] = set()
        empty = 0
        before: Page[R] | None = None
        for number in range(1, MAX_PAGES + 1):
            page = self._fetch(number)
            if page.rows and page.key in seen:
                # Nobody named this page: who ignores the number of a page, or clamps it, gives the
                # one before once more.
                if before is not None and before.has_next is None and before.key == page.key:
                    return
                raise _endless("came in a circle")
            seen.add(page.key)
            yield page
            if page.is_end:
                return
            empty = 0 if page.rows else empty + 1
            if empty == MAX_EMPTY_PAGES:
                raise _endless("were empty, and each named a next one")
            before = page
        raise _endless("had no end")


def _endless(what: str) -> AnswerError:
    return AnswerError(f"The pages of a list at Everifin {what}.", method="GET")


@hides_frames
def read_page(
    decode: Callable[[Any], R], envelope: Mapping[str, Any], path: str, number: int
) -> Page[R]:
    """
    Return page *number* of the list at *path*.

    Errors: AnswerError, which names the row that has no id, or no amount where it needs one.
    """
    raw_rows, meta = envelope.get("data"), envelope.get("meta")
    if not isinstance(raw_rows, list):
        raise not_understood(path)
    rows = [_read_row(decode, raw, path, number) for number, raw in enumerate(raw_rows, start=1)]
    pagination = meta.get("pagination") if isinstance(meta, dict) else None
    told = pagination if isinstance(pagination, dict) else {}
    names = conf.api_fields["pagination"]
    last, total = (whole_number(told.get(names[name])) for name in ("last", "total"))
    following = told.get(names["next_page_url"], _UNSAID)
    is_beyond = not rows and last is not None and number > last
    has_next = False if is_beyond else _has_next(following, last, number)
    return Page(number, rows, has_next, last, total)


_UNSAID = object()


def _has_next(following: Any, last: int | None, number: int) -> bool | None:
    """A next page that is named is asked for, also where the number of the last one denies it."""
    if following is not _UNSAID:
        return following is not None and following is not False and following != ""
    return None if last is None else number < last


def _read_row(decode: Callable[[Any], R], raw: Any, path: str, number: int) -> R:
    try:
        return decode(raw)
    except RowError as error:
        raise not_understood(path, f"Row {number}{_named(raw)}: {error}.") from error


def _named(raw: Any) -> str:
    found = raw.get("id") if isinstance(raw, dict) else None
    is_plain = isinstance(found, str) and len(found) <= 64 and found.isascii() and found.isalnum()
    return f" ({found})" if is_plain or isinstance(whole_number(found), int) else ""


def not_understood(path: str, why: str = "") -> AnswerError:
    """Return the error for an answer to a GET that has not the shape it should have."""
    message = f"GET {path} answered in a shape that is not Everifin's. {why}".rstrip()
    return AnswerError(message, method="GET", path=path)

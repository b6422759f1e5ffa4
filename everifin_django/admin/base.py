"""What the admin's pages share: rows from the primary, and lists of a million rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import EmptyResultSet
from django.core.paginator import Paginator
from django.db import connections as db_connections
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from everifin_django.models import PendingRevocation

LISTED = 1000
"""A list ends after so many rows of a kind, and nothing is counted beyond them."""

OUTBOX_WAITS = timedelta(hours=1)
"""What has been due for longer says that nobody works off the outbox."""


class PrimaryAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # Django's own class takes no parameter at run time
    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # What is chosen here is ended: a replica that lags behind would show what was there before.
        return super().get_queryset(request).using(router.db_for_write(self.model))

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        # Django allows each column of the model, so that a ciphertext or a session could be
        # guessed letter by letter.
        names = {getattr(one, "parameter_name", one) for one in self.list_filter}
        is_filter = lookup.partition("__")[0] in names
        return is_filter and super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]


class ReadOnlyAdmin(PrimaryAdmin):
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Sections:
    """
    Rows for a paginator: those of the first query, then those of the next, LISTED of each at most.

    One statement counts them all; a page costs one query for each section that it shows. A single
    ORDER BY over all of them would sort the whole table.
    """

    def __init__(self, queries: Sequence[QuerySet[Any]]) -> None:
        self.queries = queries

    @cached_property
    def counts(self) -> list[int]:
        return bounded_counts(self.queries)

    def count(self) -> int:
        return sum(self.counts)

    def __getitem__(self, part: slice) -> list[Any]:
        found: list[Any] = []
        start, stop = part.start, part.stop
        for query, count in zip(self.queries, self.counts, strict=True):
            if max(start, 0) < min(stop, count):
                found += query[max(start, 0) : min(stop, count)]
            start, stop = start - count, stop - count
        return found


def bounded_counts(queries: Sequence[QuerySet[Any]]) -> list[int]:
    """Return how many rows each of *queries* has, LISTED at most. One statement for all."""
    parts: list[str] = []
    params: list[Any] = []
    for number, query in enumerate(queries):
        rows = query.order_by().values("pk")[:LISTED].query
        try:
            sql, more = rows.get_compiler(using=query.db).as_sql()
        except EmptyResultSet:
            parts.append("0")
            continue
        parts.append(f"(SELECT COUNT(*) FROM ({sql}) counted_{number})")  # noqa: S608 - the ORM wrote it
        params += more
    with db_connections[queries[0].db].cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(parts)}", params)
        return [int(count) for count in cursor.fetchone()]


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # as above
    """Pages of a query, the first LISTED rows of it at most."""

    def __init__(self, rows: QuerySet[Any] | Sections, *args: Any, **kwargs: Any) -> None:
        sections = rows if isinstance(rows, Sections) else Sections([rows])
        super().__init__(sections, *args, **kwargs)  # type: ignore[arg-type]


class BoundedList(ChangeList):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.multi_page:
            # Django takes a query that fits on one page as it is, past the paginator.
            self.result_list = self.paginator.page(1).object_list


def is_overdue(oldest: PendingRevocation | None) -> bool:
    """Does the *oldest* entry of the outbox say that no scheduler works it off? No query."""
    if oldest is None:
        return False
    due_at = max(oldest.created_at, oldest.retry_after or oldest.created_at)
    return due_at < timezone.now() - OUTBOX_WAITS

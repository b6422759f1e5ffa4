"""
What ``manage.py everifin_status`` tells: how the connections are, and what waits.

No query reads more than some ten thousand rows of a large table. Beyond that, what is counted is
estimated from a part of the rows, and said to be: connections have random ids, so the first of them
are a fair sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections as db_connections
from django.db.models import AutoField, Case, Count, F, Max, Min, QuerySet, Value, When
from django.db.models.functions import StrIndex, Substr
from django.utils import timezone

from everifin_django.connections import bulk_disconnect, last_success
from everifin_django.connections.key_rotation import COLUMNS
from everifin_django.encryption import FORMAT
from everifin_django.models import (
    BankToken,
    Incident,
    PendingRevocation,
    has_status,
    health_at,
    primary,
)

SAMPLE = 20_000
"""A table of more rows than these is estimated."""
KEY_SAMPLE = 2000
"""Tokens are large, and stored beside their rows."""


@dataclass(frozen=True, slots=True)
class Status:
    """
    What is true of the connections at *at*.

    Shape: *connections* counts by health; *reasons* by health and the reason of what is not active;
    *keys* tokens by key id. Those in *estimated* are no exact counts. Times are None where there is
    none, or where it is not known.
    """

    at: datetime
    connections: Mapping[str, int]
    reasons: Mapping[str, Mapping[str, int]]
    nearest_expiry: datetime | None
    outbox: int
    oldest_in_outbox: datetime | None
    last_refresh: datetime | None
    last_bank_answer: datetime | None
    keys: Mapping[str, int]
    is_incident: bool
    estimated: frozenset[str]


def read_status(now: datetime | None = None) -> Status:
    """Return how things are. Some forty queries, whatever the size of the tables; no request."""
    now = now or timezone.now()
    rows, outbox = primary(BankToken), primary(PendingRevocation)
    total, waiting = _count(rows), _count(outbox)
    counts = _by_health(rows, total, now)
    oldest = outbox.order_by("pk").only("created_at").first()
    estimated = {
        "connections": total > SAMPLE,
        "reasons": total > SAMPLE,
        "keys": max(total, waiting) > KEY_SAMPLE,
        "outbox": waiting > SAMPLE,
    }
    return Status(
        at=now,
        connections={health: sum(reasons.values()) for health, reasons in counts.items()},
        reasons={
            health: dict(sorted(reasons.items()))
            for health, reasons in counts.items()
            if reasons and health not in {BankToken.Health.ACTIVE, BankToken.Health.EXPIRING}
        },
        nearest_expiry=_nearest_expiry(rows, now),
        outbox=waiting,
        oldest_in_outbox=oldest.created_at if oldest is not None else None,
        last_refresh=_last_refresh(rows),
        last_bank_answer=last_success.read(),
        keys=_keys_in_use(),
        is_incident=primary(Incident).exists() and bulk_disconnect.is_anything_left(),
        estimated=frozenset(name for name, is_estimate in estimated.items() if is_estimate),
    )


def _count(rows: QuerySet[Any]) -> int:
    """How many *rows* the whole table has: counted up to SAMPLE, then estimated."""
    counted = rows.order_by()[: SAMPLE + 1].count()
    return counted if counted <= SAMPLE else max(counted, _estimate(rows))


def _estimate(rows: QuerySet[Any]) -> int:
    """
    By the numbers of the first and the last row where rows are numbered, else by what PostgreSQL
    knows of the table; counted where neither says anything.
    """
    if isinstance(rows.model._meta.pk, AutoField):
        numbers = rows.aggregate(first=Min("pk"), last=Max("pk"))
        return int(numbers["last"] or 0) - int(numbers["first"] or 0) + 1
    connection = db_connections[rows.db]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT reltuples FROM pg_class WHERE oid = to_regclass(%s)",
                [connection.ops.quote_name(rows.model._meta.db_table)],
            )
            found = cursor.fetchone()
        if found is not None and found[0] > 0:
            return int(found[0])
    return rows.count()


def _first(rows: QuerySet[Any], size: int) -> QuerySet[Any]:
    """The first *size* rows, or all if there are no more."""
    keys = rows.order_by("pk").values_list("pk", flat=True)
    bound = list(keys[size : size + 1])
    return rows.filter(pk__lt=bound[0]) if bound else rows


def _by_health(rows: QuerySet[BankToken], total: int, now: datetime) -> Mapping[str, Counter[str]]:
    """Counts by health and reason; those of a sample, scaled to *total*, if there are many."""
    ended = When(has_status(BankToken.Status.DISCONNECTED), then=F("end_reason"))
    grouped = (
        _first(rows, SAMPLE)
        .order_by()
        .annotate(health_now=health_at(now), reason=Case(ended, default=F("last_error")))
        .values_list("health_now", "reason")
        .annotate(count=Count("*"))
    )
    scale = max(1.0, total / SAMPLE)
    counts: dict[str, Counter[str]] = {health.value: Counter() for health in BankToken.Health}
    for health, reason, count in grouped:
        counts[health][reason] += round(count * scale)
    return counts


def _nearest_expiry(rows: QuerySet[BankToken], now: datetime) -> datetime | None:
    """When the next active connection ends, unless refreshed. The index has the scope first."""
    column = "refresh_expires_at"
    active = rows.filter(has_status(BankToken.Status.ACTIVE), refresh_expires_at__gt=now)
    found = [
        active.filter(is_offline=is_offline).order_by(column).values_list(column, flat=True).first()
        for is_offline in (False, True)
    ]
    return min((when for when in found if when is not None), default=None)


def _last_refresh(rows: QuerySet[BankToken]) -> datetime | None:
    refreshed = rows.filter(refreshed_at__isnull=False).order_by("-refreshed_at")
    return refreshed.values_list("refreshed_at", flat=True).first()


def _keys_in_use() -> dict[str, int]:
    """
    Tokens by the id of their key, which the database reads off their first characters; those of a
    sample, scaled to the size of the table, if there are many.
    """
    found: Counter[str] = Counter()
    for model, kind in COLUMNS:
        rows = primary(model)
        scale = max(1.0, _count(rows) / KEY_SAMPLE)
        for key_id, count in _key_ids(_first(rows, KEY_SAMPLE), f"{kind}_ciphertext"):
            found[key_id] += round(count * scale)
    return dict(found.most_common())


def _key_ids(rows: QuerySet[Any], column: str) -> list[tuple[str, int]]:
    after_format = Substr(column, len(FORMAT) + 2, 33)  # a key id has 32 characters at most
    key_id = Substr(after_format, 1, StrIndex(after_format, Value(".")) - 1)
    ours = rows.filter(**{f"{column}__startswith": f"{FORMAT}."}).order_by()
    return list(ours.annotate(key_id=key_id).values_list("key_id").annotate(count=Count("*")))

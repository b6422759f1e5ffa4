"""
Encrypt stored tokens with the newest key, while the site runs.

A ciphertext is replaced only where it still is what was read: a refresh that stores a new token
meanwhile has sealed it with the newest key already, and wins. Running it again goes on where it was
stopped, because what has moved is not looked at again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.db import router
from django.db.models import QuerySet

from everifin_django.connections.bulk import MOST_ROWS
from everifin_django.encryption import (
    FORMAT,
    Key,
    TokenKind,
    active_key,
    key_id_of,
    open_sealed,
    seal,
)
from everifin_django.exceptions import TokenUnreadableError
from everifin_django.models import BankToken, LoginFlow, LoginSession, Payment, PendingRevocation

Sealed = (
    type[BankToken] | type[PendingRevocation] | type[LoginSession] | type[LoginFlow] | type[Payment]
)

COLUMNS: tuple[tuple[Sealed, TokenKind], ...] = (
    (BankToken, "access"),
    (BankToken, "refresh"),
    (BankToken, "id"),
    (PendingRevocation, "refresh"),
    (LoginSession, "refresh"),
    (LoginSession, "id"),
    (LoginSession, "session_keys"),
    (LoginFlow, "flow"),
    (Payment, "payment"),
    (Payment, "step"),
)
RESEALED, OVERTAKEN, UNREADABLE = "resealed", "overtaken", "unreadable"


def keys_in_use() -> Counter[str]:
    """
    Return how many stored tokens are encrypted with each key, by key id; "unreadable" for what this
    app did not write.

    A query for each column, read row by row.
    """
    found: Counter[str] = Counter()
    for model, kind in COLUMNS:
        column = f"{kind}_ciphertext"
        for sealed in _sealed(model, kind).values_list(column, flat=True).iterator():
            try:
                found[key_id_of(sealed)] += 1
            except TokenUnreadableError:
                found[UNREADABLE] += 1
    return found


def reseal(batch_size: int) -> Iterator[Counter[str]]:
    """
    Encrypt with the active key what is encrypted with others; yield the outcome of each batch.

    Shape: counts of "resealed", "overtaken" (a refresh was faster) and "unreadable" (left as it
    is). One query a batch and one short statement a token; nothing is locked in between.
    """
    key = active_key()
    for model, kind in COLUMNS:
        for batch in _batches(_sealed_by_others(model, kind, key), min(batch_size, MOST_ROWS)):
            yield Counter(_reseal(row, kind, key) for row in batch)


def _reseal(row: Any, kind: TokenKind, key: Key) -> str:
    column = f"{kind}_ciphertext"
    old = getattr(row, column)
    try:
        new = seal(
            open_sealed(old, row.encryption_context(kind)), row.encryption_context(kind), key
        )
    except TokenUnreadableError:
        return UNREADABLE
    same = _all(type(row)).filter(pk=row.pk, **{column: old})
    return RESEALED if same.update(**{column: new}) else OVERTAKEN


def _sealed_by_others(model: Sealed, kind: TokenKind, key: Key) -> QuerySet[Any]:
    by_this = f"{FORMAT}.{key.key_id}."
    return _sealed(model, kind).exclude(**{f"{kind}_ciphertext__startswith": by_this})


def _sealed(model: Sealed, kind: TokenKind) -> QuerySet[Any]:
    return _all(model).exclude(**{f"{kind}_ciphertext": ""})


def _all(model: Sealed) -> QuerySet[Any]:
    return model._default_manager.using(router.db_for_write(model))


def _batches(rows: QuerySet[Any], size: int) -> Iterator[list[Any]]:
    """The rows in the order of their keys, each once, however many leave the selection."""
    batch = list(rows.order_by("pk")[:size])
    while batch:
        yield batch
        batch = list(rows.filter(pk__gt=batch[-1].pk).order_by("pk")[:size])

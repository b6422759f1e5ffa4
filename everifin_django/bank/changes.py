"""What of an account is new or changed since the last download, and where the next one begins."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.utils import timezone

from everifin_django.bank.accounts import Transaction
from everifin_django.bank.pages import Rows

logger = logging.getLogger(__name__)

OVERLAP = timedelta(minutes=5)
"""
How far the next download goes back behind the latest row of this one. Rows may be stored late, or
in the same millisecond; those that come again overwrite themselves, by their id.
"""


class TransactionChanges(Iterator[Transaction]):
    """
    One download of the rows of an account that are new or changed; ``cursor`` says where the next
    one begins.
    """

    def __init__(self, rows: Rows[Transaction], since: datetime | None) -> None:
        self._rows = rows
        self._latest: datetime | None = None
        self._begins_at: datetime | None = None
        self.cursor = since
        """
        What to keep, and to give as *since* next time. It moves once all rows have come: they do
        not come by their time of change, so a download that stops early begins again where this one
        began. So does one whose list did not tell its end, or grew or shrank while it was read.
        """

    @property
    def fetched(self) -> int:
        """How many rows can be had without a request."""
        return self._rows.fetched

    def __next__(self) -> Transaction:
        self._begins_at = self._begins_at or timezone.now()
        try:
            row = next(self._rows)
        except StopIteration:
            self._move_cursor(self._begins_at)
            raise
        if row.last_updated is not None:
            self._latest = max(row.last_updated, self._latest or row.last_updated)
        return row

    def _move_cursor(self, begins_at: datetime) -> None:
        if not self._rows.is_complete:
            logger.warning("A list of transactions was not complete; its cursor does not move.")
        elif self._latest is not None:
            # A row that is stored meanwhile may be on a page that was read already, and one with a
            # later time be seen: so nothing later than the beginning counts as read.
            reached = min(self._latest, begins_at) - OVERLAP
            self.cursor = max(reached, self.cursor or reached)

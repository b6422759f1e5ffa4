"""
When the bank API last answered this site with what was asked for.

Nothing in the database says so, and a row that every process writes would be a lock that requests
wait for. So it is put into the site's cache, by each process once a minute at most, and only into
one that processes share and that is not the database itself.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime

from django.core.cache import DEFAULT_CACHE_ALIAS, cache, caches
from django.utils import timezone

logger = logging.getLogger(__name__)

KEY = "everifin_django.bank_api_answered_at"
EVERY_SECONDS = 60
UNSUITED = ("locmem.LocMemCache", "dummy.DummyCache", "db.DatabaseCache")


class _Noted:
    until = 0.0


def note() -> None:
    """Note that the bank API has just answered. No error of the cache is raised."""
    now = time.monotonic()
    if now < _Noted.until:
        return
    _Noted.until = now + EVERY_SECONDS
    try:
        if is_shared():
            cache.set(KEY, timezone.now(), None)
    except Exception as error:  # noqa: BLE001 - a cache that fails must not fail a call to the bank
        logger.debug("The cache does not work: %s.", type(error).__name__)


def read() -> datetime | None:
    """Return when it last answered, to the minute; None if that is not known."""
    try:
        found = cache.get(KEY) if is_shared() else None
    except Exception as error:  # noqa: BLE001 - as above
        logger.debug("The cache does not work: %s.", type(error).__name__)
        return None
    return found if isinstance(found, datetime) else None


def is_shared() -> bool:
    """Does this site have a cache that processes share, other than the database?"""
    backend = type(caches[DEFAULT_CACHE_ALIAS])
    return not f"{backend.__module__}.{backend.__name__}".endswith(UNSUITED)

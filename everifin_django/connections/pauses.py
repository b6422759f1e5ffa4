"""
What all processes of a site know of an endpoint at Everifin: that it asked for time, or that it
refuses the site's client.

Both are columns of one row for each endpoint, in the database of the connections; nothing is
written while all goes well.
"""

from __future__ import annotations

import logging
from typing import Any

from django.db import models

from everifin_django.exceptions import APIError, RefusedError
from everifin_django.models import (
    LONGEST_PAUSE_SECONDS,
    BankToken,
    DatabaseNow,
    EndpointState,
    in_database_seconds,
)
from everifin_django.signals import client_refused

logger = logging.getLogger(__name__)

TOKEN = "token"  # noqa: S105 - an endpoint
KEEP_ALIVE = "keep_alive"
"""Not an endpoint, but the work that refreshes many connections: visitors are served meanwhile."""

CLIENT_ERRORS = frozenset({"invalid_client", "unauthorized_client"})
CLIENT_REFUSED_SECONDS = 3600
"""How often a site is told that Everifin refuses its client."""


def is_about_client(error: APIError) -> bool:
    """Source: RFC 6749, section 5.2. Some servers say no more than 401."""
    if isinstance(error, RefusedError):
        return error.code in CLIENT_ERRORS
    return error.status == 401


def pause(alias: str, endpoint: str, seconds: float) -> None:
    """Have all processes leave *endpoint* alone for so long. Two statements at most."""
    until = in_database_seconds(min(seconds, LONGEST_PAUSE_SECONDS))
    is_shorter = models.Q(paused_until=None) | models.Q(paused_until__lt=until)
    is_wrong = models.Q(paused_until__gt=in_database_seconds(LONGEST_PAUSE_SECONDS))
    _write(alias, endpoint, is_shorter | is_wrong, paused_until=until)


def paused_until(alias: str, endpoint: str) -> models.Subquery:
    """Return an expression for the end of the pause, to be read along with something else."""
    rows = EndpointState._default_manager.using(alias).filter(name=endpoint)
    return models.Subquery(rows.values("paused_until")[:1])


def seconds_left(alias: str, *endpoints: str) -> float:
    """Return how long the longest pause of *endpoints* still is, 0 if there is none. One query."""
    rows = EndpointState._default_manager.using(alias).filter(name__in=endpoints)
    now = models.ExpressionWrapper(DatabaseNow(), output_field=models.DateTimeField())
    read = rows.exclude(paused_until=None).annotate(now=now).values_list("paused_until", "now")
    found = [(until - now).total_seconds() for until, now in read]
    return max((one for one in found if 0 < one <= LONGEST_PAUSE_SECONDS), default=0.0)


def note_client_refused(alias: str, error: APIError) -> None:
    """
    Send the signal ``client_refused`` if *error* says that Everifin refuses this site's client, but
    not within an hour of the last one, whoever sent it. Two statements at most; none for another
    error.
    """
    if not is_about_client(error):
        return
    an_hour_ago = in_database_seconds(-CLIENT_REFUSED_SECONDS)
    is_due = (
        models.Q(client_refused_at=None)
        | models.Q(client_refused_at__lt=an_hour_ago)
        | models.Q(client_refused_at__gt=in_database_seconds(CLIENT_REFUSED_SECONDS))
    )
    if _write(alias, TOKEN, is_due, client_refused_at=DatabaseNow()):
        reason = error.code or "unauthorized"
        logger.critical("Everifin refuses this site's client: %s.", reason)
        client_refused.send_robust(sender=BankToken, reason=reason)


def _write(alias: str, endpoint: str, condition: models.Q, **columns: Any) -> bool:
    """Write *columns* where *condition* holds; return whether it did."""
    rows = EndpointState._default_manager.using(alias)
    found = rows.filter(condition, name=endpoint)
    if found.update(**columns):
        return True
    if rows.filter(name=endpoint).exists():
        return False
    rows.bulk_create([EndpointState(name=endpoint)], ignore_conflicts=True)
    return bool(found.update(**columns))

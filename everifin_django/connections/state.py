"""
What a page can say of a user's connection: how it is, until when it lasts, why it does not work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.translation import gettext_lazy as _

from everifin_django.models import BankToken

Health = BankToken.Health

ENDED_BY_US: Mapping[str, Any] = {
    "admin": _("The people who run this site ended it."),
    "incident": _("The people who run this site ended it, for your safety."),
    "logout": _("It ended when you logged out."),
    "backchannel_logout": _("It ended when you logged out at Everifin."),
}
"""By the reason of the end; of all others, the person asked for it or need not know."""

LOST: Mapping[str, Any] = {
    "answer_lost": _("An answer of Everifin got lost, and it is given only once."),
    "identity_changed": _("Everifin answered for another account than yours."),
}
"""By the last error of a connection that is to be made again."""


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """
    A user's connection, in what people can be told.

    *reason* is a sentence about why it does not work, empty while it does. Times are None where
    there is none: *ends_at* where Everifin names no end, *next_try_at* unless Everifin does not
    answer.
    """

    health: Health
    reason: Any = ""
    scopes: frozenset[str] = frozenset()
    connected_at: datetime | None = None
    renewed_at: datetime | None = None
    ends_at: datetime | None = None
    next_try_at: datetime | None = None

    @property
    def is_connected(self) -> bool:
        """Can calls be made without the user connecting again?"""
        return self.health not in (Health.DISCONNECTED, Health.NEEDS_RECONNECT)

    @property
    def can_be_ended(self) -> bool:
        """Is there anything to disconnect?"""
        return self.health != Health.DISCONNECTED


def state_of(connection: BankToken | None) -> ConnectionState:
    """
    Return the state of *connection* as ``Everifin.connection`` has read it; None is a user who
    never connected. No query, unless an incident is under way.
    """
    if connection is None:
        return ConnectionState(Health.DISCONNECTED)
    if connection.is_stopped():
        return ConnectionState(Health.DISCONNECTED, ENDED_BY_US.get(connection.end_reason, ""))
    health = connection.health()
    return ConnectionState(
        health=health,
        reason=_reason(health, connection),
        scopes=connection.scopes,
        connected_at=connection.connected_at,
        renewed_at=connection.issued_at,
        ends_at=connection.refresh_expires_at,
        next_try_at=connection.retry_after if health == Health.DEGRADED else None,
    )


def _reason(health: Health, connection: BankToken) -> Any:
    if health == Health.DEGRADED:
        return _("Everifin does not answer at the moment. Your connection is kept.")
    if health != Health.NEEDS_RECONNECT:
        return ""
    usual = _("Everifin asks for this from time to time, for your safety.")
    return LOST.get(connection.last_error, usual)

"""
Signals for other apps.

Each is sent after the change is committed, with ``user``; those about a connection with
``sender=BankToken`` and ``connection_id`` (UUID), those about a login link with
``sender=LoginLink`` and ``made_by``. None carries a token. Receivers run in the request, so they
should be quick; an error in one is logged and changes nothing.
"""

from django.dispatch import Signal

__all__ = [
    "client_refused",
    "connection_degraded",
    "connection_recovered",
    "consent_expired",
    "everifin_connected",
    "everifin_disconnected",
    "login_link_created",
    "login_link_removed",
    "payment_finished",
    "refresh_failed",
    "token_refreshed",
]

everifin_connected = Signal()
"""
A user's connection was stored: by login, connect or connecting again. Further argument: ``scope``.
"""

token_refreshed = Signal()
"""A user's tokens were refreshed."""

consent_expired = Signal()
"""Everifin ended a user's connection, who must connect again. Further argument: ``reason``."""

refresh_failed = Signal()
"""
A refresh failed for now, and is tried again later. Further arguments: ``reason``,
``retry_after_seconds``. Once for each try, not for each request that meets the pause after it.
"""

connection_degraded = Signal()
"""
A connection that was healthy cannot be refreshed or used for now. Further argument: ``reason``.
Once, however many tries fail.
"""

connection_recovered = Signal()
"""A degraded connection was refreshed. Once."""

client_refused = Signal()
"""
Everifin refuses this site's client id or secret, so nobody's tokens can be refreshed: wake an
operator. Argument: ``reason``. Once an hour for the whole site.
"""

everifin_disconnected = Signal()
"""A user's connection was ended here, by logout, disconnect or an administrator."""

login_link_created = Signal()
"""From now on a user can log in with one more Everifin account. Tell them, by email."""

login_link_removed = Signal()
"""A user can no longer log in with an Everifin account. Tell them, by email."""

payment_finished = Signal()
"""
A payment in the ledger became final, paid or not. ``sender`` is ``Payment``; argument: ``payment``,
the row. Sent once for each payment, after the change is committed.
"""

"""
Revoke at Everifin what could not be revoked before, and delete old tokens.
"""

from typing import Any

from django.core.management.base import BaseCommand

from everifin_django.connections import housekeeping, login_sessions
from everifin_django.connections.revocation import purge_ended, revoke_due


class Command(BaseCommand):
    help = (
        "Revoke the grants that wait in the outbox, those of browsers whose sessions are over and "
        "of users who are no longer active, and delete the tokens of connections that ended more "
        "than EVERIFIN_RETENTION_DAYS ago. Run it every few minutes, by cron or a scheduler."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        housekeeping.delete_old_states()
        housekeeping.delete_old_flows()
        housekeeping.delete_old_logouts()
        login_sessions.sweep()
        inactive = housekeeping.end_inactive()
        emptied = purge_ended()
        ended, left = revoke_due()
        given_up = housekeeping.give_up_old_revocations()
        self.stdout.write(f"{ended} ended, {left - given_up} left for a later try.")
        if given_up:
            self.stderr.write(f"Given up after EVERIFIN_RETENTION_DAYS: {given_up}. See the log.")
        if emptied:
            self.stdout.write(f"Tokens of connections that ended long ago deleted: {emptied}.")
        if inactive:
            self.stdout.write(f"Connections of users who are no longer active ended: {inactive}.")

"""
End at Everifin what could not be ended before.
"""

from typing import Any

from django.core.management.base import BaseCommand

from everifin_django.revocation import revoke_due


class Command(BaseCommand):
    help = (
        "End the grants that wait in the outbox. Run it every few minutes, by cron or a scheduler."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        ended, left = revoke_due()
        self.stdout.write(f"{ended} ended, {left} left for a later try.")

"""
Look at Everifin what became of payments that are not finished here.
"""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from everifin_django.connections import everifin_for, ledger

LIMIT = 1000


class Command(BaseCommand):
    help = (
        "Look for payments that were sent and are not finished: by their id, else in the list of "
        "payments. Nothing is sent again. Run it every few minutes, by cron or a scheduler."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--limit", type=int, default=LIMIT, help=f"how many to look for (default {LIMIT})"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        counts = ledger.look_at_all(everifin_for, limit=max(0, options["limit"]))
        if not counts:
            self.stdout.write("No payment is unfinished.")
        for state, count in sorted(counts.items()):
            self.stdout.write(f"{state}: {count}")

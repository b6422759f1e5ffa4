"""
Do everything that ages: the one line for cron.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from everifin_django.connections import housekeeping
from everifin_django.connections.bulk import MOST_AT_ONCE
from everifin_django.models import PendingRevocation, primary

CONCURRENCY = 8
MAX_SECONDS = 240


class Command(BaseCommand):
    help = (
        "Ends at Everifin what waits in the outbox, ends what users have who are no longer active, "
        "and deletes what nobody will use again. Run it every five minutes, by cron or a "
        "scheduler, on one host or on all. Exit code 1: a task failed, or a grant was given up."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--concurrency", type=int, default=CONCURRENCY, help="requests to Everifin at once"
        )
        parser.add_argument(
            "--max-seconds", type=float, default=MAX_SECONDS, help="begin no request afterwards"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not 1 <= options["concurrency"] <= MOST_AT_ONCE or not options["max_seconds"] > 0:
            raise CommandError(
                f"--concurrency must be from 1 to {MOST_AT_ONCE}, and --max-seconds above 0."
            )
        is_well = True
        for done in housekeeping.run_all(
            concurrency=options["concurrency"], max_seconds=options["max_seconds"]
        ):
            if done.failure:
                self.stderr.write(f"{done.task}: failed ({done.failure})")
            elif done.count:
                self.stdout.write(f"{done.task}: {done.count}")
            is_well &= not done.failure and not (done.task == housekeeping.GIVEN_UP and done.count)
        self.stdout.write(f"left in the outbox: {primary(PendingRevocation).count()}")
        if not is_well:
            sys.exit(1)

"""
Move all stored tokens to the newest encryption key.
"""

from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from everifin_django.conf import DEFAULT_KEY_PROVIDER, conf
from everifin_django.connections.key_rotation import UNREADABLE, keys_in_use, reseal
from everifin_django.encryption import active_key, is_known, parse_keys


class Command(BaseCommand):
    help = (
        "Encrypt stored tokens with the newest key. Safe while "
        "the site runs; can be stopped and run again."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--status", action="store_true", help="only count the tokens of each key"
        )
        parser.add_argument("--batch-size", type=int, default=500, help="rows read at a time")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch_size"] < 1:
            raise CommandError("--batch-size must be at least 1.")
        unreadable = 0 if options["status"] else self._reseal(options["batch_size"])
        self._say_status()
        if unreadable:
            raise CommandError(
                "What is unreadable was left as it is: put the key back, behind "
                "the newest one, and run this again."
            )

    def _reseal(self, batch_size: int) -> int:
        """Say what was done, and return how many tokens are unreadable."""
        total: Counter[str] = Counter()
        for outcome in reseal(batch_size):
            total += outcome
        self.stdout.write(
            f"{total['resealed']} re-encrypted, {total['overtaken']} refreshed meanwhile, "
            f"{total[UNREADABLE]} unreadable."
        )
        return total[UNREADABLE]

    def _say_status(self) -> None:
        in_use = keys_in_use()
        newest = active_key().key_id
        for key_id in dict.fromkeys([newest, *_listed_key_ids(), *sorted(in_use)]):
            count = in_use[key_id]
            remark = "the newest" if key_id == newest else _remark(key_id, count)
            self.stdout.write(f"{key_id}: {count} tokens ({remark})")


def _listed_key_ids() -> list[str]:
    """Of the settings' keys also those are shown that no token needs."""
    if conf.key_provider != DEFAULT_KEY_PROVIDER:
        return []
    return [key.key_id for key in parse_keys(conf.encryption_keys)]


def _remark(key_id: str, count: int) -> str:
    if not count:
        return "not needed any more, except for backups"
    if key_id == UNREADABLE:
        return "not written by this app"
    return "still needed" if is_known(key_id) else "its key is missing!"

"""
Print a new encryption key.
"""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from everifin_django.encryption import new_key


class Command(BaseCommand):
    help = "Print a new key for EVERIFIN_ENCRYPTION_KEYS, ready to be put in front of the list."
    # Without a key the checks fail, and this is what makes one.
    requires_system_checks: tuple[str, ...] = ()

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(new_key(timezone.now().date()))

"""
What a fresh access token costs: ``python -m benchmarks.token --database postgres``.

It is compared with the least that a site could do by itself: a model with the token in plain text,
read by Django's ORM. Both are asked in turn, in one run, over one database that is on this machine;
what is printed is the ratio of the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from benchmarks.database import empty_database
from tests.support.servers import DATABASES

READS = 100
ROUNDS = 101


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    options = parser.parse_args()
    ratios = []
    with DATABASES[options.database]() as url, empty_database(url):
        ours, plain = readers()
        for _ in range(ROUNDS):
            before = seconds(plain)
            ratios.append(seconds(ours) / before)
    quartiles = statistics.quantiles(ratios, n=4)
    print(f"{ROUNDS} rounds of {READS} reads, {options.database}, ours / plain text by the ORM:")
    print("quartiles {:.2f} {:.2f} {:.2f}".format(*quartiles))


def readers() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a function that reads a token as this app does, and one that does it naively."""
    from django.conf import settings
    from django.db import connection, models
    from django.utils import timezone

    from everifin_django.connections.grants import get_access_token
    from everifin_django.testing.factories import BankTokenFactory

    class PlainToken(models.Model):
        user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
        access_token = models.TextField()
        expires_at = models.DateTimeField()

        class Meta:
            app_label = "benchmarks"

        def __str__(self) -> str:
            return str(self.pk)

    row: Any = BankTokenFactory(access_token="t" * 1500)
    later = timezone.now() + timedelta(hours=1)
    type(row).objects.update(access_expires_at=later)
    with connection.schema_editor() as editor:
        editor.create_model(PlainToken)
    rows = PlainToken._default_manager
    rows.create(user=row.user, access_token="t" * 1500, expires_at=later)
    user = row.user

    def ours() -> Any:
        return get_access_token(user).token

    def plain() -> Any:
        found = rows.get(user=user)
        return found.access_token if found.expires_at > timezone.now() else None

    if ours().reveal() != plain():
        raise SystemExit("The two do not read the same token.")
    return ours, plain


def seconds(read: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(READS):
        read()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

"""
A database of 1,000,000 connections, and what running the site costs in it:
``python -m benchmarks.million``. How long it takes to find the next 1,000 due ones, the first page
of ``everifin_refresh``, ``everifin_status``, the admin's list and its search, and
``everifin_disconnect --all``: until no connection can be used, and until all tokens are in the
outbox.

PostgreSQL makes the rows itself, with everything but tokens that open: each ciphertext has the
length and the form of one. Nine in ten are active, seven in ten have ``offline_access``, and for
half the identity provider named no end of the refresh token.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import StringIO
from typing import Any

from benchmarks.database import empty_database
from tests.support.servers import DATABASES

CONNECTIONS = 1_000_000
TOKEN_CHARACTERS = 1500
FILLER_BYTES = 20_000
ROUNDS = 21

USERS = """
INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, email,
  is_staff, is_active, date_joined)
SELECT i, '', false, 'user-' || i, 'First-' || i %% 1000, 'Last-' || i,
  'mail-' || i || '@example.org', false, true, now()
FROM generate_series(1, %(count)s) i
"""
ROWS = """
INSERT INTO everifin_django_banktoken (id, user_id, issuer, subject, identity_digest, sid,
  access_ciphertext, refresh_ciphertext, id_ciphertext, encrypted_for, scope, is_offline,
  issued_at, access_expires_at, refresh_expires_at, status, token_version, failures, last_error,
  end_reason, refreshed_at, rejected_at, retry_after, created_at, updated_at)
SELECT gen_random_uuid(), i, %(issuer)s, subject, pg_temp.digest(%(issuer)s, subject),
  'session-' || i,
  CASE WHEN is_live THEN token(i, 7) ELSE '' END, CASE WHEN is_live THEN token(i, 11) ELSE '' END,
  CASE WHEN is_live THEN token(i, 13) ELSE '' END, CASE WHEN is_live THEN i::text ELSE '' END,
  CASE WHEN is_offline THEN 'openid ais offline_access' ELSE 'openid ais' END, is_offline,
  issued, CASE WHEN is_live THEN issued + interval '5 minutes' END,
  CASE WHEN is_live AND i %% 2 = 0 THEN issued + interval '30 days' END,
  state, 3, CASE WHEN is_active AND i %% 100 = 7 THEN 2 ELSE 0 END,
  CASE WHEN state = 'needs_reconnect' THEN
    (ARRAY['invalid_grant', 'consent_withdrawn', 'answer_lost'])[1 + i %% 3] ELSE '' END,
  CASE WHEN state = 'disconnected' THEN 'disconnected' ELSE '' END,
  issued, NULL, NULL, issued, issued
FROM (
  SELECT i, 'subject-' || i AS subject, state, state = 'active' AS is_active,
    state <> 'disconnected' AS is_live,
    i %% 10 < 7 AS is_offline, now() - random() * interval '31 days' AS issued
  FROM (
    SELECT i, CASE WHEN i %% 20 = 3 THEN 'needs_reconnect' WHEN i %% 20 = 17 THEN 'disconnected'
      ELSE 'active' END AS state
    FROM generate_series(1, %(count)s) i
  ) numbers
) rows
"""
# ``Identity.digest``
DIGEST = """
CREATE FUNCTION pg_temp.digest(issuer text, subject text) RETURNS text IMMUTABLE LANGUAGE sql AS $$
  SELECT encode(sha256(
    int4send(octet_length(issuer)) || convert_to(issuer, 'UTF8') ||
    int4send(octet_length(subject)) || convert_to(subject, 'UTF8')), 'hex') $$
"""
# A piece of the filler: each differs from the next. Bytes, because a piece of a string is found by
# counting its characters.
CIPHERTEXT = """
CREATE FUNCTION pg_temp.token(i bigint, salt bigint) RETURNS text IMMUTABLE LANGUAGE sql AS $$
  SELECT '{start}' || encode(
    substr('\\x{filler}'::bytea, 1 + ((i * salt * 31) % {offsets})::int, {length}), 'hex') $$
"""
# Real ciphertext cannot be compressed; this one need not be tried.
STORAGE = ", ".join(
    f"ALTER {kind}_ciphertext SET STORAGE EXTERNAL" for kind in ("access", "refresh", "id")
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--token-characters", type=int, default=TOKEN_CHARACTERS)
    parser.add_argument("--workers", type=int, default=2, help="of everifin_disconnect")
    options = parser.parse_args()
    with million(options.connections, token_characters=options.token_characters):
        measure_due()
        measure_status()
        measure_admin(options.connections)
        measure_kill_switch(options.workers)


@contextmanager
def million(
    connections: int = CONNECTIONS, *, token_characters: int = TOKEN_CHARACTERS
) -> Iterator[str]:
    """
    Give the URL of a PostgreSQL database with so many *connections*, whose tokens have so many
    characters, and set Django up for it. Takes some minutes for a million.
    """
    with DATABASES["postgres"]() as url, empty_database(url):
        start = time.monotonic()
        build(connections, token_characters)
        print(f"{connections:,} connections made in {time.monotonic() - start:.0f} s", flush=True)
        yield url


def build(count: int, token_characters: int) -> None:
    from django.db import connection

    from everifin_django.conf import conf
    from everifin_django.encryption import FORMAT, active_key

    start = f"{FORMAT}.{active_key().key_id}."
    length = max(0, token_characters - len(start)) // 2
    filler = random.randbytes(FILLER_BYTES + length).hex()  # noqa: S311 - no secret
    with connection.cursor() as cursor:
        indexes = _drop_indexes(cursor)
        cursor.execute(f"ALTER TABLE everifin_django_banktoken {STORAGE}")
        cursor.execute(
            CIPHERTEXT.format(start=start, filler=filler, offsets=FILLER_BYTES, length=length)
        )
        cursor.execute(DIGEST)
        cursor.execute(USERS, {"count": count})
        rows: dict[str, Any] = {"count": count, "issuer": conf.issuer}
        cursor.execute(ROWS.replace("token(", "pg_temp.token("), rows)
        cursor.execute("SELECT setval('auth_user_id_seq', %s)", [count])
        for statement in indexes:
            cursor.execute(statement)
        cursor.execute("VACUUM ANALYZE auth_user")
        cursor.execute("VACUUM ANALYZE everifin_django_banktoken")


def _drop_indexes(cursor: Any) -> list[str]:
    """Drop what would be built row by row; return the statements that make it again."""
    cursor.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'everifin_django_banktoken' "
        "AND indexname NOT IN (SELECT conname FROM pg_constraint)"
    )
    found = cursor.fetchall()
    for name, _definition in found:
        cursor.execute(f'DROP INDEX "{name}"')
    return [definition for _name, definition in found]


def measure_due() -> None:
    from everifin_django.models import BankToken

    due = BankToken.objects.offline()
    for name, column, rows in (
        ("not refreshed for a week", "issued_at", due.due(not_refreshed_for=timedelta(days=7))),
        ("ends within a day", "refresh_expires_at", due.due(within=timedelta(days=1))),
    ):
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            found = list(rows.order_by(column, "pk").values_list("pk", "token_version")[:1000])
            seconds.append(time.perf_counter() - start)
        middle, worst = statistics.median(seconds) * 1000, max(seconds) * 1000
        print(f"next {len(found)}, {name}: median {middle:.1f} ms, slowest {worst:.1f} ms")
    measure_page()


def measure_page() -> None:
    from everifin_django.connections.keep_alive import Due

    seconds, count = [], 0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        count = len(next(Due(not_refreshed_for=timedelta(days=7)).pages()))
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds) * 1000
    print(f"everifin_refresh, its first {count} rows, users and tokens: median {middle:.1f} ms")


def measure_status() -> None:
    from django.core.management import call_command

    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with suppress(SystemExit):  # its exit code says that nobody refreshes here
            call_command("everifin_status", stdout=StringIO())
        seconds.append(time.perf_counter() - start)
    middle, worst = statistics.median(seconds), max(seconds)
    print(f"everifin_status: median {middle:.2f} s, slowest {worst:.2f} s", flush=True)


def measure_admin(count: int) -> None:
    """The list that support opens first, and what they search it for."""
    from django.contrib.auth import get_user_model
    from django.test import Client, override_settings

    staff = get_user_model().objects.create_superuser("staff")
    client, middle = Client(), count // 2
    client.force_login(staff)
    searches = {
        "user name": f"user-{middle}",
        "beginning of many user names": "user-",
        "email": f"mail-{middle}@example.org",
        "last name": f"Last-{middle}",
        "full name": f"First-{middle % 1000} Last-{middle}",
        "subject": f"subject-{middle}",
        "nobody": "nobody",
    }
    with override_settings(ALLOWED_HOSTS=["*"]):
        _measure_list(client, "first page", {})
        _measure_list(client, "page 20", {"p": "20"})
        for health in ("needs_reconnect", "degraded", "expiring", "active", "disconnected"):
            _measure_list(client, f"filter {health}", {"health": health})
        for name, term in searches.items():
            _measure_list(client, f"search by {name}", {"q": term})


def _measure_list(client: Any, name: str, query: dict[str, str]) -> None:
    from django.db import connection

    url, seconds, queries = "/admin/everifin_django/banktoken/", [], []

    def count(execute: Any, sql: str, *more: Any) -> Any:
        queries.append(sql)
        return execute(sql, *more)

    with connection.execute_wrapper(count):
        answer: Any = client.get(url, query)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        client.get(url, query)
        seconds.append(time.perf_counter() - start)
    middle, worst = statistics.median(seconds) * 1000, max(seconds) * 1000
    found = len(answer.context_data["cl"].result_list)
    print(
        f"admin, {name}: {found} rows, {len(queries)} queries, median {middle:.0f} ms, "
        f"slowest {worst:.0f} ms",
        flush=True,
    )


def measure_kill_switch(workers: int) -> None:
    """No connection can be used once the incident is written down."""
    from everifin_django.connections import bulk_disconnect
    from everifin_django.models import BankToken, Incident, PendingRevocation

    held = BankToken.objects.exclude(refresh_ciphertext="").count()
    start = time.perf_counter()
    bulk_disconnect.begin()
    print(f"all unusable after {time.perf_counter() - start:.3f} s")
    moving = bulk_disconnect.move_all(workers=workers)
    while Incident.objects.filter(is_moved=False).exists():
        next(moving)
    seconds, moved = time.perf_counter() - start, PendingRevocation.objects.count()
    print(f"{moved:,} of {held:,} tokens in the outbox after {seconds:.1f} s", flush=True)
    for _size in moving:
        pass
    print(f"all rows emptied after {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

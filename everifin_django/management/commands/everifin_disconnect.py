"""
End many connections after an incident.
"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import router
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from everifin_django.conf import conf
from everifin_django.connections import bulk_disconnect
from everifin_django.connections.bulk import MOST_AT_ONCE
from everifin_django.connections.revocation import revoke_due
from everifin_django.encryption import KEY_ID
from everifin_django.models import (
    BankToken,
    Incident,
    LoginSession,
    PendingRevocation,
    has_status,
    primary,
)

CONCURRENCY = 8


class Command(BaseCommand):
    help = (
        "Ends many connections after an incident: all of them cannot be used any more at once, "
        "then their tokens move to the outbox in batches, then they are ended at Everifin. It can "
        "be stopped at any time; --resume, or everifin_housekeeping, goes on."
    )
    # An incident is no time to be held up by a wrong setting.
    requires_system_checks: tuple[str, ...] = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--all", action="store_true", help="all connections")
        add("--encrypted-by", metavar="KEY", help="those with a token encrypted with this key id")
        add("--since", metavar="TIME", help="those that were made or refreshed since then")
        add("--user", action="append", default=[], metavar="NAME", help="this user's; repeatable")
        add("--resume", action="store_true", help="go on with what was stopped")
        add("--dry-run", action="store_true", help="only say how many connections it would end")
        add("--no-input", action="store_false", dest="interactive", help="do not ask")
        add("--no-revoke", action="store_true", help="leave the outbox to everifin_housekeeping")
        add("--batch-size", type=int, default=bulk_disconnect.BATCH_SIZE, help="rows of a batch")

        add("--workers", type=int, default=1, help="database connections that move tokens at once")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch_size"] < 1 or not 1 <= options["workers"] <= MOST_AT_ONCE:
            raise CommandError(
                f"--batch-size must be at least 1, and --workers from 1 to {MOST_AT_ONCE}."
            )
        if not options["resume"] and not self._stop(options):
            return
        try:
            self._move(options["batch_size"], options["workers"])
            if not options["no_revoke"]:
                self._revoke()
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped. The connections stay unusable; --resume or everifin_housekeeping goes on."
            ) from None

    def _stop(self, options: dict[str, Any]) -> bool:
        """Make the chosen connections unusable; return False if nobody wanted that after all."""
        chosen = _chosen(options)
        count = chosen.connections().count() + chosen.logins().count()
        self.stdout.write(f"Connections, and grants of logins in other browsers: {count}.")
        if options["dry_run"] or not count:
            return False
        if options["interactive"] and not self._is_confirmed():
            raise CommandError("Nothing was ended.")
        chosen.stop()
        self.stdout.write("They cannot be used any more.")
        return True

    def _is_confirmed(self) -> bool:
        answer = input(
            "This ends them here and at Everifin, and cannot be undone: their users have to "
            "connect again.\nType 'yes' to continue: "
        )
        return answer == "yes"

    def _move(self, batch_size: int, workers: int) -> None:
        moved = 0
        for size in bulk_disconnect.move_all(batch_size, workers=workers):
            moved += size
            self._show(f"{moved} moved to the outbox")
        self.stdout.write(f"Moved to the outbox: {moved}.")

    def _revoke(self) -> None:
        rate = conf.revocations_per_second
        waiting = primary(PendingRevocation).count()
        self.stdout.write(
            f"In the outbox: {waiting}. At {rate} a second this takes {_duration(waiting / rate)}; "
            "stopped, everifin_housekeeping goes on."
        )
        ended, left = revoke_due(concurrency=CONCURRENCY)
        self.stdout.write(f"Ended at Everifin: {ended}, left for everifin_housekeeping: {left}.")

    def _show(self, progress: str) -> None:
        if self.stdout.isatty():
            self.stdout.write(f"\r{progress}", ending="")
            self.stdout.flush()


@dataclass(frozen=True, slots=True)
class CoveredByIncident:
    """The connections and grants that an incident covers. To stop them takes two statements."""

    encrypted_by: str
    issued_since: datetime | None

    def connections(self) -> QuerySet[BankToken]:
        return self._incident().covered()

    def logins(self) -> QuerySet[LoginSession]:
        return self._incident().covered_logins()

    def stop(self) -> None:
        bulk_disconnect.begin(encrypted_by=self.encrypted_by, issued_since=self.issued_since)

    def _incident(self) -> Incident:
        return Incident(
            encrypted_by=self.encrypted_by,
            issued_since=self.issued_since,
            started_at=timezone.now(),
        )


@dataclass(frozen=True, slots=True)
class OfUsers:
    """The connections and grants of a few users."""

    users: list[Any]

    def connections(self) -> QuerySet[BankToken]:
        rows = primary(BankToken).filter(user__in=self.users)
        return rows.exclude(has_status(BankToken.Status.DISCONNECTED))

    def logins(self) -> QuerySet[LoginSession]:
        rows = primary(LoginSession).filter(user__in=self.users)
        return rows.exclude(refresh_ciphertext="")

    def stop(self) -> None:
        bulk_disconnect.disable(self.connections(), "incident")
        bulk_disconnect.release_logins(self.logins())


def _chosen(options: dict[str, Any]) -> CoveredByIncident | OfUsers:
    """Errors: CommandError if it is not said which connections to end, or in two ways."""
    key_id, since, names = options["encrypted_by"], options["since"], options["user"]
    ways = [options["all"], bool(names), key_id is not None or since is not None]
    if ways.count(True) != 1:
        raise CommandError(
            "Say which connections: --all, or --user, or --encrypted-by and --since, which can be "
            "combined; or --resume alone."
        )
    if names:
        return OfUsers([_user(name) for name in names])
    if key_id is not None and not KEY_ID.fullmatch(key_id):
        raise CommandError("--encrypted-by takes the id of a key, the part before the colon.")
    return CoveredByIncident(key_id or "", _parse(since) if since is not None else None)


def _user(name: str) -> Any:
    model: Any = get_user_model()
    users = model._base_manager.using(router.db_for_write(model))
    user = users.filter(**{model.USERNAME_FIELD: name}).first()
    if user is None:
        raise CommandError(f"There is no user {name!r}.")
    return user


def _parse(value: str) -> datetime:
    """A date is its midnight; without an offset, it is the site's time."""
    try:
        day = parse_date(value)
        found = parse_datetime(value) if day is None else datetime.combine(day, time())
    except ValueError:
        found = None
    if found is None:
        raise CommandError("--since takes a date or datetime, such as 2026-11-26T08:00+01:00.")
    if settings.USE_TZ and timezone.is_naive(found):
        return timezone.make_aware(found)
    if not settings.USE_TZ and timezone.is_aware(found):
        return timezone.make_naive(found)
    return found


def _duration(seconds: float) -> str:
    """*seconds* for people, rounded up."""
    minutes = int(seconds // 60) + 1
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60 + 1} hours"

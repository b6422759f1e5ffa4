"""
Expired rows are deleted: a few at each login, all of them by
``everifin_housekeeping``.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import router
from django.db.models import Model, Q
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import (
    bulk_disconnect,
    grants,
    links,
    login_sessions,
    revocation,
)
from everifin_django.connections.bulk import check_run
from everifin_django.connections.ends import ON_PURPOSE
from everifin_django.models import (
    BankToken,
    Holds,
    LoginFlow,
    LogoutSeen,
    PendingRevocation,
    SpentState,
    has_status,
    primary,
)

logger = logging.getLogger(__name__)

SPENT_STATES_KEPT = timedelta(hours=2)  # longer than any login may take
LOGOUTS_KEPT = timedelta(minutes=15)
"""How long a login under way may have been overtaken by a logout."""

A_FEW = 10
PAGE_SIZE = 500


def by_chance() -> None:
    """Do one of four, so that nothing grows without cron. One query, if nothing is due."""
    tasks: tuple[Callable[[], Any], ...] = (
        delete_old_states,
        delete_old_flows,
        delete_old_logouts,
        lambda: login_sessions.sweep(A_FEW),
    )
    random.choice(tasks)()  # noqa: S311 - hides nothing


@dataclass(frozen=True, slots=True)
class Done:
    """
    How one task of housekeeping went: how many it was about, and the class of the error if it
    failed.
    """

    task: str
    count: int = 0
    failure: str = ""


def run_all(*, concurrency: int, max_seconds: float) -> Iterator[Done]:
    """
    Do everything that ages, and yield how each task went. One that fails does not keep the others
    from being done. The outbox is worked off last, until *max_seconds* after the beginning.

    Several hosts may do it at once. Errors: ValueError for what no run can be given.
    """
    check_run(concurrency, max_seconds)
    start = time.monotonic()

    def work_off() -> int:
        left_seconds = max(1.0, start + max_seconds - time.monotonic())
        return revocation.revoke_due(concurrency=concurrency, max_seconds=left_seconds)[0]

    for task, work in {**TASKS, ENDED: work_off, GIVEN_UP: give_up_old_revocations}.items():
        try:
            yield Done(task, work())
        except Exception as error:  # noqa: BLE001 - the next task may work, and the exit code tells
            logger.error("Housekeeping: %s failed: %s.", task, type(error).__name__)  # noqa: TRY400 - no frames
            yield Done(task, failure=type(error).__name__)


def delete_old_states() -> int:
    return _delete_before(SpentState, "spent_at", SPENT_STATES_KEPT)


def delete_old_flows() -> int:
    return _delete_before(LoginFlow, "started_at", SPENT_STATES_KEPT)


def delete_old_logouts() -> int:
    return _delete_before(LogoutSeen, "seen_at", LOGOUTS_KEPT)


def give_up_old_revocations() -> int:
    """
    Delete what has waited in the outbox for EVERIFIN_RETENTION_DAYS, and say so in the log: it may
    still be alive at Everifin. Return how many entries that were. One query, and one for each.
    """
    entries = PendingRevocation.objects.using(router.db_for_write(PendingRevocation))
    long_ago = timezone.now() - timedelta(days=conf.retention_days)
    given_up = list(entries.filter(created_at__lt=long_ago))
    for entry in given_up:
        logger.error(
            "The grant of connection %s could not be ended at Everifin for %d days (%s), and is "
            "not tried any more. Ask Everifin to end it.",
            entry.connection_id,
            conf.retention_days,
            entry.last_error or "not tried",
        )
        entry.delete()
    return len(given_up)


def end_inactive() -> int:
    """
    End what users still have who are no longer active, as after a bulk update, which sends no
    signal; return how many users that were. Two queries if there are none. Their grants go to the
    outbox.
    """
    if not _has_active_column():
        return 0
    users: Any = get_user_model()._base_manager.using(router.db_for_write(get_user_model()))
    has_connection = Q(bank_token__isnull=False) & ~Q(
        Holds("bank_token__status", BankToken.Status.DISCONNECTED)
    )
    inactive = {user.pk: user for user in users.filter(has_connection, is_active=False)}
    if links.are_used():
        rows = login_sessions.rows().filter(user__is_active=False).select_related("user")
        inactive |= {record.user_id: record.user for record in rows}
    for user in inactive.values():
        grants.end(user, "user_inactive")
        login_sessions.end_all(user, "user_inactive")
    return len(inactive)


def _has_active_column() -> bool:
    try:
        get_user_model()._meta.get_field("is_active")
    except FieldDoesNotExist:
        return False
    return True


def delete_disconnected() -> int:
    """
    Delete the rows of connections that ended EVERIFIN_DISCONNECTED_RETENTION_DAYS ago; return how
    many. One query for each page of them, and some for each.

    After an end on purpose the row stays, without an identity: a login must not connect again.
    """
    long_ago = timezone.now() - timedelta(days=conf.disconnected_retention_days)
    ended = primary(BankToken).filter(
        has_status(BankToken.Status.DISCONNECTED), updated_at__lt=long_ago
    )
    rows = ended.filter(refresh_ciphertext="").exclude(end_reason__in=ON_PURPOSE)
    count = 0
    while page := list(rows.order_by("updated_at").values_list("pk", flat=True)[:PAGE_SIZE]):
        rows.filter(pk__in=page).delete()
        count += len(page)
    return count


def sweep_logins() -> int:
    """End all records of logins whose Django sessions are gone; return how many."""
    count = 0
    while ended := login_sessions.sweep(PAGE_SIZE):
        count += ended
    return count


def finish_disconnecting() -> int:
    """Go on with what ``everifin_disconnect`` or the admin began; return how many were moved."""
    return sum(bulk_disconnect.move_all())


def _delete_before(model: type[Model], column: str, kept: timedelta) -> int:
    """One DELETE, which returns how many rows: Django's own reads the rows first."""
    alias = router.db_for_write(model)
    old = model._default_manager.using(alias).filter(**{f"{column}__lt": timezone.now() - kept})
    return old._raw_delete(alias)


ENDED, GIVEN_UP = "grants ended at Everifin", "grants given up"
TASKS: Mapping[str, Callable[[], int]] = {
    "tokens moved to the outbox after an incident": finish_disconnecting,
    "users who are no longer active": end_inactive,
    "connections whose tokens were deleted": revocation.purge_ended,
    "rows of ended connections deleted": delete_disconnected,
    "logins whose sessions are over": sweep_logins,
    "used login states deleted": delete_old_states,
    "logins that were begun long ago deleted": delete_old_flows,
    "logouts seen deleted": delete_old_logouts,
}

"""
What nobody will come back for is deleted: a little at each login, all of it by
``everifin_revoke_pending``.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import router
from django.db.models import Model, Q
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import grants, links, login_sessions
from everifin_django.models import BankToken, LogoutSeen, PendingRevocation, SpentState

logger = logging.getLogger(__name__)

SPENT_STATES_KEPT = timedelta(hours=2)  # longer than any login may take
LOGOUTS_KEPT = timedelta(minutes=15)
"""How long a login under way may have been overtaken by a logout."""

A_FEW = 10


def by_chance() -> None:
    """Do one of three, so that nothing grows without cron. One query, if nothing is due."""
    tasks: tuple[Callable[[], Any], ...] = (
        delete_old_states,
        delete_old_logouts,
        lambda: login_sessions.sweep(A_FEW),
    )
    random.choice(tasks)()  # noqa: S311 - hides nothing


def delete_old_states() -> None:
    _delete_before(SpentState, "spent_at", SPENT_STATES_KEPT)


def delete_old_logouts() -> None:
    _delete_before(LogoutSeen, "seen_at", LOGOUTS_KEPT)


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
    signal; return how many users that were. Two queries if there are none.
    """
    if not _has_active_column():
        return 0
    users: Any = get_user_model()._base_manager.using(router.db_for_write(get_user_model()))
    has_connection = Q(bank_token__isnull=False) & ~Q(
        bank_token__status=BankToken.Status.DISCONNECTED
    )
    inactive = {user.pk: user for user in users.filter(has_connection, is_active=False)}
    if links.are_used():
        rows = login_sessions.rows().filter(user__is_active=False).select_related("user")
        inactive |= {record.user_id: record.user for record in rows}
    for user in inactive.values():
        grants.disconnect(user, "user_inactive")
        login_sessions.end_all(user, "user_inactive")
    return len(inactive)


def _has_active_column() -> bool:
    try:
        get_user_model()._meta.get_field("is_active")
    except FieldDoesNotExist:
        return False
    return True


def _delete_before(model: type[Model], column: str, kept: timedelta) -> None:
    """One DELETE: Django's own reads the rows first."""
    alias = router.db_for_write(model)
    old = model._default_manager.using(alias).filter(**{f"{column}__lt": timezone.now() - kept})
    old._raw_delete(alias)

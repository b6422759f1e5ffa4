"""What the admin says of a connection: a badge, times, and trouble in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext, pgettext_lazy

from everifin_django.models import BankToken

Health = BankToken.Health

# Shapes that differ without colour.
BADGES: Mapping[str, tuple[str, Any]] = {
    Health.ACTIVE: ("●", pgettext_lazy("badge", "Connected")),
    Health.EXPIRING: ("◐", pgettext_lazy("badge", "Ends soon")),
    Health.DEGRADED: ("▲", pgettext_lazy("badge", "No answer")),
    Health.NEEDS_RECONNECT: ("✖", pgettext_lazy("badge", "Connect again")),
    Health.DISCONNECTED: ("○", pgettext_lazy("badge", "Not connected")),
}

TROUBLES: Mapping[str, Any] = {
    "invalid_grant": _("Everifin ended the session or the consent"),
    "consent_withdrawn": _("The user withdrew the consent at Everifin"),
    "answer_lost": _("An answer of Everifin got lost"),
    "no_refresh_token": _("Everifin gave no refresh token"),
    "no_access_token": _("Everifin gave no access token"),
    "identity_changed": _("Everifin answered for another account"),
    "user_changed": _("The row was given to another user"),
    "unreachable": _("Everifin cannot be reached"),
    "unavailable": _("Everifin does not answer"),
    "unreadable": _("The token cannot be decrypted"),
    "misconfigured": _("A setting of this site is wrong"),
    "spent": _("A refresh had spent the token, and its answer was lost"),
}
"""By a connection's or a pending revocation's last error; of others, the code itself is shown."""

ENDED_BY: Mapping[str, Any] = {
    "disconnected": _("The user disconnected"),
    "logout": _("The user logged out"),
    "backchannel_logout": _("The user logged out at Everifin"),
    "replaced": _("The user connected again"),
    "session_expired": _("The session of the login is over"),
    "purged": _("It was not connected again for a long time"),
    "deleted": _("The user or the connection was deleted"),
    "user_inactive": _("The user is not active"),
    "admin": _("An administrator ended it"),
    "incident": _("It was ended after an incident"),
    "identity_changed": _("Everifin answered for another account"),
    "identity_taken": _("The Everifin account belongs to another user"),
    "no_user": _("The site has no user for this account"),
    "login_failed": _("A login was not finished"),
}
"""By the reason of an end (see ``connections.ends``)."""

NOTHING = "\N{EN DASH}"
UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"))


def badge(health: str) -> str:
    shape, word = BADGES[health]
    return format_html(
        '<span class="everifin-badge everifin-{}"><span aria-hidden="true">{}</span> {}</span>',
        health,
        shape,
        word,
    )


def trouble(connection: BankToken) -> str:
    """Return what keeps *connection* from working, in words; an empty string if nothing does."""
    health = connection.health()
    if health == Health.DISCONNECTED:
        return words_of(ENDED_BY, connection.end_reason)
    if health == Health.NEEDS_RECONNECT:
        code = "user_changed" if connection.is_moved else connection.last_error
        return words_of(TROUBLES, code)
    if health != Health.DEGRADED:
        return ""
    if not connection.failures:
        return _now("Everifin refuses new access tokens")
    return _attempts(connection)


def _attempts(connection: BankToken) -> str:
    parts = [
        words_of(TROUBLES, connection.last_error or "unavailable"),
        ngettext("%(count)d try in vain", "%(count)d tries in vain", connection.failures)
        % {"count": connection.failures},
    ]
    if connection.retry_after is not None:
        parts.append(_now("next try %(when)s") % {"when": relative(connection.retry_after)})
    return ", ".join(parts)


def words_of(words: Mapping[str, Any], code: str) -> str:
    return str(words.get(code, code))


def moment(when: datetime | None) -> str:
    """Return *when* as people say it, with the exact time below; a dash for None."""
    if when is None:
        return NOTHING
    return format_html(
        '<time datetime="{}">{}<small class="everifin-exact">{}</small></time>',
        when.isoformat(timespec="seconds"),
        relative(when),
        date_format(local(when), "SHORT_DATETIME_FORMAT"),
    )


def local(when: datetime) -> datetime:
    return timezone.localtime(when) if timezone.is_aware(when) else when


def relative(when: datetime) -> str:
    """Return how far *when* is from now, in the largest unit that fits."""
    seconds = round((when - timezone.now()).total_seconds())
    size, unit = next((one for one in UNITS if abs(seconds) >= one[0]), UNITS[-1])
    count = abs(seconds) // size
    return _in(unit, count) if seconds > 0 else _ago(unit, count)


def _in(unit: str, count: int) -> str:
    return {
        "days": ngettext("in %(count)d day", "in %(count)d days", count),
        "hours": ngettext("in %(count)d hour", "in %(count)d hours", count),
        "minutes": ngettext("in %(count)d minute", "in %(count)d minutes", count),
    }[unit] % {"count": count}


def _ago(unit: str, count: int) -> str:
    return {
        "days": ngettext("%(count)d day ago", "%(count)d days ago", count),
        "hours": ngettext("%(count)d hour ago", "%(count)d hours ago", count),
        "minutes": ngettext("%(count)d minute ago", "%(count)d minutes ago", count),
    }[unit] % {"count": count}

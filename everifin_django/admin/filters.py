"""By what support narrows the list of connections."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from everifin_django.admin.words import BADGES, TROUBLES
from everifin_django.models import Holds


class ChoiceFilter(admin.SimpleListFilter):
    choices_shown: tuple[tuple[str, Any], ...] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> tuple[tuple[str, Any], ...]:
        return self.choices_shown

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        value = self.value()
        if value is None:
            return queryset
        if value not in dict(self.choices_shown):
            return queryset.none()
        return self.chosen(queryset, value)

    def chosen(self, rows: Any, value: str) -> Any:
        raise NotImplementedError


class HealthFilter(ChoiceFilter):
    title = _("health")
    parameter_name = "health"
    choices_shown = tuple((str(health), word) for health, (_shape, word) in BADGES.items())

    def chosen(self, rows: Any, value: str) -> Any:
        return rows.with_health(value)


class EndsFilter(ChoiceFilter):
    title = _("end")
    parameter_name = "ends"
    choices_shown = (
        ("1h", _("within an hour")),
        ("24h", _("within 24 hours")),
        ("7d", _("within 7 days")),
        ("past", pgettext_lazy("end", "past")),
        ("unknown", pgettext_lazy("end", "unknown")),
    )
    within = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7)}

    def chosen(self, rows: Any, value: str) -> Any:
        now = timezone.now()
        if value == "unknown":
            return rows.connected().filter(refresh_expires_at=None)
        if value == "past":
            return rows.expiring(timedelta(), now=now)
        return rows.expiring(self.within[value], now=now).filter(refresh_expires_at__gt=now)


class ScopeFilter(ChoiceFilter):
    title = _("permission")
    parameter_name = "may"
    choices_shown = (("ais", _("read accounts")), ("pis", _("make payments")))

    def chosen(self, rows: Any, value: str) -> Any:
        return rows.with_scopes(value)


class TroubleFilter(ChoiceFilter):
    title = _("trouble")
    parameter_name = "trouble"
    choices_shown = (
        *((code, words) for code, words in TROUBLES.items()),
        ("other", pgettext_lazy("trouble", "other")),
        ("none", pgettext_lazy("trouble", "none")),
    )

    def chosen(self, rows: Any, value: str) -> Any:
        if value == "none":
            return rows.filter(last_error="")
        if value == "other":
            return rows.exclude(last_error__in=["", *TROUBLES])
        return rows.filter(Q(Holds("last_error", value)))

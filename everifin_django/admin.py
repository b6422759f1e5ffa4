"""
Look at connections and end them. No token material is shown, and nothing can be edited.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from everifin_django.models import BankToken, PendingRevocation


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # Django's own class takes no parameter at run time
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(BankToken)
class BankTokenAdmin(ReadOnlyAdmin):
    list_display = ("user", "health", "scope", "issued_at", "refresh_expires_at", "last_error")
    list_filter = ("status", "last_error", "issued_at")
    list_select_related = ("user",)
    search_help_text = _("Search by user name or connection id.")
    fields = (
        "id",
        "user",
        "health",
        "status",
        "scope",
        "issued_at",
        "access_expires_at",
        "refresh_expires_at",
        "token_version",
        "lease_until",
        "retry_after",
        "failures",
        "last_error",
        "created_at",
        "updated_at",
    )
    actions = ("disconnect",)

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return ("=id", f"user__{self._user_model().USERNAME_FIELD}")

    @admin.display(description=_("health"))
    def health(self, connection: BankToken) -> str:
        return str(connection.health().label)

    @admin.action(
        description=_("Disconnect: end the selected connections here and at Everifin"),
        permissions=["delete"],
    )
    def disconnect(self, request: HttpRequest, queryset: QuerySet[BankToken]) -> None:
        from everifin_django.connections import grants  # the HTTP client loads when it is needed

        ended = []
        for connection in queryset.select_related("user"):
            ended.append(grants.disconnect(connection.user, "admin"))
            self.log_change(request, connection, gettext("Disconnected."))
        waiting = ended.count(False)
        self.message_user(
            request,
            ngettext(
                "%(count)d connection was ended.", "%(count)d connections were ended.", len(ended)
            )
            % {"count": len(ended)},
            messages.SUCCESS,
        )
        if waiting:
            self.message_user(
                request,
                ngettext(
                    "%(count)d of them still has to be ended at Everifin; it waits in the "
                    "pending revocations.",
                    "%(count)d of them still have to be ended at Everifin; they wait in the "
                    "pending revocations.",
                    waiting,
                )
                % {"count": waiting},
                messages.WARNING,
            )

    @staticmethod
    def _user_model() -> Any:
        return BankToken._meta.get_field("user").related_model


@admin.register(PendingRevocation)
class PendingRevocationAdmin(ReadOnlyAdmin):
    list_display = (
        "connection_id",
        "reason",
        "attempts",
        "retry_after",
        "last_error",
        "created_at",
    )
    list_filter = ("reason", "last_error")
    fields = (
        "connection_id",
        "reason",
        "attempts",
        "retry_after",
        "expires_at",
        "last_error",
        "created_at",
    )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Deleting an entry would leave a live grant that nobody knows of.
        return False

"""
Look at connections and end them, search, move and release login links. No token is shown.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from everifin_django.models import BankToken, LoginLink, PendingRevocation


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


@admin.register(LoginLink)
class LoginLinkAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # as above
    """
    Who may log in with which Everifin account. Deleting a link releases the account; changing its
    user moves it. Both are in the log, and the users concerned are told by signals.
    """

    list_display = ("user", "issuer", "made_by", "created_at")
    list_filter = ("made_by",)
    list_select_related = ("user",)
    search_help_text = _("Search by user name, or by the whole subject.")
    fields = ("user", "issuer", "subject", "made_by", "created_at")
    readonly_fields = ("issuer", "subject", "made_by", "created_at")
    raw_id_fields = ("user",)

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        user_model: Any = LoginLink._meta.get_field("user").related_model
        return ("=subject", f"user__{user_model.USERNAME_FIELD}")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: LoginLink, form: Any, change: Any) -> None:
        from everifin_django.connections import grants, links  # the HTTP client loads when needed

        before = LoginLink.objects.select_related("user").get(pk=obj.pk)
        if before.user_id == obj.user_id:
            return
        # Else the connection would keep the account from its new user.
        connected = BankToken.objects.filter(user=before.user_id, identity_digest=before.digest)
        if connected.exists():
            grants.disconnect(before.user, "admin")
        links.move(before, obj.user)

    def delete_model(self, request: HttpRequest, obj: LoginLink) -> None:
        from everifin_django.connections import links  # as above

        links.remove(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[LoginLink]) -> None:
        for obj in queryset.select_related("user"):
            self.delete_model(request, obj)


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

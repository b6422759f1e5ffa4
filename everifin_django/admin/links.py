"""Search, move and release login links."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from everifin_django.admin.base import PrimaryAdmin
from everifin_django.models import BankToken, LoginLink, primary


@admin.register(LoginLink)
class LoginLinkAdmin(PrimaryAdmin):
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

        before = primary(LoginLink).select_related("user").get(pk=obj.pk)
        if before.user_id == obj.user_id:
            return
        # Else the connection would keep the account from its new user.
        connected = primary(BankToken).filter(user=before.user_id, identity_digest=before.digest)
        if connected.exists():
            grants.disconnect(before.user, "admin")
        links.move(before, obj.user)

    def delete_model(self, request: HttpRequest, obj: LoginLink) -> None:
        from everifin_django.connections import links  # as above

        links.remove(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[LoginLink]) -> None:
        for obj in queryset.select_related("user"):
            self.delete_model(request, obj)

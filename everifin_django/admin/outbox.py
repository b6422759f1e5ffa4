"""The outbox: whose grants still have to be ended at Everifin, and why they are not yet."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from everifin_django.admin import search, words
from everifin_django.admin.base import BoundedList, BoundedPaginator, ReadOnlyAdmin, is_overdue
from everifin_django.models import BankToken, PendingRevocation, primary

MOST_SECONDS = 10
"""*Try now* begins no request after that."""


class OutboxList(BoundedList):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        name_users(self.result_list)


def name_users(entries: Any) -> None:
    """Have each entry know its user and its connection, if they still exist. Two queries."""
    model: Any = get_user_model()
    connections = primary(BankToken).filter(pk__in={one.connection_id for one in entries})
    live = set(connections.values_list("pk", flat=True))
    keys = {one.pk: _user_key(model, one.user_pk) for one in entries}
    rows = model._base_manager.using(primary(BankToken).db)
    users = rows.in_bulk({key for key in keys.values() if key is not None})
    for one in entries:
        one.user_named = users.get(keys[one.pk])
        one.has_connection = one.connection_id in live


def _user_key(model: Any, text: str) -> Any:
    """None for what cannot be the key of a user, or is too large for the database."""
    try:
        key = model._meta.pk.to_python(text)
        model._meta.pk.run_validators(key)
    except ValidationError:
        return None
    return key


@admin.register(PendingRevocation)
class PendingRevocationAdmin(ReadOnlyAdmin):
    list_display = ("who", "connection", "why", "attempts", "next_try", "last_answer", "dies")
    list_filter = ("reason",)
    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    sortable_by = ()
    ordering = ("pk",)
    search_fields = ("connection_id",)
    search_help_text = _("Search by connection id or user.")
    fields = (
        "who",
        "connection",
        "why",
        "attempts",
        "next_try",
        "last_answer",
        "dies",
        "created_at",
    )
    readonly_fields = fields
    actions = ("try_now",)
    change_list_template = "admin/everifin_django/pendingrevocation/change_list.html"

    class Media:
        css = {"all": ("everifin_django/admin.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer("refresh_ciphertext")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[OutboxList]:
        return OutboxList

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        entry: Any = super().get_object(request, object_id, from_field)
        if entry is not None:
            name_users([entry])
        return entry

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        users = search.users_named(term, queryset.db) if "\0" not in term else []
        found = Q(user_pk__in=[str(key) for key in users])
        with suppress(ValueError):
            found |= Q(connection_id=uuid.UUID(term))
        return queryset.filter(found), False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        oldest = primary(PendingRevocation).order_by("pk").defer("refresh_ciphertext").first()
        context = {"outbox_warning": is_overdue(oldest), "is_empty": oldest is None}
        return super().changelist_view(request, {**(extra_context or {}), **context})

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Deleting an entry would leave a live grant that nobody knows of.
        return False

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("everifin_django.disconnect_banktoken"))

    @admin.action(description=_("Try now"), permissions=["disconnect"])
    def try_now(self, request: HttpRequest, queryset: QuerySet[PendingRevocation]) -> None:
        """End the selected grants at Everifin, for 10 seconds at most; the rest stays due."""
        from everifin_django.connections import revocation  # the HTTP client loads when needed

        ended, tried = revocation.revoke_some(queryset, max_seconds=MOST_SECONDS)
        self.message_user(
            request,
            ngettext("%(count)d grant was ended.", "%(count)d grants were ended.", ended)
            % {"count": ended},
            messages.SUCCESS if ended else messages.WARNING,
        )
        if tried > ended:
            self.message_user(request, _("The others wait for their next try."), messages.WARNING)

    @admin.display(description=_("user"))
    def who(self, entry: Any) -> str:
        if entry.user_named is not None:
            return str(entry.user_named.get_username())
        if not entry.user_pk:
            return words.NOTHING
        return gettext("deleted user %(key)s") % {"key": entry.user_pk}

    @admin.display(description=_("connection"))
    def connection(self, entry: Any) -> str:
        if not entry.has_connection:
            return str(entry.connection_id)
        url = reverse("admin:everifin_django_banktoken_change", args=[entry.connection_id])
        return format_html('<a href="{}">{}</a>', url, entry.connection_id)

    @admin.display(description=_("reason"))
    def why(self, entry: PendingRevocation) -> str:
        return words.words_of(words.ENDED_BY, entry.reason)

    @admin.display(description=_("next try"))
    def next_try(self, entry: PendingRevocation) -> str:
        return words.moment(entry.retry_after)

    @admin.display(description=_("last answer"))
    def last_answer(self, entry: PendingRevocation) -> str:
        if not entry.last_error:
            return words.NOTHING
        return format_html(
            "{} <code>{}</code>",
            words.TROUBLES.get(entry.last_error, _("Everifin refused")),
            entry.last_error,
        )

    @admin.display(description=_("dies by itself"))
    def dies(self, entry: PendingRevocation) -> str:
        return words.moment(entry.expires_at)

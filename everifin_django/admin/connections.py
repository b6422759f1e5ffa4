"""The connections: what keeps one from working, what to say, Refresh now and Disconnect."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, path, reverse
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from everifin_django.admin import search, words
from everifin_django.admin.base import (
    LISTED,
    BoundedList,
    BoundedPaginator,
    ReadOnlyAdmin,
    Sections,
    is_overdue,
)
from everifin_django.admin.filters import EndsFilter, HealthFilter, ScopeFilter, TroubleFilter
from everifin_django.exceptions import (
    ConsentExpiredError,
    EverifinError,
    TokenMissingError,
    TokenUnreadableError,
)
from everifin_django.models import (
    BankToken,
    PendingRevocation,
    has_status,
    outside_transactions,
    primary,
)

Health = BankToken.Health
CIPHERTEXTS = ("access_ciphertext", "refresh_ciphertext", "id_ciphertext")
MOST_DISCONNECTED = 10_000
NAMES_SHOWN = 20
LIST = "admin:everifin_django_banktoken_changelist"
PAGE = "admin:everifin_django_banktoken_change"
OUTBOX = "admin:everifin_django_pendingrevocation_changelist"

AFTER_FAILED_REFRESH: tuple[tuple[type[EverifinError], Any], ...] = (
    (ConsentExpiredError, _("Everifin refused: the user has to connect again.")),
    (TokenMissingError, _("There is no connection to refresh, or its user is not active.")),
    (TokenUnreadableError, _("The token cannot be decrypted: the site's key is missing.")),
    (EverifinError, _("Everifin does not answer. The connection is kept; try again later.")),
)


@admin.display(description=_("Everifin"))
def connection_link(user: Any) -> str:
    """
    Return the health of a user's connection with a link to it, for ``list_display`` and
    ``readonly_fields`` of the site's own user admin. One query, none with
    ``list_select_related = ["bank_token"]``.
    """
    connection = getattr(user, "bank_token", None)
    if connection is None:
        return words.badge(Health.DISCONNECTED)
    return format_html(
        '<a href="{}">{}</a>',
        reverse(PAGE, args=[connection.pk]),
        words.badge(connection.health()),
    )


@admin.register(BankToken)
class BankTokenAdmin(ReadOnlyAdmin):
    """
    Connections with trouble come first. A first page costs four queries beside those for the staff
    member, whatever the number of connections.
    """

    list_display = ("who", "badge", "ends", "refreshed", "trouble", "may")
    list_filter = (HealthFilter, EndsFilter, ScopeFilter, TroubleFilter)
    list_select_related = ("user",)
    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    # They would count a million rows for each filter; the strip above the list has counts.
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    sortable_by = ()
    search_fields = ("pk",)  # what is searched says ``admin.search``
    search_help_text = _(
        "Search by user name or its beginning; by the whole email, name, subject or connection id."
    )
    fieldsets = (
        (None, {"fields": ("user_link", "badge", "trouble", "may", "scope")}),
        (
            _("Dates"),
            {"fields": ("ends", "refreshed", "next_try", "created_at", "updated_at")},
        ),
        (
            _("Technical"),
            {
                "classes": ("collapse",),
                "fields": (
                    "id",
                    "status",
                    "last_error",
                    "failures",
                    "token_version",
                    "lease_until",
                    "access_expires_at",
                ),
            },
        ),
    )
    actions = ("disconnect",)
    change_list_template = "admin/everifin_django/banktoken/change_list.html"
    change_form_template = "admin/everifin_django/banktoken/change_form.html"

    class Media:
        css = {"all": ("everifin_django/admin.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[BankToken]:
        # Ciphertexts are kilobytes each, and no page shows one.
        rows: Any = super().get_queryset(request)
        return rows.defer(*CIPHERTEXTS).with_incident()  # type: ignore[no-any-return]

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """Name and email are shown to staff who may look at users; to others, the user name is."""
        meta: Any = get_user_model()._meta
        may_see = request.user.has_perm(f"{meta.app_label}.view_{meta.model_name}")
        return ["who" if may_see else "user", *self.list_display[1:]]

    def get_list_display_links(self, request: HttpRequest, list_display: Any) -> list[Any]:
        return list(list_display[:1])

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[BoundedList]:
        return BoundedList

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        return ("-updated_at",)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        return (search.find(queryset, search_term) if search_term else queryset), False

    def get_paginator(
        self, request: HttpRequest, queryset: Any, per_page: int, *args: Any, **kwargs: Any
    ) -> BoundedPaginator:
        # The page of a connection's history asks for a paginator, too.
        is_narrowed = queryset.model is not BankToken or set(request.GET) - {"p"}
        rows = queryset if is_narrowed else Sections(list(queryset.by_trouble().values()))
        return BoundedPaginator(rows, per_page, *args, **kwargs)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        answer: Any = super().changelist_view(request, extra_context)
        change_list = (getattr(answer, "context_data", None) or {}).get("cl")
        if change_list is not None:
            rows = change_list.paginator.object_list
            answer.context_data |= {
                "strip": self._strip(rows),
                "is_cut": any(count >= LISTED for count in rows.counts),
                "listed": LISTED,
                "outbox_warning": is_overdue(_oldest_waiting()),
                "outbox_url": reverse(OUTBOX),
            }
        return answer

    def _strip(self, shown: Sections) -> list[dict[str, Any]]:
        """The counts by health, each with a link to its filter. One query, none if *shown* did."""
        by_trouble = primary(BankToken).by_trouble()  # type: ignore[attr-defined]
        is_all = len(shown.queries) == len(by_trouble)
        counts = shown.counts if is_all else Sections(list(by_trouble.values())).counts
        return [
            {
                "url": f"{reverse(LIST)}?health={health}",
                "badge": words.badge(health),
                "count": count,
                "is_estimate": count >= LISTED,
            }
            for health, count in zip(by_trouble, counts, strict=True)
        ]

    @admin.display(description=_("user"))
    def who(self, connection: BankToken) -> str:
        user: Any = connection.user
        name = user.get_full_name() if hasattr(user, "get_full_name") else ""
        email = getattr(user, user.get_email_field_name(), "") or ""
        return format_html(
            '<span class="everifin-who">{}<small>{}</small></span>',
            name or user.get_username(),
            email if email != user.get_username() or name else "",
        )

    @admin.display(description=_("health"))
    def badge(self, connection: BankToken) -> str:
        return words.badge(connection.health())

    @admin.display(description=_("ends"))
    def ends(self, connection: BankToken) -> str:
        return words.moment(connection.refresh_expires_at)

    @admin.display(description=_("last refreshed"))
    def refreshed(self, connection: BankToken) -> str:
        return words.moment(connection.issued_at)

    @admin.display(description=_("next try"))
    def next_try(self, connection: BankToken) -> str:
        return words.moment(connection.retry_after)

    @admin.display(description=_("trouble"))
    def trouble(self, connection: BankToken) -> str:
        return words.trouble(connection) or words.NOTHING

    @admin.display(description=_("permission"))
    def may(self, connection: BankToken) -> str:
        chosen = [what for scope, what in ScopeFilter.choices_shown if scope in connection.scopes]
        return ", ".join(str(one) for one in chosen) or words.NOTHING

    @admin.display(description=_("user"))
    def user_link(self, connection: BankToken) -> str:
        user: Any = connection.user
        try:
            url = reverse(
                f"admin:{user._meta.app_label}_{user._meta.model_name}_change", args=[user.pk]
            )
        except NoReverseMatch:  # the site's users are not in the admin
            return str(user.get_username())
        return format_html('<a href="{}">{}</a>', url, user.get_username())

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [str(name) for _title, options in self.fieldsets for name in options["fields"]]

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("everifin_django.disconnect_banktoken"))

    def has_refresh_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("everifin_django.refresh_banktoken"))

    def get_urls(self) -> list[Any]:
        # A refresh stores what it was given at once, also where a request is a transaction.
        refresh = outside_transactions(self.admin_site.admin_view(self.refresh_view))
        return [
            path("<uuid:pk>/refresh/", refresh, name="everifin_django_banktoken_refresh"),
            *super().get_urls(),
        ]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        connection = self.get_object(request, object_id)
        context = {**(extra_context or {}), "title": _("Bank connection")}
        if connection is not None:
            context |= self._panel(request, connection)
        return super().change_view(request, object_id, form_url, context)

    def _panel(self, request: HttpRequest, connection: BankToken) -> dict[str, Any]:
        from everifin_django.connections.state import state_of

        state = state_of(connection)
        return {
            "badge": words.badge(state.health),
            "sentence": sentence(state, request.build_absolute_uri(_connect_path())),
            "can_refresh": state.is_connected and self.has_refresh_permission(request),
            "can_disconnect": state.can_be_ended and self.has_disconnect_permission(request),
            "list_url": reverse(LIST),
            "outbox_url": f"{reverse(OUTBOX)}?q={connection.pk}",
        }

    def refresh_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Refresh the tokens of a connection, however good they are. One request to Everifin."""
        if request.method != "POST" or not self.has_refresh_permission(request):
            raise PermissionDenied
        from everifin_django.connections import refresh  # the HTTP client loads when it is needed

        connection = get_object_or_404(self.get_queryset(request), pk=pk)
        try:
            refresh.refresh_now(connection.user)
        except EverifinError as error:
            said = next(said for kind, said in AFTER_FAILED_REFRESH if isinstance(error, kind))
            self.message_user(request, said, messages.ERROR)
        else:
            self.message_user(request, _("The connection was refreshed."), messages.SUCCESS)
        self.log_change(request, connection, gettext("Refreshed by hand."))
        return HttpResponseRedirect(reverse(PAGE, args=[pk]))

    @admin.action(description=_("Disconnect"), permissions=["disconnect"])
    def disconnect(self, request: HttpRequest, queryset: QuerySet[BankToken]) -> Any:
        """
        Ask, then end the selected connections here at once. Everifin is not asked: a slow one would
        hold up the page for each of them.
        """
        live = queryset.order_by().exclude(has_status(BankToken.Status.DISCONNECTED))
        chosen = list(live.values_list("pk", flat=True)[: MOST_DISCONNECTED + 1])
        if len(chosen) > MOST_DISCONNECTED:
            self.message_user(
                request,
                _("These are too many to end here. manage.py everifin_disconnect ends any number."),
                messages.ERROR,
            )
            return None
        # A whole list may have grown since it was confirmed.
        is_confirmed = request.POST.get("confirmed") == "yes"
        if not is_confirmed or len(chosen) > _confirmed_count(request):
            return self._ask(request, live, chosen)
        return self._end(request, live, chosen)

    def _ask(self, request: HttpRequest, live: QuerySet[BankToken], chosen: list[Any]) -> Any:
        context = {
            **self.admin_site.each_context(request),
            "title": _("Disconnect?"),
            "connections": live[:NAMES_SHOWN],
            # Django takes a thousand fields; a whole list is named by its filters.
            "chosen": chosen[:1] if request.POST.get("select_across") == "1" else chosen,
            "is_whole_list": request.POST.get("select_across") == "1",
            "count": len(chosen),
            "here": request.get_full_path(),
            "more": max(0, len(chosen) - NAMES_SHOWN),
            "opts": self.opts,
            "list_url": reverse(LIST),
            "media": self.media,
        }
        return TemplateResponse(request, "admin/everifin_django/banktoken/disconnect.html", context)

    def _end(self, request: HttpRequest, live: QuerySet[BankToken], chosen: list[Any]) -> None:
        from django.contrib.admin.models import CHANGE, LogEntry  # needs the app to be installed

        from everifin_django.connections import (
            bulk_disconnect,  # the HTTP client loads when it is needed
        )

        user: Any = request.user
        waiting = live.exclude(refresh_ciphertext="").count()
        count = bulk_disconnect.disconnect_all(chosen, "admin")
        # One statement, where log_change has one for each row.
        LogEntry._default_manager.db_manager(router.db_for_write(LogEntry)).log_actions(
            user_id=user.pk,
            queryset=[BankToken(pk=pk) for pk in chosen],
            action_flag=CHANGE,
            change_message=gettext("Disconnected."),
        )
        self.message_user(
            request,
            ngettext("%(count)d connection was ended.", "%(count)d connections were ended.", count)
            % {"count": count},
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
                messages.INFO,
            )


def _confirmed_count(request: HttpRequest) -> int:
    """How many connections were named to whom confirmed; without a count, those that are sent."""
    count = request.POST.get("count", "")
    is_number = count.isascii() and count.isdecimal() and len(count) < 10
    return int(count) if is_number else len(request.POST.getlist("_selected_action"))


def sentence(state: Any, connect_url: str) -> str:
    """Return what to say to the customer whose connection has this *state*."""
    again = gettext("Please connect again: %(url)s") % {"url": connect_url}
    if state.health in (Health.NEEDS_RECONNECT, Health.DISCONNECTED):
        return f"{state.reason} {again}".strip()
    if state.health == Health.DEGRADED:
        return str(state.reason)
    if state.health == Health.EXPIRING:
        ends = date_format(words.local(state.ends_at), "DATETIME_FORMAT")
        soon = gettext("Your connection ends on %(date)s.") % {"date": ends}
        return f"{soon} {again}"
    return gettext("Your connection to Everifin works.")


def _connect_path() -> str:
    try:
        return reverse("everifin_django:connect")
    except NoReverseMatch:  # an admin on a URLconf of its own
        return "/"


def _oldest_waiting() -> PendingRevocation | None:
    rows = primary(PendingRevocation).order_by("pk")
    return rows.only("created_at", "retry_after").first()

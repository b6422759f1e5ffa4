"""
Look at connections and end them, search, move and release login links. No token is shown.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.translation import gettext, ngettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from everifin_django.models import (
    BankToken,
    LoginLink,
    Payment,
    PendingRevocation,
    has_status,
    primary,
)


class PrimaryAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # Django's own class takes no parameter at run time
    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # What is chosen here is ended: a replica that lags behind would show what was there before.
        return super().get_queryset(request).using(router.db_for_write(self.model))


class ReadOnlyAdmin(PrimaryAdmin):
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
        """
        End any number of connections here at once. Everifin is not asked: a slow one would hold up
        the page for each of them.
        """
        from django.contrib.admin.models import CHANGE, LogEntry  # needs the app to be installed

        from everifin_django.connections import (
            bulk_disconnect,  # the HTTP client loads when it is needed
        )

        user: Any = request.user
        live = queryset.order_by().exclude(has_status(BankToken.Status.DISCONNECTED))
        waiting = live.exclude(refresh_ciphertext="").count()
        chosen = list(live.values_list("pk", flat=True))
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

    @staticmethod
    def _user_model() -> Any:
        return BankToken._meta.get_field("user").related_model


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


class EndPaymentForm(forms.Form):
    outcome = forms.ChoiceField(
        label=_("It was"),
        choices=[
            ("paid", pgettext_lazy("payment", "paid")),
            ("failed", pgettext_lazy("payment", "not paid")),
        ],
        widget=forms.RadioSelect,
    )
    note = forms.CharField(
        label=_("How do you know?"), max_length=2000, widget=forms.Textarea(attrs={"rows": 3})
    )


@admin.register(Payment)
class PaymentAdmin(ReadOnlyAdmin):
    """
    Look at payments, uncertain ones first; a person with the permission *end_payment* says what
    became of an uncertain one.
    """

    list_display = (
        "key",
        "user",
        "amount",
        "currency",
        "state",
        "awaits",
        "reason",
        "created_at",
    )
    list_filter = ("state", "kind", "created_at")
    list_select_related = ("user",)
    search_help_text = _("Search by key, external id, id at Everifin or user name.")
    fields = (
        "id",
        "user",
        "key",
        "kind",
        "amount",
        "currency",
        "state",
        "awaits",
        "reason",
        "external_id",
        "everifin_id",
        "created_at",
        "sent_at",
        "looked_at",
        "finished_at",
        "note",
        "ended_by",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Payment]:
        rows: Any = super().get_queryset(request)
        ordered: QuerySet[Payment] = rows.uncertain_first()
        return ordered

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        return ()

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        user_model: Any = Payment._meta.get_field("user").related_model
        return ("=key", "=external_id", "=everifin_id", f"user__{user_model.USERNAME_FIELD}")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # A deleted row would free its key, and the payment could be made a second time.
        return False

    def has_end_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("everifin_django.end_payment"))

    def get_urls(self) -> list[Any]:
        end = self.admin_site.admin_view(self.end_view)
        return [
            path("<uuid:pk>/end/", end, name="everifin_django_payment_end"),
            *super().get_urls(),
        ]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        payment = self.get_object(request, object_id)
        is_open = payment is not None and payment.state == Payment.State.UNCERTAIN
        context = {"can_be_ended": is_open and self.has_end_permission(request)}
        return super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )

    def end_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Ask what became of an uncertain payment, and write it down with a note."""
        if not self.has_end_permission(request):
            raise PermissionDenied
        payment = get_object_or_404(self.get_queryset(request), pk=pk)
        form = EndPaymentForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            return self._end(request, payment, form)
        context = {
            **self.admin_site.each_context(request),
            "title": _("What became of this payment?"),
            "payment": payment,
            "form": form,
            "opts": self.opts,
        }
        return TemplateResponse(request, "admin/everifin_django/payment/end.html", context)

    def _end(self, request: HttpRequest, payment: Payment, form: EndPaymentForm) -> HttpResponse:
        from everifin_django.connections import ledger  # the HTTP client loads when it is needed

        answer = HttpResponseRedirect(
            reverse("admin:everifin_django_payment_change", args=[payment.pk])
        )
        try:
            ledger.end_by_person(
                payment,
                request.user,
                is_paid=form.cleaned_data["outcome"] == "paid",
                note=form.cleaned_data["note"],
            )
        except ValueError:
            self.message_user(request, _("This payment is not uncertain any more."), messages.ERROR)
            return answer
        self.log_change(request, payment, gettext("Ended by hand."))
        self.message_user(request, _("The payment was ended."), messages.SUCCESS)
        return answer

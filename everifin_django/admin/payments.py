"""Look at payments, and say what became of an uncertain one."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.translation import gettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from everifin_django.admin.base import ReadOnlyAdmin
from everifin_django.models import Payment


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

"""Which transactions to show, and what to pay."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from django import forms
from django.utils import timezone

from everifin_django.bank.accounts import Direction
from everifin_django.exceptions import InvalidRequestError

MONTHS_AT_FIRST = 6


class DayInput(forms.DateInput):
    input_type = "date"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%d")


class TransactionFilter(forms.Form):
    direction = forms.ChoiceField(
        choices=[
            ("", "Money in and out"),
            (Direction.IN, "Money in"),
            (Direction.OUT, "Money out"),
        ],
        required=False,
    )
    booked_from = forms.DateField(label="From", required=False, widget=DayInput)
    booked_to = forms.DateField(label="To", required=False, widget=DayInput)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        first, last = cleaned.get("booked_from"), cleaned.get("booked_to")
        if first and last and first > last:
            self.add_error("booked_to", "This day is before the first one.")
        return cleaned

    def filters(self) -> dict[str, Any]:
        """Return the arguments for ``transactions()``."""
        return {
            "direction": self.cleaned_data["direction"] or None,
            "booking_date_from": self.cleaned_data["booked_from"],
            "booking_date_to": self.cleaned_data["booked_to"],
        }


def at_first() -> dict[str, str]:
    """Return what the form holds before anybody has filled it in: this month and those before."""
    today = timezone.now().date()
    months = today.year * 12 + today.month - MONTHS_AT_FIRST
    return {"booked_from": date(months // 12, months % 12 + 1, 1).isoformat()}


class PaymentForm(forms.Form):
    """Whom to pay, and how much. What Everifin's own rules are, ``SinglePayment`` knows."""

    sender_iban = forms.ChoiceField(label="From your account")
    recipient_name = forms.CharField(label="To", max_length=140)
    recipient_iban = forms.CharField(label="IBAN", max_length=50)
    amount = forms.DecimalField(max_digits=12, decimal_places=2)
    currency = forms.ChoiceField(choices=[("EUR", "EUR"), ("CZK", "CZK")])
    variable_symbol = forms.CharField(max_length=10, required=False)
    payment_message = forms.CharField(label="Message", max_length=140, required=False)

    def __init__(self, *args: Any, accounts: list[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices = [(one.iban, f"{one.name or 'Account'} {one.iban}") for one in accounts]
        self.fields["sender_iban"].choices = choices  # type: ignore[attr-defined]

    def add_refusal(self, error: InvalidRequestError) -> None:
        """Put what everifin_django refused beside the field it is about."""
        name = re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", error.field or "")
        text = "This is not a valid IBAN." if error.rule == "iban" else "Please check this."
        if name == "redirect_url":
            text = "Open this site by an address with a dot, such as http://127.0.0.1:8000."
        self.add_error(name if name in self.fields else None, text)

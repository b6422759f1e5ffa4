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


class AmountField(forms.DecimalField):
    """
    An amount as people write it: ``12,30``, ``1 230,50``, ``1,230.50``.

    ``1,230`` is refused: it means two things. A text field, because a number field of a browser
    throws away a comma that is typed, and 12,30 would become 1230.
    """

    widget = forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"})

    def to_python(self, value: Any) -> Any:
        is_written = isinstance(value, str) and value.strip()
        return super().to_python(_with_point(value) if is_written else value)


AMOUNT = re.compile(r"(\d+|\d{1,3}([ .,])\d{3}(?:\2\d{3})*)(?:(?!\2)([.,])(\d*))?")
"""Thousands, all with the same sign between them, and decimals behind another one."""


def _with_point(text: str) -> str:
    """*text* with a point before its decimals and nothing between its thousands."""
    found = AMOUNT.fullmatch(re.sub(r"[\s'\u2019]", " ", text.strip()))
    if found is None:
        raise forms.ValidationError("Enter an amount, such as 12.30.")
    whole, decimals = re.sub(r"\D", "", found[1]), found[4] or ""
    # Three digits behind the only point or comma are thousands to some and decimals to others.
    if len(decimals) == 3 and found[2] in {None, " "} and not whole.startswith("0"):
        raise forms.ValidationError(
            "Write this as %(whole)s or %(parts)s.",
            params={"whole": whole + decimals, "parts": f"{whole}.{decimals[:2]}"},
        )
    return f"{whole}.{decimals}"


class PaymentForm(forms.Form):
    """Whom to pay, and how much. What Everifin's own rules are, ``SinglePayment`` knows."""

    sender_iban = forms.ChoiceField(label="From your account", widget=forms.RadioSelect)
    recipient_name = forms.CharField(label="Payee", max_length=140)
    recipient_iban = forms.CharField(
        label="IBAN of the payee",
        max_length=50,
        widget=forms.TextInput(attrs={"autocapitalize": "characters", "spellcheck": "false"}),
    )
    amount = AmountField(max_digits=12, decimal_places=2)
    variable_symbol = forms.CharField(
        label="Variable symbol (optional)", max_length=10, required=False
    )
    payment_message = forms.CharField(label="Message (optional)", max_length=140, required=False)

    def __init__(self, *args: Any, accounts: list[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.currencies = {one.iban: one.currency for one in accounts}
        choices = [(one.iban, f"{one.name or 'Account'} {one.iban}") for one in accounts]
        self.fields["sender_iban"].choices = choices  # type: ignore[attr-defined]

    def draft(self) -> dict[str, str]:
        """Return what was filled in, for the session. The currency is that of the account."""
        texts = {name: str(value) for name, value in self.cleaned_data.items()}
        return {**texts, "currency": str(self.currencies[texts["sender_iban"]])}

    def add_refusal(self, error: InvalidRequestError) -> None:
        """Put what everifin_django refused beside the field it is about."""
        name = re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", error.field or "")
        text = "This is not a valid IBAN." if error.rule == "iban" else "Please check this."
        self.add_error(name if name in self.fields else None, text)

"""Which transactions to show."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any

from django import forms
from django.utils import timezone

from everifin_django.bank import Direction

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
        """Return the arguments for ``transactions()``. The last day counts to its end."""
        last = self.cleaned_data["booked_to"]
        return {
            "direction": self.cleaned_data["direction"] or None,
            "booking_date_from": self.cleaned_data["booked_from"],
            "booking_date_to": last and datetime.combine(last, time.max, UTC),
        }


def at_first() -> dict[str, str]:
    """Return what the form holds before anybody has filled it in: this month and those before."""
    today = timezone.now().date()
    months = today.year * 12 + today.month - MONTHS_AT_FIRST
    return {"booked_from": date(months // 12, months % 12 + 1, 1).isoformat()}

"""Amounts of money as people write them: ``{% load money %}``."""

from __future__ import annotations

from decimal import Decimal

from django import template
from django.utils.formats import number_format

from everifin_django.bank.accounts import Direction, Transaction

register = template.Library()

MINUS, NO_BREAK_SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
SIGNS = {Direction.IN: "+", Direction.OUT: MINUS}


@register.filter
def money(amount: Decimal, currency: str | None) -> str:
    """Show *amount* with at least two decimals, its own sign, and *currency*."""
    exponent = amount.as_tuple().exponent
    decimals = max(2, -exponent) if isinstance(exponent, int) else 2
    number = number_format(abs(amount), decimals, use_l10n=True, force_grouping=True)
    sign = MINUS if amount < 0 else ""
    return f"{sign}{number}{NO_BREAK_SPACE}{currency or ''}".rstrip()


@register.filter
def moved(transaction: Transaction) -> str:
    """Show the amount of *transaction*; its direction gives the sign."""
    sign = SIGNS[transaction.direction] if transaction.direction else ""
    return sign + money(abs(transaction.amount), transaction.currency)

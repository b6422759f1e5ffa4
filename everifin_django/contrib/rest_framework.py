"""
Django REST framework: a permission, an exception handler, and serializers of what the client
returns.

Needs the extra ``drf``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any, get_args, get_type_hints

from django.http import HttpResponse
from rest_framework import serializers, views
from rest_framework.permissions import BasePermission

from everifin_django.bank.accounts import Account, Balance, Bank, Direction, Transaction
from everifin_django.decorators import mark_as_bank_data
from everifin_django.exceptions import EverifinError
from everifin_django.web.responses import answer_for

__all__ = [
    "AccountSerializer",
    "BalanceSerializer",
    "BankSerializer",
    "EverifinConnected",
    "TransactionSerializer",
    "exception_handler",
]


class EverifinConnected(BasePermission):
    """
    Let in users whose token covers the view's ``everifin_scopes``, and make that token fresh.

    Looks at the user whom REST framework authenticated, by a session or by a token. The response is
    private, as with ``everifin_required``. One query while the token is fresh. Errors: as
    ``everifin_required``, for the exception handler.
    """

    def has_permission(self, request: Any, view: Any) -> bool:
        if not request.user or not request.user.is_authenticated:
            return False
        scopes = getattr(view, "everifin_scopes", ())
        request.everifin.ensure_token(frozenset([scopes] if isinstance(scopes, str) else scopes))
        mark_as_bank_data(request)
        return True


def exception_handler(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """
    Answer the package's errors by problem+json, and leave all others to REST framework.

    For the setting ``REST_FRAMEWORK["EXCEPTION_HANDLER"]``. Statuses: 403 to a user who has to
    connect, 503 with Retry-After while Everifin is down, 502 where a payment is uncertain.
    """
    if isinstance(error, EverifinError):
        response = answer_for(context["request"]._request, error, as_page=False)
        if response is not None:
            views.set_rollback()
            return response
    answered: HttpResponse | None = views.exception_handler(error, context)
    return answered


def _choices(**options: Any) -> serializers.Field:
    return serializers.ChoiceField([str(direction) for direction in Direction], **options)


def _decimal(**options: Any) -> serializers.Field:
    return serializers.DecimalField(max_digits=None, decimal_places=None, **options)


def _balances(**options: Any) -> serializers.Field:
    return _serializer(Balance)(many=True, **options)


_FIELDS: dict[Any, Callable[..., serializers.Field]] = {
    str: serializers.CharField,
    date: serializers.DateField,
    datetime: serializers.DateTimeField,
    Decimal: _decimal,
    Direction: _choices,
    Balance: _balances,  # of tuple[Balance, ...], its first argument
}


def _serializer(of: type) -> type[serializers.Serializer]:
    """Return a serializer with a read-only field for each field of *of*, except ``raw``."""
    hints = get_type_hints(of)
    declared = {
        field.name: _field(hints[field.name]) for field in fields(of) if field.name != "raw"
    }
    doc = f"Reads ``{of.__name__}``: its fields as they are, without ``raw``."
    made: type[serializers.Serializer] = type(
        f"{of.__name__}Serializer",
        (serializers.Serializer,),
        declared | {"__module__": __name__, "__doc__": doc},
    )
    return made


def _field(hint: Any) -> serializers.Field:
    kind, *others = get_args(hint) or (hint,)
    return _FIELDS[kind](read_only=True, **({"allow_null": True} if type(None) in others else {}))


BalanceSerializer = _serializer(Balance)
AccountSerializer = _serializer(Account)
TransactionSerializer = _serializer(Transaction)
BankSerializer = _serializer(Bank)

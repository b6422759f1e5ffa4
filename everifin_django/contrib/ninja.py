"""
Django Ninja: a decorator, exception handlers, and schemas of what the client returns.

Needs the extra ``ninja``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import wraps
from typing import Any, get_args, get_type_hints

from asgiref.sync import iscoroutinefunction
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI, Schema
from pydantic import create_model

from everifin_django import decorators
from everifin_django.bank.accounts import Account, Balance, Bank, Transaction
from everifin_django.exceptions import EverifinError
from everifin_django.web.responses import answer_for

__all__ = [
    "AccountSchema",
    "BalanceSchema",
    "BankSchema",
    "TransactionSchema",
    "add_exception_handler",
    "everifin_required",
]


def everifin_required(
    operation: Callable[..., Any] | None = None, *, scopes: Iterable[str] = ()
) -> Callable[..., Any]:
    """
    Decorate an operation as ``decorators.everifin_required`` does a view, below ``@api.get(...)``.

    The user is the one whom Ninja authenticated: what the operation's ``auth`` returned if that is
    a user, else ``request.user``.
    """

    def decorate(operation: Callable[..., Any]) -> Callable[..., Any]:
        required = decorators.everifin_required(scopes=scopes)(operation)
        return _adopt_async(required) if iscoroutinefunction(operation) else _adopt(required)

    return decorate if operation is None else decorate(operation)


def add_exception_handler(api: NinjaAPI) -> None:
    """Let *api* answer the package's errors by problem+json. Statuses: as for REST framework."""
    api.add_exception_handler(EverifinError, _answer)


def _answer(request: HttpRequest, error: Any) -> HttpResponse:
    response = answer_for(request, error, as_page=False)
    if response is None:
        raise error
    return response


def _adopt(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def wrapper(request: Any, *args: Any, **kwargs: Any) -> Any:
        _set_user(request)
        return view(request, *args, **kwargs)

    return wrapper


def _adopt_async(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    async def wrapper(request: Any, *args: Any, **kwargs: Any) -> Any:
        _set_user(request)
        return await view(request, *args, **kwargs)

    return wrapper


def _set_user(request: Any) -> None:
    authenticated = getattr(request, "auth", None)
    if isinstance(authenticated, AbstractBaseUser):
        request.user = authenticated


def _schema(of: type, **replaced: Any) -> Any:
    """Return a schema with the fields of *of*, except ``raw``."""
    hints = get_type_hints(of) | replaced
    declared: dict[str, Any] = {
        field.name: (hints[field.name], None if _is_optional(hints[field.name]) else ...)
        for field in fields(of)
        if field.name != "raw"
    }
    return create_model(f"{of.__name__}Schema", __base__=Schema, __module__=__name__, **declared)


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


BalanceSchema = _schema(Balance)
AccountSchema = _schema(Account, balances=list[BalanceSchema])  # type: ignore[valid-type]
TransactionSchema = _schema(Transaction)
BankSchema = _schema(Bank)

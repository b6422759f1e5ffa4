"""
What Everifin's answers become: accounts, balances and transactions as frozen dataclasses.

Field names are Everifin's in snake_case; ``api_names.DEFAULT_API_FIELDS`` says which of them are
documented. All others are inferred, so each may be None, also where Everifin's value cannot be
read; ``raw`` has the whole object as it came, but for NULs and halves of characters. Amounts are
Decimal, ids are strings, datetimes are aware, and what is a day is a date. A repr shows the id
alone: the rest is a person's data.

A reader knows Everifin's names as they are set when it is made: make one a page, not one a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from everifin_django.bank.decoding import Raw, ReprById, reader, rows_of, text
from everifin_django.conf import conf


class Direction(StrEnum):
    """Which way the money went. Source: Everifin, errors page (documented as an enumeration)."""

    IN = "IN"
    OUT = "OUT"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Balance:
    """
    One balance of an account. ``str()`` is the amount with its currency.

    Units: *amount* in *currency* (ISO 4217). All fields are inferred.
    """

    type: str | None
    amount: Decimal
    currency: str | None
    last_updated: datetime | None
    raw: Raw = field(hash=False)

    def __repr__(self) -> str:
        return f"<Balance {self.type}>"

    def __str__(self) -> str:
        return f"{self.amount:f} {self.currency or ''}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Account(ReprById):
    """
    One bank account the user connected at Everifin. All fields but *id* are inferred.

    A balance without an amount is left out of *balances*; ``raw`` has it.
    """

    id: str
    name: str | None
    owner_name: str | None
    iban: str | None
    bban: str | None
    currency: str | None
    type: str | None
    bank_id: str | None
    bank_name: str | None
    bank_bic: str | None
    country_code: str | None
    status: str | None
    balances: tuple[Balance, ...]
    created_at: datetime | None
    last_updated: datetime | None
    raw: Raw = field(hash=False)

    @property
    def balance(self) -> Balance | None:
        """The first balance Everifin names, which is the one to show."""
        return self.balances[0] if self.balances else None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Transaction(ReprById):
    """
    One movement on an account. The same *id* may come again with a later *last_updated*: overwrite
    what is stored.

    Units: *amount* in *currency* (ISO 4217); the sign says nothing, *direction* does. The two dates
    are as the bank wrote them, in no time zone.
    """

    id: str
    direction: Direction | None
    amount: Decimal
    currency: str | None
    booking_date: date | None
    value_date: date | None
    counterparty_name: str | None
    counterparty_iban: str | None
    counterparty_bic: str | None
    variable_symbol: str | None
    constant_symbol: str | None
    specific_symbol: str | None
    reference: str | None
    payment_message: str | None
    status: str | None
    type: str | None
    created_at: datetime | None
    last_updated: datetime | None
    raw: Raw = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bank(ReprById):
    """
    One bank that users can connect at Everifin. Source: seen in a client of Everifin's payment
    gateway.
    """

    id: str
    name: str | None
    bic: str | None
    country_code: str | None
    raw: Raw = field(hash=False)


def account_reader() -> Callable[[Any], Account]:
    """
    Return a function that makes an account of Everifin's object.

    Errors: the function raises RowError for an object without id.
    """
    read_balance = balance_reader()

    def balances(found: Any, name: str) -> tuple[Balance, ...]:
        return rows_of(found, read_balance, f"Account.{name}")

    return reader(Account, conf.api_fields["account"], balances=balances)


def balance_reader() -> Callable[[Any], Balance]:
    """Return the same for a balance. Errors: RowError for one without an amount."""
    return reader(Balance, conf.api_fields["balance"])


def transaction_reader() -> Callable[[Any], Transaction]:
    """Return the same for a transaction. Errors: RowError for one without id or amount."""
    return reader(Transaction, conf.api_fields["transaction"], direction=_direction)


def bank_reader() -> Callable[[Any], Bank]:
    """Return the same for a bank."""
    return reader(Bank, conf.api_fields["bank"])


_DIRECTIONS = {str(direction): direction for direction in Direction}


def _direction(value: Any, name: str) -> Direction | None:
    return _DIRECTIONS.get(text(value, name) or "")

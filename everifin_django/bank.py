"""
What Everifin's answers become: accounts, balances and transactions as frozen dataclasses.

Field names are Everifin's in snake_case. Everifin publishes the names ``id``, ``created_at``,
``last_updated`` and ``direction``; all others are inferred from its payment objects, so each may be
None, and ``raw`` keeps the whole object as it came. Amounts are Decimal, moments are aware
datetimes, ids are text. A repr shows the id alone: the rest is a person's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

Raw = Mapping[str, Any]

MAX_EXPONENT = 30
"""More digits no amount has, and arithmetic with millions of them would take a worker hours."""


class Direction(StrEnum):
    """Which way the money went. Source: Everifin, errors page (documented as an enumeration)."""

    IN = "IN"
    OUT = "OUT"


_DIRECTIONS = {str(direction): direction for direction in Direction}


class _Shown:
    __slots__ = ()
    id: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Balance:
    """
    One balance of an account. Units: *amount* in *currency* (ISO 4217). All fields are inferred.
    """

    type: str | None
    amount: Decimal
    currency: str | None
    last_updated: datetime | None

    def __repr__(self) -> str:
        return f"<Balance {self.type}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Account(_Shown):
    """One bank account the user connected at Everifin. All fields but *id* are inferred."""

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
class Transaction(_Shown):
    """
    One movement on an account. The same *id* may come again with a later *last_updated*: overwrite
    what is stored.

    Units: *amount* in *currency* (ISO 4217); the sign says nothing, *direction* does.
    """

    id: str
    direction: Direction | None
    amount: Decimal
    currency: str | None
    booking_date: datetime | None
    value_date: datetime | None
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
class Bank(_Shown):
    """
    One bank that users can connect at Everifin. Source: seen in a client of Everifin's payment
    gateway.
    """

    id: str
    name: str | None
    bic: str | None
    country_code: str | None
    raw: Raw = field(hash=False)


def account(raw: Raw) -> Account:
    """
    Return the account that *raw* describes. Errors: ValueError, TypeError or KeyError for another
    shape.
    """
    return Account(
        id=_id(raw),
        name=_text(raw, "name"),
        owner_name=_text(raw, "ownerName"),
        iban=_text(raw, "iban"),
        bban=_text(raw, "bban"),
        currency=_text(raw, "currency"),
        type=_text(raw, "type"),
        bank_id=_text(raw, "bankId"),
        bank_name=_text(raw, "bankName"),
        bank_bic=_text(raw, "bankBic"),
        country_code=_text(raw, "countryCode"),
        status=_text(raw, "status"),
        balances=tuple(balance(one) for one in raw.get("balances") or ()),
        created_at=_moment(raw, "createdAt"),
        last_updated=_moment(raw, "lastUpdated"),
        raw=raw,
    )


def balance(raw: Raw) -> Balance:
    """Return the balance that *raw* describes. Errors: as account."""
    return Balance(
        type=_text(raw, "type"),
        amount=_amount(raw, "amount"),
        currency=_text(raw, "currency"),
        last_updated=_moment(raw, "lastUpdated"),
    )


def transaction(raw: Raw) -> Transaction:
    """Return the transaction that *raw* describes. Errors: as account."""
    return Transaction(
        id=_id(raw),
        direction=_DIRECTIONS.get(_text(raw, "direction") or ""),
        amount=_amount(raw, "amount"),
        currency=_text(raw, "currency"),
        booking_date=_moment(raw, "bookingDate"),
        value_date=_moment(raw, "valueDate"),
        counterparty_name=_text(raw, "counterpartyName"),
        counterparty_iban=_text(raw, "counterpartyIban"),
        counterparty_bic=_text(raw, "counterpartyBic"),
        variable_symbol=_text(raw, "variableSymbol"),
        constant_symbol=_text(raw, "constantSymbol"),
        specific_symbol=_text(raw, "specificSymbol"),
        reference=_text(raw, "reference"),
        payment_message=_text(raw, "paymentMessage"),
        status=_text(raw, "status"),
        type=_text(raw, "type"),
        created_at=_moment(raw, "createdAt"),
        last_updated=_moment(raw, "lastUpdated"),
        raw=raw,
    )


def bank(raw: Raw) -> Bank:
    """Return the bank that *raw* describes. Errors: as account."""
    return Bank(
        id=_id(raw),
        name=_text(raw, "name"),
        bic=_text(raw, "bic"),
        country_code=_text(raw, "countryCode"),
        raw=raw,
    )


def _id(raw: Raw) -> str:
    value = raw["id"]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError("an id is text or a whole number")
    return str(value)


def _text(raw: Raw, name: str) -> str | None:
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        # A text that was cut within an emoji ends in half of it, which no database takes.
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"{name} is not text")
    return str(value)


def _amount(raw: Raw, name: str) -> Decimal:
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise TypeError(f"{name} is not a number")
    try:
        amount = Decimal(value)
    except InvalidOperation:
        amount = Decimal("NaN")
    if amount.is_finite() and abs(amount.adjusted()) <= MAX_EXPONENT:
        return amount
    raise ValueError(f"{name} is no amount of money")


def _moment(raw: Raw, name: str) -> datetime | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a date")
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

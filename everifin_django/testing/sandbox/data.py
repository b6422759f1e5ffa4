"""
The demo banks, accounts and transactions: made up, and the same in every run.

All of it is invented: names and ids of the banks (Everifin documents only that its demo banks are
found under the country EFT), the accounts, and every transaction. Field names that Everifin does
not publish follow its payment objects. Amounts are never negative; the direction carries the sign.

A transaction depends on the account, its month and its number in the month, so a later day adds
rows and changes none but those that settle. Rows of a day appear when the day is over.
"""

from __future__ import annotations

import calendar
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from random import Random
from typing import Any

HISTORY_MONTHS = 36
SETTLING = timedelta(days=2)
COUNTRY = "EFT"


@dataclass(frozen=True, slots=True)
class Bank:
    id: str
    name: str
    bic: str
    code: str

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "countryCode": COUNTRY,
            "countryCodeAlpha2": None,
            "itemType": "BANK",
            "bic": self.bic,
            "logoUrl": None,
        }


BANKS = (
    Bank("eftdemo1", "Demo Bank One", "EFTDSKB1", "9991"),
    Bank("eftdemo2", "Demo Bank Two", "EFTDSKB2", "9992"),
    Bank("eftdemo3", "Demo Bank Three", "EFTDCZP3", "9993"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """An account to make: what it is, and its balance to begin with."""

    name: str
    currency: str
    type: str
    bank: Bank
    cents: int
    is_empty: bool = False


PERSONAL = Plan("Everyday account", "EUR", "PERSONAL", BANKS[0], 184_250)
BUSINESS = Plan("Business account", "EUR", "BUSINESS", BANKS[1], 2_318_400)
TRAVEL = Plan("Prague account", "CZK", "PERSONAL", BANKS[2], 3_120_000)
SAVINGS = Plan("Household account", "EUR", "PERSONAL", BANKS[1], 612_000)

NEW = Plan("New account", "EUR", "PERSONAL", BANKS[0], 0, is_empty=True)
OVERDRAWN = Plan("Overdrawn account", "EUR", "PERSONAL", BANKS[1], -1_250_000)
LONG_NAME = Plan(
    "Joint savings account of the owners of the house in the Street of the Slovak National Rising",
    "CZK",
    "BUSINESS",
    BANKS[2],
    98_765_432_100,
)

PLANS = {
    "alice": (PERSONAL, BUSINESS, TRAVEL),
    "bob": (SAVINGS,),
    "nina": (),
    "oto": (NEW, OVERDRAWN, LONG_NAME),
}
"""Nina has not added a bank yet; Oto has what a page has to bear."""

DEFAULT_PLANS = (PERSONAL, BUSINESS)
"""What a user gets who registered in the sandbox."""

ADDED = {
    bank.id: Plan(f"Account at {bank.name}", "EUR", "PERSONAL", bank, 52_300) for bank in BANKS
}
"""What comes with a bank that a user adds in the app."""


@dataclass(frozen=True, slots=True)
class Account:
    """One demo account. *connected_on* is the day Everifin is supposed to have first read it."""

    id: str
    iban: str
    owner: str
    plan: Plan
    connected_on: date


@lru_cache(maxsize=256)
def accounts(
    sub: str, username: str, name: str, connected_on: date, added: tuple[str, ...] = ()
) -> tuple[Account, ...]:
    """Return the accounts of a user, those of the banks they *added* last."""
    plans = (*PLANS.get(username, DEFAULT_PLANS), *(ADDED[bank_id] for bank_id in added))
    return tuple(_account(f"{sub}/{n}", name, plan, connected_on) for n, plan in enumerate(plans))


def _account(seed: str, owner: str, plan: Plan, connected_on: date) -> Account:
    number = zlib.crc32(seed.encode())
    country = "CZ" if plan.currency == "CZK" else "SK"
    account_id = str(100_000 + number % 900_000)
    return Account(account_id, iban(country, plan.bank.code, number), owner, plan, connected_on)


@lru_cache(maxsize=256)
def account_as_json(account: Account, today: date) -> dict[str, Any]:
    rows = transactions(account, today)
    balance = _balance(account, rows)
    updated = max((row["lastUpdated"] for row in rows), default=_time(account.connected_on, 9))
    lasts_until = account.connected_on + timedelta(days=180)
    while lasts_until <= today:
        lasts_until += timedelta(days=180)
    return {
        "id": account.id,
        "iban": account.iban,
        "bban": account.iban[4:],
        "name": account.plan.name,
        "ownerName": account.owner,
        "currency": account.plan.currency,
        "type": account.plan.type,
        "bankId": account.plan.bank.id,
        "bankName": account.plan.bank.name,
        "bankBic": account.plan.bank.bic,
        "countryCode": COUNTRY,
        "status": "ACTIVE",
        "balances": [
            {
                "type": kind,
                "amount": balance,
                "currency": account.plan.currency,
                "lastUpdated": updated,
            }
            for kind in ("CLBD", "ITAV")
        ],
        "consentExpiresAt": _time(lasts_until, 9),
        "createdAt": _time(account.connected_on, 9),
        "lastUpdated": updated,
    }


def _balance(account: Account, rows: tuple[dict[str, Any], ...]) -> float:
    """Return the balance to begin with and all that happened since the account was connected."""
    since = _time(account.connected_on)
    signs = {"IN": 1, "OUT": -1}
    moved: int = sum(
        signs[row["direction"]] * round(row["amount"] * 100)
        for row in rows
        if row["bookingDate"] >= since
    )
    return (account.plan.cents + moved) / 100


@lru_cache(maxsize=256)
def transactions(account: Account, today: date) -> tuple[dict[str, Any], ...]:
    """
    Return what the API knows of *account* on *today*: at least 36 months, newest first.

    Shape: the JSON objects of the API; they are shared, so nobody may change them.
    """
    drafts = [
        (day, number, row)
        for first in _months(today)
        for number, (day, row) in enumerate(_month(account, first))
        if day < today
    ]
    drafts.sort(key=lambda draft: (draft[0], draft[1]), reverse=True)
    # The history was stored newest first, so the older of its rows carry the later times.
    stored_at = _datetime(account.connected_on, 9)
    finished = []
    for day, number, row in drafts:
        created_at = _datetime(day, 22, 30) + timedelta(seconds=7 * number, milliseconds=number)
        if day < account.connected_on:
            stored_at += timedelta(milliseconds=120)
            created_at = stored_at
        finished.append(_finish(account, day, number, row, created_at, today))
    return tuple(finished)


def _finish(
    account: Account, day: date, number: int, row: dict[str, Any], created_at: datetime, today: date
) -> dict[str, Any]:
    """Add what depends on time: a card payment is PENDING until it settles, then changes once."""
    settles_at = _datetime(day + SETTLING, 22, 30) + timedelta(milliseconds=number)
    updated_at, status, value_date = created_at, "BOOKED", day
    if row["type"] == "CARD":
        value_date = day + SETTLING
        if settles_at > created_at and settles_at.date() < today:
            updated_at = settles_at
        elif settles_at > created_at:
            status, value_date = "PENDING", day
    return {
        "id": f"{account.id}{(day.year * 12 + day.month) % 10_000:04d}{number:03d}",
        **row,
        "currency": account.plan.currency,
        "bookingDate": _time(day),
        "valueDate": _time(value_date),
        "status": status,
        "createdAt": iso(created_at),
        "lastUpdated": iso(updated_at),
    }


def _months(today: date) -> Iterator[date]:
    this_month = today.year * 12 + today.month - 1
    for month in range(this_month - HISTORY_MONTHS, this_month + 1):
        yield date(month // 12, month % 12 + 1, 1)


# What happens in a month

SHOPS = ("Potraviny Na rohu", "Pekáreň Klas", "Lekáreň Slnko", "Kníhkupectvo Epos", "Kaviareň Uhol")
FUEL = ("Pumpa Sever", "Pumpa Juh")
FRIENDS = ("Jana Vzorová", "Peter Príklad", "Eva Skúšobná", "Milan Testovací")
CUSTOMERS = ("Ukážka s.r.o.", "Vzorka a.s.", "Príklad spol. s r.o.", "Skúška s.r.o.", "Model a.s.")
SUPPLIERS = ("Papier Plus s.r.o.", "Dielňa Dub", "Hosting Oblak a.s.", "Kuriér Blesk s.r.o.")


@dataclass(frozen=True, slots=True)
class Habit:
    """Something that happens so many *times* a month, for between so many *cents*."""

    direction: str
    type: str
    parties: tuple[str, ...]
    message: str
    cents: tuple[int, int]
    times: tuple[int, int] = (1, 1)
    day: int | None = None
    has_symbols: bool = False


HABITS = {
    "PERSONAL": (
        Habit("IN", "TRANSFER", ("Zamestnávateľ Vzor s.r.o.",), "Mzda", (214_000, 216_500), day=10),
        Habit("OUT", "TRANSFER", ("Bytové družstvo",), "Nájom", (62_000, 62_000), day=3),
        Habit("OUT", "DIRECT_DEBIT", ("Energie Prúd a.s.",), "Elektrina", (6_800, 9_400), day=14),
        Habit("OUT", "DIRECT_DEBIT", ("Telefón Echo a.s.",), "Telefón", (1_990, 2_490), day=18),
        Habit("OUT", "FEE", ("Demo Bank",), "Poplatok za účet", (300, 300), day=28),
        Habit("OUT", "CARD", SHOPS, "Platba kartou", (180, 7_400), (16, 24)),
        Habit("OUT", "CARD", FUEL, "Platba kartou", (3_200, 6_900), (1, 3)),
        Habit("OUT", "TRANSFER", FRIENDS, "Vyrovnanie", (500, 8_000), (1, 4)),
        Habit("IN", "TRANSFER", FRIENDS, "Ďakujem", (500, 6_000), (0, 3)),
    ),
    "BUSINESS": (
        Habit("IN", "TRANSFER", CUSTOMERS, "Faktúra", (12_000, 240_000), (9, 15), has_symbols=True),
        Habit("OUT", "TRANSFER", SUPPLIERS, "Faktúra", (4_000, 120_000), (7, 12), has_symbols=True),
        Habit("OUT", "TRANSFER", FRIENDS, "Mzda", (130_000, 190_000), (2, 2), day=12),
        Habit("OUT", "TRANSFER", ("Daňový úrad",), "DPH", (40_000, 160_000), day=25),
        Habit("OUT", "CARD", FUEL, "Platba kartou", (3_800, 9_900), (2, 5)),
        Habit("OUT", "FEE", ("Demo Bank",), "Poplatok za účet", (900, 900), day=28),
    ),
}
RATES = {"EUR": 1, "CZK": 25}


@lru_cache(maxsize=4096)
def _month(account: Account, first: date) -> tuple[tuple[date, dict[str, Any]], ...]:
    """Return (day, row) of everything that happens in a month; its order never changes."""
    if account.plan.is_empty:
        return ()
    random = Random(f"{account.iban}/{first.isoformat()}")
    last_day = calendar.monthrange(first.year, first.month)[1]
    happenings = []
    for habit in HABITS[account.plan.type]:
        for _ in range(random.randint(*habit.times)):
            day = habit.day or random.randint(1, last_day)
            happenings.append((first.replace(day=day), _row(random, account, habit)))
    return tuple(happenings)


def _row(random: Random, account: Account, habit: Habit) -> dict[str, Any]:
    party = random.choice(habit.parties)
    cents = random.randint(*habit.cents) * RATES[account.plan.currency]
    symbol = f"{random.randint(2_020_000_001, 2_029_999_999)}" if habit.has_symbols else None
    is_transfer = habit.type == "TRANSFER"
    bank = BANKS[zlib.crc32(party.encode()) % len(BANKS)]
    return {
        "direction": habit.direction,
        "amount": cents / 100,
        "type": habit.type,
        "counterpartyName": party,
        "counterpartyIban": _iban_of(party, bank.code) if is_transfer else None,
        "counterpartyBic": bank.bic if is_transfer else None,
        "variableSymbol": symbol,
        "constantSymbol": "0308" if symbol else None,
        "specificSymbol": None,
        "reference": None,
        "paymentMessage": f"{habit.message} {symbol}" if symbol else habit.message,
    }


# Account numbers and times


@lru_cache(maxsize=256)
def _iban_of(party: str, bank_code: str) -> str:
    return iban("SK", bank_code, zlib.crc32(party.encode()))


def iban(country: str, bank_code: str, number: int) -> str:
    """Return a Slovak or Czech IBAN with a right checksum. Source: ISO 13616-1 and ISO 7064."""
    bban = f"{bank_code}{number:016d}"
    digits = "".join(str(int(character, 36)) for character in f"{bban}{country}00")
    return f"{country}{98 - int(digits) % 97:02d}{bban}"


def iso(moment: datetime) -> str:
    """Return *moment* as the API writes it: UTC, milliseconds, Z."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _datetime(day: date, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


def _time(day: date, hour: int = 0) -> str:
    return iso(_datetime(day, hour))


def connection_day(opened_on: date) -> date:
    """Return the first day of the month two months before the sandbox was first opened."""
    month = opened_on.year * 12 + opened_on.month - 3
    return date(month // 12, month % 12 + 1, 1)

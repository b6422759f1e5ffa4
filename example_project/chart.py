"""Money in and out by month, measured for a picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from everifin_django.bank.accounts import Direction, Transaction

MOST_MONTHS = 36
WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 4, 636, 24, 172
MOST_BAR_WIDTH = 26
NAME_WIDTH, NAME_GAP = 76, 24


@dataclass(frozen=True, slots=True)
class Bar:
    """Units: those of the picture, from its top left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Month:
    """*money_in* and *money_out* are not negative. *name_x* is None where a name has no room."""

    first: date
    money_in: Decimal
    money_out: Decimal
    bar_in: Bar
    bar_out: Bar
    name_x: int | None

    @property
    def difference(self) -> Decimal:
        return self.money_in - self.money_out


@dataclass(frozen=True, slots=True)
class Chart:
    """The months oldest first, all in *currency*. *most* is what the highest bar stands for."""

    months: tuple[Month, ...]
    most: Decimal
    currency: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def by_month(transactions: Iterable[Transaction], currency: str) -> Chart | None:
    """
    Return the chart of those *transactions* that are in *currency*, None if there are none.

    Months without any are in it as well. Only the last three years are drawn.
    """
    sums: dict[date, dict[Direction, Decimal]] = {}
    for transaction in transactions:
        booked = transaction.booking_date
        if booked and transaction.direction and transaction.currency == currency:
            of_month = sums.setdefault(booked.replace(day=1), defaultdict(Decimal))
            of_month[transaction.direction] += abs(transaction.amount)
    if not sums:
        return None
    firsts = _months_until(min(sums), max(sums))
    most = max(amount for first in firsts for amount in sums.get(first, {}).values())
    months = [
        _month(first, sums.get(first, {}), most, index, len(firsts))
        for index, first in enumerate(firsts)
    ]
    return Chart(tuple(months), most, currency)


def _months_until(earliest: date, last: date) -> list[date]:
    """Return the first days of the months in between, at most the last three years of them."""
    end = last.year * 12 + last.month - 1
    start = max(earliest.year * 12 + earliest.month - 1, end - MOST_MONTHS + 1)
    return [date(month // 12, month % 12 + 1, 1) for month in range(start, end + 1)]


def _month(
    first: date, sums: dict[Direction, Decimal], most: Decimal, index: int, count: int
) -> Month:
    room = (RIGHT - LEFT) / count
    middle = round(LEFT + room * (index + 0.5))
    width = max(2, min(MOST_BAR_WIDTH, round(room * 0.38)))
    money_in = sums.get(Direction.IN, Decimal(0))
    money_out = sums.get(Direction.OUT, Decimal(0))
    every = math.ceil((NAME_WIDTH + NAME_GAP) / room)
    is_named = (count - 1 - index) % every == 0
    return Month(
        first=first,
        money_in=money_in,
        money_out=money_out,
        bar_in=_bar(middle - width - 1, width, money_in, most),
        bar_out=_bar(middle + 1, width, money_out, most),
        name_x=min(middle, RIGHT - NAME_WIDTH // 2) if is_named else None,
    )


def _bar(x: int, width: int, amount: Decimal, most: Decimal) -> Bar:
    height = round((BOTTOM - TOP) * amount / most) if most else 0
    return Bar(x, BOTTOM - height, width, height)

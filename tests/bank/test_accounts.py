"""What Everifin's objects become, and what becomes of objects that are not Everifin's."""

import pickle
import sys
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from everifin_django.api_names import DEFAULT_API_FIELDS
from everifin_django.bank import accounts
from everifin_django.bank.accounts import Direction
from everifin_django.bank.decoding import RowError
from everifin_django.http.strict_json import strict_json

ACCOUNT = """{
    "id": "12", "iban": "SK3112000000198742637541", "bban": "12000000198742637541",
    "name": "Osobný účet", "ownerName": "Alica Ukážková", "currency": "EUR", "type": "PERSONAL",
    "bankId": "demo", "bankName": "Demo Bank", "bankBic": "DEMOSKBX", "countryCode": "EFT",
    "status": "ACTIVE",
    "balances": [
        {"type": "CLBD", "amount": 1250.50, "currency": "EUR",
         "lastUpdated": "2025-03-04T08:11:02.120Z"},
        {"type": "ITAV", "amount": "1200", "currency": "EUR", "lastUpdated": null}
    ],
    "createdAt": "2025-03-04T08:11:02.120Z", "lastUpdated": "2025-03-04T08:11:02.120+00:00"
}"""
TRANSACTION = """{
    "id": 70231, "direction": "IN", "amount": 125.50, "currency": "EUR",
    "bookingDate": "2025-03-04T00:00:00.000Z", "valueDate": "2025-03-05",
    "counterpartyName": "Ukážka s.r.o.", "counterpartyIban": "SK3112000000198742637541",
    "counterpartyBic": "DEMOSKBX", "variableSymbol": "20250017", "constantSymbol": "0308",
    "specificSymbol": 7, "reference": "ref", "paymentMessage": "Faktúra 17",
    "status": "BOOKED", "type": "TRANSFER",
    "createdAt": "2025-03-04T08:11:02.120Z", "lastUpdated": "2025-03-04T09:11:02.120+01:00"
}"""
MOMENT = datetime(2025, 3, 4, 8, 11, 2, 120_000, tzinfo=UTC)
LEAST = {"id": "1", "amount": 1}


def read_account(raw: Any) -> accounts.Account:
    return accounts.account_reader()(raw)


def read_balance(raw: Any) -> accounts.Balance:
    return accounts.balance_reader()(raw)


def read_transaction(raw: Any) -> accounts.Transaction:
    return accounts.transaction_reader()(raw)


def read_bank(raw: Any) -> accounts.Bank:
    return accounts.bank_reader()(raw)


DECODERS: list[Callable[..., Any]] = [read_account, read_transaction, read_bank]
TEXTS = {
    read_account: ["name", "iban", "currency", "status", "bankId"],
    read_transaction: ["currency", "variableSymbol", "counterpartyName", "direction", "type"],
    read_bank: ["name", "bic", "countryCode"],
    read_balance: ["type", "currency"],
}
MOMENTS = {
    read_account: ["createdAt", "lastUpdated"],
    read_transaction: ["createdAt", "lastUpdated", "bookingDate", "valueDate"],
    read_balance: ["lastUpdated"],
}


def cases(fields: dict[Any, list[str]]) -> list[tuple[Any, str]]:
    return [(decode, name) for decode, names in fields.items() for name in names]


def test_an_account_has_all_its_fields():
    raw = strict_json(ACCOUNT)
    booked, available = raw["balances"]
    balances = (
        accounts.Balance(
            type="CLBD",
            amount=Decimal("1250.50"),
            currency="EUR",
            last_updated=MOMENT,
            raw=booked,
        ),
        accounts.Balance(
            type="ITAV", amount=Decimal(1200), currency="EUR", last_updated=None, raw=available
        ),
    )
    assert read_account(raw) == accounts.Account(
        id="12",
        name="Osobný účet",
        owner_name="Alica Ukážková",
        iban="SK3112000000198742637541",
        bban="12000000198742637541",
        currency="EUR",
        type="PERSONAL",
        bank_id="demo",
        bank_name="Demo Bank",
        bank_bic="DEMOSKBX",
        country_code="EFT",
        status="ACTIVE",
        balances=balances,
        created_at=MOMENT,
        last_updated=MOMENT,
        raw=raw,
    )
    assert read_account(raw).balance == balances[0]


def test_a_transaction_has_all_its_fields():
    raw = strict_json(TRANSACTION)
    assert read_transaction(raw) == accounts.Transaction(
        id="70231",
        direction=Direction.IN,
        amount=Decimal("125.50"),
        currency="EUR",
        booking_date=date(2025, 3, 4),
        value_date=date(2025, 3, 5),
        counterparty_name="Ukážka s.r.o.",
        counterparty_iban="SK3112000000198742637541",
        counterparty_bic="DEMOSKBX",
        variable_symbol="20250017",
        constant_symbol="0308",
        specific_symbol="7",
        reference="ref",
        payment_message="Faktúra 17",
        status="BOOKED",
        type="TRANSFER",
        created_at=MOMENT,
        last_updated=MOMENT,
        raw=raw,
    )


def test_a_bank_has_all_its_fields():
    raw = {"id": "fkbaredn", "name": "Demo", "bic": "DEMOSKBX", "countryCode": "EFT", "more": [1]}
    expected = accounts.Bank(
        id="fkbaredn", name="Demo", bic="DEMOSKBX", country_code="EFT", raw=raw
    )
    assert read_bank(raw) == expected


OBJECTS = [
    ("account", read_account, ACCOUNT),
    ("balance", read_balance, '{"type": "CLBD", "amount": 1, "currency": "EUR"}'),
    ("transaction", read_transaction, TRANSACTION),
    ("bank", read_bank, '{"id": "1", "name": "Demo", "bic": "DEMOSKBX", "countryCode": "EFT"}'),
]


@pytest.mark.parametrize(("kind", "decode", "text"), OBJECTS)
def test_every_name_but_the_ids_can_be_corrected(settings, kind, decode, text):
    raw = strict_json(text)
    plain = decode(raw)
    names = DEFAULT_API_FIELDS[kind]
    assert {"id", "raw"} | names.keys() >= {field.name for field in fields(plain)} >= names.keys()
    settings.EVERIFIN_API_FIELDS = {kind: {ours: f"x-{theirs}" for ours, theirs in names.items()}}
    moved = {name if name == "id" else f"x-{name}": value for name, value in raw.items()}
    assert replace(decode(moved), raw=raw) == plain


def test_a_reader_keeps_the_names_it_was_made_with(settings):
    before = accounts.bank_reader()
    settings.EVERIFIN_API_FIELDS = {"bank": {"bic": "swift"}}
    raw = {"id": "1", "bic": "A", "swift": "B"}
    assert (before(raw).bic, read_bank(raw).bic) == ("A", "B")


def test_cents_are_kept():
    assert str(read_transaction(strict_json(TRANSACTION)).amount) == "125.50"


def test_missing_fields_are_none():
    account, transaction = read_account({"id": "1"}), read_transaction(LEAST)
    assert (account.iban, account.created_at, account.balances) == (None, None, ())
    assert account.balance is None
    assert (transaction.direction, transaction.value_date) == (None, None)
    assert read_account({"id": "1", "iban": None, "balances": None}).iban is None


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(("value", "text"), [("12", "12"), (12, "12"), ("a-b", "a-b"), (0, "0")])
def test_ids_are_text(decode, value, text):
    assert decode({**LEAST, "id": value}).id == text


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "value",
    [None, True, 1.5, Decimal("1.5"), [], {}, "", "x" * 256, pytest.param(10**300, id="big")],
)
def test_an_id_of_another_kind_is_refused(decode, value):
    with pytest.raises(RowError, match="its id"):
        decode({**LEAST, "id": value})


@pytest.mark.parametrize("decode", DECODERS)
def test_an_object_without_id_is_refused(decode):
    with pytest.raises(RowError, match="id"):
        decode({"amount": 1})


@pytest.mark.parametrize(("text", "direction"), [("IN", Direction.IN), ("OUT", Direction.OUT)])
def test_a_direction_is_a_member(text, direction):
    assert read_transaction({**LEAST, "direction": text}).direction is direction
    assert direction == text


@pytest.mark.parametrize("text", ["in", "BOTH", "", None])
def test_an_unknown_direction_is_none(text):
    transaction = read_transaction({**LEAST, "direction": text})
    assert transaction.direction is None
    assert transaction.raw["direction"] == text


@pytest.mark.parametrize(
    ("value", "amount"),
    [(1, "1"), (-1, "-1"), ("1.50", "1.50"), (Decimal("0.10"), "0.10"), (0, "0"), ("1e3", "1E+3")],
)
def test_amounts_are_exact(value, amount):
    assert str(read_transaction({**LEAST, "amount": value}).amount) == amount


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, b"1"])
def test_an_amount_of_another_kind_is_refused(value):
    with pytest.raises(RowError, match="its amount"):
        read_transaction({**LEAST, "amount": value})


@pytest.mark.parametrize(
    "value",
    [
        *["", "x", "NaN", "Infinity", "-inf", "1e31", "1e-31", "1e999999999", 10**31],
        *["1_000", "٣", " 1", "1 ", "1\n", "1,50", "1 000", "0x1", "--1", "1e", "+", "1.", ".5"],
    ],
)
def test_an_amount_that_is_none_is_refused(value):
    with pytest.raises(RowError, match="its amount"):
        read_transaction({**LEAST, "amount": value})


def test_an_amount_must_be_there():
    with pytest.raises(RowError, match="amount"):
        read_transaction({"id": "1"})
    with pytest.raises(RowError, match="amount"):
        read_balance({})


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-03-04T08:11:02.120Z", MOMENT),
        ("2025-03-04T08:11:02.120+00:00", MOMENT),
        ("2025-03-04T09:11:02.120+01:00", MOMENT),
        ("2025-03-04T08:11:02.120", MOMENT),
        ("2025-03-04T08:11:02Z", MOMENT.replace(microsecond=0)),
        ("2025-03-04", datetime(2025, 3, 4, tzinfo=UTC)),
    ],
)
def test_datetimes_are_aware(text, moment):
    got = read_account({"id": "1", "createdAt": text}).created_at
    assert got is not None
    assert got == moment
    assert got.tzinfo is not None


def test_a_datetime_keeps_its_time_zone():
    got = read_account({"id": "1", "createdAt": "2025-03-04T09:11:02+01:00"}).created_at
    assert got is not None
    assert got.tzinfo == timezone(timedelta(hours=1))


@pytest.mark.parametrize(("decode", "name"), cases(MOMENTS))
@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "0000-00-00",
        "2025-02-30",
        "10000-01-01",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        5,
        True,
        ["2025-03-04"],
    ],
)
def test_a_datetime_that_cannot_be_read_is_none(decode, name, value):
    assert_none(decode, name, value)


@pytest.mark.parametrize(("decode", "name"), cases(TEXTS))
@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, 1.5])
def test_a_string_that_cannot_be_read_is_none(decode, name, value):
    assert_none(decode, name, value)


def assert_none(decode: Any, name: str, value: Any) -> None:
    read = decode({**LEAST, name: value})
    ours = "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
    assert getattr(read, ours) is None
    assert read.raw[name] == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-03-04", date(2025, 3, 4)),
        ("2025-03-04T00:00:00.000Z", date(2025, 3, 4)),
        ("2025-03-04T00:00:00+01:00", date(2025, 3, 4)),
        ("2025-03-04T23:30:00-05:00", date(2025, 3, 4)),
    ],
)
def test_a_day_is_as_it_was_written(text, expected):
    """In UTC, or in the site's time zone, it could be the day before or after."""
    row = read_transaction({**LEAST, "bookingDate": text, "valueDate": text})
    assert (row.booking_date, row.value_date) == (expected, expected)
    assert type(row.booking_date) is date


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (Decimal("1.50"), "1.50"), ("", "")])
def test_numbers_for_texts_become_texts(value, text):
    assert read_transaction({**LEAST, "variableSymbol": value}).variable_symbol == text


@pytest.mark.parametrize(
    "balances",
    [
        5,
        True,
        "CLBD",
        [5],
        ["CLBD"],
        [None],
        [{}],
        {"a": {}},
        [{"amount": None}],
        [{"amount": "x"}],
    ],
)
def test_balances_that_cannot_be_read_are_left_out(balances):
    account = read_account({"id": "1", "balances": balances})
    assert (account.balances, account.balance, account.raw["balances"]) == ((), None, balances)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"amount": Decimal("1250.50"), "currency": "EUR"}, "1250.50 EUR"),
        ({"amount": "1e3", "currency": "CZK"}, "1000 CZK"),
        ({"amount": -5}, "-5"),
    ],
)
def test_a_balance_reads_as_its_amount(raw, text):
    assert str(read_balance(raw)) == text


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("raw", [None, 5, "text", [], ["id"]])
def test_what_is_no_object_is_refused(decode, raw):
    with pytest.raises(RowError):
        decode(raw)


def test_a_repr_shows_the_id_alone():
    account = read_account(strict_json(ACCOUNT))
    transaction = read_transaction(strict_json(TRANSACTION))
    assert repr(account) == "<Account 12>"
    assert repr(transaction) == "<Transaction 70231>"
    assert repr(read_bank({"id": "demo", "name": "Demo"})) == "<Bank demo>"
    assert repr(account.balances) == "(<Balance CLBD>, <Balance ITAV>)"
    assert str(account) == "<Account 12>"


@pytest.mark.parametrize("decode", DECODERS)
def test_objects_are_frozen(decode):
    with pytest.raises(FrozenInstanceError):
        decode(LEAST).id = "2"
    with pytest.raises(FrozenInstanceError):
        del decode(LEAST).raw


def test_objects_can_be_kept_in_sets_and_caches():
    account = read_account(strict_json(ACCOUNT))
    assert len({account, read_account(strict_json(ACCOUNT))}) == 1
    assert pickle.loads(pickle.dumps(account)) == account  # noqa: S301


@pytest.mark.parametrize("decode", DECODERS)
def test_what_is_read_is_as_what_is_made(decode):
    """Readers go round the constructor, which nobody is to notice."""
    read = decode(LEAST)
    made = type(read)(**{one.name: getattr(read, one.name) for one in fields(read)})
    assert (made, hash(made)) == (read, hash(read))
    assert replace(read, id="2").id == "2"
    assert copy(read) == deepcopy(read) == read
    assert not hasattr(read, "__dict__")
    assert sys.getsizeof(read) == sys.getsizeof(made)


def test_another_unknown_field_is_another_object():
    assert read_bank({"id": "1", "more": 1}) != read_bank({"id": "1", "more": 2})

"""What Everifin's objects become, and what becomes of objects that are not Everifin's."""

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from everifin_django import bank
from everifin_django.bank import Direction
from everifin_django.transport import strict_json

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
DECODERS: list[Callable[..., Any]] = [bank.account, bank.transaction, bank.bank]
TEXTS = {
    bank.account: ["name", "iban", "currency", "status", "bankId"],
    bank.transaction: ["currency", "variableSymbol", "counterpartyName", "direction", "type"],
    bank.bank: ["name", "bic", "countryCode"],
    bank.balance: ["type", "currency"],
}
MOMENTS = {
    bank.account: ["createdAt", "lastUpdated"],
    bank.transaction: ["createdAt", "lastUpdated", "bookingDate", "valueDate"],
    bank.balance: ["lastUpdated"],
}


def cases(fields: dict[Any, list[str]]) -> list[tuple[Any, str]]:
    return [(decode, name) for decode, names in fields.items() for name in names]


def test_an_account_has_all_its_fields():
    raw = strict_json(ACCOUNT)
    balances = (
        bank.Balance(type="CLBD", amount=Decimal("1250.50"), currency="EUR", last_updated=MOMENT),
        bank.Balance(type="ITAV", amount=Decimal(1200), currency="EUR", last_updated=None),
    )
    assert bank.account(raw) == bank.Account(
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
    assert bank.account(raw).balance == balances[0]


def test_a_transaction_has_all_its_fields():
    raw = strict_json(TRANSACTION)
    assert bank.transaction(raw) == bank.Transaction(
        id="70231",
        direction=Direction.IN,
        amount=Decimal("125.50"),
        currency="EUR",
        booking_date=datetime(2025, 3, 4, tzinfo=UTC),
        value_date=datetime(2025, 3, 5, tzinfo=UTC),
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
    expected = bank.Bank(id="fkbaredn", name="Demo", bic="DEMOSKBX", country_code="EFT", raw=raw)
    assert bank.bank(raw) == expected


def test_cents_are_kept():
    assert str(bank.transaction(strict_json(TRANSACTION)).amount) == "125.50"


def test_missing_fields_are_none():
    account, transaction = bank.account({"id": "1"}), bank.transaction(LEAST)
    assert (account.iban, account.created_at, account.balances) == (None, None, ())
    assert account.balance is None
    assert (transaction.direction, transaction.value_date) == (None, None)
    assert bank.account({"id": "1", "iban": None, "balances": None}).iban is None


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(("value", "text"), [("12", "12"), (12, "12"), ("a-b", "a-b"), (0, "0")])
def test_ids_are_text(decode, value, text):
    assert decode({**LEAST, "id": value}).id == text


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("value", [None, True, 1.5, Decimal("1.5"), [], {}])
def test_an_id_of_another_kind_is_refused(decode, value):
    with pytest.raises(TypeError):
        decode({**LEAST, "id": value})


@pytest.mark.parametrize("decode", DECODERS)
def test_an_object_without_id_is_refused(decode):
    with pytest.raises(KeyError):
        decode({"amount": 1})


@pytest.mark.parametrize(("text", "direction"), [("IN", Direction.IN), ("OUT", Direction.OUT)])
def test_a_direction_is_a_member(text, direction):
    assert bank.transaction({**LEAST, "direction": text}).direction is direction
    assert direction == text


@pytest.mark.parametrize("text", ["in", "BOTH", "", None])
def test_an_unknown_direction_is_none(text):
    transaction = bank.transaction({**LEAST, "direction": text})
    assert transaction.direction is None
    assert transaction.raw["direction"] == text


@pytest.mark.parametrize(
    ("value", "amount"),
    [(1, "1"), (-1, "-1"), ("1.50", "1.50"), (Decimal("0.10"), "0.10"), (0, "0"), ("1e3", "1E+3")],
)
def test_amounts_are_exact(value, amount):
    assert str(bank.transaction({**LEAST, "amount": value}).amount) == amount


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, b"1"])
def test_an_amount_of_another_kind_is_refused(value):
    with pytest.raises(TypeError):
        bank.transaction({**LEAST, "amount": value})


@pytest.mark.parametrize(
    "value", ["", "x", "NaN", "Infinity", "-inf", "1e31", "1e-31", "1e999999999", 10**31]
)
def test_an_amount_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="amount"):
        bank.transaction({**LEAST, "amount": value})


def test_an_amount_must_be_there():
    with pytest.raises(KeyError):
        bank.transaction({"id": "1"})
    with pytest.raises(KeyError):
        bank.balance({})


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
def test_moments_are_aware(text, moment):
    got = bank.account({"id": "1", "createdAt": text}).created_at
    assert got is not None
    assert got == moment
    assert got.tzinfo is not None


def test_a_moment_keeps_its_zone():
    got = bank.account({"id": "1", "createdAt": "2025-03-04T09:11:02+01:00"}).created_at
    assert got is not None
    assert got.tzinfo == timezone(timedelta(hours=1))


@pytest.mark.parametrize(("decode", "name"), cases(MOMENTS))
@pytest.mark.parametrize("value", ["", "yesterday", "2025-02-30", "10000-01-01"])
def test_a_moment_that_is_none_is_refused(decode, name, value):
    with pytest.raises(ValueError, match=r"isoformat|day"):
        decode({**LEAST, name: value})


@pytest.mark.parametrize(("decode", "name"), cases(MOMENTS))
@pytest.mark.parametrize("value", [5, True, ["2025-03-04"]])
def test_a_moment_of_another_kind_is_refused(decode, name, value):
    with pytest.raises(TypeError, match=name):
        decode({**LEAST, name: value})


@pytest.mark.parametrize(("decode", "name"), cases(TEXTS))
@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, 1.5])
def test_what_is_no_text_is_refused(decode, name, value):
    with pytest.raises(TypeError, match=name):
        decode({**LEAST, name: value})


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (Decimal("1.50"), "1.50"), ("", "")])
def test_numbers_for_texts_become_texts(value, text):
    assert bank.transaction({**LEAST, "variableSymbol": value}).variable_symbol == text


def test_half_an_emoji_becomes_a_question_mark():
    """As JavaScript cuts texts; a database would refuse the half."""
    transaction = bank.transaction(strict_json('{"id": 1, "amount": 1, "reference": "a\\ud83d"}'))
    assert transaction.reference == "a?"


@pytest.mark.parametrize("balances", [5, True, "CLBD", [5], ["CLBD"], [None], [{}], {"a": {}}])
def test_balances_of_another_shape_are_refused(balances):
    with pytest.raises((TypeError, AttributeError, KeyError)):
        bank.account({"id": "1", "balances": balances})


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("raw", [None, 5, "text", [], ["id"]])
def test_what_is_no_object_is_refused(decode, raw):
    with pytest.raises((TypeError, AttributeError, KeyError)):
        decode(raw)


def test_a_repr_shows_the_id_alone():
    account = bank.account(strict_json(ACCOUNT))
    transaction = bank.transaction(strict_json(TRANSACTION))
    assert repr(account) == "<Account 12>"
    assert repr(transaction) == "<Transaction 70231>"
    assert repr(bank.bank({"id": "demo", "name": "Demo"})) == "<Bank demo>"
    assert repr(account.balances) == "(<Balance CLBD>, <Balance ITAV>)"
    assert str(account) == "<Account 12>"


def test_objects_are_frozen():
    with pytest.raises(FrozenInstanceError):
        bank.account({"id": "1"}).name = "other"  # type: ignore[misc]


def test_objects_can_be_kept_in_sets_and_caches():
    account = bank.account(strict_json(ACCOUNT))
    assert len({account, bank.account(strict_json(ACCOUNT))}) == 1
    assert pickle.loads(pickle.dumps(account)) == account  # noqa: S301


def test_another_unknown_field_is_another_object():
    assert bank.bank({"id": "1", "more": 1}) != bank.bank({"id": "1", "more": 2})

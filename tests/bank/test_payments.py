"""Payments: what may be sent, what is made of the answers, and that none is sent twice."""

import asyncio
import base64
import json
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import lazystr
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from everifin_django.api_names import DEFAULT_API_FIELDS
from everifin_django.bank import payments
from everifin_django.bank.client import Client, EndUser
from everifin_django.bank.payments import (
    BulkItem,
    BulkPayment,
    FinishedStep,
    InputStep,
    InputType,
    NextStep,
    PaymentStatus,
    PaymentStep,
    PushStep,
    RedirectStep,
    SinglePayment,
    UnknownStep,
)
from everifin_django.exceptions import (
    AnswerError,
    EndUserMissingError,
    InvalidRequestError,
    NotAuthorizedError,
    NotFoundError,
    PaymentNotEditableError,
    PaymentRejectedError,
    PaymentUncertainError,
    ScopeMissingError,
    UnavailableError,
    UnreachableError,
)
from everifin_django.http.strict_json import strict_json
from everifin_django.secret import Secret
from everifin_django.testing.sandbox import payments as box
from everifin_django.testing.sandbox.data import iban
from tests.bank.test_client import LAST, Source
from tests.support import malicious_server
from tests.support.malicious_server import Server, answer_json, report
from tests.testing import Site

IBAN = iban("SK", "9991", 7)
BACK = "https://shop.example.org/back/?order=7"
CANARY = "canary-7f21c9"
OWN_401: dict[str, Any] = {
    "meta": {"status": "ERROR"},
    "errors": [{"code": "INVALID_ACCESS_TOKEN"}],
}
EARLY = timezone(timedelta(hours=14))
PAYER = EndUser(ip="192.0.2.7", user_agent="Browser/1.0 (Linux)")


def single(**changes: Any) -> SinglePayment:
    sent = {"amount": Decimal("12.30"), "currency": "EUR", "recipient_iban": IBAN}
    return SinglePayment(**{**sent, "redirect_url": BACK, **changes})


def item(**changes: Any) -> BulkItem:
    sent = {"amount": Decimal(5), "currency": "EUR", "recipient_iban": IBAN, "recipient_name": "A"}
    return BulkItem(**{**sent, **changes})


def bulk(**changes: Any) -> BulkPayment:
    sent: dict[str, Any] = {"name": "Pay", "sender_iban": IBAN, "redirect_url": BACK}
    return BulkPayment(**{**sent, "payments": (item(),), **changes})


def asked(**raw: Any) -> InputStep:
    step = PaymentStep.from_raw({"id": "1", "status": "CREATED", "type": "INPUT", **raw})
    assert isinstance(step, InputStep)
    return step


def refusal(make: Any) -> tuple[str | None, str | None]:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert caught.value.status is None
    return caught.value.field, caught.value.rule


class TestWhatMayBeSent:
    @pytest.mark.parametrize(
        ("changes", "field", "rule"),
        [
            ({"amount": 1.5}, "amount", "number"),
            ({"amount": True}, "amount", "number"),
            ({"amount": "1"}, "amount", "number"),
            ({"amount": Decimal("0.001")}, "amount", "range"),
            ({"amount": Decimal(0)}, "amount", "range"),
            ({"amount": Decimal(-1)}, "amount", "range"),
            ({"amount": Decimal("9999999999.01")}, "amount", "range"),
            ({"amount": Decimal("1e999999")}, "amount", "range"),
            ({"amount": Decimal("NaN")}, "amount", "range"),
            ({"amount": Decimal("sNaN")}, "amount", "range"),
            ({"amount": Decimal("Infinity")}, "amount", "range"),
            ({"amount": Decimal("1.005")}, "amount", "decimal"),
            ({"currency": "eur"}, "currency", "regex"),
            ({"currency": "EURO"}, "currency", "regex"),
            ({"currency": None}, "currency", "string"),
            ({"currency": 978}, "currency", "string"),
            ({"recipient_iban": None}, "recipientIban", "string"),
            ({"recipient_iban": 31}, "recipientIban", "string"),
            ({"recipient_name": 5}, "recipientName", "string"),
            ({"variable_symbol": True}, "variableSymbol", "string"),
            ({"variable_symbol": 1.5}, "variableSymbol", "string"),
            ({"variable_symbol": -1}, "variableSymbol", "regex"),
            ({"external_id": b"x"}, "externalId", "string"),
            ({"external_id": 10**300}, "externalId", "maxLength"),
            ({"external_id": Decimal(7)}, "externalId", "string"),
            ({"external_id": 7.0}, "externalId", "string"),
            ({"external_id": True}, "externalId", "string"),
            ({"external_id": "a\nb"}, "externalId", "regex"),
            ({"external_id": "a\ud800"}, "externalId", "regex"),
            ({"external_id": "  "}, "externalId", "regex"),
            ({"external_id": uuid.uuid4}, "externalId", "string"),
            ({"amount": Decimal("-Infinity")}, "amount", "range"),
            ({"amount": Decimal("-0")}, "amount", "range"),
            ({"amount": Decimal("1E+10")}, "amount", "range"),
            ({"amount": Decimal("1E-30")}, "amount", "range"),
            ({"amount": Decimal("12.3" + "0" * 40 + "1")}, "amount", "decimal"),
            ({"amount": None}, "amount", "number"),
            ({"amount": Fraction(1, 2)}, "amount", "number"),
            ({"payment_date": "2026-03-01"}, "paymentDate", "date"),
            ({"payment_date": 20260301}, "paymentDate", "date"),
            ({"payment_date": datetime.min.replace(tzinfo=EARLY)}, "paymentDate", "date"),
            ({"recipient_address": "Nitra"}, "recipientAddress", "object"),
            ({"recipient_address": {"city": object()}}, "recipientAddress", "object"),
            ({"recipient_address": {"city": float("nan")}}, "recipientAddress", "object"),
            ({"recipient_bank_address": {"city": b"Nitra"}}, "recipientBankAddress", "object"),
            ({"recipient_iban": ""}, "recipientIban", "iban"),
            ({"recipient_iban": "SK0012000000198742637541"}, "recipientIban", "iban"),
            ({"recipient_iban": f"{IBAN} {'0' * 40}"}, "recipientIban", "maxLength"),
            ({"sender_iban": "SK0012000000198742637541"}, "senderIban", "iban"),
            ({"recipient_bank_bic": "EFT"}, "recipientBankBic", "bic"),
            ({"recipient_name": "x" * 141}, "recipientName", "maxLength"),
            ({"payment_message": "x" * 141}, "paymentMessage", "maxLength"),
            ({"payment_message": "two\nlines"}, "paymentMessage", "regex"),
            ({"reference": "x" * 36}, "reference", "maxLength"),
            ({"external_id": "x" * 256}, "externalId", "maxLength"),
            ({"variable_symbol": "1" * 11}, "variableSymbol", "maxLength"),
            ({"constant_symbol": "1" * 5}, "constantSymbol", "maxLength"),
            ({"specific_symbol": "1" * 11}, "specificSymbol", "maxLength"),
            ({"variable_symbol": "12a"}, "variableSymbol", "regex"),
            ({"variable_symbol": "٣"}, "variableSymbol", "regex"),
            ({"variable_symbol": "1", "reference": "r"}, "reference", "symbolsOrReference"),
            ({"specific_symbol": "1", "reference": "r"}, "reference", "symbolsOrReference"),
            ({"redirect_url": "http://localhost/back"}, "redirectUrl", "url"),
            ({"redirect_url": "ftp://a.example/"}, "redirectUrl", "url"),
            ({"redirect_url": "javascript:alert(1.0)"}, "redirectUrl", "url"),
            ({"redirect_url": "https://[::1/"}, "redirectUrl", "url"),
            ({"redirect_url": "https://www.site.example@evil.example/"}, "redirectUrl", "url"),
            ({"redirect_url": "https://evil.example\\@www.site.example/"}, "redirectUrl", "url"),
            ({"redirect_url": "https://a.example\\b/"}, "redirectUrl", "url"),
            ({"redirect_url": "https://a.example/#paid"}, "redirectUrl", "url"),
            ({"redirect_url": "https://a.example/a b"}, "redirectUrl", "url"),
            ({"redirect_url": "https://žena.example/"}, "redirectUrl", "url"),
            ({"redirect_url": f"https://a.example/{'x' * 5000}"}, "redirectUrl", "maxLength"),
        ],
    )
    def test_a_single_payment_that_breaks_a_rule_cannot_be_made(self, changes, field, rule):
        assert refusal(lambda: single(**changes)) == (field, rule)

    @pytest.mark.parametrize(
        "changes",
        [
            {"amount": Decimal("0.01")},
            {"amount": Decimal(9_999_999_999)},
            {"amount": 3},
            {"amount": Decimal("1.500")},
            {"amount": Decimal("1E+2")},
            {"amount": Decimal("12.3" + "0" * 40)},
            {"recipient_iban": f"{IBAN[:4]} {IBAN[4:]}".lower()},
            {"recipient_bank_bic": "EFTDSKB1"},
            {"reference": "x" * 35},
            {"reference": "r", "variable_symbol": ""},
            {"variable_symbol": "1" * 10, "constant_symbol": "0308", "specific_symbol": "1"},
            {"redirect_url": "http://yourapp.local/back"},
            {"sender_iban": ""},
        ],
    )
    def test_what_is_within_the_rules_can_be_made(self, changes):
        assert single(**changes).recipient_iban == IBAN

    @pytest.mark.parametrize(
        ("make", "field", "rule"),
        [
            (lambda: item(recipient_name=""), "recipientName", "required"),
            (lambda: item(amount=0), "amount", "range"),
            (lambda: bulk(name=""), "name", "required"),
            (lambda: bulk(name="x" * 256), "name", "maxLength"),
            (lambda: bulk(sender_iban=""), "senderIban", "required"),
            (lambda: bulk(sender_iban="SK00"), "senderIban", "iban"),
            (lambda: bulk(payments=()), "payments", "required"),
            (lambda: bulk(payments=[item(), item(currency="CZK")]), "payments", "currency"),
            (lambda: bulk(redirect_url="https://localhost/"), "redirectUrl", "url"),
        ],
    )
    def test_a_bulk_payment_that_breaks_a_rule_cannot_be_made(self, make, field, rule):
        assert refusal(make) == (field, rule)

    def test_what_is_left_out_is_not_sent(self):
        sent = single(external_id=None, payment_message="").body()
        assert sent == {
            "amount": 12.3,
            "currency": "EUR",
            "recipientIban": IBAN,
            "redirectUrl": BACK,
        }

    def test_an_address_is_whatever_json_can_say(self):
        address = MappingProxyType({"city": gettext_lazy("Everifin"), 1: ("a", 2)})
        sent = single(recipient_address=address).body()["recipientAddress"]
        assert sent == {"city": "Everifin", "1": ["a", 2]}

    def test_what_cannot_be_sent_cannot_be_made(self, settings):
        """Else it were found out in the middle of paying."""
        settings.TIME_ZONE = "America/New_York"
        with pytest.raises(InvalidRequestError, match="calendar"):
            single(payment_date=datetime.max)  # noqa: DTZ901
        with pytest.raises(InvalidRequestError, match="calendar"):
            bulk(due_date=datetime.max)  # noqa: DTZ901

    @pytest.mark.parametrize("kind", [str, int])
    def test_members_of_an_enum_are_sent_as_their_values(self, kind):
        number = Enum("number", {"ONE": "1234"}, type=kind)
        sent = single(variable_symbol=number.ONE, external_id=number.ONE).body()
        assert (sent["variableSymbol"], sent["externalId"]) == ("1234", "1234")

    def test_dates_are_sent_as_everifin_spells_them(self):
        assert single(payment_date=date(2026, 3, 1)).body()["paymentDate"].startswith("2026-03-01T")
        at = datetime(2026, 3, 1, 8, tzinfo=UTC)
        assert bulk(due_date=at).body()["dueDate"] == "2026-03-01T08:00:00.000Z"

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_a_datetime_without_time_zone_is_of_the_current_one(self, settings, use_tz):
        settings.USE_TZ, settings.TIME_ZONE = use_tz, "America/New_York"
        sent = single(payment_date=datetime(2026, 3, 1, 8)).body()  # noqa: DTZ001 - as USE_TZ off has it
        assert sent["paymentDate"] == "2026-03-01T13:00:00.000Z"

    def test_the_inferred_names_of_what_is_sent_can_be_corrected(self, settings):
        more: dict[str, Any] = {
            "external_id": "mine",
            "priority": "HIGH",
            "recipient_address": {"city": "Nitra"},
            "recipient_bank_address": {"city": "Brno"},
        }
        names = DEFAULT_API_FIELDS["new_payment"]
        assert more.keys() == names.keys()
        settings.EVERIFIN_API_FIELDS = {"new_payment": {name: f"x-{name}" for name in names}}
        sent = single(**more).body()
        assert {f"x-{name}": value for name, value in more.items()}.items() <= sent.items()
        assert not set(names.values()) & sent.keys()
        # Items of a bulk are documented.
        assert item(**more).body()["externalId"] == "mine"

    def test_each_payment_can_be_found_again(self):
        assert single().external_id != single().external_id
        sent = bulk(external_id="mine").body()
        assert sent["externalId"] == "mine"
        assert sent["payments"][0]["externalId"]

    def test_uuids_and_numbers_become_strings(self):
        order = uuid.uuid4()
        sent = single(external_id=order, variable_symbol=2026001, constant_symbol=308)
        assert sent.body()["externalId"] == sent.external_id == str(order)
        assert sent.body()["variableSymbol"] == sent.variable_symbol == "2026001"
        assert single(external_id=7).external_id == "7"
        assert bulk(external_id=order).external_id == str(order)
        message = gettext_lazy("Everifin")
        assert json.loads(payments.to_json(single(payment_message=message).body()).reveal())

    @given(st.decimals(payments.LEAST, payments.MOST, places=2))
    def test_an_amount_is_sent_as_the_very_number(self, amount):
        text = payments.to_json(single(amount=amount).body()).reveal()
        assert strict_json(text)["amount"] == amount

    def test_no_repr_shows_whom_is_paid(self):
        for sent in (single(), bulk(), item(), payments.to_json(single().body())):
            assert IBAN not in repr(sent)
            assert "12.3" not in repr(sent)

    def test_without_a_library_that_checks_ibans_there_is_no_payment(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "stdnum", None)
        with pytest.raises(ImproperlyConfigured, match=r"install everifin-django\[payments\]"):
            single()


class TestWhatComesBack:
    def test_words_nobody_knows_are_kept_in_raw(self):
        step = PaymentStep.from_raw({"id": 12, "status": "ON_ITS_WAY", "type": "DANCE"})
        assert type(step) is UnknownStep
        assert (step.id, step.status) == ("12", PaymentStatus.UNKNOWN)
        assert (step.raw["status"], step.raw["type"]) == ("ON_ITS_WAY", "DANCE")
        assert not step.status.is_final

    @pytest.mark.parametrize("status", ["FINISHED", "FAILED", "PARTIALLY_PAID", "PAID"])
    def test_a_final_status_says_so(self, status):
        assert PaymentStatus(status).is_final
        assert PaymentStatus(status).is_paid == (status in {"FINISHED", "PAID"})

    def test_inputs_come_as_a_set_or_alone(self):
        raw = {"id": "1", "status": "CREATED", "type": "INPUT"}
        choice = {"name": "a", "type": "SELECT", "selectOptions": ["x", {"value": 1, "label": "y"}]}
        (alone,) = asked(**raw, input=choice).inputs
        assert (alone.type, alone.options) == (InputType.SELECT, (("x", "x"), ("1", "y")))
        both = asked(**raw, inputSet=[choice, {"name": "b", "type": "FINGER"}]).inputs
        assert [(one.name, one.type) for one in both] == [
            ("a", InputType.SELECT),
            ("b", InputType.UNKNOWN),
        ]
        assert repr(alone) == "<InputField a>"

    @pytest.mark.parametrize(
        "url",
        [
            None,
            "",
            5,
            "/relative",
            "//bank.example/",
            "http://bank.example/",
            "javascript:alert(1)",
            "https://",
            "https://shop.example@bank.example/",
            "https://user:password@bank.example/",
            "https://bank.example\\@evil.example/",
            "https://bank.example/\r\nSet-Cookie: a=b",
            "https:bank.example/",
            "https:///bank.example/",
            "https://:443/",
            "https://bank.example:port/",
            "https://@bank.example/",
            "https://[bank.example/",
            "\thttps://bank.example/",
            "data:text/html,https://bank.example/",
            ["https://bank.example/"],
            "https://bank.example/ a",
            "https://bänk.example/",
            f"https://bank.example/{'x' * 5000}",
        ],
        ids=ascii,
    )
    def test_a_browser_is_sent_to_https_only(self, url):
        raw = {"id": "1", "status": "CREATED", "type": "REDIRECT", "redirectUrl": url}
        with pytest.raises(AnswerError):
            PaymentStep.from_raw(raw)

    @pytest.mark.parametrize("raw", [None, 5, "x", [], {}, {"id": None}, {"id": ""}])
    def test_what_is_no_step_is_an_error_of_ours(self, raw):
        with pytest.raises(AnswerError):
            PaymentStep.from_raw(raw)

    @pytest.mark.parametrize(
        ("kind", "status", "expected"),
        [
            ("NEXT", "PROCESSING", NextStep),
            ("PUSH", "CREATED", PushStep),
            ("NEXT", "FINISHED", FinishedStep),
            (None, "FAILED", FinishedStep),
            (None, "PROCESSING", UnknownStep),
            ("next", "CREATED", UnknownStep),
            (["NEXT"], "CREATED", UnknownStep),
        ],
    )
    def test_the_class_says_what_is_next(self, kind, status, expected):
        raw = {"id": "1", "status": status, "type": kind}
        assert type(PaymentStep.from_raw(raw)) is expected

    def test_a_step_is_matched_by_its_class(self):
        raw = {"id": "1", "status": "CREATED", "type": "REDIRECT", "redirectUrl": BACK}
        match PaymentStep.from_raw(raw):
            case RedirectStep(redirect_url=url):
                assert url == BACK

    def test_a_step_survives_a_json_session(self):
        """Decimals, as which fractions come, would be refused after the payment was processed."""
        raw = strict_json(
            '{"id": 7, "status": "CREATED", "type": "INPUT", "fee": 1.50, "limits": [0.5, 3],'
            '"input": {"name": "a", "type": "SELECT", "selectOptions": [{"value": 2.5}]}}'
        )
        step = PaymentStep.from_raw(raw)
        kept = json.loads(json.dumps(step.raw))
        assert PaymentStep.from_raw(kept) == step
        assert (kept["fee"], kept["limits"]) == ("1.50", ["0.5", 3])

    @pytest.mark.parametrize(
        ("image", "shown"),
        [
            ("data:image/png;base64,iVBORw0KGgo=", True),
            ("data:image/jpeg;base64,/9j/4AA=", True),
            ("data:image/svg+xml;base64,PHN2Zz4=", False),
            ("data:text/html;base64,PHA+", False),
            ("data:image/png,<script>", False),
            ("https://evil.example/pixel.png", False),
            ("javascript:alert(1)", False),
            ('data:image/png;base64,iVBO" onerror="alert(1)', False),
            ("", False),
            (5, False),
        ],
    )
    def test_an_image_is_shown_as_a_data_url_only(self, image, shown):
        (field,) = asked(input={"name": "a", "type": "IMAGE", "image": image}).inputs
        assert field.image == (image if shown else None)

    def test_how_an_option_is_spelt_can_be_corrected(self, settings):
        settings.EVERIFIN_API_FIELDS = {"input_option": {"value": "key", "label": "text"}}
        choice = {"name": "a", "type": "SELECT", "selectOptions": [{"key": 1, "text": "y"}]}
        (field,) = asked(input=choice).inputs
        assert field.options == (("1", "y"),)

    @pytest.mark.parametrize(
        ("kind", "make", "raw"),
        [
            (
                "payment",
                payments.payment_reader,
                {"id": 1, "status": "FAILED", "amount": 1, "feeType": "A", "externalId": "mine"},
            ),
            (
                "bulk_payment",
                payments.bulk_payment_reader,
                {
                    "id": 1,
                    "status": "PAID",
                    "allPaymentsCount": 1,
                    "dueDate": "2026-03-01",
                    "payments": [{"id": 1}],
                },
            ),
        ],
    )
    def test_every_name_but_the_ids_can_be_corrected(self, settings, kind, make, raw):
        plain, names = make()(raw), DEFAULT_API_FIELDS[kind]
        assert {"id", "raw"} | names.keys() == {field.name for field in fields(plain)}
        settings.EVERIFIN_API_FIELDS = {kind: {ours: f"x-{names[ours]}" for ours in names}}
        moved = {name if name == "id" else f"x-{name}": value for name, value in raw.items()}
        assert replace(make()(moved), raw=raw) == plain

    def test_a_bulk_without_dates_and_items_is_understood(self):
        seen = payments.bulk_payment_reader()({"id": 5, "status": "PAID", "dueDate": ""})
        assert (seen.due_date, seen.payments, seen.payments_count) == (None, (), None)


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class TestEncryption:
    @staticmethod
    def asking(key: Any, *, encoding: Encoding = Encoding.PEM, name: str = "key") -> Any:
        public = key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        text = public if encoding is Encoding.PEM else base64.b64encode(public)
        return asked(
            inputSet=[{"name": "otp"}, {"name": "colour"}],
            inputsToEncrypt=["otp"],
            inputEncryptionConfig={name: text.decode()},
        )

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    @pytest.mark.parametrize("name", ["key", "publicKey"])
    def test_what_is_listed_is_encrypted(self, key, encoding, name):
        step = self.asking(key, encoding=encoding, name=name)
        inputs: payments.Inputs = {"otp": Secret("1234"), "colour": "blue"}
        body, is_encrypted = payments.answer_step(step, inputs, payments.encryption_key)
        assert is_encrypted
        sent = json.loads(body.reveal())
        scheme = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
        assert key.decrypt(base64.b64decode(sent["otp"]), scheme) == b"1234"
        assert sent["colour"] == "blue"

    def test_a_key_of_another_kind_is_refused(self):
        self.refuses(self.asking(ec.generate_private_key(ec.SECP256R1())))

    def test_a_key_below_2048_bits_is_refused(self):
        short = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
        self.refuses(self.asking(short))
        self.refuses(self.asking(short), key_of=lambda _: short.public_key())

    def test_a_value_too_long_for_the_key_is_not_sent(self, key):
        self.refuses(self.asking(key), {"otp": CANARY * 100})

    def test_a_site_can_read_the_key_its_own_way(self, key):
        step = asked(inputsToEncrypt=["otp"], inputEncryptionConfig={"jwk": "?"})
        self.refuses(step)
        _, is_encrypted = payments.answer_step(step, {"otp": "1"}, lambda _: key.public_key())
        assert is_encrypted

    def test_a_key_without_a_list_is_for_what_is_sensitive(self, key):
        step = replace(self.asking(key), raw={})
        raw = {**self.asking(key).raw, "inputsToEncrypt": None}
        step = PaymentStep.from_raw(raw)
        body, is_encrypted = payments.answer_step(step, {"otp": "1"}, payments.encryption_key)
        assert is_encrypted
        assert json.loads(body.reveal())["otp"] != "1"

    @pytest.mark.parametrize("listed", [["OTP"], [" otp"], "Otp", "userId, otp", "userId otp"])
    def test_a_list_is_read_on_the_safe_side(self, key, listed):
        step = PaymentStep.from_raw({**self.asking(key).raw, "inputsToEncrypt": listed})
        body, is_encrypted = payments.answer_step(step, {"otp": "1"}, payments.encryption_key)
        assert is_encrypted
        assert json.loads(body.reveal())["otp"] != "1"

    @pytest.mark.parametrize("listed", [None, [], ""])
    @pytest.mark.parametrize("kind", ["PASSWORD", "Password"])
    def test_a_key_without_a_list_is_for_each_password(self, key, listed, kind):
        inputs = [{"name": "pin", "type": kind}, {"name": "colour", "type": "TEXT"}]
        changes = {"inputsToEncrypt": listed, "inputSet": inputs}
        step = PaymentStep.from_raw({**self.asking(key).raw, **changes})
        answer: payments.Inputs = {"pin": "1234", "colour": "blue"}
        body, is_encrypted = payments.answer_step(step, answer, payments.encryption_key)
        assert is_encrypted
        sent = json.loads(body.reveal())
        assert (sent["colour"], sent["pin"] == "1234") == ("blue", False)

    @pytest.mark.parametrize("value", [None, True, 1.5, b"1", ["1"], Decimal(1)])
    def test_what_is_no_string_is_not_sent(self, key, value):
        self.refuses(self.asking(key), {"otp": value})
        self.refuses(self.asking(key), {"colour": value})

    @pytest.mark.parametrize(
        "config",
        [
            None,
            "key",
            [],
            {},
            {"key": None},
            {"key": ""},
            {"key": "AAAA"},
            {"key": "-----BEGIN PUBLIC KEY-----"},
            {"key": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
            {"key": ["AAAA"]},
            {"publicKey": {"n": "1", "e": "AQAB"}},
        ],
        ids=str,
    )
    def test_a_malformed_key_sends_nothing(self, config):
        self.refuses(asked(inputsToEncrypt=["otp"], inputEncryptionConfig=config))

    def test_a_private_key_and_one_a_bit_too_short_are_refused(self, key):
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.refuses(asked(inputsToEncrypt=["otp"], inputEncryptionConfig={"key": private}))
        short = rsa.RSAPublicNumbers(65537, 2**2046 + 1).public_key()
        self.refuses(self.asking(key), key_of=lambda _: short)

    @pytest.mark.parametrize("wrong", [None, b"key", ec.generate_private_key(ec.SECP256R1())])
    def test_what_a_site_reads_must_be_a_key(self, key, wrong):
        self.refuses(self.asking(key), key_of=lambda _: wrong)

    @pytest.mark.parametrize("listed", ["otp", ["otp"]])
    def test_one_name_is_a_list_too(self, listed):
        self.refuses(asked(input={"name": "otp"}, inputsToEncrypt=listed))

    @pytest.mark.parametrize("listed", [5, [5], [{"name": "otp"}], {"otp": True, 5: 1}])
    def test_a_list_that_cannot_be_read_is_an_error(self, listed):
        with pytest.raises(AnswerError):
            asked(input={"name": "otp"}, inputsToEncrypt=listed)

    @pytest.mark.parametrize(
        ("step", "inputs"),
        [
            (None, {"otp": CANARY}),
            (None, {"userPassword": CANARY}),
            (None, {"colour": CANARY}),
            ({"type": "INPUT", "input": {"name": "colour"}}, {"otp": CANARY}),
            ({"type": "INPUT", "input": {"name": "colour"}}, {"colour": "a", "more": CANARY}),
            ({"type": "REDIRECT", "redirectUrl": BACK}, {"code": "1", "userPassword": CANARY}),
            ({"type": "REDIRECT", "redirectUrl": BACK}, {"userId": CANARY}),
            ({"type": "NEXT"}, {"otp": CANARY}),
            ({"type": "PUSH"}, {"code": CANARY}),
            ({"type": "DANCE"}, {"code": CANARY}),
            ({"status": "FINISHED"}, {"code": CANARY}),
        ],
    )
    def test_inputs_that_do_not_answer_the_step_are_not_sent(self, step, inputs):
        raw = {"id": "1", "status": "CREATED"}
        self.refuses(step and PaymentStep.from_raw({**raw, **step}), inputs)

    @staticmethod
    def refuses(
        step: Any, inputs: payments.Inputs | None = None, key_of: Any = payments.encryption_key
    ) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            payments.answer_step(step, inputs or {"otp": CANARY}, key_of)
        assert CANARY not in report(caught.value)


@pytest.fixture
def source(everifin) -> Source:
    site = Site(everifin)
    return Source(Secret(site.tokens(scope="openid ais pis")["access_token"]))


@pytest.fixture
def client(source) -> Client:
    return Client(source, end_user=PAYER)


@pytest.fixture
def accounts(client, everifin) -> dict[str, str]:
    """The IBAN of alice's account at each bank."""
    found = {one.bank_id: one.iban for one in client.accounts()}
    everifin.calls.clear()
    return found


class TestPaying:
    def test_a_payment_goes_through_push_and_next_to_its_end(self, client, accounts):
        payment_id = client.create_payment(single(sender_iban=accounts["eftdemo3"]))
        steps = [client.process_payment(payment_id) for _ in range(3)]
        assert [type(one) for one in steps] == [PushStep, NextStep, FinishedStep]
        assert steps[-1].status is PaymentStatus.FINISHED
        seen = client.payment(payment_id)
        assert (seen.status, seen.amount, seen.currency) == ("FINISHED", Decimal("12.3"), "EUR")
        assert seen.sender_iban == accounts["eftdemo3"]

    def test_inputs_are_encrypted_where_the_answer_asks_for_it(self, client, everifin, accounts):
        payment_id = client.create_payment(single(sender_iban=accounts["eftdemo2"]))
        step = client.process_payment(payment_id)
        assert isinstance(step, InputStep)
        assert [one.name for one in step.inputs] == ["userId", "userPassword"]
        login = {"userId": "alice", "userPassword": Secret(CANARY)}
        step = client.process_payment(payment_id, inputs=login, step=step)
        sent = everifin.last_request["api.payment"]
        assert sent.headers["x-user-data-encryption-method"] == "RSAES-OAEP/SHA-256"
        assert sent.headers["x-ef-sender-ip"] == PAYER.ip
        assert sent.headers["x-ef-sender-user-agent"] == PAYER.user_agent
        step = client.process_payment(payment_id, inputs={"otp": "123456"}, step=step)
        assert step.status is PaymentStatus.FINISHED

    def test_a33_a_forged_return_moves_nothing(self, client, accounts):
        """Whatever a return says is passed on; what is true is read from the API."""
        payment_id = client.create_payment(single(sender_iban=accounts["eftdemo1"]))
        step = client.process_payment(payment_id)
        assert isinstance(step, RedirectStep)
        forged = {"status": "FINISHED", "code": "x", "id": "999"}
        again = client.process_payment(payment_id, inputs=forged, step=step)
        assert isinstance(again, RedirectStep)
        assert again.id == payment_id
        assert client.payment(payment_id).status is PaymentStatus.CREATED

    def test_a_bulk_is_processed_listed_and_found(self, client, accounts):
        sent = bulk(
            sender_iban=accounts["eftdemo3"],
            payments=(item(), item(recipient_iban=box.FAILED_IBAN)),
        )
        payment_id = client.create_bulk_payment(sent)
        for _ in range(3):
            step = client.process_bulk_payment(payment_id)
        assert step.status is PaymentStatus.PARTIALLY_PAID
        seen = client.bulk_payment(payment_id)
        assert [one.status for one in seen.payments] == ["FINISHED", "FAILED"]
        assert (seen.payments_count, seen.total_amount, seen.currency) == (2, 10, "EUR")
        assert [one.id for one in client.bulk_payments()] == [payment_id]
        found = client.find_bulk_payment(sent.external_id)
        assert found is not None
        assert found.id == payment_id
        assert client.find_bulk_payment("another") is None

    def test_a_payment_on_a_later_page_is_found(self, client, everifin):
        sent = [single() for _ in range(60)]
        ids = [client.create_payment(one) for one in sent]
        for index in (0, 59):
            found = client.find_payment(sent[index].external_id)
            assert found is not None
            assert found.id == ids[index]

    @pytest.mark.parametrize(
        ("rows", "pagination", "ids"),
        [
            ([{"id": 1}, {"id": 2}], LAST, ("1", "2")),
            ([{"id": 1, "externalId": "another"}, {"id": 2, "externalId": None}], LAST, ("2",)),
            ([{"id": 1, "externalId": "x"}], {**LAST, "countTotal": 2}, ("1",)),
            ([{"id": 1, "externalId": "x"}], {**LAST, "last": 2}, ("1",)),
            ([{"id": 1, "externalId": "mine"}, {"id": 2, "externalId": "mine"}], LAST, ("1", "2")),
            ([{"id": 1, "externalId": "mine"}], {**LAST, "countTotal": 2}, ("1",)),
            ([{"id": 1, "externalId": "x"}, {"id": 2, "externalId": " "}], LAST, ("2",)),
            ([{"id": 1, "externalId": ["mine"]}], LAST, ("1",)),
            ([{"id": 1, "externalId": "MINE"}, {"id": 2, "externalId": "x"}], LAST, ("1",)),
            ([{"id": 1, "externalId": " mine "}], LAST, ("1",)),
            ([{"id": 1, "externalId": "x"}, {"id": 1, "externalId": "x"}], LAST, ("1",)),
            ([{"externalId": "mine"}], LAST, ()),
            ([{"id": 1, "externalId": "x"}, None], LAST, ()),
        ],
        ids=[
            "none told",
            "one not told",
            "rows missing",
            "a last page",
            "several",
            "found so far",
            "a blank one",
            "no string",
            "in capital letters",
            "with spaces",
            "a row twice",
            "without its id",
            "no row",
        ],
    )
    def test_unknown_is_not_none(self, client, everifin, rows, pagination, ids):
        """None would have the recipe for a lost answer pay again."""
        body = {"meta": {"status": "SUCCESS", "pagination": pagination}, "data": rows}
        everifin.faults.add("api.payments", body=body)
        with pytest.raises(PaymentUncertainError, match="compare amount, recipient") as caught:
            client.find_payment("mine")
        assert (caught.value.external_id, caught.value.payment_ids) == ("mine", ids)

    def test_rows_that_come_twice_hide_what_is_missing(self, client, everifin):
        """The list moved between two pages: as many rows as there are, and not all of them."""
        told = {"countTotal": 3, "last": 2}
        for page, ids in ((1, (1, 2)), (2, (2,))):
            rows = [{"id": number, "externalId": f"order-{number}"} for number in ids]
            meta = {"status": "SUCCESS", "pagination": {**told, "page": page}}
            everifin.faults.add("api.payments", body={"meta": meta, "data": rows}, times=1)
        with pytest.raises(PaymentUncertainError, match="not complete") as caught:
            client.find_payment("order-3")
        assert caught.value.payment_ids == ("1", "2")

    def test_one_payment_on_two_pages_is_found(self, client, everifin):
        told = {"countTotal": 3, "last": 2}
        for page, status in ((1, "CREATED"), (2, "PROCESSING")):
            mine = {"id": 1, "externalId": "mine", "status": status}
            rows = [{"id": 10 + page, "externalId": "x"}, mine]
            meta = {"status": "SUCCESS", "pagination": {**told, "page": page}}
            everifin.faults.add("api.payments", body={"meta": meta, "data": rows}, times=1)
        found = client.find_payment("mine")
        assert found is not None
        assert (found.id, found.status) == ("1", PaymentStatus.PROCESSING)

    @pytest.mark.parametrize("external_id", [10**20, "ž" * 255, " order 7 "])
    def test_whatever_may_be_sent_may_be_looked_for(self, client, external_id):
        payment_id = client.create_payment(single(external_id=external_id))
        found = client.find_payment(external_id)
        assert found is not None
        assert found.id == payment_id

    def test_of_several_the_paid_one_is_found(self, client, everifin):
        rows = [
            {"id": number, "externalId": "mine", "status": status}
            for number, status in enumerate(("FAILED", "FINISHED", "CREATED"))
        ]
        body = {"meta": {"status": "SUCCESS", "pagination": LAST}, "data": rows}
        everifin.faults.add("api.payments", body=body)
        found = client.find_payment("mine")
        assert found is not None
        assert found.id == "1"

    @pytest.mark.parametrize("order", [uuid.UUID(int=7), 71, lazystr("order-71")], ids=str)
    def test_a_payment_is_found_by_whatever_it_was_given(self, client, order):
        payment_id = client.create_payment(single(external_id=order))
        found = client.find_payment(order)
        assert found is not None
        assert found.id == payment_id

    @pytest.mark.parametrize("wrong", [None, "", " ", True, b"x", 1.5, ["a"]])
    def test_nothing_is_looked_for_without_an_external_id(self, client, everifin, wrong):
        for find in (client.find_payment, client.find_bulk_payment):
            with pytest.raises(InvalidRequestError) as caught:
                find(wrong)
            assert caught.value.field == "externalId"
        assert everifin.calls["api"] == 0

    def test_the_bank_rejects(self, client, accounts):
        sent = single(sender_iban=accounts["eftdemo3"], recipient_iban=box.REJECTED_IBAN)
        payment_id = client.create_payment(sent)
        client.process_payment(payment_id)
        client.process_payment(payment_id)
        with pytest.raises(PaymentRejectedError) as caught:
            client.process_payment(payment_id)
        assert caught.value.code == "PAYMENT_REJECTED"
        assert client.payment(payment_id).status is PaymentStatus.FAILED
        with pytest.raises(PaymentNotEditableError):
            client.process_payment(payment_id)

    def test_without_the_scope_nothing_is_paid(self, everifin):
        client = Client(Source(Secret(Site(everifin).tokens()["access_token"])))
        with pytest.raises(ScopeMissingError):
            client.create_payment(single())

    @pytest.mark.parametrize("payer", [EndUser(), EndUser(ip="192.0.2.7"), EndUser(user_agent="B")])
    def test_a_payer_who_is_not_known_cannot_pay(self, everifin, source, payer):
        client = Client(source, end_user=payer)
        with pytest.raises(EndUserMissingError, match="Nothing was sent"):
            client.process_payment("1", inputs={"otp": CANARY})
        assert "api.payment" not in everifin.calls

    def test_everifin_s_own_refusal_has_the_same_shape(self, client):
        with pytest.raises(InvalidRequestError) as caught:
            client.create_payment(single(sender_iban=iban("SK", "9991", 4)))
        assert (caught.value.field, caught.value.status) == ("senderIban", 422)

    def test_a_payment_of_somebody_else_is_not_found(self, everifin, client):
        payment_id = client.create_payment(single())
        token = Secret(Site(everifin).tokens("bob", scope="openid pis")["access_token"])
        other = Client(Source(token), end_user=PAYER)
        with pytest.raises(NotFoundError):
            other.payment(payment_id)
        with pytest.raises(NotFoundError):
            other.process_payment(payment_id)
        with pytest.raises(NotFoundError):
            other.payment("../1")

    def test_an_unreadable_key_sends_nothing_and_shows_nothing(self, client, everifin):
        payment_id = client.create_payment(single())
        step = asked(inputsToEncrypt=["otp"])
        with pytest.raises(InvalidRequestError, match="Nothing was sent") as caught:
            client.process_payment(payment_id, inputs={"otp": Secret(CANARY)}, step=step)
        assert CANARY not in report(caught.value)
        assert "api.payment" not in everifin.calls

    def test_every_call_has_an_async_version(self, client, accounts):
        async def pay() -> None:
            sender = accounts["eftdemo3"]
            sent, many = single(sender_iban=sender), bulk(sender_iban=sender)
            one_id = await client.acreate_payment(sent)
            many_id = await client.acreate_bulk_payment(many)
            step = await client.aprocess_payment(one_id)
            bulk_step = await client.aprocess_bulk_payment(many_id, inputs={})
            assert (type(step), type(bulk_step)) == (PushStep, PushStep)
            assert (await client.apayment(one_id)).id == one_id
            assert (await client.abulk_payment(many_id)).id == many_id
            assert [one.id async for one in client.apayments(page_size=1)] == [one_id]
            assert [one.id async for one in client.abulk_payments(sort="id:asc")] == [many_id]
            found = await client.afind_payment(str(sent.external_id))
            many_found = await client.afind_bulk_payment(str(many.external_id))
            assert (found and found.id, many_found and many_found.id) == (one_id, many_id)

        asyncio.run(pay())


def hold(everifin: Any, where: str) -> tuple[threading.Event, threading.Event]:
    """Let Everifin work on the next request until the second event; the first is its beginning."""
    is_begun, is_given_up = threading.Event(), threading.Event()

    def wait(_seconds: float) -> None:
        is_begun.set()
        assert is_given_up.wait(60)

    everifin.sleep = wait
    everifin.faults.add(where, latency_seconds=1, times=1)
    return is_begun, is_given_up


async def cancel(call: Coroutine[Any, Any, Any], is_begun: threading.Event) -> None:
    task = asyncio.create_task(call)
    assert await asyncio.to_thread(is_begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def eventually(
    ask: Callable[[], Coroutine[Any, Any, Any]], is_done: Callable[[Any], bool]
) -> Any:
    """The first answer after what goes on in another thread; that takes as long as it takes."""
    for _ in range(1200):
        if is_done(found := await ask()):
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError


class TestNothingIsPaidTwice:
    """S62: after a failure that leaves doubt nothing is repeated; the error says how to look."""

    @pytest.mark.parametrize(
        "fault",
        [
            {"lost": "before"},
            {"lost": "after"},
            {"truncate": True},
            {"latency_seconds": 999},
            {"status": 500},
            {"status": 502, "html": True},
            {"status": 503, "retry_after": 1},
            {"html": True},
            {"status": 302},
            {"body": "[]"},
            {"body": '{"meta": {"status": "SUCCESS"}, "data": {}}'},
            {"body": '{"data": {"id": "1", "id": "2"}}'},
        ],
        ids=str,
    )
    def test_a_failure_that_leaves_doubt_is_never_repeated(self, client, everifin, fault):
        sent = single(payment_message=CANARY)
        everifin.sleep = [].append
        everifin.faults.add("api.payments", **fault)
        with pytest.raises(PaymentUncertainError) as caught:
            client.create_payment(sent)
        assert everifin.calls["api.payments"] == 1
        assert caught.value.external_id == sent.external_id
        assert caught.value.payment_id is None
        assert not isinstance(caught.value, UnavailableError)
        shown = report(caught.value)
        assert CANARY not in shown
        assert IBAN not in shown

    def test_doubt_about_a_step_names_the_payment(self, client, everifin, accounts):
        payment_id = client.create_payment(single(sender_iban=accounts["eftdemo3"]))
        everifin.faults.add("api.payment", lost="after", times=1)
        with pytest.raises(PaymentUncertainError) as caught:
            client.process_payment(payment_id)
        assert everifin.calls["api.payment"] == 1
        assert caught.value.payment_id == payment_id
        assert caught.value.method == "PATCH"

    def test_what_was_created_behind_an_error_is_found(self, client):
        sent = single(recipient_iban=box.CREATED_500_IBAN)
        with pytest.raises(PaymentUncertainError) as caught:
            client.create_payment(sent)
        assert (caught.value.status, caught.value.code) == (500, "INTERNAL_SERVER_ERROR")
        found = client.find_payment(caught.value.external_id)
        assert found is not None
        assert found.status is PaymentStatus.CREATED

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            ({"html": True}, PaymentUncertainError),
            ({"body": ""}, PaymentUncertainError),
            ({"body": {"errors": [{"code": "INVALID_ACCESS_TOKEN"}]}}, PaymentUncertainError),
            ({"body": {**OWN_401, "errors": [{"code": "BANK_401"}]}}, PaymentUncertainError),
            ({"body": {**OWN_401, "errors": [{"code": "INVALID_SCOPE"}]}}, PaymentUncertainError),
            ({"body": {**OWN_401, "errors": [{"code": "NOT_AUTHORIZED"}]}}, NotAuthorizedError),
            ({"body": {**OWN_401, "data": {"id": "1"}}}, PaymentUncertainError),
            ({"body": {**OWN_401, "errors": OWN_401["errors"] * 2}}, PaymentUncertainError),
            ({"body": {**OWN_401, "errors": {"code": "NOT_AUTHORIZED"}}}, PaymentUncertainError),
            ({"body": {**OWN_401, "meta": {"status": "error"}}}, PaymentUncertainError),
            ({"body": {**OWN_401, "meta": {"status": "SUCCESS"}}}, PaymentUncertainError),
            ({"body": [OWN_401]}, PaymentUncertainError),
            ({"body": f"{json.dumps(OWN_401)}<!-- gateway -->"}, PaymentUncertainError),
        ],
        ids=str,
    )
    def test_a_401_of_somebody_else_proves_nothing(self, client, everifin, source, fault, kind):
        """A gateway answers 401 as well, and so does a bank, also when the work is done."""
        fault = {"lost": "after", "status": 401, **fault}
        everifin.faults.add("api.payments", **fault, times=1)
        everifin.faults.add("api.payment", **fault, times=1)
        for call in (lambda: client.create_payment(single()), lambda: client.process_payment("1")):
            with pytest.raises(kind):
                call()
        assert (everifin.calls["api.payments"], everifin.calls["api.payment"]) == (1, 1)
        assert source.rejected == []
        assert len(list(client.payments())) == 1

    @pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
    @pytest.mark.parametrize("code", ["PAYMENT_REJECTED", "INPUT_DATA_ERROR", "FORBIDDEN"])
    def test_a_refusal_that_is_not_everifin_s_own_proves_nothing(
        self, client, everifin, status, code
    ):
        """Many gateways have a list of errors with codes, too."""
        fault = {"lost": "after", "status": status, "body": {"errors": [{"code": code}]}}
        everifin.faults.add("api.payments", **fault, times=1)
        everifin.faults.add("api.payment", **fault, times=1)
        for call in (lambda: client.create_payment(single()), lambda: client.process_payment("1")):
            with pytest.raises(PaymentUncertainError):
                call()
        assert (everifin.calls["api.payments"], everifin.calls["api.payment"]) == (1, 1)

    @pytest.mark.parametrize("status", [200, 201, 202])
    @pytest.mark.parametrize("meta", [{}, {"meta": {"status": "SUCCESS"}}])
    def test_an_error_beside_a_success_proves_nothing(self, client, everifin, status, meta):
        """A warning, or what a gateway adds."""
        body = {**meta, "data": {"id": "1"}, "errors": [{"code": "NOTE_SOMETHING"}]}
        fault: dict[str, Any] = {"lost": "after", "status": status, "body": body}
        everifin.faults.add("api.payments", **fault, times=1)
        with pytest.raises(PaymentUncertainError):
            client.create_payment(single())
        assert everifin.calls["api.payments"] == 1

    @pytest.mark.parametrize(
        ("challenge", "is_proof"),
        [
            ('Bearer error="invalid_token"', True),
            ('Bearer realm="a, b", error="invalid_token", error_description="expired"', True),
            ("bearer error=invalid_token", True),
            ('Basic realm="x", Bearer error="invalid_token"', True),
            ("Bearer", False),
            ('Bearer error="insufficient_scope"', False),
            ('DPoP error="invalid_token"', False),
            ('Bearer realm="error=\\"invalid_token\\""', False),
            ('BEARER scope="a, b" , ERROR = "invalid_token" ,realm=x', True),
            ('Basic realm="x, Bearer error=invalid_token, y"', False),
            ('Basic realm="\\", Bearer error=invalid_token, \\""', False),
            ('Basic realm="x, Bearer error=invalid_token', False),
            ('Bearer realm="x", DPoP error="invalid_token"', False),
            ('Bearer error="invalid_token", error="insufficient_scope"', False),
            ('Bearer error="invalid_token2"', False),
            ("Bearer error=invalid_token" + "\t" * 980 + "x", False),
        ],
    )
    def test_the_challenge_of_rfc_6750_is_proof(self, settings, challenge, is_proof):
        refusal = answer_json(b"", "401 No", f"WWW-Authenticate: {challenge}\r\n")
        with Server(refusal) as server:
            settings.EVERIFIN_API_URL = server.url
            kind = NotAuthorizedError if is_proof else PaymentUncertainError
            with pytest.raises(kind):
                Client(Source(Secret("t"))).create_payment(single())
        assert len(server.requests) == (2 if is_proof else 1)

    def test_a_refused_token_is_renewed_and_the_payment_sent_once_more(self, everifin, source):
        site = Site(everifin)
        source.newer = lambda: Secret(site.tokens(scope="openid pis")["access_token"])
        everifin.expire_access_tokens()
        client = Client(source, end_user=PAYER)
        client.create_payment(single())
        assert everifin.calls["api.payments"] == 2
        assert len(list(client.payments())) == 1

    def test_doubt_after_a_renewed_token_is_doubt(self, everifin, source, client):
        everifin.faults.add("api.payments", status=401, body=OWN_401, times=1)
        everifin.faults.add("api.payments", lost="after", times=1)
        with pytest.raises(PaymentUncertainError):
            client.create_payment(single())
        assert everifin.calls["api.payments"] == 2
        assert len(source.rejected) == 1

    def test_two_many_requests_is_a_refusal(self, client, everifin):
        everifin.faults.add("api.payments", status=429, retry_after=7)
        with pytest.raises(UnavailableError) as caught:
            client.create_payment(single())
        assert caught.value.retry_after_seconds == 7
        assert everifin.calls["api.payments"] == 1

    def test_what_was_never_sent_leaves_no_doubt(self, settings):
        with Server(malicious_server.wait) as server:
            settings.EVERIFIN_API_URL = server.url
        with pytest.raises(UnreachableError):
            Client(Source(Secret("t"))).create_payment(single())

    def test_a_payment_is_sent_on_a_connection_of_its_own(self, settings):
        """A kept connection may be closed at the other end, and nobody could tell when."""
        with Server(answer_json(b'{"data": {"id": "1"}}')) as server:
            settings.EVERIFIN_API_URL = server.url
            client = Client(Source(Secret("t")), end_user=PAYER)
            client.create_payment(single())
            client.create_payment(single())
            assert [one.connection for one in server.requests] == [1, 2]
            assert strict_json(server.requests[0].body)["amount"] == Decimal("12.3")

    def test_a_reset_connection_is_not_tried_again(self, settings):
        with Server(malicious_server.reset) as server:
            settings.EVERIFIN_API_URL = server.url
            with pytest.raises(PaymentUncertainError):
                Client(Source(Secret("t"))).create_payment(single())
            assert len(server.requests) == 1

    def test_a_create_that_is_cancelled_goes_on_and_is_found_again(
        self, client, everifin, accounts
    ):
        sent = single(sender_iban=accounts["eftdemo3"])
        is_begun, is_given_up = hold(everifin, "api.payments")

        async def leave() -> Any:
            await cancel(client.acreate_payment(sent), is_begun)
            is_given_up.set()
            return await eventually(lambda: client.afind_payment(str(sent.external_id)), bool)

        assert asyncio.run(leave()).status is PaymentStatus.CREATED
        assert len(list(client.payments())) == 1

    def test_a_step_that_is_cancelled_goes_on_and_is_told_by_the_payment(
        self, client, everifin, accounts
    ):
        payment_id = client.create_payment(single(sender_iban=accounts["eftdemo3"]))
        client.process_payment(payment_id)
        client.process_payment(payment_id)
        before = client.payment(payment_id).status
        is_begun, is_given_up = hold(everifin, "api.payment")

        async def leave() -> Any:
            await cancel(client.aprocess_payment(payment_id), is_begun)
            is_given_up.set()
            return await eventually(
                lambda: client.apayment(payment_id), lambda found: found.status is not before
            )

        assert asyncio.run(leave()).status is PaymentStatus.FINISHED


def test_a_payment_cannot_be_changed():
    for sent in (single(), item(), bulk()):
        with pytest.raises(FrozenInstanceError):
            sent.external_id = "another"  # type: ignore[misc]

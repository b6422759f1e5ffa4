"""
Payments: what is sent to Everifin, checked before it goes out, and what its answers become.

A payment that breaks one of Everifin's documented rules cannot be made: its constructor raises
InvalidRequestError, whose ``field`` has Everifin's own spelling. Empty texts count as left out. A
repr shows no person's data.

IBAN and BIC are checked by python-stdnum, which ``everifin-django[payments]`` installs. Without it
no payment can be made at all: ImproperlyConfigured says so.

Source: Everifin's pages on single and bulk payments. What is only inferred says so.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import StrEnum
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from django.core.exceptions import ImproperlyConfigured

from everifin_django.bank.decoding import Raw, ReprById, identifier, moment, reader, text
from everifin_django.conf import conf, is_secure
from everifin_django.exceptions import InvalidRequestError
from everifin_django.secret import Secret

LEAST = Decimal("0.01")
MOST = Decimal(9_999_999_999)
MOST_PLACES = 2
CURRENCY = re.compile(r"[A-Z]{3}")
DIGITS = re.compile(r"[0-9]+")
SYMBOLS = ("variable_symbol", "constant_symbol", "specific_symbol")
MAX_LENGTHS: Mapping[str, int] = {
    "name": 255,
    "external_id": 255,
    "recipient_name": 140,
    "recipient_iban": 50,
    "sender_iban": 50,
    "redirect_url": 5000,
    "variable_symbol": 10,
    "constant_symbol": 4,
    "specific_symbol": 10,
    "reference": 35,
    "payment_message": 140,
}
ENCRYPTION = "RSAES-OAEP/SHA-256"
"""The only value of ``x-user-data-encryption-method`` (documented)."""

Inputs: TypeAlias = Mapping[str, str | Secret]


class OpenEnum(StrEnum):
    """Words of Everifin's, of which there may be more one day: those are UNKNOWN."""

    @classmethod
    def _missing_(cls, _: object) -> Self:
        return cls["UNKNOWN"]


class PaymentStatus(OpenEnum):
    """
    How a payment is. A status this app does not know is UNKNOWN; ``raw`` has its name.

    Source: CREATED, FINISHED, FAILED, and of bulk payments PROCESSING and PARTIALLY_PAID are
    documented, AUTHORIZING and PAID are older names. PROCESSING of single ones is inferred.
    """

    CREATED = "CREATED"
    AUTHORIZING = "AUTHORIZING"
    PROCESSING = "PROCESSING"
    FINISHED = "FINISHED"
    PARTIALLY_PAID = "PARTIALLY_PAID"
    PAID = "PAID"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"

    @property
    def is_final(self) -> bool:
        """Will it stay like this?"""
        return self in _FINAL

    @property
    def is_paid(self) -> bool:
        """Has all of it been paid?"""
        return self in {PaymentStatus.FINISHED, PaymentStatus.PAID}


_FINAL = frozenset(
    {
        PaymentStatus.FINISHED,
        PaymentStatus.PARTIALLY_PAID,
        PaymentStatus.PAID,
        PaymentStatus.FAILED,
    }
)


class StepType(OpenEnum):
    """What has to happen next (documented). One this app does not know is UNKNOWN."""

    REDIRECT = "REDIRECT"
    INPUT = "INPUT"
    NEXT = "NEXT"
    PUSH = "PUSH"
    UNKNOWN = "UNKNOWN"


class InputType(OpenEnum):
    """
    Which kind of field to show; one that is UNKNOWN as a text. Source: SELECT and IMAGE are
    documented, TEXT and PASSWORD inferred.
    """

    TEXT = "TEXT"
    PASSWORD = "PASSWORD"  # noqa: S105 - the name of a kind of field
    SELECT = "SELECT"
    IMAGE = "IMAGE"
    UNKNOWN = "UNKNOWN"


# What is sent


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _PaymentBase:
    """
    What a single payment and an item of a bulk payment have in common.

    Units: *amount* in *currency* (ISO 4217), 0.01 to 9999999999 with at most two places.
    *reference* excludes the three symbols. *external_id* is yours, and the only way to find a
    payment again whose answer was lost: one is made unless you give it.
    """

    amount: Decimal
    currency: str
    recipient_iban: str
    recipient_name: str | None = None
    recipient_bank_bic: str | None = None
    recipient_address: Mapping[str, Any] | None = None
    recipient_bank_address: Mapping[str, Any] | None = None
    variable_symbol: str | None = None
    constant_symbol: str | None = None
    specific_symbol: str | None = None
    reference: str | None = None
    payment_message: str | None = None
    priority: str | None = None
    external_id: str | None = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        _check_amount(self.amount)
        if not CURRENCY.fullmatch(self.currency):
            raise _wrong("currency", "regex", "three capital letters")
        _check_texts(self)
        _set_iban(self, "recipient_iban")
        _check_bic(self.recipient_bank_bic)
        _check_symbols(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def body(self) -> dict[str, Any]:
        """Return what Everifin is sent, as JSON's own types."""
        return _body(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SinglePayment(_PaymentBase):
    """
    One payment from an account of the user.

    *redirect_url* is your page that the bank sends the user back to; its host must have a dot.
    *payment_date* defaults to today. Without *sender_iban* the user chooses the account at
    Everifin.
    Errors: InvalidRequestError; ImproperlyConfigured without python-stdnum.
    Source: documented, but for *external_id*, the addresses and *priority*, which Everifin names
    for bulk items and in the detail only; set those to None if it should refuse one.
    """

    redirect_url: str
    payment_date: date | None = None
    sender_iban: str | None = None

    def __post_init__(self) -> None:
        # Without arguments, super() does not find the class that slots made anew.
        _PaymentBase.__post_init__(self)
        _check_redirect_url(self.redirect_url)
        _set_iban(self, "sender_iban")

    def body(self) -> dict[str, Any]:
        """Return what Everifin is sent, as JSON's own types."""
        return _body(self, conf.api_fields["new_payment"])


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BulkItem(_PaymentBase):
    """One payment of a bulk; *recipient_name* is needed. Errors: as SinglePayment."""

    def __post_init__(self) -> None:
        _PaymentBase.__post_init__(self)
        if not self.recipient_name:
            raise _wrong("recipient_name", "required", "given")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BulkPayment:
    """
    Many payments in one currency, which the user confirms once. *due_date* defaults to today.

    Errors: as SinglePayment.
    """

    name: str
    sender_iban: str
    redirect_url: str
    payments: tuple[BulkItem, ...]
    due_date: date | None = None
    external_id: str | None = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "payments", tuple(self.payments))
        for needed in ("name", "payments", "sender_iban"):
            if not getattr(self, needed):
                raise _wrong(needed, "required", "given")
        _check_texts(self)
        _set_iban(self, "sender_iban")
        _check_redirect_url(self.redirect_url)
        if len({one.currency for one in self.payments}) > 1:
            raise _wrong("payments", "currency", "in one currency")

    def __repr__(self) -> str:
        return f"<BulkPayment of {len(self.payments)}>"

    def body(self) -> dict[str, Any]:
        """Return what Everifin is sent, as JSON's own types."""
        return {**_body(self), "payments": [one.body() for one in self.payments]}


def sealed_body(body: Mapping[str, Any]) -> Secret:
    """Return *body* as JSON that no report of an error can show."""
    return Secret(json.dumps(body, allow_nan=False))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def _body(sent: Any, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    spelling = {one.name: _camel(one.name) for one in fields(sent)} | dict(names or {})
    values = {name: getattr(sent, name) for name in spelling}
    return {
        spelling[name]: _plain(value) for name, value in values.items() if value not in (None, "")
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal | int):
        # At most 12 digits: a float holds 15 and JSON writes the shortest text that means it, so
        # the number in the body is the very decimal.
        return float(value)
    if isinstance(value, date):
        return _timestamp(value)
    return value


def _timestamp(value: date) -> str:
    moment = value if isinstance(value, datetime) else datetime.combine(value, time(), UTC)
    if moment.tzinfo is None:
        raise ValueError("A datetime for Everifin needs a time zone.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Checks


def _wrong(name: str, rule: str, wanted: str) -> InvalidRequestError:
    error = InvalidRequestError(f"{_camel(name)} of a payment must be {wanted}. Nothing was sent.")
    error.field, error.rule = _camel(name), rule
    return error


def _check_amount(amount: Any) -> None:
    # A float is refused: 0.1 is none that a float could hold.
    if isinstance(amount, bool) or not isinstance(amount, Decimal | int):
        raise _wrong("amount", "number", "a Decimal")
    number = Decimal(amount)
    if not number.is_finite() or not LEAST <= number <= MOST:
        raise _wrong("amount", "range", f"from {LEAST} to {MOST}")
    if number != round(number, MOST_PLACES):
        raise _wrong("amount", "decimal", f"of at most {MOST_PLACES} places")


def _check_texts(sent: Any) -> None:
    names = {one.name for one in fields(sent)}
    for name, most in MAX_LENGTHS.items():
        text = getattr(sent, name) if name in names else None
        if text is None:
            continue
        if not text.isprintable():
            raise _wrong(name, "regex", "without line breaks and control characters")
        if len(text) > most:
            raise _wrong(name, "maxLength", f"of at most {most} characters")


def _check_symbols(sent: _PaymentBase) -> None:
    given = [name for name in SYMBOLS if getattr(sent, name)]
    for name in given:
        if not DIGITS.fullmatch(getattr(sent, name)):
            raise _wrong(name, "regex", "digits")
    if given and sent.reference:
        raise _wrong("reference", "symbolsOrReference", "left out where there is a symbol")


def _check_redirect_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not url.isascii() or " " in url or "." not in host or parts.scheme not in {"http", "https"}:
        raise _wrong("redirect_url", "url", "an http or https address whose host has a dot")


def _set_iban(sent: Any, name: str) -> None:
    given = getattr(sent, name)
    if not given and name == "sender_iban":
        return
    iban = _number("iban", given)
    if iban is None:
        raise _wrong(name, "iban", "an IBAN with a right checksum")
    object.__setattr__(sent, name, iban)


def _check_bic(bic: str | None) -> None:
    if bic and _number("bic", bic) is None:
        raise _wrong("recipient_bank_bic", "bic", "a BIC")


def _number(kind: str, text: str) -> str | None:
    """*text* without spaces, None if it is no IBAN or BIC."""
    try:
        # Imported on first use, because it comes with an extra: who only reads needs none.
        from stdnum import bic, iban
        from stdnum.exceptions import ValidationError
    except ImportError as error:
        raise ImproperlyConfigured(
            "Payments need python-stdnum, which checks IBANs: install everifin-django[payments]."
        ) from error
    validate = {"iban": iban.validate, "bic": bic.validate}[kind]
    try:
        return str(validate(text))
    except ValidationError:
        return None


# What comes back


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InputField:
    """
    One input the bank asks the user for. Send its value back under *name*.

    Shape: *options* are (value, label) of a SELECT, *image* is the image of an IMAGE as Everifin
    sent it. *label* was seen in a client; how an option is spelt is inferred.
    """

    name: str
    type: InputType
    label: str | None
    options: tuple[tuple[str, str], ...]
    image: str | None

    def __repr__(self) -> str:
        return f"<InputField {self.name}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PaymentStep(ReprById):
    """
    Where the processing of a payment stands, and by *type* what has to happen next.

    REDIRECT: send the browser to *redirect_url*, then process with the query of the return.
    INPUT: show *inputs*, process with their values. NEXT: process again. PUSH: the user confirms in
    the bank's app, process again after a while. Nothing more once *status* ``is_final``.
    """

    id: str
    status: PaymentStatus
    type: StepType | None
    redirect_url: str | None
    inputs: tuple[InputField, ...]
    inputs_to_encrypt: frozenset[str]
    raw: Raw = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PaymentDetail(ReprById):
    """
    A single payment, or an item of a bulk, as Everifin knows it.

    Source: documented, but for *external_id*, *payment_date*, *created_at* and *updated_at*, which
    are inferred. Everything but *id* may be None.
    """

    id: str
    status: PaymentStatus
    amount: Decimal | None
    currency: str | None
    fee: Decimal | None
    fee_currency: str | None
    fee_type: str | None
    sender_iban: str | None
    recipient_iban: str | None
    recipient_name: str | None
    recipient_bank_bic: str | None
    variable_symbol: str | None
    constant_symbol: str | None
    specific_symbol: str | None
    reference: str | None
    payment_message: str | None
    external_id: str | None
    payment_date: datetime | None
    created_at: datetime | None
    updated_at: datetime | None
    raw: Raw = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BulkPaymentDetail(ReprById):
    """A bulk payment as Everifin knows it. *external_id* is inferred, all else documented."""

    id: str
    status: PaymentStatus
    name: str | None
    sender_iban: str | None
    payer_name: str | None
    payments_count: int | None
    total_amount: Decimal | None
    currency: str | None
    external_id: str | None
    due_date: datetime | None
    created_at: datetime | None
    updated_at: datetime | None
    payments: tuple[PaymentDetail, ...]
    raw: Raw = field(hash=False)


def created_id(raw: Raw) -> str:
    """Return the id of what was created. Errors: as of ``bank.account_reader``."""
    return identifier(raw["id"], "id")


def step(raw: Raw) -> PaymentStep:
    """Return the step that *raw* describes. Errors: as of ``bank.account_reader``, and KeyError."""
    kind = _text(raw, "type")
    asked = raw.get("inputSet") or ([raw["input"]] if raw.get("input") else [])
    found = PaymentStep(
        id=created_id(raw),
        status=_status(raw.get("status"), "status"),
        type=StepType(kind) if kind else None,
        redirect_url=_text(raw, "redirectUrl"),
        inputs=tuple(_input(one) for one in asked),
        inputs_to_encrypt=frozenset(str(name) for name in raw.get("inputsToEncrypt") or ()),
        raw=raw,
    )
    if found.type is StepType.REDIRECT and not is_secure(found.redirect_url or ""):
        raise ValueError("a browser is sent to https only")
    return found


def payment_reader() -> Callable[[Raw], PaymentDetail]:
    """
    Return a function that makes a single payment, or an item of a bulk, of Everifin's object.

    Errors: as of ``bank.account_reader``.
    """
    return reader(PaymentDetail, conf.api_fields["payment"], status=_status)


def bulk_payment_reader() -> Callable[[Raw], BulkPaymentDetail]:
    """The same for a bulk payment."""
    read_item = payment_reader()

    def payments(found: Any, name: str) -> tuple[PaymentDetail, ...]:
        return tuple(read_item(one) for one in found or ())

    return reader(
        BulkPaymentDetail,
        conf.api_fields["bulk_payment"],
        status=_status,
        payments_count=_count,
        due_date=_moment_unless_empty,
        payments=payments,
    )


def _status(value: Any, name: str) -> PaymentStatus:
    return PaymentStatus(text(value, name) or "")


def _count(value: Any, name: str) -> int | None:
    return None if value is None else int(value)


def _moment_unless_empty(value: Any, name: str) -> datetime | None:
    # The sample of what is sent has an empty text for a date that is left out.
    return moment(value or None, name)


def _text(raw: Raw, name: str) -> str | None:
    return text(raw.get(name), name)


def _input(raw: Raw) -> InputField:
    return InputField(
        name=str(raw["name"]),
        type=InputType(_text(raw, "type") or ""),
        label=_text(raw, "label"),
        options=tuple(_option(one) for one in raw.get("selectOptions") or ()),
        image=_text(raw, "image"),
    )


def _option(raw: Any) -> tuple[str, str]:
    if not isinstance(raw, Mapping):
        return str(raw), str(raw)
    names = conf.api_fields["input_option"]
    value = str(raw.get(names["value"], raw.get("id", "")))
    return value, str(raw.get(names["label"], raw.get("name", value)))


# Encryption of what the user types


def encryption_key(config: Any) -> rsa.RSAPublicKey:
    """
    Return the public key of an answer's ``inputEncryptionConfig``.

    Assumed, because Everifin does not publish the inner names: ``key`` (or ``publicKey``) is the
    key as PEM, or the base64 of its DER. A site whose Everifin spells it otherwise passes a
    function of its own to ``process_payment(key_of=...)``.
    Errors: ValueError or another of its kind for anything else.
    """
    text = str(config.get("key", config.get("publicKey")))
    if text.startswith("-----BEGIN"):
        key = load_pem_public_key(text.encode())
    else:
        key = load_der_public_key(base64.b64decode(text, validate=True))
    if not isinstance(key, rsa.RSAPublicKey):
        raise TypeError("The key is not an RSA key.")
    return key


KeyOf: TypeAlias = Callable[[Any], rsa.RSAPublicKey]


def names_to_encrypt(inputs: Inputs, step: PaymentStep | None) -> frozenset[str]:
    """Return the names of those *inputs* which *step* wants encrypted."""
    return step.inputs_to_encrypt & inputs.keys() if step else frozenset()


def sealed_inputs(inputs: Inputs, step: PaymentStep | None, key_of: KeyOf) -> Secret | None:
    """
    Return the body that answers *step* with *inputs*, encrypted where it asks for that.

    None if the key cannot be read, or a value is longer than it can take: nothing is sent in the
    clear instead. That the ciphertext is sent as base64 is inferred.
    """
    names = names_to_encrypt(inputs, step)
    try:
        key = key_of(step.raw.get("inputEncryptionConfig")) if step and names else None
        return sealed_body(
            {
                name: _encrypted(key, value) if key and name in names else _opened(value)
                for name, value in inputs.items()
            }
        )
    except (ValueError, TypeError, AttributeError):
        return None


def _opened(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value


def _encrypted(key: rsa.RSAPublicKey, value: str | Secret) -> str:
    scheme = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
    return base64.b64encode(key.encrypt(_opened(value).encode(), scheme)).decode()

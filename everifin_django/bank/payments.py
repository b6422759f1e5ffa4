"""
Payments: what is sent to Everifin, checked before it goes out, and what its answers become.

A payment that breaks one of Everifin's documented rules cannot be made: its constructor raises
InvalidRequestError, whose ``field`` has Everifin's own spelling. Empty strings count as left out. A
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
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import Promise

from everifin_django.bank import dates
from everifin_django.bank.decoding import (
    Raw,
    ReprById,
    identifier,
    moment,
    reader,
    rows_of,
    text,
)
from everifin_django.conf import conf, is_secure
from everifin_django.exceptions import AnswerError, InvalidRequestError
from everifin_django.secret import Secret, hides_frames

LEAST = Decimal("0.01")
MOST = Decimal(9_999_999_999)
MOST_PLACES = 2
CURRENCY = re.compile(r"[A-Z]{3}")
DIGITS = re.compile(r"[0-9]+")
SYMBOLS = ("variable_symbol", "constant_symbol", "specific_symbol")
ADDRESSES = ("recipient_address", "recipient_bank_address")
NUMBERS_TOO = frozenset({*SYMBOLS, "external_id"})
NEEDED_STRINGS = frozenset({"currency", "recipient_iban", "name"})
MAX_LENGTH = 255
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

MIN_KEY_BITS = 2048
SENSITIVE = frozenset({"userId", "userPassword", "otp"})
"""The inputs that Everifin documents as to be encrypted."""

MAX_URL_LENGTH = 5000
IMAGE = re.compile(r"data:image/(?:png|gif|jpe?g|webp|bmp);base64,[A-Za-z0-9+/]+={0,2}")

Inputs: TypeAlias = Mapping[str, str | int | Secret]
Symbol: TypeAlias = str | int


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
        """Is the payment over? Then its status does not change any more."""
        return self in _FINAL

    @property
    def is_paid(self) -> bool:
        """Has all of it been paid? PARTIALLY_PAID, of a bulk, is over and not paid in full."""
        return self in {PaymentStatus.FINISHED, PaymentStatus.PAID}


_FINAL = frozenset(
    {
        PaymentStatus.FINISHED,
        PaymentStatus.PARTIALLY_PAID,
        PaymentStatus.PAID,
        PaymentStatus.FAILED,
    }
)


class InputType(OpenEnum):
    """
    Which kind of field to show; UNKNOWN as a text field. Source: SELECT and IMAGE are
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
    *reference* excludes the three symbols, which may be numbers. *external_id* is yours (a string,
    a number or a UUID), and the only way to find a payment again whose answer was lost: one is made
    unless you give it.
    """

    amount: Decimal
    currency: str
    recipient_iban: str
    recipient_name: str | None = None
    recipient_bank_bic: str | None = None
    recipient_address: Mapping[str, Any] | None = None
    recipient_bank_address: Mapping[str, Any] | None = None
    variable_symbol: Symbol | None = None
    constant_symbol: Symbol | None = None
    specific_symbol: Symbol | None = None
    reference: str | None = None
    payment_message: str | None = None
    priority: str | None = None
    external_id: str | int | uuid.UUID | None = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        _check_amount(self.amount)
        _set_strings(self)
        if not CURRENCY.fullmatch(self.currency):
            raise _wrong("currency", "regex", "three capital letters")
        _set_iban(self, "recipient_iban")
        _check_bic(self.recipient_bank_bic)
        _check_symbols(self)
        for name in ADDRESSES:
            _set_address(self, name)

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
    ``pay_once`` sets it, so leave it out there. *payment_date* defaults to today. Without
    *sender_iban* the user chooses the account at Everifin.
    Errors: InvalidRequestError; ValueError for a datetime without a time zone;
    ImproperlyConfigured without python-stdnum.
    Source: documented, but for *external_id*, the addresses and *priority*, which Everifin names
    for bulk items and in the detail only; set those to None if it should refuse one.
    """

    redirect_url: str | None = None
    payment_date: date | None = None
    sender_iban: str | None = None

    def __post_init__(self) -> None:
        # Without arguments, super() does not find the class that slots made anew.
        _PaymentBase.__post_init__(self)
        _check_redirect_url(self.redirect_url)
        _set_iban(self, "sender_iban")
        _check_date(self, "payment_date")

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
    redirect_url: str | None = None
    payments: tuple[BulkItem, ...]
    due_date: date | None = None
    external_id: str | int | uuid.UUID | None = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "payments", tuple(self.payments))
        for needed in ("name", "payments", "sender_iban"):
            if not getattr(self, needed):
                raise _wrong(needed, "required", "given")
        _set_strings(self)
        _set_iban(self, "sender_iban")
        _check_redirect_url(self.redirect_url)
        _check_date(self, "due_date")
        if len({one.currency for one in self.payments}) > 1:
            raise _wrong("payments", "currency", "in one currency")

    def __repr__(self) -> str:
        return f"<BulkPayment of {len(self.payments)}>"

    def body(self) -> dict[str, Any]:
        """Return what Everifin is sent, as JSON's own types."""
        return {**_body(self), "payments": [one.body() for one in self.payments]}


def to_json(body: Mapping[str, Any]) -> Secret:
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
        return dates.timestamp(dates.in_utc(value))
    return value


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


def _set_strings(sent: Any) -> None:
    """Check what is sent as a string; numbers, UUIDs and lazy translations become strings."""
    names = {one.name for one in fields(sent)}
    for name in names & {*MAX_LENGTHS, "currency", "recipient_bank_bic", "priority"}:
        found = to_string(getattr(sent, name), name)
        object.__setattr__(sent, name, found)
        if found is None:
            continue
        if not found.isprintable():
            raise _wrong(name, "regex", "without line breaks and control characters")
        if name == "external_id" and found.isspace():
            raise _wrong(name, "regex", "more than spaces")
        most = MAX_LENGTHS.get(name, MAX_LENGTH)
        if len(found) > most:
            raise _wrong(name, "maxLength", f"of at most {most} characters")


def to_string(value: Any, name: str) -> str | None:
    """
    Return what a field of a payment is sent as. Errors: InvalidRequestError for another type than
    the field's.
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None and name not in NEEDED_STRINGS:
        return None
    is_number = name in NUMBERS_TOO and isinstance(value, int) and not isinstance(value, bool)
    is_uuid = name == "external_id" and isinstance(value, uuid.UUID)
    if is_number or is_uuid or isinstance(value, str | Promise):
        return str(value)
    raise _wrong(name, "string", "a string")


def _check_date(sent: Any, name: str) -> None:
    given = getattr(sent, name)
    if given in (None, ""):
        return
    if not isinstance(given, date):
        raise _wrong(name, "date", "a date")
    try:
        dates.in_utc(given)
    except OverflowError as error:
        raise _wrong(name, "date", "a date of the calendar") from error


@hides_frames
def _set_address(sent: Any, name: str) -> None:
    """Keep the address as JSON's own types, in which it is sent and stored."""
    given = getattr(sent, name)
    if given is None:
        return
    try:
        plain = json.loads(json.dumps(_json_object(given), allow_nan=False, default=_json_type))
    except Exception as error:
        raise _wrong(name, "object", "a mapping that JSON can hold") from error
    object.__setattr__(sent, name, plain)


def _json_object(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError("This is no mapping.")


def _json_type(value: Any) -> Any:
    return str(value) if isinstance(value, Promise) else _json_object(value)


def _check_symbols(sent: _PaymentBase) -> None:
    given = [name for name in SYMBOLS if getattr(sent, name)]
    for name in given:
        if not DIGITS.fullmatch(getattr(sent, name)):
            raise _wrong(name, "regex", "digits")
    if given and sent.reference:
        raise _wrong("reference", "symbolsOrReference", "left out where there is a symbol")


def check_way_back(sent: SinglePayment | BulkPayment) -> None:
    """Errors: InvalidRequestError for a payment without *redirect_url*, which Everifin requires."""
    if sent.redirect_url is None:
        raise _wrong("redirect_url", "required", "given")


def _check_redirect_url(url: str | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        is_whole = "." in (parts.hostname or "") and parts.scheme in {"http", "https"}
    except ValueError:
        is_whole = False
    # Browsers take a backslash for a slash, and leave a fragment to the page after the bank's.
    if not is_whole or not url.isascii() or "@" in parts.netloc or set(url) & {" ", "\\", "#"}:
        needed = "an http or https URL whose host has a dot, without user name or fragment"
        raise _wrong("redirect_url", "url", needed)


def _set_iban(sent: Any, name: str) -> None:
    given = getattr(sent, name)
    if not given and name == "sender_iban":
        return
    object.__setattr__(sent, name, _number("iban", given, name, "an IBAN with a right checksum"))


def _check_bic(bic: str | None) -> None:
    if bic:
        _number("bic", bic, "recipient_bank_bic", "a BIC")


@hides_frames
def _number(kind: str, text: str, name: str, wanted: str) -> str:
    """*text* without spaces. Errors: InvalidRequestError if it is no IBAN or BIC."""
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
    except ValidationError as error:
        raise _wrong(name, kind, wanted) from error


# What comes back


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InputField:
    """
    One input the bank asks the user for. Send its value back under *name*.

    Shape: *options* are (value, label) of a SELECT; *image* is the image of an IMAGE, as a
    ``data:`` URL that an ``<img>`` can show, None for all else that Everifin sent. *label* was seen
    in a client; how an option is spelt is inferred.
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
    Where the processing of a payment is, and by its class what has to happen next.

    ``match`` tells the classes: RedirectStep, InputStep, NextStep, PushStep, FinishedStep,
    UnknownStep. *raw* is plain JSON, fit for a session: fractions are strings in it.
    """

    id: str
    status: PaymentStatus
    raw: Raw = field(hash=False)

    @staticmethod
    @hides_frames
    def from_raw(raw: Any) -> PaymentStep:
        """
        Return the step that *raw* describes: Everifin's answer, or the ``raw`` of a step that you
        kept in the session.

        Errors: AnswerError for anything else, and for a redirect that is not to https.
        """
        try:
            return _step(raw)
        except Exception as error:
            raise AnswerError("A step of a payment has a shape that is not Everifin's.") from error


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RedirectStep(PaymentStep):
    """
    Send the browser to *redirect_url*; when it comes back, process with all of its query as
    *inputs*, and with this step.
    """

    redirect_url: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InputStep(PaymentStep):
    """
    Show *inputs*, and process with their values and with this step, which encrypts those that
    *inputs_to_encrypt* names.
    """

    inputs: tuple[InputField, ...]
    inputs_to_encrypt: frozenset[str]


class NextStep(PaymentStep):
    """Process again."""

    __slots__ = ()


class PushStep(PaymentStep):
    """The user confirms in the bank's app: process again after a while."""

    __slots__ = ()


class FinishedStep(PaymentStep):
    """Nothing more is to be done: *status* ``is_final``. Whether it is paid, ``is_paid`` says."""

    __slots__ = ()


class UnknownStep(PaymentStep):
    """
    Everifin answered with a step that this app does not know, or with none. ``raw["type"]`` has its
    name; read the payment to learn how it is.
    """

    __slots__ = ()


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
    """Return the id of what was created. Errors: KeyError, TypeError, ValueError."""
    return identifier(raw["id"], "id")


def _step(raw: Raw) -> PaymentStep:
    common: dict[str, Any] = {
        "id": created_id(raw),
        "status": _status(raw.get("status"), "status"),
        "raw": _plain_json(raw),
    }
    kind = raw.get("type")
    if common["status"].is_final:
        return FinishedStep(**common)
    if kind == "REDIRECT":
        return RedirectStep(**common, redirect_url=_guarded(raw.get("redirectUrl")))
    if kind == "INPUT":
        asked = raw.get("inputSet") or ([raw["input"]] if raw.get("input") else [])
        inputs = tuple(_input(one) for one in asked)
        return InputStep(**common, inputs=inputs, inputs_to_encrypt=_to_encrypt(raw, inputs))
    return _BARE_STEPS.get(str(kind), UnknownStep)(**common)


_BARE_STEPS: Mapping[str, type[PaymentStep]] = {"NEXT": NextStep, "PUSH": PushStep}


def _guarded(url: Any) -> str:
    """*url*, if a browser may be sent there: https to a host, without a user's name, one line."""
    if not isinstance(url, str) or len(url) > MAX_URL_LENGTH:
        raise TypeError("The URL of a redirect is no string, or too long.")
    is_plain = url.isascii() and url.isprintable() and not set(url) & set(' \\"<>')
    if not is_plain or not is_secure(url) or "@" in urlsplit(url).netloc:
        raise ValueError("A browser is sent to https only, and to no user's name.")
    return url


def _to_encrypt(raw: Raw, inputs: tuple[InputField, ...]) -> frozenset[str]:
    """
    What must not go out in clear. Where a key came without a list, what Everifin documents as
    sensitive, and each password.
    """
    listed = raw.get("inputsToEncrypt")
    if isinstance(listed, str):
        listed = listed.replace(",", " ").split()
    if listed:
        if not all(isinstance(name, str) for name in listed):
            raise TypeError("The names of inputs to encrypt are not strings.")
        return frozenset(listed)
    passwords = {one.name for one in inputs if one.type is InputType.PASSWORD}
    return SENSITIVE | passwords if raw.get("inputEncryptionConfig") else frozenset()


def _plain_json(value: Any) -> Any:
    """*value* as a JSON session keeps it: Everifin's fractions, which are Decimals, as strings."""
    if isinstance(value, Mapping):
        return {name: _plain_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain_json(inner) for inner in value]
    return str(value) if isinstance(value, Decimal) else value


def payment_reader() -> Callable[[Any], PaymentDetail]:
    """
    Return a function that makes a single payment, or an item of a bulk, of Everifin's object.

    Errors: as of ``accounts.account_reader``.
    """
    return reader(PaymentDetail, conf.api_fields["payment"], status=_status)


def bulk_payment_reader() -> Callable[[Any], BulkPaymentDetail]:
    """Return the same for a bulk payment. Items without id are left out; ``raw`` has them."""
    read_item = payment_reader()

    def payments(found: Any, name: str) -> tuple[PaymentDetail, ...]:
        return rows_of(found, read_item, f"BulkPayment.{name}")

    return reader(
        BulkPaymentDetail,
        conf.api_fields["bulk_payment"],
        status=_status,
        due_date=_moment_unless_empty,
        payments=payments,
    )


def _status(value: Any, name: str) -> PaymentStatus:
    return PaymentStatus(value if isinstance(value, str) else "")


def _moment_unless_empty(value: Any, name: str) -> datetime | None:
    # The sample of what is sent has an empty string for a date that is left out.
    return moment(value or None, name)


def _input(raw: Raw) -> InputField:
    image = raw.get("image")
    return InputField(
        name=identifier(raw["name"], "name"),
        type=InputType(str(raw.get("type")).upper()),
        label=text(raw.get("label"), "label"),
        options=tuple(_option(one) for one in raw.get("selectOptions") or ()),
        image=image if isinstance(image, str) and IMAGE.fullmatch(image) else None,
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


@hides_frames
def answer_step(step: PaymentStep | None, inputs: Inputs, key_of: KeyOf) -> tuple[Secret, bool]:
    """
    Return the body that answers *step* with *inputs*, and whether any of them is encrypted in it.

    That the ciphertext is sent as base64 is inferred.
    Errors: InvalidRequestError if *step* asks for no inputs, or for others, or if one cannot be
    encrypted. Nothing is ever sent in clear instead.
    """
    names = _names_to_encrypt(step, inputs)
    try:
        key = _strong(key_of(step.raw.get("inputEncryptionConfig"))) if step and names else None
        body = {
            name: _encrypted(key, _revealed(value)) if key and name in names else _revealed(value)
            for name, value in inputs.items()
        }
        return to_json(body), bool(names)
    except Exception as error:
        raise InvalidRequestError(
            "The key Everifin wants the user's inputs encrypted with cannot be read, is below "
            f"{MIN_KEY_BITS} bits, or is too short for one of them. Nothing was sent: see "
            "process_payment's key_of."
        ) from error


def _names_to_encrypt(step: PaymentStep | None, inputs: Inputs) -> frozenset[str]:
    """The names of *inputs* that must be encrypted. Errors: InvalidRequestError."""
    if not inputs:
        return frozenset()
    match step:
        case _ if not all(_is_text(value) for value in inputs.values()):
            why = "one of them is no string"
        case InputStep():
            asked = {one.name for one in step.inputs} | step.inputs_to_encrypt
            if inputs.keys() <= asked:
                return _named(inputs, step.inputs_to_encrypt)
            why = "the last step did not ask for one of them"
        case RedirectStep():
            # A link on a foreign page may bring anything along.
            if not _named(inputs, SENSITIVE):
                return frozenset()
            why = "no return from the bank has a password in it"
        case None:
            why = "give the step that asked for them"
        case _:
            why = "the last step asked for none"
    raise InvalidRequestError(f"The inputs of a payment were not sent: {why}.")


def _named(inputs: Inputs, names: frozenset[str]) -> frozenset[str]:
    """The *inputs* that *names* have, in whichever case: what is secret errs on the safe side."""
    plain = {name.strip().casefold() for name in names}
    return frozenset(name for name in inputs if name.strip().casefold() in plain)


def _strong(key: rsa.RSAPublicKey) -> rsa.RSAPublicKey:
    if key.key_size < MIN_KEY_BITS:
        raise ValueError("The key is too short.")
    return key


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | Secret) and not isinstance(value, bool)


def _revealed(value: str | int | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else str(value)


def _encrypted(key: rsa.RSAPublicKey, value: str) -> str:
    scheme = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
    return base64.b64encode(key.encrypt(value.encode(), scheme)).decode()

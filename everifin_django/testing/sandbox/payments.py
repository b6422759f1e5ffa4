"""
The bank API's payments: create, process, look; and the bank's page that a payer returns from.

Documented: paths of single and bulk payments, the fields of both and their limits, the four
processing types, the two headers of the person present, the shape of a refusal, and that a payment
which is over answers NOT_EDITABLE. Inferred: the list of single payments, most HTTP statuses, and
that the answers tell ``externalId``.

Invented, to make each thing happen when it is wanted:

======================= ========================================================================
the sender's account is processing
======================= ========================================================================
at Demo Bank One        REDIRECT to the bank's page
at Demo Bank Two        INPUT of ``userId`` and ``userPassword`` (to be encrypted, plain is taken
                        too), INPUT of one ``otp`` beside an image; ``000000`` is a wrong one
at Demo Bank Three      PUSH, then NEXT
not given               INPUT of a SELECT of the user's accounts, then as that account's bank
======================= ========================================================================

======================= ========================================================================
the recipient's IBAN is what happens
======================= ========================================================================
``REJECTED_IBAN``       the last step answers PAYMENT_REJECTED
``FAILED_IBAN``         the last step ends with FAILED; in a bulk, only this item does
``SLOW_IBAN``           the last step answers NEXT three times before it ends
``CREATED_500_IBAN``    the payment is created, and the answer says 500
======================= ========================================================================

Also invented: names of fields in ``inputEncryptionConfig``, how an option is spelt, and the query
parameters a payer comes back with.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.http import HttpRequest, HttpResponse

from everifin_django.testing.sandbox import data
from everifin_django.testing.sandbox.api import (
    PAGING,
    Refusal,
    Row,
    accounts_of,
    for_user,
    no_such_entity,
    read_query,
    reply_list,
    reply_one,
    wrong,
)
from everifin_django.testing.sandbox.pages import message, page, redirect
from everifin_django.testing.sandbox.state import State
from everifin_django.testing.sandbox.store import StoredPayment, User

REJECTED_IBAN = data.iban("SK", "9990", 1)
FAILED_IBAN = data.iban("SK", "9990", 2)
SLOW_IBAN = data.iban("SK", "9990", 3)
CREATED_500_IBAN = data.iban("SK", "9990", 4)

WRONG_OTP = "000000"
SLOW_STEPS = 3
ENCRYPTION = "RSAES-OAEP/SHA-256"
TO_ENCRYPT = ("userId", "userPassword", "otp")
SENDER_HEADERS = ("x-ef-sender-ip", "x-ef-sender-user-agent")
IMAGE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="

FLOWS: Mapping[str, tuple[str, ...]] = {
    "eftdemo1": ("bank",),
    "eftdemo2": ("login", "otp"),
    "eftdemo3": ("push", "next"),
}

Document = dict[str, Any]


# What may be sent


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field has to be. *test* is asked of what is given; *args* go into the refusal."""

    name: str
    test: Callable[[Any], bool]
    args: Mapping[str, Any]

    @classmethod
    def text(cls, most: int) -> Rule:
        return cls("maxLength", lambda v: isinstance(v, str) and len(v) <= most, {"length": most})

    @classmethod
    def pattern(cls, pattern: str) -> Rule:
        return cls("regex", lambda v: isinstance(v, str) and bool(re.fullmatch(pattern, v)), {})


def is_iban(value: Any) -> bool:
    """Source: ISO 13616-1 and ISO 7064."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{1,30}", value):
        return False
    return int("".join(str(int(one, 36)) for one in value[4:] + value[:4])) % 97 == 1


def _is_amount(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0.01 <= value <= 9_999_999_999


def _is_url(value: Any) -> bool:
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and "." in (parts.hostname or "")


def _is_moment(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


IBAN = Rule("iban", is_iban, {})
URL = Rule("url", _is_url, {})
MOMENT = Rule("date", _is_moment, {})

TRANSFER: Mapping[str, Rule] = {
    "amount": Rule("range", _is_amount, {"start": 0.01, "stop": 9_999_999_999}),
    "currency": Rule.pattern("[A-Z]{3}"),
    "recipientIban": IBAN,
    "recipientName": Rule.text(140),
    "recipientBankBic": Rule.pattern("[A-Z0-9]{8}([A-Z0-9]{3})?"),
    "variableSymbol": Rule.pattern(r"\d{1,10}"),
    "constantSymbol": Rule.pattern(r"\d{1,4}"),
    "specificSymbol": Rule.pattern(r"\d{1,10}"),
    "reference": Rule.text(35),
    "paymentMessage": Rule.text(140),
    "externalId": Rule.text(255),
}
SINGLE = {**TRANSFER, "redirectUrl": URL, "senderIban": IBAN, "paymentDate": MOMENT}
BULK = {
    "name": Rule.text(255),
    "senderIban": IBAN,
    "redirectUrl": URL,
    "dueDate": MOMENT,
    "externalId": Rule.text(255),
}
NEEDED_OF_SINGLE = ("amount", "currency", "recipientIban", "redirectUrl")
NEEDED_OF_ITEM = ("amount", "currency", "recipientIban", "recipientName")
NEEDED_OF_BULK = ("name", "senderIban", "redirectUrl", "payments")
SYMBOLS = ("variableSymbol", "constantSymbol", "specificSymbol")


def _checked(
    sent: Any, rules: Mapping[str, Rule], needed: tuple[str, ...], prefix: str = ""
) -> Document:
    """*sent* without what is empty and what nobody knows. Refused if a rule is broken."""
    given = sent if isinstance(sent, dict) else {}
    found = {name: given[name] for name in rules if given.get(name) not in (None, "")}
    for name in needed:
        if given.get(name) in (None, "", []):
            raise wrong("required", prefix + name)
    for name, value in found.items():
        if not rules[name].test(value):
            raise wrong(rules[name].name, prefix + name, rules[name].args)
    if "reference" in found and found.keys() & set(SYMBOLS):
        raise wrong("symbolsOrReference", prefix + "reference")
    return found


def _checked_bulk(sent: Any) -> Document:
    found = _checked(sent, BULK, NEEDED_OF_BULK)
    items = sent["payments"]
    if not isinstance(items, list):
        raise wrong("array", "payments")
    found["payments"] = [
        _checked(item, TRANSFER, NEEDED_OF_ITEM, f"payments.{number}.")
        for number, item in enumerate(items)
    ]
    if len({item["currency"] for item in found["payments"]}) > 1:
        raise wrong("sameCurrency", "payments")
    return found


def _body(request: HttpRequest) -> dict[str, Any]:
    try:
        decoded = json.loads(request.body or b"{}")
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise Refusal(400, "INPUT_DATA_ERROR", "The body is not a JSON object.")
    return decoded


# Create, look


@for_user(scope="pis")
def single_payments(state: State, request: HttpRequest, user: User) -> HttpResponse:
    if request.method == "GET":
        return _listed(state, request, user, "single")
    return _create(state, user, "single", _checked(_body(request), SINGLE, NEEDED_OF_SINGLE))


@for_user(scope="pis")
def bulk_payments(state: State, request: HttpRequest, user: User) -> HttpResponse:
    if request.method == "GET":
        return _listed(state, request, user, "bulk")
    return _create(state, user, "bulk", _checked_bulk(_body(request)))


@for_user(scope="pis")
def single_payment(state: State, request: HttpRequest, user: User, payment_id: str) -> HttpResponse:
    return _look_or_process(state, request, user, "single", payment_id)


@for_user(scope="pis")
def bulk_payment(state: State, request: HttpRequest, user: User, payment_id: str) -> HttpResponse:
    return _look_or_process(state, request, user, "bulk", payment_id)


def _listed(state: State, request: HttpRequest, user: User, kind: str) -> HttpResponse:
    query = read_query(request, allowed=PAGING)
    rows = [_as_json(state, user, one) for one in state.store.payments(user.sub, kind)]
    return reply_list(query, rows, sortable=("id", "createdAt", "updatedAt"))


def _create(state: State, user: User, kind: str, sent: Document) -> HttpResponse:
    now = _now(state)
    document = {"sent": sent, "status": "CREATED", "createdAt": now, "updatedAt": now}
    sender = sent.get("senderIban")
    account = _account_of(state, user, sender) if sender else None
    if sender and account is None:
        raise wrong("exists", "senderIban")
    document["flow"] = list(FLOWS[account.plan.bank.id]) if account else ["account"]
    payment_id = state.store.add_payment(user.sub, kind, document)
    if sent.get("recipientIban") == CREATED_500_IBAN:
        raise Refusal(500, "INTERNAL_SERVER_ERROR", "The payment exists all the same.")
    # Documented as a number; the samples have a text.
    return reply_one({"id": str(payment_id) if kind == "single" else payment_id})


def _look_or_process(
    state: State, request: HttpRequest, user: User, kind: str, payment_id: str
) -> HttpResponse:
    is_id = payment_id.isascii() and payment_id.isdecimal() and len(payment_id) < 10
    payment = state.store.payment(int(payment_id)) if is_id else None
    if payment is None or (payment.sub, payment.kind) != (user.sub, kind):
        raise no_such_entity()
    if request.method == "PATCH":
        return _process(state, request, user, payment)
    return reply_one(_as_json(state, user, payment))


def _as_json(state: State, user: User, payment: StoredPayment) -> Row:
    document, sent = payment.document, payment.document["sent"]
    shown = {"id": payment.id, "status": document["status"]}
    shown |= {name: document[name] for name in ("createdAt", "updatedAt")}
    if payment.kind == "single":
        fields = dict.fromkeys(SINGLE) | {"feeType": None, "fee": None, "feeCurrency": None}
        return {**fields, **sent, **shown, "senderIban": _sender(document)}
    items = [
        {**dict.fromkeys(TRANSFER), **item, "id": f"{payment.id}{number:03}", "status": status}
        for number, (item, status) in enumerate(
            zip(sent["payments"], _items(document), strict=True)
        )
    ]
    total = sum(round(item["amount"] * 100) for item in items) / 100
    more = {"payments": items, "totalAmount": total, "currency": items[0]["currency"]}
    counted = {"payerName": user.name, "allPaymentsCount": len(items)}
    return {"dueDate": None, "externalId": None, **sent, **shown, **counted, **more}


def _items(document: Document) -> list[str]:
    """The status of each item of a bulk."""
    status = document["status"]
    if status != "PARTIALLY_PAID":
        return [status] * len(document["sent"]["payments"])
    ibans = [item["recipientIban"] for item in document["sent"]["payments"]]
    return ["FAILED" if iban == FAILED_IBAN else "FINISHED" for iban in ibans]


def _sender(document: Document) -> str | None:
    return document["sent"].get("senderIban") or document.get("chosen")


def _account_of(state: State, user: User, iban: Any) -> data.Account | None:
    return next((one for one in accounts_of(state, user) if one.iban == iban), None)


def _now(state: State) -> str:
    return data.iso(datetime.fromtimestamp(state.now(), UTC))


# Process


def _process(
    state: State, request: HttpRequest, user: User, payment: StoredPayment
) -> HttpResponse:
    """
    Finish the step the payment waits in, if what came is enough, and answer the next one.

    *flow* of a payment are the steps to come; *waiting* is the one its payer was asked for.
    """
    for header in SENDER_HEADERS:
        if not request.headers.get(header):
            raise wrong("required", header)
    if payment.document["status"] not in {"CREATED", "PROCESSING"}:
        raise Refusal(400, "NOT_EDITABLE", "The payment can no longer be changed.")
    inputs = _inputs(request)
    changed = json.loads(json.dumps(payment.document))
    waiting = changed.get("waiting")
    is_done = waiting is None or _DONE[waiting](state, user, changed, inputs)
    if is_done:
        changed["waiting"] = changed["flow"].pop(0) if changed["flow"] else None
        changed["bank_state"] = secrets.token_urlsafe(16)
    rejected = _end(changed) if changed["waiting"] is None else None
    changed["updatedAt"] = _now(state)
    # Two calls at once: only one of them moves the payment.
    if not state.store.change_payment(payment, changed):
        raise Refusal(400, "NOT_EDITABLE", "The payment is being processed.")
    if rejected is not None:
        raise rejected
    return reply_one(_step(state, user, payment.id, changed))


def _end(document: Document) -> Refusal | None:
    """Give the payment its last status. What the bank rejects is FAILED, and answered so."""
    sent = document["sent"]
    ibans = [one["recipientIban"] for one in sent.get("payments", [sent])]
    if document.get("is_refused"):
        document["status"] = "FAILED"
    elif REJECTED_IBAN in ibans:
        document["status"] = "FAILED"
        return Refusal(400, "PAYMENT_REJECTED", "The bank rejected the payment.")
    elif SLOW_IBAN in ibans and document.get("slow", 0) < SLOW_STEPS:
        document["slow"] = document.get("slow", 0) + 1
        document.update(status="PROCESSING", waiting="next")
    else:
        failed = ibans.count(FAILED_IBAN)
        some = "PARTIALLY_PAID" if failed < len(ibans) else "FAILED"
        document["status"] = some if failed else "FINISHED"
    return None


def _step(state: State, user: User, payment_id: int, document: Document) -> Row:
    answer: Document = {"id": str(payment_id), "status": document["status"]}
    waiting = document["waiting"]
    if waiting == "bank":
        url = f"{state.idp_url}/_bank/{payment_id}?{urlencode({'state': document['bank_state']})}"
        return {**answer, "type": "REDIRECT", "redirectUrl": url}
    if waiting in {"push", "next"}:
        return {**answer, "type": waiting.upper()}
    if waiting is None:
        return answer
    return {**answer, "type": "INPUT", **_asked(state, user, waiting)}


def _asked(state: State, user: User, waiting: str) -> Document:
    if waiting == "account":
        options = [
            {"value": one.iban, "label": f"{one.plan.name} {one.iban}"}
            for one in accounts_of(state, user)
        ]
        label = "Account to pay from"
        return {
            "input": {
                "type": "SELECT",
                "name": "account",
                "label": label,
                "selectOptions": options,
            }
        }
    encryption = {
        "inputsToEncrypt": list(TO_ENCRYPT),
        "inputEncryptionConfig": {"method": ENCRYPTION, "key": _public_key()},
    }
    if waiting == "login":
        fields = [
            {"type": "TEXT", "name": "userId", "label": "User name at the bank"},
            {"type": "PASSWORD", "name": "userPassword", "label": "Password at the bank"},
        ]
        return {"inputSet": fields, **encryption}
    field = {"type": "IMAGE", "name": "otp", "label": "Code in the image", "image": IMAGE}
    return {"input": field, **encryption}


def _is_account_chosen(state: State, user: User, document: Document, inputs: Document) -> bool:
    account = _account_of(state, user, _needed(inputs, "account"))
    if account is None:
        raise wrong("enum", "account")
    document["chosen"] = account.iban
    document["flow"] = list(FLOWS[account.plan.bank.id])
    return True


def _is_logged_in(state: State, user: User, document: Document, inputs: Document) -> bool:
    return bool(_needed(inputs, "userId") and _needed(inputs, "userPassword"))


def _is_otp_right(state: State, user: User, document: Document, inputs: Document) -> bool:
    if _needed(inputs, "otp") == WRONG_OTP:
        raise wrong("otp", "otp")
    return True


def _is_back_from_bank(state: State, user: User, document: Document, inputs: Document) -> bool:
    """Only what the payer decided on the bank's page counts, and the query has to be that one."""
    decided = document.get("decided")
    if decided is None:
        return False
    for name, value in decided.items():
        if inputs.get(name) != value:
            raise wrong("required", name)
    return True


def _always(state: State, user: User, document: Document, inputs: Document) -> bool:
    return True


_DONE: Mapping[str, Callable[[State, User, Document, Document], bool]] = {
    "account": _is_account_chosen,
    "login": _is_logged_in,
    "otp": _is_otp_right,
    "bank": _is_back_from_bank,
    "push": _always,
    "next": _always,
}


def _needed(inputs: Document, name: str) -> str:
    if not inputs.get(name):
        raise wrong("required", name)
    return str(inputs[name])


# What is encrypted


def _inputs(request: HttpRequest) -> Document:
    inputs = _body(request)
    method = request.headers.get("x-user-data-encryption-method")
    if method is None:
        return inputs
    if method != ENCRYPTION:
        raise wrong("enum", "x-user-data-encryption-method", {"choices": [ENCRYPTION]})
    return {n: _decrypted(n, v) if n in TO_ENCRYPT else v for n, v in inputs.items()}


def _decrypted(name: str, value: Any) -> str:
    scheme = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
    try:
        return _key().decrypt(base64.b64decode(str(value), validate=True), scheme).decode()
    except (ValueError, binascii.Error):
        raise wrong("encrypted", name) from None


@lru_cache(maxsize=1)
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _public_key() -> str:
    public = _key().public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


# The bank's page


def bank_page(state: State, request: HttpRequest, payment_id: int) -> HttpResponse:
    """Show the payer what is to be paid, and send them back with what they decided."""
    payment = state.store.payment(payment_id)
    given = request.POST.get("state") or request.GET.get("state") or ""
    known = payment.document.get("bank_state") if payment else None
    if payment is None or not known or not secrets.compare_digest(known, given):
        return message("There is no such payment", "The bank knows no such payment.", status=404)
    if payment.document.get("waiting") != "bank" or payment.document.get("decided"):
        return message("This is decided", "The bank has your answer already.", status=409)
    if request.method == "GET":
        return page("payment.html", {"title": "Demo Bank", "state": known, **_shown(payment)})
    query = {"state": secrets.token_urlsafe(16)}
    is_refused = "confirm" not in request.POST
    query |= {"error": "access_denied"} if is_refused else {"code": secrets.token_urlsafe(16)}
    changed = {**payment.document, "decided": query, "is_refused": is_refused}
    if not state.store.change_payment(payment, changed):
        return message("This is decided", "The bank has your answer already.", status=409)
    url = payment.document["sent"]["redirectUrl"]
    return redirect(f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}", status=303)


def _shown(payment: StoredPayment) -> Document:
    sent = payment.document["sent"]
    return {
        "payment_id": payment.id,
        "sender": _sender(payment.document),
        "payments": sent.get("payments", [sent]),
    }

"""
Payments that are made once: written down under the site's own key before they are sent.

1. **record**: insert the row under its key. Of two calls at once one inserts; the other reads.
2. **claim**: move the row from *recorded* to *sending*, with a lease. One process goes on.
3. **send**: one request. Nothing is ever sent for a row that is not claimed, and a row that was
   claimed is sent again only on proof that nothing was sent before.
4. **store**: write down Everifin's id; or what was refused; or that the answer was lost.

A row whose process died while it was *sending* becomes *uncertain* as soon as its lease has passed:
it is looked for, and never sent again. The steps of a payment that Everifin knows are claimed in
the same way, so a double click, a reload and two tabs send one request.

Leases go by the database's clock, which all hosts share. Every write is a compare-and-swap on the
row's version, in a short transaction of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import secrets
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, models, router, transaction
from django.db.models import QuerySet
from django.utils import timezone

from everifin_django.bank.payments import (
    BulkItem,
    BulkPayment,
    InputStep,
    PaymentStatus,
    PaymentStep,
    PushStep,
    RedirectStep,
    SinglePayment,
    UnknownStep,
)
from everifin_django.conf import conf
from everifin_django.connections.bulk import MOST_ROWS
from everifin_django.encryption import active_key, seal
from everifin_django.exceptions import (
    EverifinError,
    MalformedError,
    NotFoundError,
    PaymentInTransactionError,
    PaymentKeyTakenError,
    PaymentNotEditableError,
    PaymentRejectedError,
    PaymentUncertainError,
    RateLimitedError,
    RefusedError,
)
from everifin_django.models import (
    LONGEST_LEASE_SECONDS,
    Payment,
    PaymentQuerySet,
    database_for,
    in_database_seconds,
    is_over,
)
from everifin_django.secret import Secret
from everifin_django.signals import payment_finished

if TYPE_CHECKING:
    from everifin_django.bank.client import Client

logger = logging.getLogger(__name__)

Asked = SinglePayment | BulkPayment
Awaits = Payment.Awaits
State = Payment.State

LEASE_SPARE_SECONDS = 20
MAX_KEY_LENGTH = 255
MAX_NEXT_URL_LENGTH = 2000
MAX_NEXT_STEPS = 5
"""How many steps that ask for nothing are taken in one request."""


def pay_once(
    client: Client,
    user: Any,
    key: str | int | uuid.UUID,
    payment: Asked,
    *,
    return_url: Callable[[Secret], str],
    next_url: str = "",
) -> Payment:
    """
    Return the row of *payment* under *key*, created at Everifin and taken to its first step.

    The first call costs some six short statements and two requests. A later one with the same key
    sends nothing for a payment that was sent: it returns the row as it is. A row for which nothing
    was sent is continued.
    Errors: PaymentKeyTakenError; PaymentInTransactionError; TokenError and UnavailableError if
    nothing was sent, and the row may be continued by another call.
    """
    row = expire_lease(record(user, key, payment, next_url=next_url))
    if row.state == State.RECORDED:
        row = create(client, row, return_url)
    if row.state == State.OPEN and row.awaits == Awaits.NOTHING:
        row = _try_step(client, row)
    return row


def record(user: Any, key: str | int | uuid.UUID, payment: Asked, *, next_url: str = "") -> Payment:
    """
    Return the row under *key*, inserted unless it is there. One or two statements, no request.

    Errors: PaymentKeyTakenError if the row is of another user or another payment;
    PaymentInTransactionError; KeysUnavailableError.
    """
    if _in_transaction():
        raise PaymentInTransactionError
    rows = _rows().using(database_for(user))
    digest = _digest(_text_of(key))
    row = rows.filter(key_digest=digest).first()
    if row is None:
        row = _insert(_new_row(user, _text_of(key), payment, next_url))
    if row is None:
        # Another process inserted it between the two statements.
        row = rows.get(key_digest=digest)
    # A user who was deleted has no row any more: another one may have their primary key today.
    if not is_of(row, user) or not _is_for(row, payment):
        raise PaymentKeyTakenError
    return row


def create(client: Client, row: Payment, return_url: Callable[[Secret], str]) -> Payment:
    """
    Have Everifin create the payment of a recorded row, and return the row. Two statements and one
    request; one statement if another process has claimed it.

    Errors: TokenUnreadableError; TokenError and UnavailableError, after which the row is as it was.
    """
    # A key fault, or a site without a URL that a bank leads back to, is found before the claim.
    with_way_back(row, return_url(Secret("any")))
    return_value = claim(row)
    if return_value is None:
        return reread(row)
    try:
        everifin_id = _send(client, with_way_back(row, return_url(return_value)))
    except (PaymentUncertainError, RateLimitedError) as error:
        if doubt := _doubt(error):
            return mark_uncertain(row, doubt)
        release(row)
        raise
    except RefusedError as error:
        if error.status == 401:
            release(row)
            raise
        return finish(row, State.REFUSED, reason=error.code or "refused")
    except EverifinError:
        # The client says so of everything but a PaymentUncertainError: nothing was done.
        release(row)
        raise
    return store_created(row, everifin_id)


def claim(row: Payment) -> Secret | None:
    """
    Take a recorded row for sending; return the value that the way back from the bank will carry, or
    None if another process has taken it. One statement.
    """
    value = Secret(secrets.token_urlsafe(32))
    is_claimed = _swap(
        row,
        {"state": State.RECORDED},
        state=State.SENDING,
        return_digest=_digest(value.reveal()),
        sent_at=timezone.now(),
        lease_until=_lease(),
    )
    return value if is_claimed else None


def release(row: Payment) -> None:
    """Give a claimed row back, because nothing was sent for it. One statement."""
    _swap(row, {"state": State.SENDING}, state=State.RECORDED, sent_at=None, lease_until=None)


def store_created(row: Payment, everifin_id: str) -> Payment:
    """
    Write down that Everifin knows the payment as *everifin_id*, and return the row. One statement.

    A late answer counts, too: it may find the row uncertain already.
    """
    is_stored = (
        _rows()
        .filter(pk=row.pk, everifin_id="", state__in=(State.SENDING, State.UNCERTAIN))
        .update(
            everifin_id=everifin_id,
            state=State.OPEN,
            reason="",
            lease_until=None,
            version=models.F("version") + 1,
            updated_at=timezone.now(),
        )
    )
    if not is_stored:
        logger.critical("Payment %s was created after it had been ended here.", row.pk)
    return reread(row)


def take_step(
    client: Client, row: Payment, *, inputs: Mapping[str, str | Secret] | None = None
) -> Payment:
    """
    Take the next step of an open payment, answering what it waits for with *inputs*, and return
    the row. Two statements and one request for each step; steps that ask for nothing are taken at
    once, five at most. One statement if another process takes the step.

    Errors: InvalidRequestError if the bank does not accept the inputs, or nobody is present:
    nothing has changed; TokenError; UnavailableError if nothing was sent.
    """
    for _ in range(MAX_NEXT_STEPS):
        row = _take_one_step(client, row, inputs or {})
        if row.state != State.OPEN or row.awaits != Awaits.NEXT:
            break
        inputs = None
    return row


def take_return(client: Client, row: Payment, parameters: Mapping[str, str | Secret]) -> Payment:
    """
    Hand the bank's *parameters* on to Everifin, and return the row. They are passed on and never
    believed. Nothing is sent unless the row awaits the user's return from the bank.

    Errors: as ``take_step``.
    """
    return take_step(client, row, inputs=parameters) if awaits_return(row) else row


def awaits_return(row: Payment) -> bool:
    """Does the payment wait for the user to come back from the bank?"""
    return row.state == State.OPEN and row.awaits == Awaits.REDIRECT


def look(client: Client, row: Payment) -> Payment:
    """
    Look at Everifin what became of a payment that was sent, and return the row. One request by its
    id, else the list of payments, read to its end.

    A payment is *absent* only if a complete list, in which the rows carry an external id, does not
    have it, EVERIFIN_PAYMENT_ABSENT_SECONDS after it was sent.
    Errors: APIError and TokenError; the row is as it was.
    """
    row = expire_lease(row)
    if row.is_final or row.state in (State.RECORDED, State.SENDING) or row.lease_until is not None:
        return row
    _note_look(row)
    try:
        found = _find(client, row)
    except PaymentUncertainError as error:
        logger.warning("Payment %s stays uncertain: %s", row.pk, error)
        return reread(row)
    if found is None:
        return _absent(row)
    return _apply(row, found)


def _note_look(row: Payment) -> None:
    """The version stays: a form that a person is filling in is as good as before."""
    _rows().filter(pk=row.pk).update(looked_at=timezone.now())


def expire_lease(row: Payment) -> Payment:
    """
    Return the row, *uncertain* if the process that worked on it left it in the middle. No statement
    unless it is worked on.
    """
    if row.lease_until is None:
        return row
    is_stale = is_over("lease_until", LONGEST_LEASE_SECONDS)
    _rows().filter(is_stale, pk=row.pk, version=row.version).update(
        state=State.UNCERTAIN,
        reason="process_ended",
        lease_until=None,
        version=row.version + 1,
        updated_at=timezone.now(),
    )
    return reread(row)


def mark_uncertain(row: Payment, reason: str) -> Payment:
    """Record that the payment's outcome is unknown, and return the row."""
    _swap(
        row,
        {"state__in": (State.SENDING, State.OPEN)},
        state=State.UNCERTAIN,
        reason=reason,
        lease_until=None,
    )
    logger.error("Payment %s is uncertain: %s.", row.pk, reason)
    return reread(row)


def finish(row: Payment, state: State, *, reason: str = "", **more: Any) -> Payment:
    """
    Write down how the payment ended, and return the row. Sends ``payment_finished`` once. Two
    statements.
    """
    is_finished = _swap(
        row,
        {},
        state=state,
        awaits=Awaits.NOTHING,
        reason=reason[:64],
        step_ciphertext="",
        lease_until=None,
        finished_at=timezone.now(),
        **more,
    )
    row = reread(row)
    if is_finished:
        logger.info("Payment %s ended: %s.", row.pk, state)
        announce(row)
    return row


def announce(row: Payment) -> bool:
    """
    Send ``payment_finished`` for a row that is final, unless it was sent before; return whether it
    was sent. One statement.
    """
    is_first = _rows().filter(pk=row.pk, announced_at=None).update(announced_at=timezone.now())
    if is_first:
        payment_finished.send_robust(sender=Payment, payment=row)
    return bool(is_first)


def end_by_person(row: Payment, actor: Any, *, is_paid: bool, note: str) -> Payment:
    """
    Write down what *actor* found out about an uncertain payment, and return the row. Two
    statements.

    Errors: ValueError for a payment that is not uncertain, or an empty *note*.
    """
    if row.state != State.UNCERTAIN or not note.strip():
        raise ValueError("Only an uncertain payment is ended by a person, who says how they know.")
    state = State.PAID if is_paid else State.FAILED
    return finish(row, state, reason="ended_by_person", note=note.strip(), ended_by=actor)


def look_at_all(client_for: Callable[[Any], Client], *, limit: int) -> dict[str, int]:
    """
    Look for each of the *limit* payments that were not looked for the longest; return how many
    there are by state afterwards, and under "failed" how many could not be looked for.

    One statement for the list, two and a request or more for each payment.
    """
    counts: dict[str, int] = {}
    limit = min(limit, MOST_ROWS)
    sent = _rows().unfinished().exclude(state=State.RECORDED).select_related("user")
    waiting = sent.order_by(models.F("looked_at").asc(nulls_first=True))
    for row in waiting[:limit]:
        outcome = _looked_at(client_for, row)
        counts[outcome] = counts.get(outcome, 0) + 1
    for row in _rows().unannounced()[:limit]:
        announce(row)
    return counts


def reread(row: Payment) -> Payment:
    """Return the row as the database has it. One statement."""
    return _rows().get(pk=row.pk)


def asked_for(row: Payment) -> Asked:
    """
    Return the payment as it was asked for, without its way back. Errors: TokenUnreadableError, also
    for a row whose person was erased.
    """
    text = row.open_text("payment")
    if text is None:
        raise MalformedError("What this payment was for has been erased.")
    return _load(row.kind, json.loads(text.reveal()))


def with_way_back(row: Payment, redirect_url: str) -> Asked:
    """Return the payment as it is sent: it leads the user back to *redirect_url*."""
    return dataclasses.replace(
        asked_for(row), redirect_url=redirect_url, external_id=row.external_id
    )


def last_step(row: Payment) -> PaymentStep | None:
    """Return what the payment waits for, None if it is not known. Errors: TokenUnreadableError."""
    text = row.open_text("step")
    return None if text is None else PaymentStep.from_raw(json.loads(text.reveal()))


def by_return_value(value: str) -> Payment | None:
    """Return the payment whose way back from the bank carries *value*. One statement."""
    return _rows().filter(return_digest=_digest(value)).first()


def of_user(user: Any) -> QuerySet[Payment]:
    """Return the payments of *user*, newest first, as a queryset of the database written to."""
    return (
        _rows()
        .using(database_for(user))
        .filter(user=user, user_pk=str(user.pk))
        .order_by("-created_at")
    )


def is_of(row: Payment, user: Any) -> bool:
    """Is it a payment of *user*, and was it from the beginning?"""
    return bool(row.user_id == user.pk and row.user_pk == str(user.pk))


def _alias() -> str:
    return router.db_for_write(Payment)


def _rows() -> PaymentQuerySet:
    return PaymentQuerySet(Payment, using=_alias())


def _in_transaction() -> bool:
    from everifin_django.connections.refresh import in_transaction

    return in_transaction(_alias())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text_of(key: str | int | uuid.UUID) -> str:
    text = str(key)
    # None is no key either: every order that is not saved yet would have the same one.
    is_key = isinstance(key, str | int | uuid.UUID) and not isinstance(key, bool)
    if not is_key or not text.strip() or len(text) > MAX_KEY_LENGTH or "\0" in text:
        raise ValueError(
            f"The key of a payment is a string of 1 to {MAX_KEY_LENGTH} characters, an integer or "
            "a UUID, such as the id of its order."
        )
    return text


def _lease() -> Any:
    return in_database_seconds(conf.deadline_seconds + LEASE_SPARE_SECONDS)


def _swap(row: Payment, conditions: Mapping[str, Any], **changes: Any) -> bool:
    """Change the row if it still is what was read and nobody ended it; tell whether it was."""
    same = _rows().filter(pk=row.pk, version=row.version, **conditions)
    changed = same.unfinished().update(
        **changes, version=row.version + 1, updated_at=timezone.now()
    )
    if changed:
        row.version += 1
    return bool(changed)


def _insert(row: Payment) -> Payment | None:
    try:
        with transaction.atomic(using=_alias()):
            row.save(using=_alias(), force_insert=True)
    except IntegrityError:
        return None
    return row


def _new_row(user: Any, key: str, payment: Asked, next_url: str) -> Payment:
    row = Payment(
        user=user,
        user_pk=str(user.pk),
        key=key,
        key_digest=_digest(key),
        kind=Payment.Kind.BULK if isinstance(payment, BulkPayment) else Payment.Kind.SINGLE,
        external_id=str(payment.external_id or uuid.uuid4()),
        amount=_amount(payment),
        currency=_currency(payment),
        next_url=next_url if len(next_url) <= MAX_NEXT_URL_LENGTH else "",
    )
    text = Secret(json.dumps(_dump(payment)))
    row.payment_ciphertext = seal(text, row.encryption_context("payment"), active_key())
    return row


def _is_for(row: Payment, payment: Asked) -> bool:
    """Is it the same payment? Its way back and the ids drawn for each call do not count."""
    text = row.open_text("payment")
    if text is None:
        return (row.amount, row.currency) == (_amount(payment), _currency(payment))
    return bool(_comparable(json.loads(text.reveal())) == _comparable(_dump(payment)))


def _amount(payment: Asked) -> Decimal:
    if isinstance(payment, BulkPayment):
        return sum((Decimal(one.amount) for one in payment.payments), Decimal(0))
    return Decimal(payment.amount)


def _currency(payment: Asked) -> str:
    return payment.payments[0].currency if isinstance(payment, BulkPayment) else payment.currency


def _dump(payment: Any) -> dict[str, Any]:
    """The fields of a payment as JSON's own types; *_load* makes it again."""
    return {
        one.name: _plain(getattr(payment, one.name))
        for one in dataclasses.fields(payment)
        if one.name != "redirect_url"
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal | int) and not isinstance(value, bool):
        return f"{Decimal(value):.2f}"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_dump(one) for one in value]
    return value


def _load(kind: str, fields: dict[str, Any]) -> Asked:
    if kind == Payment.Kind.BULK:
        items = tuple(BulkItem(**_typed(one)) for one in fields["payments"])
        return BulkPayment(**{**_typed(fields), "payments": items})
    return SinglePayment(**_typed(fields))


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    typed = dict(fields)
    if "amount" in typed:
        typed["amount"] = Decimal(typed["amount"])
    for name in ("payment_date", "due_date"):
        if typed.get(name):
            typed[name] = _date_of(typed[name])
    return typed


def _date_of(text: str) -> date:
    return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
    items = fields.get("payments")
    same = {name: value or None for name, value in fields.items() if name != "external_id"}
    return {**same, "payments": [_comparable(one) for one in items]} if items else same


def _send(client: Client, asked: Asked) -> str:
    if isinstance(asked, BulkPayment):
        return client.create_bulk_payment(asked)
    return client.create_payment(asked)


def _try_step(client: Client, row: Payment) -> Payment:
    """The first step; what stops it, the payment's page meets again and says."""
    try:
        return take_step(client, row)
    except EverifinError as error:
        logger.warning("Payment %s waits for its first step: %s", row.pk, error)
        return reread(row)


def _take_one_step(client: Client, row: Payment, inputs: Mapping[str, str | Secret]) -> Payment:
    step = last_step(row)
    awaits = row.awaits
    free = {"state": State.OPEN, "awaits": awaits, "lease_until": None}
    if row.is_final or not _swap(row, free, lease_until=_lease()):
        return reread(row)
    process = client.process_payment
    if row.kind == Payment.Kind.BULK:
        process = client.process_bulk_payment
    try:
        answer = process(row.everifin_id, inputs=inputs, step=step)
    except PaymentUncertainError as error:
        return mark_uncertain(row, _doubt(error))
    except PaymentRejectedError as error:
        return finish(row, State.FAILED, reason=error.code or "rejected")
    except PaymentNotEditableError:
        _swap(row, {}, lease_until=None)
        return look(client, reread(row))
    except EverifinError as error:
        if inputs and (doubt := _doubt(error)):
            return mark_uncertain(row, doubt)
        # Nothing has changed at Everifin: the same step can be taken again.
        _swap(row, {}, lease_until=None)
        raise
    return _store_step(row, answer)


def _doubt(error: EverifinError) -> str:
    """
    Why nobody knows what was done, an empty string if nothing was: 429 proves that only in
    Everifin's own words, because anybody on the way may say it after the work.
    """
    if isinstance(error, PaymentUncertainError):
        return "answer_lost"
    return "rate_limited" if isinstance(error, RateLimitedError) and error.code is None else ""


def _store_step(row: Payment, step: PaymentStep) -> Payment:
    if step.status.is_final:
        return finish(row, _final_state(step.status))
    sealed = seal(Secret(json.dumps(step.raw)), row.encryption_context("step"), active_key())
    _swap(row, {}, awaits=_awaits(step), step_ciphertext=sealed, reason="", lease_until=None)
    return reread(row)


def _awaits(step: PaymentStep) -> Awaits:
    match step:
        case RedirectStep():
            return Awaits.REDIRECT
        case InputStep():
            return Awaits.INPUT
        case PushStep():
            return Awaits.PUSH
        case UnknownStep():
            # Not taken at once again: a word that is not known here may ask for something.
            return Awaits.NOTHING
        case _:
            return Awaits.NEXT


def _final_state(status: PaymentStatus) -> State:
    if status.is_paid:
        return State.PAID
    if status is PaymentStatus.PARTIALLY_PAID:
        return State.PARTIALLY_PAID
    return State.FAILED


def _find(client: Client, row: Payment) -> Any:
    """The payment as Everifin knows it, None if a complete list does not have it."""
    is_bulk = row.kind == Payment.Kind.BULK
    if row.everifin_id:
        read = client.bulk_payment if is_bulk else client.payment
        try:
            return read(row.everifin_id)
        except NotFoundError:
            return None
    find = client.find_bulk_payment if is_bulk else client.find_payment
    return find(row.external_id)


def _absent(row: Payment) -> Payment:
    patience = timedelta(seconds=conf.payment_absent_seconds)
    is_known = bool(row.everifin_id)
    if is_known or row.sent_at is None or timezone.now() - row.sent_at < patience:
        return reread(row)
    return finish(row, State.ABSENT, reason="not_in_list")


def _apply(row: Payment, found: Any) -> Payment:
    if _is_another(row, found):
        logger.critical("Payment %s is another one at Everifin than here.", row.pk)
        return reread(row)
    if found.status.is_final:
        return finish(row, _final_state(found.status), everifin_id=found.id)
    if row.state == State.UNCERTAIN:
        _swap(
            row,
            {"state": State.UNCERTAIN},
            everifin_id=found.id,
            state=State.OPEN,
            awaits=Awaits.NEXT,
            step_ciphertext="",
            reason="",
        )
    return reread(row)


def _is_another(row: Payment, found: Any) -> bool:
    """
    Does what Everifin tells belong to another payment? What it does not tell proves nothing.

    A site may have used one external id for several payments, of which another row has this one.
    """
    if row.everifin_id not in ("", found.id):
        return True
    amount = found.total_amount if row.kind == Payment.Kind.BULK else found.amount
    told = ((amount, row.amount), (found.currency, row.currency))
    if any(there is not None and there != here for there, here in told):
        return True
    return _rows().filter(everifin_id=found.id, kind=row.kind).exclude(pk=row.pk).exists()


def _looked_at(client_for: Callable[[Any], Client], row: Payment) -> str:
    _note_look(row)  # also of one that cannot be looked for: others get their turn
    if row.user is None:
        return "failed"
    try:
        return str(look(client_for(row.user), row).state)
    except EverifinError as error:
        logger.warning("Payment %s could not be looked for: %s", row.pk, error)
        return "failed"

"""
The pages to pay with: fill in, confirm, go to the bank, come back, see what became of it.

What the user confirmed is in their session, so no form can change amount or payee after that, and
nobody else's payment can be asked for. What came back with the browser is passed on and not
believed: how the payment is, Everifin's API says.
"""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

from django.contrib import messages
from django.contrib.auth import get_user_model
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from everifin_django.bank.payments import (
    InputField,
    InputStep,
    PaymentStep,
    RedirectStep,
    SinglePayment,
)
from everifin_django.decorators import everifin_required
from everifin_django.exceptions import (
    InvalidRequestError,
    PaymentNotEditableError,
    PaymentRejectedError,
    PaymentUncertainError,
)
from everifin_django.request import EverifinRequest
from example_project.forms import PaymentForm

DRAFT = "payment_draft"
PAYMENT = "payment"
STEP = "payment_step"

UNCERTAIN = (
    "The answer got lost. Your payment may have been made or not: look below before you pay."
)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@transaction.non_atomic_requests
@everifin_required(scopes={"ais", "pis"})
def pay(request: EverifinRequest) -> HttpResponse:
    """Fill in whom to pay, and how much."""
    accounts = list(request.everifin.accounts())
    form = PaymentForm(request.POST or None, accounts=accounts, label_suffix="")
    if form.is_valid() and _is_payable(request, form):
        draft = {name: str(value) for name, value in form.cleaned_data.items()}
        request.session[DRAFT] = {**draft, "external_id": str(uuid.uuid4())}
        return redirect("confirm_payment")
    return render(request, "site/pay.html", {"form": form})


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@transaction.non_atomic_requests
@everifin_required(scopes={"pis"})
def confirm(request: EverifinRequest) -> HttpResponse:
    """Look at it once more. Only what is shown here is paid, and only once."""
    if request.method == "POST":
        draft = _take_draft(request)
        return _begin(request, draft) if draft else redirect("payment")
    draft = request.session.get(DRAFT)
    if draft is None:
        return redirect("pay")
    return render(request, "site/confirm.html", {"payment": _payment(request, draft)})


@never_cache
@require_safe
@transaction.non_atomic_requests
@everifin_required(scopes={"pis"})
def back(request: EverifinRequest) -> HttpResponse:
    """The user is back from the bank."""
    is_awaited = isinstance(_step(request), RedirectStep)
    return _go_on(request, request.GET.dict() if is_awaited else {})


@never_cache
@require_POST
@transaction.non_atomic_requests
@everifin_required(scopes={"pis"})
def go_on(request: EverifinRequest) -> HttpResponse:
    """The user did what the bank asked for."""
    asked = {one.name for one in _inputs(request)}
    return _go_on(request, {name: request.POST.get(name, "") for name in asked})


@never_cache
@require_safe
@transaction.non_atomic_requests
@everifin_required(scopes={"pis"})
def state(request: EverifinRequest) -> HttpResponse:
    """How the payment is, and what is to be done."""
    mine = request.session.get(PAYMENT)
    if mine is None:
        return redirect("pay")
    everifin = request.everifin
    seen = everifin.payment(mine["id"]) if mine["id"] else everifin.find_payment(mine["external"])
    if seen is not None:
        request.session[PAYMENT] = {**mine, "id": seen.id}
    return render(request, "site/payment.html", {"payment": seen, "inputs": _inputs(request)})


def _is_payable(request: HttpRequest, form: PaymentForm) -> bool:
    """Everifin's rules, which the form leaves to everifin_django."""
    try:
        _payment(request, {**form.cleaned_data, "external_id": None})
    except InvalidRequestError as error:
        form.add_refusal(error)
    return not form.errors


def _payment(request: HttpRequest, draft: dict[str, Any]) -> SinglePayment:
    return SinglePayment(
        **{**draft, "amount": Decimal(draft["amount"])},
        redirect_url=request.build_absolute_uri(reverse("payment_back")),
    )


def _take_draft(request: HttpRequest) -> dict[str, Any] | None:
    """
    What the user confirmed, once: of two clicks at the same time the later one finds nothing.

    The session was read when the request began, so it is read anew while the user's row is locked.
    """
    request.session.pop(DRAFT, None)
    user_pk: Any = request.user.pk
    with transaction.atomic():
        get_user_model().objects.select_for_update().get(pk=user_pk)
        now = type(request.session)(request.session.session_key)
        draft: dict[str, Any] | None = now.pop(DRAFT, None)
        now.save()
    return draft


def _begin(request: EverifinRequest, draft: dict[str, Any]) -> HttpResponse:
    mine = {"id": "", "external": draft["external_id"]}
    request.session[PAYMENT] = mine
    request.session.pop(STEP, None)
    request.session.save()  # also if this process ends before the answer comes
    try:
        request.session[PAYMENT] = {
            **mine,
            "id": request.everifin.create_payment(_payment(request, draft)),
        }
    except PaymentUncertainError:
        messages.warning(request, UNCERTAIN)
        return redirect("payment")
    return _go_on(request, {})


def _go_on(request: EverifinRequest, inputs: dict[str, str]) -> HttpResponse:
    mine = request.session.get(PAYMENT)
    if not mine or not mine["id"]:
        return redirect("payment")
    try:
        step = request.everifin.process_payment(mine["id"], inputs=inputs, step=_step(request))
    except PaymentUncertainError:
        messages.warning(request, UNCERTAIN)
    except PaymentRejectedError:
        messages.warning(request, "The bank rejected the payment.")
    except InvalidRequestError:
        messages.warning(request, "The bank does not accept what came. Please try again.")
    except PaymentNotEditableError:
        pass  # it is over: the next page says how
    else:
        request.session[STEP] = step.raw
        if isinstance(step, RedirectStep):
            return redirect(step.redirect_url)
    return redirect("payment")


def _step(request: HttpRequest) -> PaymentStep | None:
    raw = request.session.get(STEP)
    return PaymentStep.from_raw(raw) if raw else None


def _inputs(request: HttpRequest) -> tuple[InputField, ...]:
    step = _step(request)
    return step.inputs if isinstance(step, InputStep) else ()

"""
The pages to pay with: fill in, confirm, then the pages that everifin_django has for a payment.

What the user confirmed is in their session under a key of its own, so no form can change amount or
payee after that, and a second click pays nothing.
"""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from everifin_django.bank.payments import SinglePayment
from everifin_django.decorators import everifin_required
from everifin_django.exceptions import InvalidRequestError
from example_project.forms import PaymentForm

DRAFT = "payment_draft"


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@everifin_required(scopes={"ais", "pis"})
def pay(request: Any) -> HttpResponse:
    """Fill in whom to pay, and how much."""
    accounts = list(request.everifin.accounts())
    draft = request.session.get(DRAFT)
    form = PaymentForm(request.POST or None, accounts=accounts, initial=draft, label_suffix="")
    if form.is_valid() and _is_payable(form):
        request.session[DRAFT] = {**form.draft(), "key": str(uuid.uuid4())}
        return redirect("confirm_payment")
    return render(request, "site/pay.html", {"form": form})


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@transaction.non_atomic_requests
@everifin_required(scopes={"pis"})
def confirm(request: Any) -> HttpResponse:
    """Look at it once more. Only what is shown here is paid, and only once."""
    draft = request.session.get(DRAFT)
    if draft is None:
        return redirect("pay")
    payment, key = _payment(draft), draft["key"]
    if request.method != "POST":
        return render(request, "site/confirm.html", {"payment": payment, "key": key})
    if request.POST.get("key", key) != key:
        # Another tab has filled in another payment meanwhile: that one was not shown.
        return redirect("confirm_payment")
    return redirect(request.everifin.pay_once(key, payment, next_url=reverse("payments")))


@never_cache
@require_safe
@everifin_required(scopes={"pis"})
def payments(request: Any) -> HttpResponse:
    """The user's payments, newest first."""
    rows = request.user.everifin_payments.order_by("-created_at")
    return render(request, "site/payments.html", {"payments": rows})


def _payment(draft: dict[str, Any]) -> SinglePayment:
    values = {name: value for name, value in draft.items() if name != "key"}
    return SinglePayment(**{**values, "amount": Decimal(draft["amount"])})


def _is_payable(form: PaymentForm) -> bool:
    """Everifin's rules, which the form leaves to everifin_django."""
    try:
        _payment(form.draft())
    except InvalidRequestError as error:
        form.add_refusal(error)
    return not form.errors

"""
The pages that lead a user through a payment of the ledger: to the bank, through its questions,
back, and to the result.

A payment is found by its owner only. A GET never answers the bank: it shows where the payment
stands, and asks Everifin again while the user confirms elsewhere. Each form carries the version of
the step it answers, so a reload, a second tab or the back button sends nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.forms import Field
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import get_script_prefix
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import View

from everifin_django.bank.payments import InputStep, PaymentStep, RedirectStep
from everifin_django.connections import ledger
from everifin_django.decorators import everifin_required
from everifin_django.exceptions import (
    APIError,
    EndUserMissingError,
    EverifinError,
    InvalidRequestError,
    TokenError,
)
from everifin_django.models import Payment
from everifin_django.secret import Secret
from everifin_django.web import access
from everifin_django.web.login_flow import safe_next
from everifin_django.web.views import auth_view, take_query

POLL_SECONDS = 5
POLL_AGAIN_AFTER = timedelta(seconds=2)
POLL_FOR = timedelta(minutes=2)
LOOK_AGAIN_AFTER = timedelta(seconds=10)
MAX_PARAMETERS = 32
MAX_PARAMETER_LENGTH = 4096
REQUIRED = Field.default_error_messages["required"]
"""Django's own words."""

Awaits = Payment.Awaits
State = Payment.State
POLLED = (Awaits.PUSH, Awaits.NEXT, Awaits.NOTHING)
"""What the page asks Everifin about by itself, because the user has nothing to do here."""

CONNECTED_ONLY = (State.RECORDED, State.OPEN)
"""What the user can only go on with while connected."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a person reads: *refresh_seconds* is when the page asks again by itself."""

    title: str
    text: str
    button: str = ""
    refresh_seconds: int | None = None


@auth_view
@method_decorator(sensitive_post_parameters(), name="dispatch")
class PaymentView(View):
    """
    Show one payment of the user, and take its next step.

    How a payment ended, or that nobody knows it, is shown to users who are not connected any more,
    too.
    """

    http_method_names = ["get", "head", "post", "options"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path())
        row = ledger.expire_lease(_own_payment(request, kwargs["pk"]))
        if row.state not in CONNECTED_ONLY and request.method in ("GET", "HEAD"):
            access.require(request, "read")
            return super().dispatch(request, *args, **kwargs)
        access.require(request, "pay")
        return _dispatch_connected(request, super().dispatch, *args, **kwargs)

    def get(self, request: HttpRequest, pk: Any) -> HttpResponse:
        row = _own_payment(request, pk)
        if request.headers.get("HX-Request") == "true":
            # The page continues by itself, so it must not be shown inside another one.
            return HttpResponse(headers={"HX-Redirect": row.get_absolute_url()})
        if request.method == "GET" and "prefetch" not in request.headers.get("Sec-Purpose", ""):
            row = _brought_up_to_date(request, row)
        return _show(request, row)

    def post(self, request: HttpRequest, pk: Any) -> HttpResponse:
        row = _own_payment(request, pk)
        # The first one is the page's own: the bank may have an input of this name, too.
        if request.POST.getlist("version")[:1] != [str(row.version)]:
            # A form of an earlier step: nothing is sent for it.
            return HttpResponseRedirect(row.get_absolute_url())
        try:
            if not _go_on(request, row):
                return _show(request, row, error=str(REQUIRED), status=422)
        except EndUserMissingError:
            raise
        except InvalidRequestError:
            message = _("Your bank did not accept this. Please check it and try again.")
            return _show(request, ledger.reread(row), error=message, status=422)
        return HttpResponseRedirect(row.get_absolute_url())


@everifin_required(scopes={"pis"})
def _dispatch_connected(request: HttpRequest, dispatch: Any, *args: Any, **kwargs: Any) -> Any:
    return dispatch(request, *args, **kwargs)


@auth_view
class PaymentReturnView(View):
    """
    Take the user back from the bank.

    The URL carries an unguessable value of this payment, which only the bank and the user's
    browser learn. What the bank adds is handed on to Everifin while the return is awaited, and is
    not believed.
    """

    http_method_names = ["get"]

    def get(self, request: HttpRequest, value: str) -> HttpResponse:
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path())
        row = ledger.by_return_value(value)
        if row is None or not ledger.is_of(row, request.user):
            raise Http404
        if not ledger.awaits_return(row):
            return _to_page(row)
        return _take_return(request, row)


@everifin_required(scopes={"pis"})
def _take_return(request: HttpRequest, row: Payment) -> HttpResponse:
    parameters = _parameters(request)
    # The user comes from the bank, and the page that begins a payment has asked the site.
    access.allow(request, "pay")
    if parameters is not None:
        everifin: Any = request.everifin  # type: ignore[attr-defined]
        try:
            ledger.take_return(everifin, row, parameters)
        except EndUserMissingError:
            raise
        except InvalidRequestError:
            # The bank's parameters were refused: the page shows where the payment stands.
            pass
    return _to_page(row)


def _to_page(row: Payment) -> HttpResponse:
    response = HttpResponseRedirect(row.get_absolute_url())
    response["Referrer-Policy"] = "same-origin"
    return response


def _parameters(request: HttpRequest) -> Mapping[str, Secret] | None:
    """
    The parameters of the return, taken out of the request so that no report shows them; None if
    there are more, or longer ones, than a bank sends.
    """
    parameters = {name: str(value) for name, value in take_query(request).items()}
    is_bounded = len(parameters) <= MAX_PARAMETERS and all(
        len(name) + len(value) <= MAX_PARAMETER_LENGTH for name, value in parameters.items()
    )
    return {name: Secret(value) for name, value in parameters.items()} if is_bounded else None


def _own_payment(request: HttpRequest, pk: Any) -> Payment:
    return get_object_or_404(ledger.of_user(request.user), pk=pk)


def _brought_up_to_date(request: Any, row: Payment) -> Payment:
    """The row, asked for at Everifin where the user is not the one who has to act."""
    try:
        if row.state == State.OPEN and row.awaits in POLLED and _is_older(row, POLL_AGAIN_AFTER):
            return ledger.take_step(request.everifin, row)
        if row.state == State.UNCERTAIN and _may_look(row):
            return ledger.look(request.everifin, row)
    except (APIError, TokenError):
        # Everifin does not answer, or not for this user: the page shows what is known.
        return ledger.reread(row)
    return row


def _is_older(row: Payment, age: timedelta) -> bool:
    return bool(timezone.now() - row.updated_at > age)


def _may_look(row: Payment) -> bool:
    return row.looked_at is None or abs(timezone.now() - row.looked_at) > LOOK_AGAIN_AFTER


def _go_on(request: Any, row: Payment) -> bool:
    """Take the step that the user pressed the button for; False if a field was left empty."""
    if row.state == State.RECORDED:
        ledger.create(request.everifin, row, request.everifin.payment_return_url)
    elif row.state == State.UNCERTAIN:
        ledger.look(request.everifin, row)
    elif row.state == State.OPEN and row.awaits == Awaits.INPUT:
        inputs = _inputs(request, row)
        if not all(value.reveal().strip() for value in inputs.values()):
            # Nothing is sent: a bank may count it as a wrong password.
            return False
        ledger.take_step(request.everifin, row, inputs=inputs)
    elif row.state == State.OPEN and row.awaits != Awaits.REDIRECT:
        ledger.take_step(request.everifin, row)
    return True


def _inputs(request: HttpRequest, row: Payment) -> dict[str, Secret]:
    """What the user typed, under the names that the bank asked for and no others."""
    step = ledger.last_step(row)
    fields = step.inputs if isinstance(step, InputStep) else ()
    return {one.name: Secret(request.POST.get(one.name, "")) for one in fields}


def _show(
    request: HttpRequest, row: Payment, *, error: str = "", status: int = 200
) -> HttpResponse:
    step = _step(row)
    context = {
        "payment": row,
        "asked": _asked(row),
        "page": page_for(row),
        "error": error,
        "bank_url": step.redirect_url if isinstance(step, RedirectStep) else "",
        "inputs": step.inputs if isinstance(step, InputStep) else (),
        "next": safe_next(request, row.next_url) or get_script_prefix(),
    }
    response = render(request, "everifin_django/payment.html", context, status=status)
    response["Referrer-Policy"] = "same-origin"
    return response


def _step(row: Payment) -> PaymentStep | None:
    is_asked = row.awaits in (Awaits.REDIRECT, Awaits.INPUT) and row.lease_until is None
    if row.state != State.OPEN or not is_asked:
        return None
    return ledger.last_step(row)


def _asked(row: Payment) -> Any:
    """What was asked for, None where it is erased or cannot be read: the page does without."""
    try:
        return ledger.asked_for(row)
    except EverifinError:
        return None


def page_for(row: Payment) -> Page:
    """Return the words for where the payment stands."""
    if row.state == State.OPEN and row.lease_until is not None:
        # A double click, or another tab: the step that is being taken is not shown once more.
        return _page_of_work(refresh_seconds=POLL_SECONDS)
    if row.state == State.OPEN:
        return _open_page(row)
    return {
        State.RECORDED: Page(
            _("This payment was not sent yet"),
            _("Nothing has been paid. You can send it now."),
            button=pgettext("button", "Send it now"),
        ),
        State.SENDING: Page(
            _("Your payment is being sent"),
            _("This page looks again by itself."),
            refresh_seconds=POLL_SECONDS,
        ),
        State.UNCERTAIN: Page(
            _("We do not know yet whether this was paid"),
            _(
                "The answer was lost. Look for it in your account before you pay again, or ask us. "
                "It will not be sent a second time."
            ),
            button=pgettext("button", "Check now"),
        ),
        State.PAID: Page(_("Paid"), _("The payment was made.")),
        State.PARTIALLY_PAID: Page(
            _("Partly paid"), _("Your bank made some of these payments and not others.")
        ),
        State.FAILED: Page(_("Not paid"), _("The payment was not made.")),
        State.REFUSED: Page(
            _("Not paid"), _("Everifin did not accept the payment. Nothing was paid.")
        ),
        State.ABSENT: Page(
            _("Not paid"), _("Everifin does not know this payment. Nothing was paid.")
        ),
    }[State(row.state)]


def _open_page(row: Payment) -> Page:
    if row.awaits == Awaits.REDIRECT:
        return Page(
            _("Go to your bank"), _("Confirm the payment there. You come back here by yourself.")
        )
    if row.awaits == Awaits.INPUT:
        return Page(
            _("Your bank asks you something"),
            _("What you enter goes to your bank, and is not kept here."),
            button=pgettext("button", "Go on"),
        )
    is_recent = timezone.now() - row.created_at < POLL_FOR
    refresh_seconds = POLL_SECONDS if is_recent else None
    if row.awaits == Awaits.PUSH:
        return Page(
            _("Confirm in your bank's app"),
            _("Open the app of your bank and confirm the payment there."),
            button=pgettext("button", "Check now"),
            refresh_seconds=refresh_seconds,
        )
    return _page_of_work(refresh_seconds=refresh_seconds)


def _page_of_work(*, refresh_seconds: int | None) -> Page:
    return Page(
        _("Your payment is on its way"),
        _("Your bank is working on it."),
        button=pgettext("button", "Check now"),
        refresh_seconds=refresh_seconds,
    )

"""Small views, as a site would write them."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model, login
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.views import View

from everifin_django.decorators import everifin_required
from everifin_django.mixins import EverifinRequiredMixin


def hide(view: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator without ``functools.wraps``."""

    def wrapper(request: HttpRequest) -> Any:
        return view(request)

    return wrapper


def ahide(view: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(request: HttpRequest) -> Any:
        return await view(request)

    return wrapper


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


async def aplain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def ibans(request: Any) -> HttpResponse:
    return HttpResponse(" ".join(account.iban for account in request.everifin.accounts()))


async def aibans(request: Any) -> HttpResponse:
    return HttpResponse(" ".join([one.iban async for one in request.everifin.aaccounts()]))


@everifin_required(scopes={"ais"})
def accounts(request: HttpRequest) -> HttpResponse:
    return ibans(request)


@everifin_required
async def aaccounts(request: HttpRequest) -> HttpResponse:
    return await aibans(request)


class Accounts(EverifinRequiredMixin, View):
    everifin_scopes = {"ais"}

    def get(self, request: HttpRequest) -> HttpResponse:
        return ibans(request)


class AsyncAccounts(EverifinRequiredMixin, View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await aibans(request)


def unmarked(request: HttpRequest) -> HttpResponse:
    return ibans(request)


async def aunmarked(request: HttpRequest) -> HttpResponse:
    return await aibans(request)


@everifin_required
def switched(request: Any) -> HttpResponse:
    """Log in another user, by name, after the token of the one before was read."""
    user = get_user_model().objects.get(username=request.GET["username"])
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    return ibans(request)


@everifin_required(scopes="pis")
def payments(request: HttpRequest) -> HttpResponse:
    return HttpResponse("payments")


@everifin_required(scopes="pis")
async def apayments(request: HttpRequest) -> HttpResponse:
    return HttpResponse("payments")


hidden, hidden_payments = hide(accounts), hide(payments)
ahidden, ahidden_payments = ahide(aaccounts), ahide(apayments)


@everifin_required
def account(request: Any, account_id: str) -> HttpResponse:
    return HttpResponse(request.everifin.account(account_id).iban)


@everifin_required
def broken(request: Any) -> HttpResponse:
    found = list(request.everifin.accounts())
    return HttpResponse(str(1 / (len(found) - len(found))))


BUTTONS = """{% load everifin %}
{% everifin_button "login" next=next %}
{% everifin_button "connect" label=label %}
{% everifin_button "logout" %}
{% everifin_button "disconnect" %}
{% everifin_health as health %}<p id="health">{{ health.value }}: {{ health.label }}</p>"""


def buttons(request: HttpRequest) -> HttpResponse:
    context = {"label": "<Connect>", "next": "/accounts/?a=1&b=2"}
    return HttpResponse(engines["django"].from_string(BUTTONS).render(context, request))

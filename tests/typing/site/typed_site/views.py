"""Views as a site under `mypy --strict` writes them, with the types that a checker must see."""

from decimal import Decimal
from typing import Any, assert_type

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from django.views.generic import TemplateView

from everifin_django.bank.accounts import Account, Transaction
from everifin_django.bank.pages import Rows
from everifin_django.connections import everifin_for
from everifin_django.connections.grants import Everifin
from everifin_django.decorators import everifin_required
from everifin_django.mixins import EverifinRequiredMixin
from everifin_django.request import EverifinRequest


@everifin_required
def accounts(request: EverifinRequest) -> HttpResponse:
    assert_type(request.everifin, Everifin)
    assert_type(request.everifin.accounts(), Rows[Account])
    return render(request, "accounts.html", {"accounts": request.everifin.accounts()})


@everifin_required(scopes={"ais"})
def account(request: EverifinRequest, account_id: str, *, full: bool = False) -> JsonResponse:
    one = request.everifin.account(account_id)
    return JsonResponse({"iban": one.iban, "full": full})


@everifin_required()
async def names(request: EverifinRequest) -> HttpResponse:
    found = [one.id async for one in request.everifin.aaccounts()]
    return HttpResponse(", ".join(found))


@everifin_required(scopes="ais")
async def latest(request: EverifinRequest, account_id: str) -> HttpResponse:
    total = Decimal(0)
    async for row in request.everifin.atransactions(account_id):
        assert_type(row, Transaction)
        total += row.amount
    return HttpResponse(str(total))


@never_cache
@require_safe
@transaction.non_atomic_requests
@everifin_required(scopes=["ais"])
def stacked(request: EverifinRequest) -> HttpResponse:
    return HttpResponse(str(request.everifin.is_connected()))


@everifin_required
def plainly_annotated(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(number)


def call_them(request: EverifinRequest) -> None:
    assert_type(account(request, "1", full=True), JsonResponse)
    assert_type(plainly_annotated(request, number=2), HttpResponse)
    account(request, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    account(request, "1", fulll=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    request.everifin.acounts()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def await_them(request: EverifinRequest) -> None:
    assert_type(await names(request), HttpResponse)
    assert_type(await latest(request, account_id="1"), HttpResponse)
    assert names(request).content  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


class Decorated(View):
    @method_decorator(everifin_required)
    def get(self, request: EverifinRequest) -> HttpResponse:
        return accounts(request)

    @method_decorator(everifin_required(scopes={"ais"}))
    def post(self, request: EverifinRequest, account_id: str) -> HttpResponse:
        return account(request, account_id)


class DecoratedAsync(View):
    @method_decorator(everifin_required(scopes={"ais"}))
    async def get(self, request: EverifinRequest) -> HttpResponse:
        return await names(request)


@method_decorator(everifin_required, name="dispatch")
class DecoratedWhole(TemplateView):
    template_name = "accounts.html"


class Mixed(EverifinRequiredMixin, View):
    everifin_scopes = {"ais"}

    def get(self, request: EverifinRequest) -> HttpResponse:
        request.everifin.acounts()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        return accounts(self.request)


class MixedAsync(EverifinRequiredMixin, View):
    everifin_scopes = ("ais", "pis")

    async def get(self, request: EverifinRequest, account_id: str) -> HttpResponse:
        return await latest(request, account_id)


class MixedTemplate(EverifinRequiredMixin, TemplateView):
    template_name = "accounts.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        found = list(self.request.everifin.accounts())
        return super().get_context_data(accounts=found, **kwargs)


def without_a_request(user: Any) -> list[str | None]:
    everifin = everifin_for(user)
    assert_type(everifin, Everifin)
    return [one.iban for one in everifin.accounts()]

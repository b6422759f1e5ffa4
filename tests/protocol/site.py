"""Pages that read bank accounts and then go well or wrong, marked or not."""

from django.contrib.auth import get_user_model
from django.http import HttpRequest, JsonResponse
from django.urls import include, path

from everifin_django.decorators import everifin_required


@everifin_required(scopes={"ais"})
def accounts(request: HttpRequest) -> JsonResponse:
    found = request.everifin.accounts()  # type: ignore[attr-defined]
    return JsonResponse({"accounts": [account.id for account in found]})


@everifin_required
def marked_then_error(request: HttpRequest) -> JsonResponse:
    accounts(request)
    raise ZeroDivisionError


def unmarked(request: HttpRequest) -> JsonResponse:
    get_user_model().objects.count()  # a snapshot, where the database takes one
    found = request.everifin.accounts()  # type: ignore[attr-defined]
    return JsonResponse({"accounts": [account.id for account in found]})


def unmarked_then_error(request: HttpRequest) -> JsonResponse:
    unmarked(request)
    raise ZeroDivisionError


urlpatterns = [
    path("accounts/", accounts),
    path("marked-then-error/", marked_then_error),
    path("unmarked/", unmarked),
    path("unmarked-then-error/", unmarked_then_error),
    path("everifin/", include("everifin_django.urls")),
]

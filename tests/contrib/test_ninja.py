"""Operations of Django Ninja: who may call them, what they answer, and their schema."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import include, path
from drf_spectacular.validation import validate_schema
from ninja import NinjaAPI
from ninja.security import HttpBearer, django_auth

from everifin_django.contrib.ninja import (
    AccountSchema,
    TransactionSchema,
    add_exception_handler,
    everifin_required,
)

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


class NameAuth(HttpBearer):
    """``Authorization: Bearer ann``: a user without a session, as with any kind of token."""

    def authenticate(self, request, token):
        return get_user_model().objects.filter(username=token).first()


class AsyncNameAuth(HttpBearer):
    async def authenticate(self, request, token):
        return await get_user_model().objects.filter(username=token).afirst()


api = NinjaAPI(urls_namespace="ninja")
add_exception_handler(api)


@api.get("accounts/", auth=[NameAuth(), django_auth], response=list[AccountSchema])
@everifin_required
def accounts(request):
    return list(request.everifin.accounts())


@api.get("aaccounts/", auth=AsyncNameAuth(), response=list[AccountSchema])
@everifin_required(scopes={"ais"})
async def aaccounts(request):
    return [account async for account in request.everifin.aaccounts()]


@api.get("accounts/{account_id}/", auth=NameAuth(), response=list[TransactionSchema])
@everifin_required
def transactions(request, account_id: str):
    return list(request.everifin.transactions(account_id))


@api.get("payments/", auth=NameAuth())
@everifin_required(scopes="pis")
def payments(request):
    return "payments"


@api.get("plain/", auth=NameAuth())
def plain(request):
    raise LookupError


urlpatterns = [
    path("everifin/", include("everifin_django.urls")),
    path("", api.urls),
]
both_operations = pytest.mark.parametrize("url", ["/accounts/", "/aaccounts/"])


@pytest.fixture
def ann(everifin, everifin_connect, client, django_user_model):
    """A connected user; ``client`` has her session."""
    user = django_user_model.objects.create_user("ann")
    client.force_login(user)
    everifin_connect(client)
    return user


@pytest.fixture
def ben(everifin, everifin_connect, django_user_model):
    """Another connected user, with another person's accounts."""
    user = django_user_model.objects.create_user("ben")
    browser = Client()
    browser.force_login(user)
    everifin_connect(browser, "bob")
    return user


def get(path, name=None, client=None, **headers) -> Any:
    """Call an API as a program does, which accepts anything."""
    if name:
        headers["authorization"] = f"Bearer {name}"
    response: Any = (client or Client()).get(path, headers={"accept": "*/*", **headers})
    return response


class TestConnectedUser:
    @both_operations
    def test_a_user_without_a_session_reads_their_accounts(self, ann, url):
        response = get(url, "ann")
        assert response.status_code == 200
        assert len(response.json()) == 3

    def test_a_user_with_a_session_does_too(self, ann, client):
        assert len(get("/accounts/", client=client).json()) == 3

    @both_operations
    @pytest.mark.parametrize("every_view", [True, False])
    def test_the_user_of_the_token_counts_and_not_the_one_of_the_session(
        self, ann, ben, settings, url, every_view
    ):
        settings.EVERIFIN_REFRESH_EVERY_VIEW = every_view
        client = Client()
        client.force_login(ann)
        assert len(get(url, "ben", client).json()) == 1

    def test_fields_are_written_as_json(self, ann):
        [account, *_] = get("/accounts/", "ann").json()
        assert "raw" not in account
        assert account["iban"].startswith("SK")
        assert set(account["balances"][0]) == {"type", "amount", "currency", "last_updated"}
        row = get(f"/accounts/{account['id']}/", "ann").json()[0]
        assert row["direction"] in ("IN", "OUT")
        assert len(row["booking_date"]) == len("2026-11-26")


class TestRefused:
    @both_operations
    def test_a_stranger_is_refused_as_ninja_does(self, everifin, url):
        assert get(url).status_code == 401

    @both_operations
    def test_a_user_without_a_connection_gets_403_of_its_own_type(
        self, everifin, django_user_model, url
    ):
        django_user_model.objects.create_user("new")
        response = get(url, "new")
        assert response.status_code == 403
        assert response["Content-Type"] == "application/problem+json"
        assert response.json()["type"] == "urn:everifin-django:not-connected"
        assert response.json()["connect_url"] == "http://testserver/everifin/connect/"

    def test_a_missing_scope_is_named(self, ann, settings):
        settings.EVERIFIN_SCOPES = "openid ais pis"
        problem = get("/payments/", "ann").json()
        assert (problem["status"], problem["type"]) == (403, "urn:everifin-django:scope-missing")

    @both_operations
    @pytest.mark.parametrize("debug", [True, False])
    def test_while_everifin_is_down_it_is_503(self, ann, everifin, settings, url, debug):
        settings.DEBUG = debug
        everifin.faults.add("api", status=503, retry_after=7)
        response = get(url, "ann", accept="text/html")
        assert (response.status_code, response["Retry-After"]) == (503, "7")
        assert response["Content-Type"] == "application/problem+json"

    def test_the_sites_own_errors_are_left_to_it(self, ann):
        with pytest.raises(LookupError):
            get("/plain/", "ann")


def test_nothing_of_a_bank_is_stored_by_a_cache(ann):
    assert get("/accounts/", "ann")["Cache-Control"] == "private, no-store"


def test_the_schema_is_valid():
    made = api.get_openapi_schema(path_prefix="")
    validate_schema(made)
    account = made["components"]["schemas"]["AccountSchema"]
    assert account["required"] == ["id", "balances"]
    assert "raw" not in account["properties"]

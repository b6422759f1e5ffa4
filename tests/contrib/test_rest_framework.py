"""Views of Django REST framework: who may call them, what they answer, and their schema."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import include, path
from django.utils.decorators import method_decorator
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.decorators import (
    api_view,
    authentication_classes,
    permission_classes,
    schema,
)
from rest_framework.response import Response
from rest_framework.views import APIView

from everifin_django.contrib.rest_framework import (
    AccountSerializer,
    EverifinConnected,
    TransactionSerializer,
)
from everifin_django.contrib.spectacular import AutoSchema
from everifin_django.decorators import everifin_required
from everifin_django.mixins import EverifinRequiredMixin
from everifin_django.models import BankToken

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


class NameAuthentication(BaseAuthentication):
    """``Authorization: Name ann``: a user without a session, as with any kind of token."""

    def authenticate(self, request):
        from django.contrib.auth import get_user_model

        scheme, _, name = request.headers.get("Authorization", "").partition(" ")
        user = get_user_model().objects.filter(username=name).first()
        return (user, name) if scheme == "Name" and user else None

    def authenticate_header(self, request):
        return "Name"


class View(APIView):
    authentication_classes = [NameAuthentication, SessionAuthentication]
    schema = AutoSchema()


class Accounts(View):
    permission_classes = [EverifinConnected]
    serializer_class = AccountSerializer

    def get(self, request):
        return Response(AccountSerializer(request.everifin.accounts(), many=True).data)


class Transactions(View):
    permission_classes = [EverifinConnected]
    everifin_scopes = {"ais"}

    def get(self, request, account_id):
        rows = request.everifin.transactions(account_id)
        return Response(TransactionSerializer(rows, many=True).data)


class Payments(View):
    permission_classes = [EverifinConnected]
    everifin_scopes = "pis"

    def get(self, request):
        return Response("payments")


class OnMethod(View):
    @method_decorator(everifin_required)
    def get(self, request):
        return Response([account.id for account in request.everifin.accounts()])


class Plain(View):
    def get(self, request):
        raise LookupError


@api_view(["GET"])
@authentication_classes([NameAuthentication])
@schema(AutoSchema())
@everifin_required
def function(request):
    return Response([account.id for account in request.everifin.accounts()])


@api_view(["GET"])
@authentication_classes([NameAuthentication])
@permission_classes([EverifinConnected])
@schema(AutoSchema())
def permitted(request):
    return Response([account.id for account in request.everifin.accounts()])


urlpatterns = [
    path("everifin/", include("everifin_django.urls")),
    path("accounts/", Accounts.as_view()),
    path("accounts/<str:account_id>/", Transactions.as_view()),
    path("payments/", Payments.as_view()),
    path("method/", OnMethod.as_view()),
    path("function/", function),
    path("permitted/", permitted),
    path("plain/", Plain.as_view()),
]
EVERY_VIEW = ["/accounts/", "/method/", "/function/", "/permitted/"]


@pytest.fixture(autouse=True)
def exception_handler(settings):
    handler = "everifin_django.contrib.rest_framework.exception_handler"
    settings.REST_FRAMEWORK = {"EXCEPTION_HANDLER": handler}


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
        headers["authorization"] = f"Name {name}"
    response: Any = (client or Client()).get(path, headers={"accept": "*/*", **headers})
    return response


class TestConnectedUser:
    @pytest.mark.parametrize("url", EVERY_VIEW)
    def test_a_user_without_a_session_reads_their_accounts(self, ann, url):
        response = get(url, "ann")
        assert response.status_code == 200
        assert len(response.json()) == 3

    def test_a_user_with_a_session_does_too(self, ann, client):
        assert len(get("/accounts/", client=client).json()) == 3

    @pytest.mark.parametrize("url", EVERY_VIEW)
    @pytest.mark.parametrize("every_view", [True, False])
    def test_the_user_of_the_token_counts_and_not_the_one_of_the_session(
        self, ann, ben, settings, url, every_view
    ):
        settings.EVERIFIN_REFRESH_EVERY_VIEW = every_view
        client = Client()
        client.force_login(ann)
        assert len(get(url, "ben", client).json()) == 1

    def test_fields_are_written_as_json(self, ann, everifin):
        [account, *_] = get("/accounts/", "ann").json()
        assert "raw" not in account
        assert account["iban"].startswith("SK")
        assert set(account["balances"][0]) == {"type", "amount", "currency", "last_updated"}
        assert isinstance(account["balances"][0]["amount"], str)
        row = get(f"/accounts/{account['id']}/", "ann").json()[0]
        assert row["direction"] in ("IN", "OUT")
        assert len(row["booking_date"]) == len("2026-11-26")

    def test_a_fresh_token_costs_one_query(self, ann, django_assert_num_queries):
        with django_assert_num_queries(2):  # the user, by the authentication above
            get("/accounts/", "ann")


class TestRefused:
    @pytest.mark.parametrize("url", ["/accounts/", "/permitted/"])
    def test_a_stranger_is_asked_to_log_in_as_rest_framework_does(self, everifin, url):
        response = get(url)
        assert (response.status_code, response["WWW-Authenticate"]) == (401, "Name")

    @pytest.mark.parametrize("url", EVERY_VIEW)
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
        response = get("/payments/", "ann")
        assert response.status_code == 403
        assert response.json()["type"] == "urn:everifin-django:scope-missing"

    @pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html"])
    def test_while_everifin_is_down_it_is_503(self, ann, everifin, accept):
        everifin.faults.add("api", status=503, retry_after=7)
        response = get("/accounts/", "ann", accept=accept)
        assert response.status_code == 503
        assert response["Retry-After"] == "7"
        assert response["Content-Type"] == "application/problem+json"

    def test_an_account_of_somebody_else_is_404(self, ann, ben):
        [other] = get("/accounts/", "ben").json()
        assert get(f"/accounts/{other['id']}/", "ann").status_code == 404

    def test_the_sites_own_errors_are_left_to_it(self, ann):
        with pytest.raises(LookupError):
            get("/plain/", "ann")


class TestPrivacy:
    def test_nothing_of_a_bank_is_stored_by_a_cache(self, ann):
        assert get("/function/", "ann")["Cache-Control"] == "private, no-store"
        assert get("/accounts/", "ann")["Cache-Control"] == "private, no-store"


class TestDecoratedTooEarly:
    """What would ask who the user is before REST framework knows is refused at import."""

    @pytest.mark.parametrize("view", [Plain.as_view(), function])
    def test_the_decorator_names_the_permission(self, view):
        with pytest.raises(TypeError, match="EverifinConnected"):
            everifin_required(view)

    def test_the_mixin_does(self):
        class Mixed(EverifinRequiredMixin, APIView):
            pass

        with pytest.raises(TypeError, match="EverifinConnected"):
            Mixed.as_view()

    def test_a_class_is_pointed_to_the_mixin(self):
        with pytest.raises(TypeError, match="EverifinRequiredMixin first"):
            everifin_required(Plain)


class TestSchema:
    def test_it_is_valid_and_tells_how_the_view_refuses(self):
        made = SchemaGenerator(patterns=urlpatterns[1:]).get_schema(public=True)
        validate_schema(made)
        answers = made["paths"]["/accounts/"]["get"]["responses"]
        assert set(answers) == {"200", "403", "503"}
        assert list(answers["503"]["content"]) == ["application/problem+json"]
        account = made["components"]["schemas"]["Account"]["properties"]
        assert account["balances"]["items"] == {"$ref": "#/components/schemas/Balance"}
        assert "403" not in made["paths"]["/plain/"]["get"]["responses"]


def test_the_token_is_refreshed_before_the_view_begins(ann, everifin):
    BankToken.objects.update(access_expires_at="2026-01-01T00:00Z")
    assert get("/accounts/", "ann").status_code == 200
    assert BankToken.objects.get().token_version == 2

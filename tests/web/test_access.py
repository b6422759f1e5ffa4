"""The site is asked before a request uses a user's bank, and the guide's recipes work."""

import re
import sys
import threading
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, HttpResponseRedirect
from django.test import AsyncClient, Client
from django.urls import include, path

from everifin_django.bank.payments import SinglePayment
from everifin_django.connections import everifin_for
from everifin_django.decorators import everifin_required
from everifin_django.exceptions import EverifinError
from everifin_django.models import BankToken
from tests import views

GUIDE = Path(__file__).parents[2] / "docs/howto/sign-in-again.md"
CONNECT = "/everifin/connect/"

pytestmark = pytest.mark.django_db


PAYMENT = SinglePayment(
    amount=Decimal("12.30"),
    currency="EUR",
    recipient_iban="SK3112000000198742637541",
    redirect_url="https://www.site.example/paid/",
)


@everifin_required
def catches(request: Any) -> HttpResponse:
    try:
        request.everifin.create_payment(PAYMENT)
    except EverifinError as error:
        return HttpResponse(type(error).__name__)
    return HttpResponse("paid")


@everifin_required
async def apays(request: Any) -> HttpResponse:
    threads["request"] = await sync_to_async(threading.get_ident)()
    await request.everifin.acreate_payment(PAYMENT)
    return HttpResponse("paid")


urlpatterns = [
    path("everifin/", include("everifin_django.urls")),
    path("accounts/", views.accounts),
    path("aaccounts/", views.aaccounts),
    path("unmarked/", views.unmarked),
    path("aunmarked/", views.aunmarked),
    path("plain/", views.plain),
    path("catches/", catches),
    path("apays/", apays),
]

asked: list[str] = []
answers: dict[str, Any] = {}
threads: dict[str, int] = {}


def check(request: HttpRequest, action: str) -> Any:
    asked.append(action)
    threads[action] = threading.get_ident()
    return answers.get(action)


@pytest.fixture(autouse=True)
def site(settings):
    settings.ROOT_URLCONF = __name__
    settings.EVERIFIN_ACCESS_CHECK = f"{__name__}.check"
    settings.EVERIFIN_SCOPES = "openid ais pis"
    asked.clear()
    answers.clear()


@pytest.fixture
def user(everifin, django_user_model):
    user = django_user_model.objects.create_user("ann", password="a password")
    everifin.connect(user)
    return user


@pytest.fixture
def browser(client, user):
    client.force_login(user)
    client.defaults.update(REMOTE_ADDR="192.0.2.7", HTTP_USER_AGENT="a browser")
    return client


class TestWhatIsAsked:
    @pytest.mark.parametrize(
        ("url", "actions"),
        [
            ("/accounts/", ["read"]),
            ("/aaccounts/", ["read"]),
            ("/unmarked/", ["read"]),
            ("/aunmarked/", ["read"]),
            ("/catches/", ["read", "pay"]),
            ("/apays/", ["read", "pay"]),
            ("/plain/", []),
            (CONNECT, ["connect"]),
        ],
    )
    def test_each_action_once_in_a_request(self, browser, url, actions):
        assert browser.get(url).status_code == 200
        assert asked == actions

    def test_a_refusal_is_the_answer_and_nothing_is_sent(self, everifin, browser):
        for action in ("read", "connect", "disconnect"):
            answers[action] = HttpResponseForbidden(f"not {action}")
        for url in ("/accounts/", "/aaccounts/", "/unmarked/", "/aunmarked/"):
            response = browser.get(url)
            assert (response.status_code, response.content) == (403, b"not read")
            assert "no-store" in response["Cache-Control"]
        for method in (browser.get, browser.post):
            assert method(CONNECT).content == b"not connect"
        assert browser.post("/everifin/disconnect/").content == b"not disconnect"
        assert everifin.calls["api"] == everifin.calls["token"] == 0
        assert BankToken.objects.get().status == "active"

    def test_under_asgi_as_well(self, user):
        answers["read"] = HttpResponseForbidden("not read")
        client = AsyncClient()
        client.force_login(user)
        for url in ("/accounts/", "/aaccounts/", "/aunmarked/"):
            assert async_to_sync(client.get)(url).content == b"not read"

    def test_an_async_payment_asks_in_the_thread_of_the_request(self, user):
        """Which has the database connection, with a tenant's search path on it."""
        client = AsyncClient(headers={"user-agent": "a browser"}, REMOTE_ADDR="192.0.2.7")
        client.force_login(user)
        assert async_to_sync(client.get)("/apays/").content == b"paid"
        assert threads["read"] == threads["pay"] == threads["request"]

    def test_who_catches_the_error_has_not_paid_all_the_same(self, everifin, browser):
        answers["pay"] = HttpResponseForbidden("not pay")
        assert browser.get("/catches/").content == b"AccessDeniedError"
        assert everifin.calls["api"] == 0

    def test_without_a_request_nobody_is_asked(self, user):
        answers["read"] = HttpResponseForbidden()
        assert list(everifin_for(user).accounts())
        assert asked == []

    def test_a_visitor_is_not_asked_about(self, client):
        answers["read"] = answers["connect"] = HttpResponseForbidden()
        assert client.get("/accounts/").status_code == 302
        assert client.get(CONNECT).status_code == 302
        assert asked == []

    @pytest.mark.parametrize("answer", [False, True, "", "no"])
    def test_anything_else_than_none_or_a_response_stops_the_request(self, browser, answer):
        answers["read"] = answers["connect"] = answer
        for url in ("/accounts/", "/unmarked/", CONNECT):
            with pytest.raises(ImproperlyConfigured, match="EVERIFIN_ACCESS_CHECK"):
                browser.get(url)


class TestScripts:
    def test_fetch_is_told_where_a_redirect_would_lead(self, browser):
        answers["read"] = HttpResponseRedirect("/confirm/?next=/")
        response = browser.get("/accounts/", headers={"accept": "application/json"})
        assert (response.status_code, response["Content-Type"]) == (403, "application/problem+json")
        assert response.json()["type"] == "urn:everifin-django:access-denied"
        assert response.json()["url"] == "http://testserver/confirm/?next=/"

    def test_htmx_goes_there(self, browser):
        answers["read"] = HttpResponseRedirect("/confirm/")
        response = browser.get("/accounts/", headers={"hx-request": "true"})
        assert (response.status_code, response["HX-Redirect"]) == (200, "/confirm/")


def recipe(nth: int, monkeypatch: Any, settings: Any) -> dict[str, Any]:
    """What the guide's code for *nth* recipe defines; its check is in force."""
    blocks = re.findall(r"```python\n(# shop/(?:access|views)\.py\n[^`]*)```", GUIDE.read_text())
    blocks = [block for block in blocks if "connect_params" not in block]
    defined: dict[str, Any] = {}
    for block in [blocks[:1], blocks[1:]][nth]:
        exec(block, defined)  # noqa: S102 - our own guide
    module: Any = ModuleType("a_recipe")
    module.check = defined["check"]
    monkeypatch.setitem(sys.modules, "a_recipe", module)
    settings.EVERIFIN_ACCESS_CHECK = "a_recipe.check"
    return defined


class MarkImpersonation:
    """As the middleware of django-hijack or django-impersonate does."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        if mark := request.headers.get("x-acts-as"):
            setattr(request.user, mark, True)
        return self.get_response(request)


class TestRecipes:
    @pytest.mark.parametrize("mark", ["is_hijacked", "is_impersonate"])
    def test_nobody_who_acts_as_another_user_sees_the_bank(
        self, browser, settings, monkeypatch, mark
    ):
        recipe(0, monkeypatch, settings)
        middleware = f"{__name__}.MarkImpersonation"
        settings.MIDDLEWARE = [*settings.MIDDLEWARE[:-1], middleware, settings.MIDDLEWARE[-1]]
        assert browser.get("/accounts/").status_code == 200
        headers = {"x-acts-as": mark}
        for url in ("/accounts/", "/unmarked/", "/aunmarked/", CONNECT):
            assert browser.get(url, headers=headers).status_code == 403
        assert browser.post("/everifin/disconnect/", headers=headers).status_code == 403
        assert browser.get("/plain/", headers=headers).status_code == 200
        assert BankToken.objects.get().status == "active"

    def test_the_password_is_asked_for_before_connecting(self, browser, settings, monkeypatch):
        view = recipe(1, monkeypatch, settings)["ConfirmPasswordView"]
        urls: Any = ModuleType("urls")
        confirming = view.as_view(template_name="everifin_django/base.html")
        urls.urlpatterns = [*urlpatterns, path("confirm-password/", confirming)]
        settings.ROOT_URLCONF = urls
        assert browser.get("/accounts/").status_code == 200
        confirm = browser.get(f"{CONNECT}?next=/plain/")["Location"]
        assert confirm == "/confirm-password/?next=/everifin/connect/%3Fnext%3D/plain/"
        assert browser.post(confirm, {"username": "ann", "password": "wrong"}).status_code == 200
        assert browser.post(CONNECT).status_code == 302
        right = {"username": "ann", "password": "a password"}
        back = browser.post(confirm, right)["Location"]
        assert back == f"{CONNECT}?next=/plain/"
        assert browser.get(back).status_code == browser.post(CONNECT).status_code == 200
        another = Client()
        assert another.get(CONNECT)["Location"].startswith("/accounts/login/")

"""
Every code block of README and the guide works: settings are checked, modules imported, templates
rendered, commands known, and views called by GET and POST, twice, with an outage in between.

The tutorial is followed by ``test_tutorial``, and the site of the testing page by
``test_testing_page``; the jobs page is a project of ``test_projects``.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.core.checks import ERROR, run_checks
from django.core.management import get_commands
from django.http import HttpResponse
from django.template import Context, Template
from django.test import RequestFactory, override_settings
from django.urls import clear_url_caches, include, path
from django.utils.module_loading import import_string

from everifin_django.bank.payments import SinglePayment
from everifin_django.decorators import required_scopes
from everifin_django.middleware import EverifinMiddleware
from everifin_django.mixins import EverifinRequiredMixin
from everifin_django.models import BankToken, Payment
from everifin_django.testing.fake import fake_everifin
from tests import settings as our_settings

ROOT = Path(__file__).parent.parent
PLAYED_ELSEWHERE = {
    "docs/howto/jobs.md",
    "docs/howto/testing.md",
    "docs/tutorial/first-transactions.md",
}
FOLDERS = {"howto", "reference", "explanation"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [
    page
    for page in PAGES
    if page.parent == ROOT or page.parent.name in FOLDERS
    if page.relative_to(ROOT).as_posix() not in PLAYED_ELSEWHERE
]
BLOCK = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_DJANGO = re.compile(r"with Django (\d)\.(\d) or newer")
FILE_NAME = re.compile(r"# ([\w/]+)\.py\b")
OTHER_KINDS = {"mermaid", "js", "ini", "yaml"}
OURS = {"demo", "test"}
"""Commands of this repository's own manage.py, which README shows before anything is installed."""

TEMPLATES = {
    "accounts.html": "{% for account in accounts %}{{ account.name }}, {% endfor %}",
    "transactions.html": "{% for row in transactions %}{{ row.amount }}, {% endfor %}",
    "paid.html": "{{ payment.status }}",
}
"""What the pages' views render where the page does not show the template."""


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def is_for_this_django(block: str) -> bool:
    needed = NEEDS_DJANGO.search(block.partition("\n")[0])
    return not needed or (int(needed[1]), int(needed[2])) <= django.VERSION


def file_name(block: str) -> str:
    named = FILE_NAME.match(block)
    return named[1] if named else ""


def of_file(page: Path, name: str) -> list[str]:
    return [
        block
        for kind, block in blocks(page)
        if kind == "python" and file_name(block) == name and is_for_this_django(block)
    ]


class Order:
    """An order of the reader's shop, and its own manager."""

    pk, total, iban = 17, Decimal("12.30"), "SK31 1200 0000 1987 4263 7541"

    @classmethod
    def get(cls, **_: Any) -> Order:
        return cls()

    @classmethod
    def filter(cls, **_: Any) -> type[Order]:
        return cls

    @classmethod
    def update(cls, **_: Any) -> int:
        return 1

    def get_absolute_url(self) -> str:
        return f"/orders/{self.pk}/"


Order.objects = Order  # type: ignore[attr-defined]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package of the reader's, with what the pages take for granted."""
    package: Any = ModuleType("shop")
    package.kms = SimpleNamespace(decrypt=lambda _: bytes(range(32)))
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "shop", package)
    for name in ("keys", "backends", "access", "views", "models"):
        monkeypatch.setitem(sys.modules, f"shop.{name}", ModuleType(f"shop.{name}"))
    sys.modules["shop.models"].__dict__["Order"] = Order
    return package


def settings_of(page: Path) -> dict[str, Any]:
    """The settings that *page* tells its reader to write."""
    given: dict[str, list[str]] = {"INSTALLED_APPS": [], "MIDDLEWARE": []}
    namespace: dict[str, Any] = {**given, "__file__": str(page)}
    for block in of_file(page, "settings"):
        exec(compile(block, str(page), "exec"), namespace)  # noqa: S102 - our own pages
    for name in namespace["INSTALLED_APPS"]:
        assert apps.is_installed(name)
    for name in (*namespace["MIDDLEWARE"], *namespace.get("AUTHENTICATION_BACKENDS", ())):
        assert import_string(name)
    return {
        name: value for name, value in namespace.items() if name.isupper() and name not in given
    }


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables that README's settings read."""
    for name in ("EVERIFIN_CLIENT_ID", "EVERIFIN_CLIENT_SECRET"):
        monkeypatch.setenv(name, getattr(our_settings, name))
    monkeypatch.setenv("EVERIFIN_ENCRYPTION_KEYS", ",".join(our_settings.EVERIFIN_ENCRYPTION_KEYS))


def templates() -> list[dict[str, Any]]:
    loaders = [
        ("django.template.loaders.locmem.Loader", TEMPLATES),
        "django.template.loaders.app_directories.Loader",
    ]
    ours: dict[str, Any] = our_settings.TEMPLATES[0]
    return [{**ours, "APP_DIRS": False, "OPTIONS": {**ours["OPTIONS"], "loaders": loaders}}]


@pytest.mark.usefixtures("db", "shop", "environment")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_of_the_page_works(page, client):
    client.defaults["REMOTE_ADDR"] = "192.0.2.7"
    for name in ("shop/keys", "shop/backends", "shop/access"):
        for block in of_file(page, name):
            module = sys.modules[name.replace("/", ".")]
            exec(compile(block, str(page), "exec"), module.__dict__)  # noqa: S102 - our own pages
    urls: Any = ModuleType("page_urls")
    urls.urlpatterns = [path("everifin/", include("everifin_django.urls"))]
    hosts = {"ALLOWED_HOSTS": ["www.example.org", "testserver"]}
    given = {**hosts, **settings_of(page), "ROOT_URLCONF": urls, "TEMPLATES": templates()}
    with override_settings(**given):
        assert not [one for one in run_checks(tags=["everifin_django"]) if one.level >= ERROR]
        with fake_everifin() as everifin:
            user = everifin.make_user()
            everifin.connect(user, scope="openid ais pis")
            namespace = run(page, user)
            Played(everifin, user, client, urls.urlpatterns).play(namespace)


def test_a_checkout_takes_ten_lines_or_fewer():
    page = ROOT / "docs/howto/pay.md"
    (block,) = [block for _, block in blocks(page) if "def checkout(" in block]
    (view,) = [one for one in ast.parse(block).body if isinstance(one, ast.FunctionDef)]
    assert view.end_lineno is not None
    assert view.end_lineno - view.decorator_list[0].lineno + 1 <= 10


def run(page: Path, user: Any) -> dict[str, Any]:
    """Run the blocks of *page* one after the other, and return what they defined."""
    namespace: dict[str, Any] = {"urlpatterns": [], "__name__": "page", "user": user}
    for kind, block in blocks(page):
        if kind == "python":
            if file_name(block) != "settings":  # these are in force already
                exec(compile(block, str(page), "exec"), namespace)  # noqa: S102 - our own pages
        elif kind == "html+django":
            render(block, user)
        elif kind == "shell":
            check_commands(block)
        else:
            assert kind in OTHER_KINDS
    return namespace


def render(block: str, user: Any) -> None:
    named = re.match(r"\{# templates/(\S+) #\}", block)
    request = RequestFactory().get("/")
    request.user = user
    EverifinMiddleware(lambda _: HttpResponse())(request)
    shown = Template(block).render(Context({"request": request}))
    assert named or shown.strip()


def check_commands(block: str) -> None:
    for name in re.findall(r"^python3? manage\.py (\w+)", block, re.MULTILINE):
        assert name in {*get_commands(), *OURS}


class Played:
    """Calls what a page defines."""

    def __init__(self, everifin: Any, user: Any, client: Any, urlpatterns: list[Any]) -> None:
        self.everifin, self.client, self.urlpatterns = everifin, client, urlpatterns
        from everifin_django.connections import everifin_for

        account = next(everifin_for(user).accounts())
        self.given = {
            "user": user,
            "everifin": everifin_for(user),
            "account_id": account.id,
            "payment": payment(),
            "order_id": Order.pk,
            "db": None,
            "sender": BankToken,
            "connection_id": user.bank_token.pk,
            "reason": "invalid_grant",
            "request": request_of(user),
            "action": "pay",
        }
        client.defaults["HTTP_USER_AGENT"] = "a browser"
        # A bank sends nobody back to a host without a dot.
        client.defaults["SERVER_NAME"] = "www.example.org"
        client.force_login(user)

    def play(self, namespace: dict[str, Any]) -> None:
        defined = {
            name: one
            for name, one in namespace.items()
            if getattr(one, "__module__", None) == "page" and not name.startswith("_")
        }
        for name in self.mount(namespace.get("api")):
            del defined[name]
        views = {name: view for name, one in defined.items() if (view := as_view(one))}
        for name, view in views.items():
            given = {key: self.given[key] for key in parameters(view)[1:] if key in self.given}
            self.urlpatterns.append(path(f"{name}/", view, given, name=name))
        clear_url_caches()
        for name in views:
            self.visit(f"/{name}/")
        for name, one in defined.items():
            if inspect.isfunction(one) and name not in views:
                names = parameters(one, needed=True)
                # A receiver of payment_finished gets the row.
                given = {**self.given, **({"payment": Payment()} if "sender" in names else {})}
                one(**{key: given[key] for key in names})

    def mount(self, api: Any) -> list[str]:
        """Call the operations of Django Ninja by HTTP, and return their names."""
        if api is None:
            return []
        self.urlpatterns.append(path("ninja/", api.urls))
        clear_url_caches()
        operations = api.get_openapi_schema(path_prefix="/ninja/")["paths"]
        for url in operations:
            self.visit(url)
        described = [one for methods in operations.values() for one in methods.values()]
        return [str(one["operationId"]).removeprefix("page_") for one in described]

    def visit(self, url: str) -> None:
        """By GET and POST, twice, with an outage in between."""
        works, fails = {200, 302, 405}, {302, 405, 502, 503}
        for expected in (works, fails, works):
            if expected is fails:
                self.everifin.faults.add("api", status=503)
            for method in (self.client.get, self.client.post):
                response = method(url)
                is_told = expected is fails and getattr(response, "streaming", False)
                if is_told:  # its status was sent before the error
                    assert "UnavailableError" in self.text_of(response)
                else:
                    assert response.status_code in expected, (url, response.status_code)
            self.everifin.faults.clear()

    def text_of(self, response: Any) -> str:
        async def read() -> list[bytes]:
            return [part async for part in response.streaming_content]

        parts = async_to_sync(read)() if response.is_async else response.streaming_content
        return b"".join(parts).decode()


def as_view(one: Any) -> Any:
    if isinstance(one, type) and issubclass(one, EverifinRequiredMixin):
        return one.as_view() if hasattr(one, "dispatch") else None
    is_view = inspect.isfunction(one) and required_scopes(one) is not None
    return one if is_view else None


def parameters(one: Any, *, needed: bool = False) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(one).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
        if not needed or parameter.default is parameter.empty
    ]


def request_of(user: Any) -> Any:
    request: Any = RequestFactory().get("/")
    request.user, request.session = user, {}
    return request


def payment() -> SinglePayment:
    return SinglePayment(
        amount=Decimal(1),
        currency="EUR",
        recipient_iban="SK31 1200 0000 1987 4263 7541",
        redirect_url="https://www.example.org/paid/",
    )

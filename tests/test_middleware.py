"""``request.everifin``, and tokens made fresh before the view begins."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, async_to_sync, iscoroutinefunction
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.core.servers.basehttp import WSGIServer
from django.db import connection, connections
from django.http import HttpResponse
from django.test import AsyncClient, RequestFactory
from django.test.testcases import QuietWSGIRequestHandler
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from waitress import create_server, wasyncore

from everifin_django import encryption, models
from everifin_django.exceptions import RefreshInTransactionError
from everifin_django.middleware import SANDBOX_VISITOR, EverifinMiddleware, end_user_ip
from everifin_django.models import BankToken
from tests import views

pytestmark = pytest.mark.django_db


@pytest.fixture
def connected(everifin_connect, admin_client):
    everifin_connect(admin_client)
    return admin_client


@pytest.fixture
def async_connected(connected):
    client = AsyncClient()
    client.cookies = connected.cookies
    return client


@pytest.fixture
def opened(monkeypatch):
    """The purposes of the tokens that were decrypted, in their order."""
    purposes = []

    def count(sealed, context):
        purposes.append(context.kind)
        return encryption.open_sealed(sealed, context)

    monkeypatch.setattr(models, "open_sealed", count)
    return purposes


def let_expire(seconds: float = 0) -> None:
    """The access token is at its end *seconds* from now."""
    BankToken.objects.update(access_expires_at=timezone.now() + timedelta(seconds=seconds))


def queries(client, path: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(path).status_code == 200
    return [query["sql"] for query in captured]


WITHOUT_US = """
import sys
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse(str(request.user)))]
settings.configure(
    ROOT_URLCONF="__main__",
    SECRET_KEY="x",
    ALLOWED_HOSTS=["testserver"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes",
        "django.contrib.sessions", "everifin_django"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "everifin_django.middleware.EverifinMiddleware"],
    AUTHENTICATION_BACKENDS=["django.contrib.auth.backends.ModelBackend",
        "everifin_django.backends.EverifinBackend"],
)
import django
django.setup()
from django.test import Client
assert Client().get("/").content == b"AnonymousUser"
heavy = ["requests", "mozilla_django_oidc", "jwt", "everifin_django.bank.client",
    "everifin_django.http.client", "everifin_django.connections.grants", "everifin_django.backends"]
print([name for name in heavy if name in sys.modules])
"""


class TestUntouched:
    @pytest.mark.parametrize("path", ["/plain/", "/aplain/"])
    def test_a_page_that_does_not_use_it_costs_nothing(self, connected, opened, everifin, path):
        before = everifin.calls.copy()
        assert queries(connected, path) == []
        assert (opened, everifin.calls) == ([], before)

    def test_the_http_client_is_not_even_imported(self):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_US], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"

    def test_looking_at_the_object_asks_nothing(self, rf, django_assert_num_queries, opened):
        def view(request):
            with django_assert_num_queries(0):
                assert request.everifin.accounts()
            return HttpResponse()

        request = rf.get("/")
        request.user = object()
        EverifinMiddleware(view)(request)
        assert opened == []


class TestMarkedView:
    @pytest.mark.parametrize("path", ["/accounts/", "/class/", "/unmarked/", "/hidden/"])
    def test_a_fresh_token_costs_one_query_and_one_decryption(self, connected, opened, path):
        sql = queries(connected, path)
        ours = [one for one in sql if "everifin_django" in one]
        assert len(ours) == 1
        # The others are the session and the user.
        assert len(sql) == 3
        assert opened == ["access"]

    @pytest.mark.parametrize("path", ["/accounts/", "/unmarked/", "/aaccounts/", "/aunmarked/"])
    def test_a_token_at_its_end_is_refreshed(self, everifin, connected, path):
        let_expire()
        assert connected.get(path).content.decode().startswith("SK")
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_token_that_everifin_refuses_is_refreshed_once(self, everifin, connected):
        everifin.expire_access_tokens()
        assert connected.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1
        assert everifin.calls["api.accounts"] == 2

    def test_the_error_of_a_marked_view_that_nobody_answers_is_raised(
        self, rf, connected, admin_user, settings
    ):
        """No scope, no outage: a developer's mistake, such as a transaction around it all."""

        class Unready:
            def ensure_token(self, scopes):
                raise RefreshInTransactionError

        request = rf.get("/")
        request.user, request.everifin = admin_user, Unready()
        middleware = EverifinMiddleware(views.accounts)
        with pytest.raises(RefreshInTransactionError):
            middleware.process_view(request, views.accounts, (), {})


@pytest.mark.django_db(transaction=True)
class TestUserWhoChanges:
    """Within one request, another user is logged in."""

    def test_the_new_user_gets_their_own_accounts(
        self, everifin, connected, client, everifin_connect, django_user_model
    ):
        client.force_login(django_user_model.objects.create_user("ben"))
        everifin_connect(client, "bob")
        theirs = connected.get("/accounts/").content
        own = client.get("/accounts/").content
        assert connected.get("/switched/", {"username": "ben"}).content == own != theirs

    def test_a_new_user_without_a_connection_is_asked_to_connect(
        self, everifin, connected, django_user_model
    ):
        django_user_model.objects.create_user("ben")
        response = connected.get("/switched/", {"username": "ben"})
        assert response["Location"].startswith("/everifin/connect/")


class TestAtomicRequests:
    @pytest.fixture(autouse=True)
    def atomic_requests(self, monkeypatch):
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)

    def test_the_refresh_outlives_the_views_rollback(self, everifin, connected):
        connected.raise_request_exception = False
        let_expire()
        assert connected.get("/broken/").status_code == 500
        assert everifin.calls["token.refresh_token"] == 1
        assert BankToken.objects.get().token_version == 2
        # In strict rotation a lost refresh token would end the connection here.
        assert connected.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1


class TestEveryView:
    @pytest.fixture(autouse=True)
    def every_view(self, settings):
        settings.EVERIFIN_REFRESH_EVERY_VIEW = True

    @pytest.mark.parametrize("path", ["/plain/", "/aplain/"])
    def test_a_view_without_the_mark_is_prepared_too(self, everifin, connected, path):
        let_expire()
        assert connected.get(path).content == b"plain"
        assert everifin.calls["token.refresh_token"] == 1

    @pytest.mark.parametrize("path", ["/plain/", "/aplain/"])
    def test_its_failure_is_nobodys_business(self, everifin, connected, path):
        let_expire()
        everifin.faults.add("token", status=500)
        assert connected.get(path).content == b"plain"
        everifin.end_sessions()
        BankToken.objects.update(retry_after=None)
        assert connected.get(path).content == b"plain"

    def test_who_is_not_connected_sees_the_page(self, everifin, admin_client, client):
        assert admin_client.get("/plain/").content == b"plain"
        assert queries(client, "/plain/") == []


class TestAsync:
    @pytest.fixture
    def threads(self, monkeypatch):
        """The functions that were sent to a thread."""
        sent = []
        call = SyncToAsync.__call__

        async def note(self, *args, **kwargs):
            sent.append(f"{self.func.__module__}.{self.func.__qualname__}")
            return await call(self, *args, **kwargs)

        monkeypatch.setattr(SyncToAsync, "__call__", note)
        return sent

    def test_every_hook_is_async_in_an_async_site(self):
        async def view(request): ...

        middleware = EverifinMiddleware(view)
        assert iscoroutinefunction(middleware)
        assert iscoroutinefunction(middleware.process_view)
        middleware = EverifinMiddleware(views.plain)
        assert not iscoroutinefunction(middleware)
        assert not iscoroutinefunction(middleware.process_view)

    def test_a_view_without_the_mark_never_leaves_the_loop(
        self, async_connected, settings, threads
    ):
        settings.MIDDLEWARE = ["everifin_django.middleware.EverifinMiddleware"]
        assert async_to_sync(async_connected.get)("/aplain/").content == b"plain"
        assert not [name for name in threads if "everifin" in name]

    @pytest.mark.parametrize("path", ["/aaccounts/", "/aunmarked/", "/accounts/", "/ahidden/"])
    def test_views_of_both_kinds_run_under_asgi(self, everifin, async_connected, path):
        let_expire()
        response = async_to_sync(async_connected.get)(path)
        assert response.content.decode().startswith("SK")
        assert everifin.calls["token.refresh_token"] == 1

    @pytest.mark.parametrize("path", ["/aaccounts/", "/aunmarked/", "/accounts/", "/ahidden/"])
    def test_failures_are_answered_under_asgi(self, everifin, async_connected, path):
        let_expire()
        everifin.faults.add("token", status=503)
        assert async_to_sync(async_connected.get)(path).status_code == 503
        async_connected.cookies.clear()
        response = async_to_sync(async_connected.get)(path)
        assert response["Location"].startswith("/accounts/login/?next=")


SEEN, SPOOFED = "203.0.113.9", "198.51.100.66"
TWINS = [
    ([("X-Forwarded-For", SEEN)], SEEN),
    ([("X-Forwarded-For", SEEN), ("X_Forwarded_For", SPOOFED)], SEEN),
    ([("X_Forwarded_For", SPOOFED), ("X-Forwarded-For", SEEN)], SEEN),
    ([("X_Forwarded-For", SPOOFED), ("X-Forwarded-For", SEEN), ("X-FORWARDED_FOR", SPOOFED)], SEEN),
    ([("X_Forwarded_For", SPOOFED)], None),
]


def tell_address(environ: Any, start_response: Any) -> list[bytes]:
    """A WSGI application that says whom it takes for the person present."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"<{end_user_ip(WSGIRequest(environ))}>".encode()]


@contextmanager
def django_server() -> Iterator[int]:
    """Django's own server, which tests of sites and ``runserver`` use, for one request."""
    with WSGIServer(("127.0.0.1", 0), QuietWSGIRequestHandler) as server:
        server.set_app(tell_address)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_port
        thread.join()


@contextmanager
def waitress_server() -> Iterator[int]:
    sockets: dict[Any, Any] = {}
    server = create_server(
        tell_address,
        sockets,
        host="127.0.0.1",
        port=0,
        threads=1,
        clear_untrusted_proxy_headers=False,
    )
    is_over = threading.Event()

    def serve() -> None:
        while not is_over.is_set():
            wasyncore.loop(timeout=0.01, map=sockets, count=1)

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.effective_port
    is_over.set()
    thread.join()
    server.task_dispatcher.shutdown()
    wasyncore.close_all(sockets)
    server.close()


class TestEndUser:
    @pytest.mark.parametrize(
        ("proxies", "peer", "forwarded", "expected"),
        [
            (0, "203.0.113.9", None, "203.0.113.9"),
            (0, "203.0.113.9", "198.51.100.1", "203.0.113.9"),
            (0, "2001:db8::1", None, "2001:db8::1"),
            (0, "2001:DB8:0::1", None, "2001:db8::1"),
            (0, "fe80::1%eth0", None, None),
            (0, "", None, None),
            (0, "unix:", None, None),
            (0, "203.0.113.9:443", None, "203.0.113.9"),
            (0, "::ffff:203.0.113.9", None, "203.0.113.9"),
            (0, "64:ff9b::203.0.113.9", None, "203.0.113.9"),
            (0, "64:ff9b::10.0.0.5", None, None),
            (0, "2002:a00:5::1", None, None),
            (0, "::FFFF:CB00:7109", None, "203.0.113.9"),
            (0, "::ffff:10.0.0.5", None, None),
            (0, "10.0.0.5", None, None),
            (0, "172.31.255.255", None, None),
            (0, "172.32.0.1", None, "172.32.0.1"),
            (0, "192.168.1.1", None, None),
            (0, "127.0.0.1", None, None),
            (0, "169.254.1.1", None, None),
            (0, "100.64.0.1", None, None),
            (0, "100.127.255.255", None, None),
            (0, "100.128.0.1", None, "100.128.0.1"),
            (0, "224.0.0.1", None, None),
            (0, "0.0.0.0", None, None),  # noqa: S104 - an address that is sent to nobody
            (0, "255.255.255.255", None, None),
            (0, "::", None, None),
            (0, "::1", None, None),
            (0, "fc00::1", None, None),
            (0, "fd12:3456::1", None, None),
            (0, "fe80::1", None, None),
            (0, "ff02::1", None, None),
            (0, "192.0.2.7", None, "192.0.2.7"),
            (0, "198.51.100.7", None, "198.51.100.7"),
            (0, "8.8.8.8", None, "8.8.8.8"),
            (0, "2a00:1450:4001::1", None, "2a00:1450:4001::1"),
            (0, "203.0.113.009", None, None),
            (0, "203.0.113.9\r\nX-Evil: 1", None, None),
            (1, "10.0.0.1", "203.0.113.9", "203.0.113.9"),
            (1, "10.0.0.1", "6.6.6.6, 203.0.113.9", "203.0.113.9"),
            (1, "10.0.0.1", "6.6.6.6,203.0.113.9 ", "203.0.113.9"),
            (2, "10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
            (2, "10.0.0.1", "203.0.113.9", None),
            (1, "10.0.0.1", None, None),
            (1, "10.0.0.1", "", None),
            (1, "10.0.0.1", "203.0.113.9, garbage", None),
            (1, "10.0.0.1", "fe80::1%25eth0", None),
            (1, "10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
            (1, "10.0.0.1", "[2001:db8::9]", "2001:db8::9"),
            (1, "10.0.0.1", '"[2001:db8::9]:17085"', "2001:db8::9"),
            (1, "10.0.0.1", '"[2001:db8::9]:_port"', "2001:db8::9"),
            (1, "10.0.0.1", "6.6.6.6, 198.51.100.9:17085 ", "198.51.100.9"),
            (1, "10.0.0.1", "[::ffff:203.0.113.9]:80", "203.0.113.9"),
            (1, "10.0.0.1", "203.0.113.9, 10.0.0.7", None),
            (1, "10.0.0.1", "unknown", None),
            (1, "10.0.0.1", "_hidden", None),
            (1, "10.0.0.1", "203.0.113.9:http", None),
            (1, "10.0.0.1", "203.0.113.9:1:2", None),
            (1, "10.0.0.1", "[2001:db8::9", None),
            (1, "10.0.0.1", "[2001:db8::9%25eth0]:1", None),
            (1, "10.0.0.1", ",".join(["6.6.6.6"] * 10_000 + ["203.0.113.9"]), "203.0.113.9"),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_the_address_is_the_one_a_trusted_hop_saw(
        self, settings, proxies, peer, forwarded, expected
    ):
        settings.EVERIFIN_TRUSTED_PROXIES = proxies
        headers = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
        request = RequestFactory().get("/", REMOTE_ADDR=peer, **headers)
        assert end_user_ip(request) == expected

    @pytest.mark.parametrize("serving", [django_server, waitress_server])
    @pytest.mark.parametrize(("names", "expected"), TWINS)
    def test_a44_a_twin_of_the_header_changes_nothing(self, settings, serving, names, expected):
        """WSGI has one name for both, so it is the server that has to leave one out."""
        settings.EVERIFIN_TRUSTED_PROXIES = 1
        lines = "".join(f"{name}: {address}\r\n" for name, address in names)
        request = f"GET / HTTP/1.1\r\nHost: localhost\r\n{lines}Connection: close\r\n\r\n"
        with serving() as port, socket.create_connection(("127.0.0.1", port), 10) as visitor:
            visitor.sendall(request.encode())
            with visitor.makefile("rb") as answer:
                text = answer.read().decode()
        assert text.startswith("HTTP/1.1 200 OK")
        assert text.endswith(f"<{expected}>")

    @pytest.mark.parametrize(("names", "expected"), TWINS)
    def test_a44_nor_does_it_under_asgi(self, settings, names, expected):
        settings.EVERIFIN_TRUSTED_PROXIES = 1
        headers = [(name.lower().encode(), address.encode()) for name, address in names]
        scope = {"method": "GET", "path": "/", "headers": headers, "query_string": b""}
        assert end_user_ip(ASGIRequest(scope, BytesIO())) == expected

    def test_everifin_is_told_who_is_present(self, everifin, connected):
        connected.get("/accounts/", REMOTE_ADDR="203.0.113.9", HTTP_USER_AGENT="Browser/1.0")
        headers = everifin.last_request["api.accounts"].headers
        assert headers["client-ip-address"] == "203.0.113.9"
        assert headers["User-Agent"] == "Browser/1.0"

    @pytest.mark.parametrize(
        "agent", ["", "  ", "a\tb", "a\x00b", "a\r\nX-Evil: 1", "a\x7f"], ids=ascii
    )
    def test_an_odd_user_agent_is_left_out(self, everifin, connected, agent):
        connected.get("/accounts/", HTTP_USER_AGENT=agent)
        sent = everifin.last_request["api.accounts"].headers
        assert sent["User-Agent"].startswith("everifin-django/")
        assert "X-Evil" not in sent

    @pytest.mark.parametrize(
        ("agent", "sent"),
        [
            ("Prehliadač/1", "Prehliada%C4%8D/1"),
            ("Navegador (España)".encode().decode("latin-1"), "Navegador (Espa%C3%B1a)"),
            ("é", "%E9"),
            ("a" * 511 + "é", "a" * 511),
            ("a" * 510 + "é", "a" * 510),
            ("100%/1", "100%/1"),
        ],
        ids=ascii,
    )
    def test_a_user_agent_beyond_ascii_is_percent_encoded(self, everifin, connected, agent, sent):
        """One letter of it must not keep its owner from paying."""
        connected.get("/accounts/", HTTP_USER_AGENT=agent)
        assert everifin.last_request["api.accounts"].headers["User-Agent"] == sent

    def test_a_sandbox_on_this_machine_is_told_of_a_visitor_on_it(self, settings):
        request = RequestFactory().get("/", REMOTE_ADDR="127.0.0.1")
        assert end_user_ip(request) is None
        settings.EVERIFIN_API_URL = "http://127.0.0.1:8001"
        assert end_user_ip(request) == SANDBOX_VISITOR
        assert end_user_ip(RequestFactory().get("/", REMOTE_ADDR="10.0.0.5")) is None

    def test_a_long_user_agent_is_cut(self, everifin, connected):
        connected.get("/accounts/", HTTP_USER_AGENT="a" * 10_000)
        assert everifin.last_request["api.accounts"].headers["User-Agent"] == "a" * 512

    def test_an_address_that_is_not_known_is_left_out(self, everifin, connected):
        connected.get("/accounts/", REMOTE_ADDR="")
        assert "client-ip-address" not in everifin.last_request["api.accounts"].headers

"""
The refresh protocol under ASGI: what holds for threads holds for tasks, and a visitor who leaves in
the middle of a refresh costs no token.

Whole requests through Django's own ASGI handler, so each has a thread and a database connection of
its own, as under a real server. One of those is in tests/protocol/test_uvicorn.py.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.asgi import get_asgi_application
from django.db import connection, connections

from everifin_django import encryption, models
from everifin_django.connections import refresh
from everifin_django.connections.grants import Everifin
from everifin_django.exceptions import UnavailableError
from everifin_django.models import BankToken
from tests.protocol import asgi_site
from tests.protocol.asgi_site import LONGEST_SECONDS
from tests.support.grants import refresh_again

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.protocol.asgi_site"),
]

REQUESTS = 8
PAGES = ["/accounts/", "/unmarked/", "/aaccounts/", "/aunmarked/"]
BROKEN_PAGES = [
    "/marked-then-error/",
    "/unmarked-then-error/",
    "/amarked-then-error/",
    "/aunmarked-then-error/",
]
ASYNC_CALLS: dict[str, Callable[[Everifin], Awaitable[Any]]] = {
    "aensure_token": lambda everifin: everifin.aensure_token(frozenset({"ais"})),
    "aaccounts": lambda everifin: anext(everifin.aaccounts()),
    "abanks": lambda everifin: anext(everifin.abanks()),
    "arequest": lambda everifin: everifin.arequest("GET", "/v1/banks"),
}

Ask = Callable[..., Awaitable[int | None]]


@pytest.fixture
def overdue(connected, age, everifin):
    """A live connection whose access token ran out a minute ago, under strict rotation."""
    everifin.rotation = "strict"
    age(connected, minutes=6)
    return connected


@pytest.fixture
def due(connected, age):
    """A live connection whose access token is good for 30 seconds more."""
    age(connected, seconds=270)
    return connected


@pytest.fixture
def ask(client, connected, settings) -> Ask:
    """
    Give a coroutine function that asks the site for a page as the user of ``connected``, and
    returns the status of the answer; None if there was none, because the visitor left at the event
    *leaves*.
    """
    asgi_site.left.clear()
    settings.MIDDLEWARE = ["tests.protocol.asgi_site.note_who_leaves", *settings.MIDDLEWARE]
    application = get_asgi_application()
    cookie = f"sessionid={client.session.session_key}".encode()

    async def ask(path: str, *, leaves: threading.Event | None = None) -> int | None:
        requests = [{"type": "http.request"}]
        statuses = []

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            if leaves is None:
                await asyncio.Event().wait()  # stays for the answer
            else:
                await asyncio.to_thread(leaves.wait, LONGEST_SECONDS)
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"testserver"), (b"cookie", cookie)],
        }
        await application(scope, receive, send)
        return statuses[0] if statuses else None

    return ask


@pytest.fixture
def hold_refresh(everifin) -> Callable[..., threading.Event]:
    """
    Give a function that lets Everifin work on the next refresh until an event, and returns the
    event that it has begun.
    """

    def hold_refresh(until: threading.Event, begins: Any = None) -> threading.Event:
        begun = threading.Event()

        def sleep(_seconds: float) -> None:
            begun.set()
            if begins is not None:
                begins()
            assert until.wait(LONGEST_SECONDS)

        everifin.sleep = sleep
        everifin.faults.add("token.refresh_token", latency_seconds=1, times=1)
        return begun

    return hold_refresh


def assert_kept(everifin: Any, user: Any) -> None:
    """One request was sent, its answer is stored, and it is one that Everifin takes."""
    assert everifin.calls["token.refresh_token"] == 1
    assert BankToken.objects.get().token_version == 2
    assert BankToken.objects.get().lease_id is None
    assert refresh_again(user) == 3
    assert everifin.double_spends == 0


class TestManyAtOnce:
    @pytest.mark.parametrize("path", PAGES)
    def test_f1_requests_that_need_a_new_token_at_once(self, ask, overdue, everifin, path):
        async def together():
            return await asyncio.gather(*(ask(path) for _ in range(REQUESTS)))

        assert asyncio.run(together()) == [200] * REQUESTS
        assert_kept(everifin, overdue.user)

    @pytest.mark.parametrize("path", PAGES)
    def test_f2_requests_in_the_advisory_window_do_not_wait(
        self, ask, due, everifin, hold_refresh, path
    ):
        all_others_are_served = threading.Event()
        begun = hold_refresh(until=all_others_are_served)

        async def together():
            first = asyncio.create_task(ask(path))
            assert await asyncio.to_thread(begun.wait, LONGEST_SECONDS)
            others = await asyncio.gather(*(ask(path) for _ in range(REQUESTS - 1)))
            assert not first.done()
            all_others_are_served.set()
            return [*others, await first]

        assert asyncio.run(together()) == [200] * REQUESTS
        assert_kept(everifin, due.user)

    @pytest.mark.parametrize("path", PAGES)
    def test_f9_an_outage_is_met_by_one_request(self, ask, overdue, everifin, monkeypatch, path):
        # So that no machine is too slow for the first pause.
        monkeypatch.setattr(refresh, "BACKOFF_SECONDS", (30, 60))
        everifin.faults.add("token.refresh_token", status=503)

        async def together():
            return await asyncio.gather(*(ask(path) for _ in range(REQUESTS)))

        assert asyncio.run(together()) == [503] * REQUESTS
        assert everifin.calls["token.refresh_token"] == 1


class TestRollback:
    @pytest.mark.parametrize("path", BROKEN_PAGES)
    def test_a_view_that_raises_keeps_the_new_token(self, ask, overdue, everifin, path):
        assert asyncio.run(ask(path)) == 500
        assert_kept(everifin, overdue.user)


class TestAtomicRequests:
    @pytest.fixture(autouse=True)
    def atomic_requests(self, monkeypatch):
        monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    # Django runs no async view in a transaction: those are exempt, by its own decorator.
    @pytest.mark.parametrize(
        "path", ["/marked-then-error/", "/amarked-then-error/", "/aunmarked-then-error/"]
    )
    def test_f3_a_view_that_raises_keeps_the_token_refreshed_for_it(
        self, ask, overdue, everifin, path
    ):
        assert asyncio.run(ask(path)) == 500
        assert_kept(everifin, overdue.user)

    @pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has room for one writer")
    def test_f4_a_view_without_the_mark_keeps_its_refreshed_token_too(self, ask, overdue, everifin):
        assert asyncio.run(ask("/unmarked-then-error/")) == 500
        assert_kept(everifin, overdue.user)

    @pytest.mark.skipif("connection.vendor != 'sqlite'", reason="SQLite has room for one writer")
    def test_f4_an_unmarked_view_is_refreshed_after_its_rollback_on_sqlite(
        self, ask, overdue, everifin, caplog
    ):
        assert asyncio.run(ask("/unmarked/")) == 503
        assert "Mark it with @everifin_required" in caplog.text
        assert everifin.calls["token.refresh_token"] == 1
        assert asyncio.run(ask("/unmarked/")) == 200


class TestTwins:
    def test_twins_at_once_share_one_loan(self, overdue, everifin, monkeypatch):
        opened = []

        def count(sealed, context):
            opened.append(context.kind)
            return encryption.open_sealed(sealed, context)

        monkeypatch.setattr(models, "open_sealed", count)
        bank = Everifin(overdue.user)

        async def together():
            async with ThreadSensitiveContext():
                await asyncio.gather(*(call(bank) for call in ASYNC_CALLS.values()))
                health = await bank.ahealth()
                await sync_to_async(connections.close_all)()
                return health

        assert asyncio.run(together()) == BankToken.Health.ACTIVE
        assert opened == ["refresh", "access"]
        assert_kept(everifin, overdue.user)


# Of a request that is cancelled, Django leaves the body's file and the database connection open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestLeaving:
    """F25: whoever goes away in the middle of a refresh, its answer is stored."""

    @pytest.fixture(autouse=True)
    def leave_nothing_open(self):
        """What was left open goes here, and not in the middle of another test."""
        yield
        gc.collect()

    @pytest.mark.parametrize("path", PAGES)
    def test_f25_a_visitor_who_leaves_in_the_middle_of_a_refresh(
        self, ask, overdue, everifin, hold_refresh, path
    ):
        begun = hold_refresh(until=asgi_site.left)
        assert asyncio.run(ask(path, leaves=begun)) is None
        assert asyncio.run(ask(path)) == 200
        assert_kept(everifin, overdue.user)

    @pytest.mark.parametrize("path", PAGES)
    def test_f25_a_server_that_cancels_the_request_in_the_middle_of_a_refresh(
        self, ask, overdue, everifin, hold_refresh, path
    ):
        is_cancelled = threading.Event()
        begun = hold_refresh(until=is_cancelled)

        async def cancel():
            request = asyncio.create_task(ask(path))
            assert await asyncio.to_thread(begun.wait, LONGEST_SECONDS)
            request.cancel()
            # Django waits for the request's thread, in the very loop where one could tell of it.
            is_cancelled.set()
            with pytest.raises(asyncio.CancelledError):
                await request

        asyncio.run(cancel())
        assert asyncio.run(ask(path)) == 200
        assert_kept(everifin, overdue.user)

    @pytest.mark.parametrize("call", ASYNC_CALLS.values(), ids=ASYNC_CALLS)
    def test_f25_a_caller_who_runs_out_of_patience_in_the_middle_of_a_refresh(
        self, overdue, everifin, hold_refresh, call
    ):
        gave_up = threading.Event()
        user = overdue.user

        async def run_out_of_patience():
            loop = asyncio.get_running_loop()
            # As ``wait_for`` with a timeout that ends just when Everifin is at work.
            async with asyncio.timeout(None) as patience:
                hold_refresh(
                    until=gave_up,
                    begins=lambda: loop.call_soon_threadsafe(patience.reschedule, 0),
                )
                await call(Everifin(user))

        async def wait_in_vain():
            async with ThreadSensitiveContext():
                with pytest.raises(TimeoutError):
                    await run_out_of_patience()
                gave_up.set()
                # The thread of this context is free again when the refresh is done.
                await sync_to_async(connections.close_all)()

        asyncio.run(wait_in_vain())
        assert_kept(everifin, overdue.user)


def test_a_request_thread_that_is_busy_for_long_is_an_outage(connected, settings):
    settings.EVERIFIN_DEADLINE_SECONDS = 0.2
    go_on = threading.Event()

    async def ask() -> None:
        busy = asyncio.ensure_future(sync_to_async(go_on.wait)(LONGEST_SECONDS))
        await asyncio.sleep(0)
        try:
            with pytest.raises(UnavailableError):
                await anext(Everifin(connected).aaccounts())
        finally:
            go_on.set()
            await busy

    async_to_sync(ask)()

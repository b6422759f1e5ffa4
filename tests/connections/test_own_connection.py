"""A refresh inside a transaction, over a database connection of its own: nothing is mixed up."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import Error as DatabaseFault
from django.db import OperationalError, connection, connections, transaction
from django.test import Client
from django.utils import timezone

from everifin_django.connections import everifin_for, own_connection
from everifin_django.connections.refresh import ensure_fresh
from everifin_django.exceptions import RefreshInTransactionError, UnavailableError
from everifin_django.models import BankToken
from everifin_django.testing.factories import UserFactory

LATER = (UnavailableError, RefreshInTransactionError)
pytestmark = pytest.mark.django_db(transaction=True)
on_postgresql = pytest.mark.skipif(
    "connection.vendor != 'postgresql'", reason="What is tried is PostgreSQL's"
)
beside_a_transaction = pytest.mark.skipif(
    "connection.vendor == 'sqlite'", reason="SQLite has room for one writer"
)


@pytest.fixture
def overdue(connected, age) -> BankToken:
    """A live connection whose access token ran out a minute ago."""
    age(connected, minutes=6)
    return BankToken.objects.select_related("user").get()


@pytest.fixture
def atomic_requests(monkeypatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)


def in_schema(get_response: Any) -> Any:
    """Middleware of a site that chooses a tenant by ``SET search_path``."""

    def middleware(request: Any) -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO tenant, public")
        try:
            return get_response(request)
        finally:
            with connection.cursor() as cursor:
                cursor.execute("RESET search_path")

    return middleware


@pytest.fixture
def tenant(overdue, everifin):
    """
    A PostgreSQL schema with a connection of its own for the same primary key: bob's, overdue too.
    """
    user, table = overdue.user, BankToken._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA tenant")
        cursor.execute(f"CREATE TABLE tenant.{table} (LIKE public.{table} INCLUDING ALL)")
        cursor.execute("SET search_path TO tenant, public")
    everifin.connect(user, "bob")
    now = timezone.now()
    BankToken.objects.update(
        issued_at=now - timedelta(minutes=6), access_expires_at=now - timedelta(minutes=1)
    )
    yield user
    with connection.cursor() as cursor:
        cursor.execute("RESET search_path")
        cursor.execute("DROP SCHEMA tenant CASCADE")


@on_postgresql
class TestSchemas:
    @pytest.mark.urls("tests.protocol.site")
    def test_a_schema_that_the_request_set_is_never_mixed_up(
        self, tenant, everifin, client, settings, atomic_requests
    ):
        settings.MIDDLEWARE = [f"{__name__}.in_schema", *settings.MIDDLEWARE]
        browser = Client(headers={"accept": "application/json"})
        browser.force_login(tenant)
        answer = browser.get("/unmarked/")
        assert (answer.status_code, answer["Retry-After"]) == (503, "1")
        # Refreshed after the rollback, over the request's own connection.
        assert everifin.calls["token.refresh_token"] == 1
        answer = browser.get("/unmarked/")
        assert answer.status_code == 200
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO tenant, public")
        bobs = [account.id for account in everifin_for(tenant).accounts()]
        assert answer.json()["accounts"] == bobs

    def test_a_tenant_that_the_connection_knows_is_set_on_the_other_one(
        self, tenant, everifin, monkeypatch
    ):
        """The mechanism of django-tenants: the connection is told its tenant."""

        def set_tenant(self: Any, schema: str) -> None:
            with self.cursor() as cursor:
                cursor.execute(f"SET search_path TO {schema}, public")

        monkeypatch.setattr(type(connections["default"]), "set_tenant", set_tenant, raising=False)
        monkeypatch.setattr(connections["default"], "tenant", "tenant", raising=False)
        with transaction.atomic():
            assert ensure_fresh(tenant).token_version == 2
            transaction.set_rollback(True)
        assert BankToken.objects.get(user=tenant).token_version == 2


@beside_a_transaction
class TestComparison:
    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows.update(id=uuid.uuid4()),
            lambda rows: rows.update(identity_digest="0" * 64),
            lambda rows: rows.update(user=UserFactory()),
            lambda rows: rows.update(token_version=0),
        ],
        ids=["another id", "another identity", "another user", "an older version"],
    )
    def test_another_row_than_was_seen_is_later_and_nothing_is_sent(
        self, overdue, everifin, change
    ):
        seen, user = overdue.seen(), overdue.user
        change(BankToken.objects.filter(pk=overdue.pk))
        with transaction.atomic(), pytest.raises(LATER) as caught:
            ensure_fresh(user, rejected=seen)
        error: Any = caught.value
        assert error.refresh_later.connection_id == overdue.pk
        assert everifin.calls["token.refresh_token"] == 0

    def test_a_row_of_the_same_open_transaction_is_later(self, everifin):
        user = UserFactory()
        with transaction.atomic():
            everifin.connect(user)
            BankToken.objects.update(access_expires_at=timezone.now())
            with pytest.raises(LATER):
                ensure_fresh(user)
        assert everifin.calls["token.refresh_token"] == 0
        assert ensure_fresh(user).token_version == 2

    def test_a_row_the_caller_has_locked_is_later_at_once(self, overdue, everifin):
        user = overdue.user
        with transaction.atomic():
            BankToken.objects.select_for_update().get()
            with pytest.raises(LATER):
                ensure_fresh(user)
        assert everifin.calls["token.refresh_token"] == 0


class TestBounds:
    def test_when_all_connections_are_taken_it_is_later(self, overdue, everifin, monkeypatch):
        slots = threading.BoundedSemaphore(1)
        slots.acquire()
        monkeypatch.setattr(own_connection, "slots", slots)
        monkeypatch.setattr(own_connection, "WAITING_SHARE", 0)
        user = overdue.user
        with transaction.atomic(), pytest.raises(LATER):
            ensure_fresh(user)
        assert everifin.calls["token.refresh_token"] == 0

    def test_work_that_outlasts_the_deadline_is_left_to_its_thread(self):
        go_on, done = threading.Event(), threading.Event()

        def work() -> None:
            go_on.wait(20)
            done.set()

        with pytest.raises(own_connection.BusyError):
            own_connection.run("default", work, time.monotonic() + 0.01)
        go_on.set()
        assert done.wait(20)

    def test_a_connection_that_fails_to_close_takes_no_slot_with_it(self, monkeypatch):
        monkeypatch.setattr(own_connection, "slots", threading.BoundedSemaphore(1))

        def fail() -> None:
            raise OperationalError("server has gone away")

        def work() -> None:
            connections["default"].close = fail  # type: ignore[method-assign]  # of this thread's

        for _number in range(2):
            own_connection.run("default", work, time.monotonic() + 20)

    def test_what_the_work_raises_is_raised_here(self):
        def work() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            own_connection.run("default", work, time.monotonic() + 20)

    def test_a_process_without_room_for_a_thread_is_later(self, monkeypatch):
        def start(self: Any) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(own_connection.BusyError):
                own_connection.run("default", lambda: None, time.monotonic() + 20)
        assert own_connection.run("default", lambda: 1, time.monotonic() + 20) == 1

    @beside_a_transaction
    def test_nothing_is_set_on_the_caller_or_left_open(self, overdue, everifin):
        user, seen = overdue.user, []
        with transaction.atomic():
            ensure_fresh(user)
            seen = own_connection.run(
                "default", lambda: [connections["default"]], time.monotonic() + 20
            )
        assert seen[0].connection is None
        assert seen[0] is not connections["default"]


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite connects to nobody")
@pytest.mark.parametrize(
    ("given", "used"), [(None, 3), (0, 3), (-1, 3), ("-1", 3), ("", 3), (1, 1), ("2", 2), (60, 3)]
)
def test_connecting_never_takes_longer_than_three_seconds(monkeypatch, given, used):
    """For PostgreSQL, 0 and less mean without end."""
    options = {**connection.settings_dict.get("OPTIONS", {}), "connect_timeout": given}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    seen: Any = own_connection.run(
        "default", lambda: connections["default"].settings_dict["OPTIONS"], time.monotonic() + 20
    )
    assert seen["connect_timeout"] == used


@pytest.mark.skipif("connection.vendor != 'sqlite'", reason="What is tried is SQLite's")
class TestSQLite:
    @pytest.fixture
    def journal(self, request, overdue, monkeypatch):
        """Django's default of a transaction that begins by reading, in one of two journal modes."""
        options = {**connection.settings_dict["OPTIONS"], "transaction_mode": "DEFERRED"}
        connections["default"].close()
        monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
        self.set_journal(request.param)
        yield request.param
        connections["default"].close()
        for thread in threading.enumerate():
            if thread.name == "everifin-refresh":  # closes its connection after its answer
                thread.join()
        self.set_journal("delete")
        connections["default"].close()

    def set_journal(self, mode: str) -> None:
        with connection.cursor() as cursor:
            assert cursor.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)

    @pytest.mark.parametrize("journal", ["wal"], indirect=True)
    def test_with_wal_a_transaction_that_has_only_read_is_refreshed_beside(
        self, journal, overdue, everifin
    ):
        with transaction.atomic():
            assert ensure_fresh(overdue.user).token_version == 2
            # What this transaction has read is older than what is stored by now.
            with pytest.raises(OperationalError, match="locked"):
                BankToken.objects.update(failures=1)
            transaction.set_rollback(True)
        assert BankToken.objects.get().token_version == 2

    @pytest.mark.parametrize("journal", ["wal", "delete"], indirect=True)
    def test_a_transaction_that_has_written_is_refused_before_anything_is_sent(
        self, journal, overdue, everifin
    ):
        with transaction.atomic():
            BankToken.objects.update(failures=1)
            with pytest.raises(RefreshInTransactionError):
                ensure_fresh(overdue.user)
        assert everifin.calls["token.refresh_token"] == 0

    @pytest.mark.parametrize("journal", ["delete"], indirect=True)
    def test_without_wal_so_is_one_that_has_read(self, journal, overdue, everifin):
        with transaction.atomic():
            BankToken.objects.count()
            with pytest.raises(RefreshInTransactionError):
                ensure_fresh(overdue.user)
        assert everifin.calls["token.refresh_token"] == 0


@on_postgresql
class TestPool:
    @pytest.fixture
    def pool(self, monkeypatch):
        """Let new connections come from a pool of four."""
        connections["default"].close()
        options = {**connection.settings_dict.get("OPTIONS", {})}
        options["pool"] = {"min_size": 4, "max_size": 4, "timeout": 2}
        monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
        yield
        pooled: Any = connections["default"]
        pooled.close()
        pooled.close_pool()

    def test_four_threads_in_transactions_on_a_pool_of_four_are_all_refreshed(self, everifin, pool):
        users = [UserFactory() for _ in range(4)]
        for number, user in enumerate(users):
            everifin.add_user(f"person-{number}")
            everifin.connect(user, f"person-{number}")
        now = timezone.now()
        BankToken.objects.update(
            issued_at=now - timedelta(minutes=6), access_expires_at=now - timedelta(minutes=1)
        )
        connections["default"].close()  # back into the pool, whose four are for the threads
        begun = threading.Barrier(4)
        results: list[Any] = []

        def view(user: Any) -> None:
            try:
                with transaction.atomic():
                    BankToken.objects.count()
                    begun.wait(20)
                    results.append(ensure_fresh(user).token_version)
            except Exception as error:  # noqa: BLE001 - the test looks at whatever came
                results.append(error)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=view, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [2, 2, 2, 2]
        assert everifin.calls["token.refresh_token"] == 4

    def test_no_setting_is_left_on_a_pooled_connection(self, overdue, everifin, pool):
        user = overdue.user
        with transaction.atomic():
            assert ensure_fresh(user).token_version == 2
        with connection.cursor() as cursor:
            for name, value in [("lock_timeout", "0"), ("statement_timeout", "0")]:
                cursor.execute(f"SHOW {name}")
                assert cursor.fetchone() == (value,)


@pytest.mark.django_db(transaction=False)
@pytest.mark.urls("tests.protocol.site")
class TestInsideATestCase:
    """The rows that a test wrote are visible on the test's own connection only."""

    def test_an_undecorated_view_of_a_site_with_atomic_requests_is_refreshed(
        self, overdue, everifin, client, atomic_requests
    ):
        assert client.get("/unmarked/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_token_refused_inside_the_view_is_refreshed(
        self, connected, everifin, client, atomic_requests
    ):
        everifin.expire_access_tokens()
        assert client.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1


@pytest.mark.urls("tests.protocol.site")
class TestAfterTheRollback:
    """A refresh that found no room in the view's transaction is made after it, and asked again."""

    @pytest.fixture
    def no_room(self, monkeypatch, atomic_requests):
        def run(*_arguments: Any) -> None:
            raise DatabaseFault("locked")

        monkeypatch.setattr(own_connection, "run", run)

    def test_a_page_loads_itself_again(self, overdue, everifin, client, no_room, caplog):
        answer = client.get("/unmarked/", headers={"accept": "text/html"})
        assert (answer.status_code, answer["Retry-After"], answer["Refresh"]) == (503, "1", "1")
        assert "tests.protocol.site.unmarked" in caplog.text
        assert client.get("/unmarked/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1

    def test_a_form_or_script_does_not(self, overdue, everifin, client, no_room):
        for answer in (
            client.post("/unmarked/", headers={"accept": "text/html"}),
            client.get("/unmarked/", headers={"accept": "application/json"}),
        ):
            assert "Refresh" not in answer
            BankToken.objects.update(access_expires_at=timezone.now())

    def test_when_that_refresh_fails_too_its_own_error_is_answered(
        self, overdue, everifin, client, no_room
    ):
        everifin.faults.add("token.refresh_token", status=503, retry_after=30)
        answer = client.get("/unmarked/", headers={"accept": "text/html"})
        assert (answer.status_code, answer["Retry-After"]) == (503, "30")
        assert "Refresh" not in answer

    def test_a_grant_that_has_ended_is_answered_so(self, overdue, everifin, client, no_room):
        everifin.end_sessions()
        answer = client.get("/unmarked/", headers={"accept": "text/html"})
        assert answer.status_code == 302
        assert answer["Location"].startswith("/everifin/connect/")

    def test_a_token_refused_inside_the_view_is_replaced_after_it(
        self, connected, everifin, client, no_room
    ):
        everifin.expire_access_tokens()
        assert client.get("/accounts/").status_code == 503
        assert everifin.calls["token.refresh_token"] == 1
        assert client.get("/accounts/").status_code == 200
        assert everifin.calls["token.refresh_token"] == 1

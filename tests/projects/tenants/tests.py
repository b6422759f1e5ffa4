"""Two tenants whose users have the same primary keys never see each other's bank."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections
from django.http import StreamingHttpResponse
from django.template import RequestContext, Template
from django.test import Client
from django.utils import timezone

from everifin_django import tasks
from everifin_django.connections import everifin_for, grants, ledger
from everifin_django.models import BankToken, PendingRevocation
from tests.projects.tenants.routing import TenantRouter, in_tenant

pytestmark = pytest.mark.django_db(transaction=True, databases=["one", "two"])

PEOPLE = {"one": "alice", "two": "bob"}


@pytest.fixture
def users(everifin) -> dict[str, Any]:
    """Give the user of each tenant, both with primary key 1, connected to another person's bank."""
    found = {}
    for name, person in PEOPLE.items():
        with in_tenant(name):
            found[name] = User.objects.create(pk=1, username=person)
            everifin.connect(found[name], person)
    return found


def browser(name: str, user: Any) -> Client:
    browser = Client(headers={"X-Tenant": name, "accept": "application/json"})
    with in_tenant(name):
        browser.force_login(user)
    return browser


def accounts_of(name: str, user: Any) -> list[str]:
    with in_tenant(name):
        return [account.id for account in everifin_for(user).accounts()]


def let_token_run_out(name: str) -> None:
    now = timezone.now()
    BankToken.objects.using(name).update(
        issued_at=now - timedelta(minutes=6), access_expires_at=now - timedelta(minutes=1)
    )


def ask_twice(browser: Client, path: str) -> Any:
    """The answer to *path*; to a second request where SQLite had no room during the first."""
    answer = browser.get(path)
    if answer.status_code == 503 and connections["two"].vendor == "sqlite":
        answer = browser.get(path)
    return answer


class TestRefreshInsideATransaction:
    def test_an_undecorated_view_reads_its_own_tenants_bank(self, users, everifin):
        own, other = accounts_of("two", users["two"]), accounts_of("one", users["one"])
        assert set(own).isdisjoint(other)
        let_token_run_out("two")
        answer = ask_twice(browser("two", users["two"]), "/unmarked/")
        assert answer.status_code == 200
        assert answer.json()["accounts"] == own
        assert BankToken.objects.using("one").get().token_version == 1
        assert BankToken.objects.using("two").get().token_version == 2

    def test_a_decorated_view_whose_token_is_refused_reads_its_own_tenants_bank(
        self, users, everifin
    ):
        own = accounts_of("two", users["two"])
        everifin.expire_access_tokens()
        answer = ask_twice(browser("two", users["two"]), "/accounts/")
        assert answer.json()["accounts"] == own
        assert BankToken.objects.using("one").get().token_version == 1

    def test_a_living_connection_that_the_other_tenant_lacks_is_not_asked_to_connect_again(
        self, users, everifin
    ):
        own = accounts_of("two", users["two"])
        BankToken.objects.using("one").all().delete()
        let_token_run_out("two")
        answer = ask_twice(browser("two", users["two"]), "/unmarked/")
        assert answer.json()["accounts"] == own


def test_tokens_are_those_of_the_tenant_that_is_chosen_at_each_call(users):
    seen = []
    for name in ("one", "two", "one", "two"):
        with in_tenant(name):
            seen.append(grants.get_access_token(users[name]))
    assert [token.source.alias for token in seen] == ["one", "two", "one", "two"]
    assert seen[0].token == seen[2].token
    assert seen[1].token == seen[3].token
    assert seen[0].token != seen[1].token


def test_a_disconnect_of_one_tenant_is_seen_by_its_next_call_and_leaves_the_other_alone(users):
    with in_tenant("two"):
        bank = everifin_for(users["two"])
        bank.ensure_token()
        assert grants.disconnect(users["two"])
        assert not bank.is_connected()
    with in_tenant("one"):
        assert everifin_for(users["one"]).is_connected()


def in_pool(call: Any) -> Any:
    """What *call* returns in a thread of its own, without the caller's context variables."""

    def run() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_async_calls_that_are_gathered_read_their_own_tenants_bank(users, everifin):
    async def ids(bank: Any) -> list[str]:
        return [account.id async for account in bank.aaccounts()]

    async def accounts(name: str) -> Any:
        with in_tenant(name):
            bank = everifin_for(users[name])
            return await asyncio.gather(ids(bank), ids(bank), ids(bank))

    async def both() -> Any:
        return await asyncio.gather(accounts("two"), accounts("one"))

    expected = [[accounts_of(name, users[name])] * 3 for name in ("two", "one")]
    assert async_to_sync(both)() == expected
    everifin.expire_access_tokens()
    assert async_to_sync(both)() == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("path", ["/unmarked/", "/accounts/"])
def test_a_router_that_raises_is_no_other_tenants_bank(users, everifin, monkeypatch, path):
    visitor = browser("two", users["two"])

    def refuse(*_arguments: Any, **_hints: Any) -> str:
        raise PermissionError("no tenant")

    original = TenantRouter.db_for_write

    def only_for_others(self: Any, model: Any, **hints: Any) -> str:
        return refuse() if model is BankToken else original(self, model, **hints)

    monkeypatch.setattr(TenantRouter, "db_for_write", only_for_others)
    with pytest.raises(PermissionError):
        visitor.get(path)
    assert not everifin.calls["token.refresh_token"]


class TestOutsideOfTheTenantsContext:
    """The user comes from one tenant's database, and the router gives the other's."""

    CALLS = {
        "accounts": lambda bank: list(bank.accounts()),
        "token": lambda bank: bank.ensure_token(),
        "health": lambda bank: bank.health(),
        "connection": lambda bank: bank.connection(),
        "disconnect": lambda bank: grants.disconnect(bank.user),
        "payments": lambda bank: list(ledger.of_user(bank.user)),
    }

    @pytest.mark.parametrize("name", CALLS)
    def test_nothing_is_read_or_ended_in_a_thread_without_it(self, users, everifin, name):
        call = self.CALLS[name]
        with in_tenant("two"), pytest.raises(ImproperlyConfigured, match="two"):
            in_pool(lambda: call(everifin_for(users["two"])))
        for alias in PEOPLE:
            assert BankToken.objects.using(alias).get().status == "active"
        with in_tenant("two"):
            context = copy_context()
            in_pool(lambda: context.run(call, everifin_for(users["two"])))

    def test_a_client_that_leaves_it_reads_no_other_tenants_token(self, users):
        with in_tenant("two"):
            bank = everifin_for(users["two"])
            bank.ensure_token()
        bank._source._access_token = None  # as if it had run out
        with pytest.raises(ImproperlyConfigured):
            list(bank.accounts())

    def test_a_stream_that_outlives_the_middleware_does_not_either(self, users, rf):
        with in_tenant("two"):
            request = rf.get("/")
            request.user = User.objects.get()
            bank = everifin_for(request.user)
            stream = StreamingHttpResponse(account.id for account in bank.accounts())
        with pytest.raises(ImproperlyConfigured):
            list(stream)

    def test_a_user_made_inactive_is_saved_and_the_housekeeping_ends_the_connection(
        self, users, everifin, caplog
    ):
        users["two"].is_active = False
        users["two"].save(using="two")
        assert "housekeeping" in caplog.text
        assert BankToken.objects.using("one").get().status == "active"
        with in_tenant("two"):
            call_command("everifin_housekeeping", stdout=StringIO())
        assert BankToken.objects.using("two").get().status == "disconnected"
        assert BankToken.objects.using("one").get().status == "active"

    def test_no_message_names_the_user(self, users):
        with pytest.raises(ImproperlyConfigured) as caught:
            everifin_for(users["two"]).ensure_token()
        assert "bob" not in str(caught.value)


@pytest.mark.parametrize("name", ["one", "two"])
def test_everything_works_without_a_default_database(everifin, name):
    client = Client(headers={"X-Tenant": name})
    callback = everifin.visit(client, "login", PEOPLE[name])
    assert callback.status_code == 302, callback.content
    page = client.get("/accounts/")
    assert page.status_code == 200
    assert client.post("/everifin/disconnect/").status_code == 302
    assert everifin.visit(client, "connect", PEOPLE[name]).status_code == 302
    with in_tenant(name):
        user = User.objects.get()
        assert everifin_for(user).health() == BankToken.Health.ACTIVE
        assert client.post("/everifin/logout/").status_code == 302
        call_command("everifin_revoke_pending", stdout=StringIO())
        call_command("everifin_rotate_keys", stdout=StringIO())
        call_command("everifin_rotate_keys", "--status", stdout=StringIO())
        assert not PendingRevocation.objects.exists()
    assert everifin.live_sessions() == 0


def test_a_back_channel_logout_finds_the_connection_of_its_tenant(everifin, settings):
    settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
    client = Client(headers={"X-Tenant": "two"})
    everifin.visit(client, "login", "bob")
    token = everifin.logout_token(username="bob")
    answer = client.post("/everifin/backchannel-logout/", {"logout_token": token})
    assert answer.status_code == 200
    assert BankToken.objects.using("two").get().status == "disconnected"


@contextmanager
def untouched(alias: str) -> Iterator[None]:
    """Nothing is asked of the database *alias*."""

    def refuse(execute: Any, sql: str, *args: Any) -> Any:
        # ATOMIC_REQUESTS begins a transaction in each database.
        assert sql.startswith(("BEGIN", "SAVEPOINT", "RELEASE", "COMMIT")), f"{alias}: {sql[:200]}"
        return execute(sql, *args)

    with connections[alias].execute_wrapper(refuse):
        yield


COMMANDS = [
    "everifin_status --json",
    "everifin_status --prometheus -",
    "everifin_refresh --online",
    "everifin_housekeeping",
    "everifin_revoke_pending",
    "everifin_rotate_keys",
    "everifin_payments",
    "everifin_doctor",
    "everifin_disconnect --no-input --user {person}",
    "everifin_disconnect --no-input --all --workers 2",
]
TASKS = [partial(tasks.refresh_due, online=True), tasks.run_housekeeping, tasks.resolve_payments]


@pytest.mark.parametrize("work", [*COMMANDS, *TASKS])
@pytest.mark.parametrize(("tenant", "other"), [("one", "two"), ("two", "one")])
def test_what_runs_without_a_request_stays_in_its_tenants_database(
    users, everifin, work, tenant, other
):
    before = BankToken.objects.using(other).values().get()
    with in_tenant(tenant), untouched(other), suppress(SystemExit):
        if isinstance(work, str):
            call_command(*work.format(person=PEOPLE[tenant]).split(), stdout=StringIO())
        else:
            work()
    assert BankToken.objects.using(other).values().get() == before
    assert not PendingRevocation.objects.using(other).exists()
    assert everifin.live_sessions(PEOPLE[other]) == 1


@pytest.mark.parametrize(("tenant", "other"), [("one", "two"), ("two", "one")])
def test_the_admin_and_the_tags_stay_in_their_tenants_database(users, rf, tenant, other):
    own = users[tenant]
    with in_tenant(tenant), untouched(other):
        own.is_staff = own.is_superuser = True
        own.save()
        staff = Client(headers={"X-Tenant": tenant})
        staff.force_login(own)
        row = BankToken.objects.get()
        for name in ("banktoken", "loginlink", "payment", "pendingrevocation"):
            page = staff.get(f"/admin/everifin_django/{name}/", {"q": PEOPLE[tenant]})
            assert page.status_code == 200
        assert staff.get(f"/admin/everifin_django/banktoken/{row.pk}/change/").status_code == 200
        request = rf.get("/")
        request.user, request.everifin = own, everifin_for(own)
        text = "{% load everifin %}{% everifin_button 'connect' %}"
        assert Template(text).render(RequestContext(request))

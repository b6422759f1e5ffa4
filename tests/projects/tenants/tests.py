"""Two tenants whose users have the same primary keys never see each other's bank."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.test import Client
from django.utils import timezone

from everifin_django.connections import everifin_for, grants
from everifin_django.models import BankToken, PendingRevocation
from tests.projects.tenants.routing import in_tenant

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

"""
What users do, whatever the site's user model is: run for each project by ``test_projects``.
"""

from datetime import date
from typing import Any

import pytest
from django.contrib import auth
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.test import Client

from everifin_django.connections import revocation
from everifin_django.models import BankToken, PendingRevocation
from everifin_django.testing.factories import BankTokenFactory, UserFactory

CONNECTIONS = "/admin/everifin_django/banktoken/"

User: Any = auth.get_user_model()
pytestmark = pytest.mark.django_db


def required(email: str) -> dict[str, Any]:
    """What has to be said of a user besides the name."""
    known = {"joined_on": date(2020, 2, 29), "email": email}
    return {name: known[name] for name in User.REQUIRED_FIELDS}


@pytest.fixture
def ann():
    name = "ann@site.example"
    return User.objects.create_user(name, **required(name))


@pytest.fixture
def browser(client, ann):
    client.force_login(ann)
    return client


@pytest.fixture
def admin():
    client = Client()
    name = "admin@site.example"
    client.force_login(User.objects.create_superuser(name, **required(name)))
    return client


def user_of(client: Client) -> Any:
    return client.get("/plain/").wsgi_request.user


class TestLogin:
    def test_a_user_is_made_and_found_again(self, client, everifin, everifin_connect):
        everifin_connect(client, view="login")
        user = User.objects.get()
        assert user_of(client) == user
        assert not user.has_usable_password()
        is_named_by_email = User.USERNAME_FIELD == "email"
        named = "alice@example.test" if is_named_by_email else "everifin-"
        assert user.get_username().startswith(named)
        other = Client()
        everifin_connect(other, view="login")
        assert user_of(other) == user
        assert BankToken.objects.get().user == user
        assert client.get("/accounts/").content.startswith(b"SK")
        # The second login's grant replaced the first one's, which its browser keeps.
        assert revocation.revoke_due() == (0, 0)
        client.post("/everifin/logout/")
        assert not user_of(client).is_authenticated
        assert everifin.live_sessions() == 1
        other.post("/everifin/logout/")
        assert everifin.live_sessions() == 0

    def test_a_later_login_leaves_groups_and_flags_alone(self, client, everifin_connect):
        everifin_connect(client, view="login")
        user = User.objects.get()
        user.is_superuser = True
        user.save()
        user.groups.add(Group.objects.create(name="bookkeeping"))
        everifin_connect(Client(), view="login")
        user.refresh_from_db()
        assert user.is_superuser
        assert [group.name for group in user.groups.all()] == ["bookkeeping"]

    def test_nobody_is_made_if_the_site_does_not_want_that(
        self, client, everifin, everifin_connect, settings
    ):
        settings.EVERIFIN_CREATE_USERS = False
        assert everifin_connect(client, view="login").status_code == 403
        assert not User.objects.exists()
        assert everifin.live_sessions() == 0

    def test_an_inactive_user_stays_out(self, client, everifin, everifin_connect):
        everifin_connect(client, view="login")
        User.objects.update(is_active=False)
        assert not user_of(client).is_authenticated
        assert everifin_connect(Client(), view="login").status_code == 403
        # The grant of the second login is ended; a bulk update has sent no signal for the first.
        assert everifin.live_sessions() == 1
        User.objects.get().save()
        assert everifin.live_sessions() == 0


class TestConnection:
    def test_it_serves_until_it_is_disconnected(
        self, browser, ann, everifin, everifin_connect, age
    ):
        everifin_connect(browser)
        row = BankToken.objects.get(user=ann)
        assert browser.get("/accounts/").content.startswith(b"SK")
        age(row, minutes=10)
        assert browser.get("/accounts/").content.startswith(b"SK")
        assert everifin.calls["token.refresh_token"] == 1
        browser.post("/everifin/disconnect/")
        assert user_of(browser) == ann
        assert everifin.live_sessions() == 0

    def test_the_admin_shows_and_ends_it(self, admin, browser, ann, everifin, everifin_connect):
        everifin_connect(browser)
        row = BankToken.objects.get(user=ann)
        assert str(row.pk) in admin.get(CONNECTIONS, {"q": "ann"}).content.decode()
        assert str(row.pk) not in admin.get(CONNECTIONS, {"q": "nobody"}).content.decode()
        assert str(ann) in admin.get(f"{CONNECTIONS}{row.pk}/change/").content.decode()
        chosen = {"action": "disconnect", "_selected_action": [row.pk], "confirmed": "yes"}
        admin.post(CONNECTIONS, chosen)
        assert revocation.revoke_due() == (1, 0)
        assert everifin.live_sessions() == 0
        assert user_of(browser) == ann

    def test_a_deleted_users_grant_is_ended_though_everifin_was_down(
        self, browser, ann, everifin, everifin_connect, admin
    ):
        everifin_connect(browser)
        ann_pk = str(ann.pk)
        ann.delete()
        pending = PendingRevocation.objects.get()
        assert pending.user_pk == ann_pk
        assert admin.get("/admin/everifin_django/pendingrevocation/").status_code == 200
        everifin.faults.add("logout", status=503)
        assert revocation.revoke_due() == (0, 1)
        everifin.faults.clear()
        PendingRevocation.objects.update(retry_after=None)
        assert revocation.revoke_due() == (1, 0)
        assert everifin.live_sessions() == 0

    def test_the_factories_know_the_model(self):
        row = BankTokenFactory(user=UserFactory(**required("new@site.example")))
        assert row.user.get_username().endswith("@example.test")
        assert row.open_token("refresh").reveal() == "a refresh token"


class TestMigrations:
    def test_none_is_missing(self):
        call_command("makemigrations", check=True, dry_run=True)

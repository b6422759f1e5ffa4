"""Looking at connections and ending them."""

from io import StringIO

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from everifin_django.models import BankToken, LoginLink, Payment, PendingRevocation
from everifin_django.testing.factories import BankTokenFactory, PaymentFactory

CONNECTIONS = "/admin/everifin_django/banktoken/"
PENDING = "/admin/everifin_django/pendingrevocation/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def connection(everifin_connect, django_user_model):
    client = Client()
    client.force_login(django_user_model.objects.create_user("ann"))
    everifin_connect(client)
    return BankToken.objects.get()


@pytest.fixture
def waiting(connection, admin_client):
    """A grant that is still to be ended."""
    disconnect(admin_client, connection)
    return PendingRevocation.objects.get()


@pytest.fixture
def watcher(client, django_user_model):
    """Somebody who may look and no more."""
    user = django_user_model.objects.create_user("watcher", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(
            content_type__app_label="everifin_django", codename__contains="view"
        )
    )
    client.force_login(user)
    return client


def disconnect(client, *connections, confirmed="yes"):
    chosen = [connection.pk for connection in connections]
    data = {"action": "disconnect", "_selected_action": chosen, "confirmed": confirmed}
    return client.post(CONNECTIONS, data, follow=True)


def secrets_of(*rows) -> list[str]:
    """The ciphertexts, from their key id on."""
    names = ("access_ciphertext", "refresh_ciphertext", "id_ciphertext")
    found = [getattr(row, name, "") for row in rows for name in names]
    assert any(found)
    return ["evf1.", *filter(None, found)]


class TestPages:
    @pytest.mark.parametrize(
        "query",
        ["", "?q=ann", "?q=nobody", "?q=%00", "?health=active", "?trouble=none", "?o=1.-4"],
    )
    def test_the_list_shows_no_token(self, connection, admin_client, query):
        page = admin_client.get(CONNECTIONS + query).content.decode()
        assert not [text for text in secrets_of(connection) if text in page]

    def test_the_list_shows_user_and_health(self, connection, admin_client):
        page = admin_client.get(CONNECTIONS).content.decode()
        assert ">ann<" in page
        assert "</span> Connected</span>" in page
        assert "Add bank connection" not in page

    @pytest.mark.parametrize("is_found", [True, False])
    def test_a_connection_is_found_by_its_id(self, connection, admin_client, is_found):
        wanted = connection.pk if is_found else "12345678-1234-1234-1234-123456789012"
        page = admin_client.get(CONNECTIONS, {"q": str(wanted)}).content.decode()
        assert (">ann<" in page) == is_found

    def test_more_rows_cost_no_more_queries(
        self, everifin_connect, connection, admin_client, django_user_model
    ):
        admin_client.get(CONNECTIONS)
        with CaptureQueriesContext(database) as one_row:
            admin_client.get(CONNECTIONS)
        client = Client()
        client.force_login(django_user_model.objects.create_user("bob"))
        everifin_connect(client, "bob")
        with CaptureQueriesContext(database) as two_rows:
            admin_client.get(CONNECTIONS)
        assert len(two_rows) == len(one_row)

    def test_a_connection_shows_its_state_and_no_token(self, connection, admin_client):
        page = admin_client.get(f"{CONNECTIONS}{connection.pk}/change/").content.decode()
        assert "openid ais" in page
        assert "</span> Connected</span>" in page
        assert connection.subject not in page
        assert not [text for text in secrets_of(connection) if text in page]

    def test_a_pending_revocation_shows_no_token(self, waiting, admin_client):
        pages = [PENDING, f"{PENDING}?q={waiting.connection_id}", f"{PENDING}{waiting.pk}/change/"]
        for url in pages:
            page = admin_client.get(url).content.decode()
            assert str(waiting.connection_id) in page
            assert not [text for text in secrets_of(waiting) if text in page]

    def test_a_user_name_is_escaped(self, connection, admin_client, django_user_model):
        django_user_model.objects.filter(pk=connection.user_id).update(username="<b>ann")
        assert "<b>ann" not in admin_client.get(CONNECTIONS).content.decode()


class TestNothingIsEdited:
    @pytest.mark.parametrize("path", [CONNECTIONS, PENDING])
    def test_nothing_is_added(self, admin_client, path):
        assert admin_client.get(f"{path}add/").status_code == 403
        assert admin_client.post(f"{path}add/", {"scope": "ais pis"}).status_code == 403

    def test_nothing_is_changed(self, connection, admin_client):
        before = BankToken.objects.values().get()
        response = admin_client.post(
            f"{CONNECTIONS}{connection.pk}/change/", {"status": "disconnected", "user": "1"}
        )
        assert response.status_code == 403
        assert BankToken.objects.values().get() == before

    def test_a_grant_that_waits_is_listed(self, waiting, admin_client):
        assert (
            admin_client.post(f"{PENDING}{waiting.pk}/delete/", {"post": "yes"}).status_code == 403
        )
        admin_client.post(PENDING, {"action": "delete_selected", "_selected_action": [waiting.pk]})
        assert PendingRevocation.objects.count() == 1


class TestDisconnect:
    def test_it_ends_the_connection_here_and_later_at_everifin(
        self, everifin, connection, admin_client
    ):
        page = disconnect(admin_client, connection).content.decode()
        assert "1 connection was ended." in page
        assert "1 of them still has to be ended at Everifin" in page
        row = BankToken.objects.get()
        assert (row.status, row.end_reason) == ("disconnected", "admin")
        assert everifin.calls["logout"] == 0
        call_command("everifin_revoke_pending", stdout=StringIO())
        assert everifin.live_sessions("alice") == 0

    def test_many_rows_cost_as_many_queries_as_one(self, everifin, connection, admin_client):
        def cost(*rows):
            with CaptureQueriesContext(database) as queries:
                disconnect(admin_client, *rows)
            return len(queries)

        # Looked up once in a process, whoever asks first.
        ContentType.objects.get_for_model(BankToken)
        # Each kind of health that the list shows is one more query.
        BankTokenFactory(status="disconnected")
        admin_client.get(CONNECTIONS)
        of_two = cost(*BankTokenFactory.create_batch(2))
        of_many = cost(*BankTokenFactory.create_batch(40))
        assert of_many == of_two
        assert PendingRevocation.objects.filter(reason="admin").count() == 42
        assert LogEntry.objects.count() == 42
        assert BankToken.objects.get(pk=connection.pk).status == "active"
        assert everifin.calls["logout"] == 0

    def test_what_has_ended_before_is_not_ended_again(self, connection, admin_client):
        disconnect(admin_client, connection)
        page = disconnect(admin_client, connection).content.decode()
        assert "0 connections were ended." in page
        assert PendingRevocation.objects.count() == 1

    def test_the_log_names_the_connection_alone(self, connection, admin_client, admin_user):
        disconnect(admin_client, connection)
        entry = LogEntry.objects.get()
        assert (entry.user, entry.object_repr) == (admin_user, str(connection.pk))
        assert entry.get_change_message() == "Disconnected."

    def test_who_may_only_look_cannot(self, everifin, connection, watcher):
        assert ">ann<" in watcher.get(CONNECTIONS).content.decode()
        disconnect(watcher, connection)
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions("alice") == 1


class TestDelete:
    @pytest.fixture(autouse=True)
    def token(self, connection):
        return connection.refresh_ciphertext

    def assert_the_grant_waits(self, token: str) -> None:
        assert not BankToken.objects.exists()
        [waiting] = PendingRevocation.objects.all()
        assert (waiting.refresh_ciphertext, waiting.reason) == (token, "deleted")
        assert not [entry for entry in LogEntry.objects.values() if token in str(entry)]

    def test_one_connection(self, connection, admin_client, token):
        url = f"{CONNECTIONS}{connection.pk}/delete/"
        assert token not in admin_client.get(url).content.decode()
        admin_client.post(url, {"post": "yes"})
        self.assert_the_grant_waits(token)

    def test_selected_connections(self, connection, admin_client, token):
        data = {"action": "delete_selected", "_selected_action": [connection.pk], "post": "yes"}
        admin_client.post(CONNECTIONS, data)
        self.assert_the_grant_waits(token)

    def test_the_user(self, connection, admin_client, token):
        url = f"/admin/auth/user/{connection.user_id}/delete/"
        assert token not in admin_client.get(url).content.decode()
        admin_client.post(url, {"post": "yes"})
        self.assert_the_grant_waits(token)


class ReplicaForReading:
    """Reading this app's rows without naming a database meets one that does not exist."""

    def db_for_read(self, model, **hints):
        return "replica" if model._meta.app_label == "everifin_django" else None

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, *objects, **hints):
        return True


class TestReplica:
    @pytest.fixture(autouse=True)
    def replica(self, settings, connection, admin_user):
        PaymentFactory(state="uncertain")
        settings.DATABASE_ROUTERS = [f"{__name__}.ReplicaForReading"]

    @pytest.mark.parametrize("model", [BankToken, LoginLink, Payment, PendingRevocation])
    def test_its_pages_are_read_from_the_primary(self, model, admin_client):
        name = f"admin:everifin_django_{model._meta.model_name}"
        assert admin_client.get(reverse(f"{name}_changelist")).status_code == 200
        for row in model.objects.using("default"):
            assert admin_client.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200

    def test_what_is_disconnected_is_read_from_the_primary(self, connection, admin_client):
        pk = str(connection.pk)
        chosen = {"action": "disconnect", "_selected_action": [pk], "confirmed": "yes"}
        answer = admin_client.post(reverse("admin:everifin_django_banktoken_changelist"), chosen)
        assert answer.status_code == 302
        assert BankToken.objects.using("default").get(pk=connection.pk).status == "disconnected"

    def test_a_payment_is_ended_on_the_primary(self, admin_client):
        payment = Payment.objects.using("default").get()
        url = reverse("admin:everifin_django_payment_end", args=[payment.pk])
        admin_client.post(url, {"outcome": "paid", "note": "seen on the statement"})
        assert Payment.objects.using("default").get().state == "paid"

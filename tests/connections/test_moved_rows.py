"""
Rows with ciphertext that were given to another user or id, as a bad merge or import does it.

What they hold is bound to row and user: it is never opened for another, and stops nothing.
"""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from everifin_django.connections import ledger, revocation
from everifin_django.exceptions import TamperedError, TokenUnreadableError
from everifin_django.models import LoginSession, Payment, PendingRevocation
from everifin_django.testing.factories import UserFactory
from tests.connections.test_ledger import single

pytestmark = pytest.mark.django_db


def to_another_user(rows: Any) -> None:
    rows.update(user=UserFactory())


def to_another_id(rows: Any) -> None:
    rows.update(id=uuid.uuid4())


MOVES = pytest.mark.parametrize("move", [to_another_user, to_another_id])


class TestTheRecordOfALogin:
    @pytest.fixture
    def moved(self, everifin, client, move) -> LoginSession:
        everifin.visit(client, "login")
        move(LoginSession.objects.all())
        return LoginSession.objects.get()

    @MOVES
    def test_it_is_not_opened(self, moved):
        for kind in ("id", "session_keys"):
            with pytest.raises(TamperedError):
                moved.open_token(kind)

    @MOVES
    def test_logging_out_logs_out(self, moved, client):
        assert client.post("/everifin/logout/").status_code == 302
        assert "_auth_user_id" not in client.session

    @MOVES
    @pytest.mark.urls("tests.web.session_views")
    def test_a_changed_session_key_serves_the_page(self, moved, client):
        assert client.get("/cycle/").status_code == 200

    @MOVES
    def test_a_back_channel_logout_ends_the_others_of_its_session(
        self, moved, everifin, settings, client
    ):
        settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
        token = everifin.logout_token(username="alice")
        answer = client.post("/everifin/backchannel-logout/", {"logout_token": token})
        assert answer.status_code == 200
        assert not LoginSession.objects.exists()

    @MOVES
    def test_the_housekeeping_goes_on(self, moved):
        LoginSession.objects.update(check_after="2020-01-01T00:00:00Z")
        call_command("everifin_revoke_pending", verbosity=0)

    def test_a_user_who_logs_in_leaves_the_moved_record_of_another_alone(self, everifin, client):
        everifin.visit(client, "login")
        bob = Client()
        everifin.visit(bob, "login", "bob")
        bobs = LoginSession.objects.exclude(user_id=client.session["_auth_user_id"]).get()
        alices = LoginSession.objects.exclude(pk=bobs.pk)
        alices.update(user=bobs.user_id)
        assert bob.post("/everifin/logout/").status_code == 302
        assert "_auth_user_id" in client.session


@pytest.mark.parametrize("column", ["connection_id", "user_pk"])
def test_an_entry_of_the_outbox_that_was_moved_stays_and_says_so(connected, everifin, column):
    revocation.enqueue(connected, "test")
    values = {"connection_id": uuid.uuid4(), "user_pk": "77"}
    PendingRevocation.objects.update(**{column: values[column]})
    assert revocation.revoke_due() == (0, 1)
    assert PendingRevocation.objects.get().last_error == "unreadable"
    assert everifin.calls["logout"] == 0


class TestAPayment:
    @pytest.fixture
    def payment(self, django_user_model) -> Payment:
        payer = django_user_model.objects.create_user("payer")
        return ledger.record(payer, "order 1", single())

    def test_it_opens_for_no_other_id(self, payment):
        Payment.objects.update(id=uuid.uuid4())
        with pytest.raises(TokenUnreadableError):
            Payment.objects.get().open_text("payment")

    def test_it_opens_for_no_other_user(self, payment):
        Payment.objects.update(user_pk="77")
        with pytest.raises(TokenUnreadableError):
            Payment.objects.get().open_text("payment")

    def test_a_payment_of_another_user_is_not_shown_and_not_sent(self, payment, client, everifin):
        thief = UserFactory()
        everifin.connect(thief, scope="openid ais pis")
        Payment.objects.update(user=thief)
        client.force_login(thief)
        assert client.get(payment.get_absolute_url()).status_code == 404
        assert client.post(payment.get_absolute_url()).status_code == 404
        assert everifin.calls["api"] == 0

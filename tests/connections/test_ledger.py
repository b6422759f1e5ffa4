"""The ledger itself: what is written down before a payment is sent, and what is found out later."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import lazystr

from everifin_django.bank.payments import BulkItem, BulkPayment, PaymentStep, SinglePayment
from everifin_django.connections import everifin_for, ledger
from everifin_django.exceptions import (
    PaymentInTransactionError,
    PaymentKeyTakenError,
    UnavailableError,
    UnknownKeyError,
)
from everifin_django.models import BankToken, Payment
from everifin_django.secret import Secret
from everifin_django.signals import payment_finished
from everifin_django.testing.sandbox.api import accounts_of
from everifin_django.testing.sandbox.data import iban

PAYEE = iban("SK", "9991", 7)
State = Payment.State

pytestmark = pytest.mark.django_db


def single(**changes: Any) -> SinglePayment:
    values: dict[str, Any] = {
        "amount": Decimal("12.30"),
        "currency": "EUR",
        "recipient_iban": PAYEE,
        "recipient_name": "Anna",
        **changes,
    }
    return SinglePayment(**values)


def bulk(*amounts: str, sender_iban: str = "") -> BulkPayment:
    items = [
        BulkItem(amount=Decimal(one), currency="EUR", recipient_iban=PAYEE, recipient_name="Anna")
        for one in amounts
    ]
    return BulkPayment(name="wages", sender_iban=sender_iban or PAYEE, payments=tuple(items))


@pytest.fixture
def payer(settings, everifin, django_user_model):
    settings.EVERIFIN_SCOPES = "openid ais pis"
    settings.EVERIFIN_REDIRECT_URI = "https://shop.test/everifin/callback/"
    user = django_user_model.objects.create_user("payer")
    everifin.connect(user)
    return user


def made(everifin: Any, kind: str = "single") -> int:
    return len(everifin.store.payments(everifin.user("alice").sub, kind))


class TestRecord:
    def test_it_is_written_before_anything_is_sent(self, payer, everifin):
        row = ledger.record(payer, "order-1", single())
        assert Payment.objects.get() == row
        assert row.state == State.RECORDED
        assert (row.amount, row.currency) == (Decimal("12.30"), "EUR")
        assert everifin.calls["api"] == 0

    def test_who_is_paid_is_encrypted(self, payer):
        row = ledger.record(payer, "order-1", single())
        assert PAYEE not in str(list(Payment.objects.values()))
        assert "Anna" not in str(list(Payment.objects.values()))
        asked: Any = ledger.asked_for(row)
        assert asked.recipient_iban == PAYEE

    def test_the_key_may_be_a_uuid_or_a_number(self, payer):
        key = uuid.uuid4()
        assert ledger.record(payer, key, single()) == ledger.record(payer, str(key), single())
        assert ledger.record(payer, 17, single()) == ledger.record(payer, "17", single())

    @pytest.mark.parametrize(
        "key", ["", "  ", "x" * 256, "a\0b", True, None, b"order-1", 1.5, object()]
    )
    def test_what_is_no_key_is_refused(self, payer, key):
        with pytest.raises(ValueError, match="key of a payment"):
            ledger.record(payer, key, single())

    @pytest.mark.parametrize("key", ["ORDER-1", "order-1 ", "órder-1"])
    def test_keys_are_compared_byte_by_byte(self, payer, key):
        ledger.record(payer, "order-1", single())
        ledger.record(payer, key, single())
        assert Payment.objects.count() == 2

    @pytest.mark.parametrize(
        "changes",
        [{"amount": Decimal("12.31")}, {"currency": "CZK"}, {"recipient_name": "Bob"}],
        ids=str,
    )
    def test_another_payment_under_the_key_is_refused(self, payer, changes):
        ledger.record(payer, "order-1", single())
        with pytest.raises(PaymentKeyTakenError):
            ledger.record(payer, "order-1", single(**changes))

    def test_the_same_payment_may_be_given_in_other_types(self, payer):
        address = {"lines": ("a", "b"), 1: "c"}
        first = single(variable_symbol=7, recipient_address=address)
        row = ledger.record(payer, "order-1", first)
        again = single(variable_symbol="7", recipient_address=dict(address))
        assert ledger.record(payer, "order-1", again) == row

    @pytest.mark.parametrize("external_id", [uuid.UUID(int=7), 7, lazystr("order-7")])
    def test_the_external_id_is_the_one_that_was_given(self, payer, everifin, external_id):
        row = everifin_for(payer).pay_once("order-1", single(external_id=external_id))
        assert row.external_id == str(external_id)
        (sent,) = everifin.store.payments(everifin.user("alice").sub, "single")
        assert sent.document["sent"]["externalId"] == str(external_id)

    def test_the_same_amount_may_be_written_in_another_way(self, payer):
        row = ledger.record(payer, "order-1", single(amount=Decimal("12.3")))
        assert ledger.record(payer, "order-1", single(amount=Decimal("12.300"))) == row

    def test_a_key_of_another_user_tells_nothing(self, payer, django_user_model):
        ledger.record(payer, "order-1", single())
        other = django_user_model.objects.create_user("other")
        with pytest.raises(PaymentKeyTakenError) as caught:
            ledger.record(other, "order-1", single())
        assert "payer" not in str(caught.value)

    def test_a_deleted_user_does_not_free_the_key(self, payer, django_user_model):
        row = ledger.record(payer, "order-1", single())
        payer.delete()
        assert Payment.objects.get() == row
        with pytest.raises(PaymentKeyTakenError):
            ledger.record(django_user_model.objects.create_user("new"), "order-1", single())

    def test_nor_for_whoever_has_the_primary_key_of_the_deleted_user(self, payer, everifin):
        ledger.record(payer, "order-1", single())
        pk = payer.pk
        payer.delete()
        other = type(payer).objects.create(pk=pk, username="other")
        with pytest.raises(PaymentKeyTakenError):
            ledger.record(other, "order-1", single())

    def test_a_page_to_go_on_to_may_be_too_long_to_keep(self, payer):
        assert ledger.record(payer, "order-1", single(), next_url="/" + "x" * 2000).next_url == ""

    def test_not_inside_a_transaction(self, payer):
        with transaction.atomic(), pytest.raises(PaymentInTransactionError):
            ledger.record(payer, "order-1", single())
        assert not Payment.objects.exists()

    def test_a_bulk_payment_counts_its_items(self, payer):
        row = ledger.record(payer, "wages-11", bulk("1.10", "2.20"))
        assert (row.kind, row.amount) == ("bulk", Decimal("3.30"))
        assert ledger.record(payer, "wages-11", bulk("1.10", "2.20")) == row
        with pytest.raises(PaymentKeyTakenError):
            ledger.record(payer, "wages-11", bulk("1.10", "2.21"))


class TestPayOnce:
    def test_a_second_call_sends_nothing(self, payer, everifin):
        first = everifin_for(payer).pay_once("order-1", single())
        second = everifin_for(payer).pay_once("order-1", single())
        assert (first, second.state) == (second, State.OPEN)
        assert everifin.calls["api.payments"] == 1

    def test_nobody_is_present_so_the_first_step_waits(self, payer, everifin):
        row = everifin_for(payer).pay_once("order-1", single())
        assert (row.state, row.awaits) == (State.OPEN, Payment.Awaits.NOTHING)

    def test_a_bulk_payment_is_made_once(self, payer, everifin):
        sender = accounts_of(everifin, everifin.user("alice"))[0].iban
        for _ in range(2):
            everifin_for(payer).pay_once("wages-11", bulk("1.10", "2.20", sender_iban=sender))
        assert made(everifin, "bulk") == 1

    def test_what_was_not_sent_is_sent_by_the_next_call(self, payer, everifin, monkeypatch):
        everifin.expire_access_token(payer)
        everifin.faults.add("token", status=503)
        with pytest.raises(UnavailableError):
            everifin_for(payer).pay_once("order-1", single())
        assert Payment.objects.get().state == State.RECORDED
        everifin.faults.clear()
        BankToken.objects.update(retry_after=None, failures=0)
        assert everifin_for(payer).pay_once("order-1", single()).state == State.OPEN
        assert made(everifin) == 1

    def test_a_key_that_is_lost_sends_nothing(self, payer, everifin, settings):
        ledger.record(payer, "order-1", single())
        row = Payment.objects.get()
        Payment.objects.update(payment_ciphertext=row.payment_ciphertext.replace("test", "lost"))
        with pytest.raises(UnknownKeyError):
            everifin_for(payer).pay_once("order-1", single())
        assert Payment.objects.get().state == State.RECORDED
        assert made(everifin) == 0

    def test_a_process_that_ended_while_sending_leaves_an_uncertain_row(self, payer, everifin):
        row = ledger.record(payer, "order-1", single())
        assert ledger.claim(row) is not None
        assert everifin_for(payer).pay_once("order-1", single()).state == State.SENDING
        Payment.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        assert ledger.expire_lease(ledger.reread(row)).state == State.UNCERTAIN
        assert everifin_for(payer).pay_once("order-1", single()).state == State.UNCERTAIN
        assert made(everifin) == 0

    def test_a_late_answer_still_counts(self, payer):
        row = ledger.record(payer, "order-1", single())
        ledger.claim(row)
        ledger.mark_uncertain(row, "answer_lost")
        assert ledger.store_created(row, "17").state == State.OPEN

    def test_only_a_digest_of_the_way_back_is_stored(self, payer):
        value = ledger.claim(ledger.record(payer, "order-1", single()))
        assert isinstance(value, Secret)
        assert value.reveal() not in str(list(Payment.objects.values()))
        assert ledger.by_return_value(value.reveal()) == Payment.objects.get()
        assert ledger.by_return_value("guessed") is None

    def test_a_second_call_says_that_it_is_uncertain(self, payer, everifin):
        client = everifin_for(payer)
        row = ledger.record(payer, "order-1", single())
        ledger.claim(row)
        Payment.objects.update(lease_until=timezone.now() - timedelta(minutes=1))
        again = client.pay_once("order-1", single())
        assert (again.state, again.reason) == (State.UNCERTAIN, "process_ended")
        assert made(everifin) == 0

    @pytest.mark.parametrize("said", [{"html": True}, {"body": {"errors": [{"code": "WAIT"}]}}])
    @pytest.mark.parametrize("lost", [None, "after"])
    def test_too_many_calls_prove_nothing_unless_everifin_says_so(
        self, payer, everifin, lost, said
    ):
        """A gateway may say so, and after the work."""
        everifin.faults.add("api.payments", status=429, **said, lost=lost, times=1)
        client = everifin_for(payer)
        for _ in range(2):
            row = client.pay_once("order-1", single())
            assert (row.state, row.reason) == (State.UNCERTAIN, "rate_limited")
        assert made(everifin) == (lost == "after")

    def test_what_everifin_says_is_too_many_is_sent_by_the_next_call(self, payer, everifin):
        body = {"meta": {"status": "ERROR"}, "errors": [{"code": "TOO_MANY", "title": "Wait"}]}
        everifin.faults.add("api.payments", status=429, body=body, times=1)
        client = everifin_for(payer)
        with pytest.raises(UnavailableError):
            client.pay_once("order-1", single())
        assert client.pay_once("order-1", single()).state == State.OPEN
        assert made(everifin) == 1

    def test_a_step_nobody_knows_is_not_taken_again_at_once(self, payer, everifin):
        step = {"type": "MADE_UP", "status": "PROCESSING", "id": "1"}
        row = ledger.record(payer, "order-1", single())
        row = ledger._store_step(Payment.objects.get(), PaymentStep.from_raw(step))
        assert row.awaits == Payment.Awaits.NOTHING


class TestLook:
    def test_it_leaves_a_form_that_is_being_filled_in_as_good_as_it_was(self, payer, everifin):
        everifin_for(payer).pay_once("order-1", single())
        before = Payment.objects.get()
        call_command("everifin_payments", stdout=StringIO())
        after = Payment.objects.get()
        assert after.looked_at is not None
        assert (after.version, after.updated_at) == (before.version, before.updated_at)

    def test_those_of_deleted_users_do_not_stand_before_all_others(
        self, payer, everifin, django_user_model
    ):
        everifin_for(payer).pay_once("order-1", single())
        payer.delete()
        other = django_user_model.objects.create_user("other")
        everifin.connect(other, "bob")
        everifin_for(other).pay_once("order-2", single())
        for _ in range(2):
            call_command("everifin_payments", limit=1, stdout=StringIO())
        assert not Payment.objects.filter(looked_at=None).exists()

    def test_one_external_id_for_two_payments_does_not_mix_them_up(self, payer, everifin):
        client = everifin_for(payer)
        client.pay_once("order-1", single(external_id="order-1"))
        everifin.faults.add("api.payments", lost="before", times=1)
        row = client.pay_once("order-1-again", single(external_id="order-1"))
        assert ledger.look(client, row).state == State.UNCERTAIN
        assert Payment.objects.exclude(everifin_id="").count() == 1

    @pytest.mark.parametrize("told", [{"amount": None}, {"currency": None}])
    def test_what_is_not_told_makes_no_other_payment_of_it(self, payer, everifin, told):
        row = everifin_for(payer).pay_once("order-1", single())
        found = SimpleNamespace(**{"id": "1", "amount": row.amount, "currency": "EUR", **told})
        assert not ledger._is_another(row, found)

    def test_what_is_found_must_be_the_same_payment(self, payer, everifin, caplog):
        row = everifin_for(payer).pay_once("order-1", single())
        Payment.objects.update(state=State.UNCERTAIN, amount=Decimal("99.00"))
        assert ledger.look(everifin_for(payer), ledger.reread(row)).state == State.UNCERTAIN
        assert "another one at Everifin" in caplog.text

    @pytest.mark.parametrize("wrong", [{"id": "999"}, {"amount": 12.31}, {"currency": "CZK"}])
    def test_what_another_payment_became_is_not_believed(self, payer, everifin, wrong, caplog):
        """A cache on the way gave the answer of another one."""
        client = everifin_for(payer)
        row = client.pay_once("order-1", single())
        told = {"id": row.everifin_id, "status": "FINISHED", "amount": 12.3, "currency": "EUR"}
        body = {"meta": {"status": "SUCCESS"}, "data": {**told, **wrong}}
        everifin.faults.add("api.payment", body=body, times=1)
        assert ledger.look(client, row).state == State.OPEN
        assert "another one at Everifin" in caplog.text

    def test_the_command_looks_for_all_and_says_what_is_left(self, payer, everifin):
        everifin.faults.add("api.payments", lost="after", times=1)
        everifin_for(payer).pay_once("order-1", single())
        ledger.record(payer, "order-2", single())
        out = StringIO()
        call_command("everifin_payments", stdout=out)
        assert out.getvalue() == "open: 1\n"
        call_command("everifin_payments", "--limit", "0", stdout=(nothing := StringIO()))
        assert nothing.getvalue() == "No payment is unfinished.\n"

    def test_one_that_cannot_be_looked_for_does_not_stop_the_others(self, payer, everifin):
        everifin_for(payer).pay_once("order-1", single())
        Payment.objects.update(user=None)
        everifin_for(payer).pay_once("order-2", single())
        assert ledger.look_at_all(everifin_for, limit=10) == {"failed": 1, "open": 1}


class TestSignal:
    def test_it_is_sent_once_by_whoever_finds_the_end(self, payer):
        rows: list[Payment] = []

        def receive(sender: Any, payment: Payment, **kwargs: Any) -> None:
            rows.append(payment)
            raise RuntimeError("a receiver's own mistake")

        payment_finished.connect(receive)
        try:
            row = ledger.record(payer, "order-1", single())
            ledger.claim(row)
            ledger.finish(row, State.REFUSED, reason="INPUT_DATA_ERROR")
            assert not ledger.announce(row)
        finally:
            payment_finished.disconnect(receive)
        assert [one.is_final for one in rows] == [True]

    def test_a_process_that_ended_before_it_is_made_up_for(self, payer):
        rows: list[Payment] = []

        def receive(sender: Any, payment: Payment, **kwargs: Any) -> None:
            rows.append(payment)

        ledger.record(payer, "order-1", single())
        Payment.objects.update(state=State.PAID)
        payment_finished.connect(receive)
        try:
            call_command("everifin_payments", stdout=StringIO())
            call_command("everifin_payments", stdout=StringIO())
        finally:
            payment_finished.disconnect(receive)
        assert len(rows) == 1


class TestAdmin:
    @pytest.fixture
    def uncertain(self, payer) -> Payment:
        row = ledger.record(payer, "order-1", single())
        ledger.claim(row)
        return ledger.mark_uncertain(row, "answer_lost")

    def test_uncertain_ones_come_first(self, admin_client, payer, uncertain):
        ledger.record(payer, "order-2", single())
        page = admin_client.get(reverse("admin:everifin_django_payment_changelist"))
        keys = [row.key for row in page.context["cl"].result_list]
        assert keys == ["order-1", "order-2"]

    @pytest.mark.parametrize("words", ["order-1", "payer"])
    def test_they_are_found_by_key_and_user(self, admin_client, uncertain, words):
        url = reverse("admin:everifin_django_payment_changelist")
        assert "order-1" in admin_client.get(url, {"q": words}).content.decode()
        assert "order-1" not in admin_client.get(url, {"q": "nobody"}).content.decode()

    def test_a_person_says_what_became_of_it(self, admin_client, uncertain, admin_user):
        change = reverse("admin:everifin_django_payment_change", args=[uncertain.pk])
        end = reverse("admin:everifin_django_payment_end", args=[uncertain.pk])
        assert end in admin_client.get(change).content.decode()
        assert admin_client.post(end, {"outcome": "paid", "note": " "}).status_code == 200
        assert admin_client.post(end, {"outcome": "paid", "note": "seen"}).status_code == 302
        row = Payment.objects.get()
        assert (row.state, row.note, row.ended_by) == (State.PAID, "seen", admin_user)
        again = admin_client.post(end, {"outcome": "failed", "note": "no"}, follow=True)
        assert "not uncertain any more" in again.content.decode()
        assert Payment.objects.get().state == State.PAID

    def test_not_without_the_permission(self, client, uncertain, django_user_model):
        staff = django_user_model.objects.create_user("staff", is_staff=True)
        client.force_login(staff)
        end = reverse("admin:everifin_django_payment_end", args=[uncertain.pk])
        assert client.post(end, {"outcome": "paid", "note": "x"}).status_code == 403
        assert Payment.objects.get().state == State.UNCERTAIN

    def test_nothing_is_deleted_and_nothing_edited(self, admin_client, uncertain):
        change = reverse("admin:everifin_django_payment_change", args=[uncertain.pk])
        delete = reverse("admin:everifin_django_payment_delete", args=[uncertain.pk])
        assert admin_client.post(delete, {"post": "yes"}).status_code == 403
        assert admin_client.post(change, {"state": "paid"}).status_code == 403
        page = admin_client.get(change).content.decode()
        assert PAYEE not in page
        assert uncertain.payment_ciphertext not in page


def test_the_database_is_the_one_that_is_written_to(payer):
    """The rows of the ledger never come from a replica."""
    assert ledger.of_user(payer).db == connection.alias

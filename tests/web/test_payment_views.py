"""The ready pages of a payment, through a site's checkout, the sandbox's bank behind them."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from django.contrib.auth import get_user_model
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.shortcuts import redirect
from django.test import Client
from django.urls import include, path
from django.utils import timezone
from django.utils.html import escape
from django.views.decorators.http import require_POST

from everifin_django.bank.client import Client as BankClient
from everifin_django.bank.payments import BulkItem, BulkPayment, SinglePayment
from everifin_django.connections import everifin_for
from everifin_django.decorators import everifin_required
from everifin_django.exceptions import PaymentInTransactionError
from everifin_django.models import Payment
from everifin_django.signals import payment_finished
from everifin_django.testing.sandbox import payments as box
from everifin_django.testing.sandbox.api import accounts_of
from everifin_django.testing.sandbox.data import iban
from tests.testing import Form

PAYEE = iban("SK", "9991", 7)
CANARY = "canary-5f1e"


@require_POST
@transaction.non_atomic_requests
@everifin_required(scopes={"pis"})
def checkout(request: Any, order: str) -> HttpResponse:
    payment = SinglePayment(
        amount=Decimal(request.POST.get("amount", "12.30")),
        currency="EUR",
        recipient_iban=request.POST.get("to", PAYEE),
        recipient_name="Anna <b>",
        sender_iban=request.POST["from"],
    )
    return redirect(request.everifin.pay_once(order, payment, next_url=f"/orders/{order}/"))


def order_page(request: HttpRequest, order: str) -> HttpResponse:
    return HttpResponse(f"order {order}")


urlpatterns = [
    path("everifin/", include("everifin_django.urls")),
    path("checkout/<str:order>/", checkout),
    path("orders/<str:order>/", order_page),
]

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


@pytest.fixture
def payer(client, settings, everifin, everifin_connect, django_user_model):
    """The test client of a user who is connected with the permission to pay."""
    settings.EVERIFIN_SCOPES = "openid ais pis"
    settings.ALLOWED_HOSTS = ["shop.test", "testserver"]
    client.force_login(django_user_model.objects.create_user("payer"))
    everifin_connect(client)
    client.defaults.update(SERVER_NAME="shop.test", HTTP_USER_AGENT="Browser/1")
    client.defaults.update(REMOTE_ADDR="203.0.113.9")
    return client


@pytest.fixture
def finished():
    """The payments for which the signal was sent, in order."""
    rows: list[Payment] = []

    def receive(sender: Any, payment: Payment, **kwargs: Any) -> None:
        rows.append(payment)

    payment_finished.connect(receive)
    yield rows
    payment_finished.disconnect(receive)


def sender(everifin, way: str) -> str:
    """The IBAN of alice's account at the bank that pays by *way*."""
    bank = {"redirect": "eftdemo1", "inputs": "eftdemo2", "push": "eftdemo3"}[way]
    accounts = accounts_of(everifin, everifin.user("alice"))
    return next(one.iban for one in accounts if one.plan.bank.id == bank)


def pay(client: Client, everifin: Any, way: str, order: str = "order-1", **data: str) -> Any:
    """Check out, and return the answer of the payment's page."""
    answer = client.post(f"/checkout/{order}/", {"from": sender(everifin, way), **data})
    assert answer.status_code == 302
    # However slow this machine is, the page is shown at once: it asks nobody again yet.
    Payment.objects.update(updated_at=timezone.now() + timedelta(minutes=5))
    return client.get(answer["Location"])


def row() -> Payment:
    return Payment.objects.get()


def text_of(response: Any) -> str:
    return str(response.content.decode())


def bank_url(response: Any) -> str:
    found = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', text_of(response))
    assert found is not None
    return found[1].replace("&amp;", "&")


def at_the_bank(url: str, answer: str = "confirm") -> str:
    """What the bank leads back to."""
    back = Form(requests.get(url, timeout=5), "payment").submit(**{answer: "x"})
    parts = urlsplit(back.headers["Location"])
    return f"{parts.path}?{parts.query}"


def go_on(client: Client, **data: str) -> Any:
    """Press the button of the payment's page as it is now."""
    url = row().get_absolute_url()
    return client.post(url, {"version": row().version, **data}, follow=True)


def later(client: Client) -> Any:
    """The payment's page, some seconds later."""
    long_ago = timezone.now() - timedelta(seconds=30)
    Payment.objects.update(updated_at=long_ago)
    Payment.objects.exclude(looked_at=None).update(looked_at=long_ago)
    return client.get(row().get_absolute_url())


def no_paying(request: HttpRequest, action: str) -> HttpResponse | None:
    """An access check."""
    return HttpResponseForbidden("not now") if action == "pay" else None


class TestAccessCheck:
    @pytest.fixture
    def forbid(self, settings):
        def forbid() -> None:
            settings.EVERIFIN_ACCESS_CHECK = f"{__name__}.no_paying"

        return forbid

    def test_paying_is_refused_before_anything_is_written(self, payer, everifin, forbid):
        forbid()
        answer = payer.post("/checkout/order-1/", {"from": sender(everifin, "redirect")})
        assert (answer.status_code, answer.content) == (403, b"not now")
        assert not Payment.objects.exists()
        assert everifin.calls["api.payments"] == 0

    def test_the_page_of_a_payment_asks(self, payer, everifin, forbid):
        pay(payer, everifin, "push")
        forbid()
        url = row().get_absolute_url()
        for answer in (payer.get(url), payer.post(url, {"version": row().version})):
            assert (answer.status_code, answer.content) == (403, b"not now")

    def test_the_way_back_from_the_bank_does_not(self, payer, everifin, forbid):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        forbid()
        assert payer.get(back)["Location"] == row().get_absolute_url()
        assert row().state == "paid"


class TestRedirect:
    @pytest.mark.parametrize(("answer", "state"), [("confirm", "paid"), ("refuse", "failed")])
    def test_a_payment_goes_to_the_bank_and_back(self, payer, everifin, finished, answer, state):
        page = pay(payer, everifin, "redirect")
        assert "Go to your bank" in text_of(page)
        assert "no-store" in page["Cache-Control"]
        back = payer.get(at_the_bank(bank_url(page), answer), follow=True)
        assert row().state == state
        assert [one.state for one in finished] == [state]
        assert "Anna &lt;b&gt;" in text_of(back)
        assert 'href="/orders/order-1/"' in text_of(back)

    def test_a_reload_after_the_return_sends_nothing(self, payer, everifin, finished):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        payer.get(back)
        calls = everifin.calls["api.payment"]
        for _ in range(2):
            assert payer.get(back, follow=True).status_code == 200
        assert everifin.calls["api.payment"] == calls
        assert len(finished) == 1

    def test_the_bank_is_not_answered_by_a_link_of_another_page(self, payer, everifin):
        """The value of the way back is unknown there."""
        pay(payer, everifin, "redirect")
        calls = everifin.calls["api.payment"]
        assert payer.get("/everifin/payments/return/guessed/?code=x").status_code == 404
        assert everifin.calls["api.payment"] == calls

    def test_a_return_is_taken_only_while_it_is_awaited(self, payer, everifin):
        url = bank_url(pay(payer, everifin, "redirect"))
        back = at_the_bank(url)
        Payment.objects.update(awaits=Payment.Awaits.INPUT)
        calls = everifin.calls["api.payment"]
        payer.get(f"{back}&userId=a&userPassword=b")
        assert everifin.calls["api.payment"] == calls

    def test_a_forged_return_pays_nothing(self, payer, everifin):
        url = bank_url(pay(payer, everifin, "redirect"))
        back = urlsplit(at_the_bank(url)).path
        page = payer.get(f"{back}?status=FINISHED&id=1", follow=True)
        assert row().state == Payment.State.OPEN
        assert "Go to your bank" in text_of(page)

    def test_another_user_finds_nothing(self, payer, everifin):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        payer.force_login(get_user_model().objects.create_user("other"))
        assert payer.get(back).status_code in {302, 404}
        assert payer.get(row().get_absolute_url()).status_code in {302, 404}
        assert row().state == Payment.State.OPEN

    @pytest.mark.parametrize("method", ["head", "post", "put"])
    def test_only_a_get_comes_from_the_bank(self, payer, everifin, method):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        calls = everifin.calls["api.payment"]
        assert getattr(payer, method)(back).status_code == 405
        assert everifin.calls["api.payment"] == calls
        assert row().state == Payment.State.OPEN

    def test_a_value_that_served_needs_no_connection_and_asks_nobody(self, payer, everifin):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        payer.get(back)
        payer.post("/everifin/disconnect/")
        calls = everifin.calls["api"]
        page = payer.get(f"{back}&userId=a&userPassword=b", follow=True)
        assert ">Paid<" in text_of(page)
        assert everifin.calls["api"] == calls

    @pytest.mark.parametrize("name", ["userPassword", "USERPASSWORD", "otp ", "Userid"])
    def test_a_return_with_a_password_is_not_handed_on(self, payer, everifin, name):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        calls = everifin.calls["api.payment"]
        payer.get(back, {name: "x"})
        payer.get(f"{back}&{name.replace(' ', '%20')}=x")
        assert everifin.calls["api.payment"] == calls
        assert row().state == Payment.State.OPEN

    def test_the_value_of_somebody_else_is_not_found(self, payer, everifin):
        first = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        user = get_user_model().objects.create_user("other")
        everifin.connect(user, "bob")
        other = Client(**payer.defaults)
        other.force_login(user)
        calls = everifin.calls["api.payment"]
        assert other.get(first).status_code == 404
        assert everifin.calls["api.payment"] == calls
        assert row().state == Payment.State.OPEN

    def test_a_visitor_who_returns_logged_out_logs_in_first(self, payer, everifin):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        payer.logout()
        answer = payer.get(back)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/accounts/login/?next=/everifin/payments/return/")

    def test_no_report_shows_what_the_bank_added(self, payer, everifin):
        """Servers copy the query to other headers of the request."""
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        path, _, query = back.partition("?")
        answer = payer.get(f"{path}?{query}&code={CANARY}", RAW_URI=f"{path}?{query}&code={CANARY}")
        assert answer.status_code == 302
        request = answer.wsgi_request
        assert CANARY not in repr(request.META) + repr(request.GET) + request.get_full_path()

    def test_an_endless_return_is_not_handed_on(self, payer, everifin):
        back = at_the_bank(bank_url(pay(payer, everifin, "redirect")))
        calls = everifin.calls["api.payment"]
        payer.get(f"{back}&more={'x' * 5000}")
        payer.get(back + "".join(f"&a{number}=1" for number in range(40)))
        assert everifin.calls["api.payment"] == calls


class TestInputs:
    @pytest.fixture
    def sent_inputs(self, monkeypatch):
        """What the user typed, as it is given to the client, which encrypts it."""
        sent: list[Any] = []
        process = BankClient.process_payment

        def record(client: Any, payment_id: str, **step: Any) -> Any:
            sent.append({name: value.reveal() for name, value in step["inputs"].items()})
            return process(client, payment_id, **step)

        monkeypatch.setattr(BankClient, "process_payment", record)
        return sent

    def test_they_are_encrypted_and_not_kept(self, payer, everifin, finished):
        page = text_of(pay(payer, everifin, "inputs"))
        assert "Your bank asks you something" in page
        assert 'type="password"' in page
        go_on(payer, userId="alice", userPassword=CANARY)
        headers = everifin.last_request["api.payment"].headers
        assert headers["x-user-data-encryption-method"] == "RSAES-OAEP/SHA-256"
        assert CANARY not in str(list(Payment.objects.values())) + str(dict(payer.session))
        wrong = go_on(payer, otp=box.WRONG_OTP)
        assert wrong.status_code == 422
        assert "did not accept" in text_of(wrong)
        assert ">Paid<" in text_of(go_on(payer, otp="123456"))
        assert [one.state for one in finished] == ["paid"]

    @pytest.mark.parametrize("name", ["version", "next", "pk", "a[b]", 'x" autofocus="', "čo?"])
    def test_a_bank_may_name_its_inputs_as_it_likes(self, payer, everifin, sent_inputs, name):
        pay(payer, everifin, "inputs")
        step = {"id": row().everifin_id, "status": "CREATED", "type": "INPUT"}
        answer = {"meta": {"status": "SUCCESS"}, "data": {**step, "input": {"name": name}}}
        everifin.faults.add("api.payment", body=answer, times=1)
        go_on(payer, userId="alice", userPassword=CANARY)
        page = text_of(payer.get(row().get_absolute_url()))
        assert f'name="{escape(name)}"' in page
        # A browser sends both where the bank's name is one of the page's own.
        sent = {"version": [str(row().version)]}
        sent.setdefault(name, []).append(CANARY)
        payer.post(row().get_absolute_url(), sent)
        assert sent_inputs[-1] == {name: CANARY}

    def test_an_old_form_sends_nothing(self, payer, everifin):
        pay(payer, everifin, "inputs")
        old = {"version": row().version, "userId": "alice", "userPassword": CANARY}
        payer.post(row().get_absolute_url(), old)
        calls = everifin.calls["api.payment"]
        for _ in range(2):
            answer = payer.post(row().get_absolute_url(), old)
            assert answer.status_code == 302
        assert everifin.calls["api.payment"] == calls

    def test_a_step_that_is_being_taken_is_not_shown_again(self, payer, everifin):
        """A double click: the browser shows the second answer, and the first one has the lease."""
        pay(payer, everifin, "inputs")
        Payment.objects.update(lease_until=timezone.now() + timedelta(minutes=1))
        page = text_of(go_on(payer, userId="alice", userPassword=CANARY))
        assert "userPassword" not in page
        assert "Your payment is on its way" in page
        assert '<meta http-equiv="refresh" content="5">' in page

    def test_an_empty_field_sends_nothing(self, payer, everifin):
        pay(payer, everifin, "inputs")
        calls = everifin.calls["api.payment"]
        for fields in ({}, {"userId": "alice"}, {"userId": "alice", "userPassword": " "}):
            answer = go_on(payer, **fields)
            assert answer.status_code == 422
            assert "This field is required." in text_of(answer)
        assert everifin.calls["api.payment"] == calls

    @pytest.mark.parametrize("lost", [None, "after"])
    def test_too_many_calls_leave_doubt_about_what_was_entered(self, payer, everifin, lost):
        pay(payer, everifin, "inputs")
        everifin.faults.add("api.payment", status=429, html=True, lost=lost, times=1)
        step = {"version": row().version, "userId": "alice", "userPassword": CANARY}
        payer.post(row().get_absolute_url(), step)
        assert (row().state, row().reason) == (Payment.State.UNCERTAIN, "rate_limited")
        calls = everifin.calls["api.payment"]
        payer.get(row().get_absolute_url())
        assert row().state == Payment.State.OPEN
        assert everifin.last_request["api.payment"].method == "GET"
        assert everifin.calls["api.payment"] == calls + 1

    def test_only_what_the_bank_asked_for_is_sent(self, payer, everifin, sent_inputs):
        pay(payer, everifin, "inputs")
        go_on(payer, userId="alice", userPassword=CANARY, amount="999")
        assert sent_inputs[-1] == {"userId": "alice", "userPassword": CANARY}

    def test_a_prefetch_and_a_head_ask_nobody(self, payer, everifin):
        pay(payer, everifin, "push")
        calls = everifin.calls["api.payment"]
        payer.head(row().get_absolute_url())
        payer.get(row().get_absolute_url(), HTTP_SEC_PURPOSE="prefetch;prerender")
        assert everifin.calls["api.payment"] == calls


class TestPush:
    def test_the_page_asks_again_by_itself(self, payer, everifin, finished):
        page = text_of(pay(payer, everifin, "push"))
        assert '<meta http-equiv="refresh" content="5">' in page
        page = text_of(later(payer))
        assert ">Paid<" in page
        assert len(finished) == 1

    def test_htmx_is_told_to_load_the_page(self, payer, everifin):
        """Put into another page, it would not go on by itself."""
        pay(payer, everifin, "push")
        url = row().get_absolute_url()
        answer = payer.get(url, headers={"HX-Request": "true"})
        assert (answer.content, answer["HX-Redirect"]) == (b"", url)

    def test_but_not_for_each_reload(self, payer, everifin):
        pay(payer, everifin, "push")
        calls = everifin.calls["api.payment"]
        for _ in range(5):
            payer.get(row().get_absolute_url())
        assert everifin.calls["api.payment"] == calls

    def test_and_stops_after_two_minutes(self, payer, everifin):
        pay(payer, everifin, "redirect")
        Payment.objects.update(
            awaits=Payment.Awaits.PUSH, created_at=timezone.now() - timedelta(minutes=3)
        )
        everifin.faults.add("api.payment", status=503)
        page = text_of(later(payer))
        assert "http-equiv" not in page.replace('name="referrer"', "")
        assert "Check now" in page


class TestAfterwards:
    def test_a_step_that_was_left_in_the_middle_is_shown_without_a_connection(
        self, payer, everifin
    ):
        pay(payer, everifin, "redirect")
        payer.post("/everifin/disconnect/")
        Payment.objects.update(lease_until=timezone.now() - timedelta(minutes=1))
        page = payer.get(row().get_absolute_url())
        assert "whether this was paid" in text_of(page)
        assert row().state == Payment.State.UNCERTAIN

    def test_a_receipt_needs_no_connection(self, payer, everifin):
        pay(payer, everifin, "push")
        assert ">Paid<" in text_of(later(payer))
        payer.post("/everifin/disconnect/")
        assert ">Paid<" in text_of(payer.get(row().get_absolute_url()))
        payer.logout()
        assert payer.get(row().get_absolute_url()).status_code == 302

    def test_a_bulk_names_each_payee(self, payer, everifin, settings):
        settings.EVERIFIN_REDIRECT_URI = "https://shop.test/everifin/callback/"
        items = [
            BulkItem(
                amount=Decimal(amount),
                currency="EUR",
                recipient_iban=PAYEE,
                recipient_name=f"Anna {amount}",
            )
            for amount in ("1.10", "2.20")
        ]
        bulk = BulkPayment(
            name="wages", sender_iban=sender(everifin, "redirect"), payments=tuple(items)
        )
        user = get_user_model().objects.get(username="payer")
        paid = everifin_for(user).pay_once("wages-1", bulk)
        page = text_of(payer.get(paid.get_absolute_url()))
        for amount in ("1.10", "2.20"):
            assert f"Anna {amount}, {PAYEE}, {amount} EUR" in page


class TestOnce:
    def test_a_second_click_pays_nothing(self, payer, everifin):
        for _ in range(3):
            pay(payer, everifin, "redirect")
        assert everifin.calls["api.payments"] == 1
        assert Payment.objects.count() == 1

    def test_another_payment_under_the_same_key_is_refused(self, payer, everifin):
        pay(payer, everifin, "redirect")
        with pytest.raises(Exception, match="Another payment has this key"):
            pay(payer, everifin, "redirect", amount="12.31")
        assert everifin.calls["api.payments"] == 1

    def test_nobody_elses_key_can_be_used(self, payer, everifin):
        pay(payer, everifin, "redirect")
        other = get_user_model().objects.create_user("other")
        everifin.connect(other, "bob")
        payer.force_login(other)
        with pytest.raises(Exception, match="Another payment has this key"):
            payer.post("/checkout/order-1/", {"from": sender(everifin, "redirect")})

    def test_a_view_in_a_transaction_is_refused_before_anything_is_written(self, payer, everifin):
        is_told = pytest.raises(PaymentInTransactionError, match="non_atomic_requests")
        with transaction.atomic(), is_told:
            pay(payer, everifin, "redirect")
        assert not Payment.objects.exists()
        assert everifin.calls["api.payments"] == 0


class TestUncertain:
    @pytest.mark.parametrize("lost", ["before", "after"])
    def test_a_lost_answer_is_told_and_never_sent_again(self, payer, everifin, lost):
        everifin.faults.add("api.payments", lost=lost, times=1)
        everifin.faults.add("api.payments", status=503)
        page = text_of(pay(payer, everifin, "redirect"))
        assert "We do not know yet" in page
        assert "12.30 EUR" in page
        assert PAYEE in page
        made = everifin.store.payments(everifin.user("alice").sub, "single")
        assert len(made) == (lost == "after")
        pay(payer, everifin, "redirect")
        assert len(everifin.store.payments(everifin.user("alice").sub, "single")) == len(made)

    def test_it_is_found_by_its_external_id_and_goes_on(self, payer, everifin, finished):
        everifin.faults.add("api.payments", lost="after", times=1)
        pay(payer, everifin, "redirect")
        page = later(payer)
        back = payer.get(at_the_bank(bank_url(page)), follow=True)
        assert ">Paid<" in text_of(back)
        assert len(finished) == 1

    def test_a_list_without_it_says_so_only_after_a_day(self, payer, everifin, finished):
        everifin.faults.add("api.payments", lost="before", times=1)
        pay(payer, everifin, "redirect")
        assert row().state == Payment.State.UNCERTAIN
        Payment.objects.update(sent_at=timezone.now() - timedelta(days=2), looked_at=None)
        page = payer.get(row().get_absolute_url())
        assert "Everifin does not know this payment" in text_of(page)
        assert [one.state for one in finished] == ["absent"]

    def test_an_outage_shows_the_page_all_the_same(self, payer, everifin):
        pay(payer, everifin, "push")
        everifin.faults.add("api", status=503)
        page = later(payer)
        assert page.status_code == 200
        assert not row().is_final


class TestRefused:
    @pytest.mark.parametrize("state", [Payment.State.SENDING, Payment.State.UNCERTAIN])
    def test_who_is_not_connected_any_more_sees_what_to_look_for(self, payer, everifin, state):
        everifin.faults.add("api.payments", lost="before", times=1)
        page = pay(payer, everifin, "redirect", amount="98.76").wsgi_request.path
        payer.post("/everifin/disconnect/")
        long_ago = timezone.now() - timedelta(days=1)
        Payment.objects.update(state=state, lease_until=long_ago, looked_at=None)
        response = payer.get(page)
        assert response.status_code == 200
        assert "98.76" in text_of(response)
        assert "whether this was paid" in text_of(response)
        assert payer.post(page, {"version": row().version})["Location"].startswith(
            "/everifin/connect/"
        )
        assert Client().get(page).status_code == 302

    def test_everifins_refusal_is_final(self, payer, everifin, finished):
        refusal = {
            "meta": {"status": "ERROR"},
            "errors": [{"code": "INPUT_DATA_ERROR", "title": "No"}],
        }
        everifin.faults.add("api.payments", status=400, body=refusal, times=1)
        page = text_of(pay(payer, everifin, "redirect"))
        assert "did not accept" in page
        assert [one.state for one in finished] == ["refused"]

    def test_the_banks_rejection_is_final(self, payer, everifin, finished):
        pay(payer, everifin, "push", to=box.REJECTED_IBAN)
        assert ">Not paid<" in text_of(later(payer))
        assert [one.state for one in finished] == ["failed"]

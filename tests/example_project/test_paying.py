"""The example's payment pages, with the sandbox and its bank behind them."""

import re
from importlib import import_module
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from django.test import RequestFactory

from everifin_django.testing.sandbox import payments as box
from everifin_django.testing.sandbox.data import iban
from example_project import paying
from tests.example_project.test_pages import demo, site, text_of  # noqa: F401
from tests.testing import Form

PAYEE = iban("SK", "9991", 7)
FILLED = {
    "recipient_name": "Anna <b>",
    "recipient_iban": PAYEE,
    "amount": "12.30",
    "currency": "EUR",
    "payment_message": "Lunch",
}

pytestmark = pytest.mark.django_db


@pytest.fixture
def payer(demo, settings, everifin_connect):  # noqa: F811
    settings.EVERIFIN_SCOPES = "openid ais pis"
    settings.ALLOWED_HOSTS = ["shop.test", "testserver"]
    everifin_connect(demo)
    demo.defaults.update(
        SERVER_NAME="shop.test", HTTP_USER_AGENT="Browser", REMOTE_ADDR="192.0.2.7"
    )
    return demo


def accounts_of(client):
    """The IBAN of alice's account at each bank, as the form offers them."""
    offered = re.findall(r'<option value="(\w+)"[^>]*>(\w+)', text_of(client.get("/pay/")))
    names = {"Everyday": "redirect", "Business": "inputs", "Prague": "push"}
    return {names[word]: value for value, word in offered if word in names}


def confirmed(client, way, **changes):
    sender = accounts_of(client)[way]
    filled = client.post("/pay/", {**FILLED, "sender_iban": sender, **changes})
    assert filled.headers["Location"] == "/pay/confirm/"
    return client.post("/pay/confirm/")


def at_the_bank(url, answer):
    back = Form(requests.get(url, timeout=5), "payment").submit(**{answer: "x"})
    return "/pay/back/?" + urlsplit(back.headers["Location"]).query


@pytest.mark.parametrize(("answer", "words"), [("confirm", "Paid"), ("refuse", "Not paid")])
def test_a_payment_goes_to_the_bank_and_back(payer, answer, words):
    bank = confirmed(payer, "redirect").headers["Location"]
    response = payer.get(at_the_bank(bank, answer), follow=True)
    assert response.redirect_chain == [("/pay/state/", 302)]
    assert f">{words}<" in text_of(response)
    assert "Anna &lt;b&gt;" in text_of(response)


def test_what_is_confirmed_is_shown_before(payer):
    payer.post("/pay/", {**FILLED, "sender_iban": accounts_of(payer)["redirect"]})
    page = text_of(payer.get("/pay/confirm/"))
    assert PAYEE in page
    assert "12.30" in page


def test_a_form_cannot_change_what_was_confirmed(payer, everifin):
    payer.post("/pay/", {**FILLED, "sender_iban": accounts_of(payer)["redirect"]})
    payer.post("/pay/confirm/", {"amount": "999", "recipient_iban": box.FAILED_IBAN})
    (kept,) = everifin.store.payments(everifin.user("alice").sub, "single")
    assert kept.document["sent"]["amount"] == 12.3
    assert kept.document["sent"]["recipientIban"] == PAYEE


def test_what_is_confirmed_twice_is_paid_once(payer, everifin):
    confirmed(payer, "redirect")
    assert payer.post("/pay/confirm/").headers["Location"] == "/pay/state/"
    assert everifin.calls["api.payments"] == 1


def test_of_two_clicks_at_once_the_later_finds_nothing(payer, django_user_model, settings):
    """The later request read its session while the draft was still there."""
    payer.post("/pay/", {**FILLED, "sender_iban": accounts_of(payer)["redirect"]})
    late = RequestFactory().post("/pay/confirm/")
    late.user = django_user_model.objects.get()
    store = import_module(settings.SESSION_ENGINE).SessionStore
    late.session = store(payer.cookies["sessionid"].value)
    assert paying.DRAFT in late.session
    payer.post("/pay/confirm/")
    assert paying._take_draft(late) is None


def test_a33_a_forged_return_pays_nothing(payer):
    confirmed(payer, "redirect")
    response = payer.get("/pay/back/?status=FINISHED&id=1", follow=False)
    assert "/_bank/" in response.headers["Location"]
    assert "Not finished yet" in text_of(payer.get("/pay/state/"))


def test_a_wrong_query_after_the_bank_is_told(payer):
    bank = confirmed(payer, "redirect").headers["Location"]
    at_the_bank(bank, "confirm")
    page = text_of(payer.get("/pay/back/?code=forged", follow=True))
    assert "does not accept" in page
    assert "Not finished yet" in page


def test_a32_the_payment_is_that_of_this_session(payer, client, django_user_model):
    bank = confirmed(payer, "redirect").headers["Location"]
    back = at_the_bank(bank, "confirm")
    payer.session.flush()
    payer.force_login(
        django_user_model.objects.get(), backend="django.contrib.auth.backends.ModelBackend"
    )
    assert payer.get("/pay/state/").headers["Location"] == "/pay/"
    response = payer.get(back, follow=True)
    assert response.redirect_chain[-1][0] == "/pay/"


def test_inputs_are_asked_for_and_never_kept(payer, everifin):
    confirmed(payer, "inputs")
    page = text_of(payer.get("/pay/state/"))
    assert 'type="password"' in page
    payer.post("/pay/go-on/", {"userId": "alice", "userPassword": "canary-5f1e"})
    headers = everifin.last_request["api.payment"].headers
    assert headers["x-user-data-encryption-method"] == "RSAES-OAEP/SHA-256"
    assert "canary-5f1e" not in str(dict(payer.session))
    page = text_of(payer.post("/pay/go-on/", {"otp": box.WRONG_OTP}, follow=True))
    assert "does not accept" in page
    assert "Code in the image" in page
    assert ">Paid<" in text_of(payer.post("/pay/go-on/", {"otp": "123456"}, follow=True))


def test_push_and_next_need_a_click_each(payer):
    confirmed(payer, "push")
    payer.post("/pay/go-on/")
    assert ">Paid<" in text_of(payer.post("/pay/go-on/", follow=True))
    # Once more, as by the browser's back button: nothing happens.
    assert ">Paid<" in text_of(payer.post("/pay/go-on/", follow=True))


def test_a_rejected_payment_says_so(payer):
    confirmed(payer, "push", recipient_iban=box.REJECTED_IBAN)
    payer.post("/pay/go-on/")
    page = text_of(payer.post("/pay/go-on/", follow=True))
    assert "rejected" in page
    assert ">Not paid<" in page


def test_a_lost_answer_is_told_and_the_payment_found(payer, everifin):
    everifin.faults.add("api.payments", lost="after", times=1)
    confirmed(payer, "push")
    page = text_of(payer.get("/pay/state/"))
    assert "may have been made or not" in page
    assert "Not finished yet" in page
    everifin.faults.add("api.payment", lost="after", times=1)
    assert "may have been made" in text_of(payer.post("/pay/go-on/", follow=True))


def test_a_payment_that_never_arrived_is_not_paid(payer, everifin):
    everifin.faults.add("api.payments", lost="before", times=1)
    confirmed(payer, "push")
    assert "nothing was paid" in text_of(payer.get("/pay/state/"))
    assert payer.post("/pay/go-on/").headers["Location"] == "/pay/state/"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipient_iban": PAYEE[:-1] + "9"}, "This is not a valid IBAN."),
        ({"variable_symbol": "12a"}, "Please check this."),
        ({"amount": "0.001"}, "decimal places"),
        ({"amount": "0"}, "Please check this."),
    ],
)
def test_what_is_wrong_is_said_beside_the_field(payer, changes, words):
    sender = accounts_of(payer)["redirect"]
    response = payer.post("/pay/", {**FILLED, "sender_iban": sender, **changes})
    assert response.status_code == 200
    assert words in text_of(response)


def test_a_site_without_a_dot_is_told(payer):
    sender = accounts_of(payer)["redirect"]
    page = payer.post("/pay/", {**FILLED, "sender_iban": sender}, SERVER_NAME="testserver")
    assert "an address with a dot" in text_of(page)


def test_without_a_draft_there_is_nothing_to_confirm(payer):
    assert payer.get("/pay/confirm/").headers["Location"] == "/pay/"
    assert parse_qs(urlsplit(payer.get("/pay/state/").headers["Location"]).query) == {}

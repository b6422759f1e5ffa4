"""The example's pages to pay with, and the app's own pages of a payment behind them."""

import re
from urllib.parse import urlsplit

import pytest
import requests

from everifin_django.models import Payment
from everifin_django.testing.sandbox.data import iban
from example_project.forms import AmountField
from tests.example_project.test_pages import demo, site, text_of  # noqa: F401
from tests.testing import Form

PAYEE = iban("SK", "9991", 7)
FILLED = {
    "recipient_name": "Anna <b>",
    "recipient_iban": PAYEE,
    "amount": "12,30",
    "payment_message": "Lunch",
}

pytestmark = pytest.mark.django_db


@pytest.fixture
def payer(demo, settings, everifin_connect):  # noqa: F811
    settings.EVERIFIN_SCOPES = "openid ais pis"
    settings.ALLOWED_HOSTS = ["shop.test", "testserver"]
    everifin_connect(demo)
    demo.defaults.update(SERVER_NAME="shop.test", HTTP_USER_AGENT="Browser")
    demo.defaults.update(REMOTE_ADDR="203.0.113.9")
    return demo


def accounts_of(client):
    """The IBAN of alice's account at each bank, as the form offers them."""
    offered = re.findall(r'value="(\w+)"[^>]*>\s*(\w+) (?:account )?', text_of(client.get("/pay/")))
    names = {"Everyday": "redirect", "Business": "inputs", "Prague": "push"}
    return {names[word]: value for value, word in offered if word in names}


def confirmed(client, way, **changes):
    """The page of the payment, after it was filled in and confirmed."""
    sender = accounts_of(client)[way]
    filled = client.post("/pay/", {**FILLED, "sender_iban": sender, **changes})
    assert filled.headers["Location"] == "/pay/confirm/"
    return client.post("/pay/confirm/", follow=True)


def test_a_payment_goes_to_the_bank_and_back(payer):
    page = text_of(confirmed(payer, "redirect"))
    found = re.search(r'content="0;url=([^"]+)"', page)
    assert found is not None
    bank = Form(requests.get(found[1].replace("&amp;", "&"), timeout=5), "payment")
    parts = urlsplit(bank.submit(confirm="x").headers["Location"])
    receipt = text_of(payer.get(f"{parts.path}?{parts.query}", follow=True))
    assert "<h1>Paid</h1>" in receipt
    assert "Anna &lt;b&gt;" in receipt
    assert 'href="/payments/"' in receipt
    mine = text_of(payer.get("/payments/"))
    assert ">paid<" in mine
    assert "12.30" in mine


def test_what_is_confirmed_is_shown_before(payer):
    payer.post("/pay/", {**FILLED, "sender_iban": accounts_of(payer)["redirect"]})
    page = text_of(payer.get("/pay/confirm/"))
    assert PAYEE in page
    assert "12.30" in page


def test_change_it_brings_the_form_back_as_it_was(payer):
    payer.post("/pay/", {**FILLED, "sender_iban": accounts_of(payer)["redirect"]})
    page = text_of(payer.get("/pay/"))
    assert "Anna &lt;b&gt;" in page
    assert PAYEE in page
    assert "Lunch" in page


def test_a_form_cannot_change_what_was_confirmed(payer, everifin):
    payer.post("/pay/", {**FILLED, "sender_iban": accounts_of(payer)["redirect"]})
    payer.post("/pay/confirm/", {"amount": "999", "recipient_iban": PAYEE[:-1] + "9"})
    (sent,) = everifin.store.payments(everifin.user("alice").sub, "single")
    assert sent.document["sent"]["amount"] == 12.3
    assert sent.document["sent"]["recipientIban"] == PAYEE


def test_only_what_the_page_showed_is_paid(payer, everifin):
    """A second tab filled in another payment meanwhile."""
    sender = accounts_of(payer)["redirect"]
    payer.post("/pay/", {**FILLED, "sender_iban": sender})
    shown = re.findall(r'name="key" value="([^"]+)"', text_of(payer.get("/pay/confirm/")))
    payer.post("/pay/", {**FILLED, "sender_iban": sender, "amount": "99"})
    answer = payer.post("/pay/confirm/", {"key": shown})
    assert answer.headers["Location"] == "/pay/confirm/"
    assert everifin.calls["api.payments"] == 0
    now = re.findall(r'name="key" value="([^"]+)"', text_of(payer.get("/pay/confirm/")))
    payer.post("/pay/confirm/", {"key": now})
    assert Payment.objects.get().amount == 99


def test_what_is_confirmed_twice_is_paid_once(payer, everifin):
    confirmed(payer, "redirect")
    again = payer.post("/pay/confirm/")
    assert again.headers["Location"] == Payment.objects.get().get_absolute_url()
    assert everifin.calls["api.payments"] == 1


def test_the_currency_is_that_of_the_account(payer, everifin):
    confirmed(payer, "push", currency="USD")
    assert Payment.objects.get().currency == "CZK"


def test_without_a_draft_there_is_nothing_to_confirm(payer):
    assert payer.get("/pay/confirm/").headers["Location"] == "/pay/"
    assert payer.post("/pay/confirm/").headers["Location"] == "/pay/"
    assert "not paid anything yet" in text_of(payer.get("/payments/"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipient_iban": PAYEE[:-1] + "9"}, "This is not a valid IBAN."),
        ({"variable_symbol": "12a"}, "Please check this."),
        ({"amount": "0.001"}, "decimal places"),
        ({"amount": "0"}, "Please check this."),
        ({"amount": "1,230"}, "Write this as 1230 or 1.23."),
    ],
)
def test_what_is_wrong_is_said_beside_the_field(payer, changes, words):
    sender = accounts_of(payer)["redirect"]
    response = payer.post("/pay/", {**FILLED, "sender_iban": sender, **changes})
    assert response.status_code == 200
    assert words in text_of(response)


@pytest.mark.parametrize("language", ["en-gb", "sk", "de"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("12,30", "12.30"),
        ("12.30", "12.30"),
        ("12,3", "12.3"),
        ("1230", "1230"),
        ("1 230,50", "1230.50"),
        ("1\N{NO-BREAK SPACE}230,50", "1230.50"),
        ("1\N{NARROW NO-BREAK SPACE}230.50", "1230.50"),
        ("1,230.50", "1230.50"),
        ("1.230,50", "1230.50"),
        ("1'230.50", "1230.50"),
        ("1,234,567.89", "1234567.89"),
        ("0,05", "0.05"),
        ("1\N{RIGHT SINGLE QUOTATION MARK}230.50", "1230.50"),
        ("1\N{THIN SPACE}230", "1230"),
        (" 12,30 ", "12.30"),
        ("1,234,567", "1234567"),
        ("\u0661\u0662,\u0663\u0660", "12.30"),
    ],
)
def test_an_amount_is_read_as_it_is_meant(settings, language, written, meant):
    settings.LANGUAGE_CODE, settings.USE_THOUSAND_SEPARATOR = language, True
    assert str(AmountField(max_digits=12, decimal_places=2).clean(written)) == meant


@pytest.mark.parametrize(
    "written",
    [
        "1,230",
        "1.230",
        "12,345",
        "1,23,4",
        "1.2.3",
        "12,30,40.5",
        "1,2345.67",
        ",5,",
        "abc",
        "1e5,0",
        "12 30",
        "12'30",
        "1\N{NO-BREAK SPACE}23",
        "1 2 3,4",
        "1.230 50",
        "1e3",
        "1_000",
        "NaN",
        "Infinity",
        "-5",
        "+5",
        "12,30 EUR",
        "1\u066b5",
    ],
)
def test_an_amount_that_can_mean_two_things_is_refused(written):
    with pytest.raises(Exception, match=r"Write this as|Enter a"):
        AmountField(max_digits=12, decimal_places=2).clean(written)

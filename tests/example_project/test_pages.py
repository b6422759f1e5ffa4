"""The example's pages, under the example's own settings, with the sandbox behind them."""

import os
import re
import runpy
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from asgiref.sync import async_to_sync
from django.db import connections
from django.utils import timezone

from everifin_django.bank.accounts import transaction_reader
from example_project import chart
from example_project.templatetags.money import MINUS, money, moved
from tests.example_project import clean_environment

NOT_THE_SITES = {"DEBUG", "SECRET_KEY", "ALLOWED_HOSTS", "DATABASES", "HERE", "HTTPS"}
ACCOUNT_LINK = re.compile(r'href="(/accounts/[^/"]+/)"')
TOKEN = {"SECRET_KEY": "signs only what tests make", "HTTPS": "0"}


@pytest.fixture(autouse=True)
def site(settings, monkeypatch):
    """Everything of the example's settings but the database and whom it is reached as."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", clean_environment() | TOKEN)
        found = runpy.run_module("example_project.settings")
    for name in found.keys() - NOT_THE_SITES:
        if name.isupper():
            setattr(settings, name, found[name])
    atomic = {**connections.settings["default"], "ATOMIC_REQUESTS": True}
    monkeypatch.setitem(connections.settings, "default", atomic)


@pytest.fixture
def demo(client, django_user_model):
    """A user of the site's own, logged in."""
    user = django_user_model.objects.create_user("demo", password="demo")
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


@pytest.fixture
def alice(demo, everifin_connect):
    """The same, connected to Everifin as alice."""
    everifin_connect(demo)
    return demo


def text_of(response):
    return response.content.decode()


def first_account(client):
    return ACCOUNT_LINK.findall(text_of(client.get("/accounts/")))[0]


def rows(response):
    return text_of(response).count('<tr class="transaction"')


# Home and login


@pytest.mark.django_db
def test_a_visitor_is_offered_both_ways_in(client):
    page = text_of(client.get("/"))
    assert 'action="/everifin/login/"' in page
    assert 'href="/login/"' in page


@pytest.mark.django_db
def test_a_local_user_logs_in_and_is_offered_to_connect(client, django_user_model):
    django_user_model.objects.create_user("demo", password="demo")
    response = client.post("/login/", {"username": "demo", "password": "demo"}, follow=True)
    page = text_of(response)
    assert response.redirect_chain == [("/", 302)]
    assert "not connected" in page
    assert 'action="/everifin/connect/"' in page


@pytest.mark.django_db
def test_the_login_page_brings_back_to_where_it_was_asked_for(client):
    page = text_of(client.get("/login/?next=/accounts/"))
    assert page.count('name="next" value="/accounts/"') == 2


@pytest.mark.django_db
def test_a_visitor_who_asks_for_accounts_is_led_to_log_in(client):
    assert client.get("/accounts/")["Location"] == "/login/?next=%2Faccounts%2F"


@pytest.mark.django_db
def test_logging_in_with_everifin_leads_to_the_accounts(client, everifin_connect):
    response = everifin_connect(client, view="login", next="/accounts/")
    assert response["Location"] == "/accounts/"
    assert "Logged in with Everifin" in text_of(client.get("/"))


@pytest.mark.django_db
def test_a_connection_can_be_ended(alice, everifin):
    assert "connected" in text_of(alice.get("/"))
    alice.post("/everifin/disconnect/", {"next": "/"})
    assert "not connected" in text_of(alice.get("/"))
    assert everifin.live_sessions() == 0


@pytest.mark.django_db
def test_pages_work_in_an_async_server(async_client, alice):
    async_client.cookies = alice.cookies
    response = async_to_sync(async_client.get)("/accounts/")
    assert response.status_code == 200
    assert "Everyday account" in text_of(response)


# Accounts


@pytest.mark.django_db
def test_each_account_shows_name_bank_iban_and_balance(alice, everifin):
    page = text_of(alice.get("/accounts/"))
    assert re.findall(r'class="iban">([A-Z]{2}\d{22})<', page)
    for words in ("Everyday account", "Demo Bank One", "Prague account", "CZK", "EUR"):
        assert words in page
    assert len(ACCOUNT_LINK.findall(page)) == 3


@pytest.mark.django_db
def test_an_account_of_somebody_else_is_not_found(alice, everifin_connect, client):
    response = alice.get("/accounts/000000/")
    assert response.status_code == 404
    assert "There is nothing here" in text_of(response)


@pytest.mark.django_db
def test_an_expired_token_is_renewed_within_the_request(alice, everifin):
    everifin.expire_access_tokens()
    assert alice.get("/accounts/").status_code == 200
    assert everifin.calls["token.refresh_token"] == 1


@pytest.mark.django_db
def test_while_everifin_is_down_the_connection_is_kept(alice, everifin):
    everifin.faults.add("api", status=503)
    response = alice.get("/accounts/")
    assert response.status_code == 503
    assert "Log out" in text_of(response)  # the site's own look
    assert "not connected" not in text_of(alice.get("/"))


@pytest.mark.django_db
def test_bank_pages_are_not_kept_by_the_browser(alice):
    assert "no-store" in alice.get("/accounts/")["Cache-Control"]


@pytest.mark.django_db
def test_names_from_a_bank_are_escaped(alice, everifin):
    row = {"id": "1", "name": "<script>", "iban": '"><b>', "balances": []}
    everifin.faults.add("api.accounts", body={"meta": {}, "data": [row]})
    page = text_of(alice.get("/accounts/"))
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "<b>" not in page


# Transactions


@pytest.mark.django_db
def test_transactions_come_newest_first_and_in_portions(alice):
    address = first_account(alice)
    response = alice.get(address)
    assert rows(response) == 50
    (more,) = re.findall(r'href="(\?[^"]*show=100[^"]*)#row-51"', text_of(response))
    assert rows(alice.get(address + more.replace("&amp;", "&"))) == 100


@pytest.mark.django_db
@pytest.mark.parametrize(("direction", "other"), [("IN", "out"), ("OUT", "in")])
def test_transactions_are_filtered_by_direction(alice, direction, other):
    response = alice.get(first_account(alice), {"direction": direction})
    assert rows(response)
    assert f'class="amount {direction.lower()}"' in text_of(response)
    assert f'class="amount {other}"' not in text_of(response)


@pytest.mark.django_db
def test_transactions_are_filtered_by_day_both_days_included(alice, everifin):
    address = first_account(alice)
    # On the third and on the tenth of each month something happens.
    last_month = (timezone.now().date().replace(day=1) - timedelta(days=1)).replace(day=1)
    first, last = last_month.replace(day=3), last_month.replace(day=10)
    page = text_of(alice.get(address, {"booked_from": first, "booked_to": last}))
    days = {
        datetime.strptime(day, "%d %b %Y").replace(tzinfo=UTC).date()
        for day in re.findall(r'<td class="day">([^<]+)<', page)
    }
    assert min(days) == first
    assert max(days) == last


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"booked_from": "2026-02-31"}, "Enter a valid date."),
        ({"booked_to": "yesterday"}, "Enter a valid date."),
        ({"booked_from": "2026-05-02", "booked_to": "2026-05-01"}, "before the first one"),
        ({"direction": "SIDEWAYS"}, "Select a valid choice."),
    ],
)
def test_a_filter_that_makes_no_sense_is_explained(alice, everifin, query, message):
    address = first_account(alice)
    calls = everifin.calls["api.transactions"]
    page = text_of(alice.get(address, query))
    assert message in page
    assert everifin.calls["api.transactions"] == calls


@pytest.mark.django_db
def test_days_that_everifin_refuses_are_explained(alice, everifin):
    address = first_account(alice)
    error = {"code": "REQUEST_VALIDATION_ERROR", "detail": {"field": "bookingDateFrom"}}
    everifin.faults.add("api.transactions", status=422, body={"meta": {}, "errors": [error]})
    page = text_of(alice.get(address, {"booked_from": "2026-05-01"}))
    assert "Everifin does not accept these days" in page


@pytest.mark.django_db
@pytest.mark.parametrize("show", ["", "x", "-5", "9" * 30, "١٢٣"])
def test_a_made_up_portion_shows_the_first_one(alice, show):
    assert rows(alice.get(first_account(alice), {"show": show})) == 50


@pytest.mark.django_db
def test_the_picture_has_words_for_those_who_do_not_see_it(alice):
    page = text_of(alice.get(first_account(alice)))
    (picture,) = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert 'role="img" aria-labelledby="chart-title chart-desc"' in picture
    assert '<title id="chart-title">' in picture
    assert '<desc id="chart-desc">' in picture
    assert "The same as a table" in page
    numbers = re.findall(r' (?:x|y|width|height|x1|x2|y1|y2)="([^"]*)"', picture)
    assert all(number.isdecimal() for number in numbers)


@pytest.mark.django_db
def test_every_field_has_a_label_and_every_page_one_heading(alice):
    for address in ("/", "/accounts/", first_account(alice), "/everifin/connect/"):
        page = _Outline(text_of(alice.get(address)))
        assert page.headings == 1
        assert page.fields <= page.labelled


@pytest.mark.django_db
def test_pages_need_nothing_from_elsewhere(alice):
    for address in ("/", "/accounts/", first_account(alice)):
        page = text_of(alice.get(address))
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page)
        assert "<script" not in page


class _Outline(HTMLParser):
    """The headings, fields and labels of a page."""

    def __init__(self, page):
        super().__init__()
        self.headings = 0
        self.fields = set()
        self.labelled = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.headings += tag == "h1"
        if tag == "label":
            self.labelled.add(attributes["for"])
        if tag in {"input", "select"} and attributes.get("type") != "hidden":
            self.fields.add(attributes.get("id"))


# Money


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        ("1234.5", "EUR", "1,234.50\xa0EUR"),
        ("-3", "EUR", MINUS + "3.00\xa0EUR"),
        ("0", None, "0.00"),
        ("1.234", "KWD", "1.234\xa0KWD"),
        ("1E+3", "EUR", "1,000.00\xa0EUR"),
    ],
)
def test_money_is_written_the_way_people_do(amount, currency, expected):
    assert money(Decimal(amount), currency) == expected


def moving(direction, amount, day="2026-03-05", currency="EUR"):
    raw = {"id": "1", "amount": amount, "currency": currency}
    return transaction_reader()({**raw, "direction": direction, "bookingDate": day})


@pytest.mark.parametrize(
    ("direction", "amount", "expected"),
    [
        ("IN", "5", "+5.00\xa0EUR"),
        ("OUT", "5", MINUS + "5.00\xa0EUR"),
        ("OUT", "-5", MINUS + "5.00\xa0EUR"),
        (None, "5", "5.00\xa0EUR"),
    ],
)
def test_the_direction_gives_the_sign(direction, amount, expected):
    assert moved(moving(direction, amount)) == expected


# The picture


def drawn(transactions):
    found = chart.by_month(transactions, "EUR")
    assert found is not None
    return found


def test_months_are_summed_and_gaps_are_filled():
    found = drawn(
        [
            moving("IN", "10", "2026-03-01"),
            moving("IN", "5", "2026-03-31"),
            moving("OUT", "30", "2026-01-15"),
            moving("OUT", "99", "2026-02-15", currency="CZK"),
            moving(None, "99"),
            moving("IN", "99", day=None),
        ]
    )
    assert [month.first for month in found.months] == [
        date(2026, 1, 1),
        date(2026, 2, 1),
        date(2026, 3, 1),
    ]
    assert [month.difference for month in found.months] == [-30, 0, 15]
    assert found.most == 30
    assert found.months[0].bar_out.height == chart.BOTTOM - chart.TOP
    assert found.months[2].bar_in.height == (chart.BOTTOM - chart.TOP) // 2


def test_there_is_no_picture_of_nothing():
    assert chart.by_month([], "EUR") is None


def test_only_the_last_three_years_are_drawn():
    found = drawn([moving("IN", "1", "1970-01-01"), moving("IN", "2")])
    assert len(found.months) == chart.MOST_MONTHS
    assert found.months[-1].first == date(2026, 3, 1)


@pytest.mark.parametrize("count", [1, 2, 6, 12, 36])
def test_the_picture_stays_within_its_frame(count):
    days = [date(2020 + month // 12, month % 12 + 1, 1).isoformat() for month in range(count)]
    found = drawn([moving("OUT", "7", day) for day in days])
    for month in found.months:
        assert month.bar_in.x >= 0
        assert month.bar_out.x + month.bar_out.width <= chart.WIDTH
    names = [month.name_x for month in found.months if month.name_x is not None]
    assert all(
        chart.NAME_WIDTH // 2 <= name <= chart.WIDTH - chart.NAME_WIDTH // 2 for name in names
    )
    assert all(after - before >= chart.NAME_WIDTH - 2 for before, after in pairwise(names))


def test_nothing_moved_is_drawn_flat():
    found = drawn([moving("IN", "0")])
    assert found.months[0].bar_in.height == 0


def test_who_has_no_bank_yet_is_led_to_one(everifin_connect, admin_client):
    everifin_connect(admin_client, "nina")
    page = admin_client.get("/accounts/").content.decode()
    assert 'href="https://idp.everifin.test"' in page
    assert 'href="/everifin/bank/?next=/accounts/"' in page

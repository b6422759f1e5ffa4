"""Paying by the ready pages: to the bank and back, questions, waiting; and nothing twice."""

import pytest

from everifin_django.testing.sandbox.payments import WRONG_OTP
from tests.browser.paying import confirmed, fill_in, made

pytestmark = pytest.mark.browser
PAID = ["FINISHED"]


@pytest.fixture
def tab(profile):
    tab = profile.tab()
    tab.log_in()
    return tab


def heading(tab):
    return tab.page.inner_text("h1")


def wait_for(tab, title):
    tab.page.get_by_role("heading", name=title, exact=True).wait_for()


def at_the_bank(tab):
    tab.at_everifin()
    tab.page.get_by_role("button", name="Confirm").wait_for()


def answer(tab, **inputs):
    for name, value in inputs.items():
        tab.page.locator(f"[name={name}]").fill(value)
    tab.press("Go on")


class TestRedirect:
    def test_to_the_bank_and_back(self, tab):
        page = confirmed(tab, "One")
        at_the_bank(tab)
        tab.answer("Confirm")
        wait_for(tab, "Paid")
        assert tab.path == page
        tab.page.reload()
        assert heading(tab) == "Paid"
        assert made(tab) == PAID

    def test_refused_at_the_bank(self, tab):
        confirmed(tab, "One")
        at_the_bank(tab)
        tab.answer("Refuse")
        wait_for(tab, "Not paid")
        assert made(tab) == ["FAILED"]

    def test_back_from_the_bank_and_once_more(self, tab):
        fill_in(tab, "One")
        tab.button("Confirm and go to the bank").click()
        at_the_bank(tab)
        tab.page.go_back()
        # The page that led to the bank is no step of the history: one is where one confirmed.
        assert tab.path == "/pay/confirm/"
        tab.button("Confirm and go to the bank").click()
        at_the_bank(tab)
        tab.answer("Confirm")
        wait_for(tab, "Paid")
        assert made(tab) == PAID

    def test_a_double_click(self, tab):
        fill_in(tab, "One")
        tab.button("Confirm and go to the bank").dblclick()
        at_the_bank(tab)
        tab.answer("Confirm")
        wait_for(tab, "Paid")
        assert made(tab) == PAID

    def test_two_tabs(self, tab):
        fill_in(tab, "One")
        other = tab.profile.tab("/pay/confirm/")
        for each in (tab, other):
            each.page.evaluate("document.querySelector('main button').click()")
        for each in (tab, other):
            at_the_bank(each)
        tab.answer("Confirm")
        wait_for(tab, "Paid")
        other.button("Confirm").click()
        other.page.get_by_text(
            "The bank "
        ).wait_for()  # … has your answer, or knows no such payment
        other.open(tab.page.url)
        assert heading(other) == "Paid"
        assert made(tab) == PAID

    def test_a_visitor_who_returns_later(self, tab):
        page = confirmed(tab, "One")
        at_the_bank(tab)
        tab.open("/")
        tab.press("Log out")
        tab.open(page)
        assert tab.path == "/login/"
        tab.log_in("/everifin/login/?next=/payments/")
        tab.page.get_by_role("link", name="Look at it").click()
        at_the_bank(tab)
        tab.answer("Confirm")
        wait_for(tab, "Paid")
        assert made(tab) == PAID

    def test_the_way_back_in_a_browser_of_somebody_else(self, tab, new_profile):
        confirmed(tab, "One")
        at_the_bank(tab)
        with tab.page.expect_request("**/everifin/payments/return/**") as way_back:
            tab.answer("Confirm")
        stranger = new_profile().tab("/log-in-as/stranger/")
        stranger.open(way_back.value.url)
        assert stranger.status == 404
        tab.open(way_back.value.url)
        wait_for(tab, "Paid")
        assert made(tab) == PAID


class TestInputs:
    def test_password_picture_and_code(self, tab):
        confirmed(tab, "Two")
        wait_for(tab, "Your bank asks you something")
        assert tab.page.locator("[name=userPassword]").get_attribute("type") == "password"
        answer(tab, userId="me", userPassword="word")
        picture = tab.page.locator("main img")
        assert picture.evaluate("one => one.complete && one.naturalWidth > 0")
        answer(tab, otp=WRONG_OTP)
        assert tab.page.get_by_role("alert").is_visible()
        answer(tab, otp="123456")
        wait_for(tab, "Paid")
        assert made(tab) == PAID

    def test_reload_and_an_older_form_in_another_tab(self, tab):
        page = confirmed(tab, "Two")
        other = tab.profile.tab(page)
        tab.page.reload()
        answer(tab, userId="me", userPassword="word")
        answer(other, userId="me", userPassword="word")
        # The other tab's answer was to an earlier step: it sees the step there is now.
        assert other.page.locator("[name=otp]").is_visible()
        answer(other, otp="123456")
        answer(tab, otp="123456")
        assert heading(tab) == heading(other) == "Paid"
        assert made(tab) == PAID

    def test_a_double_click(self, tab):
        confirmed(tab, "Two")
        for name in ("userId", "userPassword"):
            tab.page.locator(f"[name={name}]").fill("x")
        tab.button("Go on").dblclick()
        tab.page.locator("[name=otp]").wait_for()
        tab.page.locator("[name=otp]").fill("123456")
        tab.button("Go on").dblclick()
        wait_for(tab, "Paid")
        assert made(tab) == PAID


class TestPush:
    @pytest.mark.parametrize("has_script", [True, False])
    def test_the_page_asks_again_by_itself(self, new_profile, has_script):
        tab = new_profile(java_script_enabled=has_script).tab()
        tab.log_in()
        confirmed(tab, "Three")
        wait_for(tab, "Confirm in your bank's app")
        wait_for(tab, "Paid")
        assert made(tab) == PAID

"""The site in a real browser, with its rules for cookies, redirects and history."""

import pytest

pytestmark = pytest.mark.browser


def test_a_visitor_logs_in_reads_and_logs_out(profile):
    tab = profile.tab()
    tab.leave("Log in with Everifin")
    tab.log_in_there()
    tab.answer()
    assert tab.path == "/accounts/"
    assert tab.page.locator(".iban").count() > 0
    tab.press("Log out")
    assert tab.path == "/"
    tab.open("/accounts/")
    assert tab.path == "/login/"


def test_after_logging_out_going_back_shows_no_account(profile):
    tab = profile.tab()
    tab.log_in()
    assert tab.page.locator(".iban").count() > 0
    tab.press("Log out")
    tab.page.go_back()
    assert tab.page.locator(".iban").count() == 0


def test_a_visitor_who_cancels_is_back_where_they_began(profile):
    tab = profile.tab()
    tab.begin_login()
    tab.answer("No")
    assert tab.path == "/everifin/login/"
    assert tab.button("Log in with Everifin").is_visible()


def test_a_user_connects_and_comes_back_to_the_page_they_wanted(profile):
    tab = profile.tab(f"/log-in-as/{profile.person}/")
    tab.open("/accounts/")
    assert tab.path == "/everifin/connect/"
    tab.leave("Connect Everifin")
    tab.log_in_there()
    tab.answer()
    assert tab.path == "/accounts/"
    tab.open("/")
    tab.press("Disconnect Everifin")
    tab.open("/accounts/")
    assert tab.path == "/everifin/connect/"

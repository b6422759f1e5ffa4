"""The answer that comes second, with real tabs: one true outcome, and never a lost session."""

import pytest

pytestmark = pytest.mark.browser

REFUSED = "Start again"


@pytest.fixture
def two_tabs(profile):
    """Two tabs in which a login was begun, both asked for consent."""
    tabs = profile.tab(), profile.tab()
    tabs[0].begin_login("/everifin/login/?next=/accounts/")
    tabs[1].begin_login("/everifin/login/?next=/payments/")
    return tabs


def test_two_tabs_that_finish_one_after_the_other(two_tabs):
    first, second = two_tabs
    first.answer()
    session = first.profile.session()
    second.answer()
    assert (first.path, second.path) == ("/accounts/", "/payments/")
    assert (first.profile.session(), second.is_logged_in()) == (session, True)


def test_two_tabs_that_finish_at_once(two_tabs):
    for tab in two_tabs:
        tab.page.evaluate("document.querySelector('[name=accept]').click()")
    for tab in two_tabs:
        tab.back()
        tab.page.wait_for_load_state()
    assert two_tabs[0].is_logged_in()
    # The slower one may have come before the other's session was known to the browser: it is
    # then led on, or told to begin again, which leads on.
    for tab, wanted in zip(two_tabs, ("/accounts/", "/payments/"), strict=True):
        if tab.path == "/everifin/callback/":
            tab.page.get_by_role("link", name=REFUSED).click()
            tab.page.wait_for_load_state()
        assert tab.path in (wanted, "/")
        tab.open(wanted)
        assert tab.path == wanted


def test_a_tab_that_is_cancelled_after_another_logged_in(two_tabs):
    first, second = two_tabs
    first.answer()
    second.answer("No")
    assert second.path == "/payments/"
    assert second.is_logged_in()


def test_a_tab_that_finishes_after_another_was_cancelled(two_tabs):
    first, second = two_tabs
    first.answer("No")
    assert first.path == "/everifin/login/"
    second.answer()
    assert second.path == "/payments/"
    assert first.is_logged_in()


def test_a_tab_that_comes_back_after_a_login_and_a_logout(two_tabs):
    """Its login was begun in this browser, and is one of its own."""
    first, second = two_tabs
    first.answer()
    first.press("Log out")
    second.answer()
    assert second.path == "/payments/"
    assert second.is_logged_in()


def test_the_callback_once_more_while_logged_in(profile):
    tab = profile.tab()
    tab.log_in()
    session = profile.session()
    tab.open(tab.callbacks[0])
    assert tab.path == "/accounts/"
    assert profile.session() == session


def test_the_callback_once_more_after_logging_out(profile):
    tab = profile.tab()
    tab.log_in()
    tab.press("Log out")
    tab.open(tab.callbacks[0])
    assert tab.status == 400
    assert not tab.is_logged_in()


def test_the_callback_in_a_browser_that_began_nothing(profile, new_profile):
    tab = profile.tab()
    tab.begin_login()
    callback = tab.answer_elsewhere()
    other = new_profile().tab()
    other.open(callback)
    assert other.status == 400
    assert not other.is_logged_in()
    assert other.profile.session() == ""


def test_back_and_forward_after_the_login(profile):
    tab = profile.tab()
    tab.log_in()
    session = profile.session()
    tab.open("/everifin/login/?next=/payments/")
    assert tab.path == "/payments/"
    tab.page.go_back()
    tab.page.reload()
    assert tab.path == "/accounts/"
    tab.page.go_forward()
    assert tab.path == "/payments/"
    assert (profile.session(), tab.is_logged_in()) == (session, True)


def test_a_double_click_on_each_button(profile):
    tab = profile.tab("/everifin/login/?next=/accounts/")
    tab.button("Log in with Everifin").dblclick()
    tab.at_everifin()
    tab.log_in_there()
    tab.answer()
    assert tab.path == "/accounts/"
    tab.button("Log out").dblclick()
    tab.page.wait_for_url(profile.site + "/")
    assert not tab.is_logged_in()


def test_two_tabs_that_connect(profile):
    tabs = []
    for _ in range(2):
        tab = profile.tab(f"/log-in-as/{profile.person}/")
        tab.open("/everifin/connect/?next=/accounts/")
        tab.leave("Connect Everifin")
        tab.log_in_there()
        tabs.append(tab)
    for tab in tabs:
        tab.answer()
        assert tab.path == "/accounts/"
    tabs[0].open(tabs[0].callbacks[0])
    assert tabs[0].path == "/accounts/"


def test_a_connection_of_a_user_who_logged_out_meanwhile(profile):
    tab = profile.tab(f"/log-in-as/{profile.person}/")
    tab.open("/everifin/connect/")
    tab.leave("Connect Everifin")
    tab.log_in_there()
    profile.tab("/").press("Log out")
    tab.answer()
    assert tab.status == 400
    assert not tab.is_logged_in()


def test_a_tab_left_open_while_the_user_changed(profile):
    tab = profile.tab(f"/log-in-as/{profile.person}/")
    tab.open("/everifin/connect/")
    tab.leave("Connect Everifin")
    tab.log_in_there()
    other = profile.tab(f"/log-in-as/{profile.person}-other/")
    session = profile.session()
    tab.answer()
    assert tab.status == 400
    assert (profile.session(), other.is_logged_in()) == (session, True)

"""Sites with a strict Content-Security-Policy, with cookies of each kind, and with scripts."""

import pytest

from tests.browser import paying
from tests.browser.libraries import LIBRARIES, installed
from tests.browser.pages import LIBRARY
from tests.support.servers import AbsentError

pytestmark = pytest.mark.browser
HTMX = [name for name in LIBRARIES if "htmx" in name]
"""Turbo cannot follow a form to another site, so our buttons keep it off."""


class TestContentSecurityPolicy:
    """Every test of this folder runs under one, and fails if the browser blocks anything."""

    def test_it_is_there(self, profile):
        tab = profile.tab("/")
        response = tab.page.goto(f"{profile.site}/everifin/login/")
        assert "form-action 'self'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]

    def test_a_redirect_after_a_form_would_be_blocked(self, profile):
        """That is why the views answer a form by a page that goes on."""
        tab = profile.tab("/redirecting/")
        with tab.page.expect_console_message(lambda message: "form-action" in message.text):
            tab.button("Go").click()
        assert tab.path == "/redirecting/"
        assert "form-action" in profile.violations.pop()

    def test_without_javascript(self, new_profile):
        tab = new_profile(java_script_enabled=False).tab("/everifin/login/?next=/accounts/")
        tab.log_in()
        assert tab.path == "/accounts/"
        tab.press("Log out")
        assert tab.path == "/"


class TestSameSite:
    """For a browser, localhost and 127.0.0.1 are two sites: the callback comes from another one."""

    def test_lax_cookies_arrive_with_the_callback(self, new_profile):
        tab = new_profile(host="localhost").tab()
        tab.log_in()
        assert tab.path == "/accounts/"

    def test_strict_cookies_do_not_and_nothing_is_lost(self, new_profile, serve):
        """A system check warns of them."""
        profile = new_profile(serve(SESSION_COOKIE_SAMESITE="Strict"), host="localhost")
        tab = profile.tab(f"/log-in-as/{profile.person}/")
        tab.open("/everifin/connect/")
        session = profile.session()
        tab.leave("Connect Everifin")
        tab.log_in_there()
        tab.answer()
        assert (tab.path, tab.status) == ("/everifin/callback/", 400)
        assert (profile.session(), tab.is_logged_in()) == (session, True)

    def test_strict_cookies_do_where_everifin_is_the_same_site(self, new_profile, serve):
        profile = new_profile(serve(SESSION_COOKIE_SAMESITE="Strict"))
        tab = profile.tab()
        tab.log_in()
        assert tab.path == "/accounts/"


@pytest.fixture(scope="module", params=sorted(LIBRARIES))
def scripted(request, serve):
    """The site with a JavaScript library that sends its forms."""
    try:
        file = installed(request.param)
    except AbsentError as absence:
        pytest.skip(f"{request.param}: {absence}")
    return serve(**{LIBRARY: str(file)})


class TestScripts:
    def test_our_buttons_are_left_to_the_browser(self, new_profile, scripted):
        tab = new_profile(scripted).tab("/scripted/")
        tab.page.wait_for_load_state("networkidle")
        tab.leave("Log in with Everifin")
        tab.log_in_there()
        tab.answer()
        tab.open("/scripted/")
        tab.page.wait_for_load_state("networkidle")
        tab.press("Log out")
        assert not tab.is_logged_in()

    @pytest.mark.parametrize("scripted", HTMX, indirect=True)
    def test_a_form_that_htmx_sends_leads_to_everifin(self, new_profile, scripted):
        tab = new_profile(scripted).tab("/scripted/")
        tab.page.wait_for_load_state("networkidle")
        tab.leave("Log in by script")
        tab.log_in_there()
        tab.answer()
        assert tab.is_logged_in()
        tab.open("/scripted/")
        tab.page.wait_for_load_state("networkidle")
        tab.button("Log out by script").click()
        tab.page.get_by_text("Log in with a password").wait_for()
        assert not tab.is_logged_in()

    @pytest.mark.parametrize("scripted", HTMX, indirect=True)
    def test_a_payment_page_that_htmx_opens_goes_on_by_itself(self, new_profile, scripted):
        tab = new_profile(scripted).tab()
        tab.log_in()
        payment = paying.confirmed(tab, "One")
        tab.open(f"/scripted/?payment={payment}")
        tab.page.wait_for_load_state("networkidle")
        tab.page.get_by_role("link", name="Payment by script").click()
        tab.at_everifin()

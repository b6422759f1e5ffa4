"""The example site in a real browser, with its rules for cookies, redirects and history."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from scripts.demo.management.commands.demo import example_site, fake_everifin
from scripts.ports import unused_port

LONGEST_SECONDS = 120
PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        None in PROGRAMS.values(), reason="apt-get install chromium chromium-driver brings them"
    ),
    pytest.mark.skipif(
        connection.vendor != "sqlite",
        reason="the site brings a database of its own: one run says all",
    ),
]


class Visitor:
    """Somebody at the example site, in Chromium."""

    def __init__(self, driver: webdriver.Chrome, site: str, sandbox: str) -> None:
        self.driver, self.site, self.sandbox = driver, site, sandbox

    def open(self, path: str) -> None:
        self.driver.get(self.site + path)

    def press(self, button: str) -> None:
        """Press the button that reads so, and wait until another page has come."""
        before = self.driver.find_element(By.TAG_NAME, "html")
        self.find(f"//button[normalize-space()='{button}']").click()
        self.wait(lambda _: before.id != self.driver.find_element(By.TAG_NAME, "html").id)

    def fill_in(self, **fields: str) -> None:
        for name, value in fields.items():
            self.find(f"//*[@name='{name}']").send_keys(value)

    def agree(self, answer: str = "Yes") -> None:
        """Log in at Everifin as alice, and answer what it asks."""
        assert self.driver.current_url.startswith(self.sandbox)
        self.fill_in(username="alice", password="alice")
        self.press("Log in")
        self.press(answer)

    def find(self, xpath: str) -> WebElement:
        found: WebElement = self.wait(lambda driver: driver.find_element(By.XPATH, xpath))
        return found

    def wait(self, until: Any) -> Any:
        return WebDriverWait(self.driver, LONGEST_SECONDS).until(until)

    @property
    def path(self) -> str:
        assert self.driver.current_url.startswith(self.site)
        return urlsplit(self.driver.current_url).path

    def count(self, css_class: str) -> int:
        return len(self.driver.find_elements(By.CLASS_NAME, css_class))


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"] or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which Chromium has not where root starts it
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(PROGRAMS["chromedriver"]))
    driver.set_page_load_timeout(LONGEST_SECONDS)
    yield driver
    driver.quit()


@pytest.fixture
def visitor(driver: webdriver.Chrome) -> Iterator[Visitor]:
    with fake_everifin(0, 300) as sandbox, example_site(unused_port(), sandbox) as site:
        yield Visitor(driver, site.url, sandbox.idp_url)
        driver.delete_all_cookies()


def test_a_visitor_logs_in_reads_and_logs_out(visitor):
    visitor.open("/")
    visitor.press("Log in with Everifin")
    visitor.agree()
    assert visitor.path == "/accounts/"
    assert visitor.count("iban") == 3
    visitor.press("Log out")
    assert visitor.path == "/"
    visitor.open("/accounts/")
    assert visitor.path == "/login/"


def test_after_logging_out_going_back_shows_no_account(visitor):
    visitor.open("/")
    visitor.press("Log in with Everifin")
    visitor.agree()
    visitor.press("Log out")
    visitor.driver.back()
    visitor.wait(lambda _: visitor.count("iban") == 0)


def test_a_visitor_who_cancels_is_back_where_they_began(visitor):
    visitor.open("/")
    visitor.press("Log in with Everifin")
    visitor.agree("No")
    assert visitor.path == "/everifin/login/"
    assert "Log in with Everifin" in visitor.driver.page_source


def test_a_user_connects_and_comes_back_to_the_page_they_wanted(visitor):
    visitor.open("/login/?next=/accounts/")
    visitor.fill_in(username="demo", password="demo")
    visitor.press("Log in")
    assert visitor.path == "/everifin/connect/"
    visitor.press("Connect Everifin")
    visitor.agree()
    assert visitor.path == "/accounts/"
    visitor.open("/")
    visitor.press("Disconnect Everifin")
    visitor.open("/accounts/")
    assert visitor.path == "/everifin/connect/"


def test_a_login_that_was_used_once_is_no_login_again(visitor):
    """The browser's own history leads to the callback once more."""
    visitor.open("/")
    visitor.press("Log in with Everifin")
    visitor.agree()
    visitor.press("Log out")
    for _ in range(4):
        visitor.driver.back()
    visitor.open("/accounts/")
    assert visitor.path == "/login/"

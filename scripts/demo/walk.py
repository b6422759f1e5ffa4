"""
The walk: what a visitor does with the site, step by step, over HTTP.

It knows the site and the sandbox by their addresses and pages only. Each step says what it saw.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from scripts.demo.browser import Browser, Page

LONGEST_SECONDS = 300
READS = 5
PAYEE = "SK3112000000198742637541"

Step = Callable[["Walk"], Iterator[str]]


class UnexpectedError(Exception):
    """The site did something else than it should; the message says what."""


@dataclass(slots=True)
class Walk:
    """
    A visitor of *site* whose Everifin is *sandbox*, both addresses without a slash at the end.

    *token_seconds* is how long an access token of this sandbox lasts.
    """

    site: str
    sandbox: str
    token_seconds: int
    until: float
    browser: Browser
    account_of_alice: str = ""

    @classmethod
    def begin(cls, site: str, sandbox: str, *, token_seconds: int) -> Walk:
        until = time.monotonic() + LONGEST_SECONDS
        return cls(site, sandbox, token_seconds, until, Browser(until))

    def run(self, say: Callable[[str], object]) -> int:
        """Take all steps, *say* what each saw, and return how many failed."""
        failed = 0
        for title, take in STEPS:
            seen: list[str] = []
            word = "ok"
            try:
                seen.extend(take(self))
            except (UnexpectedError, LookupError, requests.RequestException) as error:
                seen.append(str(error))
                word = "FAILED"
                failed += 1
            say(f"{word:6}  {title}: {'; '.join(seen)}")
        self.browser.close()
        say(f"{len(STEPS) - failed} of {len(STEPS)} steps went well.")
        return failed

    # What the steps are made of

    def open(self, path: str) -> Page:
        return self.browser.open(self.site + path)

    def consent(self, username: str, answer: str = "Yes") -> Page:
        """Log in at Everifin, whose login page is open, and answer what it asks."""
        page = self.browser.page
        expect(page.url.startswith(self.sandbox), "Everifin's login page", page)
        self.browser.press("Log in", username=username, password=username)
        return self.browser.press(answer)

    def ibans(self) -> list[str]:
        page = self.open("/accounts/")
        expect(page.path == "/accounts/" and page.status == 200 and page.all("iban"), "IBANs", page)
        return page.all("iban")

    def health(self) -> str:
        return self.open("/").first("health")

    def state(self) -> Any:
        return self._sandbox("GET", "state").json()

    def refreshes(self) -> int:
        return int(self.state()["calls"].get("token.refresh_token", 0))

    def live_sessions(self) -> int:
        return int(self.state()["live_sessions"])

    def tell_sandbox(self, what: str, **content: Any) -> None:
        self._sandbox("POST", what, json=content).raise_for_status()

    def _sandbox(self, method: str, what: str, **content: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, f"{self.sandbox}/_sandbox/{what}", timeout=5, **content)


def expect(is_so: object, wanted: str, page: Page) -> None:
    if not is_so:
        raise UnexpectedError(
            f"wanted {wanted}, got {page.path} with status {page.status} and {page.heading!r}"
        )


def expect_equal(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise UnexpectedError(f"{what}: wanted {wanted}, got {found}")


def expect_refreshes(walk: Walk, before: int, wanted: int, start: float) -> int:
    """
    Return how many refreshes there were in all; since *before* there were as many as *wanted*.

    A token is refreshed when half its life is over, which may happen more often on a slow machine.
    """
    after = walk.refreshes()
    seconds = time.monotonic() - start
    due = math.floor(seconds / (walk.token_seconds / 2))
    if not wanted <= after - before <= wanted + due:
        raise UnexpectedError(
            f"wanted {wanted} refreshes, got {after - before} in {seconds:.1f} seconds"
        )
    return after


def accounts_on(page: Page) -> list[tuple[str, str]]:
    """Return words and address of each link to an account."""
    found = [link for link in page.links if re.search("/accounts/[^/]+/$", link[1])]
    expect(found, "links to accounts", page)
    return found


# The steps, in their order

STEPS: list[tuple[str, Step]] = []


def step(title: str) -> Callable[[Step], Step]:
    def add(function: Step) -> Step:
        STEPS.append((title, function))
        return function

    return add


@step("open the home page")
def open_the_home_page(walk: Walk) -> Iterator[str]:
    page = walk.open("/")
    expect(page.status == 200 and "Log in with Everifin" in page.buttons, "a login button", page)
    yield f"{page.status}, {page.heading!r}, buttons {', '.join(page.buttons)}"


@step("log in with Everifin as alice")
def log_in_with_everifin_as_alice(walk: Walk) -> Iterator[str]:
    walk.browser.press("Log in with Everifin")
    page = walk.consent("alice")
    expect(page.path == "/accounts/" and page.all("user"), "the accounts, logged in", page)
    yield f"back at {page.path}, {page.first('user')!r}"
    yield f"live sessions at Everifin {walk.live_sessions()}"


@step("read her accounts")
def read_her_accounts(walk: Walk) -> Iterator[str]:
    yield ", ".join(walk.ibans())
    balances = walk.browser.page.all("balance")
    expect(balances, "balances", walk.browser.page)
    yield f"balances {', '.join(balances)}"
    walk.account_of_alice = accounts_on(walk.browser.page)[0][1]


@step("pay, and confirm at the bank")
def pay_and_confirm_at_the_bank(walk: Walk) -> Iterator[str]:
    sender = walk.ibans()[0]
    walk.open("/pay/")
    page = walk.browser.press(
        "Next",
        sender_iban=sender,
        recipient_name="Anna",
        recipient_iban=PAYEE,
        amount="12,30",
    )
    expect(page.path == "/pay/confirm/", "to be asked whether it is right", page)
    page = walk.browser.press("Confirm and go to the bank")
    expect(page.url.startswith(walk.sandbox), "the bank's page", page)
    bank = page.heading
    page = walk.browser.press("Confirm")
    expect_equal("heading", page.heading, "Paid")
    calls = walk.state()["calls"]
    expect_equal("payments sent", calls.get("api.payments"), 1)
    yield f"{bank!r} confirmed, back at {page.path}, {page.heading!r}"
    yield f"payments sent {calls['api.payments']}"


@step("log out")
def log_out(walk: Walk) -> Iterator[str]:
    before = walk.live_sessions()
    page = walk.browser.press("Log out")
    expect("Log in with Everifin" in page.buttons, "the home page of a visitor", page)
    after = walk.live_sessions()
    expect_equal("live sessions", (before, after), (1, 0))
    yield f"live sessions at Everifin {before} -> {after}"
    page = walk.open("/accounts/")
    expect(page.path == "/login/", "to be asked to log in", page)
    yield f"the accounts now lead to {page.path}"


@step("log in here as demo")
def log_in_here_as_demo(walk: Walk) -> Iterator[str]:
    walk.open("/login/")
    page = walk.browser.press("Log in", username="demo", password="demo")
    expect_equal("who is here", page.first("user"), "Logged in as demo")
    yield f"{page.first('user')!r}, status {page.first('health')!r}"


@step("ask for accounts before connecting")
def ask_for_accounts_before_connecting(walk: Walk) -> Iterator[str]:
    page = walk.open("/accounts/")
    expect(page.path == "/everifin/connect/", "to be asked to connect", page)
    yield f"led to {page.path}, {page.heading!r}"


@step("connect Everifin as bob")
def connect_everifin_as_bob(walk: Walk) -> Iterator[str]:
    walk.browser.press("Connect Everifin")
    page = walk.consent("bob")
    expect(page.path == "/accounts/", "to be back where it began", page)
    expect_equal("who is here", page.first("user"), "Logged in as demo")
    yield f"back at {page.path}, {page.first('user')!r}, status {walk.health()!r}"


@step("read his accounts")
def read_his_accounts(walk: Walk) -> Iterator[str]:
    yield ", ".join(walk.ibans())


@step("read transactions")
def read_transactions(walk: Walk) -> Iterator[str]:
    name, url = accounts_on(walk.open("/accounts/"))[0]
    page = walk.browser.open(url)
    rows = page.all("transaction")
    expect(page.status == 200 and rows and page.all("out"), "transactions", page)
    yield f"{len(rows)} of {name!r}, newest {rows[0]!r}"
    page = walk.browser.press("Show", direction="IN")
    rows = page.all("transaction")
    expect(rows and not page.all("out"), "incoming money only", page)
    yield f"{len(rows)} when filtered to money in"


@step("ask for an account of alice's")
def ask_for_an_account_of_alice(walk: Walk) -> Iterator[str]:
    page = walk.browser.open(walk.account_of_alice)
    expect_equal("status", page.status, 404)
    yield f"{page.status}, {page.heading!r}"


@step("expire the access token, read")
def expire_the_access_token_and_read(walk: Walk) -> Iterator[str]:
    before = walk.refreshes()
    walk.tell_sandbox("expire")
    start = time.monotonic()
    ibans = walk.ibans()
    after = expect_refreshes(walk, before, 1, start)
    yield f"{len(ibans)} account(s) read, refreshes {before} -> {after}"


@step("read again and again")
def read_again_and_again(walk: Walk) -> Iterator[str]:
    start = time.monotonic()
    walk.ibans()
    before = walk.refreshes()
    for _ in range(READS):
        walk.ibans()
    after = expect_refreshes(walk, before, 0, start)
    seconds = time.monotonic() - start
    yield f"{READS} reads with a new token in {seconds:.1f} s, refreshes {before} -> {after}"


@step("let the access token run out, read")
def let_the_token_run_out_and_read(walk: Walk) -> Iterator[str]:
    before = walk.refreshes()
    time.sleep(walk.token_seconds + 0.2)
    start = time.monotonic()
    ibans = walk.ibans()
    after = expect_refreshes(walk, before, 1, start)
    yield f"waited {walk.token_seconds} s, {len(ibans)} account(s) read"
    yield f"refreshes {before} -> {after}"


@step("cancel at Everifin")
def cancel_at_everifin(walk: Walk) -> Iterator[str]:
    ibans, sessions = walk.ibans(), walk.live_sessions()
    walk.open("/everifin/connect/?next=/accounts/")
    walk.browser.press("Connect Everifin")
    page = walk.consent("alice", "No")
    expect(page.path == "/everifin/connect/", "the connect page", page)
    yield f"back at {page.path}"
    expect_equal("accounts", walk.ibans(), ibans)
    expect_equal("live sessions", walk.live_sessions(), sessions)
    yield f"accounts and live sessions as before ({', '.join(ibans)}; {sessions})"


@step("break Everifin, read, mend it")
def break_everifin_and_read(walk: Walk) -> Iterator[str]:
    walk.tell_sandbox("faults", where="api", status=503)
    try:
        page = walk.open("/accounts/")
        health = walk.health()
    finally:
        walk.tell_sandbox("faults/clear")
    yield f"{page.status}, {page.heading!r}, Retry-After {page.headers.get('Retry-After')}"
    yield f"status {health!r}"
    expect_equal("HTTP status", page.status, 503)
    if not health.startswith("connected"):
        raise UnexpectedError("the connection was not kept")
    yield f"mended: {', '.join(walk.ibans())}"


@step("disconnect")
def disconnect(walk: Walk) -> Iterator[str]:
    before = walk.live_sessions()
    walk.open("/")
    page = walk.browser.press("Disconnect Everifin")
    after = walk.live_sessions()
    expect_equal("live sessions", (before, after), (1, 0))
    expect_equal("who is here", page.first("user"), "Logged in as demo")
    yield f"live sessions at Everifin {before} -> {after}"
    yield f"status {page.first('health')!r}, {page.first('user')!r}"


@step("connect again, log out")
def connect_again_and_log_out(walk: Walk) -> Iterator[str]:
    walk.browser.press("Connect Everifin")
    page = walk.consent("bob")
    expect(page.path == "/accounts/", "the accounts", page)
    before = walk.live_sessions()
    walk.browser.press("Log out")
    after = walk.live_sessions()
    expect_equal("live sessions", (before, after), (1, 0))
    yield f"live sessions at Everifin {before} -> {after}"


@step("count refresh tokens shown twice")
def count_refresh_tokens_shown_twice(walk: Walk) -> Iterator[str]:
    spent_twice = walk.state()["double_spends"]
    expect_equal("refresh tokens shown twice", spent_twice, 0)
    yield str(spent_twice)

"""A browser, a site and a sandbox for the tests of a module; a browser profile for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, sync_playwright

from everifin_django.testing.sandbox import data
from scripts.demo.management.commands.demo import fake_everifin
from tests.browser.visitor import LONGEST_SECONDS, Profile, Served, served

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("apt-get install chromium brings it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",  # which Chromium has not where root starts it
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Give a function that serves the site, with a sandbox, and with these settings."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(fake_everifin(0, 300))

        def serve(**environment: str) -> Served:
            directory = tmp_path_factory.mktemp("site")
            return stack.enter_context(served(sandbox, directory, environment))

        yield serve


@pytest.fixture(scope="module")
def site(serve: Callable[..., Served]) -> Served:
    """The site as it is."""
    return serve()


@pytest.fixture
def new_profile(
    chromium: Browser, site: Served, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Profile]]:
    """Give a function that opens a browser profile, for a person of this test's own."""
    profiles: list[Profile] = []
    person = f"p{uuid4().hex[:12]}"
    monkeypatch.setitem(data.PLANS, person, data.PLANS["alice"])  # an account at each bank

    def open_profile(at: Served = site, *, host: str = "127.0.0.1", **options: bool) -> Profile:
        context = chromium.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(LONGEST_SECONDS * 1000)
        at.sandbox.add_user(person, password=person)
        profiles.append(Profile(context, at, person, host))
        return profiles[-1]

    yield open_profile
    for profile in profiles:
        profile.context.close()
    assert [each for profile in profiles for each in profile.violations] == []


@pytest.fixture
def profile(new_profile: Callable[..., Profile]) -> Profile:
    return new_profile()

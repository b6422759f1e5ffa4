"""A sandbox that answers in this process, and the small site that speaks to it."""

from collections.abc import Iterator

import pytest

from everifin_django.testing.adapter import mount
from everifin_django.testing.sandbox import Sandbox
from tests.testing import Clock, Site


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(clock: Clock) -> Iterator[Site]:
    sandbox = Sandbox(idp_url="https://idp.test", api_url="https://api.test", clock=clock)
    with mount(sandbox):
        yield Site(sandbox)

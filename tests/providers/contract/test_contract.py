"""The sandbox says what `cases` expects, and a real Keycloak says the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.server import serve
from tests.providers.contract import providers
from tests.providers.contract.cases import CASES, Case
from tests.providers.contract.differences import DIFFERENCES
from tests.providers.contract.providers import NoSuchSwitchError, Provider, Visitor

OTHER = providers.from_environment()


@pytest.fixture(scope="module")
def sandbox_provider() -> Iterator[Provider]:
    sandbox = Sandbox(access_token_seconds=60)
    with serve(sandbox):
        yield providers.from_sandbox(sandbox)


def check(case: Case, provider: Provider) -> None:
    provider.switches.reset()
    try:
        observed = case.ask(Visitor(provider))
    except NoSuchSwitchError:
        pytest.skip(f"{provider.name} has no switch for this")
    difference = DIFFERENCES.get((case.name, provider.name))
    assert observed == (difference.observed if difference else case.expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sandbox(case, sandbox_provider):
    check(case, sandbox_provider)


@pytest.mark.keycloak
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keycloak(case, realm):
    check(case, providers.from_keycloak(realm))


@pytest.mark.parametrize("case", CASES if OTHER else [], ids=lambda case: case.name)
def test_whoever_the_environment_names(case):
    assert OTHER is not None
    check(case, OTHER)


def test_differences_are_about_cases_there_are():
    names = {case.name for case in CASES}
    assert {name for name, _ in DIFFERENCES} <= names
    assert all(difference.reason for difference in DIFFERENCES.values())

"""A visitor of the example site under real servers, driven through a provider's own pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.providers.keycloak.providers import at_keycloak, at_sandbox
from tests.providers.keycloak.scenarios import DIFFERENCES, SCENARIOS, Scenario, observe
from tests.providers.keycloak.site import SERVERS
from tests.providers.keycloak.visitor import Sites

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module", params=sorted(SERVERS))
def keycloak_sites(request, realm, django_db_setup, tmp_path_factory) -> Iterator[Sites]:
    directory = tmp_path_factory.mktemp("sites")
    with at_keycloak(realm) as provider, Sites(request.param, provider, directory) as sites:
        yield sites


@pytest.fixture(scope="module")
def sandbox_sites(django_db_setup, tmp_path_factory) -> Iterator[Sites]:
    directory = tmp_path_factory.mktemp("sites")
    with at_sandbox() as provider, Sites("waitress", provider, directory) as sites:
        yield sites


def check(scenario: Scenario, sites: Sites) -> None:
    difference = DIFFERENCES.get((scenario.name, sites.provider.contract.name))
    assert observe(scenario, sites) == (difference.observed if difference else scenario.expected)


@pytest.mark.keycloak
@each_scenario
def test_keycloak(scenario, keycloak_sites):
    check(scenario, keycloak_sites)


@pytest.mark.keycloak  # in that run: it takes long, and compares
@each_scenario
def test_the_sandbox(scenario, sandbox_sites):
    check(scenario, sandbox_sites)


def test_differences_are_about_scenarios_there_are():
    assert {name for name, _ in DIFFERENCES} <= {scenario.name for scenario in SCENARIOS}

"""docs/evidence/keycloak.md has what the tests hold each provider to."""

from __future__ import annotations

from tests.providers.contract.cases import CASES
from tests.providers.keycloak import tables


def test_the_page_has_the_table_of_scenarios():
    table = tables.scenario_table(tables.expected_scenarios())
    begin, end = tables.SCENARIO_MARKS
    assert f"{begin}{table}{end}" in tables.DOCUMENT.read_text(encoding="utf-8")


def test_the_page_has_every_question():
    page = tables.DOCUMENT.read_text(encoding="utf-8")
    assert [case for case in CASES if f"| {case.name.replace('_', ' ')} |" not in page] == []

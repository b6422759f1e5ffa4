"""What was observed, as the tables of docs/evidence/keycloak.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.providers.contract.cases import CASES
from tests.providers.keycloak.distribution import LEGACY, NEWEST
from tests.providers.keycloak.scenarios import DIFFERENCES, SCENARIOS, Scenario

DOCUMENT = Path(__file__).parents[3] / "docs" / "evidence" / "keycloak.md"
SCENARIO_MARKS = (
    "<!-- scenarios: by python -m tests.providers.keycloak -->\n",
    "<!-- end of scenarios -->\n",
)
QUESTION_MARKS = (
    "<!-- questions: by python -m tests.providers.keycloak -->\n",
    "<!-- end of questions -->\n",
)
TITLES = {
    "keycloak": f"Keycloak {NEWEST}",
    "keycloak legacy": f"Keycloak {LEGACY}",
    "sandbox": "sandbox",
}
"""The columns, by the names of the providers."""

Columns = Mapping[str, Sequence[str]]
"""What was observed, in the order of cases or scenarios, by the provider's name."""


def scenario_table(found: Columns) -> str:
    lines = list(_head("what happens", "expected", *(TITLES[name] for name in found)))
    for number, scenario in enumerate(SCENARIOS):
        cells = [_cell(scenario, column[number]) for column in found.values()]
        lines.append(_line(scenario.title, scenario.expected, *cells))
    return "\n".join([*lines, "", *_notes(), ""])


def expected_scenarios() -> Columns:
    """What the test suite holds each provider to."""
    return {name: [_expected(scenario, name) for scenario in SCENARIOS] for name in TITLES}


def question_table(found: Columns) -> str:
    lines = list(_head("asked", *(TITLES[name] for name in found)))
    for number, case in enumerate(CASES):
        observed = [column[number] for column in found.values()]
        marked = [one if one == found["keycloak"][number] else f"**{one}**" for one in observed]
        lines.append(_line(case.name.replace("_", " "), *marked))
    return "\n".join([*lines, ""])


def write(marks: tuple[str, str], table: str) -> None:
    """Put *table* between *marks* in the document."""
    begin, end = marks
    above, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(begin)
    below = rest.partition(end)[2]
    DOCUMENT.write_text(f"{above}{begin}{table}{end}{below}", encoding="utf-8")


def _expected(scenario: Scenario, provider: str) -> str:
    difference = DIFFERENCES.get((scenario.name, provider))
    return difference.observed if difference else scenario.expected


def _cell(scenario: Scenario, observed: str) -> str:
    return "as expected" if observed == scenario.expected else f"**{observed}**"


def _notes() -> Iterator[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for (name, provider), difference in DIFFERENCES.items():
        title = next(scenario.title for scenario in SCENARIOS if scenario.name == name)
        reasons.setdefault((provider, difference.reason), []).append(title)
    for (provider, reason), titles in reasons.items():
        yield f"- {TITLES[provider]}, {' and '.join(titles)}: {reason}"


def _head(*titles: str) -> Iterator[str]:
    yield _line(*titles)
    yield "|---" * len(titles) + "|"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

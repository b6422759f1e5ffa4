"""
Ask the sandbox and each Keycloak that was tried the questions of tests/contract, print the table,
and write it into docs/keycloak.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from django.conf import settings

from tests.contract import parties
from tests.contract.cases import CASES
from tests.contract.parties import NoSuchSwitchError, Party, Visitor
from tests.keycloak.distribution import LEGACY, NEWEST
from tests.keycloak.server import keycloak

DOCUMENT = Path(__file__).parents[2] / "docs" / "keycloak.md"
MARK = "<!-- Below: written by python -m tests.keycloak -->\n"


def observe(party: Party) -> list[str]:
    return [_ask(party, number) for number in range(len(CASES))]


def _ask(party: Party, number: int) -> str:
    party.switches.reset()
    try:
        return CASES[number].ask(Visitor(party))
    except NoSuchSwitchError:
        return "(no such switch)"


def columns() -> dict[str, list[str]]:
    from everifin_django.testing.sandbox import Sandbox  # wants settings
    from everifin_django.testing.sandbox.server import serve

    with serve(Sandbox(access_token_seconds=60)) as server:
        found = {"sandbox": observe(parties.from_sandbox(server.sandbox))}
    for version in (NEWEST, LEGACY):
        with keycloak(version) as running:
            realm = running.import_realm("everifin_app")
            found[f"Keycloak {version}"] = observe(parties.from_keycloak(realm))
    return found


def table(found: dict[str, list[str]]) -> str:
    lines = [f"| asked | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    newest = found[f"Keycloak {NEWEST}"]
    for number, case in enumerate(CASES):
        observed = [column[number] for column in found.values()]
        marked = [one if one == newest[number] else f"**{one}**" for one in observed]
        lines.append(f"| {case.name.replace('_', ' ')} | {' | '.join(marked)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    settings.configure(ALLOWED_HOSTS=["*"], USE_TZ=True)
    text = table(columns())
    sys.stdout.write(text)
    above, mark, _ = DOCUMENT.read_text(encoding="utf-8").partition(MARK)
    DOCUMENT.write_text(f"{above}{mark}{text}", encoding="utf-8")


if __name__ == "__main__":
    main()

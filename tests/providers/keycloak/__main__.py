"""
Ask the sandbox and each Keycloak that was tried the questions of tests/providers/contract, drive
the example site through each, print both tables, and write them into docs/evidence/keycloak.md.

The site runs on a PostgreSQL of its own, or on SQLite where there is none.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.providers.keycloak.distribution import LEGACY, NEWEST
from tests.providers.keycloak.server import keycloak
from tests.support.runner import keycloak_database

if TYPE_CHECKING:
    from tests.providers.keycloak.providers import Provider


@contextmanager
def database() -> Iterator[None]:
    """Give Django the settings of the tests, and a database with all tables."""
    with keycloak_database() as url, tempfile.TemporaryDirectory() as directory:
        if url.startswith("sqlite"):
            os.environ["DATABASE_URL"] = f"sqlite:///{directory}/db.sqlite3"
        else:  # the one that every server has; it goes with the server
            os.environ["DATABASE_URL"] = urlsplit(url)._replace(path="/postgres").geturl()
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield


def observe() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return what the questions and the scenarios came to, by the provider's name."""
    from tests.providers.keycloak import providers  # wants settings

    questions, scenarios = {}, {}
    for version in (NEWEST, LEGACY):
        with (
            keycloak(version) as running,
            providers.at_keycloak(running.import_realm("everifin_app")) as provider,
        ):
            name = provider.contract.name
            questions[name], scenarios[name] = answers(provider), outcomes(provider)
    with providers.at_sandbox() as provider:
        name = provider.contract.name
        questions[name], scenarios[name] = answers(provider), outcomes(provider)
    return questions, scenarios


def answers(provider: Provider) -> list[str]:
    from tests.providers.contract.cases import CASES
    from tests.providers.contract.providers import NoSuchSwitchError, Visitor

    found = []
    for case in CASES:
        provider.contract.switches.reset()
        try:
            found.append(case.ask(Visitor(provider.contract)))
        except NoSuchSwitchError:
            found.append("(no such switch)")
    return found


def outcomes(provider: Provider) -> list[str]:
    """What each scenario came to, under every server."""
    from tests.providers.keycloak.scenarios import SCENARIOS, observe
    from tests.providers.keycloak.site import SERVERS
    from tests.providers.keycloak.visitor import Sites

    found: list[dict[str, str]] = [{} for _ in SCENARIOS]
    for server in sorted(SERVERS):
        with (
            tempfile.TemporaryDirectory() as directory,
            Sites(server, provider, Path(directory)) as sites,
        ):
            for scenario, outcome in zip(SCENARIOS, found, strict=True):
                outcome[server] = observe(scenario, sites)
    return [said(outcome) for outcome in found]


def said(outcome: dict[str, str]) -> str:
    if len(set(outcome.values())) == 1:
        return next(iter(outcome.values()))
    return "; ".join(f"{server}: {observed}" for server, observed in outcome.items())


def main() -> None:
    with database():
        questions, scenarios = observe()
        from tests.providers.keycloak import tables

        for marks, table in (
            (tables.SCENARIO_MARKS, tables.scenario_table(scenarios)),
            (tables.QUESTION_MARKS, tables.question_table(questions)),
        ):
            sys.stdout.write(f"{table}\n")
            tables.write(marks, table)


if __name__ == "__main__":
    main()

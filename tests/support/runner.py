"""
``manage.py test``: the quick suite, by pytest, on SQLite. With ``--everything`` the whole suite:
on SQLite, measuring coverage; on each other database of this machine, without the tests that use
none; then, once each, what takes long, what drives a browser and what talks to a real Keycloak.
"""

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from tests.providers.keycloak import distribution
from tests.support.servers import DATABASES, AbsentError, ServerError, sqlite

CHECKOUT = Path(__file__).parents[2]
EXHAUSTIVE, BROWSER, KEYCLOAK = "exhaustive", "browser", "keycloak"
# Instead of the quick suite, which pyproject.toml chooses; "-rs" says what is absent.
ONLY = {
    EXHAUSTIVE: ("-m", EXHAUSTIVE, "-rs"),
    BROWSER: ("-m", BROWSER, "-rs"),
    # One process: Keycloak is started once, and its settings are changed by the tests.
    KEYCLOAK: ("-m", KEYCLOAK, "-rs", "--numprocesses=0"),
}
EVERYTHING_ELSE = ("-m", f"not {BROWSER} and not {KEYCLOAK}", "-rs", "--only-database")
QUICK = "sqlite"

# Gives the URL of a database for as long as the block lasts.
Database = Callable[[], AbstractContextManager[str]]


class Counts(NamedTuple):
    """How many tests ended how; an error counts as failed, an expected failure as skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @classmethod
    def read(cls, report: Path, exit_status: int) -> Self:
        """
        Return the counts in *report*, the JUnit XML of a run of pytest.

        A run that ended badly without naming a test counts as one failure: it crashed, was
        stopped, or found nothing to run.
        """
        suites = list(ET.parse(report).iter("testsuite")) if report.exists() else []  # noqa: S314 - our own file

        def total(*names: str) -> int:
            return sum(int(suite.get(name, 0)) for suite in suites for name in names)

        failed, skipped = total("failures", "errors"), total("skipped")
        passed = total("tests") - failed - skipped
        return cls(passed, failed or int(exit_status != 0), skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Run(NamedTuple):
    """What came of the suite on one database; *remark* says why it was not run."""

    name: str
    counts: Counts
    seconds: float = 0
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.name:10} {self.remark or f'{self.counts}, {self.seconds:.0f} seconds'}"


@contextmanager
def keycloak_database() -> Iterator[str]:
    """
    Give the database of the run with Keycloak, once that is installed.

    Errors: AbsentError if it cannot be had.
    """
    distribution.installed(distribution.chosen_version())
    with ExitStack() as stack:
        try:
            url = stack.enter_context(DATABASES["postgres"]())
        except AbsentError:
            url = stack.enter_context(DATABASES["sqlite"]())
        yield url


# The site that a browser visits has a database of its own, which is SQLite.
RUNS: dict[str, Database] = {
    **DATABASES,
    EXHAUSTIVE: sqlite,
    BROWSER: sqlite,
    KEYCLOAK: keycloak_database,
}


def chosen_databases(names: str, environ: Mapping[str, str]) -> dict[str, Database]:
    """
    Return the databases to run on: DATABASE_URL's alone if it is set, else *names*.

    Errors: ValueError if *names*, separated by commas, has an unknown one.
    """
    if url := environ.get("DATABASE_URL"):
        return {urlsplit(url).scheme: lambda: nullcontext(url)}
    if unknown := set(names.split(",")) - set(RUNS):
        raise ValueError(f"{', '.join(sorted(unknown))}: choose from {', '.join(RUNS)}")
    return {name: RUNS[name] for name in names.split(",")}


class PytestRunner:
    """Django's TEST_RUNNER; labels, and all that follows ``--``, are pytest's arguments."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--everything", action="store_true", help="every test, everywhere; measures coverage")
        add("--databases", metavar="NAME,...", help=f"choose from {', '.join(RUNS)}")
        add("--parallel", dest="workers", default="auto", help="processes (default: one per core)")
        add("--seed", type=int, help="repeat the order of an earlier run")
        add("--failfast", action="store_true", help="stop each database at its first failure")
        add("--pytest", default="", metavar="ARGUMENTS", help="for pytest: --pytest='-k name -x'")

    def __init__(self, **options: Any) -> None:
        self.is_everything: bool = options.get("everything", False)
        self.databases: str | None = options.get("databases")
        self.workers: str = options.get("workers") or "auto"
        self.seed: int = options.get("seed") or random.randrange(1, 2**32)
        self.arguments = shlex.split(options.get("pytest") or "")
        if options.get("failfast"):
            self.arguments.append("--exitfirst")
        # A part of the suite covers only a part.
        self.measures = self.is_everything and not self.databases

    def run_tests(self, labels: Sequence[str]) -> int:
        """Run the tests in *labels* (all if empty), report, and return 0 if all went well."""
        names = self.databases or (",".join(RUNS) if self.is_everything else QUICK)
        try:
            databases = chosen_databases(names, os.environ)
        except ValueError as error:
            sys.exit(f"--databases: {error}")
        # Being ended unwinds this process, so that servers and directories go as well.
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, lambda *_: sys.exit("Ended before the last test."))
        arguments = [*self.arguments, *labels]
        self.measures = self.measures and not arguments
        with tempfile.TemporaryDirectory(prefix="everifin-tests-") as directory:
            runs = [
                self.run_on(name, database, arguments, Path(directory))
                for name, database in databases.items()
            ]
            is_covered = not self.measures or report_coverage(Path(directory))
        total = Counts(*(sum(column) for column in zip(*(run.counts for run in runs), strict=True)))
        print("", *runs, "", total, sep="\n", flush=True)
        return int(total.failed > 0 or not is_covered)

    def run_on(
        self, name: str, database: Database, arguments: Sequence[str], directory: Path
    ) -> Run:
        print(f"\n== {name} ==", flush=True)
        if name in ONLY:
            arguments = [*ONLY[name], *arguments]
        elif self.is_everything and name != QUICK:
            arguments = [*EVERYTHING_ELSE, *arguments]
        started = time.monotonic()
        try:
            with database() as url:
                counts = self.run_pytest(arguments, directory, url)
        except AbsentError as absence:
            # Only who asks for a database by name relies on its being there.
            run = Run(name, Counts(failed=int(self.databases is not None)), remark=str(absence))
        except ServerError as error:
            print(error, flush=True)
            run = Run(name, Counts(failed=1), remark="could not be started")
        else:
            run = Run(name, counts, time.monotonic() - started)
        return run

    def run_pytest(self, arguments: Sequence[str], directory: Path, url: str) -> Counts:
        report = directory / "report.xml"
        report.unlink(missing_ok=True)
        # Our pytest plugin is imported before any of pytest's own could begin to measure.
        # Measuring costs half as much again, and several times as much where a test plays every
        # order of events. It says nearly the same on each database.
        is_first = not any(directory.glob("coverage.*"))
        measured = ["-m", "coverage", "run"] if self.measures and is_first else []
        command = [sys.executable, *measured, "-m", "pytest", f"--junitxml={report}"]
        # Not where pytest keeps the files of all its runs, and other runs clear them away.
        command += [f"--basetemp={directory / 'pytest'}"]
        command += [f"--numprocesses={self.workers}", f"--randomly-seed={self.seed}", *arguments]
        return Counts.read(report, call(command, directory, DATABASE_URL=url))


def call(command: Sequence[str], directory: Path, **environment: str) -> int:
    """Return the exit status of *command*, run in the checkout, its coverage in *directory*."""
    environment["COVERAGE_FILE"] = str(directory / "coverage")
    # The tests start some forty processes, and without bytecode each would compile all it imports.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.call(command, cwd=CHECKOUT, env={**inherited, **environment})


def report_coverage(directory: Path) -> bool:
    """Print the coverage of all runs together; tell whether it reaches pyproject's floor."""
    print("\n== coverage ==", flush=True)
    coverage = [sys.executable, "-m", "coverage"]
    steps = [[*coverage, "combine", "--quiet"], [*coverage, "report"]]
    return all(call(step, directory) == 0 for step in steps)

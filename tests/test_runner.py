"""The machinery of ``manage.py test``: what it counts, and on which databases it runs."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.runner import WITHOUT_KEYCLOAK, Counts, EveryDatabase, Run, chosen_databases

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10"/></testsuites>
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_counts_are_read_from_the_report(tmp_path):
    """An error in a fixture is a failed test, too."""
    report = write(tmp_path / "report.xml", REPORT)
    assert Counts.read(report, 1) == Counts(passed=4, failed=3, skipped=3)


def test_a_run_that_left_no_report_failed(tmp_path):
    assert Counts.read(tmp_path / "report.xml", 3) == Counts(failed=1)


def test_a_run_of_no_tests_failed(tmp_path):
    """pytest says so by its exit status alone."""
    report = write(tmp_path / "report.xml", '<testsuites><testsuite tests="0"/></testsuites>')
    assert Counts.read(report, 5) == Counts(failed=1)


def test_all_databases_are_chosen_by_default():
    assert list(chosen_databases(None, {})) == ["sqlite", "postgres", "mariadb", "keycloak"]


def test_databases_are_chosen_by_name():
    assert list(chosen_databases("mariadb,sqlite", {})) == ["mariadb", "sqlite"]


def test_an_unknown_database_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="oracle: choose from sqlite, postgres, mariadb, keycloak"):
        chosen_databases("sqlite,oracle", {})


def test_database_url_is_the_only_database():
    url = "postgres://me@db.example/shop"
    chosen = chosen_databases("sqlite", {"DATABASE_URL": url})
    assert list(chosen) == ["postgres"]
    with chosen["postgres"]() as address:
        assert address == url


def test_a_server_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(servers.AbsentError, match="apt-get install no-such-package"):
        servers.programs("no-such-package", "no-such-program")


@pytest.mark.parametrize(("asked_for", "failed"), [(None, 0), ("absent", 1)])
def test_an_absent_database_fails_only_who_asked_for_it(tmp_path, asked_for, failed):
    def absent():
        raise servers.AbsentError("not installed")

    run = EveryDatabase(databases=asked_for).run_on("absent", absent, [], tmp_path)
    assert run == Run("absent", Counts(failed=failed), remark="not installed")


@pytest.mark.parametrize(("labels", "is_played"), [([], True), (["tests/test_conf.py"], False)])
def test_a_part_of_the_suite_does_not_start_keycloak(monkeypatch, labels, is_played):
    played = []

    def note(self, name, *_):
        played.append(name)
        return Run(name, Counts(1))

    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(EveryDatabase, "run_on", note)
    EveryDatabase(measures=False).run_tests(labels)
    assert ("keycloak" in played) == is_played


@pytest.mark.parametrize(("name", "is_left_out"), [("sqlite", True), ("keycloak", False)])
def test_keycloak_is_started_for_its_own_run_only(monkeypatch, tmp_path, name, is_left_out):
    """Also where one process plays all tests."""
    told = {}
    monkeypatch.setattr(
        "tests.support.runner.call", lambda *_, **environment: told.update(environment)
    )
    everything = EveryDatabase(databases=name, parallel=0, measures=False)
    everything.run_on(name, lambda: nullcontext("sqlite://:memory:"), [], tmp_path)
    assert (WITHOUT_KEYCLOAK in told) == is_left_out


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 1)])
def test_the_last_line_sums_all_databases(monkeypatch, capsys, failed, status):
    counts = iter([Counts(5, 0, 1), Counts(4, failed, 2)])
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(EveryDatabase, "run_on", lambda *given: Run(given[1], next(counts)))
    everything = EveryDatabase(databases="sqlite,postgres", measures=False)
    assert everything.run_tests([]) == status
    assert capsys.readouterr().out.endswith(f"\n9 passed, {failed} failed, 3 skipped\n")

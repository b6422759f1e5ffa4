"""The machinery of ``manage.py test``: what it counts, and on which databases it runs."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.runner import Counts, PytestRunner, Run, chosen_databases

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


@pytest.fixture
def played(monkeypatch):
    """The databases on which a runner would have run the tests."""
    played = []

    def note(self, name, *_):
        played.append(name)
        return Run(name, Counts(1))

    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(PytestRunner, "run_on", note)
    monkeypatch.setattr("tests.support.runner.report_coverage", lambda _: True)
    return played


@pytest.mark.parametrize("labels", [[], ["tests/test_conf.py"]])
def test_the_quick_suite_runs_on_sqlite(played, labels):
    PytestRunner().run_tests(labels)
    assert played == ["sqlite"]


@pytest.mark.parametrize("labels", [[], ["tests/test_conf.py"]])
def test_everything_runs_on_every_database_with_browsers_and_with_keycloak(played, labels):
    PytestRunner(everything=True).run_tests(labels)
    assert played == ["sqlite", "postgres", "mariadb", "exhaustive", "browser", "keycloak"]


def test_databases_are_chosen_by_name():
    assert list(chosen_databases("mariadb,sqlite", {})) == ["mariadb", "sqlite"]


def test_an_unknown_database_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="oracle: choose from sqlite, postgres, mariadb, exh"):
        chosen_databases("sqlite,oracle", {})


def test_database_url_is_the_only_database():
    url = "postgres://me@db.example/shop"
    chosen = chosen_databases("sqlite", {"DATABASE_URL": url})
    assert list(chosen) == ["postgres"]
    with chosen["postgres"]() as given:
        assert given == url


def test_a_server_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(servers.AbsentError, match="apt-get install no-such-package"):
        servers.programs("no-such-package", "no-such-program")


@pytest.mark.parametrize(("asked_for", "failed"), [(None, 0), ("absent", 1)])
def test_an_absent_database_fails_only_if_it_was_asked_for(tmp_path, asked_for, failed):
    def absent():
        raise servers.AbsentError("not installed")

    run = PytestRunner(databases=asked_for).run_on("absent", absent, [], tmp_path)
    assert run == Run("absent", Counts(failed=failed), remark="not installed")


@pytest.mark.parametrize(
    ("name", "is_everything", "marker"),
    [
        ("sqlite", False, None),
        ("sqlite", True, None),
        ("exhaustive", True, "exhaustive"),
        ("postgres", True, "not browser and not keycloak"),
        ("browser", False, "browser"),
        ("browser", True, "browser"),
        ("keycloak", False, "keycloak"),
        ("keycloak", True, "keycloak"),
    ],
)
def test_a_run_chooses_its_tests_by_marker(monkeypatch, tmp_path, name, is_everything, marker):
    """The quick suite is pytest's own choice, by pyproject.toml."""
    commands = []

    def note(command, *_, **__):
        commands.append(command)
        return 0

    monkeypatch.setattr("tests.support.runner.call", note)
    runner = PytestRunner(databases=name, everything=is_everything)
    runner.run_on(name, lambda: nullcontext("sqlite://:memory:"), [], tmp_path)
    [words] = commands
    chosen = [words[at + 1] for at, word in enumerate(words) if word == "-m"]
    assert chosen[1:] == ([] if marker is None else [marker])
    assert ("--only-database" in words) == (name == "postgres")


def test_only_everything_measures_coverage():
    assert PytestRunner(everything=True).measures
    assert not PytestRunner().measures
    assert not PytestRunner(everything=True, databases="postgres").measures


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 1)])
def test_the_last_line_sums_all_databases(monkeypatch, capsys, failed, status):
    counts = iter([Counts(5, 0, 1), Counts(4, failed, 2)])
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(PytestRunner, "run_on", lambda *given: Run(given[1], next(counts)))
    runner = PytestRunner(databases="sqlite,postgres")
    assert runner.run_tests([]) == status
    assert capsys.readouterr().out.endswith(f"\n9 passed, {failed} failed, 3 skipped\n")


class TestWhatIsLeftOut:
    """The plugin of the suite, in a suite of its own."""

    @pytest.fixture
    def suite(self, pytester, monkeypatch):
        """Three tests, two of which the quick suite leaves out."""
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        # A root of its own, also where the temporary directory lies in this checkout.
        pytester.makeini("[pytest]\nmarkers = exhaustive: takes long")
        pytester.makeconftest('pytest_plugins = ["tests.support.left_out"]')
        pytester.makepyfile(
            """
            import pytest

            def test_quick(): pass

            @pytest.mark.exhaustive
            @pytest.mark.parametrize("number", [1, 2])
            def test_long(number): pass
            """
        )
        return pytester

    @pytest.mark.parametrize("processes", [0, 1])
    def test_it_is_counted_by_marker(self, suite, processes):
        result = suite.runpytest_subprocess(
            "-p", "xdist", f"--numprocesses={processes}", "-m", "not exhaustive", "-W", "ignore"
        )
        result.stdout.fnmatch_lines(["Left out: 2 exhaustive (*manage.py test --everything*"])

    @pytest.mark.parametrize(("options", "passed"), [([], 3), (["-k", "quick"], 1)])
    def test_nothing_is_said_where_no_marker_left_it_out(self, suite, options, passed):
        result = suite.runpytest_subprocess("-W", "ignore", *options)
        result.assert_outcomes(passed=passed, deselected=3 - passed)
        result.stdout.no_fnmatch_line("Left out*")


class TestOnlyDatabase:
    @pytest.mark.parametrize(("options", "passed"), [([], 4), (["--only-database"], 3)])
    def test_a_test_without_a_database_is_left_out(self, pytester, monkeypatch, options, passed):
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        pytester.makeini("[pytest]\nmarkers = django_db: uses the database")
        pytester.makeconftest('pytest_plugins = ["tests.support.only_database"]')
        pytester.makepyfile(
            """
            import pytest

            @pytest.fixture
            def db(): pass

            @pytest.fixture
            def user(db): pass

            def test_no_database(): pass

            def test_a_fixture(db): pass

            def test_a_fixture_of_a_fixture(user): pass

            @pytest.mark.django_db
            def test_a_mark(): pass
            """
        )
        result = pytester.runpytest_subprocess("-W", "ignore", *options)
        result.assert_outcomes(passed=passed, deselected=4 - passed)

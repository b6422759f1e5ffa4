"""``manage.py`` as typed on a fresh machine: what it finds missing, and when it installs again."""

import os
import sys

import pytest

from scripts import bootstrap

PROJECT = {
    "name": "everifin-django",
    "dependencies": ["django>=5.2.13,!=6.0"],
    "optional-dependencies": {
        "sandbox": ["oauthlib>=4.0"],
        "demo": ["everifin-django[sandbox]", "dj-database-url"],
    },
}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment that has a Python, yet nothing installed."""
    for name, path in {"PYTHON": "python", "STAMP": "stamp", "PYPROJECT": "pyproject.toml"}.items():
        monkeypatch.setattr(bootstrap, name, tmp_path / path)
    (tmp_path / "python").touch()
    (tmp_path / "pyproject.toml").write_text("[project]")
    return tmp_path


def test_extras_are_followed_to_the_requirements_behind_them():
    found = bootstrap.requirements(PROJECT, "demo")
    assert found == ["django>=5.2.13,!=6.0", "oauthlib>=4.0", "dj-database-url"]


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("django", True),
        ("django>=5.2.13,!=6.0", True),
        ("Django>=1000", False),
        ("psycopg[binary]>=3.2", True),
        ("no-such-distribution", False),
    ],
)
def test_a_requirement_is_met_by_what_is_installed(requirement, expected):
    assert bootstrap.is_met(requirement) is expected


@pytest.mark.parametrize(
    ("older", "newer"), [("5.2.9", "5.2.13"), ("9", "10.1"), ("2.33", "2.33.0.20261030")]
)
def test_versions_are_compared_as_numbers(older, newer):
    assert bootstrap.numbers(older) < bootstrap.numbers(newer)


def test_the_suite_itself_misses_nothing():
    """Else every ``manage.py test`` in a finished environment would install again."""
    assert bootstrap.missing_requirements("dev") == []


def test_an_unfinished_environment_is_not_prepared(environment):
    assert not bootstrap.is_prepared("demo")


def test_a_stamped_environment_is_prepared(environment):
    (environment / "stamp").write_text(bootstrap.stamp("demo"))
    assert bootstrap.is_prepared("demo")
    assert not bootstrap.is_prepared("dev")


def test_what_serves_the_tests_serves_the_demo(environment):
    (environment / "stamp").write_text(bootstrap.stamp("dev"))
    assert bootstrap.is_prepared("demo")


def test_new_requirements_are_installed(environment):
    (environment / "stamp").write_text(bootstrap.stamp("demo"))
    (environment / "pyproject.toml").write_text("[project]\ndependencies = []")
    assert not bootstrap.is_prepared("demo")


def test_an_environment_whose_python_is_gone_is_not_prepared(environment):
    (environment / "stamp").write_text(bootstrap.stamp("demo"))
    (environment / "python").unlink()
    assert not bootstrap.is_prepared("demo")


def test_a_step_that_fails_says_what_to_do(capfd):
    """Its exit message is the end of the step's own words, and the advice."""
    command = [sys.executable, "-c", "raise SystemExit('no network')"]
    with pytest.raises(SystemExit) as leaving:
        bootstrap.run(command, "Is there a network?")
    assert leaving.value.code == "no network\nIs there a network?"


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("test", "tests.settings"),
        ("demo", "scripts.demo.settings"),
        ("runserver", "example_project.settings"),
    ],
)
def test_each_command_has_its_settings(monkeypatch, command, settings):
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    bootstrap.ensure_installed([command])
    assert os.environ["DJANGO_SETTINGS_MODULE"] == settings


def test_settings_named_in_the_environment_are_left_alone(monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    bootstrap.ensure_installed(["demo"])
    assert os.environ["DJANGO_SETTINGS_MODULE"] == "shop.settings"

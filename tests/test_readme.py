"""README says what is true: each setting, error, signal, command and door it names is there."""

import ast
import re
from pathlib import Path

import pytest
from django.core.management import get_commands
from django.urls import reverse

from everifin_django import exceptions, signals
from everifin_django.api_names import DEFAULT_API_FIELDS, DEFAULT_API_PATHS
from everifin_django.bank.client import Client
from everifin_django.conf import SETTING_NAMES, conf
from everifin_django.testing import plugin

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip(" `") for cell in line.split("|")[1:4]]
    for line in README.splitlines()
    if line.startswith("| `EVERIFIN_")
]
LITERAL_DEFAULTS = [
    (name, default) for name, _, default in ROWS if default and not default.startswith("from")
]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_setting_has_its_row_and_no_other():
    assert {name for name, _, _ in ROWS} == SETTING_NAMES


@pytest.mark.parametrize(("name", "default"), LITERAL_DEFAULTS)
def test_a_default_is_the_one_in_the_code(name, default, settings):
    if hasattr(settings, name):
        delattr(settings, name)
    documented = ast.literal_eval(default)
    if name == "EVERIFIN_API_PATHS":  # a site's corrections lie on top of what there is
        documented = {**DEFAULT_API_PATHS, **documented}
    if name == "EVERIFIN_API_FIELDS":
        documented = {**DEFAULT_API_FIELDS, **documented}
    assert getattr(conf, name.removeprefix("EVERIFIN_").lower()) == documented


def test_every_path_and_object_that_can_be_corrected_is_named():
    for name, known in (
        ("EVERIFIN_API_PATHS", DEFAULT_API_PATHS),
        ("EVERIFIN_API_FIELDS", DEFAULT_API_FIELDS),
    ):
        (row,) = re.findall(rf"^\| `{name}` .*$", README, re.MULTILINE)
        assert known.keys() <= set(re.findall(r"\w+", row))


def test_every_error_it_names_is_one():
    named = set(re.findall(r"`(\w+Error)`", section("Errors")))
    assert named
    assert all(hasattr(exceptions, name) for name in named)


def test_every_signal_it_names_is_one():
    named = re.findall(r"`(\w+)`", section("Signals").split("each with")[0])
    assert all(hasattr(signals, name) for name in named if "_" in name and "." not in name)


def test_every_door_and_command_it_names_opens():
    doors = re.findall(r"`(everifin_django:\w+)`", README)
    assert len(doors) == 5
    assert all(reverse(door) for door in doors)
    commands = set(re.findall(r"`(everifin_[a-z_]+)` \| (?:prints|ends|starts|moves)", README))
    assert len(commands) == 4
    assert commands <= set(get_commands())


def test_every_call_and_fixture_it_names_is_there():
    calls = re.findall(r"^\| `(\w+)\(", README, re.MULTILINE)
    assert len(calls) == 14
    assert all(hasattr(Client, call) for call in calls)
    fixtures = re.findall(r"`(everifin(?:_user|_login|_connect)?)`", section("Test your site"))
    assert set(fixtures) == {"everifin", "everifin_user", "everifin_login", "everifin_connect"}
    assert all(hasattr(plugin, name) for name in fixtures)

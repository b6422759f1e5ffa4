"""The tests on the testing page pass and are short; its reference names what exists."""

import ast
import os
import subprocess
import sys

import pytest

from everifin_django.testing import factories, plugin
from everifin_django.testing.fake import FakeEverifin
from everifin_django.testing.testcases import EverifinTestCase
from tests.support import tiny_site

FILES = dict(tiny_site.FILE.findall(tiny_site.PAGE.read_text(encoding="utf-8")))
REFERENCE = tiny_site.PAGE.parents[1] / "reference" / "testing.md"
PAGE = REFERENCE.read_text(encoding="utf-8")
TESTS = [
    node
    for node in ast.walk(ast.parse(FILES["tests.py"]))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


@pytest.mark.exhaustive
def test_they_pass_in_a_site_of_their_own(tmp_path):
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTEST_", "DJANGO_", "COV"))
    }
    run = subprocess.run(
        [sys.executable, tiny_site.__file__, str(tmp_path)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "5 passed, 0 failed, 0 skipped"


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_a_test_takes_three_lines(test):
    assert test.end_lineno - test.lineno <= 3


def test_every_fixture_and_helper_it_names_is_there():
    fixtures = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `everifin")]
    assert len(fixtures) == 4
    assert all(hasattr(plugin, name) for name in fixtures)
    assert all(hasattr(EverifinTestCase, name) for name in fixtures if name != "everifin")


def test_every_switch_it_names_is_there():
    rows = PAGE.split("## What `everifin` can do")[1].split("##")[0].splitlines()
    calls = [line.split("`")[1].split("(")[0] for line in rows if line.startswith("| `")]
    assert len(calls) == 11
    plain = [name for name in calls if name.isidentifier()]
    assert all(hasattr(FakeEverifin, name) for name in plain)


def test_every_factory_it_names_is_there():
    text = PAGE.split("## Factories")[1]
    named = {word for word in text.split("`") if word.endswith("Factory")}
    assert named == {name for name in vars(factories) if name.endswith("Factory")}

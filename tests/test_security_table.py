"""docs/evidence/security.md names each requirement and attack once, and only tests that exist."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "evidence" / "security.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in TEXT.splitlines()
    if re.match(r"\| [A-Z]\d+ ", line)
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
NUMBERS = [f"S{number}" for number in range(1, 87)] + [f"A{number}" for number in range(1, 54)]
NAMED = sorted({match for row in ROWS for match in TEST.findall(row[-1])})


@cache
def names_in(file: str) -> frozenset[str]:
    """What pytest collects in *file*, read and not imported."""
    return frozenset(_names(ast.parse((ROOT / file).read_text(encoding="utf-8")).body))


def _names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for one in body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + one.name
        elif isinstance(one, ast.ClassDef):
            yield from _names(one.body, f"{prefix}{one.name}::")


def test_every_number_occurs_once():
    assert Counter(row[0] for row in ROWS) == Counter(NUMBERS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_says_something_and_names_tests_or_why_there_is_none(row):
    _, what, outcome, tests = row
    assert len(what) > 5
    assert len(outcome) > 5
    if tests.startswith("None: "):
        assert re.fullmatch(r"None: [^`]{20,}\.", tests)
    else:
        assert all(TEST.fullmatch(one) for one in tests.split("<br>"))


@pytest.mark.parametrize(("file", "name"), NAMED, ids="::".join)
def test_every_test_it_names_is_there(file, name):
    assert name.split("::")[-1].startswith("test_")
    assert name in names_in(file)


def test_a_test_named_after_an_attack_is_in_its_row():
    rows = {row[0]: row[-1] for row in ROWS}
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        for name in names_in(path):
            attacks = re.match(r"test_((?:a\d+_)+)", name.split("::")[-1])
            for attack in attacks[1].rstrip("_").split("_") if attacks else ():
                assert f"`{path}::{name}`" in rows[attack.upper()]

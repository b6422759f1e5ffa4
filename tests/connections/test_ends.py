"""One table of reasons: in the code, in the docs, and wherever something is ended."""

import ast
from pathlib import Path

import pytest

import everifin_django
from everifin_django.connections.ends import ENDS

PACKAGE = Path(everifin_django.__file__).parent
PAGE = PACKAGE.parent / "docs" / "explanation" / "ends.md"
ENDING = {
    "disable": 1,
    "disconnect": 1,
    "disconnect_all": 1,
    "end": 1,
    "end_all": 1,
    "end_login": 1,
    "enqueue": 1,
    "enqueue_record": 1,
    "enqueue_records": 1,
    "enqueue_token": 2,
    "mark_disconnected": 1,
    "release": 1,
    "revoke_unused": 1,
    "_revoke": 1,
}
"""Functions that end something, with the position of their reason."""


def reasons_in(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            position = ENDING.get(name)
            if position is not None and len(node.args) > position:
                given = node.args[position]
                parts = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
                found |= {str(part.value) for part in parts if isinstance(part, ast.Constant)}
    return found


def test_every_reason_in_the_code_has_its_row():
    used = set().union(*(reasons_in(path.read_text()) for path in PACKAGE.rglob("*.py")))
    assert len(used) > 8
    assert used <= ENDS.keys()


@pytest.mark.parametrize("reason", ENDS)
def test_the_page_says_what_the_code_says(reason):
    end = ENDS[reason]
    cells = [f"`{reason}`", end.asked_by, end.here, end.at_everifin, end.left_alone, end.told]
    assert f"| {' | '.join(cells)} |" in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_no_other_rows():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    assert len(rows) == len(ENDS)

"""
Every statement of the package names its database: with a router there may be no "default", and a
replica may be behind what has just been decided.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "everifin_django"
MANAGERS = {"objects", "_default_manager", "_base_manager"}
NAMES_ITS_DATABASE = {"using", "db_manager"}
TRANSACTIONS = {"atomic", "on_commit", "non_atomic_requests", "savepoint", "rollback"}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def unnamed(source: str) -> list[tuple[int, str]]:
    """Return line and name of each manager, transaction or view in *source* without a database."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        parent = parents[node]
        if node.attr in MANAGERS:
            is_named = isinstance(parent, ast.Attribute) and parent.attr in NAMES_ITS_DATABASE
        elif node.attr in TRANSACTIONS and ast.unparse(node.value) == "transaction":
            keywords = parent.keywords if isinstance(parent, ast.Call) else []
            is_named = any(word.arg == "using" for word in keywords)
        else:
            continue
        if not is_named:
            found.append((node.lineno, node.attr))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_statement_names_its_database(path):
    assert unnamed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("Row.objects.filter(pk=1)", ["objects"]),
        ("Row.objects.using(alias).filter(pk=1)", []),
        ("users = User._default_manager", ["_default_manager"]),
        ("User.objects.db_manager(alias).create_user()", []),
        ("with transaction.atomic():\n    pass", ["atomic"]),
        ("with transaction.atomic(using=alias):\n    pass", []),
        ("transaction.on_commit(send)", ["on_commit"]),
        ("decorate(transaction.non_atomic_requests)", ["non_atomic_requests"]),
        ("transaction.non_atomic_requests(using=alias)(view)", []),
    ],
)
def test_what_names_no_database_is_found(source, names):
    assert [name for _line, name in unnamed(source)] == names

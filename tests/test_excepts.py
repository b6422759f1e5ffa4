"""
Code that is not ours may raise anything, so it is caught as ``Exception`` at a border and not by a
list of classes: each new version of a library may add one. Every list in the package is looked at.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from everifin_django import exceptions

PACKAGE = Path(exceptions.__file__).parent
OURS = {
    name
    for name, value in vars(exceptions).items()
    if isinstance(value, type) and issubclass(value, Exception)
}
"""What we raise ourselves; ImproperlyConfigured counts with it."""

ALLOWED = {
    ("backends.py", "AttributeError, TypeError, ValueError, ValidationError"): (
        "the manager of a site's user model that wants other arguments; all else it raises is the "
        "site's own error and stays as it is"
    ),
    ("connections/refresh.py", "OperationalError, InterfaceError"): (
        "a database connection that died, which Django itself sorts out of all drivers' errors; an "
        "error of another kind would come again"
    ),
    ("connections/refresh.py", "DatabaseFault, own_connection.BusyError"): (
        "the base of all errors of Django's database layer, and one of our own"
    ),
    ("bank/client.py", "KeyError, TypeError, ValueError, AttributeError"): (
        "our own function that decodes a row of JSON, whose depth and numbers have their bounds"
    ),
    ("bank/payments.py", "ValueError, TypeError, AttributeError"): (
        "a key of the bank's that is to encrypt an input: without one, nothing is sent"
    ),
}
"""By module and classes: why a list is right there."""

SANDBOX = "testing/sandbox"
"""It reads what a site under test sent it, and no site in production runs it."""


def lists_of_classes() -> Iterator[tuple[str, str, int]]:
    """Module, classes and line of each ``except`` of several classes that are not all ours."""
    for file in sorted(PACKAGE.rglob("*.py")):
        module = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            kinds = node.type if isinstance(node, ast.ExceptHandler) else None
            if isinstance(kinds, ast.Tuple) and not module.startswith(SANDBOX):
                names = [ast.unparse(kind) for kind in kinds.elts]
                if {name.rpartition(".")[2] for name in names} - OURS - {"ImproperlyConfigured"}:
                    yield module, ", ".join(names), kinds.lineno


def test_no_list_of_classes_stands_around_code_that_is_not_ours():
    new = [found for found in lists_of_classes() if found[:2] not in ALLOWED]
    assert new == []


@pytest.mark.parametrize("reason", ALLOWED.values())
def test_every_exception_to_it_has_a_reason(reason):
    assert len(reason) > 40

"""Stairs go down: a module imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import everifin_django

HOUSE = Path(everifin_django.__file__).parent
FLOORS = [
    {"exceptions", "signals", "secret", "notices", "spelling", "decoding"},
    {"conf"},
    {"crypto", "transport", "bank", "payments"},
    {"oauth", "identity", "client"},
    {"models"},
    {"revocation", "flows", "rekey"},
    {"refresh"},
    {"tokens"},
    {"backends"},
    {"sessions"},
    {"decorators", "responses", "receivers", "checks"},
    {"middleware", "mixins", "admin", "views"},
    {"apps", "urls"},
]
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}


def imported_by(name: str) -> set[str]:
    """The modules of the house that a module imports when it is read or used."""
    found = set()
    for node in ast.walk(ast.parse((HOUSE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "everifin_django":
            found |= {alias.name for alias in node.names} & set(FLOOR_OF)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module.removeprefix("everifin_django.")} & set(FLOOR_OF)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("everifin_django.") for a in node.names} & set(FLOOR_OF)
    return found


def test_every_module_has_its_floor():
    modules = {path.stem for path in HOUSE.glob("*.py")} - {"__init__"}
    assert modules == set(FLOOR_OF)


@pytest.mark.parametrize("name", sorted(FLOOR_OF))
def test_a_module_imports_only_from_below(name):
    assert {other for other in imported_by(name) if FLOOR_OF[other] >= FLOOR_OF[name]} == set()


def test_no_floor_imports_what_is_for_tests():
    sources = (path.read_text(encoding="utf-8") for path in HOUSE.glob("*.py"))
    assert not any("everifin_django.testing" in source for source in sources)

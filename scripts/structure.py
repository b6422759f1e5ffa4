"""
Print the structure of the package: its modules, the imports between them, the length of functions.

``python -m scripts.structure``. A folder of the package counts as one module. ``testing`` and
``migrations`` are left out: no module that serves a site imports them.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import grimp

PACKAGE = "everifin_django"
LEFT_OUT = frozenset({"testing", "migrations"})
CHECKOUT = Path(__file__).resolve().parents[1]

Imports = dict[str, set[str]]


def imports() -> Imports:
    """Return the modules of the package, each with those that it imports."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    found: Imports = {}
    for name in graph.modules - {PACKAGE}:
        imported = map(module_of, graph.find_modules_directly_imported_by(name))
        found.setdefault(module_of(name), set()).update(imported)
    kept = found.keys() - LEFT_OUT
    return {name: found[name] & kept - {name} for name in kept}


def module_of(path: str) -> str:
    """Return ``bank`` for ``everifin_django.bank.client``."""
    return path.removeprefix(f"{PACKAGE}.").split(".")[0]


def in_circles(graph: Imports) -> set[str]:
    """Return the modules that import themselves through others."""
    return {name for name in graph if name in reachable(name, graph)}


def reachable(start: str, graph: Imports) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def function_lengths() -> list[int]:
    """Return how many lines of code each function has; docstrings and comments do not count."""
    package = CHECKOUT / PACKAGE
    sources = [
        path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in LEFT_OUT
    ]
    return sorted(length for path in sources for length in lengths_in(path.read_text("utf-8")))


def lengths_in(source: str) -> Iterator[int]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            span = lines[body[0].lineno - 1 : body[-1].end_lineno] if body else []
            yield sum(1 for line in span if line.strip() and not line.lstrip().startswith("#"))


def main() -> None:
    graph, lengths = imports(), function_lengths()
    print(f"modules {len(graph)}")
    print(f"imports {sum(map(len, graph.values()))}")
    print(f"in circles {len(in_circles(graph))}")
    print(f"functions {len(lengths)}: median {statistics.median(lengths):g} lines", end=", ")
    print(f"9 of 10 at most {lengths[len(lengths) * 9 // 10]}")


if __name__ == "__main__":
    main()

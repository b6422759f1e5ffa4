"""What the quick suite must not lose to the tests that take long."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
FAULTS = {f"f{number}" for number in range(1, 28)}
LEFT_OUT = re.compile(r"mark\.(exhaustive|browser|keycloak)\b")


def quick_tests(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    marks = [ast.unparse(one) for one in tree.body if isinstance(one, ast.Assign)]
    if any(mark.startswith("pytestmark") and LEFT_OUT.search(mark) for mark in marks):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = map(ast.unparse, node.decorator_list)
            if not any(LEFT_OUT.search(decorator) for decorator in decorators):
                yield node.name


def test_each_fault_of_the_refresh_protocol_has_a_quick_test():
    """The numbers are those of docs/explanation/refresh.md."""
    names = [name for file in TESTS.rglob("test_*.py") for name in quick_tests(file)]
    assert {name.split("_")[1] for name in names if re.match(r"test_f\d+_", name)} >= FAULTS

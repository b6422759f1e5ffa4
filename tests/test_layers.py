"""The package's layers, which pyproject.toml lists: imports lead down, and never in a circle."""

import os
import subprocess
import sys
from pathlib import Path

from scripts import structure

CHECKOUT = Path(__file__).parents[1]
# In a process of its own, because the command disables every logger that is there already.
LINT_IMPORTS = "from importlinter.cli import lint_imports_command as main; main()"


def test_imports_lead_down():
    linted = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS, "--no-cache", "--no-logo"],
        check=False,
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_modules_stay_few_and_without_circles():
    """Folders of the package count as one module."""
    imports = structure.imports()
    assert len(imports) <= 30
    assert sum(map(len, imports.values())) <= 90
    assert structure.in_circles(imports) == set()


def test_functions_stay_short():
    lengths = structure.function_lengths()
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[len(lengths) * 9 // 10] <= 18

"""The package's layers, which pyproject.toml lists: imports lead down, and never in a circle."""

from pathlib import Path

from importlinter.cli import lint_imports

from scripts import structure

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_imports_lead_down(capsys):
    status = lint_imports(str(PYPROJECT), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


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

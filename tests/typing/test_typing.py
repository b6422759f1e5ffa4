"""What mypy and pyright tell a site's author."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.typing.blocks import ROOT, modules

SITE = Path(__file__).parent / "site"
CACHE = ROOT / ".mypy_cache" / "typing"

needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy_django_plugin") is None, reason="django-stubs is not installed"
)
needs_pyright = pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None or shutil.which("node") is None,
    reason="pyright or node is not installed",
)
pytestmark = [pytest.mark.exhaustive, pytest.mark.xdist_group("typing")]


@pytest.fixture
def site(tmp_path):
    """A copy outside this repository, where the package is only an installed one."""
    return shutil.copytree(SITE, tmp_path / "site")


def complaints(site, *command):
    checked = subprocess.run(
        [sys.executable, "-m", *command], cwd=site, capture_output=True, text=True, check=False
    )
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


def mypy(site, *arguments):
    return complaints(site, "mypy", f"--cache-dir={CACHE}", *arguments)


@needs_mypy
class TestMypy:
    def test_a_strict_site_has_no_complaint(self, site):
        assert mypy(site, "typed_site") == ""

    def test_the_pages_blocks_have_none(self, site):
        """Their bodies in full. A page may leave out annotations, and names that a site has."""
        blocks = site / "blocks"
        blocks.mkdir()
        for name, source in modules():
            (blocks / f"{name}.py").write_text(source, encoding="utf-8")
        assert len(list(blocks.iterdir())) > 10
        assert mypy(site, "--config-file=blocks.ini", *map(str, blocks.glob("*.py"))) == ""


@needs_pyright
def test_pyright_has_no_complaint(site):
    assert complaints(site, "pyright", f"--pythonpath={sys.executable}", "typed_site") == ""

"""
The site of docs/howto/testing.md, run as it stands on the page:
``python tests/support/tiny_site.py FOLDER``.

Writes its files into FOLDER, runs its tests there with the pytest of this very Python, and prints
how many there were. Only what the page tells to install is needed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "testing.md"
FILE = re.compile(r"^```\w+\n# (\w+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(folder: Path) -> int:
    write(folder)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=report.xml"]
    run = subprocess.run([*command, "-W", "error"], cwd=folder, check=False)
    print(summary(folder / "report.xml"))
    return run.returncode


def write(folder: Path) -> None:
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (folder / name).write_text(text, encoding="utf-8")


def summary(report: Path) -> str:
    counted = ET.parse(report).getroot()[0].attrib  # noqa: S314 - pytest has just written it
    failed = int(counted["failures"]) + int(counted["errors"])
    skipped = int(counted["skipped"])
    passed = int(counted["tests"]) - failed - skipped
    return f"{passed} passed, {failed} failed, {skipped} skipped"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

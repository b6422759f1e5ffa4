"""JavaScript libraries as npm has them, fetched once and kept outside the checkout."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

from tests.support.servers import AbsentError, programs

LONGEST_SECONDS = 120
LIBRARIES = {
    "htmx 2": ("htmx.org@2.0.11", "package/dist/htmx.min.js"),
    "htmx 4": ("htmx.org@4.0.1", "package/dist/htmx.min.js"),
    "turbo 8": ("@hotwired/turbo@8.0.23", "package/dist/turbo.es2017-umd.js"),
}


def installed(name: str) -> Path:
    """
    Return the file of the library *name*.

    Errors: AbsentError if npm is missing, or the library is neither here nor to be had.
    """
    package, member = LIBRARIES[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = cache / "everifin-django" / "npm" / f"{package.replace('/', '-')}.js"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        fetch(package, member, file)
    return file


def fetch(package: str, member: str, file: Path) -> None:
    (npm,) = programs("npm", "npm")
    command = [npm, "pack", package, "--silent", "--pack-destination", str(file.parent)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    if done.returncode != 0:
        raise AbsentError(f"npm has no {package}: {done.stderr.strip()[-300:]}")
    archive = file.parent / done.stdout.split()[-1]
    with tarfile.open(archive) as opened:
        content = opened.extractfile(member)
        assert content is not None
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(content.read())
    part.replace(file)  # another process may do the same

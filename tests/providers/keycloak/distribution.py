"""
The official distribution of Keycloak, fetched once with Maven and kept outside the checkout.

It lies in $XDG_CACHE_HOME/everifin-django/keycloak (or ~/.cache/...), unpacked and built, which
takes a minute the first time. KEYCLOAK_VERSION names another one than the newest that was tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import AbsentError, programs

NEWEST = "26.7.3"
LEGACY = "17.0.0"
"""The last one whose logout takes ``redirect_uri``."""

COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
BUILD = ("build", "--db=dev-mem", "--cache=local", "--http-relative-path=/auth")
LONGEST_SECONDS = 600


def chosen_version() -> str:
    return os.environ.get("KEYCLOAK_VERSION") or NEWEST


def installed(version: str) -> Path:
    """
    Return the directory of Keycloak *version*, ready to be started.

    Errors: AbsentError if Java is missing, or the distribution is neither here nor to be had.
    """
    programs("openjdk-17-jre-headless", "java")
    with locked() as shelf:
        home = shelf / f"keycloak-{version}"
        is_built = home / "built-for-the-tests"
        if not is_built.exists():
            shutil.rmtree(home, ignore_errors=True)
            with zipfile.ZipFile(fetched(version, shelf)) as archive:
                archive.extractall(shelf)
            run("bash", str(home / "bin" / "kc.sh"), *BUILD)
            is_built.touch()
    return home


def fetched(version: str, shelf: Path) -> Path:
    """Return the archive as Maven Central has it."""
    archive = shelf / f"keycloak-quarkus-dist-{version}.zip"
    if not archive.exists():
        (maven,) = programs("maven", "mvn")
        artifact = f"-Dartifact=org.keycloak:keycloak-quarkus-dist:{version}:zip"
        run(maven, "--batch-mode", "--quiet", COPY, artifact, f"-DoutputDirectory={shelf}")
    return archive


def run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-1000:]
        raise AbsentError(f"{Path(command[0]).name} failed: {said}")


@contextmanager
def locked() -> Iterator[Path]:
    """Yield the directory of distributions, which nobody else changes in the meantime."""
    import fcntl  # not on Windows

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    shelf = cache / "everifin-django" / "keycloak"
    shelf.mkdir(parents=True, exist_ok=True)
    with (shelf / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shelf

"""What manage.py needs is installed first, into a virtual environment of this checkout."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - before the lines that older Pythons cannot run
    sys.exit("everifin_django needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")

import hashlib
import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parents[1]
PYPROJECT = HERE / "pyproject.toml"
ENVIRONMENT = HERE / ".venv" / str(sys.implementation.cache_tag)
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "everifin-installed"
EXAMPLE_SETTINGS = "example_project.settings"
SETTINGS = {
    "test": "tests.settings",
    "demo": "scripts.demo.settings",
    "demo_site": "scripts.demo.settings",
}


def ensure_installed(arguments: list[str]) -> None:
    """
    Return once all that the command in *arguments* needs is installed in the Python that runs.

    Where something is missing, this completes ENVIRONMENT, runs the command in its Python, and does
    not return. It also chooses the command's settings, unless the environment names others.
    """
    command = arguments[0] if arguments else ""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS.get(command, EXAMPLE_SETTINGS))
    extra = "dev" if command == "test" else "demo"
    missing = missing_requirements(extra)
    if missing and Path(sys.prefix) == ENVIRONMENT and is_prepared(extra):
        sys.exit(f"{', '.join(missing)} went missing. Delete {ENVIRONMENT} and run this again.")
    if missing:
        prepare(extra)
        continue_in_environment(arguments)


def missing_requirements(extra: str) -> list[str]:
    """Return those requirements of *extra* in pyproject.toml that this Python does not meet."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return [
        requirement
        for requirement in [project["name"], *requirements(project, extra)]
        if not is_met(requirement)
    ]


def requirements(project: dict[str, Any], extra: str) -> list[str]:
    """Return the run-time requirements of *project* and, followed through, those of *extra*."""
    found = list(project["dependencies"])
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[(\w+)\]", requirement)
        found += requirements(project, own[1]) if own else [requirement]
    return list(dict.fromkeys(found))


def is_met(requirement: str) -> bool:
    """
    Tell whether *requirement* is installed here, not older than its floor.

    Shape: a name with or without extras and floor, such as ``psycopg[binary]>=3.2``.
    """
    name = re.match(r"[\w.-]+", requirement)
    floor = re.search(r">=([\d.]+)", requirement)
    try:
        installed = metadata.version(name[0] if name else requirement)
    except metadata.PackageNotFoundError:
        return False
    return floor is None or numbers(installed) >= numbers(floor[1])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def is_prepared(extra: str) -> bool:
    """Tell whether ENVIRONMENT was completed for *extra*, or for ``dev``, which contains it."""
    stamps = STAMP.read_text().split() if PYTHON.exists() and STAMP.exists() else []
    return stamp(extra) in stamps or stamp("dev") in stamps


def stamp(extra: str) -> str:
    """Return a text that differs whenever ENVIRONMENT has to be completed anew."""
    return hashlib.sha256(f"{HERE} {extra}\n".encode() + PYPROJECT.read_bytes()).hexdigest()


def prepare(extra: str) -> None:
    """Complete ENVIRONMENT for *extra*, stamping it last, so that half of one is never used."""
    if is_prepared(extra):
        return
    directory = ENVIRONMENT.relative_to(HERE)
    print(f"Installing everifin-django[{extra}] into {directory} (first run only) ...", flush=True)
    if not (PYTHON.exists() and STAMP.exists()):
        run(
            [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
            f"Could not make the virtual environment {directory}. "
            "On Debian and Ubuntu this helps: apt-get install python3-venv",
        )
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    advice = "Could not install what this needs. Is there a network? Then run the command again."
    run([*pip, "--upgrade", "pip"], advice)
    run([*pip, "--editable", f"{HERE}[{extra}]"], advice)
    with STAMP.open("a") as stamps:
        stamps.write(stamp(extra) + "\n")


def run(command: list[str], advice: str) -> None:
    """Run *command* quietly; if it fails, leave with the end of its output and *advice*."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit("\n".join([*done.stdout.strip().splitlines()[-8:], advice]))


def continue_in_environment(arguments: list[str]) -> NoReturn:
    command = [str(PYTHON), str(HERE / "manage.py"), *arguments]
    if os.name == "nt":  # its execv does not wait for the new process
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted

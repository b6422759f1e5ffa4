"""All that has to hold: ``nox``, or one session of it: ``nox -s lint``. ``.ci/run`` runs each."""

from __future__ import annotations

import base64
import re
import secrets
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path
from subprocess import DEVNULL

import nox

CHECKOUT = Path(__file__).resolve().parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# No site gets these.
NOT_IN_SDIST = {".ci/run", ".pre-commit-config.yaml"}
NEEDS_AN_EXTRA = (
    "oauthlib",
    "factory",
    "pytest",
    "rest_framework",
    "drf_spectacular",
    "ninja",
    "opentelemetry",
)

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"


def installed_pythons() -> list[str]:
    """Return the versions from 3.11 on that are on the path, the newest last; no prereleases."""
    return [version for version in (f"3.{minor}" for minor in range(11, 20)) if is_usable(version)]


def is_usable(version: str) -> bool:
    """Ask the program itself: a version manager's shim may be there for a Python that is not."""
    is_final = "import sys; sys.exit(sys.version_info.releaselevel != 'final')"
    program = shutil.which(f"python{version}")
    return program is not None and not subprocess.call([program, "-c", is_final], stderr=DEVNULL)


PYTHONS = installed_pythons()
NEWEST = PYTHONS[-1] if PYTHONS else "3.14"
BEFORE_NEWEST = [NEWEST, *PYTHONS][-2:][0]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The quick suite on each Python. On 3.11 that is with the newest Django 5.2."""
    session.install("--editable", ".[dev]")
    session.run("python", "manage.py", "test", *session.posargs)


@nox.session(python=NEWEST)
def everything(session: nox.Session) -> None:
    """
    Every test, on every database, with browsers and Keycloak; what is absent is said.

    Then, for longer than the suite does it, the grants of a site whose processes and database fail.
    """
    session.install("--editable", ".[dev]")
    session.run("python", "manage.py", "test", "--everything", *session.posargs)
    crash_run = ["tests.protocol.crash_run", "--database", "postgres", "--seconds", "60"]
    session.run("python", "-m", *crash_run)


@nox.session(python=BEFORE_NEWEST)
def floors(session: nox.Session) -> None:
    """
    The quick suite with every requirement of a site at the oldest release that is accepted, Django
    5.2 among them, on PostgreSQL.
    """
    constraints = Path(session.create_tmp()) / "floors.txt"
    constraints.write_text("\n".join(floor_requirements()))
    session.install("--constraint", str(constraints), "--editable", ".[dev]")
    session.run("python", "manage.py", "test", "--databases", "postgres", *session.posargs)


def floor_requirements() -> list[str]:
    """Return each run-time requirement at its floor: ``django==5.2.19``."""
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["sandbox"]
    return [re.sub(r">=([\d.]+).*", r"==\1", requirement) for requirement in requirements]


@nox.session(python=NEWEST)
def django60(session: nox.Session) -> None:
    """
    The tests that use a database with Django 6.0, on MariaDB: the others pass with the releases
    before and after it.

    mysqlclient, which sites use, is used instead of PyMySQL where it can be built.
    """
    driver = ["mysqlclient"] if shutil.which("mariadb_config") else []
    session.install("--editable", ".[dev]", "django~=6.0.0", *driver)
    chosen = ["--databases", "mariadb", "--pytest=--only-database"]
    session.run("python", "manage.py", "test", *chosen, *session.posargs)


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    session.install(*dependency_group("lint", "ruff"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(python=NEWEST)
def types(session: nox.Session) -> None:
    """Ours, and those that a site's author sees."""
    session.install("--editable", ".[dev]", *dependency_group("lint"))
    session.run("mypy")
    session.run("pytest", "-m", "", "-rs", "tests/typing")


@nox.session(python=NEWEST)
def layers(session: nox.Session) -> None:
    """Imports lead down."""
    session.install(*(one for one in PROJECT["optional-dependencies"]["dev"] if "import-" in one))
    session.run("lint-imports", "--no-cache", "--no-logo", env={"PYTHONPATH": str(CHECKOUT)})


@nox.session(python=NEWEST)
def checks(session: nox.Session) -> None:
    """Django's own: no migration is missing, and a deployment of the example site is right."""
    session.install("--editable", ".[demo]")
    session.run("python", "manage.py", "makemigrations", "--check", "--dry-run")
    deployment = {
        "DATABASE_URL": "sqlite://:memory:",
        "DEBUG": "0",
        "SECRET_KEY": secrets.token_urlsafe(60),
        "ALLOWED_HOSTS": "shop.example",
        "EVERIFIN_CLIENT_ID": "shop",
        "EVERIFIN_CLIENT_SECRET": secrets.token_urlsafe(32),
        "EVERIFIN_ENCRYPTION_KEYS": encryption_key(),
        "EVERIFIN_REDIRECT_URI": "https://shop.example/everifin/callback/",
    }
    fail = ["--fail-level", "WARNING"]
    session.run("python", "manage.py", "check", "--deploy", *fail, env=deployment)


def encryption_key() -> str:
    return "nox:" + base64.b64encode(secrets.token_bytes(32)).decode()


@nox.session(python=NEWEST)
def build(session: nox.Session) -> None:
    """The wheel has the package, the sdist the whole checkout, and an index takes both."""
    session.install(*dependency_group("release"))
    out = Path(session.create_tmp()) / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out), str(CHECKOUT), silent=True)
    [wheel], [sdist] = out.glob("*.whl"), out.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    tracked = str(session.run("git", "ls-files", external=True, silent=True)).splitlines()
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expect_equal(session, "wheel", names, {one for one in tracked if one.startswith("everifin_d")})
    with tarfile.open(sdist) as archive:
        names = {one.name.partition("/")[2] for one in archive.getmembers()} - {"PKG-INFO"}
    expect_equal(session, "sdist", names, set(tracked) - NOT_IN_SDIST)


def expect_equal(session: nox.Session, what: str, packed: set[str], wanted: set[str]) -> None:
    if packed != wanted:
        session.error(f"The {what} lacks or has too much: {sorted(packed ^ wanted)}")


@nox.session(python=NEWEST)
def smoke(session: nox.Session) -> None:
    """The wheel without extras, in a site made as README says, away from the checkout."""
    session.install(str(built_wheel(session)))
    site = Path(session.create_tmp()).resolve() / "site"
    shutil.copytree(CHECKOUT / "tests/support/smoke_site", site, dirs_exist_ok=True)
    env = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": str(site),
        "EVERIFIN_ENCRYPTION_KEYS": encryption_key(),
    }
    with session.chdir(site):
        session.run("python", "import_everything.py", *NEEDS_AN_EXTRA, env=env)
        session.run("django-admin", "check", "--fail-level", "ERROR", env=env)
        session.run("django-admin", "migrate", "--verbosity", "0", env=env)
        session.run("django-admin", "everifin_new_key", env=env, silent=True)


@nox.session(python=NEWEST)
def documented_tests(session: nox.Session) -> None:
    """The tutorial, and the tests of the testing page, with the wheel and no checkout."""
    session.install(f"{built_wheel(session)}[sandbox]", "pytest", "pytest-django")
    for script in ("tutorial", "tiny_site"):
        site = Path(session.create_tmp()).resolve() / script
        shutil.rmtree(site, ignore_errors=True)
        site.mkdir()
        with session.chdir(site.parent):
            session.run("python", str(CHECKOUT / f"tests/support/{script}.py"), str(site))


def built_wheel(session: nox.Session) -> Path:
    out = Path(session.create_tmp()) / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", "--no-deps", "-w", str(out), ".", silent=True)
    [wheel] = out.glob("*.whl")
    return wheel


@nox.session(python=NEWEST)
def audit(session: nox.Session) -> None:
    """
    No requirement of a site accepts a release with a known hole.

    Asks the package index's advisory service about the oldest release of each series that the
    floors accept; where it does not answer, that counts as skipped.
    """
    session.install("pip-audit", success_codes=range(256))
    missing = session.run("python", "-c", "import pip_audit", success_codes=[0, 1], silent=True)
    if missing:
        session.warn("pip-audit cannot be installed: %s", str(missing).strip().rpartition("\n")[2])
        print("0 passed, 0 failed, 1 skipped")
        return
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["payments"]
    session.run("python", "-m", "tests.support.audit", *requirements)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """The walk, as in a fresh clone: manage.py installs what it needs by itself."""
    session.run(f"python{NEWEST}", "manage.py", "demo", "--walk", external=True)


def dependency_group(name: str, *only: str) -> list[str]:
    groups = nox.project.load_toml("pyproject.toml")["dependency-groups"]
    return [one for one in groups[name] if not only or one.startswith(only)]

"""
Sites that differ in what a process can have only one of: the user model and the installed apps.

Each is a small project below ``projects``, whose tests run in a process and database of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PROJECTS = {
    "by_email": ["projects/users.py", "projects/by_email/tests.py"],
    "uuid_key": ["projects/users.py", "projects/uuid_key/tests.py"],
    "bare": ["projects/users.py", "projects/bare/tests.py"],
    "tenants": ["projects/tenants/tests.py"],
    "social_auth": ["projects/social_auth/tests.py"],
    "jobs": ["projects/jobs/tests.py", "projects/jobs/worker_tests.py"],
    "allauth": ["test_beside.py", "projects/allauth/tests.py"],
}
QUICK = {"bare", "uuid_key", "tenants"}
LONGEST_SECONDS = 240


# The quick ones are played on each database: columns of other types, several databases, and a site
# without the login.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.django_db if name in QUICK else pytest.mark.exhaustive)
        for name in PROJECTS
    ],
)
def test_the_tests_of_a_project_pass(name, tmp_path):
    files = [f"tests/{file}" for file in PROJECTS[name]]
    command = [sys.executable, "-m", "pytest", f"--ds=tests.projects.{name}.settings", *files]
    command += ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={tmp_path / 'of'}"]
    # Its database is its own, not the one of the test that runs here.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment.pop("TESTS_DATABASE_NAME", None)
    run = subprocess.run(
        command,
        cwd=CHECKOUT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_project_is_run():
    assert {path.parent.name for path in Path(__file__).parent.glob("projects/*/settings.py")} == {
        *PROJECTS
    }

"""No release with a recorded hole is accepted, not even the oldest one."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["dependencies"])}
RECORD = tomllib.loads((ROOT / "tests/support/advisories.toml").read_text(encoding="utf-8"))


def holes_in(requirement: Requirement, fixes: Sequence[str]) -> Iterator[str]:
    """Give the releases that *requirement* accepts though they are older than their fix."""
    floor = next(one.version for one in requirement.specifier if one.operator == ">=")
    for release in {floor, *releases_before(fixes)}:
        version = Version(release)
        own = [Version(fix) for fix in fixes if Version(fix).release[:2] == version.release[:2]]
        if version in requirement.specifier and version < min(own or map(Version, fixes)):
            yield release


def releases_before(fixes: Sequence[str]) -> Iterator[str]:
    """Give the releases of each fix's series before it: 6.0, 6.0.1 and 6.0.2 before 6.0.3."""
    for fix in fixes:
        series, _, last = fix.rpartition(".")
        yield series
        yield from (f"{series}.{number}" for number in range(1, int(last)))


@pytest.mark.parametrize("advisory", RECORD["advisory"], ids=lambda one: one["ids"][0])
def test_no_release_with_a_recorded_hole_is_accepted(advisory):
    assert not set(holes_in(DECLARED[advisory["package"]], advisory["fixed"]))


@pytest.mark.parametrize(
    ("declared", "holes"),
    [
        ("django>=5.2.18,!=6.0.*,!=6.1.*", {"5.2.18"}),
        ("django>=5.2.19,!=6.0.*", {"6.1", "6.1.1", "6.1.2"}),
        ("django>=6.0.9,!=6.1.*", {"6.0.9"}),
        ("django>=5.1", None),
        ("django>=6.1.3", set()),
    ],
)
def test_a_hole_within_what_is_accepted_is_found(declared, holes):
    found = set(holes_in(Requirement(declared), ["5.2.19", "6.0.10", "6.1.3"]))
    assert found == holes or (holes is None and "5.1" in found)


LISTED = "print('Available versions: 2.1, 2.0, 1.9, 2.0rc1, of-old')"
ANSWERS = {
    "nothing known": [{"name": "Shop", "version": "2.0", "vulns": []}],
    "a hole": [{"name": "shop", "version": "2.0", "vulns": [{"id": "CVE-1"}]}],
    "unknown to it": [{"name": "shop", "skip_reason": "Dependency not found: shop"}],
    "another": [{"name": "other", "version": "1", "vulns": []}],
}


def service_says(text):
    """Return a stand-in for pip-audit that answers *text*."""
    return f"import sys, pathlib\npathlib.Path(sys.argv[-1]).write_text({text!r})"


def answers(name):
    return service_says(json.dumps({"dependencies": ANSWERS[name]}))


@pytest.mark.parametrize(
    ("index", "service", "code", "told"),
    [
        (LISTED, answers("nothing known"), 0, "2 passed, 0 failed, 1 skipped"),
        (LISTED, answers("a hole"), 1, "shop 2.0: CVE-1"),
        (LISTED, answers("unknown to it"), 0, "skipped: Dependency not found: shop"),
        (LISTED, answers("another"), 0, "skipped: shop==2.1: pip-audit does not mention it"),
        (LISTED, "exit('No route')", 0, "skipped: shop==2.0: pip_audit: No route"),
        (LISTED, "", 0, "skipped: shop==2.0: pip-audit wrote no answer"),
        (LISTED, service_says("<html>"), 0, "pip-audit's answer cannot be read"),
        (LISTED, service_says("[]"), 0, "pip-audit's answer cannot be read"),
        ("exit('No index')", answers("a hole"), 1, "skipped: releases of shop: pip: No index"),
        ("", answers("a hole"), 1, "releases of shop: the package index lists none"),
    ],
    ids=count(),
)
def test_only_a_hole_fails_the_audit_and_what_is_not_answered_is_told(
    tmp_path, index, service, code, told
):
    (tmp_path / "pip.py").write_text(f"import os; assert 'PIP_QUIET' not in os.environ\n{index}")
    (tmp_path / "pip_audit.py").write_text(service)
    path = os.pathsep.join(map(str, [tmp_path, ROOT]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.audit", "shop>=2.0", "gone>=2.0,<2.1"],
        env={"PYTHONPATH": path, "PIP_QUIET": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert told in done.stdout

"""No release with a recorded hole is accepted, not even the oldest one."""

import tomllib
from collections.abc import Iterator, Sequence
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

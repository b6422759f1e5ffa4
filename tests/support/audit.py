"""
Ask the package index's advisory service about the oldest releases that a site may have.

``python -m tests.support.audit django>=5.2.19 ...`` exits with 1 if one of them has a known hole.
What the index or the service does not answer counts as skipped, with the reason: a machine without
a network, a mirror without advisories.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

LONGEST_SECONDS = 120
AUDIT = ["pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]


class NoAnswerError(Exception):
    """The index or the advisory service did not answer; the text says why."""


def main(requirements: list[str]) -> int:
    skipped: list[str] = []
    columns = [oldest_releases(Requirement(one), skipped) for one in requirements]
    # A release of each at a time, because no name may occur twice in one question.
    rows = [list(filter(None, row)) for row in zip_longest(*columns)]
    answers = [answer for row in rows for answer in advisories(row, skipped)]
    holes = [one for one in answers if one["vulns"]]
    for one in holes:
        print(f"{one['name']} {one['version']}:", *(hole["id"] for hole in one["vulns"]))
    print(*(f"skipped: {reason}" for reason in skipped), sep="\n")
    print(f"{len(answers) - len(holes)} passed, {len(holes)} failed, {len(skipped)} skipped")
    return 1 if holes else 0


def oldest_releases(requirement: Requirement, skipped: list[str]) -> list[str]:
    """
    Return the oldest release of each series that *requirement* accepts: ``django==6.0.10``.

    The floor itself where the index does not answer.
    """
    try:
        listed = listed_releases(requirement.name)
    except NoAnswerError as error:
        skipped.append(f"releases of {requirement.name}: {error}")
        listed = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    accepted = requirement.specifier.filter(listed, prereleases=False)
    series = {version.release[:2]: version for version in sorted(accepted, reverse=True)}
    return [f"{requirement.name}=={version}" for version in series.values()]


def listed_releases(name: str) -> list[Version]:
    said, complaint = run("pip", "index", "versions", name)
    found = re.search(r"Available versions: (.+)", said)
    if found is None:
        raise NoAnswerError(complaint or "the package index lists none")
    return list(versions_in(found[1]))


def versions_in(text: str) -> Iterator[Version]:
    for one in text.split(","):
        try:
            yield Version(one.strip())
        except InvalidVersion:
            continue


def advisories(pinned: list[str], skipped: list[str]) -> list[dict[str, Any]]:
    """Return what the service says of each release that it knows."""
    try:
        dependencies = audited(pinned)
    except NoAnswerError as error:
        skipped += [f"{one}: {error}" for one in pinned]
        return []
    skipped += [str(one["skip_reason"]) for one in dependencies if "vulns" not in one]
    named = {canonicalize_name(str(one["name"])) for one in dependencies}
    unnamed = [one for one in pinned if canonicalize_name(one.partition("==")[0]) not in named]
    skipped += [f"{one}: pip-audit does not mention it" for one in unnamed]
    return [one for one in dependencies if "vulns" in one]


def audited(pinned: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "asked.txt", Path(folder) / "answered.json"
        asked.write_text("\n".join(pinned))
        _, complaint = run(*AUDIT, "--requirement", str(asked), "--output", str(answered))
        if not answered.exists():
            raise NoAnswerError(complaint or "pip-audit wrote no answer")
        document = answered.read_text()
    try:
        dependencies: list[dict[str, Any]] = json.loads(document)["dependencies"]
    except (ValueError, KeyError, TypeError):
        raise NoAnswerError("pip-audit's answer cannot be read") from None
    return dependencies


def run(module: str, *arguments: str) -> tuple[str, str]:
    """Return what ``python -m module`` says, and the last line of its complaint, if any."""
    # Told to be quiet, pip prints no versions at all.
    env = {name: value for name, value in os.environ.items() if name != "PIP_QUIET"}
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{module}: no answer in {LONGEST_SECONDS} s") from None
    complaint = done.stderr.strip().rpartition("\n")[2]
    return done.stdout, f"{module}: {complaint}" if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A pytest plugin: what the quick suite leaves out is counted, by marker, at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

MARKERS = ("exhaustive", "browser", "keycloak")
LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        excluded = (name for name in MARKERS if f"not {name}" in item.config.option.markexpr)
        found = next((name for name in excluded if item.get_closest_marker(name)), None)
        if found:
            item.config.stash[LEFT_OUT][found] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that shares out the tests, where this is one of those that run them."""
    if hasattr(session.config, "workeroutput"):
        counts = session.config.stash[LEFT_OUT]
        session.config.workeroutput["left_out"] = dict(counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects all tests, so each says the same."""
    left_out: dict[str, int] = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[LEFT_OUT].update(Counter(left_out) - node.config.stash[LEFT_OUT])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if left_out := config.stash[LEFT_OUT]:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items()))
        terminalreporter.write_line(
            f"Left out: {counts} (python3 manage.py test --everything runs them all)"
        )

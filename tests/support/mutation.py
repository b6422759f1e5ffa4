"""
The mutation run's own pytest plugin; mutation.md says how that is started.

A module is judged by all tests of its own file, and of those that MORE names: the tool names the
tests that reach a function one by one, and pytest does not find each of these names again.

The tool calls each mutated function from a frame of its own, which holds the arguments. No site has
that frame, so the tests that look for secrets in errors overlook it.
"""

import os
from collections.abc import Iterator
from traceback import walk_tb
from types import FrameType, TracebackType

import pytest

MORE = {"grants": ["tests/web/test_logout.py", "tests/connections/test_links.py"]}


def pytest_configure(config: pytest.Config) -> None:
    from tests.support import malicious_server  # not before Django's settings are known

    patch = pytest.MonkeyPatch()
    patch.setattr(malicious_server, "walk_tb", _frames_of_a_site)
    config.add_cleanup(patch.undo)
    # "everifin_django.oauth.endpoints.x_post__mutmut_1"; one word while the tool prepares its run.
    path = os.environ["MUTANT_UNDER_TEST"].split(".")[1:-1]
    if path:
        *folders, module = path
        own = "/".join(["tests", *folders, f"test_{module}.py"])
        config.args = [own, *MORE.get(module, [])]


def _frames_of_a_site(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    for frame, line in walk_tb(traceback):
        if frame.f_globals["__name__"] != "mutmut.mutation.trampoline":
            yield frame, line

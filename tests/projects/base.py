"""What the settings of the small projects share: the suite's own, with another user model."""

from typing import Any

from tests.settings import *  # noqa: F403 - a project's settings are the suite's but for a few
from tests.settings import database


def databases(project: str) -> dict[str, Any]:
    """Return the suite's database; the tests' own gets a name that no run of the suite uses."""
    chosen = database()
    test = {**chosen.get("TEST", {}), "NAME": f"test_everifin_{project}"}
    return {"default": {**chosen, "TEST": test}}

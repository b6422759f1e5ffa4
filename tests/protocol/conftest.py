"""A second database, which tests of tenants make for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from tests.projects.tenants.routing import in_tenant


@pytest.fixture
def second_database(db: None, tmp_path: Path, settings: Any) -> Iterator[str]:
    """Give the alias of a second database with all tables; a context variable chooses."""
    alias, first = "other", connections["default"]
    name = str(tmp_path / "db") if first.vendor == "sqlite" else f"{first.settings_dict['NAME']}_o"
    own_settings = {**first.settings_dict, "TEST": {**first.settings_dict["TEST"], "NAME": name}}
    # Of this thread only. One that the settings name is refused within a TestCase.
    other: Any = type(first)(own_settings, alias)
    connections[alias] = other
    other.settings_dict["NAME"] = other.creation._create_test_db(0, autoclobber=True)
    call_command("migrate", database=alias, verbosity=0)
    settings.DATABASE_ROUTERS = ["tests.projects.tenants.routing.TenantRouter"]
    with in_tenant("default"):
        yield alias
    other.close()
    other.creation._destroy_test_db(other.settings_dict["NAME"], 0)
    del connections[alias]

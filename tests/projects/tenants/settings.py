"""A site with a database for each tenant, which a router chooses, and none called "default"."""

import tempfile
from pathlib import Path

from tests.projects.base import *  # noqa: F403 - as said there
from tests.projects.base import MIDDLEWARE
from tests.settings import database

ROOT_URLCONF = "tests.projects.tenants.urls"
MIDDLEWARE = ["tests.projects.tenants.routing.choose_tenant", *MIDDLEWARE]
DATABASE_ROUTERS = ["tests.projects.tenants.routing.TenantRouter"]


def tenant(name: str) -> dict[str, object]:
    chosen = database()
    test: dict[str, object] = {**chosen.get("TEST", {}), "DEPENDENCIES": []}
    test["NAME"] = f"test_everifin_tenant_{name}"
    if chosen["ENGINE"] == "django.db.backends.sqlite3":
        test["NAME"] = str(Path(tempfile.mkdtemp()) / f"{name}.sqlite3")
    return {**chosen, "ATOMIC_REQUESTS": True, "TEST": test}


DATABASES = {"default": {}, "one": tenant("one"), "two": tenant("two")}

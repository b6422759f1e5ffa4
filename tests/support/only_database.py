"""A pytest plugin: ``--only-database`` runs the tests that use the database, and no others."""

from __future__ import annotations

import pytest

FIXTURES = frozenset({"db", "transactional_db", "django_db_setup", "live_server"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-database",
        action="store_true",
        help="leave out the tests that do the same on every database, because they use none",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("only_database"):
        return
    others = [item for item in items if not uses_database(item)]
    items[:] = [item for item in items if uses_database(item)]
    config.hook.pytest_deselected(items=others)


def uses_database(item: pytest.Item) -> bool:
    """
    Does *item* have a mark or a fixture of pytest-django's? Without one, no test reaches a database
    in its own process; those that start a site of their own are marked ``django_db`` as well.
    """
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return not FIXTURES.isdisjoint(fixtures) or item.get_closest_marker("django_db") is not None

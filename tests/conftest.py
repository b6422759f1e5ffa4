"""Surroundings every test has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from everifin_django.models import BankToken
from tests.providers.keycloak import distribution
from tests.providers.keycloak.server import Keycloak, Realm, keycloak
from tests.support.servers import AbsentError

pytest_plugins = ["pytester", "tests.support.left_out", "tests.support.only_database"]


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """
    Put SQLite's test database into a file of this process.

    Threads that share one database in memory meet locks no site ever sees, and no timeout helps.
    """
    if connection.vendor == "sqlite":
        name = tmp_path_factory.mktemp("database") / "test.sqlite3"
        connection.settings_dict["TEST"]["NAME"] = str(name)


@pytest.fixture(autouse=True)
def loggers_stay_enabled() -> Iterator[None]:
    """Fail a test that leaves a logger of the package disabled, because later ones read the log."""
    yield
    loggers = logging.root.manager.loggerDict
    ours = [name for name in loggers if name.partition(".")[0] == "everifin_django"]
    assert not [name for name in ours if logging.getLogger(name).disabled]


@pytest.fixture
def connected(client, everifin, everifin_connect, django_user_model) -> BankToken:
    """A live connection, made through the real views; ``client`` is logged in as its user."""
    user = django_user_model.objects.create_user("holder")
    client.force_login(user)
    everifin_connect(client)
    return BankToken.objects.select_related("user").get(user=user)


@pytest.fixture
def age() -> Callable[..., None]:
    """Give a function that makes a connection's tokens older, as if time had passed."""

    def age(connection: Any, **passed: Any) -> None:
        by = timedelta(**passed)
        BankToken.objects.filter(pk=connection.pk).update(
            issued_at=connection.issued_at - by,
            access_expires_at=connection.access_expires_at - by,
        )

    return age


@pytest.fixture(scope="session")
def real_keycloak() -> Iterator[Keycloak]:
    """Give a running Keycloak, started once."""
    try:
        with keycloak(distribution.chosen_version()) as server:
            yield server
    except AbsentError as absence:
        pytest.skip(f"Keycloak: {absence}")


@pytest.fixture(scope="session")
def realm(real_keycloak: Keycloak) -> Realm:
    """Give the realm ``everifin_app`` of a running Keycloak, with alice and bob."""
    return real_keycloak.import_realm("everifin_app")

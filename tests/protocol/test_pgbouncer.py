"""Behind pgbouncer with transaction pooling, a refresh inside a transaction holds what docs say."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.db.models import F

from everifin_django.models import BankToken
from tests.support.servers import AbsentError, home, programs

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.protocol.site"),
    pytest.mark.skipif(
        "connections['default'].vendor != 'postgresql'", reason="pgbouncer is PostgreSQL's"
    ),
]
PORT = 6432
START_SECONDS = 20


@pytest.fixture
def pool_size(request: Any) -> int:
    return int(request.param)


@pytest.fixture
def pgbouncer(transactional_db: None, pool_size: int, monkeypatch: Any) -> Iterator[None]:
    """Let the site reach its database through a pgbouncer with *pool_size* server connections."""
    try:
        [program] = programs("pgbouncer", "pgbouncer")
    except AbsentError as absence:
        pytest.skip(f"pgbouncer: {absence}")
    connection: Any = connections["default"]
    settings, reached = connection.settings_dict, connection.get_connection_params()
    with home("postgres") as server_home:
        config = server_home.directory / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={reached['host']} user={reached['user']}\n"
            f"[pgbouncer]\nlisten_addr =\nlisten_port = {PORT}\n"
            f"unix_socket_dir = {server_home.directory}\nauth_type = any\npool_mode = transaction\n"
            f"default_pool_size = {pool_size}\nlogfile =\n"
        )
        config.chmod(0o644)
        process = server_home.start(program, str(config))
        try:
            wait_for(server_home.directory / f".s.PGSQL.{PORT}", process)
            connections["default"].close()
            for name, value in behind(server_home.directory, settings).items():
                monkeypatch.setitem(settings, name, value)
            yield
        finally:
            connections["default"].close()
            monkeypatch.undo()
            process.terminate()
            process.wait()


def behind(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a site behind pgbouncer writes into DATABASES, and ATOMIC_REQUESTS."""
    options = {name: value for name, value in settings["OPTIONS"].items() if name != "host"}
    reached = {"HOST": str(directory), "PORT": str(PORT), "OPTIONS": options}
    return {**reached, "DISABLE_SERVER_SIDE_CURSORS": True, "ATOMIC_REQUESTS": True}


def wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not socket.exists():
        assert process.poll() is None, f"pgbouncer ended: {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def let_token_run_out() -> None:
    BankToken.objects.update(
        issued_at=F("issued_at") - timedelta(minutes=6),
        access_expires_at=F("access_expires_at") - timedelta(minutes=6),
    )


@pytest.mark.parametrize("pool_size", [2], indirect=True)
def test_with_room_the_refresh_is_done_beside_the_transaction(
    pgbouncer, connected, everifin, client
):
    let_token_run_out()
    assert client.get("/unmarked/").status_code == 200
    let_token_run_out()
    with pytest.raises(ZeroDivisionError):
        client.get("/unmarked-then-error/")
    assert BankToken.objects.get().token_version == 3


@pytest.mark.parametrize("pool_size", [1], indirect=True)
def test_without_room_it_is_done_after_the_rollback(
    pgbouncer, connected, everifin, client, settings
):
    settings.EVERIFIN_DEADLINE_SECONDS = 2
    let_token_run_out()
    answer = client.get("/unmarked/")
    assert (answer.status_code, answer["Retry-After"]) == (503, "1")
    assert everifin.calls["token.refresh_token"] == 1
    assert client.get("/unmarked/").status_code == 200
    assert everifin.calls["token.refresh_token"] == 1

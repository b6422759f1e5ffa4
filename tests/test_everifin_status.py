"""``everifin_status``: how the connections are, for people and for monitoring."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection as database
from django.utils import timezone

from everifin_django.connections import bulk_disconnect, last_success
from everifin_django.management import status
from everifin_django.models import BankToken, PendingRevocation, health_at
from everifin_django.testing.factories import BankTokenFactory, PendingRevocationFactory

pytestmark = pytest.mark.django_db


def run(*options: str) -> tuple[str, int]:
    """What the command prints, and its exit code."""
    written = StringIO()
    try:
        call_command("everifin_status", *options, stdout=written)
    except SystemExit as end:
        return written.getvalue(), int(str(end.code))
    return written.getvalue(), 0


@pytest.fixture
def connections() -> dict[str, Any]:
    """One connection of each health."""
    now = timezone.now()
    later = now + timedelta(days=30)
    return {
        "active": BankTokenFactory(refresh_expires_at=later, refreshed_at=now),
        "expiring": BankTokenFactory(
            issued_at=now - timedelta(hours=9), refresh_expires_at=now + timedelta(hours=1)
        ),
        "degraded": BankTokenFactory(
            failures=2, last_error="unavailable", refresh_expires_at=later
        ),
        "needs_reconnect": BankTokenFactory(status="needs_reconnect", last_error="invalid_grant"),
        "disconnected": BankTokenFactory(
            status="disconnected",
            end_reason="logout",
            access_token=None,
            refresh_token=None,
        ),
    }


def test_there_may_be_nothing_to_tell():
    written, code = run()
    assert "active: 0\n" in written
    assert "next connection ends: none\n" in written
    assert "in the outbox: 0, the oldest from none\n" in written
    assert code == 0


def test_it_counts_by_health_and_by_reason(connections):
    written, code = run()
    assert code == 0
    assert written.startswith(
        "active: 1\n"
        "expiring: 1\n"
        "degraded: 1\n"
        "  unavailable: 1\n"
        "needs_reconnect: 1\n"
        "  invalid_grant: 1\n"
        "disconnected: 1\n"
        "  logout: 1\n"
    )
    assert "key test: 8 tokens\n" in written
    assert connections["expiring"].refresh_expires_at.isoformat(timespec="seconds") in written
    assert "last answer of the bank API: not known\n" in written


def test_the_database_says_what_health_says(connections):
    connections["moved"] = BankTokenFactory(encrypted_for="somebody else")
    now = timezone.now()
    rows: Any = BankToken.objects.annotate(health_now=health_at(now))
    for row in rows:
        assert row.health_now == row.health(now)


def test_it_shows_no_token_and_no_user(connections):
    PendingRevocationFactory()
    written = "".join(run(*options)[0] for options in ([], ["--json"], ["--prometheus", "-"]))
    for row in connections.values():
        for secret in (row.subject, row.user.get_username(), str(row.pk), row.refresh_ciphertext):
            assert not secret or secret not in written


def test_its_json_says_the_same(connections):
    PendingRevocationFactory()
    written, _ = run("--json")
    found = json.loads(written)
    assert found["connections"] == dict.fromkeys(BankToken.Health.values, 1)
    assert found["reasons"]["needs_reconnect"] == {"invalid_grant": 1}
    assert found["outbox"] == 1
    assert found["keys"] == {"test": 9}
    assert found["estimated"] == found["look"] == []


def test_large_tables_are_estimated_and_said_to_be(monkeypatch, connections):
    monkeypatch.setattr(status, "SAMPLE", 20)
    monkeypatch.setattr(status, "KEY_SAMPLE", 20)
    # Not what PostgreSQL knows of a table, which is of another time than the test's.
    monkeypatch.setattr(status, "_estimate", lambda rows: rows.count())
    PendingRevocationFactory.create_batch(21)
    for reason in ("invalid_grant", "answer_lost"):
        BankTokenFactory.create_batch(20, status="needs_reconnect", last_error=reason)
    BankTokenFactory.create_batch(39)
    written, _ = run()
    assert re.search(r"^  invalid_grant: about \d+$", written, re.MULTILINE)
    found = json.loads(run("--json")[0])
    assert found["estimated"] == ["connections", "keys", "outbox", "reasons"]
    assert found["outbox"] == 21
    assert abs(sum(found["connections"].values()) - 84) <= 8


@pytest.mark.parametrize("factory", [BankTokenFactory, PendingRevocationFactory])
def test_an_estimate_is_near_what_is_there(factory):
    rows = [factory() for _ in range(9)]
    with database.cursor() as cursor:
        if database.vendor == "postgresql":
            cursor.execute("ANALYZE")
    assert status._estimate(type(rows[0]).objects.all()) == 9


class TestMetrics:
    def test_they_are_in_the_text_format(self, connections):
        written, _ = run("--prometheus", "-")
        assert 'everifin_connections{health="degraded"} 1\n' in written
        reason = 'everifin_connections_by_reason{health="degraded",reason="unavailable"} 1\n'
        assert reason in written
        assert "\neverifin_outbox_entries 0\n" in written
        line = re.compile(r"# (HELP|TYPE) everifin_\w+ .+|everifin_\w+(\{.+\})? -?[\d.e+]+")
        assert [one for one in written.splitlines() if not line.fullmatch(one)] == []
        names = re.findall(r"^# TYPE (\w+) ", written, re.MULTILINE)
        assert len(names) == len(set(names))

    def test_a_word_of_everifins_cannot_break_a_line(self):
        BankTokenFactory(status="needs_reconnect", last_error='a"\\\nb')
        assert 'reason="a\\"\\\\\\nb"} 1\n' in run("--prometheus", "-")[0]

    def test_a_file_is_replaced_as_a_whole(self, connections, tmp_path):
        path = tmp_path / "everifin.prom"
        path.write_text("old", encoding="utf-8")
        assert run("--prometheus", str(path)) == ("", 0)
        assert "everifin_status_timestamp_seconds" in path.read_text(encoding="utf-8")
        assert [one.name for one in tmp_path.iterdir()] == ["everifin.prom"]
        assert path.stat().st_mode & 0o777 == 0o644

    def test_a_file_that_cannot_be_written_is_said(self, tmp_path):
        with pytest.raises(CommandError, match="cannot be written"):
            run("--prometheus", str(tmp_path / "absent" / "everifin.prom"))


class TestWhatToLookAt:
    def test_an_old_outbox(self):
        PendingRevocationFactory()
        assert run()[1] == 0
        PendingRevocation.objects.update(created_at=timezone.now() - timedelta(hours=2))
        written, code = run()
        assert "does everifin_housekeeping run?" in written
        assert code == 1
        assert run("--max-outbox-hours", "3")[1] == 0

    def test_an_incident_that_was_stopped(self):
        BankTokenFactory()
        bulk_disconnect.begin()
        written, code = run()
        assert "everifin_disconnect --resume" in written
        assert code == 1
        list(bulk_disconnect.move_all())
        assert run()[1] == 0

    def test_that_no_connection_can_be_refreshed(self):
        BankTokenFactory(failures=1)
        written, code = run()
        assert "no connection can be refreshed" in written
        assert code == 1

    def test_that_nothing_was_refreshed_for_long(self):
        BankTokenFactory(refreshed_at=timezone.now() - timedelta(days=2))
        written, code = run("--json")
        assert "no token was refreshed since" in written
        assert code == 1
        assert run("--max-refresh-hours", "72")[1] == 0


class TestLastAnswerOfTheBank:
    @pytest.fixture(autouse=True)
    def shared_cache(self, settings, tmp_path, monkeypatch):
        """A cache that processes share."""
        settings.CACHES = {
            "default": {
                "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
                "LOCATION": str(tmp_path),
            }
        }
        monkeypatch.setattr(last_success._Noted, "until", 0.0)

    def test_a_call_that_succeeds_is_noted_once_a_minute(self, client, connected, everifin):
        client.get("/accounts/")
        first = last_success.read()
        assert first is not None
        assert f"last answer of the bank API: {first.isoformat(timespec='seconds')}" in run()[0]
        cache.delete(last_success.KEY)
        client.get("/accounts/")
        assert last_success.read() is None

    def test_a_call_that_fails_is_not(self, client, connected, everifin):
        everifin.faults.add("api.accounts", status=503)
        client.get("/accounts/")
        assert last_success.read() is None

    def test_a_cache_that_fails_fails_no_call(self, client, connected, everifin, monkeypatch):
        def broken(*_: Any, **__: Any) -> None:
            raise OSError("down")

        monkeypatch.setattr("django.core.cache.backends.filebased.FileBasedCache.set", broken)
        assert client.get("/accounts/").status_code == 200

    @pytest.mark.parametrize("backend", ["locmem.LocMemCache", "dummy.DummyCache"])
    def test_a_cache_of_one_process_says_nothing(self, settings, client, connected, backend):
        settings.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}"}}
        client.get("/accounts/")
        assert last_success.read() is None

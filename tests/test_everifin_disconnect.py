"""``everifin_disconnect`` ends many connections after an incident."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from everifin_django.connections import bulk_disconnect
from everifin_django.models import BankToken, Incident, LoginSession, PendingRevocation
from everifin_django.testing.factories import BankTokenFactory, LoginSessionFactory

pytestmark = pytest.mark.django_db


def run(*options: str) -> str:
    written = StringIO()
    call_command("everifin_disconnect", *options, stdout=written)
    return written.getvalue()


def test_it_ends_every_connection_here_and_at_everifin(connected, everifin):
    BankToken.objects.update(connected_at=timezone.now() - timedelta(hours=1))
    written = run("--all", "--no-input")
    row = BankToken.objects.get()
    assert (row.status, row.end_reason) == ("disconnected", "incident")
    assert everifin.live_sessions() == 0
    assert not PendingRevocation.objects.exists()
    assert "They cannot be used any more.\nMoved to the outbox: 1.\n" in written
    assert "Ended at Everifin: 1, left for everifin_housekeeping: 0.\n" in written


def test_the_user_can_connect_again(client, connected, everifin, everifin_connect):
    run("--all", "--no-input")
    assert client.get("/accounts/").status_code == 302
    everifin_connect(client)
    assert client.get("/accounts/").status_code == 200


def test_a_dry_run_changes_nothing():
    BankTokenFactory.create_batch(2)
    LoginSessionFactory(refresh_token="of another browser")
    before = list(BankToken.objects.values())
    written = run("--all", "--dry-run")
    assert written == "Connections, and grants of logins in other browsers: 3.\n"
    assert list(BankToken.objects.values()) == before
    assert not Incident.objects.exists()


@pytest.mark.parametrize("answer", ["no", "", "y"])
def test_only_yes_ends_anything(monkeypatch, answer):
    BankTokenFactory()
    monkeypatch.setattr("builtins.input", lambda _: answer)
    with pytest.raises(CommandError, match="Nothing was ended"):
        run("--all")
    assert not Incident.objects.exists()


def test_yes_does(monkeypatch, everifin):
    BankTokenFactory()
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    run("--all")
    assert BankToken.objects.get().status == "disconnected"


def test_what_was_stopped_goes_on(everifin, monkeypatch):
    monkeypatch.setattr(bulk_disconnect, "COPIED_AT_ONCE", 1)
    BankTokenFactory.create_batch(2)
    bulk_disconnect.begin()
    next(bulk_disconnect.move_all(1))
    assert "Moved to the outbox: 1.\n" in run("--resume", "--no-revoke")
    assert PendingRevocation.objects.count() == 2
    assert everifin.calls["logout"] == 0
    assert "Ended at Everifin: 2" in run("--resume")


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    BankTokenFactory()

    def interrupted(_size: int, **_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bulk_disconnect, "move_all", interrupted)
    with pytest.raises(CommandError, match="--resume or everifin_housekeeping goes on"):
        run("--all", "--no-input")
    assert bulk_disconnect.is_anything_left()


def test_the_connections_of_users_by_name(everifin):
    mine, yours, others = BankTokenFactory.create_batch(3)
    LoginSessionFactory(user=mine.user, refresh_token="of another browser")
    names = [row.user.get_username() for row in (mine, yours)]
    run("--user", names[0], "--user", names[1], "--no-input")
    assert list(BankToken.objects.filter(status="active")) == [others]
    assert not LoginSession.objects.exclude(refresh_ciphertext="").exists()
    assert everifin.calls["logout"] == 3


@pytest.mark.parametrize("since", ["date", "datetime"])
def test_connections_that_were_made_or_refreshed_since(everifin, since):
    old: Any = BankTokenFactory(issued_at=timezone.now() - timedelta(days=3))
    BankTokenFactory()
    when = timezone.now() - timedelta(days=1)
    run("--since", when.date().isoformat() if since == "date" else when.isoformat(), "--no-input")
    assert list(BankToken.objects.filter(status="active")) == [old]


def test_connections_encrypted_with_a_key(everifin):
    BankTokenFactory()
    assert ": 0.\n" in run("--encrypted-by", "other", "--no-input")
    assert "Ended at Everifin: 1" in run("--encrypted-by", "test", "--no-input")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "Say which connections"),
        (["--all", "--user", "ann"], "Say which connections"),
        (["--all", "--since", "2026-01-01"], "Say which connections"),
        (["--user", "nobody"], "no user 'nobody'"),
        (["--encrypted-by", "a:key"], "the part before the colon"),
        (["--since", "yesterday"], "takes a date or datetime"),
        (["--since", "2026-13-01"], "takes a date or datetime"),
        (["--all", "--batch-size", "0"], "at least 1"),
        (["--all", "--workers", "0"], "at least 1"),
    ],
)
def test_it_refuses_what_does_not_say_which_connections(options, complaint):
    with pytest.raises(CommandError, match=complaint):
        run(*options, "--no-input")


def test_no_key_and_no_setting_are_needed_to_end_them_here(settings):
    BankTokenFactory()
    settings.EVERIFIN_ENCRYPTION_KEYS = []
    settings.EVERIFIN_CLIENT_SECRET = ""
    run("--all", "--no-input")
    assert BankToken.objects.get().status == "disconnected"
    assert PendingRevocation.objects.count() == 1

"""Signals of a connection's health: once each, and no receiver stops anything."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from everifin_django.connections import refresh, refresh_now
from everifin_django.exceptions import UnavailableError
from everifin_django.models import BankToken, EndpointState
from everifin_django.signals import (
    client_refused,
    connection_degraded,
    connection_recovered,
    refresh_failed,
)
from everifin_django.testing.factories import BankTokenFactory

pytestmark = pytest.mark.django_db

SIGNALS = {
    "failed": refresh_failed,
    "degraded": connection_degraded,
    "recovered": connection_recovered,
    "refused": client_refused,
}


@contextmanager
def heard():
    """Give a list of the names of the signals that are sent; each receiver also raises."""
    names: list[str] = []

    def receiver_of(name: str) -> Any:
        def receive(**kwargs: Any) -> None:
            names.append(name)
            raise ZeroDivisionError

        return receive

    receivers = {name: receiver_of(name) for name in SIGNALS}
    for name, signal in SIGNALS.items():
        signal.connect(receivers[name])
    try:
        yield names
    finally:
        for name, signal in SIGNALS.items():
            signal.disconnect(receivers[name])


def try_again(user: Any) -> None:
    """Refresh once more, as if every pause were over."""
    refresh.clear_pauses()
    passed = timezone.now() - timedelta(seconds=1)
    BankToken.objects.update(retry_after=None)
    EndpointState.objects.update(paused_until=passed)
    refresh_now(user)


def test_a_connection_degrades_and_recovers_once(connected, everifin):
    everifin.faults.add("token.refresh_token", status=503, times=2)
    with heard() as names:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                try_again(connected.user)
        with pytest.raises(UnavailableError):
            refresh_now(connected.user)  # meets the pause, and sends nothing
        for _ in range(2):
            try_again(connected.user)
    assert names == ["failed", "degraded", "failed", "recovered"]


def test_a_refused_client_is_told_of_once_an_hour(connected, everifin):
    another = BankTokenFactory()
    everifin.faults.add(
        "token.refresh_token",
        status=401,
        body='{"error": "invalid_client"}',
        content_type="application/json",
    )
    with heard() as names:
        for user in (connected.user, another.user, connected.user):
            with pytest.raises(UnavailableError):
                try_again(user)
        assert names.count("refused") == 1
        EndpointState.objects.update(client_refused_at=timezone.now() - timedelta(minutes=61))
        with pytest.raises(UnavailableError):
            try_again(another.user)
    assert names.count("refused") == 2


def test_refresh_now_gives_new_tokens_however_good_the_old_ones_are(connected, everifin):
    before = connected.token_version
    assert refresh_now(connected.user).token_version == before + 1
    assert everifin.calls["token.refresh_token"] == 1


def test_tokens_of_a_pause_that_another_process_met_are_not_refreshed(connected, everifin):
    everifin.faults.add("token.refresh_token", status=503, retry_after=600)
    other = BankTokenFactory()
    with pytest.raises(UnavailableError):
        refresh_now(connected.user)
    refresh.clear_pauses()  # as in another process
    with pytest.raises(UnavailableError) as caught:
        refresh_now(other.user)
    assert everifin.calls["token.refresh_token"] == 1
    assert 590 < (caught.value.retry_after_seconds or 0) <= 600

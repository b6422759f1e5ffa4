"""F8 and F9: however many workers ask for a token while Everifin is down, few requests go out."""

from __future__ import annotations

import pytest
import requests

from everifin_django.models import BankToken
from tests.protocol.load import generate_load, most_tries, room

pytestmark = pytest.mark.django_db(transaction=True)

WITHOUT_SANDBOX = requests.Session.get_adapter
SECONDS = 1


@pytest.fixture
def overdue(connected, age):
    age(connected, minutes=6)
    return connected


def assert_pauses_were_kept(row: BankToken, reason: str, calls: float, seconds: float) -> None:
    """There were as many tries as the pauses allow, of so many *calls* each; nothing is lost."""
    row.refresh_from_db()
    assert (row.status, row.token_version, row.last_error) == ("active", 1, reason)
    assert 1 <= row.failures <= most_tries(seconds)
    assert calls == row.failures


@pytest.mark.parametrize(
    ("fault", "reason", "calls_a_try"),
    [
        ({"status": 503}, "unavailable", 1),
        # What was lost is repeated at once, and only once.
        ({"lost": "before"}, "answer_lost", 2),
    ],
    ids=["503", "lost"],
)
def test_an_everifin_that_is_down_is_left_alone(overdue, everifin, fault, reason, calls_a_try):
    everifin.faults.add("token.refresh_token", **fault)
    outcomes, seconds = generate_load(overdue.user, workers=room(), seconds=SECONDS)
    assert set(outcomes) == {"UnavailableError"}
    assert outcomes.total() >= room()
    calls = everifin.calls["token.refresh_token"]
    assert_pauses_were_kept(overdue, reason, calls / calls_a_try, seconds)


def test_an_everifin_that_refuses_connections_is_left_alone(overdue, monkeypatch, settings):
    settings.EVERIFIN_IDP_URL = "http://127.0.0.1:9"  # where nobody listens
    settings.DEBUG = True
    sent = []

    def get_adapter(session, url):
        sent.append(url)
        return WITHOUT_SANDBOX(session, url)

    with monkeypatch.context() as patch:
        patch.setattr(requests.Session, "get_adapter", get_adapter)
        outcomes, seconds = generate_load(overdue.user, workers=room(), seconds=SECONDS)
    assert set(outcomes) == {"UnavailableError"}
    assert outcomes.total() >= room()
    # Nothing was spent, so it is repeated at once, and only once.
    assert_pauses_were_kept(overdue, "unreachable", len(sent) / 2, seconds)

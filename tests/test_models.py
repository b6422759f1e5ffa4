"""What is kept: the connection, the outbox, the spent states."""

import pickle
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.utils import timezone

from everifin_django.exceptions import TamperedError
from everifin_django.models import BankToken, DatabaseNow, PendingRevocation, in_database_seconds
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from everifin_django.testing.factories import (
    BankTokenFactory,
    LoginFlowFactory,
    PendingRevocationFactory,
    SpentStateFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


def test_tokens_lie_as_ciphertext_and_open_only_by_an_explicit_call():
    row = BankTokenFactory(access_token="canary-access", id_token="canary-id")
    dumped = repr(BankToken.objects.values().get()) + repr(vars(row)) + str(pickle.dumps(row))
    assert "canary" not in dumped
    assert row.open_token("access") == Secret("canary-access")
    assert row.open_token("id") == Secret("canary-id")


def test_a_token_that_is_not_there_is_none():
    assert BankTokenFactory(id_token=None).open_token("id") is None


@pytest.mark.parametrize("column", ["refresh_ciphertext", "id_ciphertext"])
def test_a_ciphertext_copied_to_another_column_does_not_open(column):
    row = BankTokenFactory()
    setattr(row, column, row.access_ciphertext)
    with pytest.raises(TamperedError):
        row.open_token(column.removesuffix("_ciphertext"))


def test_a_ciphertext_copied_to_another_user_does_not_open():
    row, other = BankTokenFactory(), BankTokenFactory()
    BankToken.objects.filter(pk=other.pk).update(access_ciphertext=row.access_ciphertext)
    other.refresh_from_db()
    with pytest.raises(TamperedError):
        other.open_token("access")


def test_a_connection_moved_to_another_user_does_not_open():
    row = BankTokenFactory()
    row.user = UserFactory()
    with pytest.raises(TamperedError):
        row.open_token("refresh")


def test_an_identity_belongs_to_one_user_only():
    row = BankTokenFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        BankTokenFactory(issuer=row.issuer, subject=row.subject)


@pytest.mark.parametrize("subject", ["Alice", "alice ", "\u0131lice", "\u00e1lice"])
def test_identities_are_compared_by_bytes_on_every_database(subject):
    BankTokenFactory(subject="alice")
    other = BankTokenFactory(subject=subject)
    found = BankToken.objects.filter(identity_digest=Identity(other.issuer, subject).digest)
    assert [row.pk for row in found] == [other.pk]


def test_many_connections_may_have_no_known_identity():
    BankTokenFactory(subject="")
    BankTokenFactory(subject="")
    assert BankToken.objects.filter(identity_digest=None).count() == 2


def test_the_windows_are_the_margin_and_a_quarter_of_it():
    row = BankTokenFactory.build(user=UserFactory())
    assert row.access_expires_at - row.due_at(60) == timedelta(seconds=60)
    assert row.access_expires_at - row.overdue_at(60) == timedelta(seconds=15)


def test_the_windows_of_a_short_lived_token_shrink_with_its_life():
    now = timezone.now()
    row = BankToken(issued_at=now, access_expires_at=now + timedelta(seconds=4))
    assert row.due_at(60) == now + timedelta(seconds=2)
    assert row.overdue_at(60) == now + timedelta(seconds=3.5)


def test_a_connection_without_an_expiry_is_due_at_once():
    assert BankToken().due_at(60) < timezone.now()


@pytest.mark.parametrize(
    ("columns", "health"),
    [
        ({}, "active"),
        ({"failures": 1}, "degraded"),
        ({"status": "needs_reconnect", "failures": 1}, "needs_reconnect"),
        ({"status": "disconnected"}, "disconnected"),
        ({"issued_at": timezone.now() - timedelta(minutes=25)}, "expiring"),
        ({"issued_at": timezone.now() - timedelta(minutes=35)}, "expiring"),
        ({"refresh_expires_at": None}, "active"),
    ],
)
def test_health_says_what_a_person_wants_to_know(columns, health):
    assert BankTokenFactory(**columns).health() == health


def test_a_long_lived_connection_expires_a_day_ahead():
    now = timezone.now()
    row = BankToken(
        issued_at=now - timedelta(days=29), refresh_expires_at=now + timedelta(hours=23)
    )
    assert row.health() == BankToken.Health.EXPIRING
    assert row.health(now - timedelta(days=1)) == BankToken.Health.ACTIVE


def test_the_database_clock_is_utc_and_close_to_ours():
    row = BankTokenFactory()
    said: Any = BankToken.objects.annotate(at=DatabaseNow(), later=in_database_seconds(30)).get(
        pk=row.pk
    )
    assert abs(said.at - timezone.now()) < timedelta(minutes=1)
    assert timedelta(seconds=29) < said.later - said.at < timedelta(seconds=31)


@pytest.mark.parametrize(
    ("columns", "is_claimable"),
    [
        ({}, True),
        ({"status": "needs_reconnect"}, False),
        ({"status": "disconnected"}, False),
        ({"lease_until": in_database_seconds(30)}, False),
        ({"lease_until": in_database_seconds(-1)}, True),
        ({"retry_after": in_database_seconds(30)}, False),
        ({"retry_after": in_database_seconds(-1)}, True),
    ],
)
def test_a_connection_is_claimed_when_nobody_has_it_and_it_may_be_tried(columns, is_claimable):
    row = BankTokenFactory()
    BankToken.objects.filter(pk=row.pk).update(**columns)
    assert BankToken.objects.claimable().exists() is is_claimable


def test_an_outbox_entry_opens_with_the_place_it_was_sealed_for():
    pending = PendingRevocationFactory(refresh_token="canary")
    assert pending.open_token() == Secret("canary")
    pending.user_pk = "2"
    with pytest.raises(TamperedError):
        pending.open_token()


def test_no_row_says_more_than_its_own_name():
    assert str(BankTokenFactory.build(user=UserFactory(), id="an-id")) == "an-id"
    assert str(PendingRevocation(connection_id="an-id", reason="logout")) == "an-id (logout)"
    assert "20" in str(SpentStateFactory())
    assert "20" in str(LoginFlowFactory())


def test_every_change_of_a_model_has_its_migration():
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)

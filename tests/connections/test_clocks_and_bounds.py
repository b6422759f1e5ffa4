"""One clock in each comparison, and a bound for each number and string that a column holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection, connections
from django.utils import timezone

from everifin_django.bank.payments import SinglePayment
from everifin_django.connections import grants, ledger, revocation
from everifin_django.connections.refresh import ensure_fresh
from everifin_django.exceptions import ConsentExpiredError, UnavailableError
from everifin_django.models import (
    MOST_COUNTED,
    BankToken,
    LogoutSeen,
    Payment,
    PendingRevocation,
    in_database_seconds,
)
from everifin_django.oauth.id_token import Identity
from everifin_django.testing.factories import (
    BankTokenFactory,
    PaymentFactory,
    PendingRevocationFactory,
    UserFactory,
)
from everifin_django.testing.sandbox.data import iban
from everifin_django.web import backchannel_logout, payment_views

pytestmark = pytest.mark.django_db

ZONES = ["America/New_York", "UTC", "Asia/Kolkata", "Pacific/Kiritimati"]
without_offsets = pytest.mark.skipif(
    "connection.vendor not in ('sqlite', 'mysql')",
    reason="PostgreSQL stores datetimes with their offset",
)


@pytest.fixture(params=ZONES)
def naive_site(request, settings):
    """A site with USE_TZ = False."""
    settings.USE_TZ = False
    settings.TIME_ZONE = request.param


@pytest.fixture(params=ZONES)
def zoned_database(request, monkeypatch):
    """A database whose entry in DATABASES has a TIME_ZONE."""
    ours: Any = connections["default"]
    monkeypatch.setitem(ours.settings_dict, "TIME_ZONE", request.param)
    for name in ("timezone", "timezone_name"):
        ours.__dict__.pop(name, None)
    yield
    for name in ("timezone", "timezone_name"):
        ours.__dict__.pop(name, None)


def assert_clocks_agree(everifin: Any) -> None:
    now = timezone.now()
    live = PendingRevocationFactory(expires_at=now + timedelta(minutes=30))
    revocation.revoke_due()
    assert everifin.calls["logout"] == 1, "a live grant is ended first"
    assert not PendingRevocation.objects.filter(pk=live.pk).exists()
    PendingRevocationFactory(expires_at=now - timedelta(minutes=30))
    revocation.revoke_due()
    assert everifin.calls["logout"] == 1

    for name in ("lease_until", "retry_after"):
        row = BankTokenFactory()
        BankToken.objects.filter(pk=row.pk).update(**{name: now + timedelta(minutes=5)})
        assert not BankToken.objects.filter(pk=row.pk).claimable().exists()
        BankToken.objects.filter(pk=row.pk).update(**{name: now - timedelta(minutes=5)})
        assert BankToken.objects.filter(pk=row.pk).claimable().exists()
        BankToken.objects.filter(pk=row.pk).update(**{name: in_database_seconds(300)})
        row.refresh_from_db()
        assert abs(getattr(row, name) - now - timedelta(minutes=5)) < timedelta(minutes=2)


def test_a_site_with_naive_datetimes_has_one_clock(everifin, naive_site):
    assert_clocks_agree(everifin)


def test_a_site_with_naive_datetimes_refreshes(everifin, naive_site, django_user_model):
    user = django_user_model.objects.create_user("ann")
    everifin.connect(user)
    assert grants.get_access_token(user).version == 1
    BankToken.objects.update(
        issued_at=timezone.now() - timedelta(minutes=6), access_expires_at=timezone.now()
    )
    assert grants.get_access_token(user).version == 2
    assert BankToken.objects.get().health() == BankToken.Health.ACTIVE


@without_offsets
def test_a_database_with_a_time_zone_of_its_own_has_one_clock(everifin, zoned_database):
    assert_clocks_agree(everifin)


@pytest.mark.parametrize(
    "ends_at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)]
)
def test_no_datetime_of_a_row_overflows(ends_at):
    row = BankToken(issued_at=timezone.now(), access_expires_at=ends_at, refresh_expires_at=ends_at)
    assert (row.overdue_at(60) > timezone.now()) == (ends_at.year > 2026)
    assert row.due_at(60) <= row.overdue_at(60)
    assert row.health() in BankToken.Health


@pytest.fixture
def overdue(connected, age) -> BankToken:
    age(connected, minutes=6)
    return BankToken.objects.select_related("user").get()


@pytest.mark.parametrize("name", ["lease_until", "retry_after"])
def test_a_lease_or_pause_further_ahead_than_any_we_write_is_not_believed(overdue, everifin, name):
    BankToken.objects.update(**{name: in_database_seconds(400 * 24 * 3600)})
    assert ensure_fresh(overdue.user).token_version == 2


def test_a_pause_of_the_outbox_further_ahead_than_any_we_write_is_not_believed(everifin):
    PendingRevocationFactory(retry_after=timezone.now() + timedelta(days=400))
    assert revocation.revoke_due() == (1, 0)


@pytest.mark.parametrize("attempts", [70, 10_000, MOST_COUNTED, 2**31 - 1])
def test_any_number_of_attempts_gives_a_pause_and_fits_into_its_column(everifin, attempts):
    everifin.faults.add("logout", status=503)
    pending = PendingRevocationFactory(attempts=attempts)
    assert not revocation.revoke(pending)
    pending.refresh_from_db()
    assert 0 < pending.attempts <= 2**31 - 1
    assert pending.attempts != attempts
    assert pending.retry_after < timezone.now() + timedelta(hours=2)


def test_any_number_of_failures_fits_into_its_column(overdue, everifin):
    BankToken.objects.update(failures=2**31 - 1)
    everifin.faults.add("token.refresh_token", status=503)
    with pytest.raises(UnavailableError):
        ensure_fresh(overdue.user)
    assert BankToken.objects.get().failures == MOST_COUNTED


def test_a_version_at_the_end_of_its_column_goes_on(overdue, everifin):
    BankToken.objects.update(token_version=2**63 - 1)
    assert ensure_fresh(overdue.user).token_version == 1
    assert grants.disconnect(overdue.user)


def test_a_reason_of_any_length_disconnects(connected, everifin):
    assert grants.disconnect(connected.user, "r" * 300)
    assert BankToken.objects.get().status == "disconnected"
    assert connection.vendor


def test_a_payment_whose_lease_ends_later_than_any_of_ours_is_not_worked_on():
    row = PaymentFactory(state=Payment.State.SENDING)
    Payment.objects.update(lease_until=in_database_seconds(60))
    assert ledger.expire_lease(ledger.reread(row)).state == Payment.State.SENDING
    Payment.objects.update(lease_until=in_database_seconds(400 * 24 * 3600))
    assert ledger.expire_lease(ledger.reread(row)).state == Payment.State.UNCERTAIN


def test_a_payment_that_was_looked_at_in_the_future_is_looked_at():
    assert payment_views._may_look(Payment(looked_at=timezone.now() + timedelta(days=400)))
    assert not payment_views._may_look(Payment(looked_at=timezone.now()))


def test_a_logout_in_the_future_bars_nobody_from_logging_in(everifin, client, settings):
    settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
    alice = Identity(everifin.issuer, everifin.user("alice").sub)
    digest = backchannel_logout.identity_digest_of(alice)
    LogoutSeen.objects.create(digest=digest, seen_at=timezone.now() + timedelta(days=400))
    assert everifin.visit(client, "login").status_code == 302
    assert client.session["_auth_user_id"]


def test_a_next_url_that_the_column_cannot_hold_is_left_out(django_user_model):
    user = django_user_model.objects.create_user("payer")
    payment = SinglePayment(
        amount=Decimal(1), currency="EUR", recipient_iban=iban("SK", "9991", 7), recipient_name="A"
    )
    assert ledger.record(user, "1", payment, next_url="/" + "n" * 2000).next_url == ""
    assert ledger.record(user, "2", payment, next_url="/" + "n" * 1999).next_url


def test_a_verified_email_longer_than_the_users_field_is_left_out(
    everifin, client, django_user_model, monkeypatch
):
    monkeypatch.setattr(django_user_model._meta.get_field("email"), "max_length", 10)
    assert everifin.visit(client, "login").status_code == 302
    assert django_user_model.objects.get().email == ""


@pytest.mark.parametrize("status", ["strange", ""])
def test_with_an_unknown_status_the_user_connects_again(overdue, everifin, status):
    BankToken.objects.update(status=status)
    with pytest.raises(ConsentExpiredError):
        ensure_fresh(overdue.user)
    assert BankToken.objects.get().health() == BankToken.Health.NEEDS_RECONNECT
    assert everifin.calls["token.refresh_token"] == 0


class TestAMovedRow:
    """A row that was given to another user holds tokens that this user cannot open."""

    @pytest.fixture
    def moved(self, connected) -> BankToken:
        BankToken.objects.update(user=UserFactory())
        return BankToken.objects.select_related("user").get()

    @pytest.mark.parametrize("minutes", [0, 6])
    @pytest.mark.urls("tests.protocol.site")
    def test_the_user_is_asked_to_connect_again_and_nothing_is_sent(
        self, moved, everifin, client, age, minutes
    ):
        age(moved, minutes=minutes)
        client.force_login(moved.user)
        answer = client.get("/accounts/", headers={"accept": "text/html"})
        assert answer.status_code == 302
        assert answer["Location"].startswith("/everifin/connect/")
        assert moved.health() == BankToken.Health.NEEDS_RECONNECT
        assert everifin.calls["token.refresh_token"] == 0
        moved.refresh_from_db()
        assert moved.status == "active"

    def test_connecting_ends_the_grant_of_the_other_user(self, moved, everifin):
        assert everifin.live_sessions() == 1
        everifin.connect(moved.user, "bob")
        revocation.revoke_due()
        assert not PendingRevocation.objects.exists()
        assert everifin.live_sessions() == 1
        assert ensure_fresh(moved.user).open_token("access") is not None

    def test_disconnecting_ends_it_as_well(self, moved, everifin):
        assert grants.disconnect(moved.user)
        assert everifin.live_sessions() == 0

"""The selections of connections say what each row says of itself."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everifin_django.models import BankToken, Payment, health_at
from everifin_django.testing.factories import BankTokenFactory, PaymentFactory

pytestmark = pytest.mark.django_db

NOW = timezone.now().replace(microsecond=123_456)
SECONDS = [0, 1, 10, 600, 1800, 86_400, 30 * 86_400]
KNOWN_TIMES = st.builds(
    lambda seconds, sign, micros: NOW + timedelta(seconds=sign * seconds, microseconds=micros),
    st.sampled_from(SECONDS),
    st.sampled_from([-1, 1]),
    st.integers(-2, 2),
)
TIMES = st.none() | KNOWN_TIMES
SCOPES = ["openid", "ais", "pis", "AIS", "offline_access", "a%s", "o_en_d", "a.s"]
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


def accented(word: str) -> str:
    return word.replace("e", "é")


def similar_to(words: list[str]) -> st.SearchStrategy[str]:
    """The words, what MySQL takes for them, and any other string that fits into the column."""
    changes = (str, str.upper, str.title, "{} ".format, " {}".format, "{}\t".format, accented)
    changed = st.builds(
        lambda word, change: change(word)[:16], st.sampled_from(words), st.sampled_from(changes)
    )
    return st.sampled_from([*words, "", "a", "zz"]) | changed | st.text(CHARACTERS, max_size=16)


ROWS = st.fixed_dictionaries(
    {
        "status": similar_to(BankToken.Status.values),
        "encrypted_for": st.sampled_from(["", "own", "other"]),
        "issued_at": TIMES,
        "access_expires_at": TIMES,
        "refresh_expires_at": TIMES,
        "failures": st.sampled_from([0, 1, 1_000_000]),
        "rejected_at": TIMES,
        "updated_at": KNOWN_TIMES,
        "refresh_ciphertext": st.sampled_from(["", "something"]),
        "scope": st.lists(st.sampled_from(SCOPES), unique=True).map(" ".join),
    }
)
WITHIN = st.sampled_from([timedelta(seconds=seconds) for seconds in SECONDS])


@pytest.fixture
def rows() -> list[BankToken]:
    """Some stored connections, whose columns a test changes as it likes."""
    return [BankTokenFactory() for _number in range(6)]


def stored(row: BankToken, columns: dict[str, Any]) -> BankToken:
    owner = {"": "", "own": str(row.user_id), "other": "another user"}[columns["encrypted_for"]]
    changed = {**columns, "encrypted_for": owner}
    BankToken.objects.filter(pk=row.pk).update(**changed)
    for name, value in changed.items():
        setattr(row, name, value)
    return row


def pks(rows: Any) -> set[uuid.UUID]:
    return {row.pk for row in rows}


def is_due(row: BankToken, column: str, within: timedelta | None) -> bool:
    end: datetime | None = getattr(row, column)
    if within is None or end is None:
        return False
    left = end - NOW
    return left <= within and (row.issued_at is None or left * 2 <= end - row.issued_at)


many = settings(
    max_examples=25,
    deadline=None,
    # The fixture's rows are overwritten for each example.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@many
@given(data=st.lists(ROWS, min_size=6, max_size=6), within=WITHIN)
def test_health_and_the_selections_say_the_same(rows, data, within):
    rows = [stored(row, columns) for row, columns in zip(rows, data, strict=True)]
    health = {row.pk: row.health(NOW) for row in rows}
    objects = BankToken.objects
    for state in BankToken.Health:
        with_state = {pk for pk, said in health.items() if said == state}
        assert pks(objects.with_health(state, now=NOW)) == with_state, state
    with_health = BankToken.objects.annotate(said=health_at(NOW)).values_list("pk", "said")
    assert dict(with_health) == health
    connected = {row for row in rows if health[row.pk] not in {"needs_reconnect", "disconnected"}}
    assert pks(objects.connected()) == pks(connected)
    assert pks(objects.degraded(now=NOW)) == {k for k, v in health.items() if v == "degraded"}
    assert pks(objects.expiring(now=NOW)) == {k for k, v in health.items() if v == "expiring"}
    assert pks(objects.expiring(within, now=NOW)) == {
        row.pk
        for row in connected
        if row.refresh_expires_at is not None and row.refresh_expires_at <= NOW + within
    }
    to_reconnect = [row for row in rows if health[row.pk] == "needs_reconnect"]
    assert pks(objects.to_reconnect()) == pks(to_reconnect)
    since = NOW - within
    changed = [row for row in to_reconnect if row.updated_at >= since]
    assert pks(objects.to_reconnect(since)) == pks(changed)


@many
@given(
    data=st.lists(ROWS, min_size=6, max_size=6),
    within=st.none() | WITHIN,
    access=st.none() | WITHIN,
    age=st.none() | WITHIN,
)
def test_due_is_what_has_passed_half_its_life_and_is_near_its_end(rows, data, within, access, age):
    rows = [stored(row, columns) for row, columns in zip(rows, data, strict=True)]
    refreshable = [
        row
        for row in rows
        if row.health(NOW) not in {"needs_reconnect", "disconnected"} and row.refresh_ciphertext
    ]
    if within is access is age is None:
        by_default: timedelta | None = timedelta(days=1)
    else:
        by_default = within
    expected = [
        row
        for row in refreshable
        if is_due(row, "refresh_expires_at", by_default)
        or is_due(row, "access_expires_at", access)
        or (age is not None and row.issued_at is not None and row.issued_at <= NOW - age)
    ]
    found = BankToken.objects.due(within, access_within=access, not_refreshed_for=age, now=NOW)
    assert pks(found) == pks(expected)


@many
@given(
    data=st.lists(ROWS, min_size=6, max_size=6),
    wanted=st.lists(st.sampled_from(SCOPES), unique=True, max_size=3),
)
def test_a_scope_is_found_as_a_whole_word_in_its_own_case(rows, data, wanted):
    rows = [stored(row, columns) for row, columns in zip(rows, data, strict=True)]
    expected = [row for row in rows if set(wanted) <= row.scopes]
    assert pks(BankToken.objects.with_scopes(*wanted)) == pks(expected)


@many
@given(states=st.lists(similar_to(Payment.State.values), min_size=6, max_size=6))
def test_a_payment_is_unfinished_unless_its_state_is_known_to_be_final(payments, states):
    for payment, state in zip(payments, states, strict=True):
        Payment.objects.filter(pk=payment.pk).update(state=state)
    rows = list(Payment.objects.all())
    assert pks(Payment.objects.unfinished()) == {row.pk for row in rows if not row.is_final}
    assert pks(Payment.objects.unannounced()) == {row.pk for row in rows if row.is_final}


@pytest.fixture
def payments() -> list[Payment]:
    return [PaymentFactory(announced_at=None) for _number in range(6)]


@pytest.fixture
def many_rows() -> None:
    """Store so many connections that reading all of them would be slow; few are ever due."""
    users: Any = get_user_model().objects
    made = users.bulk_create(get_user_model()(username=f"user {n}") for n in range(600))
    BankToken.objects.bulk_create(
        BankToken(
            user=user,
            issued_at=NOW - timedelta(minutes=number),
            access_expires_at=NOW - timedelta(minutes=number - 5),
            refresh_expires_at=NOW + timedelta(days=60, minutes=-number),
            refresh_ciphertext="something",
            is_offline=number % 2 == 0,
        )
        for number, user in enumerate(made)
    )
    old = NOW - timedelta(days=1)
    BankToken.objects.filter(user=made[0]).update(failures=1, updated_at=old)
    BankToken.objects.exclude(user=made[0]).update(updated_at=NOW)
    if connection.vendor != "mysql":  # where it would end the transaction, and is not needed
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")


def test_each_selection_has_an_index(many_rows):
    rows, day = BankToken.objects, timedelta(days=1)
    for selection, index in (
        (rows.degraded(), "failures"),
        (rows.degraded(), "rejected"),
        (rows.expiring(day), "refresh"),
        (rows.to_reconnect(NOW + day), "updated"),
        (rows.due(day), "refresh"),
        (rows.due(not_refreshed_for=5 * day), "issued"),
        (rows.due(access_within=-5 * day), "access"),
    ):
        assert f"everifin_bank_{index}" in selection.explain()


def test_offline_follows_the_scope():
    offline = BankTokenFactory(scope="openid ais offline_access")
    BankTokenFactory(scope="openid offline_access2")
    assert list(BankToken.objects.offline()) == [offline]


def test_selections_can_be_chained_and_counted():
    BankTokenFactory(failures=1, scope="openid ais pis")
    BankTokenFactory(failures=1)
    assert BankToken.objects.degraded().with_scopes("pis").count() == 1
    everything = reduce(or_, [pks(BankToken.objects.with_health(h)) for h in BankToken.Health])
    assert len(everything) == 2

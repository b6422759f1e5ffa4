"""Connections that nobody visits are kept alive, many at once, by one host or by several."""

import threading
import uuid
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from everifin_django.connections import bulk, keep_alive, pauses, refresh
from everifin_django.connections.keep_alive import Due, KeepAlive, Outcome, Stop
from everifin_django.exceptions import KeysUnavailableError
from everifin_django.models import BankToken, EndpointState, in_database_seconds
from everifin_django.testing.factories import IncidentFactory

DAY = timedelta(days=1)
WITHIN_A_DAY = Due()

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def offline(settings):
    settings.EVERIFIN_SCOPES = "openid ais offline_access"
    refresh.clear_pauses()
    yield
    refresh.clear_pauses()


@pytest.fixture
def connect(everifin, django_user_model):
    """Give a function that makes so many connections whose refresh tokens end soon."""

    def connect(count: int) -> list[BankToken]:
        for _ in range(count):
            name = uuid.uuid4().hex
            everifin.add_user(name)
            everifin.connect(django_user_model.objects.create_user(name), name)
        let_time_pass()
        return list(BankToken.objects.order_by("pk"))

    return connect


def let_time_pass() -> None:
    """Almost all of the refresh tokens' lives."""
    now = timezone.now()
    BankToken.objects.update(
        issued_at=now - 30 * DAY,
        access_expires_at=now - 29 * DAY,
        refresh_expires_at=now + timedelta(hours=3),
    )


def run(due: Due = WITHIN_A_DAY, **options) -> tuple[Counter[Outcome], Stop | None]:
    work = KeepAlive(due, **{"concurrency": 4, **options})
    return Counter(work), work.stopped_by


def test_what_is_due_is_refreshed_and_the_rest_is_left_alone(connect, everifin):
    first, *others = connect(7)
    BankToken.objects.filter(pk=first.pk).update(refresh_expires_at=timezone.now() + 20 * DAY)
    assert run() == ({Outcome.REFRESHED: 6}, None)
    assert BankToken.objects.get(pk=first.pk).token_version == first.token_version
    for row in others:
        assert BankToken.objects.get(pk=row.pk).token_version == row.token_version + 1
    assert run() == ({}, None)
    assert everifin.calls["token"] == 6


@pytest.mark.parametrize(
    ("due", "count"),
    [
        (Due(within=timedelta(hours=2)), 0),
        (Due(within=timedelta(hours=4)), 3),
        (Due(access_within=timedelta(minutes=1)), 3),
        (Due(not_refreshed_for=31 * DAY), 0),
        (Due(not_refreshed_for=29 * DAY), 3),
        (Due(not_refreshed_for=29 * DAY, within=DAY, access_within=DAY), 3),
    ],
)
def test_each_time_says_what_is_due(connect, due, count):
    connect(3)
    assert due.count() == count
    found, _ = run(due)
    assert found[Outcome.REFRESHED] == count


def test_an_online_grant_is_left_alone_unless_it_is_asked_for(connect, settings, everifin):
    settings.EVERIFIN_SCOPES = "openid ais"
    connect(2)
    assert (run(), Due().count()) == (({}, None), 0)
    assert everifin.calls["token"] == 0
    assert run(Due(online=True)) == ({Outcome.REFRESHED: 2}, None)


def test_what_ends_first_comes_first(connect, everifin):
    rows = connect(6)
    for number, row in enumerate(rows):
        BankToken.objects.filter(pk=row.pk).update(
            refresh_expires_at=timezone.now() + timedelta(hours=9 - number)
        )
    pages = Due().pages()
    assert [row.pk for row in next(pages)] == [row.pk for row in reversed(rows)]


def test_every_row_of_every_page_comes_once(connect, monkeypatch, everifin):
    """Also where many end at the same time, and whatever becomes of those before."""
    monkeypatch.setattr(keep_alive, "PAGE_SIZE", 3)
    connect(10)
    everifin.faults.add("token.refresh_token", status=503, times=1)
    found, _ = run(concurrency=1)
    assert found == {Outcome.REFRESHED: 9, Outcome.LATER: 1}


def test_requests_are_made_side_by_side_and_never_more_than_allowed(connect, everifin):
    connect(8)
    meet = threading.Barrier(4)
    everifin.sleep = lambda _seconds: meet.wait(30)
    everifin.faults.add("token.refresh_token", latency_seconds=1)
    found, _ = run(concurrency=4)
    assert found == {Outcome.REFRESHED: 8}


def test_two_statements_for_each(connect):
    connect(4)
    with CaptureQueriesContext(connection) as captured:
        run()
    updates = [one for one in captured if one["sql"].startswith("UPDATE")]
    assert len(updates) == 2 * 4
    # A page, the empty one behind it, and a look for pauses.
    assert len(captured) - len(updates) <= 4


def test_two_hosts_refresh_none_twice(connect, everifin):
    connect(6)
    first, second = (iter(KeepAlive(Due(), concurrency=1)) for _ in range(2))
    found = Counter[Outcome]()
    for outcomes in zip(first, second, strict=False):
        found.update(outcomes)
    found.update(first)
    found.update(second)
    assert found[Outcome.REFRESHED] == 6
    assert everifin.calls["token"] == 6
    assert everifin.double_spends == 0


def test_what_another_process_works_on_is_left_to_it(connect):
    rows = connect(2)
    BankToken.objects.filter(pk=rows[0].pk).update(
        lease_id=uuid.uuid4(), lease_until=in_database_seconds(30)
    )
    assert run() == ({Outcome.REFRESHED: 1}, None)
    # It was killed: the lease is over.
    BankToken.objects.filter(pk=rows[0].pk).update(lease_until=in_database_seconds(-1))
    assert run() == ({Outcome.REFRESHED: 1}, None)


def test_one_that_everifin_has_ended_is_its_users_to_connect_again(connect, everifin):
    rows = connect(3)
    everifin.faults.add(
        "token.refresh_token", status=400, body='{"error": "invalid_grant"}', times=1
    )
    found, stopped_by = run(concurrency=1)
    assert (found, stopped_by) == ({Outcome.REFRESHED: 2, Outcome.RECONNECT: 1}, None)
    assert BankToken.objects.filter(status="needs_reconnect").count() == 1
    assert len(rows) == 3


def test_one_that_cannot_be_read_does_not_keep_the_others_back(connect, everifin):
    rows = connect(3)
    BankToken.objects.filter(pk=rows[0].pk).update(refresh_ciphertext="not sealed")
    assert run() == ({Outcome.REFRESHED: 2, Outcome.UNREADABLE: 1}, None)
    assert everifin.calls["token"] == 2


def test_nothing_is_refreshed_for_a_user_who_is_not_active(connect, django_user_model):
    rows = connect(2)
    django_user_model.objects.filter(pk=rows[0].user_id).update(is_active=False)
    assert run() == ({Outcome.REFRESHED: 1, Outcome.SKIPPED: 1}, None)


def test_nothing_is_refreshed_while_an_incident_is_under_way(connect, everifin):
    connect(2)
    IncidentFactory()
    assert run() == ({Outcome.SKIPPED: 2}, None)
    assert everifin.calls["token"] == 0


def test_no_key_to_store_with_is_found_before_anything_is_sent(connect, settings, everifin):
    connect(1)
    settings.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.BrokenVault"
    with pytest.raises(KeysUnavailableError):
        run()
    assert everifin.calls["token"] == 0


class TestOutage:
    def test_it_ends_early_and_every_host_leaves_everifin_alone(self, connect, everifin):
        connect(bulk.FAILURES_OF_AN_OUTAGE + 5)
        everifin.faults.add("token.refresh_token", status=503)
        found, stopped_by = run(concurrency=1)
        assert (found, stopped_by) == ({Outcome.LATER: bulk.FAILURES_OF_AN_OUTAGE}, Stop.OUTAGE)
        everifin.faults.clear()
        assert run() == ({}, Stop.PAUSE)
        assert pauses.seconds_left("default", pauses.TOKEN) == 0, "visitors are served"
        EndpointState.objects.update(paused_until=in_database_seconds(-1))
        assert run() == ({Outcome.REFRESHED: 5}, None)

    def test_retry_after_is_kept_by_all(self, connect, everifin):
        connect(4)
        everifin.faults.add("token.refresh_token", status=503, retry_after=600, times=1)
        assert run(concurrency=1) == ({Outcome.LATER: 1}, Stop.PAUSE)
        refresh.clear_pauses()  # as in the process of another host
        assert run() == ({}, Stop.PAUSE)
        assert everifin.calls["token"] == 1

    def test_a_client_that_is_refused_ends_it(self, connect, everifin):
        connect(3)
        everifin.faults.add("token.refresh_token", status=401, body='{"error": "invalid_client"}')
        assert run(concurrency=1) == ({Outcome.LATER: 1}, Stop.PAUSE)

    def test_grants_that_have_ended_are_no_outage(self, connect, everifin):
        connect(8)
        everifin.faults.add("token.refresh_token", status=400, body='{"error": "invalid_grant"}')
        assert run(concurrency=1) == ({Outcome.RECONNECT: 8}, None)


class TestEndedEarly:
    def test_by_a_limit(self, connect):
        connect(5)
        assert run(limit=2) == ({Outcome.REFRESHED: 2}, Stop.LIMIT)
        assert run(limit=3) == ({Outcome.REFRESHED: 3}, None)

    def test_by_the_time(self, connect):
        connect(2)
        assert run(max_seconds=0) == ({}, Stop.TIME)

    def test_answers_under_way_are_stored(self, connect, everifin):
        connect(6)
        outcomes = iter(KeepAlive(Due(), concurrency=3))
        assert next(outcomes) is Outcome.REFRESHED
        outcomes.close()
        spent = everifin.calls["token"]
        assert BankToken.objects.exclude(refreshed_at=None).count() == spent == 3
        assert not BankToken.objects.exclude(lease_id=None).exists()

    @pytest.mark.django_db(transaction=True)
    def test_one_that_cannot_be_written_down_does_not_keep_the_others_from_it(
        self, connect, everifin
    ):
        rows = connect(3)
        outcomes = iter(KeepAlive(Due(), concurrency=3))
        everifin.faults.add("token.refresh_token", status=503, times=1)

        def fail(execute, sql, *args):
            if "failures" in sql and "refreshed_at" not in sql:
                raise LookupError
            return execute(sql, *args)

        with connection.execute_wrapper(fail):
            # In whichever order the answers come, one cannot be written down.
            with suppress(LookupError):
                next(outcomes)
            outcomes.close()
        assert BankToken.objects.exclude(refreshed_at=None).count() == len(rows) - 1


def command(*options: str) -> tuple[str, str, int]:
    out, err, status = StringIO(), StringIO(), 0
    try:
        call_command("everifin_refresh", *options, stdout=out, stderr=err)
    except SystemExit as end:
        status = int(str(end.code))
    return out.getvalue(), err.getvalue(), status


class TestCommand:
    def test_it_says_what_became_of_how_many(self, connect, everifin):
        connect(3)
        everifin.faults.add(
            "token.refresh_token", status=400, body='{"error": "invalid_grant"}', times=1
        )
        assert command("--concurrency", "1") == (
            "refreshed: 2\nto be connected again by their users: 1\n",
            "",
            0,
        )

    def test_nothing_due_is_well(self, connect):
        assert command() == ("refreshed: 0\n", "", 0)

    def test_its_exit_code_tells_cron_that_something_is_left(self, connect, everifin):
        connect(3)
        everifin.faults.add("token.refresh_token", status=503, times=2)
        out, _, status = command("--limit", "2")
        assert (out, status) == ("refreshed: 0\nto be tried again later: 2\n", 1)
        pauses.pause("default", pauses.TOKEN, 60)
        _, err, status = command()
        assert "Stopped early: Everifin asked for a pause" in err
        assert status == 1

    def test_a_limit_is_no_failure(self, connect):
        connect(2)
        out, err, status = command("--limit", "1")
        assert (out, status) == ("refreshed: 1\n", 0)
        assert "the limit is reached" in err

    def test_a_dry_run_counts(self, connect, everifin):
        connect(2)
        assert command("--dry-run") == ("due: 2\n", "", 0)
        assert everifin.calls["token"] == 0

    def test_the_times_can_be_given(self, connect):
        connect(2)
        assert command("--within", "2h")[0] == "refreshed: 0\n"
        assert (
            command("--not-refreshed-for", "20m", "--access-within", "90s")[0] == "refreshed: 2\n"
        )

    @pytest.mark.parametrize("text", ["", "0m", "5", "-5m", "5w", "1.5h", "٣m", "99999d", "5 m"])
    @pytest.mark.parametrize("option", ["--within", "--access-within", "--not-refreshed-for"])
    def test_a_time_that_is_none_is_refused(self, option, text):
        with pytest.raises(CommandError, match="is no time from 1s to 3650d"):
            command(f"{option}={text}")

    @pytest.mark.parametrize(
        "option", ["--concurrency=0", "--concurrency=257", "--limit=0", "--max-seconds=0"]
    )
    def test_bounds_are_named(self, option):
        with pytest.raises(CommandError, match=option.partition("=")[0]):
            command(option)

    def test_no_keys_is_said_in_a_sentence(self, connect, settings):
        connect(1)
        settings.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.BrokenVault"
        with pytest.raises(CommandError, match="No token can be stored now"):
            command()

    def test_a_terminal_shows_a_bar(self, connect):
        class Terminal(StringIO):
            def isatty(self):
                return True

        connect(2)
        out = Terminal()
        call_command("everifin_refresh", stdout=out)
        assert f"\r[{'#' * 30}] 2 of 2\n" in out.getvalue()

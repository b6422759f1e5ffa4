"""Why can this customer not see their account? What the admin answers."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from everifin_django.admin import base, connection_link, words
from everifin_django.models import BankToken, PendingRevocation
from everifin_django.testing.factories import (
    BankTokenFactory,
    PendingRevocationFactory,
    UserFactory,
)

CONNECTIONS = "/admin/everifin_django/banktoken/"
PENDING = "/admin/everifin_django/pendingrevocation/"
Health = BankToken.Health

pytestmark = pytest.mark.django_db

OF_HEALTH: dict[Any, dict[str, Any]] = {
    Health.NEEDS_RECONNECT: {"status": "needs_reconnect", "last_error": "invalid_grant"},
    Health.DEGRADED: {"failures": 4, "last_error": "unreachable"},
    Health.EXPIRING: {},
    Health.ACTIVE: {},
    Health.DISCONNECTED: {"status": "disconnected", "end_reason": "admin"},
}


def made(health, **columns):
    """A connection of that health."""
    now = timezone.now()
    if health == Health.EXPIRING:
        columns["issued_at"] = now - timedelta(days=1)
        columns["refresh_expires_at"] = now + timedelta(hours=1)
    connection = BankTokenFactory(**{**OF_HEALTH[health], **columns})
    assert connection.health() == health
    return connection


def listed(client, query="", **data):
    """The connections of the page, in its order."""
    answer = client.get(f"{CONNECTIONS}{query}", data)
    assert answer.status_code == 200
    return list(answer.context_data["cl"].result_list)


def page_of(client, connection):
    return client.get(f"{CONNECTIONS}{connection.pk}/change/").content.decode()


@pytest.fixture
def one_of_each():
    """One connection of each health, the best first."""
    return {health: made(health) for health in reversed(OF_HEALTH)}


@pytest.fixture
def helper(client):
    """Give a function that logs staff in who may view, and what else is named."""

    def log_in(*codenames):
        user = UserFactory(is_staff=True)
        named = ["view_banktoken", "view_pendingrevocation", *codenames]
        user.user_permissions.set(Permission.objects.filter(codename__in=named))
        client.force_login(user)
        return client

    return log_in


class TestList:
    def test_trouble_comes_first(self, admin_client, one_of_each):
        newest_last = BankToken.objects.filter(pk=one_of_each[Health.ACTIVE].pk)
        newest_last.update(updated_at=timezone.now() + timedelta(days=1))
        assert [row.health() for row in listed(admin_client)] == list(OF_HEALTH)

    def test_the_newest_of_a_kind_comes_first(self, admin_client):
        older, newer = made(Health.NEEDS_RECONNECT), made(Health.NEEDS_RECONNECT)
        long_ago = timezone.now() - timedelta(days=1)
        BankToken.objects.filter(pk=older.pk).update(updated_at=long_ago)
        assert listed(admin_client) == [newer, older]

    def test_a_page_may_show_the_end_of_one_kind_and_the_beginning_of_the_next(self, admin_client):
        for health in (Health.NEEDS_RECONNECT, Health.ACTIVE, Health.DISCONNECTED):
            BankTokenFactory.create_batch(30, **OF_HEALTH[health])
        pages = [listed(admin_client, p=number) for number in (1, 2)]
        assert [len(page) for page in pages] == [50, 40]
        assert len({row.pk for page in pages for row in page}) == 90
        assert pages[0][29].health() == Health.NEEDS_RECONNECT
        assert pages[0][30].health() == Health.ACTIVE

    def test_a_row_of_an_unknown_status_or_another_user_is_there(self, admin_client):
        odd = BankTokenFactory(status="new"), BankTokenFactory()
        BankToken.objects.filter(pk=odd[1].pk).update(encrypted_for="another")
        assert {row.pk for row in listed(admin_client)} == {row.pk for row in odd}

    def test_the_counts_lead_to_their_filters(self, admin_client, one_of_each):
        strip = admin_client.get(CONNECTIONS).context_data["strip"]
        assert [one["count"] for one in strip] == [1] * 5
        for one, health in zip(strip, OF_HEALTH, strict=True):
            [row] = admin_client.get(one["url"]).context_data["cl"].result_list
            assert row == one_of_each[health]

    def test_the_counts_are_of_all_also_in_a_filtered_list(self, admin_client, one_of_each):
        strip = admin_client.get(CONNECTIONS, {"health": "degraded"}).context_data["strip"]
        assert [one["count"] for one in strip] == [1] * 5

    def test_nothing_is_counted_beyond_a_bound_and_the_page_says_so(
        self, admin_client, monkeypatch
    ):
        monkeypatch.setattr(base, "LISTED", 2)
        monkeypatch.setattr("everifin_django.admin.connections.LISTED", 2)
        BankTokenFactory.create_batch(3)
        answer = admin_client.get(CONNECTIONS)
        assert len(answer.context_data["cl"].result_list) == 2
        assert "2+" in answer.content.decode()
        assert "No more than 2 connections of a kind" in answer.content.decode()

    def test_the_first_page_costs_eight_queries_at_most(self, helper, one_of_each):
        client = helper()
        client.get(CONNECTIONS)
        with CaptureQueriesContext(database) as queries:
            client.get(CONNECTIONS)
        # Five of them for one row of each health, each from a section of its own.
        assert len(queries) - 4 <= 8
        assert not [query for query in queries if "_ciphertext" in query["sql"].split("FROM")[0]]

    def test_what_keeps_a_connection_from_working_is_said_in_words(self, admin_client, one_of_each):
        page = admin_client.get(CONNECTIONS).content.decode()
        assert "Everifin ended the session or the consent" in page
        assert "Everifin cannot be reached, 4 tries in vain" in page
        assert "An administrator ended it" in page

    @pytest.mark.parametrize("may_see", [True, False])
    def test_name_and_email_are_for_staff_who_may_look_at_users(self, helper, may_see):
        user = UserFactory(username="jn-1977", email="jan@example.org", first_name="Jan")
        BankTokenFactory(user=user)
        page = helper(*["view_user"] * may_see).get(CONNECTIONS).content.decode()
        assert ("jan@example.org" in page, ">Jan<" in page) == (may_see, may_see)
        assert ("jn-1977" in page) != may_see

    def test_a_word_that_everifin_alone_knows_is_shown_as_it_is(self, admin_client):
        made(Health.NEEDS_RECONNECT, last_error="odd_<error>")
        assert "odd_&lt;error&gt;" in admin_client.get(CONNECTIONS).content.decode()

    def test_when_it_ends_is_said_with_the_exact_time(self, admin_client):
        made(Health.ACTIVE, refresh_expires_at=timezone.now() + timedelta(days=3, minutes=1))
        page = admin_client.get(CONNECTIONS).content.decode()
        [row] = BankToken.objects.all()
        assert row.refresh_expires_at is not None
        exact = row.refresh_expires_at.isoformat(timespec="seconds")
        assert f'<time datetime="{exact}">in 3 days<small' in page


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3 * 86400 + 60, "in 3 days"),
        (7260, "in 2 hours"),
        (90, "in 1 minute"),
        (-30, "0 minutes ago"),
        (-86400, "1 day ago"),
    ],
)
def test_a_time_is_said_in_the_largest_unit_that_fits(seconds, said):
    assert words.relative(timezone.now() + timedelta(seconds=seconds)) == said


class TestFilters:
    @pytest.mark.parametrize("health", OF_HEALTH)
    def test_by_health(self, admin_client, one_of_each, health):
        assert listed(admin_client, health=health.value) == [one_of_each[health]]

    @pytest.mark.parametrize(
        ("ends", "hours"), [("1h", 0.5), ("24h", 20), ("7d", 100), ("past", -1), ("unknown", None)]
    )
    def test_by_end(self, admin_client, ends, hours):
        when = None if hours is None else timezone.now() + timedelta(hours=hours)
        wanted = BankTokenFactory(refresh_expires_at=when)
        BankTokenFactory(refresh_expires_at=timezone.now() + timedelta(days=30))
        assert listed(admin_client, ends=ends) == [wanted]

    @pytest.mark.parametrize("scope", ["ais", "pis"])
    def test_by_permission(self, admin_client, scope):
        wanted = BankTokenFactory(scope=f"openid {scope}")
        BankTokenFactory(scope="openid other")
        assert listed(admin_client, may=scope) == [wanted]

    @pytest.mark.parametrize(
        ("trouble", "code"), [("answer_lost", "answer_lost"), ("other", "odd"), ("none", "")]
    )
    def test_by_trouble(self, admin_client, trouble, code):
        wanted = BankTokenFactory(last_error=code)
        BankTokenFactory(last_error="invalid_grant")
        assert listed(admin_client, trouble=trouble) == [wanted]

    @pytest.mark.parametrize("name", ["health", "ends", "may", "trouble"])
    def test_a_choice_that_is_none_finds_nothing(self, admin_client, name):
        BankTokenFactory()
        assert listed(admin_client, **{name: "odd"}) == []

    @pytest.mark.parametrize(
        "lookup",
        [
            "refresh_ciphertext__startswith",
            "access_ciphertext__contains",
            "id_ciphertext",
            "sid",
            "sid__startswith",
            "identity_digest",
            "user__password__startswith",
        ],
    )
    @pytest.mark.parametrize("path", [CONNECTIONS, PENDING])
    def test_nobody_can_guess_a_secret_by_a_lookup(self, admin_client, lookup, path):
        assert admin_client.get(path, {lookup: "evf1"}).status_code == 400


class TestSearch:
    @pytest.fixture
    def novak(self):
        user = UserFactory(
            username="jn-1977", email="jan@example.org", first_name="Jan", last_name="Novák"
        )
        BankTokenFactory()
        return BankTokenFactory(user=user, subject="Abc-1")

    @pytest.mark.parametrize(
        "term",
        ["jn-1977", "jn-", "jan@example.org", "Novák", "novák", "Jan Novák", "Novák Jan", "Abc-1"],
    )
    def test_by_what_a_customer_tells(self, admin_client, novak, term):
        assert listed(admin_client, q=term) == [novak]
        assert listed(admin_client, q=f" {term} ") == [novak]

    def test_by_the_id(self, admin_client, novak):
        assert listed(admin_client, q=str(novak.pk)) == [novak]

    @pytest.mark.parametrize("term", ["Abc", "ovák", "example.org", "%", "nobody"])
    def test_a_part_finds_nothing(self, admin_client, novak, term):
        assert listed(admin_client, q=term) == []


class TestOneConnection:
    @pytest.mark.parametrize(
        ("health", "said"),
        [
            (Health.ACTIVE, "Your connection to Everifin works."),
            (Health.EXPIRING, "Your connection ends on"),
            (Health.DEGRADED, "Everifin does not answer at the moment. Your connection is kept."),
            (Health.NEEDS_RECONNECT, "Please connect again: http://testserver/everifin/connect/"),
            (Health.DISCONNECTED, "The people who run this site ended it. Please connect again"),
        ],
    )
    def test_it_has_the_sentence_to_say_to_the_customer(self, admin_client, health, said):
        assert said in page_of(admin_client, made(health))

    def test_it_leads_to_the_user_and_to_what_waits(self, admin_client):
        connection = made(Health.ACTIVE)
        page = page_of(admin_client, connection)
        assert f'href="/admin/auth/user/{connection.user_id}/change/"' in page
        assert f'href="{PENDING}?q={connection.pk}"' in page

    def test_staff_who_may_only_look_have_no_buttons(self, helper):
        page = page_of(helper(), made(Health.ACTIVE))
        assert "Refresh now" not in page
        assert ">Disconnect<" not in page

    def test_staff_with_the_permissions_have_them(self, helper):
        page = page_of(helper("refresh_banktoken", "disconnect_banktoken"), made(Health.ACTIVE))
        assert "Refresh now" in page
        assert ">Disconnect<" in page

    def test_a_connection_that_has_ended_cannot_be_ended_or_refreshed(self, admin_client):
        page = page_of(admin_client, made(Health.DISCONNECTED))
        assert "Refresh now" not in page
        assert ">Disconnect<" not in page

    def test_one_that_is_gone_leads_back(self, admin_client):
        gone = BankToken()
        assert admin_client.get(f"{CONNECTIONS}{gone.pk}/change/").status_code == 302


class TestRefreshNow:
    @pytest.fixture
    def connection(self, everifin_user):
        return BankToken.objects.get()

    def refresh(self, client, connection, method="post"):
        url = f"{CONNECTIONS}{connection.pk}/refresh/"
        return getattr(client, method)(url, follow=True)

    def test_it_refreshes_once(self, everifin, admin_client, connection):
        page = self.refresh(admin_client, connection).content.decode()
        assert "The connection was refreshed." in page
        assert BankToken.objects.get().token_version == connection.token_version + 1

    def test_what_everifin_refuses_is_said(self, everifin, admin_client, connection):
        everifin.end_sessions("alice")
        page = self.refresh(admin_client, connection).content.decode()
        assert "the user has to connect again" in page
        assert BankToken.objects.get().status == "needs_reconnect"

    def test_it_needs_a_post_and_the_permission(self, everifin, helper, connection):
        assert self.refresh(helper(), connection).status_code == 403
        client = helper("refresh_banktoken")
        assert self.refresh(client, connection, "get").status_code == 403
        assert BankToken.objects.get().token_version == connection.token_version
        assert self.refresh(client, connection).status_code == 200
        assert BankToken.objects.get().token_version == connection.token_version + 1


class TestDisconnect:
    def post(self, client, *connections, **data):
        chosen = [row.pk for row in connections]
        return client.post(
            CONNECTIONS, {"action": "disconnect", "_selected_action": chosen, **data}
        )

    def test_it_asks_first_with_names_and_their_number(self, admin_client):
        connections = BankTokenFactory.create_batch(23)
        answer = self.post(admin_client, *connections)
        assert answer.status_code == 200
        page = answer.content.decode()
        assert page.count("@example.test</li>") == 20
        assert "3 more" in page
        assert not BankToken.objects.disconnected().exists()

    def test_it_has_a_permission_of_its_own(self, helper):
        connection = made(Health.ACTIVE)
        self.post(helper("delete_banktoken"), connection, confirmed="yes")
        assert not BankToken.objects.disconnected().exists()
        self.post(helper("disconnect_banktoken"), connection, confirmed="yes")
        assert BankToken.objects.disconnected().exists()

    def test_a_whole_list_is_ended_by_its_filters(self, admin_client):
        """However long: Django takes no more than a thousand fields."""
        BankTokenFactory.create_batch(1200)
        healthy = BankToken.objects.values_list("pk", flat=True)[0]
        BankToken.objects.exclude(pk=healthy).update(failures=1)
        where = f"{CONNECTIONS}?health=degraded"
        data = {"action": "disconnect", "select_across": "1", "index": "0"}
        data["_selected_action"] = str(BankToken.objects.exclude(pk=healthy)[0].pk)
        page = admin_client.post(where, data).content.decode()
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
        assert (fields["count"], fields["select_across"]) == ("1199", "1")
        assert f'action="{where}"' in page
        assert admin_client.post(where, fields).status_code == 302
        assert BankToken.objects.disconnected().count() == 1199
        assert BankToken.objects.get(pk=healthy).status == "active"

    def test_a_list_that_has_grown_is_asked_about_again(self, admin_client):
        connections = BankTokenFactory.create_batch(3)
        data = {"select_across": "1", "confirmed": "yes"}
        for count in ("2", "0", "-1", "x"):
            answer = self.post(admin_client, connections[0], count=count, **data)
            assert answer.status_code == 200
            assert not BankToken.objects.disconnected().exists()
        assert self.post(admin_client, connections[0], count="3", **data).status_code == 302
        assert BankToken.objects.disconnected().count() == 3

    def test_more_than_a_page_can_end_is_left_to_the_command(self, admin_client, monkeypatch):
        monkeypatch.setattr("everifin_django.admin.connections.MOST_DISCONNECTED", 2)
        connections = BankTokenFactory.create_batch(3)
        answer = self.post(admin_client, connections[0], select_across="1", confirmed="yes")
        assert answer.status_code == 302
        assert "too many" in admin_client.get(CONNECTIONS).content.decode()
        assert not BankToken.objects.disconnected().exists()


class TestOutbox:
    @pytest.fixture
    def waiting(self, everifin, everifin_user, admin_client):
        connection = BankToken.objects.get()
        data = {"action": "disconnect", "_selected_action": [connection.pk], "confirmed": "yes"}
        admin_client.post(CONNECTIONS, data)
        return PendingRevocation.objects.get()

    def test_it_names_user_reason_and_connection(self, admin_client, waiting, everifin_user):
        page = admin_client.get(PENDING).content.decode()
        assert everifin_user.get_username() in page
        assert "An administrator ended it" in page
        assert f"{CONNECTIONS}{waiting.connection_id}/change/" in page

    def test_a_user_who_is_gone_is_named_by_key(self, admin_client):
        PendingRevocationFactory(user_pk="4711", last_error="unavailable")
        page = admin_client.get(PENDING).content.decode()
        assert "deleted user 4711" in page
        assert "Everifin does not answer <code>unavailable</code>" in page

    @pytest.mark.parametrize("key", ["", "no number", "9" * 30])
    def test_a_key_that_no_user_has_does_no_harm(self, admin_client, key):
        PendingRevocationFactory(user_pk=key)
        assert admin_client.get(PENDING).status_code == 200

    def test_it_is_searched_by_connection_and_user(self, admin_client, waiting, everifin_user):
        PendingRevocationFactory()
        for term in (waiting.connection_id, everifin_user.get_username()):
            answer = admin_client.get(PENDING, {"q": str(term)})
            assert list(answer.context_data["cl"].result_list) == [waiting]

    def test_try_now_ends_it_at_everifin(self, everifin, admin_client, waiting):
        data = {"action": "try_now", "_selected_action": [waiting.pk]}
        page = admin_client.post(PENDING, data, follow=True).content.decode()
        assert "1 grant was ended." in page
        assert "Nothing waits" in page
        assert everifin.live_sessions("alice") == 0

    def test_try_now_needs_the_permission(self, everifin, helper, waiting):
        data = {"action": "try_now", "_selected_action": [waiting.pk]}
        helper().post(PENDING, data)
        assert PendingRevocation.objects.exists()

    @pytest.mark.parametrize("path", [CONNECTIONS, PENDING])
    @pytest.mark.parametrize(
        ("hours", "next_try", "is_warned"), [(2, None, True), (2, 1, False), (0, None, False)]
    )
    def test_an_old_entry_says_that_no_scheduler_runs(
        self, admin_client, path, hours, next_try, is_warned
    ):
        entry = PendingRevocationFactory()
        now = timezone.now()
        when = now + timedelta(hours=next_try) if next_try else None
        PendingRevocation.objects.filter(pk=entry.pk).update(
            created_at=now - timedelta(hours=hours), retry_after=when
        )
        page = admin_client.get(path).content.decode()
        assert ("Does a scheduler run everifin_housekeeping?" in page) == is_warned

    def test_more_entries_cost_no_more_queries(self, admin_client):
        def cost():
            with CaptureQueriesContext(database) as queries:
                admin_client.get(PENDING)
            return len(queries)

        PendingRevocationFactory.create_batch(2)
        cost()
        before = cost()
        PendingRevocationFactory.create_batch(20)
        assert cost() == before


class TestLinkOfAUser:
    def test_a_user_without_a_connection(self):
        assert "Not connected" in connection_link(UserFactory())

    def test_it_shows_the_health_and_leads_to_the_connection(self):
        connection = made(Health.DEGRADED)
        link = connection_link(connection.user)
        assert f"{CONNECTIONS}{connection.pk}/change/" in link
        assert "No answer" in link

"""Which Everifin accounts a user may log in with: by login, by connecting, by import."""

import pytest
from django.contrib.auth.models import AnonymousUser
from django.test import Client

from everifin_django.connections import grants, link, links
from everifin_django.connections.ends import ON_PURPOSE
from everifin_django.exceptions import IdentityTakenError
from everifin_django.models import BankToken, LoginLink
from everifin_django.oauth.id_token import Identity
from everifin_django.signals import login_link_created, login_link_removed
from everifin_django.testing.factories import BankTokenFactory, LoginLinkFactory, UserFactory

ISSUER = "https://idp.everifin.test/auth/realms/everifin_app"
MODEL = "django.contrib.auth.backends.ModelBackend"
DISCONNECT = "/everifin/disconnect/"
LOGOUT = "/everifin/logout/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def ann(django_user_model):
    return django_user_model.objects.create_user("ann", "ann@site.example", "a password")


@pytest.fixture
def browser(client, ann):
    """A browser in which Ann is logged in, by password."""
    client.force_login(ann, backend=MODEL)
    return client


@pytest.fixture
def log_in(everifin_connect):
    """Give a function that logs in with Everifin in a new browser; it returns user and answer."""

    def log_in(username="alice"):
        client = Client()
        response = everifin_connect(client, username, view="login")
        return client.get("/plain/").wsgi_request.user, response

    return log_in


@pytest.fixture
def heard():
    """Give the signals that were sent: which, to whom, and how the link was made."""
    events = []

    def hear(signal, user, made_by, **kwargs):
        events.append((signal, user, str(made_by)))

    for signal in (login_link_created, login_link_removed):
        signal.connect(hear)
    yield events
    for signal in (login_link_created, login_link_removed):
        signal.disconnect(hear)


def title_of(response):
    return response.content.decode().split("<h1>")[1].split("</h1>")[0]


class TestLogin:
    def test_a_first_login_makes_the_link_and_later_ones_leave_it(self, log_in):
        user, _ = log_in()
        made = LoginLink.objects.values().get()
        assert (made["user_id"], made["made_by"]) == (user.pk, "login")
        assert log_in()[0] == user
        assert LoginLink.objects.values().get() == made

    def test_the_user_is_found_in_one_query(self, log_in, django_assert_num_queries, everifin):
        user, _ = log_in()
        alice = Identity(ISSUER, everifin.user("alice").sub)
        with django_assert_num_queries(1):
            found = links.find(alice)
            assert found is not None
            assert found.user.pk
        assert found.user == user

    def test_a_link_alone_is_enough(self, log_in, ann, everifin):
        link(ann, ISSUER, everifin.user("alice").sub)
        assert log_in()[0] == ann
        assert LoginLink.objects.get().made_by == "import"
        assert BankToken.objects.get().user == ann

    def test_another_identity_of_the_user_logs_in_and_leaves_the_connection_alone(
        self, log_in, browser, everifin_connect, everifin, ann
    ):
        everifin_connect(browser, "alice")
        link(ann, ISSUER, everifin.user("bob").sub)
        before = BankToken.objects.values().get()
        assert log_in("bob")[0] == ann
        assert BankToken.objects.values().get() == before

    def test_a_link_made_by_connecting_stays_so_after_a_login(
        self, log_in, browser, everifin_connect, ann
    ):
        everifin_connect(browser)
        assert log_in()[0] == ann
        assert LoginLink.objects.get().made_by == "connect"


class TestConnecting:
    def test_it_gives_a_login(self, log_in, browser, everifin_connect, ann):
        everifin_connect(browser)
        assert log_in()[0] == ann

    def test_not_where_the_site_says_no(
        self, log_in, browser, everifin_connect, settings, django_user_model
    ):
        settings.EVERIFIN_CONNECT_ALLOWS_LOGIN = False
        everifin_connect(browser)
        assert not LoginLink.objects.exists()
        user, response = log_in()
        assert not user.is_authenticated
        assert (response.status_code, title_of(response)) == (
            403,
            "Log in the way you usually do",
        )
        assert django_user_model.objects.count() == 1
        assert BankToken.objects.get().status == "active"

    @pytest.mark.parametrize("flag", ["is_staff", "is_superuser"])
    def test_not_for_the_privileged(
        self, log_in, browser, everifin_connect, ann, django_user_model, flag
    ):
        django_user_model.objects.update(**{flag: True})
        everifin_connect(browser)
        assert not LoginLink.objects.exists()
        user, response = log_in()
        assert not user.is_authenticated
        assert response.status_code == 403
        assert django_user_model.objects.count() == 1

    @pytest.mark.parametrize("change", ["is_staff", "is_superuser", "the setting"])
    def test_it_is_looked_at_again_when_logging_in(
        self, log_in, browser, everifin_connect, django_user_model, settings, change
    ):
        everifin_connect(browser)
        if change == "the setting":
            settings.EVERIFIN_CONNECT_ALLOWS_LOGIN = False
        else:
            django_user_model.objects.update(**{change: True})
        user, response = log_in()
        assert not user.is_authenticated
        assert title_of(response) == "Log in the way you usually do"
        assert django_user_model.objects.count() == 1

    def test_staff_whose_first_login_made_the_link_log_in(self, log_in, django_user_model):
        user, _ = log_in()
        django_user_model.objects.update(is_staff=True)
        assert log_in()[0] == user

    def test_an_account_that_logs_another_user_in_is_refused(
        self, log_in, browser, everifin_connect, everifin
    ):
        owner, _ = log_in()
        grants.disconnect(owner)
        assert everifin_connect(browser).status_code == 409
        assert LoginLink.objects.get().user == owner
        assert everifin.live_sessions("alice") == 0

    def test_another_account_than_the_connected_one_is_refused_with_the_ways_on(
        self, browser, everifin_connect, everifin
    ):
        everifin_connect(browser, "alice")
        before = BankToken.objects.values().get()
        response = everifin_connect(browser, "bob")
        assert (response.status_code, title_of(response)) == (
            409,
            "You came back with another Everifin account",
        )
        page = response.content.decode()
        assert "log out at Everifin" in page
        assert "disconnect that one here first" in page
        assert BankToken.objects.values().get() == before
        assert everifin.live_sessions("bob") == 0
        browser.post(DISCONNECT)
        assert everifin_connect(browser, "bob").status_code == 302
        assert BankToken.objects.get().subject == everifin.user("bob").sub

    @pytest.mark.parametrize("ended_by", ["logout", "user_inactive", "backchannel_logout"])
    def test_also_after_an_end_that_nobody_meant_for_good(
        self, browser, everifin_connect, ann, ended_by
    ):
        everifin_connect(browser, "alice")
        grants.disconnect(ann, ended_by)
        assert everifin_connect(browser, "bob").status_code == 409
        assert everifin_connect(browser, "alice").status_code == 302

    def test_the_page_says_as_whom_one_is_logged_in(self, browser):
        assert (
            "You are logged in here as ann." in browser.get("/everifin/connect/").content.decode()
        )


class TestDisconnecting:
    def test_it_takes_back_what_connecting_gave(
        self, log_in, browser, everifin_connect, ann, django_user_model
    ):
        """An attacker who once connected their account has no way in after this."""
        everifin_connect(browser)
        browser.post(DISCONNECT)
        assert not LoginLink.objects.exists()
        user, _ = log_in()
        assert user != ann
        assert BankToken.objects.get(user=user).status == "active"

    @pytest.mark.parametrize("ended_before", ["logout", "backchannel_logout"])
    def test_also_if_the_connection_had_ended_before(
        self, browser, everifin_connect, ann, ended_before
    ):
        everifin_connect(browser)
        grants.disconnect(ann, ended_before)
        browser.post(DISCONNECT)
        assert not LoginLink.objects.exists()
        assert BankToken.objects.get().end_reason == "disconnected"

    @pytest.mark.parametrize("reason", sorted(ON_PURPOSE))
    def test_after_an_end_on_purpose_a_login_does_not_connect_and_connecting_does(
        self, log_in, everifin_connect, everifin, reason
    ):
        client = Client()
        everifin_connect(client, view="login")
        user, _ = log_in()
        grants.disconnect(user, reason)
        assert log_in()[0] == user
        assert BankToken.objects.get().status == "disconnected"
        everifin_connect(client)
        assert BankToken.objects.get().status == "active"

    def test_a_login_connects_again_after_a_logout(self, log_in, everifin_connect):
        client = Client()
        everifin_connect(client, view="login")
        client.post(LOGOUT)
        assert BankToken.objects.get().end_reason == "logout"
        log_in()
        row = BankToken.objects.get()
        assert (row.status, row.end_reason) == ("active", "")

    def test_a_link_of_another_kind_stays(self, ann):
        kept = [LoginLinkFactory(user=ann), LoginLinkFactory(user=ann, made_by="import")]
        LoginLinkFactory(user=ann, made_by="connect")
        LoginLinkFactory(made_by="connect")
        grants.disconnect(ann)
        assert list(LoginLink.objects.filter(user=ann).order_by("pk")) == kept
        assert LoginLink.objects.count() == 3


class TestSignals:
    def test_a_new_link_and_its_end_are_told(
        self, browser, everifin_connect, ann, heard, django_capture_on_commit_callbacks
    ):
        with django_capture_on_commit_callbacks(execute=True):
            everifin_connect(browser)
            everifin_connect(browser)
            browser.post(DISCONNECT)
        assert heard == [
            (login_link_created, ann, "connect"),
            (login_link_removed, ann, "connect"),
        ]


class TestLink:
    def test_twice_is_once(self, ann):
        assert link(ann, ISSUER, "alice") == link(ann, ISSUER, "alice")

    def test_somebody_elses_is_refused(self, ann):
        link(UserFactory(), ISSUER, "alice")
        with pytest.raises(IdentityTakenError):
            link(ann, ISSUER, "alice")

    @pytest.mark.parametrize(
        ("issuer", "subject"),
        [
            ("https://other.example", "a"),
            (ISSUER, ""),
            (ISSUER, "ž"),
            (ISSUER, "a\0"),
            (ISSUER, "a" * 256),
        ],
    )
    def test_what_can_be_nobody_is_an_error(self, ann, issuer, subject):
        with pytest.raises(ValueError, match=r"issuer|subject"):
            link(ann, issuer, subject)
        assert not LoginLink.objects.exists()

    def test_upper_and_lower_case_are_two_accounts(self, ann):
        link(ann, ISSUER, "abc")
        link(UserFactory(), ISSUER, "ABC")
        assert LoginLink.objects.count() == 2

    def test_a_link_shows_nobody(self, ann):
        made = link(ann, ISSUER, "alice")
        assert str(made) == str(made.pk)


class TestWithoutTheLoginBackend:
    @pytest.fixture(autouse=True)
    def passwords_only(self, settings):
        settings.AUTHENTICATION_BACKENDS = [MODEL]

    def test_no_link_is_made_and_none_asked_for(
        self, browser, everifin_connect, django_capture_on_commit_callbacks
    ):
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(connection) as queries:
            everifin_connect(browser)
            browser.post(DISCONNECT)
        assert BankToken.objects.get().status == "disconnected"
        assert not [query for query in queries if "loginlink" in query["sql"]]


def test_a_visitor_is_nobody_privileged():
    assert links.connecting_allows_login(AnonymousUser())


def test_a_user_connected_before_the_login_was_added_logs_in_as_usual_until_linked(
    log_in, everifin, ann, django_user_model
):
    sub = everifin.user("alice").sub
    BankTokenFactory(user=ann, subject=sub)
    _, response = log_in()
    assert response.status_code == 403
    assert django_user_model.objects.count() == 1
    link(ann, ISSUER, sub)
    assert log_in()[0] == ann

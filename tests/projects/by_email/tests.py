"""Users who are named by their e-mail address."""

import pytest
from django.test import Client

from everifin_django import backends
from everifin_django.models import BankToken
from tests.projects.users import User, user_of

OWN = "tests.projects.by_email.backends.StaffBackend"

pytestmark = pytest.mark.django_db


class TestNamedByEmail:
    @pytest.fixture
    def alice(self):
        return User.objects.create_user("Alice@example.test", "a password")

    @pytest.mark.usefixtures("alice")
    def test_who_has_the_address_already_is_not_taken_over(
        self, client, everifin, everifin_connect
    ):
        assert everifin_connect(client, view="login").status_code == 403
        assert not user_of(client).is_authenticated
        assert not BankToken.objects.exists()
        assert everifin.live_sessions() == 0

    def test_but_connects_and_logs_in_from_then_on(self, client, everifin_connect, alice):
        client.force_login(alice)
        everifin_connect(client)
        other = Client()
        everifin_connect(other, view="login")
        assert user_of(other) == alice

    def test_without_a_verified_address_nobody_is_made(self, client, everifin, everifin_connect):
        everifin.add_user("carol", email_verified=False)
        assert everifin_connect(client, "carol", view="login").status_code == 403
        assert not User.objects.exists()

    def test_a_first_login_twice_at_once_makes_one_user(
        self, client, everifin, everifin_connect, monkeypatch
    ):
        """The address was free when it was looked for, and is not when the row is written."""
        is_free, answers = backends.EverifinBackend._is_free, [True]

        def look(backend, field, email):
            if answers:
                User.objects.create_user(email)
                return answers.pop()
            return is_free(backend, field, email)

        monkeypatch.setattr(backends.EverifinBackend, "_is_free", look)
        # What the other process made is rolled back here with the try, so the second one succeeds.
        assert everifin_connect(client, view="login").status_code == 302
        assert User.objects.count() == 1


class TestOwnBackend:
    @pytest.fixture(autouse=True)
    def own(self, settings):
        settings.AUTHENTICATION_BACKENDS = [OWN]

    @pytest.mark.parametrize(
        ("email", "is_verified", "is_let_in"),
        [
            ("carol@example.org", True, True),
            ("carol@example.org", False, False),
            ("carol@elsewhere.example", True, False),
        ],
    )
    def test_it_lets_its_staff_in(
        self, client, everifin, everifin_connect, email, is_verified, is_let_in
    ):
        everifin.add_user("carol", email=email, email_verified=is_verified)
        response = everifin_connect(client, "carol", view="login")
        assert response.status_code == (302 if is_let_in else 403)
        assert [user.email for user in User.objects.all()] == [email] * is_let_in
        assert everifin.live_sessions() == int(is_let_in)

    def test_it_takes_nobody_over(self, client, everifin, everifin_connect):
        User.objects.create_user("carol@example.org")
        everifin.add_user("carol", email="carol@example.org")
        assert everifin_connect(client, "carol", view="login").status_code == 403
        assert User.objects.count() == 1

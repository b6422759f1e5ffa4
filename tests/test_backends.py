"""mozilla-django-oidc's backend made stricter."""

import logging
from typing import Any

import pytest
from django.contrib import auth
from django.db import IntegrityError
from django.test import Client, RequestFactory
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from everifin_django.backends import EverifinBackend, login_backend
from everifin_django.connections import grants
from everifin_django.exceptions import IdentityTakenError
from everifin_django.models import BankToken

MODEL = "django.contrib.auth.backends.ModelBackend"
OURS = "everifin_django.backends.EverifinBackend"
LOGIN = "/everifin/login/"

pytestmark = pytest.mark.django_db


class Ours(EverifinBackend):
    """A site's own, which uses each documented hook."""

    def get_username(self, claims: Any) -> str:
        return f"bank-{claims['preferred_username']}"

    def verify_claims(self, claims: Any) -> bool:
        return bool(claims["preferred_username"] != "bob")

    def create_user(self, claims: Any) -> Any:
        user = super().create_user(claims)
        user.first_name = "new"
        user.save()
        return user

    def update_user(self, user: Any, claims: Any) -> Any:
        user.first_name = "known"
        user.save()
        return user


class Another(OIDCAuthenticationBackend):
    """Another identity provider's, which writes down what it is given."""

    given: list[Any] = []

    def authenticate(self, request: Any, **credentials: Any) -> Any:
        self.given.append((request.GET.dict(), credentials))


def make_nothing() -> None:
    """AUTHENTICATION_BACKENDS takes any callable, not classes alone."""


@pytest.fixture
def another_login(settings):
    settings.OIDC_OP_TOKEN_ENDPOINT = "https://theirs.example/token"
    settings.OIDC_OP_USER_ENDPOINT = "https://theirs.example/user"
    settings.OIDC_RP_CLIENT_ID = "theirs"
    settings.OIDC_RP_CLIENT_SECRET = "their secret"
    settings.AUTHENTICATION_BACKENDS = ["tests.test_backends.Another", OURS]
    Another.given.clear()
    yield Another
    Another.given.clear()


class TestNewUser:
    @pytest.fixture
    def users(self, django_user_model):
        return django_user_model.objects

    def test_the_name_reveals_nothing_and_no_password_opens(
        self, everifin, everifin_connect, client, users
    ):
        everifin_connect(client, view="login")
        user = users.get()
        assert user.username.startswith("everifin-")
        assert len(user.username) == len("everifin-") + 16
        identity = everifin.user("alice")
        told = [identity.sub, identity.username, identity.email, *identity.name.split()]
        assert not [one for one in told if one in user.username + user.first_name + user.last_name]
        assert not user.has_usable_password()
        assert not user.is_staff

    @pytest.mark.parametrize(
        ("claims", "expected"),
        [
            ({}, "alice@example.test"),
            ({"email_verified": False}, ""),
            ({"email_verified": "true"}, ""),
            ({"email_verified": 1}, ""),
            ({"email_verified": None}, ""),
            ({"email": None}, ""),
            ({"email": f"{'a' * 300}@b.test"}, ""),
            ({"email": "a\n@b.test"}, ""),
            ({"email": ["a@b.test"]}, ""),
            ({"sid": "a\0"}, "alice@example.test"),
            ({"sid": {"a": 1}}, "alice@example.test"),
        ],
        ids=str,
    )
    def test_the_email_is_taken_only_if_everifin_has_verified_it(
        self, everifin, everifin_connect, client, users, claims, expected
    ):
        everifin.id_token_hook = lambda headers, given: (headers, given | claims)
        everifin_connect(client, view="login")
        assert users.get().email == expected

    @pytest.mark.parametrize("is_verified", [True, False])
    def test_the_same_email_is_never_the_same_user(
        self, everifin, everifin_connect, client, users, is_verified
    ):
        existing = users.create_user("ann", "alice@example.test", "a password")
        everifin.id_token_hook = lambda headers, claims: (
            headers,
            claims | {"email_verified": is_verified},
        )
        everifin_connect(client, view="login")
        assert client.session["_auth_user_id"] != str(existing.pk)
        assert not BankToken.objects.filter(user=existing).exists()
        existing.refresh_from_db()
        assert existing.check_password("a password")

    @pytest.mark.parametrize("other", ["ABC", "abc ", "abc."])
    def test_subjects_are_compared_byte_by_byte(self, everifin, everifin_connect, users, other):
        for number, sub in enumerate(("abc", other)):
            everifin.add_user(f"user{number}", sub=sub)
            everifin_connect(Client(), f"user{number}", view="login")
        assert users.count() == 2

    def test_a_later_login_leaves_the_email_alone(self, everifin_connect, client, users):
        everifin_connect(client, view="login")
        users.update(email="changed@site.example")
        everifin_connect(Client(), view="login")
        assert users.get().email == "changed@site.example"


class TestHooks:
    @pytest.fixture(autouse=True)
    def ours(self, settings):
        settings.AUTHENTICATION_BACKENDS = [MODEL, "tests.test_backends.Ours"]

    def test_a_site_shapes_its_users(self, everifin_connect, client, django_user_model):
        everifin_connect(client, view="login")
        user = django_user_model.objects.get()
        assert (user.username, user.first_name) == ("bank-alice", "new")
        everifin_connect(Client(), view="login")
        user.refresh_from_db()
        assert user.first_name == "known"

    def test_a_site_refuses_logins(
        self, everifin, everifin_connect, client, caplog, django_user_model
    ):
        response = everifin_connect(client, "bob", view="login")
        assert response.status_code == 403
        assert "verify_claims" in caplog.text
        assert not django_user_model.objects.exists()
        assert everifin.live_sessions("bob") == 0


class TestBesideOthers:
    def test_our_code_goes_to_nobody_else(self, everifin_connect, client, another_login):
        """A backend that takes any credentials is asked, and sees an object without content."""
        everifin_connect(client, view="login")
        assert client.session["_auth_user_backend"] == OURS
        [(query, credentials)] = another_login.given
        assert not query
        assert repr(credentials) == "{'everifin_tokens': LoginAttempt(error=None)}"

    def test_we_take_nobody_elses_code(self, everifin, another_login):
        request = RequestFactory().get("/theirs/", {"code": "theirs", "state": "theirs"})
        auth.authenticate(request, nonce="theirs", code_verifier="theirs")
        assert len(another_login.given) == 1
        assert not everifin.calls

    def test_passwords_are_not_ours(self, everifin, django_user_model):
        user = django_user_model.objects.create_user("ann", password="a password")
        assert auth.authenticate(username="ann", password="a password") == user
        assert auth.authenticate(username="ann", password="wrong") is None
        assert not everifin.calls

    @pytest.mark.parametrize(
        ("listed", "path"),
        [
            ([MODEL, OURS], OURS),
            ([OURS, "tests.test_backends.Ours"], OURS),
            (
                ["tests.test_backends.make_nothing", "tests.test_backends.Ours", OURS],
                f"{__name__}.Ours",
            ),
        ],
    )
    def test_the_first_of_ours_logs_in(self, settings, listed, path):
        settings.AUTHENTICATION_BACKENDS = listed
        backend = login_backend()
        assert backend is not None
        assert backend.path == path

    def test_without_one_of_ours_nobody_does(self, settings):
        settings.AUTHENTICATION_BACKENDS = [MODEL]
        assert login_backend() is None

    def test_a_deactivated_user_is_logged_out(self, everifin_connect, client, django_user_model):
        everifin_connect(client, view="login")
        assert client.get("/plain/").wsgi_request.user.is_authenticated
        django_user_model.objects.update(is_active=False)
        assert not client.get("/plain/").wsgi_request.user.is_authenticated


class TestRaces:
    def test_a_first_login_that_comes_second_is_tried_again(
        self, everifin, everifin_connect, client, monkeypatch, django_user_model
    ):
        """The same person's other login has just stored this identity, under a user of its own."""
        save, faults = grants.save_login_grant, [IdentityTakenError()]

        def save_late(*args, **options):
            if faults:
                raise faults.pop()
            return save(*args, **options)

        monkeypatch.setattr(grants, "save_login_grant", save_late)
        assert everifin_connect(client, view="login").status_code == 302
        assert client.session["_auth_user_id"] == str(django_user_model.objects.get().pk)
        assert everifin.calls["token"] == 1

    def test_a_first_login_that_always_comes_second_changes_nothing(
        self, everifin, everifin_connect, client, monkeypatch, django_user_model
    ):
        def fail(*args, **options):
            raise IdentityTakenError

        monkeypatch.setattr(grants, "save_login_grant", fail)
        assert everifin_connect(client, view="login").status_code == 409
        assert not django_user_model.objects.exists()
        assert everifin.live_sessions("alice") == 0

    def test_a_failure_while_storing_leaves_no_user_and_no_grant(
        self, everifin, everifin_connect, client, monkeypatch, django_user_model
    ):
        def fail(*args, **options):
            raise IntegrityError

        monkeypatch.setattr(grants, "save_login_grant", fail)
        with pytest.raises(IntegrityError):
            everifin_connect(client, view="login")
        assert not django_user_model.objects.exists()
        assert everifin.live_sessions("alice") == 0


class TestSettings:
    def test_another_logins_are_never_ours(self, settings, everifin_connect, client):
        settings.OIDC_CREATE_USER = False
        settings.OIDC_USERNAME_ALGO = "tests.test_backends.missing"
        settings.OIDC_OP_TOKEN_ENDPOINT = "https://theirs.example/token"
        settings.OIDC_VERIFY_SSL = False
        everifin_connect(client, view="login")
        assert client.session["_auth_user_backend"] == OURS

    def test_what_would_go_round_our_checks_is_not_there(self):
        """mozilla-django-oidc's own ways to a token, which verify less."""
        own = {"get_token", "verify_token", "store_tokens"}
        assert own <= set(dir(OIDCAuthenticationBackend))
        assert not own & set(dir(EverifinBackend))

    def test_the_log_of_mozilla_django_oidc_names_nobody(
        self, everifin, everifin_connect, client, settings, caplog
    ):
        settings.EVERIFIN_CREATE_USERS = False
        with caplog.at_level(logging.DEBUG):
            everifin_connect(client, view="login")
        assert "this Everifin account" in caplog.text
        assert "example.test" not in "".join(
            one.getMessage() for one in caplog.records if "oidc" in one.name
        )

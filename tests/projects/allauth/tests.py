"""
Everifin beside django-allauth, which has accounts of its own and asks the other identity provider.

``test_beside`` runs with it once more, with django-allauth's backend, middleware and apps.
"""

from io import StringIO
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.socialaccount.models import SocialAccount
from django.core.management import call_command
from django.test import Client

from everifin_django.models import BankToken, LoginLink
from everifin_django.testing.fake import redirect_target
from tests.test_beside import (
    OURS,
    backend_of,
    log_in_with_everifin,
    site,
    their_key,
    theirs,
    user_of,
)

ALLAUTH = "allauth.account.auth_backends.AuthenticationBackend"
SOCIAL = "/allauth/oidc/theirs/login/"
ISSUER = "https://idp.theirs.test/auth/realms/theirs"

pytestmark = pytest.mark.django_db


@pytest.fixture
def log_in_with_allauth(theirs):
    """Log in at the other identity provider by django-allauth's own client."""

    def log_in(client: Client, username: str = "alice") -> Any:
        start = client.post(SOCIAL)
        return client.get(theirs.authorize(redirect_target(start), username))

    return log_in


@pytest.fixture
def ann(django_user_model):
    return django_user_model.objects.create_user("ann", "ann@site.example", "a password")


class TestAccounts:
    def test_its_pages_open(self, client, everifin):
        for page in ("login", "signup", "password/reset"):
            assert client.get(f"/allauth/{page}/").status_code == 200
        assert client.get(SOCIAL).status_code == 200
        assert not everifin.calls

    def test_its_user_connects_and_keeps_the_session(self, client, ann, everifin, everifin_connect):
        there = client.post("/allauth/login/", {"login": "ann", "password": "a password"})
        assert there["Location"] == "/plain/"
        assert user_of(client) == str(ann.pk)
        session = client.session.session_key
        assert everifin_connect(client, next="/accounts/")["Location"] == "/accounts/"
        assert client.get("/accounts/").status_code == 200
        assert (user_of(client), client.session.session_key) == (str(ann.pk), session)
        client.post("/allauth/logout/")
        assert user_of(client) is None
        assert everifin.live_sessions() == 1

    def test_its_logout_ends_our_session_at_everifin(
        self,
        client,
        everifin,
        log_in_with_everifin,
    ):
        log_in_with_everifin(client)
        client.post("/allauth/logout/")
        assert user_of(client) is None
        assert everifin.live_sessions() == 0

    def test_a_login_of_ours_leaves_its_tables_alone(
        self,
        client,
        log_in_with_everifin,
    ):
        log_in_with_everifin(client)
        assert not SocialAccount.objects.exists()
        assert not EmailAddress.objects.exists()
        assert client.get("/allauth/email/").status_code == 200

    def test_who_is_not_logged_in_is_sent_to_its_login(self, client, everifin):
        start = client.get("/everifin/connect/")
        assert start["Location"].startswith("/allauth/login/?next=")


class TestSocialLogin:
    def test_each_redeems_its_own_code_alone(
        self,
        everifin,
        theirs,
        log_in_with_everifin,
        log_in_with_allauth,
    ):
        one, other = Client(), Client()
        log_in_with_allauth(one)
        assert (everifin.calls["token"], theirs.calls["token"]) == (0, 1)
        log_in_with_everifin(other)
        assert (everifin.calls["token"], theirs.calls["token"]) == (1, 1)
        assert (backend_of(one), backend_of(other)) == (ALLAUTH, OURS)
        assert user_of(one) != user_of(other)

    def test_it_does_not_take_our_user(
        self,
        client,
        log_in_with_everifin,
        log_in_with_allauth,
        django_user_model,
    ):
        """Somebody has the address already, so it asks for another one."""
        log_in_with_everifin(Client())
        assert log_in_with_allauth(client)["Location"].startswith("/allauth/3rdparty/signup/")
        assert user_of(client) is None
        assert django_user_model.objects.count() == 1

    def test_two_under_way_at_once_both_finish(self, client, everifin, theirs):
        ours = everifin.authorize(redirect_target(client.post("/everifin/login/")))
        other = theirs.authorize(client.post(SOCIAL)["Location"], "bob")
        assert client.get(ours).status_code == 302
        assert backend_of(client) == OURS
        assert client.get(other).status_code == 302
        assert (everifin.calls["token"], theirs.calls["token"]) == (1, 1)

    def test_its_user_connects_everifin(
        self, client, everifin, everifin_connect, log_in_with_allauth
    ):
        log_in_with_allauth(client)
        everifin_connect(client)
        assert client.get("/accounts/").status_code == 200
        assert str(BankToken.objects.get().user_id) == user_of(client)
        client.post("/allauth/logout/")
        assert everifin.live_sessions() == 1


class TestImport:
    """everifin_import, from the rows that django-allauth itself has made."""

    @pytest.fixture
    def known(self, log_in_with_allauth, settings, theirs):
        """Two users of django-allauth, and the site now asks the identity provider by our app."""
        for name in ("alice", "bob"):
            log_in_with_allauth(Client(), name)
        settings.EVERIFIN_IDP_URL = "https://idp.theirs.test"
        settings.EVERIFIN_REALM = "theirs"
        return SocialAccount.objects.order_by("pk")

    def run(self, **options: Any) -> tuple[str, str]:
        out, err = StringIO(), StringIO()
        options = {"issuer": ISSUER, "provider": "theirs", "apply": True, **options}
        call_command("everifin_import", "allauth", stdout=out, stderr=err, **options)
        return out.getvalue(), err.getvalue()

    def test_its_users_log_in_as_themselves(self, known, theirs):
        assert self.run() == ("2 created, 0 known, 0 refused.\n", "")
        assert self.run()[0] == "0 created, 2 known, 0 refused.\n"
        links = {(one.user_id, one.subject) for one in LoginLink.objects.all()}
        assert links == {
            (one.user_id, theirs.user(name).sub)
            for one, name in zip(known, ("alice", "bob"), strict=True)
        }

    def test_another_provider_has_no_rows(self, known):
        assert self.run(provider="other")[0] == "0 created, 0 known, 0 refused.\n"

    @pytest.mark.parametrize(
        ("claims", "reason"),
        [({"iss": "https://other.example"}, "another issuer"), ({"sub": "other"}, "A subject")],
    )
    @pytest.mark.parametrize("is_nested", [True, False], ids=["since 65.11", "before"])
    def test_what_the_row_says_of_itself_is_held_against_it(self, known, claims, reason, is_nested):
        account = known[0]
        told = {**account.extra_data["id_token"], **claims}
        account.extra_data = {"id_token": told} if is_nested else told
        account.save()
        out, err = self.run()
        assert out == "1 created, 0 known, 1 refused.\n"
        assert err.startswith(f"SocialAccount {account.pk}: refused.")
        assert reason in err

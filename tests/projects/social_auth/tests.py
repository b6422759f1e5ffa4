"""everifin_import, from the rows of python-social-auth."""

from io import StringIO
from typing import Any

import jwt
import pytest
from django.core.management import call_command
from social_django.models import UserSocialAuth

from everifin_django.models import LoginLink
from everifin_django.testing.factories import UserFactory

ISSUER = "https://idp.everifin.test/auth/realms/everifin_app"
KEY = "a key of theirs, of thirty-two bytes and more"

pytestmark = pytest.mark.django_db


def run(**options: Any) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    options = {"issuer": ISSUER, "provider": "oidc", "apply": True, **options}
    call_command("everifin_import", "social-auth", stdout=out, stderr=err, **options)
    return out.getvalue(), err.getvalue()


def known(uid: str = "abc", provider: str = "oidc", **more: Any) -> Any:
    return UserSocialAuth.objects.create(
        user=UserFactory(), provider=provider, uid=uid, extra_data=more
    )


def token(**claims: str) -> str:
    return jwt.encode({"iss": ISSUER, "sub": "abc", **claims}, KEY)


def test_its_users_get_links_once():
    row = known(id="abc", id_token=token(), token_type="Bearer")
    known(uid="of another provider", provider="github")
    assert run() == ("1 created, 0 known, 0 refused.\n", "")
    assert run()[0] == "0 created, 1 known, 0 refused.\n"
    link = LoginLink.objects.get()
    assert (link.user, link.subject, link.made_by) == (row.user, "abc", "import")


def test_a_row_without_a_token_is_of_the_issuer_that_is_given():
    known()
    assert run()[0] == "1 created, 0 known, 0 refused.\n"


def test_a_token_of_another_issuer_refuses_its_row():
    row = known(id_token=token(iss="https://other.example"))
    out, err = run()
    assert out == "0 created, 0 known, 1 refused.\n"
    assert err == f"UserSocialAuth {row.pk}: refused. It is of another issuer.\n"


@pytest.mark.parametrize("kept", [{"sub": "abc"}, {"id_token": token()}])
def test_a_row_that_is_known_by_a_name_has_no_subject(kept):
    """With ID_KEY or USERNAME_AS_USER_ID the uid is what the user can change at the provider."""
    known(uid="ann@site.example", **kept)
    out, err = run()
    assert out == "0 created, 0 known, 1 refused.\n"
    assert "A subject has" in err


def test_a_row_that_says_which_claim_it_is_known_by():
    row = known(uid="ann@site.example")
    if not hasattr(row, "id_key"):
        return  # releases before 6 do not say it
    UserSocialAuth.objects.update(id_key="email")
    assert run()[0] == "0 created, 0 known, 1 refused.\n"
    UserSocialAuth.objects.update(id_key="sub")
    assert run()[0] == "1 created, 0 known, 0 refused.\n"

"""Users whose e-mail addresses are unique, though they are named otherwise."""

import pytest

from tests.projects.users import User, user_of

pytestmark = pytest.mark.django_db


def test_an_email_is_not_given_twice(client, everifin, everifin_connect):
    User.objects.create_user("ann", "Alice@example.test")
    assert everifin_connect(client, view="login").status_code == 403
    assert everifin.live_sessions() == 0
    assert everifin_connect(client, "bob", view="login").status_code == 302
    assert user_of(client).email == "bob@example.test"


def test_without_a_verified_email_nobody_is_made(client, everifin, everifin_connect):
    everifin.add_user("carol", email_verified=False)
    assert everifin_connect(client, "carol", view="login").status_code == 403
    assert not User.objects.exists()

"""The example writes to a user whose logins change."""

import pytest
from django.core import mail

from everifin_django.connections import links
from everifin_django.models import LoginLink
from everifin_django.oauth.id_token import Identity
from everifin_django.signals import login_link_created, login_link_removed
from everifin_django.testing.factories import UserFactory
from example_project import receivers

pytestmark = pytest.mark.django_db

ALICE = Identity("https://idp.everifin.test/auth/realms/everifin_app", "alice")


@pytest.fixture(autouse=True)
def connected():
    receivers.connect()
    yield
    login_link_created.disconnect(dispatch_uid="example_project.created")
    login_link_removed.disconnect(dispatch_uid="example_project.removed")


@pytest.mark.parametrize(("address", "letters"), [("ann@site.example", 2), ("", 0)])
def test_a_user_with_an_email_address_is_told(django_capture_on_commit_callbacks, address, letters):
    user = UserFactory(email=address)
    with django_capture_on_commit_callbacks(execute=True):
        links.remove(links.create(user, ALICE, LoginLink.MadeBy.CONNECT))
    assert len(mail.outbox) == letters
    assert all("Everifin account" in letter.body for letter in mail.outbox)

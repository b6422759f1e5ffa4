"""Login links in the admin: search, move and release, with permission and log."""

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission

from everifin_django.connections import links
from everifin_django.models import BankToken, LoginLink
from everifin_django.signals import login_link_created, login_link_removed
from everifin_django.testing.factories import BankTokenFactory, LoginLinkFactory, UserFactory

LINKS = "/admin/everifin_django/loginlink/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def link():
    return LoginLinkFactory(user=UserFactory(username="ann"), subject="Abc-1")


@pytest.fixture
def heard():
    events = []

    def hear(signal, user, **kwargs):
        events.append((signal, user))

    for signal in (login_link_created, login_link_removed):
        signal.connect(hear)
    yield events
    for signal in (login_link_created, login_link_removed):
        signal.disconnect(hear)


@pytest.mark.parametrize(
    ("words", "is_found"), [("Abc-1", True), ("ann", True), ("Abc", False), ("nobody", False)]
)
def test_whose_account_it_is_can_be_looked_up(admin_client, link, words, is_found):
    page = admin_client.get(LINKS, {"q": words}).content.decode()
    assert (f"{LINKS}{link.pk}/change/" in page) == is_found


def test_a_link_is_moved_with_what_was_connected(
    admin_client, link, heard, django_capture_on_commit_callbacks, everifin
):
    BankTokenFactory(user=link.user, subject="Abc-1", refresh_token=None)
    bob = UserFactory(username="bob")
    with django_capture_on_commit_callbacks(execute=True):
        admin_client.post(f"{LINKS}{link.pk}/change/", {"user": bob.pk})
    assert LoginLink.objects.get().user == bob
    assert BankToken.objects.get().status == "disconnected"
    assert heard == [(login_link_removed, link.user), (login_link_created, bob)]
    assert LogEntry.objects.get().object_id == str(link.pk)


def test_to_save_it_unchanged_changes_nothing(admin_client, link, heard):
    admin_client.post(f"{LINKS}{link.pk}/change/", {"user": link.user.pk})
    assert LoginLink.objects.get().user == link.user
    assert not heard


@pytest.mark.parametrize("way", ["one", "several"])
def test_a_link_is_released(admin_client, link, heard, django_capture_on_commit_callbacks, way):
    with django_capture_on_commit_callbacks(execute=True):
        if way == "one":
            admin_client.post(f"{LINKS}{link.pk}/delete/", {"post": "yes"})
        else:
            chosen = {"action": "delete_selected", "_selected_action": [link.pk], "post": "yes"}
            admin_client.post(LINKS, chosen)
    assert not LoginLink.objects.exists()
    assert heard == [(login_link_removed, link.user)]
    assert LogEntry.objects.get().object_id == str(link.pk)
    links.link(UserFactory(), link.issuer, link.subject)


def test_who_may_only_look_changes_nothing(client, link):
    clerk = UserFactory(username="clerk", is_staff=True)
    clerk.user_permissions.add(Permission.objects.get(codename="view_loginlink"))
    client.force_login(clerk, backend="django.contrib.auth.backends.ModelBackend")
    assert client.get(f"{LINKS}{link.pk}/change/").status_code == 200
    bob = UserFactory(username="bob")
    assert client.post(f"{LINKS}{link.pk}/change/", {"user": bob.pk}).status_code == 403
    assert client.post(f"{LINKS}{link.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.get(f"{LINKS}add/").status_code == 403
    assert LoginLink.objects.get().user == link.user

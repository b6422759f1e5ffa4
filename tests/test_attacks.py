"""The attacks that docs/security.md lists, tried at the site's doors as an attacker would."""

from __future__ import annotations

from typing import Any

import pytest

from everifin_django.models import BankToken

LOGIN = "/everifin/login/"
CONNECT = "/everifin/connect/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def user(django_user_model) -> Any:
    return django_user_model.objects.create_user("ann", "ann@site.example", "a password")


@pytest.fixture
def browser(client, user) -> Any:
    """A browser in which Ann is logged in, by password."""
    client.force_login(user)
    return client


@pytest.mark.parametrize("end", ["deactivate", "delete"])
def test_a13_a_user_who_goes_while_everifin_exchanges_the_code_leaves_no_live_grant(
    everifin, browser, user, end
):
    back = everifin.authorize(browser.post(CONNECT)["Location"])

    def hook(headers, claims):
        if end == "delete":
            user.delete()
        else:
            user.is_active = False
            user.save()
        return headers, claims

    everifin.id_token_hook = hook
    assert browser.get(back).status_code == 400
    assert not BankToken.objects.exists()
    assert everifin.live_sessions("alice") == 0

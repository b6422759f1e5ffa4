"""The attacks that docs/security.md lists, tried at the site's doors as an attacker would."""

from __future__ import annotations

from typing import Any

import pytest

from everifin_django import identity
from everifin_django.identity import forget_signing_keys
from everifin_django.models import BankToken

LOGIN = "/everifin/login/"
CONNECT = "/everifin/connect/"
BACKCHANNEL = "/everifin/backchannel-logout/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def user(django_user_model) -> Any:
    return django_user_model.objects.create_user("ann", "ann@site.example", "a password")


@pytest.fixture
def browser(client, user) -> Any:
    """A browser in which Ann is logged in, by password."""
    client.force_login(user)
    return client


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Give the moment that the cache of keys goes by, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(identity, "monotonic", lambda: now[0])
    return now


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


@pytest.mark.parametrize("fault", [None, {"status": 503}, {"body": "{}"}, {"html": True}], ids=str)
def test_a20_anybody_may_flood_the_logout_door_and_the_keys_are_hardly_asked_for(
    client, everifin, settings, clock, fault
):
    settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
    forget_signing_keys()
    if fault is not None:
        everifin.faults.add("certs", **fault)
    for number in range(200):
        token = everifin.logout_token(sid="x", headers={"kid": f"unknown-{number}"})
        assert client.post(BACKCHANNEL, {"logout_token": token}).status_code == 400
    # A key may be newer than the very first ones, so after these alone it is looked for at once.
    assert everifin.calls["certs"] == (2 if fault is None else 1)
    clock[0] += 10
    client.post(BACKCHANNEL, {"logout_token": token})
    assert everifin.calls["certs"] == (3 if fault is None else 2)

"""F1 with the real thing: 32 requests, one refresh, and the grant lives."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target
from everifin_django.testing.sandbox.server import serve
from tests.protocol.stampede import stampede
from tests.providers.contract.providers import Visitor, from_keycloak
from tests.providers.keycloak.bank import Bank
from tests.support.grants import refresh_again

pytestmark = [pytest.mark.keycloak, pytest.mark.django_db(transaction=True)]

CALLBACK = "http://testserver/everifin/callback/"
PROCESSES, THREADS = 2, 16


@pytest.fixture
def strict_realm(realm):
    from_keycloak(realm).switches.reset()
    realm.set(eventsEnabled=True, enabledEventTypes=["REFRESH_TOKEN", "REFRESH_TOKEN_ERROR"])
    realm.call("DELETE", "events")
    yield realm
    realm.set(eventsEnabled=False)


def refreshes(realm) -> list[str]:
    return [event["type"] for event in realm.call("GET", "events?max=1000")]


def test_f1_processes_that_need_a_new_token_at_once(
    client, django_user_model, settings, strict_realm
):
    realm = strict_realm
    with serve(Bank(realm)) as bank:
        there = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": realm.keycloak.url,
            "EVERIFIN_API_URL": bank.url,
        }
        for name, value in there.items():
            setattr(settings, name, value)
        user = django_user_model.objects.create_user("holder")
        client.force_login(user)
        start = client.post("/everifin/connect/")
        visitor = Visitor(from_keycloak(realm), redirect_uri=CALLBACK)
        client.get(CALLBACK, visitor.agree(redirect_target(start)))
        BankToken.objects.update(
            issued_at=timezone.now() - timedelta(minutes=6), access_expires_at=timezone.now()
        )

        answers = stampede(
            client.session.session_key, processes=PROCESSES, threads=THREADS, settings=there
        )

        assert [answer["status"] for answer in answers] == [200] * (PROCESSES * THREADS)
        assert refreshes(realm) == ["REFRESH_TOKEN"]
        # The grant is alive: it can be refreshed again.
        assert refresh_again(user) == 3

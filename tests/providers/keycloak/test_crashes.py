"""The crash_run with a real Keycloak, which keeps findings of its own."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.utils import timezone

from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from tests.protocol.crash_points import crash_run
from tests.protocol.crash_users import SCOPE, Users
from tests.providers.contract.providers import from_keycloak
from tests.providers.keycloak.fault_proxy import FaultProxy

pytestmark = [pytest.mark.keycloak, pytest.mark.django_db(transaction=True)]

ACCESS_TOKEN_SECONDS = 5
"""Keycloak counts in whole seconds: one of two lives for one, now and then."""

DEADLINE_SECONDS = 8
"""On a busy machine Keycloak takes seconds, and what is given up too early costs a grant."""

CALL_SECONDS = 30
PASSWORD = "of nobody"
DONE, REFUSED = "REFRESH_TOKEN", "REFRESH_TOKEN_ERROR"


class KeycloakUsers(Users):
    """Each is one at Keycloak too. They show it their passwords, for what a login's pages give."""

    everifin: FaultProxy

    def introduce(self, user: Any) -> None:
        password = {"type": "password", "value": PASSWORD, "temporary": False}
        told = {
            "username": name_of(user),
            "enabled": True,
            "email": f"{name_of(user)}@example.test",
            "firstName": "Some",
            "lastName": "Body",
            "credentials": [password],
        }
        self.everifin.realm_there.call("POST", "users", json=told)
        self.everifin.add_user(name_of(user))

    def accounts(self) -> dict[str, list[str]]:
        return {}  # the bank knows them by their ids at Keycloak

    def is_good(self, token: Secret) -> bool:
        """To ask Keycloak is to spend it, which is what comes next."""
        return True

    def alive(self) -> set[str]:
        return set(self.everifin.realm_there.client_sessions())

    def grant(self, user: Any) -> tuple[TokenSet, Identity]:
        realm, now = self.everifin.realm_there, timezone.now()
        answer = requests.post(
            f"{realm.issuer}/protocol/openid-connect/token",
            data={
                "grant_type": "password",
                "client_id": realm.client["clientId"],
                "client_secret": realm.client["secret"],
                "username": name_of(user),
                "password": PASSWORD,
                "scope": SCOPE,
            },
            timeout=CALL_SECONDS,
        )
        assert answer.status_code == 200, answer.text
        said = answer.json()
        granted = TokenSet(
            access=Secret(said["access_token"]),
            refresh=Secret(said["refresh_token"]),
            id=None,
            scope=SCOPE,
            sid=said["session_state"],
            issued_at=now,
            expires_at=now,
            refresh_expires_at=now + timedelta(seconds=said["refresh_expires_in"]),
        )
        return granted, Identity(realm.issuer, self.everifin.user(name_of(user)).sub)


def name_of(user: Any) -> str:
    return f"crashed-{user.pk}"


@pytest.fixture
def strict_realm(realm):
    from_keycloak(realm).switches.reset()
    realm.set(
        eventsEnabled=True,
        enabledEventTypes=[DONE, REFUSED],
        accessTokenLifespan=ACCESS_TOKEN_SECONDS,
    )
    realm.set_client(directAccessGrantsEnabled=True, consentRequired=False)
    realm.call("DELETE", "events")
    yield realm
    realm.set_client(directAccessGrantsEnabled=False, consentRequired=True)
    realm.set(eventsEnabled=False, accessTokenLifespan=60)


def test_no_crash_loses_a_grant(settings, tmp_path, strict_realm):
    findings = crash_run(
        FaultProxy(strict_realm),
        KeycloakUsers,
        settings,
        tmp_path,
        {"EVERIFIN_ISSUER": strict_realm.issuer},
        deadline_seconds=DEADLINE_SECONDS,
    )
    events = strict_realm.call("GET", "events?max=1000000")
    told = Counter(event["type"] for event in events)
    print("Keycloak's own log", *(f"  {kind:<58} {n:>7}" for kind, n in told.items()), sep="\n")
    done = sum(record.given is not None for record in findings.records)
    assert told == Counter({DONE: done, REFUSED: len(findings.records) - done})

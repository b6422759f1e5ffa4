"""The users of a site under crash_run, each with a connection to the sandbox."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import grants, revocation
from everifin_django.models import BankToken, PendingRevocation, database_of
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from everifin_django.testing.factories import UserFactory
from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.api import accounts_of
from everifin_django.testing.sandbox.store import Session, digest
from tests.projects.tenants.routing import in_tenant
from tests.support.grants import refresh_again

SCOPE = "openid ais"
GRANT = timedelta(minutes=30)


class Users:
    """
    *sessions* holds the key of each user's Django session by the user's primary key.

    Grants are made in Everifin's store: the steps of a login are not what is tested here. A class
    with another Everifin says so in ``introduce``, ``grant``, ``is_good`` and ``alive``.
    """

    databases: Mapping[str, str] = {}
    """The name of each tenant's database, by its alias."""

    def __init__(self, everifin: Sandbox, count: int) -> None:
        self.everifin = everifin
        self.sessions: dict[str, str] = {}
        for number in range(count):
            user = self.make_user(number)
            self.introduce(user)
            self._connect(user)
            client = Client()
            client.force_login(user)
            self.sessions[self.name(user)] = client.cookies[settings.SESSION_COOKIE_NAME].value

    def make_user(self, number: int) -> Any:
        return UserFactory()

    def name(self, user: Any) -> str:
        """Return the name of *user* among all, which is also that at Everifin."""
        return str(user.pk)

    def accounts(self) -> dict[str, list[str]]:
        """The ids of each user's accounts at the bank, as a page shows them."""
        found = {
            name: accounts_of(self.everifin, self.everifin.user(name)) for name in self.sessions
        }
        return {name: [account.id for account in accounts] for name, accounts in found.items()}

    def lost(self) -> list[BankToken]:
        """The connections that Everifin has ended."""
        ended = BankToken.objects.filter(status=BankToken.Status.NEEDS_RECONNECT)
        return list(ended.select_related("user"))

    def reconnect(self, connection: BankToken) -> None:
        """Give the user of a lost connection a new grant, as if they had connected again."""
        self._connect(connection.user)

    def stored_token(self, connection: BankToken) -> str:
        """Return the name in Everifin's records of the refresh token that is stored."""
        token = connection.open_token("refresh")
        return digest(token.reveal()) if token else ""

    def broken(self) -> list[str]:
        """Refresh every connection once more; return what is wrong with those that cannot be."""
        failures = []
        BankToken.objects.update(retry_after=None)
        for row in BankToken.objects.select_related("user"):
            token = row.open_token("refresh")
            if token is None or not self.is_good(token):
                failures.append(f"The stored token of {row.user_id} is one Everifin would refuse.")
            elif refresh_again(row.user) != row.token_version + 1:
                failures.append(f"The connection of {row.user_id} was not refreshed.")
        return failures

    def orphans(self) -> set[str]:
        """Empty the outbox; return the sessions that are alive at Everifin, but not stored here."""
        PendingRevocation.objects.update(retry_after=None)
        revocation.revoke_due()
        assert not PendingRevocation.objects.exists()
        return self.alive() - set(BankToken.objects.values_list("sid", flat=True))

    def introduce(self, user: Any) -> None:
        """Let Everifin know *user*."""
        self.everifin.add_user(self.name(user))

    def is_good(self, token: Secret) -> bool:
        """Would Everifin take this refresh token?"""
        known = self.everifin.store.refresh_token(token.reveal())
        return known is not None and not known.is_spent and not known.session.is_ended

    def alive(self) -> set[str]:
        """The sessions that are alive at Everifin."""
        now = self.everifin.now()
        return {session.id for session in self.everifin.store.sessions() if session.is_live(now)}

    def grant(self, user: Any) -> tuple[TokenSet, Identity]:
        """Give a grant whose access token has just run out."""
        now, name = timezone.now(), str(uuid.uuid4())
        until = now + GRANT
        sub = self.everifin.user(self.name(user)).sub
        self.everifin.store.add_session(
            Session(name, sub, SCOPE, now.timestamp(), until.timestamp())
        )
        self.everifin.store.add_refresh_token(f"refresh-{name}", name, until.timestamp())
        granted = TokenSet(
            access=Secret("ran out"),
            refresh=Secret(f"refresh-{name}"),
            id=None,
            scope=SCOPE,
            sid=name,
            issued_at=now,
            expires_at=now,
            refresh_expires_at=until,
        )
        return granted, Identity(conf.issuer, sub)

    def _connect(self, user: Any) -> None:
        grants.save_grant(user, *self.grant(user))


class TenantUsers(Users):
    """The users of one tenant, whose primary keys those of the other have too."""

    def __init__(self, everifin: Sandbox, count: int, alias: str) -> None:
        self.alias = alias
        super().__init__(everifin, count)

    def make_user(self, number: int) -> Any:
        return get_user_model().objects.create(pk=1000 + number, username=f"user {number}")

    def name(self, user: Any) -> str:
        return f"{self.alias}.{user.pk}"

    def alive(self) -> set[str]:
        now, store = self.everifin.now(), self.everifin.store
        subs = {self.everifin.user(name).sub for name in self.sessions}
        return {one.id for one in store.sessions() if one.sub in subs and one.is_live(now)}


class TwoTenants(Users):
    """The users of two databases, between which a context variable chooses."""

    def __init__(self, everifin: Sandbox, count: int, databases: Mapping[str, str]) -> None:
        self.everifin = everifin
        self.databases = databases
        self.tenants: dict[str, TenantUsers] = {}
        for alias in databases:
            with in_tenant(alias):
                self.tenants[alias] = TenantUsers(everifin, count // len(databases), alias)
        parts = self.tenants.values()
        self.sessions = {name: key for part in parts for name, key in part.sessions.items()}

    def lost(self) -> list[BankToken]:
        return self._of_all(Users.lost)

    def reconnect(self, connection: BankToken) -> None:
        alias = database_of(connection)
        with in_tenant(alias):
            self.tenants[alias].reconnect(connection)

    def broken(self) -> list[str]:
        return self._of_all(Users.broken)

    def orphans(self) -> set[str]:
        return set(self._of_all(Users.orphans))

    def _of_all(self, ask: Callable[[Users], Iterable[Any]]) -> list[Any]:
        found: list[Any] = []
        for alias, users in self.tenants.items():
            with in_tenant(alias):
                found += ask(users)
        return found

"""The users of a site under crash_run, each with a connection to the sandbox."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.test import Client
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import grants, revocation
from everifin_django.models import BankToken, PendingRevocation
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from everifin_django.testing.factories import UserFactory
from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.store import Session, digest
from tests.support.grants import refresh_again

SCOPE = "openid ais"
GRANT = timedelta(minutes=30)


class Users:
    """
    *sessions* holds the key of each user's Django session by the user's primary key.

    Grants are made in Everifin's store: the steps of a login are not what is tested here. Who has
    another Everifin says so in ``introduce``, ``grant``, ``is_good`` and ``alive``.
    """

    def __init__(self, everifin: Sandbox, count: int) -> None:
        self.everifin = everifin
        self.sessions: dict[str, str] = {}
        for _ in range(count):
            user = UserFactory()
            self.introduce(user)
            self._connect(user)
            client = Client()
            client.force_login(user)
            self.sessions[str(user.pk)] = client.cookies[settings.SESSION_COOKIE_NAME].value

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
        self.everifin.add_user(str(user.pk))

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
        sub = self.everifin.user(str(user.pk)).sub
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

"""
The life of a user's tokens: saved, lent, ended; and ``everifin_for(user)``, the bank API as that
user.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, OperationalError, router, transaction
from django.db.models import F
from django.dispatch import Signal
from django.utils import timezone

from everifin_django.bank.client import Client, EndUser
from everifin_django.conf import conf
from everifin_django.connections import refresh, revocation
from everifin_django.encryption import active_key
from everifin_django.exceptions import IdentityTakenError, ScopeMissingError, TokenMissingError
from everifin_django.models import BankToken, PendingRevocation
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from everifin_django.signals import everifin_connected, everifin_disconnected

logger = logging.getLogger(__name__)

SAVE_TRIES = 5


@dataclass(frozen=True, slots=True)
class AccessToken:
    """
    An access token on loan until *overdue_at*, with the version of the connection it came from.
    """

    token: Secret
    version: int
    scopes: frozenset[str]
    overdue_at: datetime


def get_access_token(user: Any, *, rejected_version: int | None = None) -> AccessToken:
    """
    Return an access token for *user* that is good to use.

    One query and one decryption when the stored token is fresh; else, and for errors, as
    ``refresh.ensure_fresh``.
    """
    row = refresh.ensure_fresh(user, rejected_version=rejected_version)
    token = row.open_token("access")
    if token is None:
        raise TokenMissingError("The user has no connection to Everifin.")
    return AccessToken(
        token, row.token_version, row.scopes, row.overdue_at(conf.refresh_margin_seconds)
    )


def save_grant(user: Any, tokens: TokenSet, identity: Identity | None) -> BankToken:
    """
    Store a new grant as the user's connection, and return it.

    A grant that it replaces goes to the outbox, unless both may share one session at Everifin,
    where ending the old would end the new. Some three queries.

    Errors: IdentityTakenError if *identity* is connected to another user; nothing is stored then.
    """
    for tries_left in reversed(range(SAVE_TRIES)):
        row = _connection_of(user, identity)
        try:
            with transaction.atomic(using=_alias()):
                saved = _save(user, row or BankToken(user=user), tokens, identity)
        except IntegrityError:
            # Another process stored this user or this identity between the statements.
            if not tries_left:
                raise
            continue
        if saved is not None:
            break
    else:
        raise OperationalError("The connection kept changing while it was to be stored.")
    logger.info("Connection %s was stored.", saved.pk)
    _announce(everifin_connected, user, saved, scope=saved.scope)
    return saved


def disconnect(user: Any, reason: str = "disconnected") -> bool:
    """
    End the user's connection here and at Everifin; return whether nothing of it is left alive
    there.

    Here it ends at once, in one committed step; from then on nobody uses or renews the tokens. What
    cannot be ended at Everifin now waits in the outbox. Some four queries and one request, which
    takes at most EVERIFIN_DEADLINE_SECONDS.
    """
    connection, pending = _end(user, reason)
    if connection is not None:
        logger.info("Connection %s was ended: %s.", connection.pk, reason)
        _announce(everifin_disconnected, user, connection)
    if pending is None:
        return True
    if refresh.in_transaction():
        # A rollback brings the connection back, and its grant must still be alive then.
        # A function: Django 5.2 cannot name a partial when it fails.
        transaction.on_commit(lambda: revocation.revoke(pending), using=_alias(), robust=True)
        return False
    return revocation.revoke(pending)


def mark_disconnected(connection: BankToken, reason: str) -> None:
    """
    End a connection whose session Everifin has ended by itself, unless it was connected again since
    it was read. One statement, no request.
    """
    same_session = BankToken.objects.using(_alias()).filter(pk=connection.pk, sid=connection.sid)
    if same_session.exclude(status=BankToken.Status.DISCONNECTED).update(
        **_NOTHING,
        status=BankToken.Status.DISCONNECTED,
        token_version=F("token_version") + 1,
        updated_at=timezone.now(),
    ):
        logger.info("Connection %s was ended: %s.", connection.pk, reason)
        _announce(everifin_disconnected, connection.user, connection)


class Everifin(Client):
    """
    Everifin as one user: ``request.everifin``, and what ``everifin_for`` gives.

    Making one costs nothing. The first call reads an access token (one query, one decryption while
    it is fresh), later calls of the same object use it again.
    """

    _source: UserTokenSource

    def __init__(self, user: Any, *, end_user: EndUser | None = None) -> None:
        self.user = user
        super().__init__(UserTokenSource(user), end_user=end_user)

    def connection(self) -> BankToken | None:
        """
        Return the user's connection as the database has it, or None if there never was one. One
        query, no decryption.
        """
        if not self.user.is_authenticated:
            return None
        return BankToken.objects.filter(user=self.user).first()

    async def aconnection(self) -> BankToken | None:
        return await sync_to_async(self.connection)()

    def health(self) -> BankToken.Health:
        """Return how the connection is, for people. One query."""
        connection = self.connection()
        return BankToken.Health.DISCONNECTED if connection is None else connection.health()

    async def ahealth(self) -> BankToken.Health:
        return await sync_to_async(self.health)()

    def is_connected(self) -> bool:
        """Tell whether calls can be made without the user connecting again. One query."""
        return self.health() not in (
            BankToken.Health.DISCONNECTED,
            BankToken.Health.NEEDS_RECONNECT,
        )

    async def ais_connected(self) -> bool:
        return await sync_to_async(self.is_connected)()

    def ensure_token(self, scopes: frozenset[str] = frozenset()) -> None:
        """
        Make the access token fresh now, so that later calls do not have to. No query if it has been
        done.

        Errors: as ``get_access_token``; ScopeMissingError when the user granted less than *scopes*.
        """
        if missing := scopes - self._source.access_token().scopes:
            raise ScopeMissingError(missing)

    async def aensure_token(self, scopes: frozenset[str] = frozenset()) -> None:
        await sync_to_async(self.ensure_token)(scopes)


class UserTokenSource:
    """
    Gives the client one user's access token, and a newer one when Everifin refuses it.
    """

    def __init__(self, user: Any) -> None:
        self._user = user
        self._access_token: AccessToken | None = None

    def access_token(self) -> AccessToken:
        if self._access_token is None or self._access_token.overdue_at <= timezone.now():
            self._access_token = get_access_token(self._user)
        return self._access_token

    def get(self) -> Secret:
        return self.access_token().token

    def refresh(self, rejected: Secret) -> Secret:
        version = self._access_token.version if self._access_token is not None else None
        self._access_token = get_access_token(self._user, rejected_version=version)
        return self._access_token.token


def everifin_for(user: Any) -> Everifin:
    """
    Return Everifin as *user*, for code that runs without a request: a command, a task, a shell.

    Nobody is present, so no end user's IP address is sent. Long-running code may keep the object:
    it asks for a new access token before the old one expires. No query until it is used.
    """
    return Everifin(user)


_NOTHING: dict[str, Any] = {
    "access_ciphertext": "",
    "refresh_ciphertext": "",
    "id_ciphertext": "",
    "access_expires_at": None,
    "refresh_expires_at": None,
    "sid": "",
    "lease_id": None,
    "lease_until": None,
    "retry_after": None,
    "failures": 0,
    "last_error": "",
}


def _alias() -> str:
    return router.db_for_write(BankToken)


def _end(user: Any, reason: str) -> tuple[BankToken | None, PendingRevocation | None]:
    """The connection as it was before it was ended here, and its entry in the outbox."""
    while True:
        row = BankToken.objects.using(_alias()).filter(user=user).first()
        if row is None or row.status == BankToken.Status.DISCONNECTED:
            return None, None
        same_version = BankToken.objects.using(_alias()).filter(
            pk=row.pk, token_version=row.token_version
        )
        with transaction.atomic(using=_alias()):
            if same_version.update(
                **_NOTHING,
                status=BankToken.Status.DISCONNECTED,
                token_version=row.token_version + 1,
                updated_at=timezone.now(),
            ):
                return row, revocation.enqueue(row, reason)
        # A refresh stored new tokens between the two statements: those are to be ended.


def _announce(signal: Signal, user: Any, row: BankToken, **more: Any) -> None:
    """Send *signal* once what it says is committed."""

    def send() -> None:
        signal.send_robust(sender=BankToken, user=user, connection_id=row.pk, **more)

    transaction.on_commit(send, using=_alias(), robust=True)


def _connection_of(user: Any, identity: Identity | None) -> BankToken | None:
    """
    The user's connection, None if there is none. One query.

    Errors: IdentityTakenError if *identity* is connected to another user.
    """
    rows = BankToken.objects.using(_alias()).filter(user=user)
    if identity is not None:
        rows |= BankToken.objects.using(_alias()).for_identity(identity)
    found = {row.user_id: row for row in rows}
    if found.keys() - {user.pk}:
        raise IdentityTakenError
    return found.get(user.pk)


def _save(
    user: Any, row: BankToken, tokens: TokenSet, identity: Identity | None
) -> BankToken | None:
    """The stored connection, or None if it moved on since it was read."""
    columns = {
        **_NOTHING,
        **row.sealed(tokens, active_key()),
        "scope": tokens.scope or conf.scopes,
        "sid": tokens.sid,
        "issuer": identity.issuer if identity else "",
        "subject": identity.subject if identity else "",
        "identity_digest": identity.digest if identity else None,
        "status": BankToken.Status.ACTIVE,
        "token_version": row.token_version + 1,
        "updated_at": timezone.now(),
    }
    if row._state.adding:
        return BankToken.objects.using(_alias()).create(pk=row.pk, user=user, **columns)
    same_version = BankToken.objects.using(_alias()).filter(
        pk=row.pk, token_version=row.token_version
    )
    if not same_version.update(**columns):
        return None
    if row.sid and tokens.sid and row.sid != tokens.sid:
        revocation.enqueue(row, "replaced")
    for name, value in columns.items():
        setattr(row, name, value)
    return row

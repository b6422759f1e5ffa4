"""
A user's grant: stored, used for access tokens, ended; and ``everifin_for(user)``, the bank API as
that user.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar
from urllib.parse import urljoin

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, OperationalError, router, transaction
from django.db.models import F, Q, QuerySet
from django.dispatch import Signal
from django.urls import reverse
from django.utils import timezone

from everifin_django.bank.aio import in_request_thread
from everifin_django.bank.client import Client, EndUser
from everifin_django.bank.payments import BulkPayment, SinglePayment
from everifin_django.conf import conf
from everifin_django.connections import (
    last_success,
    ledger,
    links,
    login_sessions,
    refresh,
    revocation,
)
from everifin_django.connections.ends import ENDS_LOGIN, ON_PURPOSE
from everifin_django.connections.state import ConnectionState, state_of
from everifin_django.encryption import active_key
from everifin_django.exceptions import (
    IdentityMismatchError,
    IdentityTakenError,
    LoginError,
    ScopeMissingError,
    TokenMissingError,
)
from everifin_django.http.client import Answer
from everifin_django.models import (
    BankToken,
    ConnectionVersion,
    DatabaseNow,
    Payment,
    PendingRevocation,
    database_for,
    database_of,
    has_status,
    scope_columns,
)
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret
from everifin_django.signals import everifin_connected, everifin_disconnected

logger = logging.getLogger(__name__)

StoredT = TypeVar("StoredT")

SAVE_TRIES = 5


class ConnectionChangedError(OperationalError):
    """A connection has changed between reading and storing it. Nothing was stored."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """
    An access token that is good to use until *overdue_at*, and the version of the connection that
    it belongs to.
    """

    token: Secret
    source: ConnectionVersion
    scopes: frozenset[str]
    overdue_at: datetime

    @property
    def version(self) -> int:
        return self.source.token_version


def get_access_token(user: Any, *, rejected: AccessToken | None = None) -> AccessToken:
    """
    Return an access token for *user* that is good to use.

    One query and one decryption when the stored token is fresh. With *rejected*, a token that
    Everifin refused, another one. Otherwise, and for errors, as ``refresh.ensure_fresh``.
    """
    row = refresh.ensure_fresh(user, rejected=rejected.source if rejected else None)
    token = row.open_token("access")
    if token is None:
        raise TokenMissingError("The user has no connection to Everifin.")
    return AccessToken(token, row.seen(), row.scopes, row.overdue_at(conf.refresh_margin_seconds))


def save_grant(
    user: Any,
    tokens: TokenSet,
    identity: Identity | None,
    *,
    login_session_id: uuid.UUID | None = None,
) -> BankToken:
    """
    Store a new grant as the user's connection, and return it: the user has connected.

    A grant that it replaces moves to the record of its browser, else to the outbox, unless both
    share one session at Everifin, where ending the old would end the new. *login_session_id* names
    the record of the browser that connects, if it has one. Connecting may give a login link. Some
    seven queries. Without *identity* the one that is known stays.

    Errors: IdentityTakenError if *identity* belongs to another user; IdentityMismatchError if the
    connection is to another identity; LoginError if the user is not active. Nothing is stored then.
    """

    def save() -> BankToken:
        row = _connection_of(user, identity)
        if row is not None and row.is_of_another(identity):
            raise IdentityMismatchError
        record_id = login_sessions.update(login_session_id, user, tokens)
        saved = _save(user, row or BankToken(user=user), tokens, identity, record_id)
        if identity is not None:
            links.create_by_connecting(user, identity)
        _require_active(user)
        return saved

    saved = repeat_until_stored(save)
    _connected(user, saved)
    return saved


def save_login_grant(
    user: Any,
    tokens: TokenSet,
    identity: Identity,
    login_session_id: uuid.UUID,
    *,
    known: BankToken | None = None,
) -> BankToken | None:
    """
    Store a login and its grant, which becomes the user's connection, and return that; None where a
    login leaves the connection alone: it was disconnected on purpose, or belongs to another of the
    user's identities. The record of the login then holds the grant.

    In the caller's transaction, which ``repeat_until_stored`` repeats. Some six queries; one less
    with *known*, the user's connection as this transaction has read it.

    Errors: IdentityTakenError if *identity* is connected to another user; LoginError if the user is
    not active. Nothing is stored then.
    """
    row = known if _is_all_there_is(known, user, identity) else _connection_of(user, identity)
    if row is not None and _is_left_alone(row, identity):
        saved = row
    else:
        saved = _save(user, row or BankToken(user=user), tokens, identity, login_session_id)
    holds_grant = saved.login_session_id != login_session_id
    login_sessions.create(login_session_id, user, tokens, identity, holds_grant=holds_grant)
    _require_active(user)
    if holds_grant:
        return None
    _connected(user, saved)
    return saved


def disconnect(user: Any, reason: str = "disconnected") -> bool:
    """
    End the user's connection here and at Everifin; return whether nothing of it is left alive
    there.

    Here it ends at once, in one committed step; from then on nobody uses or renews the tokens. What
    cannot be ended at Everifin now waits in the outbox. Some four queries and one request, which
    takes at most EVERIFIN_DEADLINE_SECONDS.
    """
    pending = end(user, reason)
    if pending is None:
        return True
    if refresh.in_transaction(database_of(pending)):
        # A rollback brings the connection back, and its grant must still be alive then.
        # A function: Django 5.2 cannot name a partial when it fails.
        transaction.on_commit(
            lambda: revocation.revoke(pending), using=database_of(pending), robust=True
        )
        return False
    return revocation.revoke(pending)


def end(user: Any, reason: str) -> PendingRevocation | None:
    """
    End the user's connection here; return the entry in the outbox of what is still to be ended at
    Everifin. Some four queries.
    """
    connection, pending = _end(user, reason)
    if connection is not None:
        logger.info("Connection %s was ended: %s.", connection.pk, reason)
        announce_disconnected(user, connection)
    return pending


def mark_disconnected(connection: BankToken, reason: str) -> None:
    """
    End a connection whose session Everifin has ended by itself, unless it was connected again since
    it was read. One statement, no request.
    """
    rows = BankToken.objects.using(database_of(connection))
    same_session = rows.filter(pk=connection.pk, sid=connection.sid)
    if same_session.exclude(has_status(BankToken.Status.DISCONNECTED)).update(
        **_ended(reason), token_version=F("token_version") + 1
    ):
        logger.info("Connection %s was ended: %s.", connection.pk, reason)
        announce_disconnected(connection.user, connection)


class Everifin(Client):
    """
    Everifin as one user: ``request.everifin``, and what ``everifin_for`` gives.

    Making one costs nothing. The first call reads an access token (one query, one decryption while
    it is fresh), later calls of the same object use it again.
    """

    _source: UserTokenSource

    def __init__(
        self,
        user: Any,
        *,
        end_user: EndUser | None = None,
        build_url: Callable[[str], str] | None = None,
        require: Callable[[Literal["read", "pay"]], None] | None = None,
    ) -> None:
        self.user = user
        self._build_url = build_url or _url_of_this_site
        self._require = require or _allow
        super().__init__(UserTokenSource(user, require=self._require), end_user=end_user)

    def _for_threads(self) -> Everifin:
        beside = super()._for_threads()
        beside._require = in_request_thread(self._require)
        return beside

    def _pay(self, *args: Any, **kwargs: Any) -> Any:
        self._require("pay")
        return super()._pay(*args, **kwargs)

    def _send(self, *args: Any, **options: Any) -> Answer:
        answer = super()._send(*args, **options)
        if 200 <= answer.status < 300:
            last_success.note()
        return answer

    def connection(self) -> BankToken | None:
        """
        Return the user's connection as the database has it, or None if there never was one. One
        query, no decryption.
        """
        if not self.user.is_authenticated:
            return None
        rows = BankToken.objects.using(database_for(self.user)).with_incident()
        return rows.filter(user=self.user).first()

    def state(self) -> ConnectionState:
        """Return the state of the connection, in what people can be told. One query."""
        return state_of(self.connection())

    async def astate(self) -> ConnectionState:
        return await sync_to_async(self.state)()

    async def aconnection(self) -> BankToken | None:
        return await sync_to_async(self.connection)()

    def health(self) -> BankToken.Health:
        """Return how the connection is, for people. One query."""
        return self.state().health

    async def ahealth(self) -> BankToken.Health:
        return await sync_to_async(self.health)()

    def is_connected(self) -> bool:
        """Tell whether calls can be made without the user connecting again. One query."""
        return self.state().is_connected

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

    def pay_once(
        self,
        key: str | int | uuid.UUID,
        payment: SinglePayment | BulkPayment,
        *,
        next_url: str = "",
    ) -> Payment:
        """
        Return the payment under the site's own *key*, which is made once whatever happens.

        Redirect to what it returns: its page leads the user through the payment, then to
        *next_url*. A second call with the same key, at once or a year later, from any process,
        sends nothing for a payment that was sent. Costs and errors as ``ledger.pay_once``.
        """
        self._require("pay")
        return ledger.pay_once(
            self,
            self.user,
            key,
            payment,
            return_url=self.payment_return_url,
            next_url=next_url,
        )

    async def apay_once(
        self,
        key: str | int | uuid.UUID,
        payment: SinglePayment | BulkPayment,
        *,
        next_url: str = "",
    ) -> Payment:
        return await sync_to_async(self.pay_once)(key, payment, next_url=next_url)

    def payment_return_url(self, value: Secret) -> str:
        """
        Return the URL that the bank sends the user back to. Errors: ImproperlyConfigured if it is
        not known what this site is called.
        """
        return self._build_url(reverse("everifin_django:payment_return", args=[value.reveal()]))


def _allow(action: str) -> None:
    """Without a request there is nobody to ask about."""


def _url_of_this_site(path: str) -> str:
    if conf.redirect_uri is None:
        raise ImproperlyConfigured(
            "Set EVERIFIN_REDIRECT_URI: a payment made without a request takes this site's host "
            "from it."
        )
    return urljoin(conf.redirect_uri, path)


class UserTokenSource:
    """
    Gives the client one user's access token, and a newer one when Everifin refuses it. Threads may
    share it.
    """

    def __init__(self, user: Any, *, require: Callable[[Literal["read"]], None] = _allow) -> None:
        self._user = user
        self._require = require
        self._access_token: AccessToken | None = None

    def access_token(self) -> AccessToken:
        self._require("read")
        current = self._access_token
        if current is None or current.overdue_at <= timezone.now():
            current = self._access_token = get_access_token(self._user)
        return current

    def get(self) -> Secret:
        return self.access_token().token

    def refresh(self, rejected: Secret) -> Secret:
        """
        Return another token than *rejected*: the one that another thread or process has stored
        since, else a new one.
        """
        current = self._access_token
        if current is None or current.token != rejected:
            return self.get()
        self._access_token = get_access_token(self._user, rejected=current)
        return self._access_token.token

    def reject(self, rejected: Secret) -> None:
        """
        Take note that Everifin refused the token which ``refresh`` gave for a refused one. Errors:
        UnavailableError; none for a token that another thread has replaced since.
        """
        current = self._access_token
        if current is not None and current.token == rejected:
            refresh.reject(self._user, current.source)


def everifin_for(user: Any) -> Everifin:
    """
    Return Everifin as *user*, for code that runs without a request: a command, a task, a shell.

    Nobody is present, so no end user's IP address is sent. Long-running code may keep the object:
    it asks for a new access token before the old one expires. No query until it is used.
    """
    return Everifin(user)


EMPTY_COLUMNS: dict[str, Any] = {
    "access_ciphertext": "",
    "refresh_ciphertext": "",
    "id_ciphertext": "",
    "encrypted_for": "",
    "access_expires_at": None,
    "refresh_expires_at": None,
    "sid": "",
    "login_session_id": None,
    "lease_id": None,
    "lease_until": None,
    "retry_after": None,
    "failures": 0,
    "last_error": "",
    "refreshed_at": None,
    "refused_since": None,
    "rejected_at": None,
}
NO_IDENTITY: dict[str, Any] = {"issuer": "", "subject": "", "identity_digest": None}


def alias() -> str:
    return router.db_for_write(BankToken)


def _end(user: Any, reason: str) -> tuple[BankToken | None, PendingRevocation | None]:
    """The connection as it was before it was ended here, and its entry in the outbox."""
    using = database_for(user)
    while True:
        row = BankToken.objects.using(using).filter(user=user).first()
        with transaction.atomic(using=using):
            if reason in ON_PURPOSE:
                links.remove_made_by_connecting(user)
            if row is None or _has_ended(row, reason):
                return None, None
            was_live = row.status != BankToken.Status.DISCONNECTED
            if same_version(row).update(**_ended(reason), token_version=row.next_version):
                if reason not in ENDS_LOGIN:
                    login_sessions.detach(row.sid)
                return (row, revocation.enqueue(row, reason)) if was_live else (None, None)
        # A refresh stored new tokens between the two statements: those are to be ended.


def _has_ended(row: BankToken, reason: str) -> bool:
    """Is there nothing left to write down? An end on purpose counts for more than others."""
    is_more = reason in ON_PURPOSE and row.end_reason not in ON_PURPOSE
    return row.status == BankToken.Status.DISCONNECTED and not is_more


def _ended(reason: str) -> dict[str, Any]:
    """
    The columns of a connection that has ended. One that was ended on purpose gives its identity
    free.
    """
    return {
        **EMPTY_COLUMNS,
        **(NO_IDENTITY if reason in ON_PURPOSE else {}),
        "status": BankToken.Status.DISCONNECTED,
        "end_reason": reason[:32],
        "updated_at": timezone.now(),
    }


def announce_disconnected(user: Any, connection: BankToken) -> None:
    """Send ``everifin_disconnected`` once what it says is committed."""
    _announce(everifin_disconnected, user, connection)


def same_version(row: BankToken) -> QuerySet[BankToken]:
    return BankToken.objects.using(alias()).filter(pk=row.pk, token_version=row.token_version)


def repeat_until_stored(store: Callable[[], StoredT]) -> StoredT:
    """
    Return what *store* returns, which reads a connection and stores a grant in it, in a transaction
    of its own. It is called again where another process has stored this user, this identity or new
    tokens between its statements.
    """
    for _try in range(SAVE_TRIES - 1):
        with suppress(IntegrityError, ConnectionChangedError), transaction.atomic(using=alias()):
            return store()
    with transaction.atomic(using=alias()):
        return store()


def _require_active(user: Any) -> None:
    """
    Look at the user in the transaction that stores, and after the write: whoever deactivates them
    waits for it, and finds the connection then. One query.

    Errors: LoginError.
    """
    users: Any = get_user_model()._base_manager.using(alias()).select_for_update()
    now = users.filter(pk=user.pk).first()
    if now is None or not now.is_active:
        raise LoginError("user_inactive")


def _is_all_there_is(row: BankToken | None, user: Any, identity: Identity) -> bool:
    """Is *row* the user's connection, and to *identity*, which then nobody else is connected to?"""
    return (
        row is not None
        and row.user_id == user.pk
        and row.identity_digest == identity.digest
        and database_of(row) == database_for(user)
    )


def _is_left_alone(row: BankToken, identity: Identity) -> bool:
    is_ended_on_purpose = (
        row.status == BankToken.Status.DISCONNECTED and row.end_reason in ON_PURPOSE
    )
    is_covered = row.status != BankToken.Status.DISCONNECTED and row.is_stopped()
    return is_ended_on_purpose or is_covered or row.is_of_another(identity)


def _connected(user: Any, saved: BankToken) -> None:
    logger.info("Connection %s was stored.", saved.pk)
    _announce(everifin_connected, user, saved, scope=saved.scope)


def _announce(signal: Signal, user: Any, row: BankToken, **more: Any) -> None:
    """Send *signal* once what it says is committed."""

    def send() -> None:
        signal.send_robust(sender=BankToken, user=user, connection_id=row.pk, **more)

    transaction.on_commit(send, using=database_of(row), robust=True)


def _connection_of(user: Any, identity: Identity | None) -> BankToken | None:
    """
    The user's connection, None if there is none. One query.

    Errors: IdentityTakenError if *identity* is connected to another user.
    """
    wanted = Q(user=user)
    if identity is not None:
        wanted |= Q(identity_digest=identity.digest)
    rows = BankToken.objects.using(database_for(user)).with_incident().filter(wanted)
    found = {row.user_id: row for row in rows}
    if found.keys() - {user.pk}:
        raise IdentityTakenError
    return found.get(user.pk)


def _save(
    user: Any,
    row: BankToken,
    tokens: TokenSet,
    identity: Identity | None,
    login_session_id: uuid.UUID | None,
) -> BankToken:
    """The stored connection. Errors: ConnectionChangedError if it moved on since it was read."""
    columns = {
        **EMPTY_COLUMNS,
        **row.sealed(tokens, active_key()),
        **scope_columns(tokens.scope or conf.scopes),
        "sid": tokens.sid,
        "login_session_id": login_session_id,
        **_identity_columns(row, identity),
        "status": BankToken.Status.ACTIVE,
        "end_reason": "",
        "connected_at": DatabaseNow(),
        "token_version": row.next_version,
        "updated_at": timezone.now(),
    }
    if row._state.adding:
        return _as_stored(BankToken.objects.using(alias()).create(pk=row.pk, user=user, **columns))
    was_stopped = row.is_stopped()
    if not same_version(row).update(**columns):
        raise ConnectionChangedError("The connection kept changing while it was to be stored.")
    shares_session = bool(row.sid) and row.sid == tokens.sid
    if was_stopped:
        # It was ended with many others, and its token is still to be moved.
        revocation.enqueue(row, row.end_reason or "incident")
    elif not shares_session:
        revocation.release(row, "replaced", but=login_session_id)
    for name, value in columns.items():
        setattr(row, name, value)
    return _as_stored(row)


def _as_stored(row: BankToken) -> BankToken:
    """*row* without the time of the database's clock, which is read if it is asked for."""
    row.__dict__.pop("connected_at", None)
    return row


def _identity_columns(row: BankToken, identity: Identity | None) -> dict[str, Any]:
    """What is unknown never replaces what is known."""
    if identity is None:
        return {
            "issuer": row.issuer,
            "subject": row.subject,
            "identity_digest": row.identity_digest,
        }
    return {
        "issuer": identity.issuer,
        "subject": identity.subject,
        "identity_digest": identity.digest,
    }

"""
Everifin ends logins of this site (back-channel logout).

They are found by what Everifin names: its session, or the user. Sessions that a password began are
left alone.
"""

from __future__ import annotations

import hashlib
import logging

from django.db import transaction
from django.db.models import Q

from everifin_django.conf import conf
from everifin_django.connections import grants, login_sessions, logout, revocation
from everifin_django.exceptions import LoginError, MalformedError, TamperedError
from everifin_django.models import (
    OFFLINE_ACCESS,
    BankToken,
    DatabaseNow,
    LoginSession,
    LogoutSeen,
)
from everifin_django.oauth.id_token import Identity, LogoutToken, verify_logout_token
from everifin_django.secret import Secret
from everifin_django.web import login_flow

logger = logging.getLogger(__name__)


def end_sessions(logout_token: Secret) -> int:
    """
    End what a logout token names, and return how many logins of this site that were.

    The connection that lives in that session at Everifin ends too, unless it was granted for when
    the user is away; another login's grant then replaces it. No request while the signing keys
    are cached. The token is spent in the transaction of its work, so one that met a fault can be
    sent again.

    Errors: as ``id_token.verify_logout_token``; LoginError for a token that was taken before;
    UnknownKeyError or KeysUnavailableError for a login whose session keys cannot be read for now.
    """
    named = verify_logout_token(logout_token)
    token_id = f"logout token {conf.issuer} {named.token_id}"
    if login_flow.is_spent(token_id):
        raise LoginError("logout_token_spent")
    # Committed before anything is looked for: a login under way either sees this, or is found.
    _note(named)
    with transaction.atomic(using=login_sessions.alias()):
        if not login_flow.consume_once(token_id):
            raise LoginError("logout_token_spent")
        records = list(login_sessions.rows().filter(_named_by(named)))
        for record in records:
            _end(record, named)
        connections = BankToken.objects.using(grants.alias()).select_related("user")
        for connection in connections.filter(_named_by(named, is_connection=True)):
            if OFFLINE_ACCESS not in connection.scopes or named.revokes_offline_access:
                logout.take_over_or_mark_disconnected(connection)
    return len(records)


def sid_digest_of(sid: str) -> str:
    return _hash(f"sid {conf.issuer} {sid}")


def identity_digest_of(identity: Identity, *, of_unknown_sid: bool = False) -> str:
    return _hash(f"{'unknown sid' if of_unknown_sid else 'sub'} {identity.digest}")


def _end(record: LoginSession, named: LogoutToken) -> None:
    try:
        login_sessions.delete_sessions(login_sessions.session_keys(record))
    except (TamperedError, MalformedError):
        # Moved from another user or id: no later try can read it, and the others are to end.
        logger.critical("The session keys of a login cannot be read, so it was not ended.")
    is_offline = OFFLINE_ACCESS in record.scope.split()
    if login_sessions.delete(record) and is_offline:
        # Its grant outlives the session at Everifin, and nobody here has it any more.
        revocation.enqueue_record(record, "backchannel_logout")


def _note(named: LogoutToken) -> None:
    digests = [sid_digest_of(named.sid)] if named.sid else []
    if named.identity is not None:
        digests.append(identity_digest_of(named.identity, of_unknown_sid=bool(named.sid)))
    for digest in digests:
        LogoutSeen.objects.using(login_flow.alias()).update_or_create(
            digest=digest, defaults={"seen_at": DatabaseNow()}
        )


def _named_by(named: LogoutToken, *, is_connection: bool = False) -> Q:
    """
    By the session; or by the user where the login told no session, and for a token that names none.
    """
    of_user = Q(pk__in=[])
    if named.identity is not None:
        of_user = Q(identity_digest=named.identity.digest)
    if not named.sid:
        return of_user
    of_session = Q(sid=named.sid)
    return (of_session if is_connection else of_session & Q(has_ended_sid=False)) | (
        of_user & Q(sid="")
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""
Who takes part in a schedule, and the world they share.

An actor is a generator; each ``next`` is one turn, which does one step. An actor that has nothing
left to do ends, and one that is never asked again has crashed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.utils import timezone

from everifin_django import refresh, revocation, tokens
from everifin_django.crypto import active_key
from everifin_django.exceptions import APIError, EverifinError, RefusedError, TokenError
from everifin_django.models import BankToken, PendingRevocation, in_database_seconds
from everifin_django.oauth import TokenSet
from everifin_django.secret import Secret
from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.store import Session

Actor = Generator[None, None, None]
Status = BankToken.Status

SCOPE = "openid ais"
LIFETIME = timedelta(minutes=5)
FAULTS: dict[str, dict[str, Any]] = {
    "lost before": {"lost": "before", "times": 1},
    "lost before, twice": {"lost": "before", "times": 2},
    "lost after": {"lost": "after", "times": 1},
    "lost after, twice": {"lost": "after", "times": 2},
    "503": {"status": 503, "times": 1},
    "session ended": {},
}


@dataclass
class World:
    """
    One connection, overdue and alive, and the Everifin it was granted at.

    *is_at_risk*: a grant may be lost by now in a way that no protocol can prevent. *in_hand* counts
    the answers that are not stored yet, *alive* holds who is between claim and end, *homeless* the
    sessions of grants that were given and not kept yet.
    """

    everifin: Sandbox
    user: Any
    sessions: list[str] = field(default_factory=list)
    homeless: set[str] = field(default_factory=set)
    alive: set[uuid.UUID | None] = field(default_factory=set)
    holder: refresh.Attempt | None = None
    version: int = 1
    refusals: int = 0
    in_hand: int = 0
    is_at_risk: bool = False
    is_disconnected: bool = False
    is_leased: bool = False

    def __post_init__(self) -> None:
        self.everifin.double_spends = 0
        self.everifin.faults.clear()
        PendingRevocation.objects.all().delete()
        row = self.row()
        grant = {**tokens._NOTHING, **row.sealed(self.grant(), active_key())}
        self._update(**grant, status=Status.ACTIVE, token_version=self.version)
        self.let_token_run_out()

    @property
    def is_strict(self) -> bool:
        return self.everifin.rotation == "strict"

    def row(self) -> BankToken:
        return BankToken.objects.get(user=self.user)

    def grant(self) -> TokenSet:
        """A new grant of the same user, in a session of its own at Everifin."""
        name, store, now = str(uuid.uuid4()), self.everifin.store, timezone.now()
        until = now + LIFETIME
        sub = self.everifin.user("alice").sub
        store.add_session(Session(name, sub, SCOPE, now.timestamp(), until.timestamp()))
        store.add_refresh_token(f"refresh-{name}", name, until.timestamp())
        self.sessions.append(name)
        return TokenSet(
            access=Secret("access"),
            refresh=Secret(f"refresh-{name}"),
            id=None,
            scope=SCOPE,
            session_id=name,
            asked_at=now,
            expires_at=until,
            refresh_expires_at=until,
        )

    # What happens by itself

    def let_token_run_out(self) -> None:
        self._update(access_expires_at=timezone.now())

    def let_lease_run_out(self) -> None:
        """A holder who is still alive then is what strict rotation does not forgive."""
        if self.is_strict and self.holder is not None and self.holder.lease_id in self.alive:
            self.is_at_risk = True
        self._update(lease_until=in_database_seconds(-1))
        self.holder = None

    def let_pause_pass(self) -> None:
        self._update(retry_after=None)

    def end_sessions(self) -> None:
        for session in self.sessions:
            self.everifin.store.end_session(session)
        self.is_at_risk = True

    def go_wrong(self, fault: str) -> None:
        """Let the next request to the token endpoint meet *fault*."""
        if fault == "session ended":
            self.end_sessions()
        else:
            self.everifin.faults.add("token.refresh_token", **FAULTS[fault])
        if self.is_strict and fault.startswith("lost after"):
            self.is_at_risk = True

    # What must hold

    def check(self) -> None:
        """Assert what holds after every step."""
        row = self.row()
        assert row.token_version >= self.version
        self.version = row.token_version
        self.is_leased = row.lease_until is not None and row.lease_until > timezone.now()
        assert row.status != Status.NEEDS_RECONNECT or self.refusals
        if self.is_disconnected:
            assert row.status == Status.DISCONNECTED
        if row.status == Status.DISCONNECTED:
            assert row.access_ciphertext + row.refresh_ciphertext + row.id_ciphertext == ""
            assert row.lease_id is None

    def settle(self) -> None:
        """Assert what holds when everybody is done or dead: nothing is forgotten, nothing lost."""
        row = self.row()
        kept = {row.idp_session} if row.refresh_ciphertext else set()
        assert self._live_sessions() <= kept | self._listed_sessions() | self.homeless
        self._empty_outbox()
        assert self._live_sessions() <= kept | self.homeless
        if not (self.is_disconnected or self.is_at_risk or (self.is_strict and self.in_hand)):
            assert row.status == Status.ACTIVE
            assert self.everifin.double_spends == 0
            assert self._is_accepted(row)

    def _is_accepted(self, row: BankToken) -> bool:
        """Is the stored refresh token one that Everifin would accept? Asks without spending it."""
        token = row.open_token("refresh")
        known = self.everifin.store.refresh_token(token.reveal()) if token else None
        return known is not None and not known.is_spent and not known.session.is_ended

    def _empty_outbox(self) -> None:
        """End at Everifin what is listed, as ``everifin_revoke_pending`` does."""
        if PendingRevocation.objects.exists():
            PendingRevocation.objects.update(retry_after=None)
            revocation.revoke_due()
            assert not PendingRevocation.objects.exists()

    def _live_sessions(self) -> set[str]:
        found = map(self.everifin.store.session, self.sessions)
        return {session.id for session in found if session and not session.is_ended}

    def _listed_sessions(self) -> set[str]:
        opened = (pending.open_token().reveal() for pending in PendingRevocation.objects.all())
        found = map(self.everifin.store.refresh_token, opened)
        return {known.session.id for known in found if known}

    def _update(self, **columns: Any) -> None:
        BankToken.objects.filter(user=self.user).update(**columns)


def refreshing(world: World, fault: str = "") -> Actor:
    """One try of one process, up to four turns: read, claim, send (it meets *fault*), store."""
    try:
        reading = refresh._read(world.user, None)
    except TokenError:
        return
    if not reading.is_due or reading.is_leased or reading.pause_seconds:
        return
    yield
    attempt = refresh.Attempt(reading.row, time.monotonic() + 10)
    if not attempt.claim():
        return
    holder = world.holder
    assert holder is None or holder.row.token_version != attempt.row.token_version
    world.holder = attempt
    world.alive.add(attempt.lease_id)
    try:
        yield
        yield from _answered(world, attempt, fault)
        if world.holder is attempt:
            world.holder = None
    finally:  # also for one that crashes
        world.alive.discard(attempt.lease_id)


def _answered(world: World, attempt: refresh.Attempt, fault: str) -> Actor:
    failure: APIError | None = None
    answer: TokenSet | None = None
    if fault:
        world.go_wrong(fault)
    try:
        answer = attempt.send()
    except APIError as error:
        failure = error
    world.everifin.faults.clear()
    world.refusals += isinstance(failure, RefusedError)
    world.in_hand += answer is not None
    yield
    with suppress(EverifinError):
        if answer is not None:
            attempt.store(answer)
        elif failure is not None:
            attempt.give_up(failure)
    world.in_hand -= answer is not None


def disconnecting(world: World) -> Actor:
    """``tokens.forget`` in its two turns: the end here, the end at Everifin."""
    row, pending = tokens._end(world.user, "disconnected")
    world.is_disconnected = world.is_disconnected or row is not None
    if pending is not None:
        yield
        revocation.revoke(pending)


def reconnecting(world: World) -> Actor:
    """Two turns: Everifin gives a new grant, and it is kept."""
    grant = world.grant()
    world.homeless.add(grant.session_id)
    yield
    tokens.keep(world.user, grant, None)
    world.homeless.discard(grant.session_id)
    world.is_disconnected = False


def expiring(world: World) -> Actor:
    """One turn: the lease runs out."""
    world.let_lease_run_out()
    yield from ()

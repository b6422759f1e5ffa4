"""
The processes of a schedule, and the system they share.

An actor is a value: its turn does one step in the system and gives the actor that goes on from
there, or None once it is done. One that is never asked again has crashed. A system can be written
down and brought back; so any turn can be played from any state that was ever met.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, Protocol

import pytest
from django.db import transaction
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.connections import grants, pauses, refresh, revocation
from everifin_django.encryption import active_key, open_sealed
from everifin_django.exceptions import APIError, EverifinError, RefusedError, TokenError
from everifin_django.models import (
    LONGEST_LEASE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    BankToken,
    ConnectionVersion,
    EndpointState,
    PendingRevocation,
    in_database_seconds,
)
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.secret import Secret
from everifin_django.testing.factories import BankTokenFactory
from everifin_django.testing.sandbox import Rotation, Sandbox
from everifin_django.testing.sandbox.signing import Signer
from everifin_django.testing.sandbox.store import Session
from tests.projects.tenants.routing import in_tenant

Status = BankToken.Status

SCOPE = "openid ais"
SECOND = timedelta(seconds=1)
LIFETIME = timedelta(hours=12)
LEASE = timedelta(seconds=LONGEST_LEASE_SECONDS / 2)
FAULTS: dict[str, dict[str, Any]] = {
    "lost before": {"lost": "before", "times": 1},
    "lost before, twice": {"lost": "before", "times": 2},
    "lost after": {"lost": "after", "times": 1},
    "lost after, twice": {"lost": "after", "times": 2},
    "503": {"status": 503, "times": 1},
    "client refused": {"status": 401, "body": {"error": "invalid_client"}},
    "consent withdrawn": {},
    "session ended": {},
}
"""What a request for new tokens can meet."""

NO_LOGOUT = "no logout"
"""A request to end a session meets a 503."""


class Holder(NamedTuple):
    """The process that claimed the connection last, and is not done with it."""

    lease_id: uuid.UUID
    version: int
    is_alive: bool = True


@dataclass
class Notes:
    """
    What the system remembers beside the database and Everifin.

    *is_at_risk*: a grant may be lost by now in a way that no protocol can prevent. *in_hand* counts
    the answers that are not stored yet, *homeless* are the sessions of grants that were given and
    not kept yet. *claims* and *tokens* are how many there were.
    """

    claims: int = 0
    tokens: int = 0
    holder: Holder | None = None
    homeless: frozenset[str] = frozenset()
    in_hand: int = 0
    is_refused: bool = False
    is_at_risk: bool = False
    is_disconnected: bool = False
    is_deleted: bool = False
    is_double_spent: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A system that can be brought back. Two are equal if everything goes on alike from them."""

    facts: Any
    sessions: tuple[tuple[str, bool, bool], ...]
    tokens: tuple[tuple[str, str, bool], ...]
    is_paused: bool
    notes: Notes = field(compare=False)
    row: BankToken | None = field(compare=False)
    outbox: tuple[PendingRevocation, ...] = field(compare=False)


class System:
    """
    One connection, alive and, unless *is_fresh*, overdue, in the database *alias*; and the Everifin
    it was granted at, as *person*.
    """

    def __init__(
        self,
        everifin: Sandbox,
        user: Any,
        *,
        alias: str = "default",
        person: str = "alice",
        is_fresh: bool = False,
    ) -> None:
        self.everifin = everifin
        self.user = user
        self.alias = alias
        self.is_fresh = is_fresh
        self.sub = everifin.user(person).sub
        self.neighbour: System | None = None
        self.after_turn: Callable[[], None] = lambda: None
        self.begin()

    @property
    def rows(self) -> Any:
        return BankToken.objects.using(self.alias)

    @property
    def endpoints(self) -> Any:
        return EndpointState.objects.using(self.alias)

    @property
    def outbox(self) -> Any:
        return PendingRevocation.objects.using(self.alias)

    def sessions(self) -> list[Session]:
        return self.everifin.store.sessions(self.sub)

    def begin(self) -> None:
        """Forget what was, and begin anew."""
        self.notes = Notes()
        self._empty_sandbox()
        self.everifin.double_spends = 0
        self.everifin.faults.clear()
        self.rows.all().delete()
        row = BankToken(id=uuid.UUID(int=1), user_id=self.user.pk)
        self.version = row.token_version = 1
        for name, value in row.sealed(self.grant(), active_key()).items():
            setattr(row, name, value)
        row.save(using=self.alias, force_insert=True)
        self.outbox.all().delete()
        self._pause(is_paused=False)
        if not self.is_fresh:
            self.let_token_run_out()

    @property
    def is_strict(self) -> bool:
        return self.everifin.rotation == "strict"

    def row(self) -> BankToken | None:
        row: BankToken | None = self.rows.filter(user_id=self.user.pk).first()
        return row

    def grant(self) -> TokenSet:
        """A new grant of the same user, in a session of its own at Everifin."""
        name, now = f"{self.alias}-session-{len(self.sessions()) + 1}", timezone.now()
        grant = TokenSet(
            access=Secret(self.next_token("access")),
            refresh=Secret(self.next_token("refresh")),
            id=None,
            scope=SCOPE,
            sid=name,
            issued_at=now,
            expires_at=now + LIFETIME,
            refresh_expires_at=now + LIFETIME,
        )
        self._add_session(name)
        self._add_refresh_token(self.next_token("refresh"), name)
        self.notes.tokens += 1
        return grant

    def next_token(self, kind: str) -> str:
        return self.token_name(kind, self.notes.tokens + 1)

    def token_name(self, kind: str, number: int) -> str:
        return f"{self.alias}-{kind}-{number}"

    # Written down and brought back

    def snapshot(self) -> Snapshot:
        row, outbox, store = self.row(), tuple(self.outbox.all()), self.everifin.store
        names = [self.token_name("refresh", number + 1) for number in range(self.notes.tokens)]
        known = zip(names, map(store.refresh_token, names), strict=True)
        self.notes.is_double_spent = self.everifin.double_spends > 0
        return Snapshot(
            facts=(plain(row), frozenset(map(plain, outbox)), plain(self.notes)),
            sessions=tuple((each.id, each.is_ended, each.is_withdrawn) for each in self.sessions()),
            tokens=tuple((name, each.session.id, each.is_spent) for name, each in known if each),
            is_paused=self.endpoints.filter(paused_until__isnull=False).exists(),
            notes=replace(self.notes),
            row=row,
            outbox=outbox,
        )

    def restore(self, snapshot: Snapshot) -> None:
        self.notes = replace(snapshot.notes)
        self.everifin.double_spends = int(self.notes.is_double_spent)
        self._restore_row(snapshot.row)
        self.outbox.all().delete()
        for entry in snapshot.outbox:
            entry.pk = None
            _as_of_now(entry).save(using=self.alias, force_insert=True)
        self._pause(is_paused=snapshot.is_paused)
        self._restore_sandbox(snapshot)

    def _restore_row(self, row: BankToken | None) -> None:
        self.version = row.token_version if row else 0
        others = self.rows.exclude(pk=row.pk) if row else self.rows.all()
        others.delete()
        if row is not None:
            _as_of_now(row).save(using=self.alias)

    def _restore_sandbox(self, snapshot: Snapshot) -> None:
        self._empty_sandbox()
        store = self.everifin.store
        for name, is_ended, is_withdrawn in snapshot.sessions:
            self._add_session(name)
            if is_ended:
                store.end_session(name)
            if is_withdrawn:
                store.withdraw_consent(name)
        for name, session, is_spent in snapshot.tokens:
            self._add_refresh_token(name, session)
            if is_spent:
                store.spend_refresh_token(name)

    def _empty_sandbox(self) -> None:
        run = self.everifin.store._run
        own = "session IN (SELECT id FROM session WHERE sub = ?)"
        run(f"DELETE FROM refresh_token WHERE {own}", self.sub)  # noqa: S608 - as above
        run("DELETE FROM session WHERE sub = ?", self.sub)

    def _add_session(self, name: str) -> None:
        now = timezone.now()
        until = (now + LIFETIME).timestamp()
        self.everifin.store.add_session(Session(name, self.sub, SCOPE, now.timestamp(), until))

    def _add_refresh_token(self, name: str, session: str) -> None:
        until = (timezone.now() + LIFETIME).timestamp()
        self.everifin.store.add_refresh_token(name, session, until)

    # What happens by itself

    def let_token_run_out(self) -> None:
        self._update(access_expires_at=timezone.now())

    def let_lease_run_out(self) -> None:
        """A holder who is still alive then is what strict rotation does not forgive."""
        row = self.row()
        if row is None or row.lease_until is None or row.lease_until <= timezone.now():
            return
        if self.is_strict and self.notes.holder is not None and self.notes.holder.is_alive:
            self.notes.is_at_risk = True
        self._update(lease_until=in_database_seconds(-1))
        self.notes.holder = None

    def let_pause_pass(self) -> None:
        self._update(retry_after=None)
        self._pause(is_paused=False)

    def _pause(self, *, is_paused: bool) -> None:
        """Have all processes leave Everifin alone, or none; it ends when a test says so."""
        self.endpoints.all().delete()
        if is_paused:
            pauses.pause(self.alias, pauses.TOKEN, LONGEST_PAUSE_SECONDS / 2)

    def end_sessions(self) -> None:
        for session in self.sessions():
            self.everifin.store.end_session(session.id)
        self.notes.is_at_risk = True

    def withdraw_consent(self) -> None:
        for session in self.sessions():
            self.everifin.store.withdraw_consent(session.id)
        self.notes.is_at_risk = True

    def let(self, actor: Actor, fault: str = "") -> Actor | None:
        """Let *actor* take its turn, its requests meeting *fault*; return as it does."""
        refresh.clear_pauses()  # each turn is another process's
        self._go_wrong(fault)
        goes_on = actor.turn(self)
        self.everifin.faults.clear()
        if self.endpoints.filter(paused_until__isnull=False).exists():
            self._pause(is_paused=True)
        self.after_turn()
        return goes_on

    def crash(self, actor: Actor) -> None:
        """Take note that *actor* will not go on."""
        holder = self.notes.holder
        attempt = actor.attempt if isinstance(actor, Refreshing | Refused) else None
        if holder is not None and attempt is not None and attempt.lease_id == holder.lease_id:
            self.notes.holder = holder._replace(is_alive=False)

    def let_go_of_row(self) -> None:
        """Take note that the connection was deleted; another one may be made."""
        self.notes.is_deleted, self.notes.holder, self.version = True, None, 0

    def _go_wrong(self, fault: str) -> None:
        if fault == "session ended":
            self.end_sessions()
        elif fault == "consent withdrawn":
            self.withdraw_consent()
        elif fault == NO_LOGOUT:
            self.everifin.faults.add("logout", status=503)
        elif fault:
            self.everifin.faults.add("token.refresh_token", **FAULTS[fault])
        if self.is_strict and fault.startswith("lost after"):
            self.notes.is_at_risk = True

    # What must hold

    def check(self, row: BankToken | None = None) -> None:
        """Assert what holds after every step."""
        row = row or self.row()
        assert self.notes.is_deleted == (row is None)
        if row is not None:
            self._check_row(row)

    def _check_row(self, row: BankToken) -> None:
        assert row.token_version >= self.version
        if row.status == Status.NEEDS_RECONNECT:
            assert self.notes.is_refused
            # So that a good answer which comes late can revive it.
            assert row.token_version == self.version
        self.version = row.token_version
        holder = self.notes.holder
        if holder is not None and holder.is_alive and self._is_going_on(row, holder.version):
            assert row.lease_id == holder.lease_id
        if self.notes.is_disconnected:
            assert row.status == Status.DISCONNECTED
        if row.status == Status.DISCONNECTED:
            assert row.access_ciphertext + row.refresh_ciphertext + row.id_ciphertext == ""
            assert row.lease_id is None

    def settle(self) -> None:
        """Assert what holds when everybody is done or dead: nothing is overlooked, nothing lost."""
        row, notes = self.row(), self.notes
        kept = {row.sid} if row and row.refresh_ciphertext else set()
        assert self._live_sessions() <= kept | self.listed_sessions() | notes.homeless
        self._empty_outbox()
        assert self._live_sessions() <= kept | notes.homeless
        if row is not None and not (notes.is_disconnected or self.may_be_lost):
            assert row.status == Status.ACTIVE
            assert self._is_accepted(row)
            if self.neighbour is None or not self.neighbour.may_be_lost:
                assert self.everifin.double_spends == 0

    @property
    def may_be_lost(self) -> bool:
        return self.notes.is_at_risk or (self.is_strict and self.notes.in_hand > 0)

    def _is_going_on(self, row: BankToken, version: int) -> bool:
        return row.status == Status.ACTIVE and row.token_version == version

    def _is_accepted(self, row: BankToken) -> bool:
        """Is the stored refresh token one that Everifin would accept? Asks without spending it."""
        token = row.open_token("refresh")
        known = self.everifin.store.refresh_token(token.reveal()) if token else None
        return known is not None and not known.is_spent and not known.session.is_ended

    def _empty_outbox(self) -> None:
        """End at Everifin what is listed, as ``everifin_revoke_pending`` does."""
        if self.outbox.exists():
            self.outbox.update(retry_after=None)
            with in_tenant(self.alias):
                revocation.revoke_due()
            assert not self.outbox.exists()

    def _live_sessions(self) -> set[str]:
        return {found.id for found in self.sessions() if not found.is_ended}

    def listed_sessions(self) -> set[str]:
        opened = (pending.open_token().reveal() for pending in self.outbox.all())
        found = map(self.everifin.store.refresh_token, opened)
        return {known.session.id for known in found if known}

    def _update(self, **columns: Any) -> None:
        self.rows.filter(user_id=self.user.pk).update(**columns)


class Pair(NamedTuple):
    """The snapshots of two tenants."""

    one: Snapshot
    two: Snapshot

    @property
    def row(self) -> tuple[BankToken | None, BankToken | None]:
        return self.one.row, self.two.row


class Tenants:
    """
    Two tenants of one site, each with a database. User and connection have the same primary keys in
    both, as in a tenant that was made as a copy. Nobody's turn may reach the other tenant.
    """

    def __init__(self, one: System, two: System) -> None:
        self.one, self.two = one, two
        one.neighbour, two.neighbour = two, one
        self.at_work = one

    def begin(self) -> None:
        self.one.begin()
        self.two.begin()

    def snapshot(self) -> Pair:
        return Pair(self.one.snapshot(), self.two.snapshot())

    def restore(self, snapshot: Pair) -> None:
        self.one.restore(snapshot.one)
        self.two.restore(snapshot.two)

    def let(self, actor: Actor, fault: str = "") -> Actor | None:
        """As ``System.let``. What has begun is not led by the context, which names the other."""
        own, other = (self.two, self.one) if isinstance(actor, OfTheOther) else (self.one, self.two)
        inner = actor.inner if isinstance(actor, OfTheOther) else actor
        is_misled = inner.taken > 0 and isinstance(inner, Refreshing | Disconnecting)
        before, self.at_work = other.snapshot(), own
        with in_tenant(other.alias if is_misled else own.alias):
            goes_on = own.let(inner, fault)
        after = other.snapshot()
        assert after.facts[:2] == before.facts[:2]
        assert (after.sessions, after.tokens) == (before.sessions, before.tokens)
        return (
            replace(actor, inner=goes_on) if isinstance(actor, OfTheOther) and goes_on else goes_on
        )

    def crash(self, actor: Actor) -> None:
        if isinstance(actor, OfTheOther):
            self.two.crash(actor.inner)
        else:
            self.one.crash(actor)

    def check(self, rows: tuple[BankToken | None, BankToken | None] = (None, None)) -> None:
        for system, row in zip((self.one, self.two), rows, strict=True):
            system.check(row)
            assert row is None or row.sid.startswith(system.alias) or not row.sid
            assert all(name.startswith(system.alias) for name in system.listed_sessions())

    def settle(self) -> None:
        self.one.settle()
        self.two.settle()


class _Names(Signer):
    """Gives tokens names in the order in which they are made, instead of random ones."""

    def __init__(self, *systems: System) -> None:
        super().__init__(systems[0].everifin.store)
        self._systems = {system.sub: system for system in systems}

    def sign(self, claims: Any) -> str:
        return self._systems[claims["sub"]].next_token("access")

    def refresh_token(self, claims: Any) -> str:
        system = self._systems[claims["sub"]]
        name = system.next_token("refresh")
        system.notes.tokens += 1
        return name


@contextmanager
def a_system(everifin: Sandbox, rotation: Rotation, *, is_fresh: bool = False) -> Iterator[System]:
    """
    Give a system in which nothing is left to chance: tokens and leases have names in the order in
    which they are made, and nothing runs out by itself while the machine stalls.
    """
    with _nothing_left_to_chance(everifin, rotation, lambda: system.notes):
        system = System(everifin, BankTokenFactory(issuer="", subject="").user, is_fresh=is_fresh)
        everifin.signer = _Names(system)
        yield system


@contextmanager
def two_tenants(everifin: Sandbox, rotation: Rotation, alias: str) -> Iterator[Tenants]:
    """Give such a system with a second tenant, in the database *alias*."""
    with _nothing_left_to_chance(everifin, rotation, lambda: tenants.at_work.notes):
        with in_tenant("default"):
            user = BankTokenFactory(issuer="", subject="").user
        other = type(user)(pk=user.pk, username="of another tenant")
        other.save(using=alias)
        one, two = System(everifin, user), System(everifin, other, alias=alias, person="bob")
        everifin.signer = _Names(one, two)
        tenants = Tenants(one, two)
        yield tenants


@contextmanager
def _nothing_left_to_chance(
    everifin: Sandbox, rotation: Rotation, notes: Callable[[], Notes]
) -> Iterator[None]:
    everifin.issue_id_tokens = False
    everifin.access_token_seconds = everifin.refresh_token_seconds = LIFETIME // SECOND
    everifin.rotation = rotation
    names = SimpleNamespace(uuid4=lambda: uuid.UUID(int=notes().claims + 1), UUID=uuid.UUID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refresh, "uuid", names)
        patch.setattr(refresh, "TAKEOVER_PATIENCE_SECONDS", 0)
        patch.setattr(refresh, "BACKOFF_SECONDS", (600, 3600))
        patch.setattr(refresh, "LEASE_SPARE_SECONDS", LEASE // SECOND)
        # Whatever time a run takes, a token that came from a refresh in it counts as new.
        patch.setattr(refresh, "NEW_TOKEN_SECONDS", 24 * 3600)
        patch.setattr(refresh, "REJECTED_CONNECTIONS", 10**6)
        yield


def plain(value: Any) -> Any:
    """Return all that can matter about *value*, to be compared: of a time, if it has come."""
    match value:
        case BankToken() | PendingRevocation():
            names = [column.attname for column in value._meta.concrete_fields]
            return tuple((name, _plain_column(value, name)) for name in names)
        case Secret():
            return value.reveal()
        case datetime():
            return value > timezone.now()
        case APIError():
            return type(value), tuple(sorted(vars(value).items()))
        case _ if is_dataclass(value):
            names = [each.name for each in fields(value) if each.name != "deadline"]
            return type(value), *(plain(getattr(value, name)) for name in names)
    return value


def _plain_column(row: BankToken | PendingRevocation, name: str) -> Any:
    value = getattr(row, name)
    if name in ("id", "connection_id"):
        return None  # by chance; which connection it is, its tokens say, of which no two are alike
    if name.endswith("_ciphertext") and value:
        kind: Any = name.removesuffix("_ciphertext")
        return open_sealed(value, row.encryption_context(kind)).reveal()
    return plain(value)


def _as_of_now(row: Any) -> Any:
    """The row with its times moved: what has come stays so, what is to come stays so for long."""
    now = timezone.now()
    for name, value in list(vars(row).items()):
        if name in ("refreshed_at", "rejected_at") and value is not None:
            setattr(row, name, now)  # just now, whatever time the run takes
        elif isinstance(value, datetime):
            ahead = LEASE if name == "lease_until" else LIFETIME
            setattr(row, name, now + (ahead if value > now else -ahead))
    return row


class Actor(Protocol):
    """*taken* counts its turns, of which it has at most TURNS; FAULTS is what each can meet."""

    TURNS: ClassVar[int]
    FAULTS: ClassVar[dict[int, list[str]]] = {}

    @property
    def taken(self) -> int: ...

    def turn(self, system: System) -> Actor | None: ...


@dataclass(frozen=True)
class Refreshing(Actor):
    """One try of one process: read, claim, send, store."""

    TURNS: ClassVar = 4
    FAULTS: ClassVar = {3: list(FAULTS), 4: [NO_LOGOUT]}
    taken: int = 0
    attempt: refresh.Attempt | None = None
    outcome: TokenSet | APIError | None = None

    def turn(self, system: System) -> Actor | None:
        if self.attempt is None:
            return self._read(system)
        deadline = time.monotonic() + 3600
        attempt = replace(self.attempt, row=copy(self.attempt.row), deadline=deadline)
        if attempt.lease_id is None:
            return self._claim(system, attempt)
        if self.outcome is None:
            return self._send(system, attempt)
        self._store(system, attempt)
        return None

    def _read(self, system: System) -> Actor | None:
        try:
            seen = refresh.read_connection(system.user).seen()
            reading = refresh._read(system.user, seen)
        except TokenError:
            return None
        if not reading.is_due or reading.is_leased or reading.pause_seconds:
            return None
        return Refreshing(1, refresh.Attempt(reading.row, 0))

    def _claim(self, system: System, attempt: refresh.Attempt) -> Actor | None:
        if not attempt.claim():
            return None
        assert attempt.lease_id is not None
        holder, version = system.notes.holder, attempt.row.token_version
        assert holder is None or holder.version != version
        system.notes.holder = Holder(attempt.lease_id, version)
        system.notes.claims += 1
        return Refreshing(2, attempt)

    def _send(self, system: System, attempt: refresh.Attempt) -> Actor:
        outcome: TokenSet | APIError
        try:
            outcome = attempt.send()
        except APIError as error:
            outcome = error
            system.notes.is_refused |= isinstance(error, RefusedError)
        else:
            system.notes.in_hand += 1
        return Refreshing(3, attempt, outcome)

    def _store(self, system: System, attempt: refresh.Attempt) -> None:
        version = attempt.row.token_version
        with suppress(EverifinError):
            if isinstance(self.outcome, TokenSet):
                system.notes.in_hand -= 1
                attempt.store(self.outcome)
            elif self.outcome is not None:
                attempt.give_up(self.outcome)
        if isinstance(self.outcome, TokenSet):  # a good answer is kept, unless something newer came
            now = system.row()
            assert now is None or now.pk != attempt.row.pk or now.token_version > version
        holder = system.notes.holder
        if holder is not None and holder.lease_id == attempt.lease_id:
            system.notes.holder = None


@dataclass(frozen=True)
class Refused(Actor):
    """
    One call of a bank API that answers 401 whatever the token: it reads, is refused, goes on as one
    that refreshes if that may help, calls again with the new token, and is refused again.
    """

    TURNS: ClassVar = 6
    FAULTS: ClassVar = {4: list(FAULTS), 5: [NO_LOGOUT]}
    taken: int = 0
    seen: ConnectionVersion | None = None
    refreshing: Refreshing | None = None
    has_new_token: bool = False

    @property
    def attempt(self) -> refresh.Attempt | None:
        return self.refreshing.attempt if self.refreshing else None

    def turn(self, system: System) -> Actor | None:
        if self.seen is None:
            return self._call(system)
        if self.has_new_token:
            with suppress(EverifinError):
                refresh.reject(system.user, self.seen)
            return None
        refreshing: Any = self.refreshing or self._refreshing(system, self.seen)
        if self.refreshing is not None:
            refreshing = self.refreshing.turn(system)
        if refreshing is not None:
            return Refused(self.taken + 1, self.seen, refreshing)
        return self._call_again(system, self.seen)

    def _call(self, system: System) -> Actor | None:
        with suppress(TokenError):
            return Refused(1, refresh.read_connection(system.user).seen(is_rejected=True))
        return None

    def _call_again(self, system: System, seen: ConnectionVersion) -> Actor | None:
        row = system.row()
        if row is None or row.status != Status.ACTIVE or row.token_version == seen.token_version:
            return None
        return Refused(self.taken + 1, row.seen(is_rejected=True), has_new_token=True)

    def _refreshing(self, system: System, seen: ConnectionVersion) -> Refreshing | None:
        try:
            reading = refresh._read(system.user, seen)
            if not reading.is_rejected or reading.is_leased or reading.pause_seconds:
                return None
            refresh._check_that_a_refresh_may_help(reading)
        except EverifinError:
            return None
        # A token that came from a refresh and is refused all the same is not refreshed for that.
        is_overdue = reading.now >= reading.row.overdue_at(conf.refresh_margin_seconds)
        assert reading.row.refreshed_at is None or is_overdue
        return Refreshing(1, refresh.Attempt(reading.row, 0))


@dataclass(frozen=True)
class InTransaction(Actor):
    """
    One turn: a view that nobody decorated refreshes inside its transaction, over a database
    connection of its own, and is rolled back.
    """

    TURNS: ClassVar = 1
    FAULTS: ClassVar = {1: list(FAULTS)}
    taken: int = 0

    def turn(self, system: System) -> None:
        with suppress(TokenError):
            seen = refresh.read_connection(system.user).seen()
            reading = refresh._read(system.user, seen)
            if reading.is_due and not reading.is_leased and not reading.pause_seconds:
                self._refresh(system)

    def _refresh(self, system: System) -> None:
        with transaction.atomic():
            system.rows.count()
            with suppress(EverifinError):
                refresh.ensure_fresh(system.user)
            transaction.set_rollback(True)
        system.notes.claims += 1
        row = system.row()
        system.notes.is_refused |= row is not None and row.status == Status.NEEDS_RECONNECT


@dataclass(frozen=True)
class Disconnecting(Actor):
    """``grants.disconnect`` in its two turns: the end here, the end at Everifin."""

    TURNS: ClassVar = 2
    FAULTS: ClassVar = {2: [NO_LOGOUT]}
    taken: int = 0
    pending: PendingRevocation | None = None

    def turn(self, system: System) -> Actor | None:
        if self.pending is None:
            row, pending = grants._end(system.user, "disconnected")
            system.notes.is_disconnected |= row is not None
            return Disconnecting(1, pending) if pending else None
        # In a system that was brought back, the entry has another id; and a late answer may have
        # put a newer token of the same session into it.
        token, entries = self.pending.open_token(), list(system.outbox.all())
        same = [entry for entry in entries if entry.open_token() == token] or [
            entry for entry in entries if entry.connection_id == self.pending.connection_id
        ]
        if not same:
            return None
        pending = copy(self.pending)
        pending.pk = same[0].pk
        revocation.revoke(pending)
        return None


@dataclass(frozen=True)
class Deleting(Actor):
    """Two turns, as in the admin or a cascade: the connection is read, and deleted as it was."""

    TURNS: ClassVar = 2
    taken: int = 0
    read: BankToken | None = None

    def turn(self, system: System) -> Actor | None:
        if self.read is None:
            row = system.row()
            return Deleting(1, row) if row else None
        deleted, _ = copy(self.read).delete()
        if deleted:
            system.let_go_of_row()
        return None


@dataclass(frozen=True)
class Reconnecting(Actor):
    """Two turns: Everifin gives a new grant, and it is stored."""

    TURNS: ClassVar = 2
    taken: int = 0
    grant: TokenSet | None = None

    def turn(self, system: System) -> Actor | None:
        if self.grant is None:
            grant = system.grant()
            system.notes.homeless |= {grant.sid}
            return Reconnecting(1, grant)
        grants.save_grant(system.user, self.grant, None)
        system.notes.homeless -= {self.grant.sid}
        system.notes.is_disconnected = system.notes.is_deleted = False
        return None


@dataclass(frozen=True)
class Expiring(Actor):
    """One turn: the lease runs out, if there is one."""

    TURNS: ClassVar = 1
    taken: int = 0

    def turn(self, system: System) -> None:
        system.let_lease_run_out()


@dataclass(frozen=True)
class Waiting(Actor):
    """One turn: the pause after a failure passes, if there is one."""

    TURNS: ClassVar = 1
    taken: int = 0

    def turn(self, system: System) -> None:
        system.let_pause_pass()


@dataclass(frozen=True)
class OfTheOther(Actor):
    """An actor of the second tenant."""

    inner: Any = None

    @property
    def taken(self) -> int:
        return int(self.inner.taken)


@dataclass(frozen=True)
class OtherRefreshing(OfTheOther):
    TURNS: ClassVar = Refreshing.TURNS
    FAULTS: ClassVar = Refreshing.FAULTS
    inner: Any = Refreshing()


@dataclass(frozen=True)
class OtherDisconnecting(OfTheOther):
    TURNS: ClassVar = Disconnecting.TURNS
    FAULTS: ClassVar = Disconnecting.FAULTS
    inner: Any = Disconnecting()


@dataclass(frozen=True)
class OtherReconnecting(OfTheOther):
    TURNS: ClassVar = Reconnecting.TURNS
    inner: Any = Reconnecting()


@dataclass(frozen=True)
class OtherDeleting(OfTheOther):
    TURNS: ClassVar = Deleting.TURNS
    inner: Any = Deleting()

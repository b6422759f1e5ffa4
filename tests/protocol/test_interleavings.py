"""
The refresh protocol, played in every order.

Several processes take their turns in every possible order, with every choice of a failure for each
of them: none, a crash after any of its turns, or a fault. What a turn does depends on the system
and on the process alone; so each is played once, from a system that is brought back for it, and
beginnings of orders that lead to the same state are continued once. The orders are counted on the
way, each with the turns that a process did not need any more wherever they could have
been; so the count can be held against what combinatorics says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import comb, factorial, prod
from typing import Any, NamedTuple

import pytest
from django.db import connections

from tests.protocol.actors import (
    Actor,
    Deleting,
    Disconnecting,
    Expiring,
    InTransaction,
    OtherDeleting,
    OtherDisconnecting,
    OtherReconnecting,
    OtherRefreshing,
    Pair,
    Reconnecting,
    Refreshing,
    Refused,
    Snapshot,
    System,
    Tenants,
    Waiting,
    a_system,
    plain,
    two_tenants,
)

pytestmark = [pytest.mark.django_db, pytest.mark.exhaustive]

CRASH = "crash"


class Failure(NamedTuple):
    """What happens to an actor in one of its turns: a fault, or a crash right after it."""

    turn: int = 0
    fault: str = ""


class Part(NamedTuple):
    """An actor, by the number of its state, and the failure that is ahead of it."""

    actor: int
    failure: Failure = Failure()


Roles = tuple[type[Actor], ...]
Failures = tuple[Failure, ...]
Cast = tuple[Part | None, ...]
"""The processes; None is one that is done or has crashed."""

State = tuple[int, Cast]
"""The system, by its number, and the processes."""


@dataclass
class Exploration:
    """
    All that can come of process_sets in one system.

    *trace* is who had the turns up to where it is now, or failed.
    """

    system: System | Tenants
    worlds: list[Any] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    trace: list[int] = field(default_factory=list)
    turns: dict[tuple[int, int, str], tuple[int, int | None]] = field(default_factory=dict)
    orders: dict[State, int] = field(default_factory=dict)
    _numbers: dict[Any, int] = field(default_factory=dict)
    _settled: set[int] = field(default_factory=set)
    _here: int = 0

    def __post_init__(self) -> None:
        self.system.begin()
        self._number(self.system.snapshot(), self.worlds)

    def beginning(self, roles: Roles, failures: Failures) -> State:
        numbers = [self._number(role(), self.actors) for role in roles]
        return 0, tuple(map(Part, numbers, failures))

    def count(self, state: State) -> int:
        """In how many orders the turns that are left can come, each of them seen to end well."""
        system, processes = state
        # Actors that are alike are interchangeable.
        key = system, tuple(sorted(filter(None, processes)))
        if key not in self.orders:
            if not key[1]:
                self._settle(system)
            going = [index for index, part in enumerate(processes) if part]
            self.orders[key] = sum(self._count_from(state, index) for index in going) or 1
        return self.orders[key]

    def turn(self, state: State, index: int) -> State:
        """What the state is after the turn of the actor at *index*."""
        system, processes = state
        number, failure = processes[index] or Part(-1)
        is_now = self.actors[number].taken + 1 == failure.turn
        after, goes_on = self._turn(system, number, failure.fault if is_now else "")
        if is_now and not failure.fault and goes_on is not None:
            after, goes_on = self._turn(after, goes_on, CRASH)
        part = None if goes_on is None else Part(goes_on, Failure() if is_now else failure)
        return after, (*processes[:index], part, *processes[index + 1 :])

    def _count_from(self, state: State, index: int) -> int:
        self.trace.append(index)
        after = self.turn(state, index)
        orders = self.count(after)
        self.trace.pop()
        if after[1][index] is not None:
            return orders
        # The turns it did not need may come anywhere among those of the others.
        unused = self._turns_left(state[1][index]) - 1
        return orders * comb(sum(map(self._turns_left, after[1])) + unused, unused)

    def _turns_left(self, part: Part | None) -> int:
        return self.actors[part.actor].TURNS - self.actors[part.actor].taken if part else 0

    def _turn(self, system: int, actor: int, what: str) -> tuple[int, int | None]:
        if (system, actor, what) not in self.turns:
            self._go_to(system)
            goes_on = _play(self.system, self.actors[actor], what)
            snapshot: Any = self.system.snapshot()
            self.system.check(snapshot.row)
            self._here = self._number(snapshot, self.worlds)
            number = None if goes_on is None else self._number(goes_on, self.actors)
            self.turns[system, actor, what] = self._here, number
        return self.turns[system, actor, what]

    def _settle(self, system: int) -> None:
        if system not in self._settled:
            self._go_to(system)
            self.leave()
            self.system.settle()
            self._settled.add(system)

    def leave(self) -> None:
        """Take note that the system is none of those known."""
        self._here = -1

    def _go_to(self, system: int) -> None:
        if system != self._here:
            self.leave()
            self.system.restore(self.worlds[system])

    def _number(self, thing: Any, known: list[Any]) -> int:
        key = thing if isinstance(thing, Snapshot | Pair) else plain(thing)
        if key not in self._numbers:
            self._numbers[key] = len(known)
            known.append(thing)
        return self._numbers[key]


def _play(system: System | Tenants, actor: Actor, what: str) -> Actor | None:
    """Let *actor* crash, or take its turn, and return who goes on."""
    if what == CRASH:
        system.crash(actor)
        return None
    return system.let(actor, what)


def _count(roles: Roles) -> int:
    """The number of orders of all turns of these roles."""
    turns = [role.TURNS for role in roles]
    return factorial(sum(turns)) // prod(map(factorial, turns))


def _troubles(role: type[Actor]) -> list[Failure]:
    """No failure; a crash after each turn but the last; each fault."""
    crashes = [Failure(turn) for turn in range(role.TURNS)]
    return crashes + [Failure(turn, fault) for turn in role.FAULTS for fault in role.FAULTS[turn]]


def _choices(roles: Roles) -> Iterator[Failures]:
    """Every choice of a failure for each; of those that alike actors can swap, one."""
    alike = roles.count(roles[0])
    for failures in product(*map(_troubles, roles)):
        if list(failures[:alike]) == sorted(failures[:alike]):
            yield failures


def _names(roles: Roles) -> str:
    return "-".join(role.__name__ for role in roles)


CASTS: list[Roles] = [
    (Refreshing, Refreshing),
    (Refreshing, Disconnecting),
    (Refreshing, Reconnecting),
    (Refreshing, Deleting),
    (Refreshing, Refreshing, Refreshing),
    (Refreshing, Refreshing, Expiring),
    (Refreshing, Refreshing, Waiting),
    (Refreshing, Refreshing, Disconnecting),
    (Refreshing, Refreshing, Reconnecting),
    (Refreshing, Refreshing, Deleting),
    (Refreshing, Disconnecting, Reconnecting),
    (Refreshing, Disconnecting, Deleting),
    (Refreshing, Reconnecting, Deleting),
    (Refreshing, Refreshing, Refreshing, Expiring),
    (Refreshing, Refreshing, Expiring, Waiting),
]


BESIDE_A_TENANT: list[Roles] = [
    (Refreshing, OtherRefreshing),
    (Refreshing, OtherDisconnecting),
    (Refreshing, OtherReconnecting),
    (Refreshing, OtherDeleting),
    (Disconnecting, OtherRefreshing),
    (Reconnecting, OtherRefreshing),
    (Refreshing, Refreshing, OtherRefreshing),
    (Refreshing, Disconnecting, OtherRefreshing),
]
WITH_A_REFUSING_BANK: list[Roles] = [
    (Refused, Refused),
    (Refused, Expiring),
    (Refused, Disconnecting),
    (Refused, Reconnecting),
    (Refused, Deleting),
    (Refused, Refused, Refused),
    (Refused, Refused, Expiring),
    (Refused, Refused, Disconnecting),
]
OVER_A_POOL: list[Roles] = [
    (InTransaction, InTransaction),
    (Refreshing, InTransaction),
    (InTransaction, Disconnecting),
    (InTransaction, Reconnecting),
    (InTransaction, Deleting),
    (Refreshing, InTransaction, Expiring),
]
ROTATIONS = pytest.mark.parametrize("rotation", ["strict", "default"])


def at_most(failures: int, roles: Roles) -> int:
    """
    How many failures one order of *roles* may have: *failures* on SQLite. On a server, where each
    takes several times as long, it is one among two processes and none among more: what depends on
    the database is what two of them do to each other.
    """
    if connections["default"].vendor == "sqlite":
        return failures
    return 1 if len(roles) == 2 else 0


def explore(system: System | Tenants, roles: Roles, most_troubles: int, record: Any) -> None:
    """
    Play every order, and record how many there were, each with each choice of at most
    *most_troubles* failures.
    """
    exploration, found = Exploration(system), 0
    for failures in _choices(roles):
        if sum(failure.turn > 0 for failure in failures) > most_troubles:
            continue
        with _named(exploration, roles, failures):
            orders = exploration.count(exploration.beginning(roles, failures))
            assert orders == _count(roles)
            found += orders
    record("orders", found)
    record("turns", len(exploration.turns))


@ROTATIONS
@pytest.mark.parametrize("roles", CASTS, ids=_names)
def test_no_order_of_turns_breaks_the_protocol(everifin, roles, rotation, record_property):
    with a_system(everifin, rotation) as system:
        explore(system, roles, at_most(len(roles), roles), record_property)


@ROTATIONS
@pytest.mark.parametrize("roles", BESIDE_A_TENANT, ids=_names)
def test_no_order_of_turns_reaches_another_tenant(
    everifin, roles, rotation, second_database, record_property
):
    most_troubles = 2 if len(roles) == 2 else 1
    with two_tenants(everifin, rotation, second_database) as tenants:
        explore(tenants, roles, at_most(most_troubles, roles), record_property)


@ROTATIONS
@pytest.mark.parametrize("roles", WITH_A_REFUSING_BANK, ids=_names)
def test_no_order_of_refused_calls_refreshes_twice_for_that(
    everifin, roles, rotation, record_property
):
    most_troubles = 2 if len(roles) == 2 else 1
    with a_system(everifin, rotation, is_fresh=True) as system:
        explore(system, roles, at_most(most_troubles, roles), record_property)


@pytest.fixture
def pool(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the database's connections come from a pool that has one."""
    connection = connections["default"]
    connection.close()
    options = {**connection.settings_dict.get("OPTIONS", {})}
    options["pool"] = {"min_size": 1, "max_size": 1, "timeout": 20}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    yield
    pooled: Any = connections["default"]
    pooled.close()
    pooled.close_pool()


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(
    "connections['default'].vendor != 'postgresql'", reason="Django's pool is PostgreSQL's"
)
@ROTATIONS
@pytest.mark.parametrize("roles", OVER_A_POOL, ids=_names)
def test_no_order_of_turns_leaves_anything_on_a_pooled_connection(
    everifin, roles, rotation, pool, record_property
):
    def give_back() -> None:
        pooled: Any = connections["default"]
        assert session_settings() == at_first
        pooled.close()
        assert pooled.pool.get_stats()["pool_available"] == 1

    at_first = session_settings()
    with a_system(everifin, rotation) as system:
        system.after_turn = give_back
        explore(system, roles, 1, record_property)


def session_settings() -> list[tuple[str, str]]:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT name, setting FROM pg_settings WHERE source = 'session' ORDER BY 1")
        return list(cursor.fetchall())


@contextmanager
def _named(exploration: Exploration, roles: Roles, failures: Failures) -> Iterator[None]:
    """Add to an error what led to it."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"After the turns {tuple(exploration.trace)} of {_names(roles)} with {failures}."
        )
        raise


def _traces(exploration: Exploration, state: State) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every order of the turns that are needed, and the system it ends in."""
    system, processes = state
    going = [index for index, part in enumerate(processes) if part]
    if not going:
        yield (), system
    for index in going:
        for trace, end in _traces(exploration, exploration.turn(state, index)):
            yield (index, *trace), end


def _played_straight(
    system: System, roles: Roles, failures: Failures, trace: tuple[int, ...]
) -> Snapshot:
    """The system after *trace*, played from the beginning with nothing brought back."""
    system.begin()
    actors: list[Actor | None] = [role() for role in roles]
    for index in trace:
        actor, failure = actors[index], failures[index]
        assert actor is not None
        is_now = actor.taken + 1 == failure.turn
        actors[index] = actor = system.let(actor, failure.fault if is_now else "")
        if actor is not None and is_now and not failure.fault:
            system.crash(actor)
            actors[index] = None
    assert not any(actors)
    return system.snapshot()


@pytest.mark.parametrize(
    ("roles", "most_troubles"),
    [
        ((Refreshing, Refreshing), 1),
        ((Refreshing, Disconnecting), 1),
        ((Refreshing, Reconnecting), 1),
        ((Refreshing, Deleting), 1),
        ((Refreshing, Refreshing, Expiring), 0),
        ((Refreshing, Refreshing, Waiting), 0),
        ((Refused, Refused), 0),
    ],
)
@pytest.mark.skipif(
    "connections['default'].vendor != 'sqlite'", reason="what it is about is the exploration itself"
)
def test_states_that_are_merged_go_on_alike(everifin, roles, most_troubles):
    """Each order, played straight through, ends in the very system that the exploration says."""
    with a_system(everifin, "strict") as system:
        exploration = Exploration(system)
        for failures in _choices(roles):
            if sum(failure.turn > 0 for failure in failures) > most_troubles:
                continue
            is_alike = roles[0] is roles[1] and failures[0] == failures[1]
            for trace, end in list(_traces(exploration, exploration.beginning(roles, failures))):
                if is_alike and trace.index(1) < trace.index(0):
                    continue  # the mirror image of another
                played = _played_straight(system, roles, failures, trace)
                assert played == exploration.worlds[end], f"After {trace} with {failures}."
            exploration.leave()

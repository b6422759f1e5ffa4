"""
The refresh protocol, played in every order.

A cast of actors takes its turns in every possible order, with every choice of a trouble for each of
them: none, a crash after any of its turns, or a fault. What a turn does depends on the world and
on the actor alone; so each is played once, from a world that is brought back for it, and beginnings
of orders that lead to the same state are continued once. The orders are counted on the way, each
with the turns that an actor did not need any more in every place where they could have been; so the
count can be held against what combinatorics says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import comb, factorial, prod
from typing import Any, NamedTuple

import pytest

from tests.concurrency.actors import (
    Actor,
    Deleting,
    Disconnecting,
    Expiring,
    Reconnecting,
    Refreshing,
    Snapshot,
    Waiting,
    World,
    a_world,
    plain,
)

pytestmark = [pytest.mark.django_db, pytest.mark.exhaustive]

CRASH = "crash"


class Trouble(NamedTuple):
    """What happens to an actor in one of its turns: a fault, or a crash right after it."""

    turn: int = 0
    fault: str = ""


class Part(NamedTuple):
    """An actor, by the number of its state, and the trouble that is ahead of it."""

    actor: int
    trouble: Trouble = Trouble()


Roles = tuple[type[Actor], ...]
Troubles = tuple[Trouble, ...]
Cast = tuple[Part | None, ...]
"""Who takes part; None is one who is done or has crashed."""

State = tuple[int, Cast]
"""The world, by its number, and the cast."""


@dataclass
class Exploration:
    """
    All that can come of casts in one world.

    *trace* is who had the turns up to where it is now, or failed.
    """

    world: World
    worlds: list[Snapshot] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    trace: list[int] = field(default_factory=list)
    turns: dict[tuple[int, int, str], tuple[int, int | None]] = field(default_factory=dict)
    orders: dict[State, int] = field(default_factory=dict)
    _numbers: dict[Any, int] = field(default_factory=dict)
    _settled: set[int] = field(default_factory=set)
    _here: int = 0

    def __post_init__(self) -> None:
        self.world.begin()
        self._number(self.world.snapshot(), self.worlds)

    def beginning(self, roles: Roles, troubles: Troubles) -> State:
        numbers = [self._number(role(), self.actors) for role in roles]
        return 0, tuple(map(Part, numbers, troubles))

    def count(self, state: State) -> int:
        """In how many orders the turns that are left can come, each of them seen to end well."""
        world, cast = state
        # Actors that are alike are interchangeable.
        key = world, tuple(sorted(filter(None, cast)))
        if key not in self.orders:
            if not key[1]:
                self._settle(world)
            going = [index for index, part in enumerate(cast) if part]
            self.orders[key] = sum(self._count_from(state, index) for index in going) or 1
        return self.orders[key]

    def turn(self, state: State, index: int) -> State:
        """What the state is after the turn of the actor at *index*."""
        world, cast = state
        number, trouble = cast[index] or Part(-1)
        is_now = self.actors[number].taken + 1 == trouble.turn
        after, goes_on = self._turn(world, number, trouble.fault if is_now else "")
        if is_now and not trouble.fault and goes_on is not None:
            after, goes_on = self._turn(after, goes_on, CRASH)
        part = None if goes_on is None else Part(goes_on, Trouble() if is_now else trouble)
        return after, (*cast[:index], part, *cast[index + 1 :])

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

    def _turn(self, world: int, actor: int, what: str) -> tuple[int, int | None]:
        if (world, actor, what) not in self.turns:
            self._go_to(world)
            goes_on = _play(self.world, self.actors[actor], what)
            snapshot = self.world.snapshot()
            self.world.check(snapshot.row)
            self._here = self._number(snapshot, self.worlds)
            number = None if goes_on is None else self._number(goes_on, self.actors)
            self.turns[world, actor, what] = self._here, number
        return self.turns[world, actor, what]

    def _settle(self, world: int) -> None:
        if world not in self._settled:
            self._go_to(world)
            self.leave()
            self.world.settle()
            self._settled.add(world)

    def leave(self) -> None:
        """Take note that the world is none of those known."""
        self._here = -1

    def _go_to(self, world: int) -> None:
        if world != self._here:
            self.leave()
            self.world.restore(self.worlds[world])

    def _number(self, thing: Any, known: list[Any]) -> int:
        key = thing if isinstance(thing, Snapshot) else plain(thing)
        if key not in self._numbers:
            self._numbers[key] = len(known)
            known.append(thing)
        return self._numbers[key]


def _play(world: World, actor: Actor, what: str) -> Actor | None:
    """Let *actor* crash, or take its turn, and return who goes on."""
    if what == CRASH:
        world.crash(actor)
        return None
    return world.let(actor, what)


def _count(roles: Roles) -> int:
    """The number of orders of all turns of these roles."""
    turns = [role.TURNS for role in roles]
    return factorial(sum(turns)) // prod(map(factorial, turns))


def _troubles(role: type[Actor]) -> list[Trouble]:
    """No trouble; a crash after each turn but the last; each fault."""
    crashes = [Trouble(turn) for turn in range(role.TURNS)]
    return crashes + [Trouble(turn, fault) for turn in role.FAULTS for fault in role.FAULTS[turn]]


def _choices(roles: Roles) -> Iterator[Troubles]:
    """Every choice of a trouble for each; of those that alike actors can swap, one."""
    alike = roles.count(roles[0])
    for troubles in product(*map(_troubles, roles)):
        if list(troubles[:alike]) == sorted(troubles[:alike]):
            yield troubles


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


@pytest.mark.parametrize("rotation", ["strict", "default"])
@pytest.mark.parametrize("roles", CASTS, ids=_names)
def test_no_order_of_turns_breaks_the_protocol(everifin, roles, rotation):
    with a_world(everifin, rotation) as world:
        exploration = Exploration(world)
        for troubles in _choices(roles):
            with _named(exploration, roles, troubles):
                orders = exploration.count(exploration.beginning(roles, troubles))
                assert orders == _count(roles)


@contextmanager
def _named(exploration: Exploration, roles: Roles, troubles: Troubles) -> Iterator[None]:
    """Add to an error what led to it."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"After the turns {tuple(exploration.trace)} of {_names(roles)} with {troubles}."
        )
        raise


def _traces(exploration: Exploration, state: State) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every order of the turns that are needed, and the world it ends in."""
    world, cast = state
    going = [index for index, part in enumerate(cast) if part]
    if not going:
        yield (), world
    for index in going:
        for trace, end in _traces(exploration, exploration.turn(state, index)):
            yield (index, *trace), end


def _played_straight(
    world: World, roles: Roles, troubles: Troubles, trace: tuple[int, ...]
) -> Snapshot:
    """The world after *trace*, played from the beginning with nothing brought back."""
    world.begin()
    actors: list[Actor | None] = [role() for role in roles]
    for index in trace:
        actor, trouble = actors[index], troubles[index]
        assert actor is not None
        is_now = actor.taken + 1 == trouble.turn
        actors[index] = actor = world.let(actor, trouble.fault if is_now else "")
        if actor is not None and is_now and not trouble.fault:
            world.crash(actor)
            actors[index] = None
    assert not any(actors)
    return world.snapshot()


@pytest.mark.parametrize(
    ("roles", "most_troubles"),
    [
        ((Refreshing, Refreshing), 1),
        ((Refreshing, Disconnecting), 1),
        ((Refreshing, Reconnecting), 1),
        ((Refreshing, Deleting), 1),
        ((Refreshing, Refreshing, Expiring), 0),
        ((Refreshing, Refreshing, Waiting), 0),
    ],
)
def test_states_that_are_merged_go_on_alike(everifin, roles, most_troubles):
    """Each order, played straight through, ends in the very world that the exploration says."""
    with a_world(everifin, "strict") as world:
        exploration = Exploration(world)
        for troubles in _choices(roles):
            if sum(trouble.turn > 0 for trouble in troubles) > most_troubles:
                continue
            is_alike = roles[0] is roles[1] and troubles[0] == troubles[1]
            for trace, end in list(_traces(exploration, exploration.beginning(roles, troubles))):
                if is_alike and trace.index(1) < trace.index(0):
                    continue  # the mirror image of another
                played = _played_straight(world, roles, troubles, trace)
                assert played == exploration.worlds[end], f"After {trace} with {troubles}."
            exploration.leave()

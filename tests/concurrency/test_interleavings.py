"""
The refresh protocol, played in every order.

A cast of actors takes its turns in every possible order, each order without trouble, with every
single crash and with single faults. Orders that differ only in turns in which nothing can happen,
or in which of two processes that are alike is which, are played once and counted as often as they
stand for; so the count can be held against what combinatorics says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import comb, factorial, prod

import pytest

from everifin_django import refresh
from everifin_django.testing.factories import BankTokenFactory
from tests.concurrency.actors import (
    FAULTS,
    Actor,
    World,
    disconnecting,
    expiring,
    reconnecting,
    refreshing,
)

pytestmark = pytest.mark.django_db

Cast = tuple[Callable[..., Actor], ...]
Trace = tuple[int, ...]
TURNS: dict[Callable[..., Actor], int] = {
    refreshing: 4,
    disconnecting: 2,
    reconnecting: 2,
    expiring: 1,
}
ROTATIONS = ["strict", "default"]


@dataclass(frozen=True)
class Trouble:
    """What happens to one actor of the cast: a fault of its answer, or a crash after some turns."""

    actor: int = -1
    fault: str = ""
    crash_after: int = 0


@dataclass
class Play:
    """
    One schedule while it is played: who had which turn, and who may have the next.

    *idle* are the moments at which no lease could run out.
    """

    world: World
    cast: Cast
    trouble: Trouble
    actors: dict[int, Actor] = field(default_factory=dict)
    trace: Trace = ()
    idle: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        for index, role in enumerate(self.cast):
            is_hit = self.trouble.fault and self.trouble.actor == index
            arguments = (self.trouble.fault,) if is_hit else ()
            self.actors[index] = role(self.world, *arguments)

    def open(self) -> list[int]:
        """Who may have the next turn. Processes that are alike begin in the order of the cast."""
        return [
            index
            for index in self.actors
            if (self.cast[index] is not expiring or self.world.is_leased)
            and (
                index == 0
                or self.cast[index - 1] is not self.cast[index]
                or index - 1 in self.trace
            )
        ]

    def turn(self, index: int, *, is_new: bool = True) -> None:
        """Let an actor do one step; *is_new* if this beginning of a schedule was not seen yet."""
        self.trace += (index,)
        is_over = next(self.actors[index], self) is self
        has_crashed = self.trouble.crash_after == self.trace.count(index)
        if is_over or (has_crashed and self.trouble.actor == index):
            self.actors.pop(index).close()
        if is_new:
            self.world.check()
            if not self.world.is_leased:
                self.idle.append(len(self.trace))


def _played(begin: Callable[[], Play]) -> Iterator[Play]:
    """Every schedule, played to its end: depth first, each from a fresh beginning."""
    beginnings: list[tuple[Trace, list[int]]] = [((), [0])]
    while beginnings:
        trace, idle = beginnings.pop()
        play = begin()
        for index in trace[:-1]:
            play.turn(index, is_new=False)
        play.idle = list(idle)
        for index in trace[-1:]:
            play.turn(index)
        while candidates := play.open():
            if all(play.cast[index] is expiring for index in candidates):
                # Its turn may also have come before, when there was nothing to run out.
                beginnings += [((*play.trace, index), list(play.idle)) for index in candidates]
                break
            first, *others = candidates
            beginnings += [((*play.trace, other), list(play.idle)) for other in others]
            play.turn(first)
        yield play


def _stands_for(play: Play) -> int:
    """How many orders of all turns come to the same as this one."""
    if expiring not in play.cast or play.cast.index(expiring) in play.trace:
        return _extensions(play.cast, play.trace)
    index = play.cast.index(expiring)
    # Its turn came at a moment when there was nothing to run out.
    return sum(
        _extensions(play.cast, (*play.trace[:moment], index, *play.trace[moment:]))
        for moment in play.idle
    )


def _extensions(cast: Cast, trace: Trace) -> int:
    """In how many ways the turns that nobody took any more fit in behind each actor's last."""
    last = {index: len(trace) - trace[::-1].index(index) for index in trace}
    ways, behind = 1, 0
    for index in sorted(last, key=lambda index: -last[index]):
        unused = TURNS[cast[index]] - trace.count(index)
        ways *= comb(len(trace) - last[index] + behind + unused, unused)
        behind += unused
    return ways


def _orders(cast: Cast) -> int:
    """The number of orders of all turns of the cast, its refreshing processes being alike."""
    turns = [TURNS[role] for role in cast]
    alike = factorial(cast.count(refreshing))
    return factorial(sum(turns)) // prod(map(factorial, turns)) // alike


def _troubles(cast: Cast, faults: tuple[str, ...]) -> Iterator[Trouble]:
    """No trouble; each actor crashing after each of its turns; each refresh meeting each fault."""
    yield Trouble()
    for index, role in enumerate(cast):
        yield from (Trouble(index, crash_after=turn) for turn in range(1, TURNS[role]))
        if role is refreshing:
            yield from (Trouble(index, fault=fault) for fault in faults)


def _play_all(begin: Callable[[], World], cast: Cast, trouble: Trouble) -> int:
    """Play every schedule; return how many of them were played."""
    played = stood_for = 0
    for play in _played(lambda: Play(begin(), cast, trouble)):
        try:
            play.world.settle()
        except AssertionError as error:
            error.add_note(f"After the turns {play.trace} of {_names(cast)} with {trouble}.")
            raise
        played += 1
        stood_for += _stands_for(play)
    assert stood_for == _orders(cast), f"{_names(cast)} with {trouble}"
    return played


def _names(cast: Cast) -> str:
    return "-".join(role.__name__ for role in cast)


@pytest.fixture
def begin(everifin, monkeypatch):
    """Give a function that makes a fresh world."""
    monkeypatch.setattr(refresh, "TAKEOVER_PATIENCE_SECONDS", 0)
    everifin.issue_id_tokens = False
    user = BankTokenFactory(subject="").user
    return lambda: World(everifin, user)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize(
    ("cast", "faults"),
    [
        ((refreshing, refreshing), tuple(FAULTS)),
        ((refreshing, refreshing, expiring), ()),
        ((refreshing, disconnecting), tuple(FAULTS)),
        ((refreshing, reconnecting), tuple(FAULTS)),
    ],
)
def test_no_order_of_turns_breaks_the_protocol(begin, everifin, rotation, cast, faults):
    everifin.rotation = rotation
    for trouble in _troubles(cast, faults):
        assert _play_all(begin, cast, trouble)


def test_three_processes_without_trouble(begin):
    """Under strict rotation, which forgives the least."""
    assert _play_all(begin, (refreshing, refreshing, refreshing), Trouble())

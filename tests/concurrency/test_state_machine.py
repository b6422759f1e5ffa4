"""The refresh protocol under longer and wilder runs than can be enumerated, drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from everifin_django import refresh
from everifin_django.testing.factories import BankTokenFactory
from tests.concurrency.actors import (
    FAULTS,
    Actor,
    World,
    disconnecting,
    reconnecting,
    refreshing,
)

pytestmark = pytest.mark.django_db

MOST_ACTORS = 5
BOUNDS = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),  # they judge the speed of the machine
)


class Protocol(RuleBasedStateMachine):
    """Any number of processes at one connection, and whatever may happen to them."""

    def __init__(self, begin: Callable[[], World]) -> None:
        super().__init__()
        self.world = begin()
        self.actors: list[Actor] = []

    def has_actors(self) -> bool:
        return bool(self.actors)

    def has_room(self) -> bool:
        return len(self.actors) < MOST_ACTORS

    @precondition(has_room)
    @rule(fault=st.sampled_from(["", "", "", *FAULTS]))
    def a_process_begins(self, fault: str) -> None:
        self.actors.append(refreshing(self.world, fault))

    @precondition(has_room)
    @rule()
    def the_user_disconnects(self) -> None:
        self.actors.append(disconnecting(self.world))

    @precondition(has_room)
    @rule()
    def the_user_connects_again(self) -> None:
        self.actors.append(reconnecting(self.world))

    @precondition(has_actors)
    @rule(data=st.data())
    def somebody_goes_on(self, data: st.DataObject) -> None:
        self._turn(data.draw(st.integers(0, len(self.actors) - 1)))

    @precondition(has_actors)
    @rule(data=st.data())
    def somebody_crashes(self, data: st.DataObject) -> None:
        self.actors.pop(data.draw(st.integers(0, len(self.actors) - 1))).close()

    @rule()
    def the_lease_runs_out(self) -> None:
        if self.world.is_leased:
            self.world.let_lease_run_out()

    @rule()
    def time_passes(self) -> None:
        self.world.let_pause_pass()
        self.world.let_token_run_out()

    @rule()
    def everifin_ends_the_sessions(self) -> None:
        self.world.end_sessions()

    @invariant()
    def the_protocol_holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """Let everybody finish, and look what is left."""
        while self.actors:
            self._turn(0)
            self.world.check()
        self.world.settle()

    def _turn(self, index: int) -> None:
        if next(self.actors[index], self) is self:
            self.actors.pop(index)


@pytest.mark.parametrize("rotation", ["strict", "default"])
def test_no_run_breaks_the_protocol(everifin, monkeypatch, rotation):
    monkeypatch.setattr(refresh, "TAKEOVER_PATIENCE_SECONDS", 0)
    everifin.issue_id_tokens = False
    everifin.rotation = rotation
    user = BankTokenFactory(subject="").user

    class OfThisTest(Protocol):
        def __init__(self) -> None:
            super().__init__(lambda: World(everifin, user))

    run_state_machine_as_test(OfThisTest, settings=BOUNDS)

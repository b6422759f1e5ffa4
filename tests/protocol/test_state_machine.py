"""The refresh protocol under longer and wilder runs than can be enumerated, drawn by Hypothesis."""

from __future__ import annotations

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

from tests.protocol.actors import (
    Actor,
    Deleting,
    Disconnecting,
    Reconnecting,
    Refreshing,
    Refused,
    System,
    a_system,
)

pytestmark = pytest.mark.django_db

MOST_ACTORS = 5
ROLES: list[type[Actor]] = [*[Refreshing] * 3, Refused, Disconnecting, Deleting, Reconnecting]
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

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system
        self.system.begin()
        self.actors: list[Actor] = []

    def has_actors(self) -> bool:
        return bool(self.actors)

    def has_room(self) -> bool:
        return len(self.actors) < MOST_ACTORS

    @precondition(has_room)
    @rule(role=st.sampled_from(ROLES))
    def somebody_begins(self, role: type[Actor]) -> None:
        self.actors.append(role())

    @precondition(has_actors)
    @rule(data=st.data())
    def somebody_goes_on(self, data: st.DataObject) -> None:
        self._turn(self._chosen(data))

    @precondition(has_actors)
    @rule(data=st.data())
    def somebody_goes_on_and_meets_a_fault(self, data: st.DataObject) -> None:
        index = self._chosen(data)
        actor = self.actors[index]
        self._turn(index, data.draw(st.sampled_from(actor.FAULTS.get(actor.taken + 1, [""]))))

    @precondition(has_actors)
    @rule(data=st.data())
    def somebody_crashes(self, data: st.DataObject) -> None:
        self.system.crash(self.actors.pop(self._chosen(data)))

    @precondition(has_room)
    @rule()
    def the_bank_api_refuses_the_token(self) -> None:
        """Somebody who begins with what is stored and has to refresh at once."""
        self.actors.append(Refused())
        for _ in range(2):
            if self.actors and isinstance(self.actors[-1], Refused):
                self._turn(len(self.actors) - 1)

    @rule()
    def somebody_refreshes_without_a_break(self) -> None:
        goes_on: Actor | None = Refreshing()
        while goes_on:
            goes_on = self.system.let(goes_on)

    @rule()
    def the_lease_runs_out(self) -> None:
        self.system.let_lease_run_out()

    @rule()
    def time_passes(self) -> None:
        self.system.let_pause_pass()
        self.system.let_token_run_out()

    @rule()
    def everifin_ends_the_sessions(self) -> None:
        self.system.end_sessions()

    @invariant()
    def the_protocol_holds(self) -> None:
        self.system.check()

    def teardown(self) -> None:
        """Let everybody finish, and look what is left."""
        while self.actors:
            self._turn(0)
            self.system.check()
        self.system.settle()

    def _chosen(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.actors) - 1))

    def _turn(self, index: int, fault: str = "") -> None:
        goes_on = self.system.let(self.actors[index], fault)
        self.actors[index : index + 1] = [goes_on] if goes_on else []


@pytest.mark.parametrize("rotation", ["strict", "default"])
def test_no_run_breaks_the_protocol(everifin, rotation):
    with a_system(everifin, rotation) as system:

        class OfThisTest(Protocol):
            def __init__(self) -> None:
                super().__init__(system)

        run_state_machine_as_test(OfThisTest, settings=BOUNDS)

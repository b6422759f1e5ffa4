"""
What becomes of an answer from Everifin: one outcome for each case, in one table.

docs/explanation/login.md shows it, and is held to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from everifin_django.web import notices
from everifin_django.web.login_flow import FlowKind


class LoggedIn(StrEnum):
    """The user who is logged in here now, compared to the user for whom the flow was begun."""

    NOBODY = "nobody"
    SAME = "the same user"
    ANOTHER = "another user"


class FlowState(StrEnum):
    """What this site knows of the flow that an answer names."""

    KNOWN = "known"
    SPENT = "spent"
    UNKNOWN = "unknown"
    TOO_OLD = "too old"
    OTHER_HOST = "of another host"


class Step(StrEnum):
    """What is done with the answer."""

    EXCHANGE = "the code is exchanged"
    TELL = "the start page says why"
    LEAD_ON = "on to the page asked for"
    REFUSE = "a page says what happened"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step; a refusal has the words that the person reads and a reason for the log."""

    step: Step
    notice: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """The outcomes of an answer with a code, and of one with an error."""

    code: Outcome
    error: Outcome


def _both(outcome: Outcome) -> Cell:
    return Cell(code=outcome, error=outcome)


def _refused(notice: str, reason: str) -> Cell:
    return _both(Outcome(Step.REFUSE, notice, reason))


TAKEN = Cell(code=Outcome(Step.EXCHANGE), error=Outcome(Step.TELL))
LED_ON = _both(Outcome(Step.LEAD_ON))
SPENT = _refused(notices.SPENT, "state_spent")
EXPIRED = _refused(notices.EXPIRED, "state_expired")
UNKNOWN = _refused(notices.NOT_TRUSTED, "state_unknown")
OTHER_HOST = _refused(notices.OTHER_HOST, "other_host")
LOGGED_OUT = _refused(notices.LOGGED_OUT, "logged_out")
OTHER_USER = _refused(notices.OTHER_USER, "user_changed")

LOGIN, CONNECT = FlowKind.LOGIN, FlowKind.CONNECT

OUTCOMES: Mapping[tuple[FlowKind | None, FlowState, LoggedIn], Cell] = {
    (LOGIN, FlowState.KNOWN, LoggedIn.NOBODY): TAKEN,
    (LOGIN, FlowState.KNOWN, LoggedIn.ANOTHER): LED_ON,
    (LOGIN, FlowState.SPENT, LoggedIn.NOBODY): SPENT,
    (LOGIN, FlowState.SPENT, LoggedIn.ANOTHER): LED_ON,
    (LOGIN, FlowState.TOO_OLD, LoggedIn.NOBODY): EXPIRED,
    (LOGIN, FlowState.TOO_OLD, LoggedIn.ANOTHER): LED_ON,
    (LOGIN, FlowState.OTHER_HOST, LoggedIn.NOBODY): OTHER_HOST,
    (LOGIN, FlowState.OTHER_HOST, LoggedIn.ANOTHER): LED_ON,
    (CONNECT, FlowState.KNOWN, LoggedIn.NOBODY): LOGGED_OUT,
    (CONNECT, FlowState.KNOWN, LoggedIn.SAME): TAKEN,
    (CONNECT, FlowState.KNOWN, LoggedIn.ANOTHER): OTHER_USER,
    (CONNECT, FlowState.SPENT, LoggedIn.NOBODY): SPENT,
    (CONNECT, FlowState.SPENT, LoggedIn.SAME): LED_ON,
    (CONNECT, FlowState.SPENT, LoggedIn.ANOTHER): OTHER_USER,
    (CONNECT, FlowState.TOO_OLD, LoggedIn.NOBODY): LOGGED_OUT,
    (CONNECT, FlowState.TOO_OLD, LoggedIn.SAME): EXPIRED,
    (CONNECT, FlowState.TOO_OLD, LoggedIn.ANOTHER): OTHER_USER,
    (CONNECT, FlowState.OTHER_HOST, LoggedIn.NOBODY): OTHER_HOST,
    (CONNECT, FlowState.OTHER_HOST, LoggedIn.SAME): OTHER_HOST,
    (CONNECT, FlowState.OTHER_HOST, LoggedIn.ANOTHER): OTHER_HOST,
    (None, FlowState.UNKNOWN, LoggedIn.NOBODY): UNKNOWN,
    (None, FlowState.UNKNOWN, LoggedIn.ANOTHER): UNKNOWN,
}
"""
By the kind of the flow, its state, and who is logged in. A login is begun by nobody, so whoever is
logged in by now is another; of an unknown flow no kind is known.
"""


def outcome_of(
    kind: FlowKind | None, state: FlowState, who: LoggedIn, *, is_error: bool = False
) -> Outcome:
    cell = OUTCOMES[kind, state, who]
    return cell.error if is_error else cell.code

"""
What is known of a crash_run run, and what follows from it.

Two sources: the **journal**, one file in which every process writes down each step before it does
the next; and the **records** of Everifin, one for each refresh token that reached its work. A
process that was killed is recognised by what it did not write any more.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everifin_django.testing.sandbox import Fault, RecordedRefresh

STEPS = ("before claim", "after claim", "after send", "after store", "before give up")
"""The labelled steps, at each of which a worker can end itself."""

NOTHING_SENT = "nothing was sent"
LOST_ANSWER = "after a lost answer"
NO_ANSWER = "after an error instead of an answer"
REFUSAL = "after a refusal"
KILL = "after a kill"
LEASE_OVER = "after the lease of a living holder"
STARVED = "after the lease of a holder that the machine did not run"
STEP_SECONDS = 3
"""
How long a step other than a request may take: the retries of the store, and a second. A holder that
took longer for one was kept from running, which no protocol can prevent.
"""
DOUBLE_SPEND = "double spend"
UNEXPLAINED = "unexplained"
ANSWERED_AFTER_WORK = ("500 shown after the work", "503 shown after the work")
"""Not taken for a lost answer: no gateway says so of a server that may have done the work."""

AFTER_OUTCOME = {
    "unreachable": NOTHING_SENT,
    "lost": LOST_ANSWER,
    "unavailable": NO_ANSWER,
    "refused": REFUSAL,
}


RAN_OUT = "500 NotAuthorizedError"
"""A token that lives 2 seconds ran out on its way, and so did its successor: rare, so bounded."""


class Journal:
    """Appends lines to a file that several processes share, each line in one piece."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, step: str, *details: object) -> None:
        # The monotonic clock is the machine's, so that moments of two processes can be compared.
        words = [f"{time.monotonic():.6f}", str(os.getpid()), step, *map(str, details)]
        os.write(self._file, ("\t".join(words) + "\n").encode())


@dataclass(slots=True)
class Send:
    """One request with a refresh token; *ended_at* and *outcome* are missing while it is sent."""

    began_at: float
    allowed_seconds: float
    ended_at: float | None = None
    outcome: str = ""


@dataclass(slots=True)
class Attempt:
    """One try of one process to refresh one connection, as far as the journal has it."""

    pid: int
    connection: str
    claim_began_at: float
    claimed_at: float | None = None
    shown: str = ""
    sends: list[Send] = field(default_factory=list)
    stored_at: float | None = None
    ended_at: float | None = None

    @property
    def has_grant_in_hand(self) -> bool:
        """Was it, as far as it wrote, between Everifin and the store?"""
        is_sent = bool(self.sends) and self.sends[-1].outcome in ("", "answered")
        return is_sent and self.stored_at is None and self.ended_at is None


@dataclass
class Findings:
    """Journal and records of one run; *lease_seconds* and *deadline_seconds* are its workers'."""

    path: Path
    lease_seconds: float
    deadline_seconds: float
    records: list[RecordedRefresh] = field(default_factory=list)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    by_token: dict[str, list[Attempt]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    complaints: list[str] = field(default_factory=list)
    ready: set[int] = field(default_factory=set)
    killed_at: dict[int, str] = field(default_factory=dict)
    last_served: dict[str, float] = field(default_factory=dict)
    _read_until: int = 0

    def __post_init__(self) -> None:
        self.path.touch()

    # Reading

    def read(self) -> None:
        """Take in what was written since the last time; a line still in the making is left."""
        with self.path.open("rb") as journal:
            journal.seek(self._read_until)
            lines = journal.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read_until += len(whole)
        for line in whole.decode().splitlines():
            at, pid, step, *details = line.split("\t")
            getattr(self, "_" + step.replace(" ", "_"))(float(at), int(pid), *details)

    def _ready(self, at: float, pid: int) -> None:
        self.ready.add(pid)

    def _served(self, at: float, pid: int, kind: str, user: str) -> None:
        self.counts["requests served"][kind] += 1
        if kind == "200":
            self.last_served[user] = at

    def _killed(self, at: float, pid: int, step: str) -> None:
        self.killed_at[pid] = step

    def _before_claim(self, at: float, pid: int, attempt: str, connection: str) -> None:
        self.attempts[attempt] = Attempt(pid, connection, at)

    def _claimed(self, at: float, pid: int, attempt: str) -> None:
        self.attempts[attempt].claimed_at = at

    def _sending(self, at: float, pid: int, attempt: str, shown: str, allowed: str) -> None:
        found = self.attempts[attempt]
        found.shown = shown
        found.sends.append(Send(at, float(allowed)))
        if len(found.sends) == 1:
            self.by_token[shown].append(found)

    def _heard(self, at: float, pid: int, attempt: str, outcome: str, given: str = "") -> None:
        found = self.attempts[attempt]
        found.sends[-1].ended_at, found.sends[-1].outcome = at, outcome

    def _stored(self, at: float, pid: int, attempt: str) -> None:
        self.attempts[attempt].stored_at = at
        self.counts["refreshes"]["stored"] += 1

    def _ended(self, at: float, pid: int, attempt: str) -> None:
        self.attempts[attempt].ended_at = at

    # Concluding

    def close(self, expected_answers: frozenset[str]) -> None:
        """Count, at the end of a run, and complain of what may not be."""
        self.read()
        spends = self.counts["double spends"]
        spends["of a refresh token"] = 0
        for token in self.by_token:
            for reason in self.repeats(token):
                if reason == DOUBLE_SPEND:
                    spends["of a refresh token"] += 1
                    self.complaints.append(f"Token {token[:8]} was spent twice.")
                else:
                    self.counts["repeats"][reason] += 1
        for record in self.records:
            self.counts["refreshes"][
                "done by Everifin" if record.given else "refused by Everifin"
            ] += 1
        for answer in self.counts["requests served"].keys() - expected_answers:
            self.complaints.append(f"A page was answered by {answer}.")
        answers = self.counts["requests served"]
        if answers[RAN_OUT] > 2 + answers.total() / 50:
            self.complaints.append(f"{answers[RAN_OUT]} pages were answered by {RAN_OUT}.")
        for token in self.unknown_shows():
            self.complaints.append(f"Everifin saw token {token[:8]} though nobody sent it.")

    def repeats(self, token: str) -> list[str]:
        """Return, for each time *token* was shown again, why: DOUBLE_SPEND or what excuses it."""
        sends = [(attempt, send) for attempt in self.by_token[token] for send in attempt.sends]
        sends.sort(key=lambda pair: pair[1].began_at)
        reasons = []
        for number, later in enumerate(sends):
            excuses = [self._excuse(*earlier, *later) for earlier in sends[:number]]
            if excuses:
                reasons.append(DOUBLE_SPEND if DOUBLE_SPEND in excuses else excuses[-1])
        return reasons

    def _excuse(
        self, earlier_attempt: Attempt, earlier: Send, later_attempt: Attempt, later: Send
    ) -> str:
        """
        Why *later* may show the token that *earlier* showed.

        A double spend is every repeat beside a request under way, and every one after an answer
        that reached a process that lived to store it. A death is an excuse only once the lease is
        over, which no protocol that heeds leases can come before.
        """
        if is_before(earlier.ended_at, later.began_at) and earlier.outcome in AFTER_OUTCOME:
            return AFTER_OUTCOME[earlier.outcome]
        if earlier_attempt is later_attempt or later_attempt.claimed_at is None:
            return DOUBLE_SPEND
        # The database's own time of each claim lies between when it was sent and when it was done.
        is_lease_over = is_before(
            earlier_attempt.claim_began_at + self.lease_seconds, later_attempt.claimed_at
        )
        is_ended = is_before(earlier_attempt.ended_at, later.began_at)
        is_stored = is_before(earlier_attempt.stored_at, later_attempt.claim_began_at)
        if not is_lease_over or is_ended or is_stored:
            return DOUBLE_SPEND
        if self._was_killed(earlier_attempt):
            return KILL
        is_starved = was_starved(earlier_attempt, later_attempt.claimed_at)
        return STARVED if is_starved else LEASE_OVER

    def _was_killed(self, attempt: Attempt) -> bool:
        return attempt.pid in self.killed_at and attempt.ended_at is None

    def note_loss(self, session: str, stored: str, reason: str) -> None:
        """
        Count a connection that needs to be connected again; complain if that has no good cause, or
        if the user is told another *reason* than that the answer was lost, which it was.
        """
        self.read()
        cause, token = self.cause_of_loss(session)
        is_late = token != stored  # a token shown long ago reached Everifin after its successor
        was_answered = cause in ANSWERED_AFTER_WORK
        title = f"{cause}{', reached late' * is_late} ({reason})"
        self.counts["lost grants"][title] += 1
        if cause in (DOUBLE_SPEND, UNEXPLAINED, LEASE_OVER):
            self.complaints.append(f"A grant was lost: {title}.")
        elif reason != "answer_lost" and not is_late and not was_answered:
            self.complaints.append(f"A grant was lost for another reason than is told: {title}.")

    def cause_of_loss(self, session: str) -> tuple[str, str]:
        """
        Return why *session* ended at Everifin, and the token that was shown once too often.

        UNEXPLAINED and DOUBLE_SPEND are nobody's fault but ours.
        """
        given = {record.shown: record for record in self.records if record.given}
        for record in self.records:
            if record.session == session and record.given is None and record.shown in given:
                return self._cause_of_reuse(given[record.shown], record), record.shown
        return UNEXPLAINED, ""

    def _cause_of_reuse(self, done: RecordedRefresh, refused: RecordedRefresh) -> str:
        repeats = self.repeats(done.shown)
        if not repeats or DOUBLE_SPEND in repeats:
            return DOUBLE_SPEND
        for fault in (done.fault, refused.fault):
            if fault is not None and self._hides_answer(fault):
                return name_of(fault)
        for excuse in (KILL, STARVED, LEASE_OVER):
            if excuse in repeats:
                return excuse
        return "a timeout without a fault" if self._timed_out(done.shown) else UNEXPLAINED

    def _hides_answer(self, fault: Fault) -> bool:
        is_late = fault.latency_seconds >= self.deadline_seconds
        return fault.lost == "after" or fault.truncate or is_late

    def _timed_out(self, token: str) -> bool:
        return any(
            send.outcome == "lost"
            and send.ended_at is not None
            and send.ended_at - send.began_at >= send.allowed_seconds * 0.9
            for attempt in self.by_token[token]
            for send in attempt.sends
        )

    def grants_in_hand(self, pid: int) -> int:
        """Return how many grants a dead process took with it, between Everifin and the store."""
        return sum(
            attempt.has_grant_in_hand for attempt in self.attempts.values() if attempt.pid == pid
        )

    def unknown_shows(self) -> Iterator[str]:
        """Yield the tokens that Everifin saw more often than the journal says they were sent."""
        seen = Counter(record.shown for record in self.records)
        for token, times in seen.items():
            if times > sum(len(attempt.sends) for attempt in self.by_token.get(token, ())):
                yield token

    def table(self) -> str:
        lines = []
        for title, counter in self.counts.items():
            lines.append(title)
            lines += [f"  {kind:<58} {number:>7}" for kind, number in sorted(counter.items())]
        return "\n".join([*lines, *self.complaints])


def was_starved(attempt: Attempt, now: float) -> bool:
    """
    Did a step of *attempt* take longer than it may? The one under way at *now* counts until then.
    """
    at, bounds = [attempt.claim_began_at], []
    for send in attempt.sends:
        at += [send.began_at, send.ended_at or now]
        bounds += [STEP_SECONDS, send.allowed_seconds + 1]
    end = attempt.stored_at or attempt.ended_at or now
    took = [later - earlier for earlier, later in zip(at, [*at[1:], min(end, now)], strict=True)]
    return any(
        seconds > bound for seconds, bound in zip(took, [*bounds, STEP_SECONDS], strict=True)
    )


def is_before(earlier: float | None, later: float) -> bool:
    return earlier is not None and earlier <= later


def name_of(fault: Fault) -> str:
    """Return what a fault is called in the table."""
    words = [str(fault.status)] if fault.status else []
    if fault.truncate:
        words.append("answer cut short")
    if fault.lost:
        words.append(f"{'shown' if fault.status else 'answer lost'} {fault.lost} the work")
    if fault.latency_seconds:
        words.append(f"{fault.latency_seconds:g} s late")
    return " ".join(words)

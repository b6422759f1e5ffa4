"""All faults at once: what is lost is lost for a reason that can be named, and nothing else is."""

from __future__ import annotations

import os
import random
import resource
from collections import Counter
from pathlib import Path

import pytest

from everifin_django.testing.sandbox import RecordedRefresh, Sandbox
from everifin_django.testing.sandbox.server import serve
from tests.concurrency.torture import Torture, Weather, faults
from tests.concurrency.torture_books import (
    DOUBLE_SPEND,
    KILL,
    LEASE_OVER,
    LOST_ANSWER,
    STEPS,
    Books,
)
from tests.concurrency.torture_users import Users
from tests.concurrency.torture_worker import DEADLINE_SECONDS, LEASE_SECONDS

USERS = 24
DEFAULT_SECONDS = 10
SECONDS_FOR_ALL_STEPS = 60


@pytest.mark.django_db(transaction=True)
@pytest.mark.exhaustive
def test_torture(settings, tmp_path):
    seconds = float(os.environ.get("TORTURE_SECONDS", DEFAULT_SECONDS))
    seed = int(os.environ.get("TORTURE_SEED", random.randrange(2**32)))
    print(f"\ntorture: {seconds:g} seconds, --seed {seed}")
    sandbox = Sandbox(rotation="strict", access_token_seconds=2)
    books = Books(tmp_path / "journal", LEASE_SECONDS, DEADLINE_SECONDS)
    weather = Weather(random.Random(seed), faults())
    sandbox.faults = weather  # type: ignore[assignment]  # stands for them
    sandbox.on_refresh = books.records.append
    with serve(sandbox) as server, (tmp_path / "log").open("wb") as log:
        at_everifin = {"EVERIFIN_IDP_URL": server.url, "EVERIFIN_API_URL": server.url}
        for name, value in at_everifin.items():
            setattr(settings, name, value)
        users = Users(sandbox, USERS)
        torture = Torture(users, books, weather, at_everifin, log, seed)
        try:
            torture.run(seconds)
        finally:
            books.counts["faults"] = weather.seen
            books.counts["processor seconds"] = processor_seconds()
            print(books.table())
        assert books.complaints == []
        assert users.broken() == []
        assert users.orphans() == set()
    if seconds >= SECONDS_FOR_ALL_STEPS:
        assert set(STEPS) <= set(books.counts["kills"])


def processor_seconds() -> Counter[str]:
    """What this process and the workers took of the processor: who holds the others up."""
    whose = {"here, with Everifin": resource.RUSAGE_SELF, "workers": resource.RUSAGE_CHILDREN}
    used = {name: resource.getrusage(who) for name, who in whose.items()}
    return Counter({name: int(took.ru_utime + took.ru_stime) for name, took in used.items()})


def written(directory: Path, later_claims_at: float, *lines: tuple, is_killed: bool) -> Books:
    """Books in which attempt a sends a token, *lines* happen, and attempt b sends it again."""
    books = Books(directory / "journal", LEASE_SECONDS, DEADLINE_SECONDS)
    story = [
        *tried("a", pid=1, at=0),
        *lines,
        *([(0.5, 1, "killed", "after send")] if is_killed else []),
        *tried("b", pid=2, at=later_claims_at),
    ]
    text = "".join("\t".join(map(str, line)) + "\n" for line in story)
    books.path.write_text(text)
    books.read()
    return books


def tried(attempt: str, *, pid: int, at: float) -> list[tuple]:
    return [
        (at, pid, "before claim", attempt, "row"),
        (at + 0.01, pid, "claimed", attempt),
        (at + 0.02, pid, "sending", attempt, "token", 3),
    ]


LOST = (0.3, 1, "heard", "a", "lost")
ANSWERED = (0.3, 1, "heard", "a", "answered")
STORED = (0.4, 1, "stored", "a")
ENDED = (0.45, 1, "ended", "a")
IN_LEASE, AFTER_LEASE = 1, LEASE_SECONDS + 1


@pytest.mark.parametrize(
    ("later_claims_at", "lines", "is_killed", "why"),
    [
        (IN_LEASE, [], False, DOUBLE_SPEND),
        (IN_LEASE, [], True, DOUBLE_SPEND),
        (IN_LEASE, [ANSWERED], True, DOUBLE_SPEND),
        (IN_LEASE, [ANSWERED, STORED, ENDED], False, DOUBLE_SPEND),
        (AFTER_LEASE, [ANSWERED, STORED, ENDED], False, DOUBLE_SPEND),
        (AFTER_LEASE, [ANSWERED, ENDED], False, DOUBLE_SPEND),
        (AFTER_LEASE, [ANSWERED, STORED], True, DOUBLE_SPEND),
        (AFTER_LEASE, [], True, KILL),
        (AFTER_LEASE, [ANSWERED], True, KILL),
        (AFTER_LEASE, [ANSWERED], False, LEASE_OVER),
        (IN_LEASE, [LOST, ENDED], False, LOST_ANSWER),
    ],
)
def test_why_a_token_was_shown_again(tmp_path, later_claims_at, lines, is_killed, why):
    books = written(tmp_path, later_claims_at, *lines, is_killed=is_killed)
    assert books.repeats("token") == [why]


@pytest.mark.parametrize(
    ("is_killed", "reason", "complaints"),
    [(True, "answer_lost", 0), (True, "invalid_grant", 1), (False, "answer_lost", 1)],
)
def test_a_grant_may_be_lost_by_a_kill_that_is_told_as_a_lost_answer(
    tmp_path, is_killed, reason, complaints
):
    books = written(tmp_path, AFTER_LEASE, ANSWERED, is_killed=is_killed)
    books.records.append(RecordedRefresh("token", "next", "session", None))
    books.records.append(RecordedRefresh("token", None, "session", None))
    books.note_loss("session", "token", reason)
    assert len(books.complaints) == complaints


def test_a_grant_that_ends_without_a_repeat_is_complained_of(tmp_path):
    books = Books(tmp_path / "journal", LEASE_SECONDS, DEADLINE_SECONDS)
    books.note_loss("session", "token", "invalid_grant")
    assert len(books.complaints) == 1

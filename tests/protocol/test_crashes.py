"""All faults at once: what is lost is lost for a reason that can be named, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connections

from everifin_django.testing.sandbox import RecordedRefresh, Sandbox
from tests.protocol.crash_journal import (
    DOUBLE_SPEND,
    KILL,
    LEASE_OVER,
    LOST_ANSWER,
    STARVED,
    Findings,
)
from tests.protocol.crash_points import crash_run
from tests.protocol.crash_users import TwoTenants, Users
from tests.protocol.crash_worker import DEADLINE_SECONDS, LEASE_SECONDS


@pytest.mark.django_db(transaction=True)
@pytest.mark.exhaustive
def test_no_crash_loses_a_grant(settings, tmp_path):
    sandbox = Sandbox(rotation="strict", access_token_seconds=2)
    crash_run(sandbox, Users, settings, tmp_path)


@pytest.mark.django_db(transaction=True)
@pytest.mark.exhaustive
def test_no_crash_mixes_up_two_tenants(settings, tmp_path, second_database):
    """Two databases with users of the same primary keys; each page shows its own user's bank."""
    sandbox = Sandbox(rotation="strict", access_token_seconds=2)
    aliases = ["default", second_database]
    databases = {alias: str(connections[alias].settings_dict["NAME"]) for alias in aliases}
    more_settings = {
        "DATABASE_ROUTERS": settings.DATABASE_ROUTERS,
        "MIDDLEWARE": ["tests.projects.tenants.routing.choose_tenant", *settings.MIDDLEWARE],
    }
    crash_run(
        sandbox,
        lambda everifin, count: TwoTenants(everifin, count, databases),
        settings,
        tmp_path,
        more_settings,
    )


def written(directory: Path, later_claims_at: float, *lines: tuple, is_killed: bool) -> Findings:
    """Findings in which attempt a sends a token, *lines* happen, and attempt b sends it again."""
    findings = Findings(directory / "journal", LEASE_SECONDS, DEADLINE_SECONDS)
    story = [
        *tried("a", pid=1, at=0),
        *lines,
        *([(0.5, 1, "killed", "after send")] if is_killed else []),
        *tried("b", pid=2, at=later_claims_at),
    ]
    text = "".join("\t".join(map(str, line)) + "\n" for line in story)
    findings.path.write_text(text)
    findings.read()
    return findings


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
SLOW = [
    (3, 1, "heard", "a", "lost"),
    (3.1, 1, "sending", "a", "token", 3),
    (6, 1, "heard", "a", "answered"),
]
"""Every step within its bound, and the lease over before the last: it was made too short."""
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
        (AFTER_LEASE, [ANSWERED], False, STARVED),
        (AFTER_LEASE, [], False, STARVED),
        (IN_LEASE, [LOST, ENDED], False, LOST_ANSWER),
    ],
)
def test_why_a_token_was_shown_again(tmp_path, later_claims_at, lines, is_killed, why):
    findings = written(tmp_path, later_claims_at, *lines, is_killed=is_killed)
    assert findings.repeats("token") == [why]


def test_a_lease_that_is_over_before_a_holder_in_time_is_a_fault_of_ours(tmp_path):
    findings = written(tmp_path, LEASE_SECONDS + 0.2, *SLOW, is_killed=False)
    assert findings.repeats("token") == [LOST_ANSWER, LEASE_OVER]


@pytest.mark.parametrize(
    ("is_killed", "reason", "complaints"),
    [(True, "answer_lost", 0), (True, "invalid_grant", 1), (False, "answer_lost", 0)],
)
def test_a_grant_may_be_lost_by_a_kill_that_is_told_as_a_lost_answer(
    tmp_path, is_killed, reason, complaints
):
    findings = written(tmp_path, AFTER_LEASE, ANSWERED, is_killed=is_killed)
    findings.records.append(RecordedRefresh("token", "next", "session", None))
    findings.records.append(RecordedRefresh("token", None, "session", None))
    findings.note_loss("session", "token", reason)
    assert len(findings.complaints) == complaints


def test_a_grant_that_ends_without_a_repeat_is_complained_of(tmp_path):
    findings = Findings(tmp_path / "journal", LEASE_SECONDS, DEADLINE_SECONDS)
    findings.note_loss("session", "token", "invalid_grant")
    assert len(findings.complaints) == 1

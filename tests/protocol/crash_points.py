"""One run of the crash_run from its beginning to its end, and what has to hold then."""

from __future__ import annotations

import os
import random
import resource
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.server import serve
from tests.protocol.crash_journal import STEPS, Findings
from tests.protocol.crash_run import CrashRun, Weather, faults
from tests.protocol.crash_users import Users
from tests.protocol.crash_worker import DEADLINE_SECONDS, MORE_LEASE_SECONDS

USERS = 24
DEFAULT_SECONDS = 10
SECONDS_FOR_ALL_STEPS = 60


def crash_run(
    everifin: Sandbox,
    make_users: Callable[[Any, int], Users],
    settings: Any,
    directory: Path,
    more_settings: Mapping[str, Any] | None = None,
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> Findings:
    """
    Break a site for CRASH_RUN_SECONDS, drawing by CRASH_RUN_SEED, and print what was seen.

    Errors: AssertionError for a grant that was lost without a reason, or is not alive at the end.
    """
    seconds = float(os.environ.get("CRASH_RUN_SECONDS", DEFAULT_SECONDS))
    seed = int(os.environ.get("CRASH_RUN_SEED", random.randrange(2**32)))
    print(f"\ntorture: {seconds:g} seconds, --seed {seed}")
    findings = Findings(
        directory / "journal", deadline_seconds + MORE_LEASE_SECONDS, deadline_seconds
    )
    weather = Weather(random.Random(seed), faults())
    everifin.faults = weather  # type: ignore[assignment]  # stands for them
    everifin.on_refresh = findings.records.append
    with serve(everifin) as server, (directory / "log").open("wb") as log:
        at_everifin = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
            "EVERIFIN_DEADLINE_SECONDS": deadline_seconds,
            **(more_settings or {}),
        }
        for name, value in at_everifin.items():
            setattr(settings, name, value)
        users = make_users(everifin, USERS)
        run = CrashRun(users, findings, weather, at_everifin, log, seed)
        try:
            run.run(seconds)
        finally:
            findings.counts["faults"] = weather.seen
            findings.counts["processor seconds"] = processor_seconds()
            print(findings.table())
        assert findings.complaints == []
        assert users.broken() == []
        assert users.orphans() == set()
    if seconds >= SECONDS_FOR_ALL_STEPS:
        assert set(STEPS) <= set(findings.counts["kills"])
    return findings


def processor_seconds() -> Counter[str]:
    """What this process and the workers took of the processor: who holds the others up."""
    whose = {"here, with Everifin": resource.RUSAGE_SELF, "workers": resource.RUSAGE_CHILDREN}
    used = {name: resource.getrusage(who) for name, who in whose.items()}
    return Counter({name: int(took.ru_utime + took.ru_stime) for name, took in used.items()})

"""
Tell how the connections are and what waits, for people and for monitoring.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from everifin_django.management.status import Status, read_status

OK, WARNING = 0, 1
OUTBOX_HOURS = 1.0
REFRESH_HOURS = 24.0


class Command(BaseCommand):
    help = (
        "Tells how many connections there are by health and by reason, what waits in the outbox, "
        "and when Everifin last answered. Shows no token and no user. Exit code 1: something needs "
        "a look, and the last lines say what."
    )
    # It tells how things are, however the settings are.
    requires_system_checks: tuple[str, ...] = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--json", action="store_true", help="print a JSON object")
        add(
            "--prometheus",
            metavar="FILE",
            help="write the metrics for Prometheus into this file ('-': print them), for the text "
            "file collector of its node exporter",
        )
        add("--max-outbox-hours", type=float, default=OUTBOX_HOURS, help="older: exit code 1")
        add("--max-refresh-hours", type=float, default=REFRESH_HOURS, help="older: exit code 1")

    def handle(self, *args: Any, **options: Any) -> None:
        status = read_status()
        complaints = list(_complaints(status, options))
        if options["prometheus"]:
            self._write_metrics(options["prometheus"], status, complaints)
        elif options["json"]:
            self.stdout.write(_as_json(status, complaints))
        else:
            self._write(status, complaints)
        if complaints:
            sys.exit(WARNING)

    def _write(self, status: Status, complaints: list[str]) -> None:
        for line in _lines(status):
            self.stdout.write(line)
        for complaint in complaints:
            self.stdout.write(self.style.WARNING(f"look: {complaint}"))

    def _write_metrics(self, path: str, status: Status, complaints: list[str]) -> None:
        text = "\n".join(_metrics(status, complaints)) + "\n"
        if path == "-":
            self.stdout.write(text, ending="")
            return
        try:
            _replace(Path(path), text)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}.") from error


def _complaints(status: Status, options: dict[str, Any]) -> Iterator[str]:
    """What somebody should look at."""
    oldest = timedelta(hours=options["max_outbox_hours"])
    if status.oldest_in_outbox is not None and status.at - status.oldest_in_outbox > oldest:
        yield (
            f"the oldest entry of the outbox is from {_shown(status.oldest_in_outbox)}; does "
            "everifin_housekeeping run?"
        )
    if status.is_incident:
        yield "tokens are still to be moved: everifin_disconnect --resume"
    is_used = status.connections["active"] + status.connections["expiring"] > 0
    if status.connections["degraded"] and not is_used:
        yield "no connection can be refreshed: see the log, and everifin_doctor"
    newest = timedelta(hours=options["max_refresh_hours"])
    is_live = is_used or status.connections["degraded"]
    if is_live and status.last_refresh is not None and status.at - status.last_refresh > newest:
        yield f"no token was refreshed since {_shown(status.last_refresh)}"


def _lines(status: Status) -> Iterator[str]:
    about = "about " if "connections" in status.estimated else ""
    for health, count in status.connections.items():
        yield f"{health}: {about}{count}"
        for reason, of_it in status.reasons.get(health, {}).items():
            yield f"  {reason or 'no reason'}: {about}{of_it}"
    yield f"next connection ends: {_shown(status.nearest_expiry)}"
    waiting = f"{'about ' if 'outbox' in status.estimated else ''}{status.outbox}"
    yield f"in the outbox: {waiting}, the oldest from {_shown(status.oldest_in_outbox)}"
    yield f"last refresh: {_shown(status.last_refresh)}"
    yield f"last answer of the bank API: {_shown(status.last_bank_answer, 'not known')}"
    for key_id, count in status.keys.items():
        yield f"key {key_id}: {'about ' if 'keys' in status.estimated else ''}{count} tokens"


def _shown(when: datetime | None, absent: str = "none") -> str:
    return when.isoformat(timespec="seconds") if when is not None else absent


def _as_json(status: Status, complaints: list[str]) -> str:
    columns = {**asdict(status), "estimated": sorted(status.estimated), "look": complaints}
    return json.dumps(columns, indent=2, default=lambda when: when.isoformat())


def _metrics(status: Status, complaints: list[str]) -> Iterator[str]:
    """Source: the exposition format of Prometheus, version 0.0.4. Times are Unix seconds."""
    yield from _gauge("connections", "Connections by health.", status.connections, "health")
    yield "# HELP everifin_connections_by_reason Connections that are not active, by reason."
    yield "# TYPE everifin_connections_by_reason gauge"
    for health, reasons in status.reasons.items():
        for reason, count in reasons.items():
            labels = f'health="{health}",reason="{_escaped(reason)}"'
            yield f"everifin_connections_by_reason{{{labels}}} {count}"
    yield from _gauge("tokens", "Stored tokens by the id of their key.", status.keys, "key")
    numbers: dict[str, tuple[str, float | None]] = {
        "estimated": ("1 if counts are estimates.", float(bool(status.estimated))),
        "outbox_entries": ("Tokens still to be ended at Everifin.", status.outbox),
        "outbox_oldest_timestamp_seconds": (
            "When the oldest of them was put there.",
            _unix(status.oldest_in_outbox),
        ),
        "nearest_expiry_timestamp_seconds": (
            "When the next connection ends.",
            _unix(status.nearest_expiry),
        ),
        "last_refresh_timestamp_seconds": (
            "When a token was last refreshed.",
            _unix(status.last_refresh),
        ),
        "last_bank_answer_timestamp_seconds": (
            "When the bank API last answered.",
            _unix(status.last_bank_answer),
        ),
        "complaints": ("What somebody should look at.", len(complaints)),
        "status_timestamp_seconds": ("When this was written.", _unix(status.at)),
    }
    for name, (meaning, value) in numbers.items():
        if value is not None:
            yield f"# HELP everifin_{name} {meaning}"
            yield f"# TYPE everifin_{name} gauge"
            yield f"everifin_{name} {value:.15g}"


def _gauge(name: str, meaning: str, counts: Any, label: str) -> Iterator[str]:
    yield f"# HELP everifin_{name} {meaning}"
    yield f"# TYPE everifin_{name} gauge"
    for key, count in counts.items():
        yield f'everifin_{name}{{{label}="{_escaped(key)}"}} {count}'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unix(when: datetime | None) -> float | None:
    return round(when.timestamp(), 3) if when is not None else None


def _replace(path: Path, text: str) -> None:
    """Write *text* so that a reader sees the old file or the new one, and nothing in between."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

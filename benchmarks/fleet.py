"""
What keeping many connections alive asks of a fleet, on paper:

    python -m benchmarks.fleet --connections 5000000 --idle-minutes 30

docs/explanation/keep-alive.md explains the numbers.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace

CONCURRENCY = 16
REACHED = 0.7
"""What one process reaches of the limit that its concurrency and the latency set."""

STATEMENTS = 2
LOG_KILOBYTES = 10
"""Of PostgreSQL's write-ahead log for one refresh: two versions of a row with three tokens."""


def main() -> None:
    given = arguments()
    every_seconds = 60 * given.idle_minutes * 2 / 3
    a_second = given.connections / every_seconds
    at_once = a_second * given.latency_ms / 1000
    processes = math.ceil(at_once / CONCURRENCY / REACHED)
    spare_minutes = given.idle_minutes - every_seconds / 60
    for what, value in {
        "refreshed every": f"{every_seconds / 60:,.0f} minutes",
        "refreshes": f"{a_second:,.0f} a second",
        f"requests at once, at {given.latency_ms:g} ms": f"{at_once:,.0f}",
        f"processes with --concurrency {CONCURRENCY}": f"{processes:,}",
        "statements": f"{STATEMENTS * a_second:,.0f} a second",
        "write-ahead log": f"{a_second * 86_400 * LOG_KILOBYTES / 1e9:,.1f} TB a day",
        "an outage that loses nothing": f"{spare_minutes:,.0f} minutes",
        "to catch up with half as many processes again": f"{2 * spare_minutes:,.0f} minutes",
    }.items():
        print(f"{what:48}{value}")


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000_000)
    parser.add_argument("--idle-minutes", type=float, default=30)
    parser.add_argument("--latency-ms", type=float, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()

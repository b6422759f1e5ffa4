"""
What keeping many connections alive asks of a fleet, on paper and by a model that plays a day second
by second:

    python -m benchmarks.fleet --connections 5000000 --idle-minutes 30

docs/explanation/keep-alive.md explains the numbers.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

CONCURRENCY = 16
REACHED = 0.7
"""What one process reaches of the limit that its concurrency and the latency set."""

STATEMENTS = 2
LOG_KILOBYTES = 10
"""Of PostgreSQL's write-ahead log for one refresh: two versions of a row with three tokens."""

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Fleet:
    """Processes that refresh what was not refreshed for *every_seconds*, the oldest first."""

    connections: int
    idle_seconds: float
    every_seconds: float
    a_second: float
    """How many they can refresh."""

    def lost_in(self, outage_seconds: int) -> tuple[int, int]:
        """
        Return how many connections pass the idle limit on a day with one outage, and how many
        seconds after its end the work is caught up with.
        """
        refreshed = deque(self._begin())
        start, lost, caught_up = DAY_SECONDS // 4, 0.0, 0
        for now in range(DAY_SECONDS // 2):
            while refreshed and now - refreshed[0][0] > self.idle_seconds:
                lost += refreshed.popleft()[1]
            is_down = start <= now < start + outage_seconds
            done = 0.0 if is_down else self._refresh(refreshed, now)
            if done:
                refreshed.append((now, done))
            is_behind = bool(refreshed) and now - refreshed[0][0] > self.every_seconds + 1
            if is_behind and now >= start + outage_seconds:
                caught_up = now - start - outage_seconds
        return round(lost), caught_up

    def _begin(self) -> Iterator[tuple[float, float]]:
        """When how many were refreshed, evenly spread."""
        for age in range(round(self.every_seconds), 0, -1):
            yield -age, self.connections / self.every_seconds

    def _refresh(self, refreshed: deque[tuple[float, float]], now: int) -> float:
        """Take off the queue what is refreshed in this second; return how many that are."""
        left = self.a_second
        while refreshed and left > 0 and now - refreshed[0][0] >= self.every_seconds:
            since, count = refreshed.popleft()
            taken = min(count, left)
            left -= taken
            if count > taken:
                refreshed.appendleft((since, count - taken))
        return self.a_second - left


def main() -> None:
    given = arguments()
    idle_seconds = 60 * given.idle_minutes
    every_seconds = idle_seconds * 2 / 3
    a_second = given.connections / every_seconds
    at_once = a_second * given.latency_ms / 1000
    of_one = CONCURRENCY * REACHED / given.latency_ms * 1000
    fewest = math.ceil(a_second / of_one)
    for what, value in {
        "refreshed every": f"{every_seconds / 60:,.0f} minutes",
        "refreshes": f"{a_second:,.0f} a second",
        f"requests at once, at {given.latency_ms:g} ms": f"{at_once:,.0f}",
        f"processes with --concurrency {CONCURRENCY}, at least": f"{fewest:,}",
        "statements": f"{STATEMENTS * a_second:,.0f} a second",
        "write-ahead log": f"{a_second * DAY_SECONDS * LOG_KILOBYTES / 1e9:,.1f} TB a day",
    }.items():
        print(f"{what:48}{value}")
    print("\nOne outage in a day: how many connections are lost, and when all is caught up with")
    for processes in (fewest, math.ceil(1.5 * fewest), 2 * fewest):
        fleet = Fleet(given.connections, idle_seconds, every_seconds, processes * of_one)
        for minutes in (5, 9, 12, 20):
            lost, seconds = fleet.lost_in(60 * minutes)
            print(
                f"{processes:5} processes, {minutes:3} minutes: {lost:10,} {seconds / 60:6.0f} min"
            )


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000_000)
    parser.add_argument("--idle-minutes", type=float, default=30)
    parser.add_argument("--latency-ms", type=float, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Let threads of this process do the same thing at one moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.db import connections


def together(count: int, action: Callable[[], Any]) -> list[Any]:
    """Return what *count* threads came back with, results and exceptions, all begun at once."""
    start = threading.Barrier(count)
    results: list[Any] = []

    def work() -> None:
        start.wait()
        try:
            results.append(action())
        except Exception as error:  # noqa: BLE001 - the test looks at whatever came back
            results.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

"""
What ``EverifinMiddleware`` costs a page that does not use it: ``python -m benchmarks.middleware``.

The same requests go through Django's WSGI handler with and without the middleware, in turn, in one
run; what is printed is the ratio of the two.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import django

REQUESTS = 200
ROUNDS = 201
MIDDLEWARE = "everifin_django.middleware.EverifinMiddleware"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from django.test import override_settings

    with override_settings(ROOT_URLCONF="benchmarks.site"):
        without_it, with_it = handler(with_it=False), handler(with_it=True)
        ratios = []
        for _ in range(ROUNDS):
            before = seconds(without_it)
            ratios.append(seconds(with_it) / before)
    quartiles = statistics.quantiles(ratios, n=4)
    print(f"{ROUNDS} rounds of {REQUESTS} requests each way, with / without the middleware:")
    print("quartiles {:.3f} {:.3f} {:.3f}".format(*quartiles))


def handler(*, with_it: bool) -> Callable[[], Any]:
    """Return a function that sends one request through a handler of its own."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import RequestFactory, override_settings

    from tests.settings import MIDDLEWARE as ALL

    with override_settings(MIDDLEWARE=[name for name in ALL if with_it or name != MIDDLEWARE]):
        handle = WSGIHandler()
    environ = RequestFactory().get("/plain/").environ

    def request() -> Any:
        return handle(dict(environ), _start_response)

    for _ in range(REQUESTS):  # warm-up
        status = request().status_code
    if status != 200:
        raise SystemExit(f"The page answers {status}.")
    return request


def _start_response(status: str, headers: Any, exc_info: Any = None, /) -> Callable[[bytes], None]:
    return lambda _: None


def seconds(handle: Callable[[], Any]) -> float:
    began = time.perf_counter()
    for _ in range(REQUESTS):
        handle()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

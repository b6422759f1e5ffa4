"""
One process of a site under load: so many threads, each doing the same thing at the same moment.

Started by ``stampede``. Says "ready" when all is loaded and connected. For each line on its
standard input all threads begin at once, and it prints one line of JSON: for each thread the status
and the seconds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Action = Callable[[], int]


def main(threads: int, name: str, session_key: str) -> None:
    import django

    django.setup()
    from django.test import override_settings

    overrides = json.loads(os.environ["TESTS_SETTINGS"])
    with override_settings(ROOT_URLCONF="tests.protocol.site", **overrides):
        # Loaded and connected beforehand: what is measured is the action.
        make_action = {"page": page, "get_token": get_token}[name]
        actions = [make_action(session_key) for _ in range(threads)]
        start, end = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
        answers: list[dict[str, Any]] = []
        workers = [
            threading.Thread(target=_work, args=(action, start, end, answers)) for action in actions
        ]
        for worker in workers:
            worker.start()
        end.wait()
        print("ready", flush=True)
        for _ in sys.stdin:
            answers.clear()
            start.wait()
            end.wait()
            print(json.dumps(answers), flush=True)
        start.abort()
        for worker in workers:
            worker.join()


def page(session_key: str) -> Action:
    """Ask the site for the page of accounts."""
    from django.test import Client

    client = Client(raise_request_exception=False)
    client.cookies["sessionid"] = session_key
    client.get("/nowhere/")
    return lambda: client.get("/accounts/").status_code


def get_token(session_key: str) -> Action:
    """Borrow the access token, without a request around it."""
    from django.contrib.auth import get_user_model
    from django.contrib.sessions.models import Session

    from everifin_django.connections import grants
    from everifin_django.exceptions import EverifinError

    user = get_user_model().objects.get(
        pk=Session.objects.get(pk=session_key).get_decoded()["_auth_user_id"]
    )

    def action() -> int:
        try:
            grants.get_access_token(user)
        except EverifinError:
            return 503
        return 200

    return action


def _work(
    action: Action,
    start: threading.Barrier,
    end: threading.Barrier,
    answers: list[dict[str, Any]],
) -> None:
    from django.db import connection, connections

    connection.ensure_connection()
    end.wait()
    try:
        while True:
            start.wait()
            began = time.perf_counter()
            status = action()
            answers.append({"status": status, "seconds": time.perf_counter() - began})
            end.wait()
    except threading.BrokenBarrierError:
        connections.close_all()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

"""
One process of a site under load: so many threads, each asking for one page at the same moment.

Started by ``stampede``. Says "ready" when all is loaded, begins at a line on its standard input,
and prints one line of JSON: for each request its status and its seconds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any


def main(threads: int, session_key: str) -> None:
    import django

    django.setup()
    from django.test import Client, override_settings

    overrides = json.loads(os.environ["TESTS_SETTINGS"])
    with override_settings(ROOT_URLCONF="tests.concurrency.site", **overrides):
        # Loaded and connected beforehand: what is measured is the requests.
        clients = [Client(raise_request_exception=False) for _ in range(threads)]
        for client in clients:
            client.cookies["sessionid"] = session_key
        clients[0].get("/nowhere/")
        start = threading.Barrier(threads + 1)
        answers: list[dict[str, Any]] = []
        workers = [
            threading.Thread(target=_ask, args=(client, start, answers)) for client in clients
        ]
        for worker in workers:
            worker.start()
        print("ready", flush=True)
        sys.stdin.readline()
        start.wait()
        for worker in workers:
            worker.join()
    print(json.dumps(answers), flush=True)


def _ask(client: Any, start: threading.Barrier, answers: list[dict[str, Any]]) -> None:
    from django.db import connection, connections

    connection.ensure_connection()
    start.wait()
    began = time.perf_counter()
    status = client.get("/accounts/").status_code
    answers.append({"status": status, "seconds": time.perf_counter() - began})
    connections.close_all()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

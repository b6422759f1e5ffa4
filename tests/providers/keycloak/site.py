"""The example site under a real server, on the database of the test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
from django.conf import settings
from django.db import connection

from scripts.ports import unused_port

CHECKOUT = Path(__file__).parents[3]
START_SECONDS = 60
SERVERS = {
    "waitress": ["waitress", "--listen=127.0.0.1:{port}", "example_project.wsgi:application"],
    "uvicorn": ["uvicorn", "--host=127.0.0.1", "--port={port}", "example_project.asgi:application"],
}


def database_url() -> str:
    """Return the address of the test's database, which is not the one DATABASE_URL names."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


class Site(NamedTuple):
    """A running site. *url* has no slash at the end; *log* is what it and its server say."""

    url: str
    log: Path


@contextmanager
def example_site(server: str, told: Mapping[str, str], log: Path) -> Iterator[Site]:
    """Serve the example site until the block ends; *told* is its environment beside the usual."""
    port = str(unused_port())
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "example_project.settings",
        "DATABASE_URL": database_url(),
        "DEBUG": "1",  # the identity provider is reached by plain http
        "SECRET_KEY": settings.SECRET_KEY,
        "ALLOWED_HOSTS": "127.0.0.1",
        "EVERIFIN_ENCRYPTION_KEYS": ",".join(settings.EVERIFIN_ENCRYPTION_KEYS),
        "EVERIFIN_REDIRECT_URI": f"{url}/everifin/callback/",
        "EVERIFIN_BACKCHANNEL_LOGOUT": "1",
        "EVERIFIN_POST_LOGOUT_REDIRECT_URI": f"{url}/",
        **told,
    }
    command = [sys.executable, "-m", *(word.format(port=port) for word in SERVERS[server])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        await_start(f"{url}/login/", process, log)
        yield Site(url, log)
    finally:
        process.terminate()
        process.wait()


def await_start(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            requests.get(url, timeout=5)
        except requests.ConnectionError:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        else:
            return

"""``manage.py demo``: it walks the main job, it waits, it stops."""

import re
import signal
import socket
import subprocess
import sys

import pytest
import requests
from django.core.management import CommandError
from django.db import connection

from scripts.demo.management.commands import demo, demo_site
from scripts.demo.walk import STEPS, Walk
from tests.example_project import ROOT, clean_environment

SECONDS = 300

pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="the demo brings a database of its own: one run says all"
)


@pytest.fixture
def start():
    """Give a function that starts the demo, which is gone after the test."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "manage.py"),
                "demo",
                "--port=0",
                "--sandbox-port=0",
                *options,
            ],
            env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=SECONDS)


@pytest.mark.exhaustive
def test_the_walk_takes_every_step(start):
    process = start("--walk")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    steps = re.findall(r"^(ok|FAILED) +(.*?): (.*)$", output, re.MULTILINE)
    assert [(word, title) for word, title, _ in steps] == [("ok", title) for title, _ in STEPS]
    seen = {title: seen for _, title, seen in steps}
    assert len(re.findall(r"(?:SK|CZ)\d{22}", seen["read her accounts"])) == 3
    assert len(re.findall(r"SK\d{22}", seen["read his accounts"])) == 1
    assert "503" in seen["break Everifin, read, mend it"]
    assert "1 -> 0" in seen["connect again, log out"]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)]
)
def test_the_demo_waits_until_it_is_stopped(start, number):
    process = start()
    introduction = "".join(iter(process.stdout.readline, "Quit with Ctrl-C.\n"))
    addresses = re.findall(r"http://127\.0\.0\.1:\d+/(?:_sandbox/)?(?= |\n)", introduction)
    assert len(addresses) >= 2
    assert all(requests.get(address, timeout=10).ok for address in addresses)
    process.send_signal(number)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert output.strip() == "Stopped."
    for address in addresses:
        with pytest.raises(requests.ConnectionError):
            requests.get(address, timeout=10)


def test_a_walk_that_meets_nobody_fails_at_every_step():
    said: list[str] = []
    nobody = f"http://127.0.0.1:{demo.free_port(0, '--port', is_any_welcome=True)}"
    assert Walk.begin(nobody, nobody, token_seconds=4).run(said.append) == len(STEPS)
    assert not [line for line in said if line.startswith("ok")]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (demo.Command(), {"walk": False, "port": 0, "sandbox_port": 0}),
        (demo_site.Command(), {"address": "127.0.0.1:0"}),
    ],
)
def test_a_deployment_lets_nobody_in_as_demo(settings, command, options):
    settings.DEBUG = False
    with pytest.raises(CommandError, match="DEBUG=1"):
        command.handle(**options)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CommandError, match=f"Port {port} .* --port 0"):
            demo.free_port(port, "--port", is_any_welcome=False)


def test_a_walk_takes_any_free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert demo.free_port(taken, "--port", is_any_welcome=True) != taken

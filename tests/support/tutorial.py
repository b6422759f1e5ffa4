"""
The tutorial, followed to the letter: its files are written, its commands run, its pages visited.
``python tests/support/tutorial.py FOLDER``.

Only the ports are others, so that nothing else on this machine is in the way, and nothing is
installed: the Python that runs this has what the tutorial tells the reader to install.
"""

from __future__ import annotations

import html
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import requests

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-transactions.md"
BLOCK = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"(?:# |\{# )(\S+)(?: #\})?\n")
PORTS = ("8000", "8001")
PLACEHOLDER = "PASTE THE KEY HERE"
INSTALLING = ("python -m venv", ". ", "python -m pip")
SERVING = ("python manage.py everifin_sandbox", "python manage.py runserver")
START_SECONDS = 60


class Form(HTMLParser):
    """The first form of a page: where it goes and what it sends."""

    def __init__(self, page: requests.Response) -> None:
        super().__init__()
        self.action, self.fields, self.is_open = "", dict[str, str](), True
        self.feed(page.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and self.is_open:
            self.action = given["action"]
        if self.is_open and given.get("name"):
            self.fields.setdefault(given["name"], given.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        self.is_open = self.is_open and tag != "form"


def play(folder: Path) -> None:
    """Errors: CalledProcessError, RuntimeError or AssertionError, where a step fails."""
    chosen = _free_ports()
    site, sandbox = (f"http://127.0.0.1:{port}" for port in chosen)
    text = PAGE.read_text(encoding="utf-8")
    for documented, port in zip(PORTS, chosen, strict=True):
        text = text.replace(documented, port)
    servers = []
    for kind, block in BLOCK.findall(text):
        if kind == "shell":
            servers += [line for line in block.splitlines() if not _run(folder, line)]
        else:
            _write(folder, block)
    with _serve(folder, servers):
        for url in (f"{sandbox}/_sandbox/state", f"{site}/everifin/login/"):
            _wait_for(url)
        _visit(site, sandbox)


def _visit(site: str, sandbox: str) -> None:
    browser = requests.Session()
    browser.trust_env = False
    accounts = _log_in(browser, browser.get(site))
    assert "<h1>Accounts</h1>" in accounts.text, accounts.text
    links = re.findall(r'href="(/accounts/[^"]+)"', accounts.text)
    assert links, accounts.text
    transactions = browser.get(urljoin(site, links[0]))
    assert "<h1>The last 30 days</h1>" in transactions.text, transactions.text
    assert transactions.text.count("<tr>") > 1, transactions.text

    browser.post(f"{sandbox}/_sandbox/end-sessions")
    browser.post(f"{sandbox}/_sandbox/expire")
    ended = browser.get(site)
    assert ended.url.startswith(f"{site}/everifin/connect/"), (ended.status_code, ended.url)
    assert "<h1>Accounts</h1>" in _log_in(browser, ended).text
    browser.post(f"{sandbox}/_sandbox/expire")
    assert "<h1>Accounts</h1>" in browser.get(site).text


def _log_in(browser: requests.Session, page: requests.Response) -> requests.Response:
    for typed in ({}, {"username": "alice", "password": "alice"}, {"accept": "yes"}):
        form = Form(page)
        fields = {name: value for name, value in form.fields.items() if name != "cancel"}
        page = browser.post(urljoin(page.url, form.action), {**fields, **typed})
        # The page that leads a browser on to Everifin.
        if on := re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', page.text):
            page = browser.get(html.unescape(on[1]))
    return page


def _run(folder: Path, line: str) -> bool:
    """Run a line of the tutorial; return False for a server, which is to be started later."""
    if line.startswith(SERVING):
        return False
    if not line.startswith(INSTALLING):
        run = subprocess.run(
            _command(line), cwd=folder, check=False, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{line}: {run.stdout}{run.stderr}"
        if "everifin_new_key" in line:
            settings = folder / "shop" / "settings.py"
            key = run.stdout.strip()
            settings.write_text(settings.read_text().replace(PLACEHOLDER, key))
    return True


def _command(line: str) -> list[str]:
    return [sys.executable, *line.split()[1:]]


def _write(folder: Path, block: str) -> None:
    """Write a file of the tutorial, the settings at the end of those that are there."""
    named = FILE_NAME.match(block)
    assert named, f"A block of the tutorial does not name its file: {block}"
    path = folder / named[1]
    path.parent.mkdir(exist_ok=True)
    is_settings = path.name == "settings.py"
    before = path.read_text(encoding="utf-8") if is_settings else ""
    path.write_text(before + block, encoding="utf-8")


def _free_ports() -> tuple[str, str]:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return str(one.getsockname()[1]), str(two.getsockname()[1])


@contextmanager
def _serve(folder: Path, lines: list[str]) -> Iterator[None]:
    processes = []
    try:
        for line in lines:
            command = [*_command(line), *(["--noreload"] if "runserver" in line else [])]
            output = (folder / f"{line.split()[2]}.log").open("w")
            processes.append(subprocess.Popen(command, cwd=folder, stdout=output, stderr=output))
            output.close()
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_for(url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            requests.get(url, timeout=START_SECONDS).raise_for_status()
        except requests.ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    play(Path(sys.argv[1]))
    print("1 passed, 0 failed, 0 skipped")

"""
Database servers of one's own: started for a run of the tests, gone after it.

Each lives in a temporary directory only its owner may enter, and is reached through a socket in
there: no port, no password, nobody else. It never waits for the disk.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 60
STOP_SECONDS = 30


class AbsentError(Exception):
    """The database's programs are not installed; the message says how to get them."""


class ServerError(Exception):
    """A database server could not be started; the message ends with what it said last."""


@contextmanager
def sqlite() -> Iterator[str]:
    yield "sqlite://:memory:"


@contextmanager
def postgres() -> Iterator[str]:
    initdb, server, ping = programs("postgresql", "initdb", "postgres", "pg_isready")
    with home("postgres") as server_home:
        data = f"{server_home.directory}/data"
        server_home.run(
            initdb, "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-locale"
        )
        settings = ["listen_addresses=", f"unix_socket_directories={server_home.directory}"]
        settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        settings += ["max_connections=500"]  # two tests at once may have 200 threads each
        with server_home.serving(
            *[server, "-D", data, *(f"--{setting}" for setting in settings)],
            is_ready=lambda: server_home.start(ping, "-h", str(server_home.directory)).wait() == 0,
            stop=signal.SIGINT,  # SIGTERM would wait for a client that did not hang up
        ):
            yield f"postgres://tests@/tests?host={server_home.directory}"


@contextmanager
def mariadb() -> Iterator[str]:
    install, server = programs("mariadb-server", "mariadb-install-db", "mariadbd")
    with home("mysql") as server_home:
        socket = server_home.directory / "socket"
        common = ["--no-defaults", f"--datadir={server_home.directory}/data"]
        server_home.run(
            install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"
        )
        options = [f"--socket={socket}", "--skip-networking", f"--pid-file={socket}.pid"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]
        with server_home.serving(
            *[server, *common, *options], is_ready=socket.exists, stop=signal.SIGTERM
        ):
            yield f"mysql://root@localhost/tests?unix_socket={socket}"


DATABASES: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "sqlite": sqlite,
    "postgres": postgres,
    "mariadb": mariadb,
}


def programs(package: str, *names: str) -> list[str]:
    """
    Return the full paths of the programs *names*, also where Debian keeps them out of PATH.

    Errors: AbsentError if one of them is not there.
    """
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    paths = [os.environ.get("PATH", ""), *map(str, newest_first), "/usr/local/sbin", "/usr/sbin"]
    found = [shutil.which(name, path=os.pathsep.join(paths)) for name in names]
    if None in found:
        raise AbsentError(f"not installed (on Debian and Ubuntu: apt-get install {package})")
    return [path for path in found if path]


@contextmanager
def home(account: str) -> Iterator["Home"]:
    """Yield a directory for one server; when we are root it belongs to *account*, or to nobody."""
    directory = Path(tempfile.mkdtemp(prefix="everifin-tests-"))
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:  # both servers refuse to run as root
        import pwd  # not on Windows

        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = known.get(account) or known["nobody"]
        owner = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        os.chown(directory, entry.pw_uid, entry.pw_gid)
    try:
        yield Home(directory, owner)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class Home:
    """Where the files of one server are, and the arguments that run a process as their owner."""

    directory: Path
    owner: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C ends the tests first, and then we end the server.
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.owner,
            )

    def run(self, *command: str) -> None:
        if self.start(*command).wait() != 0:
            raise self.failure(command[0])

    @contextmanager
    def serving(
        self,
        *command: str,
        is_ready: Callable[[], bool],
        stop: signal.Signals,
        start_seconds: float = START_SECONDS,
    ) -> Iterator[None]:
        """Keep the server of *command* running, and ready for connections, inside the block."""
        server = self.start(*command)
        deadline = time.monotonic() + start_seconds
        try:
            while not is_ready():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise self.failure(command[0])
                time.sleep(0.1)
            yield
        finally:
            server.send_signal(stop)
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)  # with what it started in turn
                server.wait()

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def failure(self, program: str) -> ServerError:
        return ServerError(f"{program} failed:\n{self.log.read_text(errors='replace')[-2000:]}")

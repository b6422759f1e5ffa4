"""
The two who mean us harm: a server that answers as no server should, and a report of an error that
shows all it can reach.
"""

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from ipaddress import ip_address
from pathlib import Path
from traceback import walk_tb
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass(frozen=True)
class Request:
    """What arrived: first line, headers and body. *connection* counts the connections."""

    connection: int
    peer: object
    line: str
    headers: dict[str, str]
    body: bytes


class Server:
    """
    Does to each request what *behave* does, on a free port of this machine.

    *greet* is done to each connection instead, before anything is read of it.
    """

    def __init__(
        self,
        behave: "Behaviour",
        *,
        tls: ssl.SSLContext | None = None,
        greet: "Behaviour | None" = None,
    ) -> None:
        self.behave = behave
        self.tls = tls
        self.greet = greet
        self.requests: list[Request] = []
        self.connections: list[socket.socket] = []
        self.closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        for one in (self._listener, *self.connections):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def drip(self, connection: socket.socket, text: bytes = b"x", *, seconds: float = 0.05) -> None:
        """Send *text* again and again until the other side or the test is gone."""
        while not self.closing.wait(seconds):
            connection.sendall(text)

    def latest(self, connection: socket.socket) -> Request:
        """Return the newest request that came over *connection*."""
        peer = connection.getpeername()
        return next(request for request in reversed(self.requests) if request.peer == peer)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(10)
                self.connections.append(connection)
                self._start(self._meet, connection, len(self.connections))

    def _meet(self, connection: socket.socket, number: int) -> None:
        # What the other side does to the connection is its own business.
        with suppress(OSError), connection:
            if self.greet is not None:
                self.greet(self, connection)
                return
            stream = self.tls.wrap_socket(connection, server_side=True) if self.tls else connection
            self.connections[number - 1] = stream
            with stream:
                while (request := _read(stream, number)) is not None:
                    self.requests.append(request)
                    self.behave(self, stream)


Behaviour = Callable[[Server, socket.socket], None]


def answer(text: bytes) -> Behaviour:
    def behave(server: Server, connection: socket.socket) -> None:
        connection.sendall(text)

    return behave


def answer_json(text: bytes, status: str = "200 OK", headers: str = "") -> Behaviour:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n{headers}\r\n"
    return answer(head.encode() + text)


def drip(text: bytes, byte: bytes = b"x", *, seconds: float = 0.05) -> Behaviour:
    """Send *text* at once, and go on with a *byte* now and then for ever."""

    def behave(server: Server, connection: socket.socket) -> None:
        connection.sendall(text)
        server.drip(connection, byte, seconds=seconds)

    return behave


def flood(text: bytes, more: bytes) -> Behaviour:
    """Send *text*, and *more* for ever as fast as it is taken."""
    return drip(text, more, seconds=0)


def hang_up(server: Server, connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def reset(server: Server, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hear_and_reset(server: Server, connection: socket.socket) -> None:
    """
    Reset once the other side has spoken.

    Python's ssl leaks a socket, with a warning, that is reset before it begins a handshake.
    """
    connection.recv(1)
    reset(server, connection)


def wait(server: Server, connection: socket.socket) -> None:
    """Say nothing until the test is over."""
    server.closing.wait(120)


def _read(stream: socket.socket, connection: int) -> Request | None:
    text = b""
    while b"\r\n\r\n" not in text:
        more = stream.recv(65_536)
        if not more:
            return None
        text += more
    head, _, body = text.partition(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    headers = {name.lower(): value for name, value in BytesParser().parsebytes(rest).items()}
    while len(body) < int(headers.get("content-length", 0)):
        body += stream.recv(65_536)
    return Request(connection, stream.getpeername(), line.decode(), headers, body)


def closed_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def certificate(directory: Path, *, host: str = "127.0.0.1", days: int = 1) -> Path:
    """Return a file with a self-signed certificate for *host*, ended if *days* is below 0."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "malicious_server.test")])
    until = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - timedelta(days=2))
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{host}-{days}.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def tls_context(path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def report(error: BaseException) -> str:
    """
    Return all that a report of *error* could show: messages, arguments and attributes of it and of
    all it came from, and every local variable of every frame but those of the tests themselves.
    """
    texts: list[str] = []
    errors = [error]
    for one in errors:
        texts += [str(one), repr(one), repr(one.args), repr(vars(one))]
        texts += [
            f"{name} = {value!r}"
            for frame, _ in walk_tb(one.__traceback__)
            if Path(__file__).parents[1] not in Path(frame.f_code.co_filename).parents
            for name, value in frame.f_locals.items()
        ]
        errors += [
            linked
            for linked in (one.__cause__, one.__context__)
            if linked is not None and linked not in errors
        ]
    return "\n".join(texts)

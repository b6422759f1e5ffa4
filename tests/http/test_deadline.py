"""Connections and answers have their bounds, whatever a malicious server does."""

import gzip
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from everifin_django.exceptions import (
    AnswerLostError,
    UnreachableError,
)
from everifin_django.http.client import send
from everifin_django.secret import Secret
from tests.http import CANARY, SHORT_SECONDS, SOON_SECONDS, ask, fails, knock, resolve_to
from tests.support import malicious_server
from tests.support.malicious_server import OK, Server, answer, answer_json

DRIPS = {
    "status": b"",
    "header": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
    "unstated length": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n300\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 900\r\n\r\n",
}


@pytest.fixture(scope="module")
def drips():
    """Give each slow drip as a future. They wait together, since each lasts to its deadline."""

    def drip(head: bytes, fresh: bool) -> int:
        options: dict[str, Any] = {"deadline_seconds": SHORT_SECONDS, "fresh_connection": fresh}
        with Server(malicious_server.drip(head)) as server:
            fails(AnswerLostError, lambda: ask(server, **options))
        return len(server.requests)

    cases = [(name, fresh) for name in DRIPS for fresh in (True, False)]
    with ThreadPoolExecutor(len(cases)) as pool:
        return {(name, fresh): pool.submit(drip, DRIPS[name], fresh) for name, fresh in cases}


class TestBounds:
    @pytest.mark.parametrize("size", [0, 999, 1000])
    def test_a_body_up_to_the_cap_arrives(self, size):
        with Server(answer_json(b"x" * size)) as server:
            assert len(ask(server).body) == size

    def test_one_byte_more_is_lost(self):
        with Server(answer_json(b"x" * 1001)) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_the_cap_counts_after_decompression(self):
        bomb = gzip.compress(b"\0" * 20_000_000)
        headers: dict[str, str | Secret] = {"Accept-Encoding": "gzip"}
        with Server(answer_json(bomb, headers="Content-Encoding: gzip\r\n")) as server:
            fails(AnswerLostError, lambda: ask(server, headers=headers, max_bytes=10_000_000))

    def test_broken_compression_is_a_lost_answer(self):
        headers: dict[str, str | Secret] = {"Accept-Encoding": "gzip"}
        with Server(answer_json(b"no gzip", headers="Content-Encoding: gzip\r\n")) as server:
            fails(AnswerLostError, lambda: ask(server, headers=headers))

    def test_chunks_without_end_are_cut(self):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with Server(malicious_server.flood(head, b"100\r\n" + b"x" * 256 + b"\r\n")) as server:
            fails(AnswerLostError, lambda: ask(server))

    @pytest.mark.parametrize("digit", [b"0", b"1", b";"])
    def test_the_size_of_a_chunk_without_end_is_cut(self, digit):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1"
        with Server(malicious_server.flood(head, digit * 65_536)) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_headers_without_end_are_cut(self):
        with Server(
            malicious_server.flood(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 100)
        ) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_interim_answers_without_end_are_cut(self):
        with Server(malicious_server.flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)) as server:
            fails(AnswerLostError, lambda: ask(server, deadline_seconds=SHORT_SECONDS))

    @pytest.mark.parametrize("name", [*DRIPS])
    @pytest.mark.parametrize("fresh", [True, False])
    def test_a_slow_drip_ends_at_the_deadline(self, drips, name, fresh):
        """Each byte comes well within a socket's timeout, which would begin anew with it."""
        assert drips[name, fresh].result() == 1

    def test_silence_ends_at_the_deadline(self, settings):
        settings.EVERIFIN_DEADLINE_SECONDS = SHORT_SECONDS
        with Server(malicious_server.wait) as server:
            fails(AnswerLostError, lambda: ask(server))

    @pytest.mark.parametrize("seconds", [0, -1])
    def test_after_the_deadline_nothing_is_sent(self, seconds):
        with Server(answer(OK)) as server:
            fails(UnreachableError, lambda: ask(server, deadline_seconds=seconds))
        assert server.connections == []

    def test_the_deadline_is_never_left_out(self, monkeypatch):
        timeouts = []
        settimeout = socket.socket.settimeout

        def note(sock: socket.socket, value: float | None) -> None:
            timeouts.append(value)
            settimeout(sock, value)

        with Server(answer(OK)) as server:
            monkeypatch.setattr(socket.socket, "settimeout", note)
            ask(server)
            monkeypatch.undo()
        ours = [value for value in timeouts if value != 10]  # 10 is the malicious_server server's
        assert ours
        assert all(value is not None and 0 < value < 10 for value in ours)


class TestLostAndUnreachable:
    def test_a_refused_connection_sent_nothing(self):
        url = f"http://127.0.0.1:{malicious_server.closed_port()}/x"
        error = fails(UnreachableError, lambda: knock(url))
        assert str(error) == "GET /x at Everifin: no connection was made."
        assert (error.method, error.path, error.status) == ("GET", "/x", None)

    def test_an_unknown_name_sent_nothing(self, monkeypatch):
        def unknown(*arguments: object, **options: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        fails(UnreachableError, lambda: knock("https://idp.test/x"))

    def test_a_name_without_address_sent_nothing(self, monkeypatch):
        resolve_to(monkeypatch)
        fails(UnreachableError, lambda: knock("https://idp.test/x"))

    def test_the_next_address_is_tried_when_one_is_dead(self, monkeypatch):
        dead = ("127.0.0.1", malicious_server.closed_port())
        with Server(answer(OK)) as server:
            alive = ("127.0.0.1", server.port)
            resolve_to(monkeypatch, dead, alive)
            assert ask(server, fresh_connection=True).status == 200

    def test_all_addresses_share_the_time_for_a_connection(self, monkeypatch, settings):
        settings.EVERIFIN_CONNECT_TIMEOUT_SECONDS = 1
        waits = []

        class Deaf(socket.socket):
            def connect(self, address: object) -> None:
                waits.append(self.gettimeout())
                raise TimeoutError

        resolve_to(monkeypatch, *[("127.0.0.1", 1)] * 4)
        monkeypatch.setattr(socket, "socket", Deaf)
        fails(UnreachableError, lambda: knock("https://idp.test/x"))
        # None of them took any time here, so each next one has a larger share of what is left.
        assert waits == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1], abs=0.05)

    @pytest.mark.parametrize(
        "behave", [malicious_server.reset, malicious_server.hang_up], ids=["reset", "empty"]
    )
    @pytest.mark.parametrize("fresh", [True, False])
    def test_a_connection_that_breaks_off_lost_the_answer(self, behave, fresh):
        with Server(behave) as server:
            error = fails(
                AnswerLostError,
                lambda: ask(
                    server,
                    method="POST",
                    form={"refresh_token": Secret(CANARY)},
                    fresh_connection=fresh,
                ),
            )
        assert "the answer was lost" in str(error)
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "text",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhalf",
            b"HTTP/9.9 200 OK\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\r\n",
        ],
    )
    def test_half_an_answer_is_a_lost_one(self, text):
        def behave(server: Server, connection: socket.socket) -> None:
            connection.sendall(text)
            malicious_server.hang_up(server, connection)

        with Server(behave) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_trouble_of_the_caller_does_not_count(self):
        """An answer lost while another failure is handled is still lost, not unsent."""
        elsewhere = NewConnectionError(HTTPConnection("elsewhere.test"), "as of another library")
        with Server(malicious_server.hang_up) as server, ExitStack() as handling:
            handling.push(lambda *_: fails(AnswerLostError, lambda: ask(server)) is not None)
            raise elsewhere


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("certificates")
    return {
        "right": malicious_server.certificate(directory),
        "wrong host": malicious_server.certificate(directory, host="127.0.0.9"),
        "expired": malicious_server.certificate(directory, days=-1),
    }


class TestTLS:
    def test_a_self_signed_certificate_is_refused(self, certificates):
        with Server(answer(OK), tls=malicious_server.tls_context(certificates["right"])) as server:
            fails(UnreachableError, lambda: ask(server))
        assert server.requests == []

    def test_a_trusted_certificate_is_accepted(self, certificates, settings):
        settings.EVERIFIN_CA_BUNDLE = str(certificates["right"])
        with Server(answer(OK), tls=malicious_server.tls_context(certificates["right"])) as server:
            assert ask(server).status == 200
            settings.EVERIFIN_CA_BUNDLE = None
            fails(UnreachableError, lambda: ask(server))

    @pytest.mark.parametrize("name", ["wrong host", "expired"])
    def test_trust_alone_is_not_enough(self, certificates, settings, name):
        settings.EVERIFIN_CA_BUNDLE = certificates[name]
        with Server(answer(OK), tls=malicious_server.tls_context(certificates[name])) as server:
            fails(UnreachableError, lambda: ask(server))
        assert server.requests == []

    @pytest.mark.parametrize(
        "greet",
        [
            malicious_server.hang_up,
            malicious_server.hear_and_reset,
            malicious_server.wait,
            malicious_server.drip(b""),
            malicious_server.answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ],
        ids=["hang up", "reset", "silence", "drip", "plain http"],
    )
    def test_a_handshake_that_fails_sent_nothing(self, certificates, settings, greet):
        settings.EVERIFIN_CONNECT_TIMEOUT_SECONDS = SHORT_SECONDS
        settings.EVERIFIN_CA_BUNDLE = certificates["right"]
        tls = malicious_server.tls_context(certificates["right"])
        with Server(answer(OK), tls=tls, greet=greet) as server:
            fails(UnreachableError, lambda: ask(server))
        assert server.requests == []

    @pytest.mark.parametrize(
        "behave",
        [
            malicious_server.reset,
            malicious_server.hang_up,
            malicious_server.wait,
            malicious_server.drip(b"HTTP/1.1 200 OK"),
        ],
    )
    def test_after_the_handshake_the_answer_can_be_lost(self, certificates, settings, behave):
        settings.EVERIFIN_CA_BUNDLE = certificates["right"]
        with Server(behave, tls=malicious_server.tls_context(certificates["right"])) as server:
            fails(AnswerLostError, lambda: ask(server, deadline_seconds=SHORT_SECONDS))
        assert len(server.requests) == 1

    def test_the_environment_names_no_certificates(self, certificates, monkeypatch):
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(certificates["right"]))
        with Server(answer(OK), tls=malicious_server.tls_context(certificates["right"])) as server:
            fails(UnreachableError, lambda: ask(server))


class TestEnvironment:
    def test_netrc_does_not_replace_the_token(self, monkeypatch, tmp_path):
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login evil password evil\n")
        monkeypatch.setenv("NETRC", str(netrc))
        with Server(answer(OK)) as server:
            ask(server)
            ask(server, headers={})
        sent = [request.headers.get("authorization") for request in server.requests]
        assert sent == [f"Bearer {CANARY}", None]

    def test_the_environment_names_no_proxy(self, monkeypatch):
        with Server(answer(OK)) as proxy, Server(answer(OK)) as server:
            for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            assert ask(server).status == 200
        assert proxy.connections == []

    @pytest.fixture
    def proxied(self, settings):
        def through(proxy: Server) -> None:
            settings.EVERIFIN_PROXIES = {"http": proxy.url, "https": proxy.url}

        return through

    def test_the_setting_names_one(self, proxied):
        with Server(answer(OK)) as proxy, Server(answer(OK)) as server:
            proxied(proxy)
            assert ask(server).status == 200
        assert proxy.requests[0].line == f"GET {server.url}/v1/things HTTP/1.1"
        assert server.connections == []

    def test_a_proxys_slow_drip_ends_at_the_deadline(self, proxied):
        with Server(malicious_server.drip(b"HTTP/1.1 200 OK\r\nX-Slow: ")) as proxy:
            proxied(proxy)
            fails(AnswerLostError, lambda: ask(proxy, deadline_seconds=SHORT_SECONDS))

    @pytest.mark.parametrize(
        "behave",
        [
            answer_json(b"", "403 Forbidden"),
            malicious_server.hang_up,
            malicious_server.drip(b"HTTP/1.1 200 OK\r\nX-Slow: "),
        ],
        ids=["refuses", "hangs up", "drips"],
    )
    def test_a_tunnel_that_does_not_come_about_sent_nothing(self, proxied, settings, behave):
        settings.EVERIFIN_CONNECT_TIMEOUT_SECONDS = SHORT_SECONDS
        with Server(behave) as proxy:
            proxied(proxy)
            fails(UnreachableError, lambda: knock("https://idp.test/x"))
        assert [request.line[:20] for request in proxy.requests] == ["CONNECT idp.test:443"]
        assert all("authorization" not in request.headers for request in proxy.requests)

    def test_through_a_tunnel_the_answer_is_bounded(self, proxied, certificates, settings):
        settings.EVERIFIN_CA_BUNDLE = certificates["right"]
        inner = malicious_server.tls_context(certificates["right"])

        def behave(server: Server, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with inner.wrap_socket(connection, server_side=True) as stream:
                stream.recv(65_536)
                stream.sendall(b"HTTP/1.1 200 OK\r\n")
                server.drip(stream)

        with Server(behave) as proxy:
            proxied(proxy)
            url = f"https://127.0.0.1:{malicious_server.closed_port()}/x"
            fails(
                AnswerLostError,
                lambda: send("GET", url, headers={}, max_bytes=1, deadline_seconds=SHORT_SECONDS),
            )


class TestSessions:
    def test_cookies_are_not_kept(self):
        cookie = "Set-Cookie: session=evil; Path=/\r\nSet-Cookie: other=evil\r\n"
        with Server(answer_json(b"", headers=cookie)) as server:
            ask(server)
            ask(server)
            ask(server, fresh_connection=True)
        assert all("cookie" not in request.headers for request in server.requests)
        assert len(server.requests) == 3

    def test_connections_are_kept(self):
        with Server(answer(OK)) as server:
            for _ in range(3):
                ask(server)
        assert [request.connection for request in server.requests] == [1, 1, 1]

    def test_a_slow_answer_leaves_its_successor_the_whole_time(self):
        def behave(server: Server, connection: socket.socket) -> None:
            server.closing.wait(0.8 * SHORT_SECONDS)
            connection.sendall(OK)

        with Server(behave) as server:
            for _ in range(3):
                assert ask(server, deadline_seconds=2 * SHORT_SECONDS).status == 200

    def test_a_fresh_connection_is_not_kept(self):
        with Server(answer(OK)) as server:
            for _ in range(3):
                ask(server, fresh_connection=True)
        assert [request.connection for request in server.requests] == [1, 2, 3]

    def test_an_unfinished_answer_is_not_read_by_the_next_call(self):
        def behave(server: Server, connection: socket.socket) -> None:
            first = len(server.requests) == 1
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000 if first else OK
            )

        with Server(behave) as server:
            fails(AnswerLostError, lambda: ask(server))
            assert ask(server).body == b"{}"

    def test_threads_do_not_mix_answers(self):
        def behave(server: Server, connection: socket.socket) -> None:
            # The newest request of this connection, by the port of its other end.
            body = server.latest(connection).headers["authorization"].encode()
            connection.sendall(
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )

        barrier = threading.Barrier(8)

        def call(number: int) -> list[bytes]:
            barrier.wait(SOON_SECONDS)
            headers = {"Authorization": Secret(f"Bearer {number}")}
            return [ask(server, headers=headers).body for _ in range(20)]

        with Server(behave) as server, ThreadPoolExecutor(8) as pool:
            bodies = list(pool.map(call, range(8)))
        assert bodies == [[f"Bearer {number}".encode()] * 20 for number in range(8)]
        assert len(server.connections) <= 9

    @pytest.mark.parametrize(("size", "kept"), [(2, 2), (8, 4)])
    def test_how_many_connections_are_kept_is_a_setting(self, settings, size, kept):
        settings.EVERIFIN_POOL_SIZE = size
        barrier = threading.Barrier(4)

        def behave(server: Server, connection: socket.socket) -> None:
            barrier.wait(SOON_SECONDS)
            connection.sendall(OK)

        with Server(behave) as server, ThreadPoolExecutor(4) as pool:
            for _ in range(2):
                list(pool.map(lambda _: ask(server), range(4)))
        assert len(server.connections) == 4 + 4 - kept

    def test_a_forked_child_has_connections_of_its_own(self):
        """In a process of its own, because the one that runs the tests has threads."""
        script = """
            import os, sys
            from everifin_django.http.client import send

            def ask():
                assert send("GET", sys.argv[1], headers={}, max_bytes=9).status == 200

            ask()
            child = os.fork()
            ask()
            if child:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
        lines = [line.removeprefix(" " * 12) for line in script.splitlines()]
        with Server(answer(OK)) as server:
            subprocess.run(
                [sys.executable, "-W", "error", "-c", "\n".join(lines), server.url],
                check=True,
                timeout=60,
                env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            )
        assert sorted(request.connection for request in server.requests) == [1, 1, 2]

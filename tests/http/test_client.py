"""HTTP as malicious_server servers speak it, over real sockets of this machine."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from everifin_django.exceptions import (
    AnswerError,
    AnswerLostError,
    APIError,
    InvalidRequestError,
    UnavailableError,
    UnreachableError,
)
from everifin_django.http import client
from everifin_django.http.client import AGENT, Answer, bearer, read, send, strict_json
from everifin_django.secret import Secret
from tests.support import malicious_server
from tests.support.malicious_server import OK, Server, answer, answer_json, report

CANARY = "canary-91ac7e"
SHORT_SECONDS = 0.3
SOON_SECONDS = 5
"""Long before any of the servers here would end by itself, and enough for a busy machine."""


def ask(server: Server, path: str = "/v1/things", **options: Any) -> Answer:
    options = {"headers": {"Authorization": bearer(Secret(CANARY))}, "max_bytes": 1000, **options}
    return send(options.pop("method", "GET"), server.url + path, **options)


def knock(url: str) -> Answer:
    return send("GET", url, headers={"Authorization": bearer(Secret(CANARY))}, max_bytes=1)


def fails(kind: type[APIError], call: Callable[[], object]) -> APIError:
    """Return the error of *call*, which came in time and shows no secret."""
    started = time.monotonic()
    with pytest.raises(APIError) as caught:
        call()
    assert time.monotonic() - started < SOON_SECONDS
    assert type(caught.value) is kind
    assert CANARY not in report(caught.value)
    return caught.value


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let every name have these addresses."""
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)


class TestAnswers:
    def test_the_answer_comes_as_it_is(self):
        with Server(answer_json(b'{"a": 1}', "418 Teapot", "X-Other: b\r\n")) as server:
            got = ask(server, "/v1/things")
        assert (got.method, got.path, got.status) == ("GET", "/v1/things", 418)
        assert got.headers["x-other"] == "b"
        assert got.json() == {"a": 1}

    def test_body_and_headers_stay_out_of_the_repr(self):
        with Server(answer_json(CANARY.encode(), headers=f"X-Other: {CANARY}\r\n")) as server:
            assert CANARY not in repr(ask(server))

    @pytest.mark.parametrize("body", [b"", b"<html>" + CANARY.encode(), b'{"a": ', b"\xff"])
    def test_something_other_than_json_is_an_answer_error(self, body):
        with Server(answer_json(body)) as server:
            got = ask(server)
        error = fails(AnswerError, got.json)
        assert (error.method, error.path, error.status) == ("GET", "/v1/things", 200)

    def test_a_gzipped_answer_is_decoded(self):
        body = gzip.compress(b'{"a": 1}')
        with Server(answer_json(body, headers="Content-Encoding: gzip\r\n")) as server:
            assert ask(server).json() == {"a": 1}

    def test_an_interim_answer_is_skipped(self):
        with Server(answer(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as server:
            assert ask(server).status == 200

    @pytest.mark.parametrize("status", [204, 304])
    def test_an_answer_without_content_has_an_empty_body(self, status):
        with Server(answer(f"HTTP/1.1 {status} Nothing\r\n\r\n".encode())) as server:
            assert ask(server).body == b""

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("Retry-After: 7\r\n", 7),
            ("Retry-After:  0 \r\n", 0),
            ("Retry-After: 999999999\r\n", 86_400),
            ("Retry-After: -5\r\n", None),
            ("Retry-After: 1.5\r\n", None),
            ("Retry-After: 99999999999999999999\r\n", None),
            ("Retry-After: soon\r\n", None),
            ("Retry-After: \r\n", None),
            ("", None),
            ("Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 0),
            ("Retry-After: Sun, 06 Nov 1994 08:49:37\r\n", 0),
            ("Retry-After: Sun, 06 Nov 9994 08:49:37 GMT\r\n", 86_400),
            ("Retry-After: Sun, 06 Nov 99999999999999999999 08:49:37 GMT\r\n", None),
            ("Retry-After: Sun, 99 Nov 2026 08:49:37 GMT\r\n", None),
        ],
    )
    def test_retry_after_is_seconds_or_a_date(self, header, seconds):
        with Server(answer_json(b"", "503 Busy", header)) as server:
            assert ask(server).retry_after_seconds == seconds

    def test_retry_after_counts_from_now(self):
        at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
        with Server(answer_json(b"", "503 Busy", f"Retry-After: {at}\r\n")) as server:
            seconds = ask(server).retry_after_seconds
        assert seconds is not None
        assert 90 < seconds <= 100

    def test_an_error_about_an_answer_knows_when_to_try_again(self):
        with Server(answer_json(b"", "503 Busy", "Retry-After: 7\r\n")) as server:
            error = ask(server).error(UnavailableError, "for now", code="SOME_CODE")
        assert str(error) == "GET /v1/things answered 503 for now."
        assert (error.retry_after_seconds, error.code) == (7, "SOME_CODE")


class TestRequests:
    def test_only_what_was_asked_for_is_sent(self):
        with Server(answer(OK)) as server:
            ask(server, headers={"X-One": "1"})
        (request,) = server.requests
        assert request.line == "GET /v1/things HTTP/1.1"
        assert request.headers == {
            "host": f"127.0.0.1:{server.port}",
            "x-one": "1",
            "user-agent": AGENT,
            "accept-encoding": "identity",
        }

    def test_secrets_are_opened_for_the_wire(self):
        with Server(answer(OK)) as server:
            form: dict[str, str | Secret] = {"grant": "refresh", "token": Secret("a&b=ž")}
            ask(server, method="POST", form=form)
        (request,) = server.requests
        assert request.headers["authorization"] == f"Bearer {CANARY}"
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        assert request.body == b"grant=refresh&token=a%26b%3D%C5%BE"

    def test_content_is_sent_as_json(self):
        with Server(answer(OK)) as server:
            ask(server, method="patch", content={"amount": 1.5})
        (request,) = server.requests
        assert request.line.startswith("PATCH ")
        assert json.loads(request.body) == {"amount": 1.5}

    @pytest.mark.parametrize("content", [{"a": object()}, {"a": Decimal(1)}, {"a": float("nan")}])
    def test_content_that_is_no_json_is_the_callers_mistake(self, content):
        with Server(answer(OK)) as server, pytest.raises((TypeError, ValueError)) as caught:
            ask(server, method="POST", content=content)
        assert CANARY not in report(caught.value)
        assert server.requests == []

    @pytest.mark.parametrize(
        ("path", "params", "target"),
        [
            ("/x", {"a": "1&b", "c": None, "d": ["1", "2"]}, "/x?a=1%26b&d=1&d=2"),
            ("/x?e=5", {"a": 1}, "/x?e=5&a=1"),
            ("/x", {"a": None}, "/x"),
            ("/x", {"a": "\ud800"}, "/x?a=%3F"),
            ("/a%2Fb/c d", None, "/a%2Fb/c%20d"),
        ],
    )
    def test_parameters_are_encoded(self, path, params, target):
        with Server(answer(OK)) as server:
            ask(server, path, params=params)
        assert server.requests[0].line == f"GET {target} HTTP/1.1"

    @pytest.mark.parametrize(
        "value", ["a\r\nX-Evil: 1", "a\nb", "ž", "a\0", " a", "a\t", "\x7f", "\ud800"]
    )
    def test_a_header_that_http_does_not_carry_is_not_sent(self, value):
        headers = {"Authorization": Secret(CANARY), "client-ip-address": value}
        with Server(answer(OK)) as server:
            error = fails(InvalidRequestError, lambda: ask(server, headers=headers))
        assert "does not carry" in str(error)
        assert server.connections == []

    def test_nor_is_a_token_with_a_line_break(self):
        token = bearer(Secret(f"{CANARY}\r\nX-Evil: 1"))
        with Server(answer(OK)) as server:
            fails(InvalidRequestError, lambda: ask(server, headers={"Authorization": token}))
        assert server.connections == []

    @pytest.mark.parametrize("method", ["GET /evil HTTP/1.1\r\n", "GËT"])
    def test_nor_is_a_method_of_another_alphabet(self, method):
        with Server(answer(OK)) as server:
            fails(InvalidRequestError, lambda: ask(server, method=method))
        assert server.connections == []

    @pytest.mark.parametrize(
        ("host", "kind"), [("*.test", InvalidRequestError), ("a" * 64 + ".test", UnreachableError)]
    )
    def test_nothing_is_sent_to_a_host_that_is_none(self, host, kind):
        fails(kind, lambda: knock(f"https://{host}/x"))

    @pytest.mark.parametrize(
        "url",
        ["http://api.test/x", "ftp://127.0.0.1/x", "//127.0.0.1/x", "http://127.0.0.1.evil.test/"],
    )
    def test_plain_http_goes_to_this_machine_only(self, url, monkeypatch):
        def refuse(*arguments: object) -> None:
            raise AssertionError("something was sent")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        with pytest.raises(ImproperlyConfigured, match="is not https") as caught:
            knock(url)
        assert CANARY not in report(caught.value)


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_an_answer_like_any_other(self, status):
        with Server(answer(OK)) as elsewhere:
            location = f"Location: {elsewhere.url}/stolen\r\n"
            with Server(answer_json(b"", f"{status} Moved", location)) as server:
                got = ask(server, method="POST", form={"refresh_token": Secret(CANARY)})
        assert got.status == status
        assert elsewhere.connections == []
        assert len(server.requests) == 1

    def test_the_body_of_a_redirect_is_bounded_too(self):
        head = b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 999999999\r\n\r\n"
        with Server(malicious_server.flood(head, b"x" * 65_536)) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_a_location_that_is_none_is_no_trouble(self):
        with Server(answer_json(b"", "302 Found", "Location: https://[::1\r\n")) as server:
            assert ask(server).status == 302


class TestTries:
    """What ``read`` does after an answer that may be another one soon."""

    @pytest.fixture
    def pauses(self, monkeypatch) -> list[float]:
        """How long was waited, without waiting."""
        pauses: list[float] = []
        monkeypatch.setattr(client, "sleep", pauses.append)
        return pauses

    def look(self, server: Server) -> Answer:
        headers = {"Authorization": bearer(Secret(CANARY))}
        return read(f"{server.url}/v1/things", headers=headers, params={"a": 1}, max_bytes=99)

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_a_passing_failure_is_tried_three_times(self, pauses, status):
        with Server(answer_json(b"{}", f"{status} Busy")) as server:
            assert self.look(server).status == status
        assert [one.line for one in server.requests] == ["GET /v1/things?a=1 HTTP/1.1"] * 3
        assert 0.05 <= pauses[0] <= 0.1 <= pauses[1] <= 0.2

    @pytest.mark.parametrize("tries", [1, 2, 5])
    def test_how_often_is_a_setting(self, pauses, settings, tries):
        settings.EVERIFIN_MAX_TRIES = tries
        with Server(answer_json(b"{}", "503 Busy")) as server:
            assert self.look(server).status == 503
        assert (len(server.requests), len(pauses)) == (tries, tries - 1)

    def test_pauses_differ(self, pauses):
        with Server(answer_json(b"{}", "503 Busy")) as server:
            for _ in range(5):
                self.look(server)
        assert len(set(pauses)) > 5

    def test_the_second_try_may_do(self, pauses):
        def behave(server: Server, connection: socket.socket) -> None:
            (malicious_server.reset if len(server.requests) == 1 else answer(OK))(
                server, connection
            )

        with Server(behave) as server:
            assert self.look(server).body == b"{}"
        assert (len(server.requests), len(pauses)) == (2, 1)

    @pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 403, 404, 409, 422, 501])
    def test_all_else_is_an_answer(self, pauses, status):
        with Server(answer(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())) as server:
            assert self.look(server).status == status
        assert (len(server.requests), pauses) == (1, [])

    @pytest.mark.parametrize("status", [429, 503])
    def test_retry_after_is_honoured_within_the_deadline(self, pauses, status):
        with Server(answer_json(b"{}", f"{status} Busy", "Retry-After: 2\r\n")) as server:
            assert self.look(server).status == status
        assert (len(server.requests), pauses) == (3, [2, 2])

    @pytest.mark.parametrize("status", [429, 503])
    def test_who_asks_for_more_is_not_called_again(self, pauses, status):
        with Server(answer_json(b"{}", f"{status} Busy", "Retry-After: 6\r\n")) as server:
            assert self.look(server).retry_after_seconds == 6
        assert (len(server.requests), pauses) == (1, [])

    def test_nor_who_has_too_many_calls_and_does_not_say_until_when(self, pauses):
        with Server(answer_json(b"{}", "429 Slow down")) as server:
            assert self.look(server).status == 429
        assert (len(server.requests), pauses) == (1, [])

    def test_silence_takes_the_deadline_and_no_more(self, pauses, settings):
        settings.EVERIFIN_DEADLINE_SECONDS = SHORT_SECONDS
        with Server(malicious_server.wait) as server:
            fails(AnswerLostError, lambda: self.look(server))
        assert (len(server.requests), pauses) == (1, [])

    def test_nothing_listening_is_told_after_three_tries(self, pauses):
        url = f"http://127.0.0.1:{malicious_server.closed_port()}/"
        fails(UnreachableError, lambda: read(url, headers={}, max_bytes=9))
        assert len(pauses) == 2

    def test_a_kept_connection_that_died_is_replaced_for_reading_only(self, pauses):
        """The other side may have acted on it, so nothing else is ever sent again."""

        def behave(server: Server, connection: socket.socket) -> None:
            is_second_on_it = (
                sum(one.peer == connection.getpeername() for one in server.requests) == 2
            )
            (malicious_server.hang_up if is_second_on_it else answer(OK))(server, connection)

        with Server(behave) as server:
            self.look(server)
            assert self.look(server).status == 200
            assert len(server.requests) == 3
            methods = ["POST", "PATCH", "PUT", "DELETE"]
            for method in methods:
                fails(AnswerLostError, partial(ask, server, method=method))
                ask(server)
        assert [one.line.split()[0] for one in server.requests[3::2]] == methods
        assert len(server.requests) == 11


class TestBounds:
    @pytest.mark.parametrize("size", [0, 999, 1000])
    def test_a_body_up_to_the_cap_arrives(self, size):
        with Server(answer_json(b"x" * size)) as server:
            assert len(ask(server).body) == size

    def test_one_byte_more_is_lost(self):
        with Server(answer_json(b"x" * 1001)) as server:
            fails(AnswerLostError, lambda: ask(server))

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_the_cap_counts_after_decompression(self, encoding):
        compress = gzip.compress if encoding == "gzip" else zlib.compress
        bomb = compress(b"\0" * 20_000_000)
        with Server(answer_json(bomb, headers=f"Content-Encoding: {encoding}\r\n")) as server:
            fails(AnswerLostError, lambda: ask(server, max_bytes=10_000_000))

    def test_broken_compression_is_a_lost_answer(self):
        with Server(answer_json(b"no gzip", headers="Content-Encoding: gzip\r\n")) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_chunks_without_end_are_cut(self):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with Server(malicious_server.flood(head, b"100\r\n" + b"x" * 256 + b"\r\n")) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_headers_without_end_are_cut(self):
        with Server(
            malicious_server.flood(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 100)
        ) as server:
            fails(AnswerLostError, lambda: ask(server))

    def test_interim_answers_without_end_are_cut(self):
        with Server(malicious_server.flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)) as server:
            fails(AnswerLostError, lambda: ask(server, deadline_seconds=SHORT_SECONDS))

    @pytest.mark.parametrize(
        "head",
        [
            b"",
            b"HTTP/1.1 200 OK\r\nX-Slow: ",
            b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n300\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 900\r\n\r\n",
        ],
        ids=["status", "header", "body", "unstated length", "chunk", "redirect"],
    )
    @pytest.mark.parametrize("fresh", [True, False])
    def test_a_slow_drip_ends_at_the_deadline(self, head, fresh):
        """Each drop comes well within a socket's timeout, which would begin anew with it."""
        options = {"deadline_seconds": SHORT_SECONDS, "fresh_connection": fresh}
        with Server(malicious_server.drip(head)) as server:
            fails(AnswerLostError, lambda: ask(server, **options))
        assert len(server.requests) == 1

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
        assert str(error) == "GET /x at Everifin: no connection came about."
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
            server.closing.wait(SHORT_SECONDS / 2)
            connection.sendall(OK)

        with Server(behave) as server:
            for _ in range(3):
                assert ask(server, deadline_seconds=SHORT_SECONDS).status == 200

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


class TestStrictJSON:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            (b'{"a": [1, "\xc5\xbe", true, null]}', {"a": [1, "ž", True, None]}),
            ('"ž"', "ž"),
            ("-0.10", Decimal("-0.10")),
            ("1e308", Decimal("1e308")),
            ("[]", []),
        ],
    )
    def test_json_is_decoded(self, text, value):
        assert strict_json(text) == value

    def test_fractions_are_exact(self):
        assert str(strict_json("125.10")) == "125.10"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "{} {}",
            "{'a': 1}",
            '{"a": 1, "a": 1}',
            '[{"b": {"a": 1, "a": 2}}]',
            "NaN",
            "[Infinity]",
            "-Infinity",
            "[" * 100_000,
            "[" * 100_000 + "]" * 100_000,
            '{"a":' * 100_000,
            "9" * 5000,
            "1e309",
            "1e-400",
            "1e999999999",
            "-1e999999999999999999999999",
            "0e-99999999999999999999999",
            '"\n"',
            b"\xff",
            b'"\xed\xa0\x80"',
            b"\xef\xbb\xbf{}",
            '{"a": 1}'.encode("utf-16"),
            '{"a": 1}'.encode("utf-32-le"),
            b"\x00",
        ],
        ids=lambda text: f"{text[:12]!r}-{len(text)}",
    )
    def test_all_else_is_refused(self, text):
        with pytest.raises(ValueError, match=r"."):
            strict_json(text)


def test_a_bearer_header_stays_a_secret():
    assert bearer(Secret("token")) == Secret("Bearer token")

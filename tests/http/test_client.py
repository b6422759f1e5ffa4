"""What is sent, and what becomes of each answer, over real sockets of this machine."""

import gzip
import http.client
import json
import socket
import time
import zlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from functools import partial

import pytest
import urllib3
from django.core.exceptions import ImproperlyConfigured

from everifin_django.exceptions import (
    AnswerError,
    AnswerLostError,
    InvalidRequestError,
    UnavailableError,
    UnreachableError,
)
from everifin_django.http import client
from everifin_django.http.client import AGENT, Answer, bearer, read
from everifin_django.secret import Secret
from tests.http import CANARY, SHORT_SECONDS, SOON_SECONDS, ask, fails, knock
from tests.support import malicious_server
from tests.support.malicious_server import OK, Server, answer, answer_json, report


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
            assert ask(server, headers=GZIP).json() == {"a": 1}

    def test_a_byte_order_mark_is_skipped(self):
        with Server(answer_json(b"\xef\xbb\xbf{}")) as server:
            assert ask(server).json() == {}

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
            ("Retry-After: 1.5\r\n", 1.5),
            ("Retry-After: 1e3\r\n", None),
            ("Retry-After: 0x10\r\n", None),
            ("Retry-After: ٣\r\n", None),
            ("Retry-After: 120, 60\r\n", 120),
            ("Retry-After: 60\r\nRetry-After: 120\r\n", 120),
            ("Retry-After: 99999999999999999999\r\n", 86_400),
            (f"Retry-After: {'9' * 60_000}\r\n", 86_400),
            ("Retry-After: Sun, 99 Nov 1994 99:99:99 +9999\r\n", None),
            ("Retry-After: 5 seconds\r\n", None),
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


GZIP: dict[str, str | Secret] = {
    "Authorization": bearer(Secret(CANARY)),
    "Accept-Encoding": "gzip",
}


def chunked(*chunks: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (*chunks, b""))


class TestEncodings:
    """An answer is decoded as it was asked for, whatever it claims to be."""

    @pytest.mark.parametrize(
        "claimed",
        [
            "deflate",
            "br",
            "zstd",
            "compress",
            "x-gzip",
            "gzip ",
            "gzip, gzip",
            "gzip, deflate",
            "identity, gzip",
        ],
    )
    def test_an_encoding_that_was_not_asked_for_loses_the_answer(self, claimed):
        body = answer_json(b"{}", headers=f"Content-Encoding: {claimed}\r\n")
        with Server(body) as server:
            fails(AnswerLostError, lambda: ask(server, headers=GZIP))
            fails(AnswerLostError, lambda: ask(server))

    def test_so_does_gzip_where_none_was_asked_for(self):
        body = gzip.compress(b"{}")
        with Server(answer_json(body, headers="Content-Encoding: gzip\r\n")) as server:
            fails(AnswerLostError, lambda: ask(server))

    @pytest.mark.parametrize("claimed", ["", "identity", "Identity", "GZIP"])
    def test_spelling_does_not_matter(self, claimed):
        body = gzip.compress(b"{}") if "g" in claimed.lower() else b"{}"
        with Server(answer_json(body, headers=f"Content-Encoding: {claimed}\r\n")) as server:
            assert ask(server, headers=GZIP).body == b"{}"

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_bytes_after_the_end_of_a_compressed_answer_make_no_loop(self, encoding):
        compressed = (gzip.compress if encoding == "gzip" else zlib.compress)(b"{}")
        text = chunked(compressed, b"more", headers=f"Content-Encoding: {encoding}\r\n")
        started = time.monotonic()
        with Server(answer(text)) as server, suppress(AnswerLostError):
            assert ask(server, headers=GZIP).body == b"{}"
        assert time.monotonic() - started < SOON_SECONDS


class TestLostAnswers:
    """Whatever goes wrong after sending is one error, and none of it shows what was sent."""

    @pytest.mark.parametrize("size", [b"-1", b"-5", b"0x5", b"+5", b"1_0", b"", b" ", b"5" * 9999])
    def test_odd_sizes_of_chunks_lose_it(self, size):
        text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nhalf"

        def behave(server: Server, connection: socket.socket) -> None:
            connection.sendall(text)
            malicious_server.hang_up(server, connection)

        with Server(behave) as server:
            form: dict[str, str | Secret] = {"refresh_token": Secret(CANARY)}
            fails(AnswerLostError, lambda: ask(server, method="POST", form=form))

    @pytest.mark.parametrize(
        "kind",
        [
            ValueError,
            KeyError,
            RecursionError,
            MemoryError,
            AssertionError,
            OSError,
            type("Odd", (Exception,), {}),
        ],
    )
    @pytest.mark.parametrize("step", ["headers", "body"])
    def test_whatever_a_library_raises_loses_it(self, monkeypatch, kind, step):
        def fail(*arguments: object, **options: object) -> None:
            raise kind(f"of {CANARY}")

        owner, name = {
            "headers": (http.client.HTTPResponse, "begin"),
            "body": (urllib3.HTTPResponse, "stream"),
        }[step]
        monkeypatch.setattr(owner, name, fail)
        with Server(answer(OK)) as server:
            fails(AnswerLostError, lambda: ask(server))

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_an_interruption_stays_what_it_is_and_shows_nothing(self, monkeypatch, kind):
        def interrupt(*arguments: object, **options: object) -> None:
            raise kind

        monkeypatch.setattr(urllib3.HTTPResponse, "stream", interrupt)
        with Server(answer(OK)) as server, pytest.raises(kind) as caught:
            ask(server)
        assert CANARY not in report(caught.value)

    def test_whatever_a_library_raises_while_it_connects_sent_nothing(self, monkeypatch):
        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError(CANARY)

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        fails(UnreachableError, lambda: knock("https://idp.test/x"))


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

    def test_nor_is_a_host_with_too_many_calls_that_does_not_say_until_when(self, pauses):
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


def test_a_bearer_header_stays_a_secret():
    assert bearer(Secret("token")) == Secret("Bearer token")

"""Requests served by a WSGI application in the same process."""

import io
import threading
from urllib.parse import parse_qs

import pytest
import requests
from urllib3.util import Timeout

from everifin_django.testing.adapter import (
    NetworkRefusedError,
    WSGIAdapter,
    mount,
    read_timeout_seconds,
)
from everifin_django.testing.sandbox import AnswerLost, Sandbox

URL = "https://app.test/a%20path/?q=1&q=%C3%A9"


@pytest.fixture
def session():
    with requests.Session() as session:
        yield session


def serve(session, body=b"hello", status="200 OK", headers=()):
    """Answer every request of *session* like this, and return the list its environs end up in."""
    seen = []

    def app(environ, start_response):
        seen.append({**environ, "body": environ["wsgi.input"].read()})
        start_response(status, [("Content-Length", str(len(body))), *headers])
        return [body]

    session.mount("https://app.test", WSGIAdapter(app))
    return seen


class TestRequest:
    def test_url_and_headers_arrive_as_from_a_server(self, session):
        seen = serve(session)
        session.get(URL, headers={"X-One": "1", "X_Two": "2", "Content-Type": b"text/x"})
        (environ,) = seen
        assert environ["PATH_INFO"] == "/a path/"
        assert parse_qs(environ["QUERY_STRING"]) == {"q": ["1", "é"]}
        assert environ["HTTP_X_ONE"] == "1"
        assert environ["CONTENT_TYPE"] == "text/x"
        assert environ["HTTP_HOST"] == environ["SERVER_NAME"] == "app.test"
        assert (environ["wsgi.url_scheme"], environ["SERVER_PORT"]) == ("https", "443")
        assert "HTTP_X_TWO" not in environ

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (None, b""),
            ({"a": "é"}, b"a=%C3%A9"),
            ("é", "é".encode()),
            (b"bytes", b"bytes"),
            (io.BytesIO(b"file"), b"file"),
            (iter([b"one", b"two"]), b"onetwo"),
        ],
    )
    def test_any_body_arrives(self, session, data, expected):
        seen = serve(session)
        session.post(URL, data=data)
        assert seen[0]["body"] == expected
        assert seen[0]["CONTENT_LENGTH"] == str(len(expected))


class TestAnswer:
    def test_it_is_an_ordinary_response(self, session):
        serve(session, status="404 Not Found", headers=[("X-Case-Kept", "1")])
        answer = session.get(URL)
        assert (answer.status_code, answer.reason, answer.text) == (404, "Not Found", "hello")
        assert answer.url == URL
        assert answer.headers["x-case-kept"] == "1"
        assert "X-Case-Kept" in list(answer.headers)
        assert answer.request.method == "GET"

    def test_it_can_be_streamed(self, session):
        serve(session, b"x" * 100)
        with session.get(URL, stream=True) as answer:
            assert not answer._content_consumed
            assert [len(chunk) for chunk in answer.iter_content(30)] == [30, 30, 30, 10]
        with session.get(URL, stream=True) as answer:
            assert answer.raw.read(7) == b"x" * 7

    def test_cookies_and_redirects_work(self, session):
        serve(session, status="302 Found", headers=[("Location", "/x"), ("Set-Cookie", "a=b")])
        answer = session.get(URL, allow_redirects=False)
        assert answer.cookies["a"] == session.cookies["a"] == "b"
        assert answer.is_redirect

    def test_a_head_has_no_body(self, session):
        serve(session)
        answer = session.head(URL)
        assert (answer.content, answer.headers["Content-Length"]) == (b"", "5")

    def test_what_is_written_and_closed_as_wsgi_allows(self, session):
        closed = []

        class Chunks(list):
            def close(self):
                closed.append(True)

        def app(environ, start_response):
            write = start_response("200 OK", [])
            write(b"one ")
            return Chunks([b"two"])

        session.mount("https://app.test", WSGIAdapter(app))
        assert session.get(URL).text == "one two"
        assert closed == [True]

    def test_an_error_of_the_application_is_raised(self, session):
        def app(environ, start_response):
            raise ZeroDivisionError

        session.mount("https://app.test", WSGIAdapter(app))
        with pytest.raises(ZeroDivisionError):
            session.get(URL)

    def test_a_body_lost_from_the_start_is_a_lost_answer(self, session):
        def app(environ, start_response):
            start_response("200 OK", [])
            yield from iter(lost, None)

        def lost():
            raise AnswerLost

        session.mount("https://app.test", WSGIAdapter(app))
        with pytest.raises(requests.exceptions.ConnectionError):
            session.get(URL)


class TestTimeout:
    @pytest.mark.parametrize(
        ("timeout", "expected"),
        [
            (None, None),
            (3, 3),
            (2.5, 2.5),
            ((1, 4), 4),
            ((1, None), None),
            (Timeout(connect=1, read=6), 6),
            (Timeout(read=None), None),
        ],
    )
    def test_every_form_is_understood(self, timeout, expected):
        assert read_timeout_seconds(timeout) == expected

    def test_a_total_leaves_what_connecting_did_not_take(self):
        assert read_timeout_seconds(Timeout(connect=3, total=10)) == pytest.approx(10, abs=0.5)


class TestMount:
    @pytest.fixture
    def sandbox(self):
        return Sandbox(idp_url="https://idp.test", api_url="https://api.test")

    def test_both_urls_are_served_in_every_session(self, sandbox):
        with requests.Session() as old, mount(sandbox):
            assert old.get("https://api.test/v1/banks").status_code == 401
            assert requests.get("https://idp.test/_sandbox/state", timeout=5).ok

    def test_other_threads_are_served_too(self, sandbox):
        answers = []

        def call():
            answers.append(requests.get("https://idp.test/_sandbox/state", timeout=5).ok)

        with mount(sandbox):
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        assert answers == [True]

    @pytest.mark.parametrize(
        "url",
        [
            "https://elsewhere.test/?code=secret",
            "https://api.test.elsewhere.test/?code=secret",
            "http://api.test/?code=secret",
            "https://api.test:444/?code=secret",
        ],
    )
    def test_every_other_host_is_refused_without_its_query(self, sandbox, url):
        with mount(sandbox), pytest.raises(NetworkRefusedError, match="No sandbox") as caught:
            requests.get(url, timeout=5)
        assert "secret" not in str(caught.value)
        assert not isinstance(caught.value, requests.exceptions.RequestException)

    def test_afterwards_everything_is_as_before(self, sandbox):
        before = requests.Session.get_adapter
        with pytest.raises(ZeroDivisionError), mount(sandbox):
            raise ZeroDivisionError
        assert requests.Session.get_adapter is before

    def test_several_sandboxes_are_mounted_at_once(self, sandbox):
        other = Sandbox(idp_url="https://other.test", realm="other")
        with mount(sandbox, other):
            for url, realm in [
                ("https://idp.test", "everifin_app"),
                ("https://other.test", "other"),
            ]:
                path = f"/auth/realms/{realm}/.well-known/openid-configuration"
                assert requests.get(url + path, timeout=5).json()["issuer"].startswith(url)

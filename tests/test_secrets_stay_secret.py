"""
A walk through everything that can happen, after which everything that people and programs can look
at is searched for the real secrets, as they went over the wire.
"""

import copy
import io
import json
import logging
import pickle
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pprint import pformat
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
import requests
from django.apps import apps
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.management import call_command
from django.dispatch import Signal
from django.test import Client
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter

from everifin_django import signals
from everifin_django.connections import everifin_for
from everifin_django.http import client as http_client
from everifin_django.models import BankToken, LoginFlow, PendingRevocation, SpentState
from everifin_django.testing.fake import redirect_target
from everifin_django.testing.sandbox import Sandbox
from tests.support.flows import flows

LOGIN = "/everifin/login/"
LOGOUT = "/everifin/logout/"
SECRET_FIELDS = (
    "access_token",
    "refresh_token",
    "id_token",
    "code",
    "code_verifier",
    "client_secret",
)

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Canaries:
    """The real values of everything that must not show, by what they are."""

    found: dict[str, set[str]] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        self.found.setdefault(kind, set()).add(text)

    def note_all(self, values: Any) -> None:
        """Look through decoded JSON or a form, at any depth."""
        if isinstance(values, dict):
            for name, value in values.items():
                if isinstance(value, str) and name in SECRET_FIELDS:
                    self.add(name, value)
                elif isinstance(value, str) and name in ("iban", "counterpartyIban"):
                    self.add("iban", value)
                else:
                    self.note_all(value)
        elif isinstance(values, list):
            for value in values:
                self.note_all(value)

    def in_(self, text: str, *, apart_from: str = "") -> set[str]:
        """
        Return the kinds that *text* shows, also cut off or escaped for a URL.

        A JWT is looked for by payload and signature: its header is no secret, all have the same.
        """
        return {
            kind
            for kind, secrets in self.found.items()
            if kind != apart_from
            for secret in secrets
            for part in (secret.split(".")[1:] if secret.count(".") == 2 else [secret])
            if part[:40] in text or quote(part[:40], safe="") in text
        }


@pytest.fixture
def canaries(everifin: Sandbox, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Canaries:
    """What goes over the wire, in both directions, while the test runs."""
    canaries = Canaries()
    [key] = settings.EVERIFIN_ENCRYPTION_KEYS
    canaries.add("encryption key", key.partition(":")[2])
    canaries.add("email", "canary-mailbox@person.example")
    everifin.add_user("canary", email="canary-mailbox@person.example")
    call = Sandbox.__call__

    def listen(self: Sandbox, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        sent = environ["wsgi.input"].read()
        environ["wsgi.input"] = io.BytesIO(sent)
        form = parse_qs(sent.decode())
        canaries.note_all({name: values[0] for name, values in form.items()})
        answer = list(call(self, environ, start_response))
        with suppress(ValueError):  # a page, or nothing
            canaries.note_all(json.loads(b"".join(answer)))
        return answer

    monkeypatch.setattr(Sandbox, "__call__", listen)
    return canaries


class SiteError(Exception):
    """A mistake of the site."""


def fail(*args: Any, **kwargs: Any) -> Any:
    raise SiteError


@dataclass
class Walk:
    """A visitor's way through the site, and what was shown on it."""

    client: Client
    everifin: Sandbox
    patch: pytest.MonkeyPatch
    responses: list[Any] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    records: list[logging.LogRecord] = field(default_factory=list)
    under_way: list[str] = field(default_factory=list)

    def look(self, path: str, *, expect: int) -> None:
        response = self.client.get(path)
        assert response.status_code == expect
        self.responses.append(response)

    def log_in(self, *, expect: int = 302, failing: tuple[object, str] | None = None) -> None:
        start = self.client.post(LOGIN)
        self.under_way.append(repr(flows()[-1]))
        back = self.everifin.authorize(redirect_target(start), "canary")
        with self.patch.context() as patch:
            if failing is not None:
                patch.setattr(failing[0], failing[1], fail)
            response = self.client.get(back)
        assert response.status_code == expect
        self.responses += [start, response]

    def fail_to_log_in(self) -> None:
        """At each step: the flow read, the state burned, code sent, answer read, believed."""
        self.log_in(expect=500, failing=(LoginFlow, "open"))
        self.log_in(expect=500, failing=(SpentState, "save_base"))
        self.log_in(expect=503, failing=(requests.Session, "send"))
        self.log_in(expect=500, failing=(BankToken, "sealed"))
        self.everifin.faults.add("token", lost="after", times=1)
        self.log_in(expect=503)
        self.everifin.id_token_hook = lambda headers, claims: (headers, claims | {"nonce": "x"})
        self.log_in(expect=400)
        self.everifin.id_token_hook = None

    def read(self) -> None:
        self.look("/accounts/", expect=200)
        self.look("/broken/", expect=500)
        self.look("/accounts/1/", expect=404)
        self.look("/payments/", expect=500)
        with self.patch.context() as patch:
            # The pauses between tries: every test here makes the whole walk.
            patch.setattr(http_client, "sleep", lambda _seconds: None)
            for fault, expected in (
                ({"body": "[]"}, 500),
                ({"body": "<html>"}, 503),
                ({"status": 500}, 503),
            ):
                self.everifin.faults.add("api", **fault)
                self.look("/accounts/", expect=expected)
                self.everifin.faults.clear()
            patch.setattr(requests.Session, "send", fail)
            self.look("/accounts/", expect=503)

    def refresh(self) -> None:
        self.expire()
        self.look("/accounts/", expect=200)
        BankToken.objects.update(refreshed_at=None)
        self.everifin.expire_access_tokens()
        self.look("/accounts/", expect=200)
        for fault in FAULTS:
            self.everifin.faults.add("token", **fault)
            self.expire()
            self.look("/accounts/", expect=503)
            self.everifin.faults.clear()
        for owner, name, expected in (
            (requests.Session, "send", 503),
            (BankToken, "sealed", 500),
        ):
            self.expire()
            with self.patch.context() as patch:
                patch.setattr(owner, name, fail)
                self.look("/accounts/", expect=expected)
        self.everifin.end_sessions()
        self.expire()
        self.look("/accounts/", expect=302)

    def expire(self) -> None:
        BankToken.objects.update(
            access_expires_at="2026-01-01T00:00Z",
            retry_after=None,
            lease_id=None,
            lease_until=None,
        )

    def log_out(self) -> None:
        self.everifin.faults.add("logout", status=500)
        self.responses.append(self.client.post(LOGOUT))
        self.everifin.faults.clear()


FAULTS: tuple[dict[str, Any], ...] = ({"status": 503}, {"html": True}, {"lost": "before"})


@pytest.fixture
def signals_heard() -> Iterator[list[str]]:
    heard: list[str] = []

    def hear(**kwargs: Any) -> None:
        heard.append(pformat(kwargs))

    ours = [one for one in vars(signals).values() if isinstance(one, Signal)]
    for signal in ours:
        signal.connect(hear, weak=False, dispatch_uid="hear")
    yield heard
    for signal in ours:
        signal.disconnect(dispatch_uid="hear")


@pytest.fixture
def walk(client: Client, everifin: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Walk:
    client.raise_request_exception = False
    return Walk(client, everifin, monkeypatch)


@pytest.fixture
def walked(
    walk: Walk,
    canaries: Canaries,
    signals_heard: list[str],
    settings: Any,
    caplog: pytest.LogCaptureFixture,
) -> Walk:
    """Log in, read, refresh, log out, with every failure there is; then log in once more."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    settings.LOGIN_REDIRECT_URL = "/plain/"
    with caplog.at_level(logging.DEBUG):
        walk.fail_to_log_in()
        walk.log_in()
        walk.read()
        walk.refresh()
        walk.log_out()
        walk.log_in()
    walk.signals, walk.records = signals_heard, list(caplog.records)
    return walk


def errors_of(walk: Walk) -> list[tuple[Any, Any]]:
    """The exceptions that were logged, each with the request it belongs to."""
    found = [
        (record.exc_info, getattr(record, "request", None))
        for record in walk.records
        if record.exc_info
    ]
    assert len(found) > 5
    return found


def frames_of(error: BaseException | None) -> Iterator[dict[str, Any]]:
    """The local variables of every frame, of the exception and all it came from."""
    while error is not None:
        traceback = error.__traceback__
        while traceback is not None:
            yield traceback.tb_frame.f_locals
            traceback = traceback.tb_next
        error = error.__cause__ or error.__context__


def test_the_walk_met_every_kind_of_secret(canaries, walked):
    expected = {*SECRET_FIELDS, "encryption key", "email", "iban"}
    assert canaries.found.keys() == expected
    assert all(len(canaries.found[kind]) > 1 for kind in ("access_token", "refresh_token", "code"))
    # The search finds what is there: the pages that were meant to show accounts do.
    pages = [response.content.decode() for response in walked.responses]
    assert set().union(*(canaries.in_(page) for page in pages)) == {"iban"}


def test_logs(canaries, walked):
    formatter = logging.Formatter()
    for record in walked.records:
        assert canaries.in_(formatter.format(record)) == set()
        assert canaries.in_(pformat(vars(record))) == set()


class KeptReports(AdminEmailHandler):
    """Django's handler, with its reports kept instead of mailed."""

    def __init__(self) -> None:
        super().__init__(include_html=True)
        self.reports: list[str] = []

    def send_mail(self, subject: Any, message: Any, *args: Any, **kwargs: Any) -> None:
        self.reports += [subject, message, kwargs["html_message"] or ""]


def test_mailed_error_reports(canaries, walked):
    handler = KeptReports()
    for record in walked.records:
        handler.emit(record)
    assert any("SiteError" in report for report in handler.reports)
    for report in handler.reports:
        assert canaries.in_(report) == set()


@pytest.mark.parametrize("is_debug", [True, False])
def test_error_reports(canaries, walked, settings, is_debug):
    settings.DEBUG = is_debug
    for exc_info, request in errors_of(walked):
        reporter = ExceptionReporter(request, *exc_info)
        report = reporter.get_traceback_html() + reporter.get_traceback_text()
        assert canaries.in_(report) == set()


def test_the_debug_page(canaries, walked, settings, client):
    settings.DEBUG = True
    client.force_login(BankToken.objects.get().user)
    response = client.get("/broken/")
    assert "ZeroDivisionError" in response.content.decode()
    assert canaries.in_(response.content.decode()) == set()


def test_local_variables_of_every_frame(canaries, walked):
    """What a reporter that captures locals would send, long values uncut."""
    for (_, error, _), _ in errors_of(walked):
        for variables in frames_of(error):
            for name, value in variables.items():
                assert canaries.in_(repr(value)) == set(), name
                assert canaries.in_(pformat(value)) == set(), name


def test_sessions_and_cache(canaries, walked, client):
    kept = [pformat(session.get_decoded()) for session in Session.objects.all()]
    kept.append(pformat(cache.get(client.session.cache_key)))
    assert "_auth_user_id" in kept[-1]
    for text in kept:
        assert canaries.in_(text) == set()


def test_while_a_login_is_under_way_the_session_holds_its_verifier_and_no_more(canaries, walked):
    assert set().union(*(canaries.in_(text) for text in walked.under_way)) == {"code_verifier"}


def test_every_row_of_the_database(canaries, walked, django_user_model):
    assert BankToken.objects.exists()
    for model in apps.get_models():
        for row in model._default_manager.values():
            # Everifin has verified it, so the new user has it.
            apart_from = "email" if model is django_user_model else ""
            assert canaries.in_(pformat(row), apart_from=apart_from) == set(), model


def test_a_dump(canaries, walked):
    written = io.StringIO()
    call_command("dumpdata", stdout=written)
    assert str(BankToken.objects.get().pk) in written.getvalue()
    assert canaries.in_(written.getvalue(), apart_from="email") == set()
    call_command("dumpdata", "everifin_django", stdout=(ours := io.StringIO()))
    assert canaries.in_(ours.getvalue()) == set()


def test_the_admin(canaries, walked, admin_client):
    connections, pending = (
        f"/admin/everifin_django/{name}/" for name in ("banktoken", "pendingrevocation")
    )
    row, [waiting, *_] = BankToken.objects.get(), PendingRevocation.objects.all()
    data = {"action": "disconnect", "_selected_action": [row.pk]}
    confirmed = {**data, "confirmed": "yes"}
    pages = [
        admin_client.get(connections),
        admin_client.get(f"{connections}{row.pk}/change/"),
        admin_client.get(f"{connections}{row.pk}/delete/"),
        admin_client.get(pending),
        admin_client.get(f"{pending}{waiting.pk}/change/"),
        admin_client.post(connections, data),
        admin_client.post(connections, confirmed, follow=True),
        admin_client.get(f"{connections}{row.pk}/history/"),
        admin_client.get("/admin/"),
    ]
    for page in pages:
        assert page.status_code == 200
        # Staff who may look at users see the email of the site's own user.
        assert canaries.in_(page.content.decode(), apart_from="email") == set()


def test_the_objects_in_hand(canaries, walked, rf):
    row = BankToken.objects.get()
    everifin = everifin_for(row.user)
    everifin.ensure_token()
    accounts = list(everifin.accounts())
    assert accounts
    opened = row.open_token("access")
    shown = [row, opened, everifin, everifin._source.access_token(), accounts, accounts[0].balances]
    for one in shown:
        texts = (repr(one), str(one), f"{one}", pformat(one), json.dumps(one, default=repr))
        assert canaries.in_("".join(texts)) == set()
    row = BankToken.objects.get()  # without its user, who has an e-mail address
    kept = pickle.dumps([row, copy.deepcopy(row), BankToken.objects.all()])
    assert canaries.in_(kept.decode("latin-1")) == set()
    for refused in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            refused(opened)
    for refused in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            refused(everifin)


def test_signals(canaries, walked):
    assert len(walked.signals) > 3
    for heard in walked.signals:
        assert canaries.in_(heard) == set()


def test_answers_and_cookies(canaries, walked, client):
    for response in walked.responses:
        assert canaries.in_(repr(response.headers) + response.cookies.output()) == set()
    assert canaries.in_(client.cookies.output()) == set()


def test_what_is_printed(canaries, walked, capfd):
    printed = "".join(capfd.readouterr())
    assert canaries.in_(printed) == set()

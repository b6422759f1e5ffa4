"""A51: a logout beside whatever else happens leaves no live grant that is not in the outbox."""

from __future__ import annotations

import itertools
import threading
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from everifin_django.connections import grants
from everifin_django.exceptions import EverifinError
from everifin_django.models import BankToken, PendingRevocation
from everifin_django.testing.fake import redirect_target
from tests.protocol.threads import together

pytestmark = pytest.mark.django_db(transaction=True)


def _is_ended(connection: BankToken) -> bool:
    row = BankToken.objects.get(pk=connection.pk)
    sealed = row.access_ciphertext + row.refresh_ciphertext + row.id_ciphertext
    return row.status == BankToken.Status.DISCONNECTED and not sealed


def _revoke_pending() -> None:
    PendingRevocation.objects.update(retry_after=None)
    call_command("everifin_revoke_pending", stdout=StringIO())


def _browsers(connection: BankToken, count: int) -> list[Client]:
    """The user logged in *count* times, each in a browser of their own."""
    browsers = [Client() for _ in range(count)]
    for browser in browsers:
        browser.force_login(connection.user)
    return browsers


def test_a51_eight_logouts_at_once_end_one_grant(connected, everifin):
    browsers = iter(_browsers(connected, 8))
    answers = together(8, lambda: next(browsers).post("/everifin/logout/").status_code)
    assert answers == [302] * 8
    assert _is_ended(connected)
    assert everifin.calls["logout"] == 1
    assert everifin.live_sessions() == 0
    assert not PendingRevocation.objects.exists()


def test_a51_eight_logouts_at_once_while_everifin_is_down_list_one_grant(connected, everifin):
    everifin.faults.add("logout", status=503)
    browsers = iter(_browsers(connected, 8))
    assert together(8, lambda: next(browsers).post("/everifin/logout/").status_code) == [302] * 8
    assert _is_ended(connected)
    assert everifin.live_sessions() == 1
    assert PendingRevocation.objects.count() == 1
    everifin.faults.clear()
    _revoke_pending()
    assert everifin.live_sessions() == 0
    assert not PendingRevocation.objects.exists()


@pytest.mark.parametrize("everifin_is_down", [False, True])
def test_a51_a_logout_while_everifin_answers_a_refresh(connected, everifin, everifin_is_down):
    user = connected.user
    BankToken.objects.filter(pk=connected.pk).update(
        issued_at=timezone.now() - timedelta(minutes=6), access_expires_at=timezone.now()
    )
    (browser,) = _browsers(connected, 1)
    if everifin_is_down:
        everifin.faults.add("logout", status=503)
    is_asked, is_logged_out = threading.Event(), threading.Event()

    def answer_after_the_logout(_seconds: float) -> None:
        is_asked.set()
        assert is_logged_out.wait(60)

    everifin.sleep = answer_after_the_logout
    everifin.faults.add("token.refresh_token", latency_seconds=1, times=1)
    turns = itertools.count()

    def refresh_or_log_out() -> object:
        if next(turns) == 0:
            return grants.get_access_token(user)
        assert is_asked.wait(60)
        try:
            return browser.post("/everifin/logout/").status_code
        finally:
            is_logged_out.set()

    results = together(2, refresh_or_log_out)
    assert 302 in results
    assert [result for result in results if isinstance(result, EverifinError)]
    assert _is_ended(connected)
    listed = PendingRevocation.objects.count()
    assert bool(listed) == everifin_is_down
    everifin.faults.clear()
    _revoke_pending()
    assert everifin.live_sessions() == 0
    assert not PendingRevocation.objects.exists()


@pytest.mark.parametrize("everifin_is_down", [False, True])
def test_a51_a_logout_while_everifin_exchanges_the_code_of_a_connection(
    client, django_user_model, everifin, everifin_is_down
):
    client.force_login(django_user_model.objects.create_user("holder"))
    back = everifin.authorize(redirect_target(client.post("/everifin/connect/")))
    if everifin_is_down:
        everifin.faults.add("logout", status=503)

    def log_out() -> int:
        another_tab = Client()
        another_tab.cookies = client.cookies
        return another_tab.post("/everifin/logout/").status_code

    answers: list[int] = []
    everifin.sleep = lambda _seconds: answers.extend(together(1, log_out))
    everifin.faults.add("token.authorization_code", latency_seconds=1, times=1)
    assert client.get(back).status_code == 400
    assert answers == [302]
    assert not BankToken.objects.exists()
    assert everifin.live_sessions() == PendingRevocation.objects.count() == int(everifin_is_down)
    everifin.faults.clear()
    _revoke_pending()
    assert everifin.live_sessions() == 0
    assert not PendingRevocation.objects.exists()

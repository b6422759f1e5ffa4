"""F1: however many want a token that ran out, Everifin is asked once and all are served."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.utils import timezone

from everifin_django.connections import grants, revocation
from everifin_django.models import BankToken, PendingRevocation
from everifin_django.testing.fake import redirect_target
from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox.server import serve
from tests.protocol.stampede import stampede
from tests.protocol.threads import together
from tests.support.grants import refresh_again

pytestmark = pytest.mark.django_db(transaction=True)

AHEAD_OF_TIME = timedelta(minutes=6)


def _run_out(connection: BankToken) -> None:
    BankToken.objects.filter(pk=connection.pk).update(
        issued_at=timezone.now() - AHEAD_OF_TIME, access_expires_at=timezone.now()
    )


def test_f1_threads_that_need_a_new_token_at_once(connected, everifin):
    _run_out(connected)
    user = connected.user
    access_tokens = together(16, lambda: grants.get_access_token(user))
    assert {access_token.version for access_token in access_tokens} == {2}
    assert len(access_tokens) == 16
    assert everifin.calls["token.refresh_token"] == 1
    assert everifin.double_spends == 0


def test_f2_threads_in_the_advisory_window_do_not_wait(connected, everifin):
    BankToken.objects.filter(pk=connected.pk).update(
        issued_at=timezone.now() - timedelta(seconds=270),
        access_expires_at=timezone.now() + timedelta(seconds=30),
    )
    user = connected.user
    all_others_are_served = threading.Event()
    everifin.sleep = all_others_are_served.wait
    everifin.faults.add("token.refresh_token", latency_seconds=9, times=1)
    versions: list[int] = []

    def get_token() -> None:
        versions.append(grants.get_access_token(user).version)
        if len(versions) == 7:
            all_others_are_served.set()

    assert together(8, get_token) == [None] * 8
    assert sorted(versions) == [1] * 7 + [2]
    assert versions[-1] == 2
    assert everifin.calls["token.refresh_token"] == 1


def test_f20_a_logout_in_the_same_moment_leaves_no_live_grant(connected, everifin):
    _run_out(connected)
    user = connected.user
    logout = threading.Lock()

    def refresh_or_log_out() -> object:
        if logout.acquire(blocking=False):
            return grants.disconnect(user)
        return grants.get_access_token(user)

    together(8, refresh_or_log_out)
    assert BankToken.objects.get().status == "disconnected"
    assert everifin.live_sessions() == 0


@pytest.mark.parametrize(
    "delete",
    [lambda row: row.user.delete(), lambda row: row.delete()],
    ids=["user", "connection"],
)
def test_f27_a_deletion_in_the_same_moment_leaves_no_live_grant(connected, everifin, delete):
    _run_out(connected)
    user, row = connected.user, BankToken.objects.select_related("user").get()
    deletion = threading.Lock()

    def refresh_or_delete() -> object:
        if deletion.acquire(blocking=False):
            return delete(row)
        return grants.get_access_token(user)

    results = together(8, refresh_or_delete)
    assert [result for result in results if isinstance(result, tuple)]
    assert not BankToken.objects.exists()
    PendingRevocation.objects.update(retry_after=None)
    revocation.revoke_due()
    assert everifin.live_sessions() == 0
    assert not PendingRevocation.objects.exists()


@pytest.mark.parametrize(("processes", "threads"), [(2, 16)])
def test_f1_processes_that_need_a_new_token_at_once(
    client, django_user_model, settings, processes, threads
):
    """32 simultaneous requests through a real site, Everifin over HTTP, strict rotation."""
    sandbox = Sandbox(rotation="strict", redirect_uris=("http://testserver/everifin/callback/",))
    with serve(sandbox) as server:
        at_everifin = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
        }
        for name, value in at_everifin.items():
            setattr(settings, name, value)
        user = django_user_model.objects.create_user("holder")
        client.force_login(user)
        start = client.post("/everifin/connect/")
        client.get(sandbox.authorize(redirect_target(start)))
        _run_out(BankToken.objects.get())

        answers = stampede(
            client.session.session_key,
            processes=processes,
            threads=threads,
            settings=at_everifin,
        )

        assert [answer["status"] for answer in answers] == [200] * (processes * threads)
        assert sandbox.calls["token.refresh_token"] == 1
        assert sandbox.double_spends == 0
        # The grant is alive: it can be refreshed again.
        assert refresh_again(user) == 3

"""The commands of an operator."""

import subprocess
import sys
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.utils import timezone

from everifin_django.models import BankToken, PendingRevocation


def run(name: str) -> str:
    written = StringIO()
    call_command(name, stdout=written)
    return written.getvalue()


class TestNewKey:
    def test_what_it_prints_is_a_key(self, settings):
        settings.EVERIFIN_ENCRYPTION_KEYS = [run("everifin_new_key").strip()]
        call_command("check", "--tag", "everifin_django")

    def test_no_two_are_alike(self):
        assert run("everifin_new_key") != run("everifin_new_key")

    def test_it_works_before_anything_is_set(self):
        """The first thing a new site runs: no setting of ours is there, and the checks fail."""
        script = (
            "from django.conf import settings; settings.configure(INSTALLED_APPS=["
            "'django.contrib.auth', 'django.contrib.contenttypes', 'everifin_django']);"
            "from django.core.management import execute_from_command_line as run;"
            "run(['manage.py', 'everifin_new_key'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout.count("\n") == 1
        assert ":" in done.stdout


@pytest.mark.django_db
class TestRevokePending:
    @pytest.fixture
    def waiting(self, everifin, everifin_connect, admin_client):
        everifin_connect(admin_client)
        everifin.faults.add("logout", status=503)
        admin_client.post("/everifin/disconnect/")
        return PendingRevocation.objects.get()

    def test_there_may_be_nothing_to_do(self):
        assert run("everifin_revoke_pending") == "0 ended, 0 left for a later try.\n"

    def test_what_cannot_be_ended_for_long_is_given_up_and_said(self, everifin, waiting, caplog):
        PendingRevocation.objects.update(created_at=timezone.now() - timedelta(days=31))
        assert run("everifin_revoke_pending") == "0 ended, 0 left for a later try.\n"
        assert not PendingRevocation.objects.exists()
        assert f"The grant of connection {waiting.connection_id} could not be ended" in caplog.text

    def test_it_waits_for_the_time_of_the_next_try(self, everifin, waiting):
        everifin.faults.clear()
        assert run("everifin_revoke_pending") == "0 ended, 1 left for a later try.\n"

    def test_it_ends_what_is_due(self, everifin, waiting):
        everifin.faults.clear()
        PendingRevocation.objects.update(retry_after=None)
        assert run("everifin_revoke_pending") == "1 ended, 0 left for a later try.\n"
        assert everifin.live_sessions("alice") == 0

    def test_it_leaves_what_cannot_be_ended(self, everifin, waiting):
        PendingRevocation.objects.update(retry_after=None)
        assert run("everifin_revoke_pending") == "0 ended, 1 left for a later try.\n"
        assert PendingRevocation.objects.get().attempts == 2

    def test_it_empties_what_ended_long_ago_and_the_user_may_connect_again(
        self, everifin, everifin_connect, admin_client
    ):
        everifin_connect(admin_client)
        everifin.end_sessions()
        long_ago = timezone.now() - timedelta(days=31)
        BankToken.objects.update(access_expires_at=long_ago, updated_at=long_ago)
        assert admin_client.get("/accounts/").status_code == 302
        assert run("everifin_revoke_pending") == "0 ended, 0 left for a later try.\n"
        BankToken.objects.update(updated_at=long_ago)
        assert run("everifin_revoke_pending") == (
            "1 ended, 0 left for a later try.\n"
            "Tokens of connections that ended long ago deleted: 1.\n"
        )
        assert BankToken.objects.get().refresh_ciphertext == ""
        everifin_connect(admin_client)
        assert admin_client.get("/accounts/").status_code == 200

    def test_live_connections_are_left_alone(self, everifin, everifin_connect, admin_client):
        everifin_connect(admin_client)
        run("everifin_revoke_pending")
        assert BankToken.objects.get().status == "active"
        assert everifin.live_sessions("alice") == 1

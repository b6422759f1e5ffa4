"""
``everifin_disconnect`` is ended by SIGKILL in the middle: no token is lost, and none moves twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from everifin_django.models import BankToken, PendingRevocation
from everifin_django.testing.factories import BankTokenFactory

CHECKOUT = Path(__file__).parents[2]
CONNECTIONS = 300
SECONDS = 120


@pytest.mark.exhaustive
@pytest.mark.django_db(transaction=True)
def test_a_host_that_is_killed_leaves_the_rest_to_another():
    tokens = {row.refresh_ciphertext for row in BankTokenFactory.create_batch(CONNECTIONS)}
    options = ("--no-input", "--no-revoke", "--batch-size=1")
    command = [sys.executable, "manage.py", "everifin_disconnect", "--all", *options]
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TESTS_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment) as host:
        assert moved_some(), "Nothing was moved."
        host.kill()
    assert BankToken.objects.exclude(refresh_ciphertext="").count() == CONNECTIONS
    assert PendingRevocation.objects.count() < CONNECTIONS
    call_command("everifin_disconnect", "--resume", "--no-revoke", verbosity=0)
    ciphertexts = list(PendingRevocation.objects.values_list("refresh_ciphertext", flat=True))
    assert len(ciphertexts) == CONNECTIONS
    assert set(ciphertexts) == tokens
    assert not BankToken.objects.exclude(refresh_ciphertext="").exists()


def moved_some() -> Any:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if PendingRevocation.objects.count() > 3:
            return True
        time.sleep(0.01)
    return False

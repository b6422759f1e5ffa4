"""Ask for new tokens in tests, as if time had passed."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from everifin_django.connections.refresh import ensure_fresh
from everifin_django.models import BankToken


def refresh_again(user: Any) -> int:
    """
    Let the access token of *user* run out, and return the version of the connection after the
    refresh: one more than before, if the grant is alive.
    """
    BankToken.objects.filter(user=user).update(access_expires_at=timezone.now())
    return ensure_fresh(user).token_version

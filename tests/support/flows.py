"""Logins under way, as the site has stored them."""

from __future__ import annotations

import json
from typing import Any

from everifin_django.encryption import active_key, seal
from everifin_django.models import LoginFlow
from everifin_django.secret import Secret


def flows() -> list[dict[str, Any]]:
    """What each flow holds, oldest first."""
    return [json.loads(row.open().reveal()) for row in LoginFlow.objects.order_by("started_at")]


def change_flows(**changes: Any) -> None:
    """Change what is stored of every flow."""
    for row in LoginFlow.objects.all():
        text = json.dumps({**json.loads(row.open().reveal()), **changes})
        row.flow_ciphertext = seal(Secret(text), row.encryption_context("flow"), active_key())
        row.save()

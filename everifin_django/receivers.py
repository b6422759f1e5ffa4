"""
What ends a grant although nobody pressed a button: a connection or user that is deleted, a user who
is deactivated, a logout.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.contrib.auth.signals import user_logged_out
from django.db.models.signals import post_save, pre_delete

from everifin_django.models import BankToken


def connect() -> None:
    pre_delete.connect(
        enqueue_refresh_token, sender=BankToken, dispatch_uid="everifin_django.pre_delete"
    )
    # For every sender: a user may be saved as a proxy or a child of the user model.
    post_save.connect(disconnect_inactive_user, dispatch_uid="everifin_django.post_save")
    user_logged_out.connect(disconnect_on_logout, dispatch_uid="everifin_django.user_logged_out")


def enqueue_refresh_token(sender: Any, instance: BankToken, using: str, **kwargs: Any) -> None:
    """
    The row goes, by whatever way: its live refresh token goes to the outbox in the same
    transaction.
    """
    from everifin_django.connections.revocation import (
        enqueue_on_delete,  # the HTTP client loads when it is needed
    )

    enqueue_on_delete(instance, using)


def disconnect_inactive_user(sender: Any, instance: Any, **kwargs: Any) -> None:
    """A user who may not log in any more has no access to their bank through this site either."""
    if not isinstance(instance, get_user_model()) or instance.is_active:
        return
    if not kwargs["created"] and not kwargs["raw"]:
        from everifin_django.connections.grants import disconnect  # as above

        disconnect(instance, "user_inactive")


def disconnect_on_logout(sender: Any, request: Any, user: Any, **kwargs: Any) -> None:
    """Who logged in with Everifin logs out of Everifin, whichever way the site logs them out."""
    session = getattr(request, "session", None)
    if user is None or session is None or BACKEND_SESSION_KEY not in session:
        return
    from everifin_django.backends import is_ours
    from everifin_django.connections import grants  # as above
    from everifin_django.web import backchannel_logout  # as above

    if is_ours(session[BACKEND_SESSION_KEY]):
        backchannel_logout.unregister(session.session_key)
        grants.disconnect(user, "logout")

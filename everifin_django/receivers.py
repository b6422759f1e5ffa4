"""
Signal receivers that end a grant: when a connection or user is deleted, when a user is deactivated,
and at logout.
"""

from __future__ import annotations

import logging
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model
from django.db.models.signals import class_prepared, post_save, pre_delete

from everifin_django.models import LOGIN_SESSION_KEY, BankToken, LoginSession

logger = logging.getLogger(__name__)


def connect() -> None:
    pre_delete.connect(
        enqueue_refresh_token, sender=BankToken, dispatch_uid="everifin_django.pre_delete"
    )
    pre_delete.connect(
        enqueue_grant_of_login,
        sender=LoginSession,
        dispatch_uid="everifin_django.pre_delete_login_session",
    )
    for model in apps.get_models():
        watch_users(model)
    class_prepared.connect(watch_users, dispatch_uid="everifin_django.class_prepared")
    user_logged_out.connect(note_logout, dispatch_uid="everifin_django.user_logged_out")


def watch_users(sender: type[Model], **kwargs: Any) -> None:
    """
    Listen to *sender* being saved if it is the user model, a proxy or a child of it: a user may be
    saved as any of these. No other model of the site is listened to.
    """
    if issubclass(sender, get_user_model()):
        uid = f"everifin_django.post_save.{sender._meta.label}"
        post_save.connect(disconnect_inactive_user, sender=sender, dispatch_uid=uid)


def enqueue_refresh_token(sender: Any, instance: BankToken, using: str, **kwargs: Any) -> None:
    """A connection is being deleted: its refresh token goes to the outbox in that transaction."""
    from everifin_django.connections.revocation import (
        enqueue_on_delete,  # the HTTP client loads when it is needed
    )

    enqueue_on_delete(instance, using)


def enqueue_grant_of_login(sender: Any, instance: LoginSession, using: str, **kwargs: Any) -> None:
    """As above, for the record of a login, which goes with its user."""
    from everifin_django.connections.revocation import enqueue_record_on_delete  # as above

    enqueue_record_on_delete(instance, using)


def disconnect_inactive_user(sender: Any, instance: Any, **kwargs: Any) -> None:
    """A user who may not log in any more has no access to their bank through this site either."""
    if not (instance.is_active or kwargs["created"] or kwargs["raw"]):
        from everifin_django.connections import grants, links, login_sessions  # as above

        try:
            grants.disconnect(instance, "user_inactive")
            if links.are_used():
                login_sessions.end_all(instance, "user_inactive")
        except ImproperlyConfigured as error:  # saving goes first; the token is not used any more
            logger.critical(
                "The connection of a user who was made inactive could not be ended here; "
                "everifin_housekeeping ends it. %s",
                error,
            )


def note_logout(sender: Any, request: Any, **kwargs: Any) -> None:
    """
    Note which login a logout ends, before Django flushes the session: the middleware ends it after
    the response. Nothing here can keep anybody from logging out.
    """
    try:
        request.everifin_logged_out = request.session.get(LOGIN_SESSION_KEY)
    except Exception as error:  # noqa: BLE001 - logging out goes first
        logger.critical("A logout could not be noted: %s.", type(error).__name__)

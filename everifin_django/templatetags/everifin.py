"""
Buttons, a banner and the state of the connection for a site's own pages: ``{% load everifin %}``.
"""

from __future__ import annotations

from typing import Any

from django import template
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from everifin_django.conf import conf
from everifin_django.connections.state import ConnectionState, state_of

register = template.Library()

LABELS = {
    "login": _("Log in with Everifin"),
    "connect": _("Connect Everifin"),
    "logout": pgettext_lazy("button", "Log out"),
    "disconnect": _("Disconnect Everifin"),
    "bank": _("Add a bank at Everifin"),
}


@register.inclusion_tag("everifin_django/button.html", takes_context=True)
def everifin_button(
    context: template.Context,
    action: str,
    label: str = "",
    next: str = "",  # noqa: A002 - a template writes next=
) -> dict[str, Any]:
    """
    Show the button for *action*: "login", "connect", "logout", "disconnect", or "bank", which leads
    to Everifin's web app.

    *next* is where the visitor comes back to, *label* replaces the words on the button. No query,
    but one for "disconnect" to a user who is logged in: without a connection nothing is shown.
    Errors: TemplateSyntaxError for another action.
    """
    if action not in LABELS:
        raise template.TemplateSyntaxError(
            f"everifin_button knows {', '.join(LABELS)}, not {action!r}."
        )
    return {
        "url": conf.web_app_url if action == "bank" else reverse(f"everifin_django:{action}"),
        "is_link": action == "bank",
        "is_shown": action != "disconnect" or _can_disconnect(context.get("request")),
        "label": label or LABELS[action],
        "next": next,
        "request": context.get("request"),
        "csrf_token": context.get("csrf_token"),
    }


@register.simple_tag(takes_context=True)
def everifin_health(context: template.Context) -> Any:
    """
    Return the state of the user's connection: ``.label`` is words for people, ``.value`` active,
    expiring, degraded, needs_reconnect or disconnected. One query; none for a visitor who is not
    logged in.
    """
    return _state(context).health


@register.simple_tag(takes_context=True)
def everifin_connection(context: template.Context) -> ConnectionState:
    """
    Return the user's connection: ``.health``, ``.reason`` (a sentence, empty while all is well),
    ``.ends_at``, ``.renewed_at``, ``.next_try_at`` and ``.scopes``. One query for a user who is
    logged in.
    """
    return _state(context)


@register.inclusion_tag("everifin_django/banner.html", takes_context=True)
def everifin_banner(
    context: template.Context,
    next: str = "",  # noqa: A002 - a template writes next=
) -> dict[str, Any]:
    """
    Show what is wrong with the user's connection and what to do about it; nothing while nothing is,
    and to a user who never connected. One query for a user who is logged in.

    *next* is where the user comes back to after connecting again; without it, this page.
    """
    request = context["request"]
    return {
        "connection": _state(context),
        "next": next or request.get_full_path(),
        "request": request,
        "csrf_token": context.get("csrf_token"),
    }


def _state(context: template.Context) -> ConnectionState:
    request = context["request"]
    if not request.user.is_authenticated:
        return state_of(None)
    state: ConnectionState = request.everifin.state()
    return state


def _can_disconnect(request: Any) -> bool:
    if request is None or not request.user.is_authenticated:
        return True
    state: ConnectionState = request.everifin.state()
    return state.can_be_ended

"""
Buttons and the state of the connection for a site's own pages: ``{% load everifin %}``.
"""

from __future__ import annotations

from typing import Any

from django import template
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from everifin_django.models import BankToken

register = template.Library()

LABELS = {
    "login": _("Log in with Everifin"),
    "connect": _("Connect Everifin"),
    "logout": pgettext_lazy("button", "Log out"),
    "disconnect": _("Disconnect Everifin"),
}


@register.inclusion_tag("everifin_django/button.html", takes_context=True)
def everifin_button(
    context: template.Context,
    action: str,
    label: str = "",
    next: str = "",  # noqa: A002 - a template writes next=
) -> dict[str, Any]:
    """
    Show the button for *action*: "login", "connect", "logout" or "disconnect".

    *next* is where the visitor comes back to, *label* replaces the words on the button. No query.
    Errors: TemplateSyntaxError for another action.
    """
    if action not in LABELS:
        raise template.TemplateSyntaxError(
            f"everifin_button knows {', '.join(LABELS)}, not {action!r}."
        )
    return {
        "url": reverse(f"everifin_django:{action}"),
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
    request = context["request"]
    if not request.user.is_authenticated:
        return BankToken.Health.DISCONNECTED
    return request.everifin.health()

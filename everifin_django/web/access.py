"""
Ask the site whether a request may use a user's bank: EVERIFIN_ACCESS_CHECK.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponseBase
from django.utils.module_loading import import_string

from everifin_django.conf import conf
from everifin_django.exceptions import AccessDeniedError

BankAction: TypeAlias = Literal["connect", "disconnect", "read", "pay"]


def refusal(request: HttpRequest, action: BankAction) -> Any:
    """
    Return the response that the site gives instead of *action*, None if it may go on. The site is
    asked once for each action in a request, and not about anonymous visitors.

    Errors: ImproperlyConfigured if the site's function returns anything else.
    """
    if conf.access_check is None or not request.user.is_authenticated:
        return None
    answers = _answers(request)
    key = (action, request.user.pk)
    if key not in answers:
        answers[key] = _ask(request, action)
    return answers[key]


def require(request: HttpRequest, action: BankAction) -> None:
    """Errors: AccessDeniedError, with the site's response; as ``refusal``."""
    response = refusal(request, action)
    if response is not None:
        raise AccessDeniedError(response)


def allow(request: HttpRequest, action: BankAction) -> None:
    """Do not ask about *action* in this request."""
    _answers(request)[action, request.user.pk] = None


def _answers(request: Any) -> dict[tuple[str, Any], Any]:
    answers: dict[tuple[str, Any], Any] = request.__dict__.setdefault("_everifin_access", {})
    return answers


def _ask(request: HttpRequest, action: BankAction) -> Any:
    response = import_string(str(conf.access_check))(request, action)
    if response is not None and not isinstance(response, HttpResponseBase):
        raise ImproperlyConfigured(
            "The function that EVERIFIN_ACCESS_CHECK names has to return None or a response."
        )
    return response

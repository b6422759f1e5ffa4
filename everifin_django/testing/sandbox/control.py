"""
The control page: look at the sandbox and use its switches over HTTP.

An invention for demos and for tests in several processes. It asks for no password, so the sandbox
listens to this machine only unless told otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse

from everifin_django.testing.sandbox.faults import CALL_NAMES
from everifin_django.testing.sandbox.pages import page, redirect
from everifin_django.testing.sandbox.state import State

HOME = "/_sandbox/"
FORM: dict[str, Callable[[str], Any]] = {
    "status": int,
    "times": int,
    "latency_seconds": float,
    "html": bool,
    "truncate": bool,
}
"""How to read the fields of a form, which sends only strings."""


def home(state: State, request: HttpRequest) -> HttpResponse:
    context = {
        "title": "Everifin sandbox",
        "state": state,
        "calls": sorted(state.calls.items()),
        "faults": list(state.faults),
        "names": sorted(CALL_NAMES),
        "live_sessions": state.live_sessions(),
    }
    return page("control.html", context)


def summary(state: State, request: HttpRequest) -> HttpResponse:
    return _summary(state)


def faults(state: State, request: HttpRequest) -> HttpResponse:
    """Add a fault: a JSON body with the fields of `Fault`, or the form of the page."""
    try:
        state.faults.add(**_fields(request))
    except (TypeError, ValueError) as error:
        return JsonResponse({"error": str(error)}, status=400)
    return _done(state, request)


def clear_faults(state: State, request: HttpRequest) -> HttpResponse:
    state.faults.clear()
    return _done(state, request)


def expire(state: State, request: HttpRequest) -> HttpResponse:
    state.expire_access_tokens()
    return _done(state, request)


def end_sessions(state: State, request: HttpRequest) -> HttpResponse:
    return _for_user(state, request, state.end_sessions)


def withdraw_consent(state: State, request: HttpRequest) -> HttpResponse:
    def switch(username: str | None) -> None:
        state.withdraw_consent(username, keep_session=bool(_fields(request).get("keep_session")))

    return _for_user(state, request, switch)


def clock_skew(state: State, request: HttpRequest) -> HttpResponse:
    """Set the sandbox's clock ahead by *seconds*, or behind if they are negative."""
    try:
        state.clock_skew_seconds = _finite(_fields(request).get("seconds", 0))
    except (TypeError, ValueError) as error:
        return JsonResponse({"error": str(error)}, status=400)
    return _done(state, request)


def rotate_key(state: State, request: HttpRequest) -> HttpResponse:
    state.rotate_signing_key(drop_old=bool(_fields(request).get("drop_old")))
    return _done(state, request)


def _for_user(state: State, request: HttpRequest, switch: Any) -> HttpResponse:
    try:
        switch(_fields(request).get("username") or None)
    except (TypeError, ValueError) as error:
        return JsonResponse({"error": str(error)}, status=400)
    return _done(state, request)


def _fields(request: HttpRequest) -> dict[str, Any]:
    """Return what was sent, as JSON or by a form. Errors: TypeError, ValueError."""
    if request.content_type != "application/json":
        given = {name: str(value) for name, value in request.POST.items() if value}
        return {name: FORM.get(name, str)(text) for name, text in given.items()}
    fields = json.loads(request.body or b"{}")
    if not isinstance(fields, dict):
        raise TypeError("The body must be a JSON object.")
    return fields


def _finite(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError("seconds is a number.")
    return seconds


def _done(state: State, request: HttpRequest) -> HttpResponse:
    if "text/html" in request.headers.get("Accept", ""):
        return redirect(HOME, status=303)
    return _summary(state)


def _summary(state: State) -> JsonResponse:
    facts = {
        "calls": dict(state.calls),
        "double_spends": state.double_spends,
        "live_sessions": state.live_sessions(),
        "faults": len(state.faults),
        "clock_skew_seconds": state.clock_skew_seconds,
    }
    return JsonResponse(facts, headers={"Cache-Control": "no-store"})

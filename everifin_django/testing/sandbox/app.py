"""How the sandbox is called: as a WSGI application, or directly from a test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.urls import Resolver404
from oauthlib.oauth2.rfc6749.errors import FatalClientError, OAuth2Error

from everifin_django.testing.sandbox import borders, idp, oddities
from everifin_django.testing.sandbox.api import not_found
from everifin_django.testing.sandbox.faults import CALL_NAMES, AnswerLost, Fault
from everifin_django.testing.sandbox.grants import Endpoints
from everifin_django.testing.sandbox.pages import message
from everifin_django.testing.sandbox.state import RecordedRefresh, RecordedRequest, State
from everifin_django.testing.sandbox.store import digest
from everifin_django.testing.sandbox.urls import resolve

TIMEOUT = "everifin_sandbox.timeout_seconds"
"""The WSGI environ's entry for how long the caller waits, where that is known."""

EDGE_PAGE = """<!DOCTYPE html>
<html lang="en"><head><title>400 Bad Request</title></head>
<body><center><h1>400 Bad Request</h1></center><hr><center>edge proxy</center></body></html>
"""


class Sandbox(State):
    """
    A fake Everifin: identity provider and bank API in one WSGI application.

    The module of each half says what is documented, inferred or invented. Options and
    switches are those of `State`.
    """

    # The control page shows the sandbox; Django's templates would call it, as it can be called.
    do_not_call_in_templates = True

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        response = self._answer(WSGIRequest(environ), environ.get(TIMEOUT))
        status = f"{response.status_code} {response.reason_phrase}"
        if response.status_code != 204:  # RFC 9110, section 8.6, forbids it there
            response["Content-Length"] = str(len(response.content))
        cookies = [("Set-Cookie", one.OutputString()) for one in response.cookies.values()]
        start_response(status, [*response.items(), *cookies])
        if isinstance(response, _Truncated):
            return _half(response.content)
        return [response.content]

    def authorize(self, url: str, username: str = "alice", *, consent: bool = True) -> str:
        """
        Return the URL that a visitor is sent back to after opening *url*, logging in and deciding.

        A short cut for tests: the same steps as on the pages, without a password and without HTTP.

        Errors: ValueError if Everifin would show an error page instead of sending the visitor back.
        """
        query = QueryDict(urlsplit(url).query)
        self.count(("auth",))
        try:
            pending = idp.begin(self, query)
        except FatalClientError as error:
            raise ValueError(f"The sandbox refused the request: {error.description}") from None
        except OAuth2Error as error:
            return idp.refusal(self, query, error)
        pending = idp.log_in(self, pending, self.user(username))
        return idp.decide(self, pending, consent=consent)

    def grant(self, username: str = "alice", *, scope: str = "openid ais") -> dict[str, Any]:
        """
        Return what the token endpoint answers after this user's first login: tokens that work.

        A short cut past `authorize` and the code exchange: no request, and nothing is counted.

        Errors: ValueError if there is no such user or scope.
        """
        try:
            return Endpoints(self).grant(self.user(username), scope)
        except OAuth2Error as error:
            raise ValueError(f"The sandbox refused the grant: {error.description}") from None

    def _answer(self, request: HttpRequest, timeout: float | None) -> HttpResponse:
        try:
            view, name, methods, arguments = resolve(request.path_info)
        except Resolver404:
            return _unknown(request)
        if (refused := borders.refusal(self, request, name)) is not None:
            return refused
        if name == "control":
            return view(self, request) if request.method in methods else _unknown(request)
        names = _call_names(name, request)
        self.note(names, _record(request))
        if request.method not in methods:
            return _wrong_method(name, request, methods)
        if arguments.pop("realm", self.realm) != self.realm:
            return JsonResponse({"error": "Realm does not exist"}, status=404)
        fault = self.faults.take(names)

        odd = tuple(fault.odd) if fault else ()

        def work() -> HttpResponse:
            oddities.ask(odd, request)
            response: HttpResponse = oddities.disguise(odd, view(self, request, **arguments))
            if self.on_refresh is not None and "token.refresh_token" in names:
                self.on_refresh(_record_refresh(self, request, response, fault))
            return response

        return work() if fault is None else self._misbehave(fault, work, timeout)

    def _misbehave(
        self, fault: Fault, work: Callable[[], HttpResponse], timeout: float | None
    ) -> HttpResponse:
        # No longer than the caller waits, where that is known.
        patience = math.inf if timeout is None else timeout
        gives_up = fault.latency_seconds > patience
        if fault.latency_seconds:
            self.sleep(min(fault.latency_seconds, patience))
        if fault.lost == "before":
            raise AnswerLost(timed_out=gives_up)
        is_done = fault.lost == "after" or not fault.replaces_answer
        response = work() if is_done else None
        if gives_up or (fault.lost == "after" and not fault.replaces_answer):
            raise AnswerLost(timed_out=True)
        if response is None or fault.replaces_answer:
            response = _replacement(fault)
        return _Truncated.of(response) if fault.truncate else response


def _call_names(name: str, request: HttpRequest) -> tuple[str, ...]:
    """Return the names of this call, the most specific one first."""
    specific = f"{name}.{request.POST.get('grant_type', '')}"
    if specific in CALL_NAMES:
        return specific, name
    if name.startswith("api."):
        return name, "api"
    return (name,)


def _record(request: HttpRequest) -> RecordedRequest:
    return RecordedRequest(
        method=request.method or "",
        path=request.path_info,
        headers=request.headers,
        query=request.GET.dict(),
        form=request.POST.dict(),
    )


def _record_refresh(
    state: State, request: HttpRequest, response: HttpResponse, fault: Fault | None
) -> RecordedRefresh:
    shown = request.POST.get("refresh_token", "")
    given = json.loads(response.content).get("refresh_token")
    known = state.store.refresh_token(shown)
    return RecordedRefresh(
        shown=digest(shown),
        given=digest(given) if given else None,
        session=known.session.id if known else None,
        fault=fault,
    )


def _unknown(request: HttpRequest) -> HttpResponse:
    if request.path_info.startswith(("/v1/", "/api/")):
        return not_found(request.path_info).response()
    text = "There is nothing here. The sandbox begins at /_sandbox/."
    return message("Page not found", text, status=404)


def _wrong_method(name: str, request: HttpRequest, methods: tuple[str, ...]) -> HttpResponse:
    if name.startswith("api."):
        return not_found(request.path_info).response()
    error = {"error": "HTTP 405 Method Not Allowed"}
    return JsonResponse(error, status=405, headers={"Allow": ", ".join(methods)})


def _replacement(fault: Fault) -> HttpResponse:
    status = fault.status or (400 if fault.html else 200)
    body: str | bytes
    if fault.html:
        body, content_type = EDGE_PAGE, "text/html; charset=UTF-8"
    elif isinstance(fault.body, Mapping):
        body, content_type = json.dumps(fault.body), "application/json"
    elif fault.body is not None:
        body, content_type = fault.body, "text/plain; charset=utf-8"
    elif fault.where.startswith("api"):
        error = {"code": "INTERNAL_SERVER_ERROR", "title": "The sandbox was told to fail here."}
        body = json.dumps({"meta": {"status": "ERROR"}, "errors": [error]})
        content_type = "application/json"
    else:
        body, content_type = json.dumps({"error": "unknown_error"}), "application/json"
    response = HttpResponse(body, status=status, content_type=fault.content_type or content_type)
    if fault.retry_after is not None:
        response["Retry-After"] = str(fault.retry_after)
    return response


class _Truncated(HttpResponse):
    """A response of which only half arrives."""

    @classmethod
    def of(cls, response: HttpResponse) -> _Truncated:
        return cls(response.content, status=response.status_code, headers=response.headers)


def _half(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    raise AnswerLost

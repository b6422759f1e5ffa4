"""A proxy before a real Keycloak, where calls meet the faults of the sandbox, and are counted."""

from __future__ import annotations

import json
from typing import Any

import jwt
import requests
from django.http import HttpRequest, HttpResponse

from everifin_django.testing.sandbox import RecordedRefresh
from everifin_django.testing.sandbox.faults import Fault
from everifin_django.testing.sandbox.store import digest
from tests.providers.keycloak.bank import Bank

CALL_SECONDS = 30
HEADERS = ("Content-Type", "Authorization", "Accept")


class FaultProxy(Bank):
    """
    Answers for the identity provider what the Keycloak behind it answers, and for the bank itself.

    Keycloak is called by its own address, and so says the same issuer through every fault_proxy.
    """

    def _answer(self, request: HttpRequest, timeout: float | None) -> HttpResponse:
        if not request.path_info.startswith("/auth/"):
            return super()._answer(request, timeout)
        is_refresh = request.POST.get("grant_type") == "refresh_token"
        fault = self.faults.take(("token.refresh_token", "token") if is_refresh else ())

        def work() -> HttpResponse:
            response = self._forwarded(request)
            if is_refresh and self.on_refresh is not None:
                self.on_refresh(record(request.POST["refresh_token"], response, fault))
            return response

        return work() if fault is None else self._misbehave(fault, work, timeout)

    def _forwarded(self, request: HttpRequest) -> HttpResponse:
        sent = {name: request.headers[name] for name in HEADERS if name in request.headers}
        answer = requests.request(
            request.method or "",
            f"{self.realm_there.keycloak.url}{request.get_full_path()}",
            headers=sent,
            data=request.POST.urlencode() or None,
            timeout=CALL_SECONDS,
            allow_redirects=False,
        )
        content_type = answer.headers.get("Content-Type")
        return HttpResponse(answer.content, content_type, status=answer.status_code)


def record(shown: str, response: HttpResponse, fault: Fault | None) -> RecordedRefresh:
    given = said(response).get("refresh_token")
    # Nobody here is asked to believe it: the session's name is what the findings are kept by.
    claims = jwt.decode(shown, options={"verify_signature": False})
    return RecordedRefresh(
        shown=digest(shown),
        given=digest(given) if given else None,
        session=claims["sid"],
        fault=fault,
    )


def said(response: HttpResponse) -> dict[str, Any]:
    try:
        decoded = json.loads(response.content)
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}

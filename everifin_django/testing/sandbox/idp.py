"""
The identity provider: authorization, tokens, logout, keys and user info.

Paths, form fields and the 302 with code and state are documented by Everifin; the shape of errors,
logout, revocation, discovery, certs and userinfo follow Keycloak, on which Everifin's is built. The
pages, the demo users and the registration are inventions of this sandbox.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from django.http import HttpRequest, HttpResponse, QueryDict
from django.utils.http import http_date
from oauthlib.common import Request, add_params_to_uri
from oauthlib.oauth2.rfc6749 import errors

from everifin_django.testing.sandbox.grants import DEFAULT_SCOPES, SCOPES, Endpoints, is_registered
from everifin_django.testing.sandbox.pages import message, page, redirect
from everifin_django.testing.sandbox.state import State
from everifin_django.testing.sandbox.store import Pending, User

LOGIN_SECONDS = 1800
COOKIE = "everifin_sandbox_logins"
MAX_SESSIONS = 10
USERNAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,29}")
SCOPE_TEXTS = {
    "openid": "know who you are",
    "profile": "see your name",
    "email": "see your e-mail address",
    "offline_access": "keep access while you are away",
    "ais": "read your bank accounts, balances and transactions",
    "pis": "prepare payments from your bank accounts",
}


class AlreadyDecidedError(Exception):
    """Two decisions were made for one authorization request; only the first one counts."""


# From the authorization request to the redirect back


def begin(state: State, query: QueryDict) -> Pending:
    """
    Store a valid authorization request until the visitor has logged in and decided.

    Errors: oauthlib's FatalClientError if the visitor must not be sent back, else its OAuth2Error.
    """
    # Encoded anew, so that Everifin's own sample with a doubled ampersand is understood.
    clean = query.urlencode()
    Endpoints(state).authorization.validate_authorization_request(_uri(state, clean))
    return state.store.add_pending(clean, state.now())


def log_in(state: State, pending: Pending, user: User) -> Pending:
    state.store.name_user(pending.id, user.sub)
    return replace(pending, sub=user.sub)


def decide(state: State, pending: Pending, *, consent: bool) -> str:
    """
    Return the URL that takes the visitor back to the site, with an authorization code or a refusal.
    """
    if not state.store.finish_pending(pending.id):
        raise AlreadyDecidedError
    if not consent:
        return refusal(state, QueryDict(pending.query), errors.AccessDeniedError())
    session_id = str(uuid.uuid4())
    headers, _, _ = Endpoints(state).authorization.create_authorization_response(
        _uri(state, pending.query),
        credentials={"user": state.store.user(sub=pending.sub), "session_id": session_id},
    )
    extra = [("session_state", session_id), ("iss", state.issuer)]
    return str(add_params_to_uri(headers["Location"], extra))


def refusal(state: State, query: QueryDict, error: errors.OAuth2Error) -> str:
    parameters = {**dict(error.twotuples), "iss": state.issuer}
    if "state" in query:
        parameters["state"] = query["state"]
    return str(add_params_to_uri(query["redirect_uri"], parameters.items()))


def _uri(state: State, query: str) -> str:
    return f"{state.issuer}/protocol/openid-connect/auth?{query}"


# Pages


def authorize(state: State, request: HttpRequest) -> HttpResponse:
    try:
        pending = begin(state, request.GET)
    except errors.FatalClientError as error:
        return message("We are sorry …", f"{_described(error)} Nobody was logged in.", status=400)
    except errors.OAuth2Error as error:
        return redirect(refusal(state, request.GET, error))
    return _login_page(state, pending)


def _described(error: errors.FatalClientError) -> str:
    """With the redirect URI that was sent: most often one letter of it is wrong."""
    if not isinstance(error, errors.MismatchingRedirectURIError):
        return str(error.description)
    return (
        f"{error.description} It was {error.redirect_uri}. Start the sandbox with "
        f"--redirect-uri {error.redirect_uri} if it is yours."
    )


def login(state: State, request: HttpRequest) -> HttpResponse:
    pending = _pending(state, request)
    if pending is None:
        return _too_old()
    username = request.POST.get("username", "").strip().lower()
    user = state.check_password(username, request.POST.get("password", ""))
    if user is None:
        return _login_page(state, pending, login_error="Invalid username or password.")
    log_in(state, pending, user)
    return _consent_page(state, pending, user)


def register(state: State, request: HttpRequest) -> HttpResponse:
    pending = _pending(state, request)
    if pending is None:
        return _too_old()
    username = request.POST.get("username", "").strip().lower()
    password = request.POST.get("password", "")
    problem = _registration_problem(state, username, password)
    if problem:
        return _login_page(state, pending, registration_error=problem)
    state.add_user(username, password=password, name=request.POST.get("name", "").strip())
    user = state.user(username)
    log_in(state, pending, user)
    return _consent_page(state, pending, user)


def consent(state: State, request: HttpRequest) -> HttpResponse:
    pending = _pending(state, request)
    if pending is None or pending.sub is None:
        return _too_old()
    try:
        url = decide(state, pending, consent="accept" in request.POST)
    except AlreadyDecidedError:
        return _too_old()
    response = redirect(url)
    if began := QueryDict(urlsplit(url).query).get("session_state"):
        _remember_browser(request, response, began)
    return response


def _remember_browser(request: HttpRequest, response: HttpResponse, session_id: str) -> None:
    """For the logout page alone: each login asks for the password."""
    known = [*_sessions_of_browser(request), session_id][-MAX_SESSIONS:]
    response.set_cookie(COOKIE, ".".join(known), path="/auth/", httponly=True, samesite="Lax")


def _sessions_of_browser(request: HttpRequest) -> list[str]:
    return [one for one in request.COOKIES.get(COOKIE, "").split(".") if one]


def _registration_problem(state: State, username: str, password: str) -> str:
    if not USERNAME.fullmatch(username):
        return "Choose a username of 2 to 30 letters a to z, digits, dots or dashes."
    if not password:
        return "Choose a password; any will do."
    if state.store.user(username=username):
        return "This username is taken."
    return ""


def _pending(state: State, request: HttpRequest) -> Pending | None:
    return state.store.pending(request.POST.get("pending", ""), since=state.now() - LOGIN_SECONDS)


def _too_old() -> HttpResponse:
    text = "This page is too old. Go back to the site you came from and start again."
    return message("Please start again", text, status=400)


def _login_page(state: State, pending: Pending, **errors: str) -> HttpResponse:
    context = {"title": "Log in", "realm": state.realm, "demo_logins": state.demo_logins}
    return page("login.html", {**context, "pending": pending, **errors})


def _consent_page(state: State, pending: Pending, user: User) -> HttpResponse:
    scopes = QueryDict(pending.query).get("scope", "").split() or DEFAULT_SCOPES
    texts = {scope: SCOPE_TEXTS[scope] for scope in scopes}
    context = {"title": "Grant access", "realm": state.realm, "client_id": state.client_id}
    return page("consent.html", {**context, "pending": pending, "user": user, "scopes": texts})


# Endpoints for programs


def token(state: State, request: HttpRequest) -> HttpResponse:
    if not request.POST.get("grant_type"):
        return _error(400, "invalid_request", "Missing form parameter: grant_type")
    _, body, status = Endpoints(state).token.create_token_response(*_call(request))
    return _encoded(body, status=status)


def logout(state: State, request: HttpRequest) -> HttpResponse:
    if request.method == "POST" and "refresh_token" in request.POST:
        return _logout_by_refresh_token(state, request)
    return _logout_by_browser(state, request)


def revoke(state: State, request: HttpRequest) -> HttpResponse:
    _, body, status = Endpoints(state).revocation.create_revocation_response(*_call(request))
    return _encoded(body, status=status) if body else HttpResponse(status=status)


def userinfo(state: State, request: HttpRequest) -> HttpResponse:
    try:
        _, body, _ = Endpoints(state).userinfo.create_userinfo_response(*_call(request))
    except errors.OAuth2Error as error:
        challenge = f'Bearer realm="{state.realm}", error="{error.error}"'
        response = _error(error.status_code, error.error, error.description)
        response["WWW-Authenticate"] = challenge
        return response
    return _encoded(body)


def certs(state: State, request: HttpRequest) -> HttpResponse:
    return _json({"keys": [key.jwk() for key in state.signer.published_keys()]})


def discovery(state: State, request: HttpRequest) -> HttpResponse:
    """Source: OpenID Connect Discovery 1.0, section 3; the values are those of a Keycloak."""
    base = f"{state.issuer}/protocol/openid-connect"
    client_authentication = ["client_secret_basic", "client_secret_post"]
    response = _json(
        {
            "issuer": state.issuer,
            "authorization_endpoint": f"{base}/auth",
            "token_endpoint": f"{base}/token",
            "userinfo_endpoint": f"{base}/userinfo",
            "end_session_endpoint": f"{base}/logout",
            "revocation_endpoint": f"{base}/revoke",
            "jwks_uri": f"{base}/certs",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": sorted(SCOPES),
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": client_authentication,
            "revocation_endpoint_auth_methods_supported": client_authentication,
            "authorization_response_iss_parameter_supported": True,
        }
    )
    response["Date"] = http_date(state.now())
    return response


def _logout_by_refresh_token(state: State, request: HttpRequest) -> HttpResponse:
    """Answer 204, as Keycloak does; that Everifin's logout is this one is inferred."""
    try:
        Endpoints(state).rules.authenticate_client(Request(*_call(request)))
    except errors.OAuth2Error as error:
        return _error(error.status_code, error.error, error.description)
    known = state.store.refresh_token(request.POST["refresh_token"])
    if known is None:
        return _error(400, "invalid_grant", "Invalid refresh token")
    state.store.end_session(known.session.id)
    return HttpResponse(status=204, headers={"Cache-Control": "no-store"})


def _logout_by_browser(state: State, request: HttpRequest) -> HttpResponse:
    """
    End the session that the hint names, or those of the browser where there is no hint.

    Source: OpenID Connect RP-Initiated Logout 1.0, sections 2 and 3.
    """
    query = request.POST if request.method == "POST" else request.GET
    target = query.get("post_logout_redirect_uri")
    if target is not None and not is_registered(state, target):
        return message("We are sorry …", "Invalid redirect uri.", status=400)
    # The hint may be expired: it only names the session.
    hint = state.signer.verify(query.get("id_token_hint", ""))
    if hint is not None:
        state.store.end_session(str(hint.get("sid")))
    elif "id_token_hint" not in query:
        for session_id in _sessions_of_browser(request):
            state.store.end_session(session_id)
    if target is None:
        return message("You are logged out", "You can close this page.")
    extra = [("state", query["state"])] if "state" in query else []
    return redirect(str(add_params_to_uri(target, extra)))


def _call(request: HttpRequest) -> tuple[str, str, str, dict[str, str]]:
    """Return the arguments oauthlib's endpoints take, read by Django and encoded anew."""
    uri = f"https://sandbox.invalid{request.path}"
    if request.GET:
        uri = f"{uri}?{request.GET.urlencode()}"
    return uri, request.method or "GET", request.POST.urlencode(), dict(request.headers)


def _json(data: Mapping[str, Any], *, status: int = 200) -> HttpResponse:
    return _encoded(json.dumps(data), status=status)


def _encoded(body: str, *, status: int = 200) -> HttpResponse:
    headers = {"Cache-Control": "no-store", "Content-Type": "application/json"}
    return HttpResponse(body, status=status, headers=headers)


def _error(status: int, error: str, description: str) -> HttpResponse:
    return _json({"error": error, "error_description": description}, status=status)

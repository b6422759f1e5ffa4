"""
Speak to Everifin's identity provider as its client: exchange a code, refresh a grant, end it.

Each call goes out over a connection of its own: on a kept-alive one it would be unknown whether a
request that met a closing connection was carried out, and a rotated refresh token is worth more
than a handshake.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote_plus, urlencode

from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.exceptions import (
    AnswerError,
    AnswerLostError,
    APIError,
    RefusedError,
    UnavailableError,
)
from everifin_django.http.client import MAYBE_DONE_STATUSES, Answer, send
from everifin_django.secret import Secret, hides_frames

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024
MAX_LIFETIME_SECONDS = 24 * 3600
UNSTATED_LIFETIME_SECONDS = 60
MAX_SECONDS = 10 * 365 * 24 * 3600
MAX_URL_LENGTH = 8000
"""Common servers take no longer one: nginx reads 8 KiB for the whole first line."""

ERROR = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
VSCHARS = re.compile(r"[\x20-\x7e]+")

Form = Mapping[str, "str | Secret"]


@dataclass(frozen=True, slots=True)
class TokenSet:
    """
    What the token endpoint gave. *access* is None if the access token cannot be used: a refresh is
    due at once.

    Units: *issued_at* is the time before the request was sent, from which both expiries count;
    *refresh_expires_at* is None where Everifin names no end.
    """

    access: Secret | None
    refresh: Secret | None
    id: Secret | None
    scope: str
    sid: str
    issued_at: datetime
    expires_at: datetime
    refresh_expires_at: datetime | None


@hides_frames
def exchange_code(code: Secret, *, redirect_uri: str, code_verifier: Secret | None) -> TokenSet:
    """
    Return the tokens for an authorization code.

    One request. Errors: RefusedError with the OAuth error as ``code``; UnavailableError;
    AnswerError.
    Source: RFC 6749, section 4.1.3; RFC 7636, section 4.5.
    """
    form: dict[str, str | Secret] = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
    }
    if code_verifier is not None:
        form["code_verifier"] = code_verifier
    return _ask_for_tokens(form)


@hides_frames
def refresh(refresh_token: Secret, *, deadline_seconds: float | None = None) -> TokenSet:
    """
    Return the tokens that follow *refresh_token*, which may be spent from now on.

    One request, without ``scope``: what the user granted stays granted.
    Errors: RefusedError with the OAuth error as ``code``; UnreachableError if nothing was sent;
    AnswerLostError if the token may have been spent; UnavailableError for everything that is no
    answer in OAuth's own words.
    Source: RFC 6749, section 6.
    """
    form: Form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return _ask_for_tokens(form, deadline_seconds=deadline_seconds)


@hides_frames
def end_session(refresh_token: Secret, *, deadline_seconds: float | None = None) -> bool:
    """
    End the session at Everifin that *refresh_token* belongs to; with EVERIFIN_REVOCATION_URL,
    revoke the token there. Return False if Everifin says that the token is dead already, which
    RFC 7009 does not let it say.

    One request. An access token stays good for the rest of its life.
    Errors: RefusedError (the client is refused); UnavailableError.
    Source: Everifin documents that logout ends the refresh token; the form fields are Keycloak's
    (inferred). RFC 7009, section 2, for the revocation.
    """
    if conf.revocation_url:
        form: Form = {"token": refresh_token, "token_type_hint": "refresh_token"}
        answer = _post(conf.revocation_url, form, deadline_seconds=deadline_seconds)
        is_ended = answer.status == 200 and _is_no_page(answer)
    else:
        form = {"refresh_token": refresh_token}
        answer = _post(conf.endpoint("logout"), form, deadline_seconds=deadline_seconds)
        # Also 200 is no logout: it may be the page of a proxy that never asked Everifin.
        is_ended = answer.status == 204 or _refusal(answer) == "invalid_grant"
    if not is_ended:
        raise _failure(answer)
    return answer.status in {200, 204}


def _is_no_page(answer: Answer) -> bool:
    """Is the body empty or JSON? A proxy that never asked Everifin answers with a page."""
    try:
        return not answer.body.strip() or answer.json() is not None
    except AnswerError:
        return False


@hides_frames
def logout_page(id_token: Secret | None, state: str) -> str:
    """
    Return the URL that ends a browser's session at Everifin and leads it back to
    EVERIFIN_POST_LOGOUT_REDIRECT_URI with *state*, which some servers insist on.

    The ID token says whose session it is, so Everifin need not ask the user; one that makes the URL
    too long is left out. No request.
    Source: OpenID Connect RP-Initiated Logout 1.0, section 2; Keycloak before version 18 takes
    ``redirect_uri``. That Everifin's logout is Keycloak's is inferred.
    """
    back = conf.post_logout_redirect_uri or ""
    if conf.legacy_logout:
        return _logout_url({"redirect_uri": back})
    query = {"client_id": conf.client_id, "post_logout_redirect_uri": back, "state": state}
    with_hint = query | ({"id_token_hint": id_token.reveal()} if id_token is not None else {})
    url = _logout_url(with_hint)
    return url if len(url) <= MAX_URL_LENGTH else _logout_url(query)


def _logout_url(query: Mapping[str, str]) -> str:
    return f"{conf.endpoint('logout')}?{urlencode(query)}"


def _ask_for_tokens(form: Form, *, deadline_seconds: float | None = None) -> TokenSet:
    """
    Errors: RefusedError; UnavailableError; AnswerLostError where tokens may have been in what
    cannot be read.
    """
    issued_at = timezone.now()
    answer = _post(conf.endpoint("token"), form, deadline_seconds=deadline_seconds)
    if not 200 <= answer.status < 300:
        raise _failure(answer)
    try:
        return read_tokens(_decoded(answer), issued_at)
    except ValueError as error:
        raise answer.error(AnswerLostError, "without usable tokens") from error


def _post(url: str, form: Form, *, deadline_seconds: float | None) -> Answer:
    headers: dict[str, str | Secret] = {
        "Accept": "application/json",
        "Connection": "close",
    }
    if conf.client_auth == "client_secret_basic":
        headers["Authorization"] = _basic_authorization()
    else:
        form = {**form, "client_id": conf.client_id, "client_secret": Secret(conf.client_secret)}
    return send(
        "POST",
        url,
        headers=headers,
        form=form,
        max_bytes=MAX_BYTES,
        deadline_seconds=deadline_seconds,
        fresh_connection=True,
    )


def _basic_authorization() -> Secret:
    """Source: RFC 6749, section 2.3.1: both halves are form-encoded first."""
    pair = Secret(f"{quote_plus(conf.client_id)}:{quote_plus(conf.client_secret)}")
    return Secret("Basic " + base64.b64encode(pair.reveal().encode()).decode())


def _refusal(answer: Answer) -> str | None:
    """
    The OAuth error of an answer (RFC 6749, section 5.2), or None: an error page of a proxy is not
    one.
    """
    if answer.status not in {400, 401}:
        return None
    try:
        decoded = answer.json()
    except AnswerError:
        return None
    error = decoded.get("error") if isinstance(decoded, dict) else None
    return error if isinstance(error, str) and ERROR.fullmatch(error) else None


def _failure(answer: Answer) -> APIError:
    code = _refusal(answer)
    if code is not None:
        return answer.error(RefusedError, f"and refused: {code}", code=code)
    is_maybe_done = answer.status < 300 or answer.status in MAYBE_DONE_STATUSES
    kind = AnswerLostError if is_maybe_done else UnavailableError
    return answer.error(kind, "without an OAuth error")


def _decoded(answer: Answer) -> Any:
    """
    What a token answer holds. Of one that is no strict JSON only the refresh token is believed:
    it replaces one that is spent. Errors: ValueError if there is none.
    """
    try:
        return answer.json()
    except AnswerError:
        pass
    try:
        decoded, _ = json.JSONDecoder().raw_decode(answer.body.decode("utf-8-sig", "replace"))
        return {"refresh_token": decoded["refresh_token"]}
    except Exception as error:
        raise ValueError("no refresh token can be read") from error


@hides_frames
def read_tokens(decoded: Any, issued_at: datetime) -> TokenSet:
    """
    Return what the token endpoint's decoded answer holds. A refresh token that came is kept,
    whatever is odd beside it.

    Errors: ValueError if there is neither an access token nor a refresh token.
    Source: RFC 6749, section 5.1.
    """
    if not isinstance(decoded, dict):
        raise ValueError("not an object")  # noqa: TRY004 - whatever was answered, it is one error
    access, refresh_token = _access_token(decoded), _refresh_token(decoded)
    if access is None and refresh_token is None:
        raise ValueError("no token")
    seconds = _seconds(decoded.get("expires_in"))
    if access is None:
        seconds = 0
    elif seconds is None:
        seconds = UNSTATED_LIFETIME_SECONDS
    # Only a hint: nothing is refused for it. Keycloak writes 0 for a token without an end.
    refresh_seconds = _seconds(decoded.get("refresh_expires_in"))
    return TokenSet(
        access=access,
        refresh=refresh_token,
        id=_id_token(decoded),
        scope=_text(decoded.get("scope"), 1024),
        sid=_text(decoded.get("session_state"), 255),
        issued_at=issued_at,
        expires_at=issued_at + timedelta(seconds=min(seconds, MAX_LIFETIME_SECONDS)),
        refresh_expires_at=issued_at + timedelta(seconds=refresh_seconds)
        if refresh_seconds
        else None,
    )


def _access_token(decoded: Mapping[str, Any]) -> Secret | None:
    """
    None if it is of another type than bearer, or no header can carry it. An answer without a type
    is believed: only Bearer goes without saying more. Source: RFC 6750, section 2.1.
    """
    is_bearer = str(decoded.get("token_type") or "bearer").lower() == "bearer"
    value = decoded.get("access_token")
    if not isinstance(value, str) or not VSCHARS.fullmatch(value) or " " in value:
        return None
    return Secret(value) if is_bearer else None


def _refresh_token(decoded: Mapping[str, Any]) -> Secret | None:
    """
    None if none came, or what came is no text that can be sent back. RFC 6749, appendix A.17, has
    visible ASCII and spaces; a form carries more.
    """
    value = decoded.get("refresh_token")
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _is_utf8(value):
        logger.error("Everifin's refresh token is not a text. Its user has to connect again soon.")
        return None
    return Secret(value)


def _is_utf8(text: str) -> bool:
    """Half a character, as JSON can escape it, cannot be encoded."""
    return text.isascii() or text == text.encode(errors="replace").decode()


def _id_token(decoded: Mapping[str, Any]) -> Secret | None:
    """None for what cannot be a token of any kind; whether it is one is found when it is read."""
    value = decoded.get("id_token")
    is_one = isinstance(value, str) and VSCHARS.fullmatch(value) and value.strip()
    return Secret(str(value)) if is_one else None


def _seconds(value: Any) -> int | None:
    """
    A lifetime, at most MAX_SECONDS and not below 0; None if it cannot be one.

    Source: RFC 6749, section 5.1, has a number; a string of digits is met as well.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    return int(min(max(value, 0), MAX_SECONDS))


def _text(value: Any, longest: int) -> str:
    return value if isinstance(value, str) and len(value) <= longest and value.isprintable() else ""

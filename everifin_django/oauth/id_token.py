"""
Whom a token is about: the ID token verified, UserInfo believed only about the same user.

Identity is issuer and subject, byte for byte. An email is information.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import time
from typing import Any

import jwt

from everifin_django.conf import conf
from everifin_django.exceptions import (
    AnswerError,
    InsufficientAuthenticationError,
    LoginError,
    NotAuthorizedError,
    UnavailableError,
)
from everifin_django.http.client import bearer, send
from everifin_django.http.strict_json import strict_json
from everifin_django.oauth.jwks import ALGORITHMS, signing_keys
from everifin_django.secret import Secret, hides_frames

AT_HASH_DIGESTS = {
    **{f"{kind}256": hashlib.sha256 for kind in ("RS", "PS", "ES")},
    **{f"{kind}384": hashlib.sha384 for kind in ("RS", "PS", "ES")},
    **{f"{kind}512": hashlib.sha512 for kind in ("RS", "PS", "ES")},
    # Of Ed25519, the only curve that is accepted: its own hash. So do Keycloak and the OpenID
    # conformance suite.
    "EdDSA": hashlib.sha512,
}
MAX_TOKEN_BYTES = 32 * 1024
MAX_BYTES = 64 * 1024
MAX_TIMESTAMP = 253_402_300_799  # the end of the year 9999, and of datetime
MAX_NAME_LENGTH = 255
MAX_EMAIL_LENGTH = 254
SKEW_SECONDS = 60
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
LOGOUT_TOKEN_SECONDS = 120
BASE64URL = re.compile(r"[A-Za-z0-9_-]*")

Claims = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Identity:
    """One person at one identity provider."""

    issuer: str
    subject: str

    @property
    def digest(self) -> str:
        """
        64 hex digits that are equal only for equal issuer and subject.

        Databases compare strings by collation, and MySQL's fold case and trailing spaces; hex
        digits compare alike everywhere.
        """
        parts = (part.encode() for part in (self.issuer, self.subject))
        return hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).hexdigest()


def identity_of(claims: Claims) -> Identity:
    return Identity(claims["iss"], claims["sub"])


def sid_of(claims: Claims) -> str:
    """Return the session at Everifin that *claims* name, empty for none or an unusable one."""
    sid: Any = claims.get("sid")
    return str(sid) if _is_name(sid) else ""


def email_of(claims: Claims) -> str:
    """Return the email that *claims* name, empty for none or one that no database should hold."""
    email: Any = claims.get("email")
    is_one = (
        isinstance(email, str)
        and "@" in email
        and len(email) <= MAX_EMAIL_LENGTH
        and email.isprintable()
        and " " not in email
    )
    return str(email) if is_one else ""


@hides_frames
def verify_id_token(
    token: Secret,
    *,
    nonce: str,
    access_token: Secret | None,
    started_at: datetime,
    asked: Mapping[str, str] | None = None,
) -> Claims:
    """
    Return the claims of an ID token that answers the login begun at *started_at* with *nonce*.
    *asked* has the parameters of its request that say how the user was to sign in.

    No request while the signing keys are cached. Without an *access_token* its hash is not checked.
    Errors: LoginError with the reason, InsufficientAuthenticationError for another sign-in than was
    *asked* for; UnavailableError if the keys cannot be had. Source: OpenID Connect Core 1.0,
    section 3.1.3.7.
    """
    header, claims = _verified(token, require=("exp", "iat", "iss", "sub", "aud"))
    if header.get("typ", "JWT") != "JWT" or claims.get("typ", "ID") != "ID":
        raise LoginError("id_token_type")
    if conf.id_token_alg not in (None, header["alg"]):
        raise LoginError("id_token_alg")
    if not _is_for_us(claims):
        raise LoginError("id_token_audience")
    if claims.get("azp", conf.client_id) != conf.client_id:
        raise LoginError("id_token_azp")
    if claims["iat"] < started_at.timestamp() - SKEW_SECONDS:
        raise LoginError("id_token_too_old")
    given = claims.get("nonce")
    if not isinstance(given, str) or Secret(given) != Secret(nonce):
        raise LoginError("id_token_nonce")
    if access_token is not None and "at_hash" in claims:
        _check_at_hash(header["alg"], claims["at_hash"], access_token)
    _check_authentication(claims, asked or {}, started_at)
    signing_keys().id_token_algorithm = header["alg"]
    return claims


def _check_authentication(claims: Claims, asked: Mapping[str, str], started_at: datetime) -> None:
    """
    Hold the sign-in at Everifin to what was asked for: the browser carries the request there, and
    its user may have changed it.

    Measured from the beginning of the login, so that nobody is refused for being slow at Everifin.
    Source: OpenID Connect Core 1.0, sections 2 and 3.1.2.1; ``auth_time`` has to be there only if
    ``max_age`` was sent.
    """
    is_anew = "login" in asked.get("prompt", "").split()
    if "max_age" in asked or (is_anew and "auth_time" in claims):
        seconds = 0 if is_anew else int(asked["max_age"])
        earliest = started_at.timestamp() - seconds - SKEW_SECONDS
        if not earliest <= claims.get("auth_time", 0) <= time() + SKEW_SECONDS:
            raise InsufficientAuthenticationError("id_token_auth_time")
    accepted = asked.get("acr_values", "").split()
    if accepted and claims.get("acr") not in accepted:
        raise InsufficientAuthenticationError("id_token_acr")


def _is_for_us(claims: Claims) -> bool:
    # We would have to trust any other audience with this token, and we know of
    # none.
    return claims.get("aud") in (conf.client_id, [conf.client_id])


def _check_at_hash(algorithm: str, at_hash: Any, access_token: Secret) -> None:
    """
    Errors: LoginError, also for an algorithm whose hash is not settled. Source: OpenID Connect Core
    1.0, section 3.1.3.6.
    """
    digest = AT_HASH_DIGESTS.get(algorithm)
    if digest is None:
        raise LoginError("id_token_at_hash")
    left_half = digest(access_token.reveal().encode()).digest()[: digest().digest_size // 2]
    if at_hash != base64.urlsafe_b64encode(left_half).rstrip(b"=").decode():
        raise LoginError("id_token_at_hash")


@hides_frames
def subject_of_access_token(token: Secret) -> Identity | None:
    """
    Return whose access token it is, if it is a JWT that verifies; else None. No request while the
    keys are cached.

    Errors: UnavailableError if the keys cannot be had.
    """
    try:
        _, claims = _verified(token, require=("exp", "iat", "iss", "sub"))
    except LoginError:
        return None
    is_ours = (
        claims.get("typ", "Bearer") == "Bearer"
        and claims.get("azp", conf.client_id) == conf.client_id
    )
    return identity_of(claims) if is_ours else None


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """
    Everifin says that a session has ended: *sid* names it, empty for all sessions of *identity*.
    *token_id* has to be accepted once only. *revokes_offline_access* says that grants with
    ``offline_access`` have ended, too.
    """

    identity: Identity | None
    sid: str
    token_id: str
    revokes_offline_access: bool = False


@hides_frames
def verify_logout_token(token: Secret) -> LogoutToken:
    """
    Return what a logout token says.

    No request while the signing keys are cached. ``exp`` and the header's ``typ`` may be missing,
    as some providers leave them out. Its algorithm is EVERIFIN_ID_TOKEN_ALG, or else that of the
    last ID token that this process verified.

    Errors: LoginError with the reason; UnavailableError if the keys cannot be had. Source: OpenID
    Connect Back-Channel Logout 1.0, sections 2.4 and 2.6.
    """
    header, claims = _verified(token, require=("iat", "iss", "aud", "jti", "events"))
    if (conf.id_token_alg or signing_keys().id_token_algorithm) not in (None, header["alg"]):
        raise LoginError("logout_token_alg")
    if not _is_logout(header, claims):
        raise LoginError("logout_token_type")
    if not _is_for_us(claims):
        raise LoginError("logout_token_audience")
    if claims["iat"] < time() - LOGOUT_TOKEN_SECONDS:
        raise LoginError("logout_token_too_old")
    names = [claims[name] for name in ("jti", "sid") if name in claims]
    if not all(map(_is_name, names)) or not {"sid", "sub"} & claims.keys():
        raise LoginError("logout_token_incomplete")
    identity = identity_of(claims) if "sub" in claims else None
    revokes = _revokes_offline_access(claims["events"])
    return LogoutToken(identity, claims.get("sid", ""), claims["jti"], revokes)


def _revokes_offline_access(events: Claims) -> bool:
    """Keycloak says so beside the logout event, or in it."""
    name = "revoke_offline_access"
    return any(value is True for value in (events.get(name), events[LOGOUT_EVENT].get(name)))


def _is_logout(header: Claims, claims: Claims) -> bool:
    """
    Told from an ID token by its event, and by the nonce that every ID token of ours has. A type, in
    the header or, as Keycloak's, in the payload, is optional but must not be another one.
    """
    events = claims["events"]
    return (
        str(header.get("typ", "JWT")).lower() in {"jwt", "logout+jwt"}
        and claims.get("typ", "Logout") == "Logout"
        and isinstance(events, dict)
        and isinstance(events.get(LOGOUT_EVENT), dict)
        and "nonce" not in claims
    )


@hides_frames
def fetch_userinfo(access_token: Secret) -> Claims:
    """
    Return what UserInfo says; ``sub`` is a valid subject. One request.

    Errors: NotAuthorizedError if the token is refused; AnswerError for anything but a JSON object
    about a subject; UnavailableError. Source: OpenID Connect Core 1.0, section 5.3.
    """
    answer = send(
        "GET",
        conf.endpoint("userinfo"),
        headers={"Authorization": bearer(access_token), "Accept": "application/json"},
        max_bytes=MAX_BYTES,
    )
    if answer.status == 429 or answer.status >= 500:
        raise answer.error(UnavailableError, "for now")
    if answer.status in {401, 403}:
        raise answer.error(NotAuthorizedError, "and refused the access token")
    claims: Any = answer.json() if answer.status == 200 else None
    if not isinstance(claims, dict) or not _is_name(claims.get("sub")):
        raise answer.error(AnswerError, "without claims about a subject")
    return claims


@hides_frames
def is_about(token: Secret, identity: Identity) -> bool:
    """
    Is the refreshed ID token about *identity* and for this client?

    No request and no signature check: it came over TLS from the token endpoint itself, and nothing
    may come between a refresh and storing its tokens. Source: OpenID Connect Core 1.0, sections
    3.1.3.7 (6) and 12.2.
    """
    try:
        _, claims = _strict_parts(token)
    except LoginError:
        return False
    return (
        claims.get("iss") == identity.issuer
        and claims.get("sub") == identity.subject
        and _is_for_us(claims)
        and claims.get("azp", conf.client_id) == conf.client_id
    )


def _verified(token: Secret, *, require: Sequence[str]) -> tuple[Claims, Claims]:
    """
    Header and claims of a token that Everifin signed. Checked are signature, issuer, times and
    subject.

    Errors: LoginError with the reason; UnavailableError if the keys cannot be had.
    """
    header = _acceptable_header(token)
    key = signing_keys().fitting(header)
    if key is None:
        raise LoginError("token_key")
    try:
        claims = jwt.decode(
            token.reveal(),
            key.public,
            algorithms=[header["alg"]],
            issuer=conf.issuer,
            leeway=timedelta(seconds=SKEW_SECONDS),
            # The audience differs between the kinds of token, so the caller checks it.
            options={"require": list(require), "verify_aud": False},
        )
    except Exception as error:
        reason = type(error).__name__.removesuffix("Error").lower()
        raise LoginError(f"token_{reason}") from error
    times = [claims[name] for name in ("exp", "iat", "nbf", "auth_time") if name in claims]
    if not all(map(_is_timestamp, times)):
        raise LoginError("token_times")
    if "sub" in claims and not _is_name(claims["sub"]):
        raise LoginError("token_subject")
    return header, claims


def _acceptable_header(token: Secret) -> Claims:
    """
    The header of a well-formed token. Errors: LoginError for an unknown kind of algorithm, or an
    extension that would have to be known.
    """
    header, _ = _strict_parts(token)
    algorithm = header.get("alg")
    is_known = isinstance(algorithm, str) and algorithm in ALGORITHMS
    is_extended = "crit" in header or header.get("b64", True) is not True
    if not is_known or is_extended:
        raise LoginError("token_header")
    return header


def _strict_parts(token: Secret) -> tuple[Claims, Claims]:
    """
    Header and claims as they are written, neither verified: JSON without a repeated key.

    Errors: LoginError for anything but a compact JWS of two JSON objects.
    """
    if len(token.reveal()) > MAX_TOKEN_BYTES:
        raise LoginError("token_too_long")
    parts = token.reveal().split(".")
    if len(parts) != 3 or not all(BASE64URL.fullmatch(part) for part in parts):
        raise LoginError("token_malformed")
    try:
        header, claims = (
            strict_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
            for part in parts[:2]
        )
    except ValueError as error:
        raise LoginError("token_malformed") from error
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise LoginError("token_malformed")
    return header, claims


def _is_timestamp(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MAX_TIMESTAMP


def _is_name(value: Any) -> bool:
    """
    Is it a subject, or the id of a session or token? Source for a subject: OpenID Connect Core 1.0,
    section 2. Without control characters, for the database.
    """
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_NAME_LENGTH
        and value.isascii()
        and value.isprintable()
    )

"""
Who a token says the user is: the ID token verified, its keys cached, UserInfo believed only about
the same user.

Identity is issuer and subject, byte for byte. An e-mail address is information.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from threading import Lock
from time import monotonic, time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from everifin_django.conf import conf
from everifin_django.exceptions import (
    AnswerError,
    APIError,
    LoginError,
    NotAuthorizedError,
    UnavailableError,
)
from everifin_django.http.client import Answer, bearer, send
from everifin_django.http.strict_json import strict_json
from everifin_django.secret import Secret

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
EC_ALGORITHMS: Mapping[str, str] = {
    "secp256r1": "ES256",
    "secp384r1": "ES384",
    "secp521r1": "ES512",
}
ALGORITHMS = RSA_ALGORITHMS | {*EC_ALGORITHMS.values(), "EdDSA"}
AT_HASH_DIGESTS = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}
MAX_TOKEN_BYTES = 32 * 1024
MAX_BYTES = 64 * 1024
MAX_MOMENT = 253_402_300_799  # the end of the year 9999, and of datetime
SKEW_SECONDS = 60
KEYS_LIFESPAN_SECONDS = 3600
KEYS_COOLDOWN_SECONDS = 10
MIN_RSA_BITS = 2048
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

        Databases compare text by collation, and MySQL's fold case and trailing spaces; hex digits
        compare alike everywhere.
        """
        parts = (part.encode() for part in (self.issuer, self.subject))
        return hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).hexdigest()


def identity_of(claims: Claims) -> Identity:
    return Identity(claims["iss"], claims["sub"])


def verify_id_token(
    token: Secret, *, nonce: str, access_token: Secret, started_at: datetime
) -> Claims:
    """
    Return the claims of an ID token that answers the login begun at *started_at* with *nonce*.

    No request while the signing keys are cached. Errors: LoginError with the reason;
    UnavailableError if the keys cannot be had. Source: OpenID Connect Core 1.0, section 3.1.3.7.
    """
    verified = _verified(token, require=("exp", "iat", "iss", "sub", "aud"))
    if not isinstance(verified, str):
        header, claims = verified
        complaint = (
            _complaint_about_recipient(header, claims)
            or _complaint_about_flow(claims, Secret(nonce), started_at)
            or _complaint_about_at_hash(header, claims, access_token)
        )
        if complaint is None:
            return claims
        # What is raised below shall not show a person's data in its frame.
        del header, claims
        verified = complaint
    raise LoginError(verified)


def _complaint_about_recipient(header: Claims, claims: Claims) -> str | None:
    if header.get("typ", "JWT") != "JWT" or claims.get("typ", "ID") != "ID":
        return "id_token_type"
    if not _is_for_us(claims):
        return "id_token_audience"
    return None if claims.get("azp", conf.client_id) == conf.client_id else "id_token_azp"


def _is_for_us(claims: Claims) -> bool:
    # An audience beside us would be somebody we would have to trust with this token; we know of
    # none.
    return claims.get("aud") in (conf.client_id, [conf.client_id])


def _complaint_about_flow(claims: Claims, nonce: Secret, started_at: datetime) -> str | None:
    if claims["iat"] < started_at.timestamp() - SKEW_SECONDS:
        return "id_token_too_old"
    given = claims.get("nonce")
    return None if isinstance(given, str) and Secret(given) == nonce else "id_token_nonce"


def _complaint_about_at_hash(header: Claims, claims: Claims, access_token: Secret) -> str | None:
    if "at_hash" not in claims:
        return None
    expected = _at_hash(header["alg"], access_token)
    is_right = expected is not None and claims["at_hash"] == expected
    return None if is_right else "id_token_at_hash"


def subject_of_access_token(token: Secret) -> Identity | None:
    """
    Return whose access token it is, if it is a JWT that verifies; else None. No request while the
    keys are cached.

    Errors: UnavailableError if the keys cannot be had.
    """
    verified = _verified(token, require=("exp", "iat", "iss", "sub"))
    if isinstance(verified, str):
        return None
    _, claims = verified
    is_ours = (
        claims.get("typ", "Bearer") == "Bearer"
        and claims.get("azp", conf.client_id) == conf.client_id
    )
    return identity_of(claims) if is_ours else None


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """
    Everifin's word that a session has ended: *sid* names it, empty for all sessions of
    *identity*. *token_id* is to be taken once.
    """

    identity: Identity | None
    sid: str
    token_id: str


def verify_logout_token(token: Secret) -> LogoutToken:
    """
    Return what a logout token says.

    No request while the signing keys are cached. Errors: LoginError with the reason;
    UnavailableError if the keys cannot be had. Source: OpenID Connect Back-Channel Logout 1.0,
    section 2.6.
    """
    verified = _verified(token, require=("exp", "iat", "iss", "aud", "jti", "events"))
    if not isinstance(verified, str):
        header, claims = verified
        complaint = _complaint_about_logout(header, claims)
        if complaint is None:
            identity = identity_of(claims) if "sub" in claims else None
            return LogoutToken(identity, claims.get("sid", ""), claims["jti"])
        # As in verify_id_token.
        del header, claims
        verified = complaint
    raise LoginError(verified)


def _complaint_about_logout(header: Claims, claims: Claims) -> str | None:
    # Keycloak marks the kind of a token in its payload, others in the header. With neither, an ID
    # token could be taken for it.
    is_marked = str(header.get("typ")).lower() == "logout+jwt" or claims.get("typ") == "Logout"
    events = claims["events"]
    is_logout = isinstance(events, dict) and isinstance(events.get(LOGOUT_EVENT), dict)
    if not is_marked or not is_logout or "nonce" in claims:
        return "logout_token_type"
    if not _is_for_us(claims):
        return "logout_token_audience"
    if claims["iat"] < time() - LOGOUT_TOKEN_SECONDS:
        return "logout_token_too_old"
    names = [claims[name] for name in ("jti", "sid") if name in claims]
    is_whole = all(_is_name(name) for name in names) and ("sid" in claims or "sub" in claims)
    return None if is_whole else "logout_token_incomplete"


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
    claims = _userinfo_claims(answer)
    if claims is None:
        raise answer.error(AnswerError, "without claims about a subject")
    return claims


def _userinfo_claims(answer: Answer) -> Claims | None:
    claims = answer.json() if answer.status == 200 else None
    return claims if isinstance(claims, dict) and _is_name(claims.get("sub")) else None


def is_about(token: Secret, identity: Identity) -> bool:
    """
    Is the refreshed ID token about *identity* and for this client?

    No request and no signature check: it came over TLS from the token endpoint itself, and nothing
    may come between a refresh and storing its tokens. Source: OpenID Connect Core 1.0, sections
    3.1.3.7 (6) and 12.2.
    """
    try:
        _, claims = _strict_parts(token.reveal())
    except ValueError:
        return False
    return (
        claims.get("iss") == identity.issuer
        and claims.get("sub") == identity.subject
        and _is_for_us(claims)
        and claims.get("azp", conf.client_id) == conf.client_id
    )


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A published key that may sign tokens, and the algorithms it may do so with."""

    key_id: object
    algorithms: frozenset[str]
    public: PublicKey


class SigningKeys:
    """
    The issuer's keys: cached for an hour, fetched anew for an unknown key id at most once in 10 s,
    kept through an outage.

    Threads that need a fetch wait for the one that does it, and take what it got.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._fetching = Lock()
        self._fetches = 0
        self._keys: Sequence[SigningKey] = ()
        self._stale_at = self._next_search_at = 0.0

    def fitting(self, header: Mapping[str, Any]) -> SigningKey | None:
        """
        Return the one key that may have signed a token with *header*; None if none or several fit.

        Errors: UnavailableError if there are no keys at all.
        """
        fetches = self._fetches
        key = _fitting(self._keys, header)
        if key is not None and monotonic() < self._stale_at:
            return key
        with self._fetching:
            is_due = monotonic() >= min(self._stale_at, self._next_search_at)
            if is_due and self._fetches == fetches:
                self._fetch()
        if not self._keys:
            raise UnavailableError("Everifin's signing keys cannot be had for now.", method="GET")
        return _fitting(self._keys, header)

    def _fetch(self) -> None:
        keys = _published_keys(self._uri)
        now = monotonic()
        # The very first keys start no pause: a key that is newer than they are is found at once.
        if self._keys or not keys:
            self._next_search_at = now + KEYS_COOLDOWN_SECONDS
        # An outage at Everifin is no reason to refuse a good token: the last good keys serve on.
        self._stale_at = now + (KEYS_LIFESPAN_SECONDS if keys else KEYS_COOLDOWN_SECONDS)
        self._keys = keys or self._keys
        self._fetches += 1


def clear_signing_keys() -> None:
    """Drop all cached keys, as a new process would have it."""
    _signing_keys.cache_clear()


@lru_cache(maxsize=8)
def _signing_keys(uri: str, process_id: int) -> SigningKeys:
    """
    The keys published at *uri*. A forked child has another process id: it must not wait for a
    thread of its parent.
    """
    return SigningKeys(uri)


def _published_keys(uri: str) -> Sequence[SigningKey]:
    """The usable keys at *uri*, none if they cannot be had. One request."""
    try:
        answer = send("GET", uri, headers={"Accept": "application/json"}, max_bytes=MAX_BYTES)
        decoded = answer.json() if answer.status == 200 else None
    except APIError:
        return ()
    jwks = decoded.get("keys") if isinstance(decoded, dict) else None
    keys = [_signing_key(jwk) for jwk in jwks] if isinstance(jwks, list) else []
    return tuple(key for key in keys if key is not None)


def _signing_key(jwk: Any) -> SigningKey | None:
    """The key that *jwk* describes, None if it cannot or must not verify a token."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    try:
        public = jwt.PyJWK(jwk).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    algorithms = _algorithms_of(public)
    if "alg" in jwk:
        algorithms &= {jwk["alg"]}
    return SigningKey(jwk.get("kid"), algorithms, public) if algorithms else None


def _algorithms_of(key: Any) -> frozenset[str]:
    """None for a key that is private, shared or short: nobody could tell who signed with it."""
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return RSA_ALGORITHMS
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in EC_ALGORITHMS:
        return frozenset({EC_ALGORITHMS[key.curve.name]})
    return frozenset({"EdDSA"} if isinstance(key, Ed25519PublicKey) else ())


def _fitting(keys: Sequence[SigningKey], header: Mapping[str, Any]) -> SigningKey | None:
    fitting = [key for key in keys if header["alg"] in key.algorithms]
    if header.get("kid") is not None:
        fitting = [key for key in fitting if key.key_id == header["kid"]]
    return fitting[0] if len(fitting) == 1 else None


def _verified(token: Secret, *, require: Sequence[str]) -> tuple[Claims, Claims] | str:
    """
    Header and claims of a token that Everifin signed, or the reason why they are not believed.

    Checked are signature, issuer, times and subject. A reason rather than an error, whose frames
    would hold the token.
    """
    header = _acceptable_header(token)
    if isinstance(header, str):
        return header
    key = _signing_keys(conf.endpoint("certs"), os.getpid()).fitting(header)
    if key is None:
        return "token_key"
    try:
        claims = jwt.decode(
            token.reveal(),
            key.public,
            algorithms=[header["alg"]],
            issuer=conf.issuer,
            leeway=timedelta(seconds=SKEW_SECONDS),
            # Who it is for differs between the kinds of token, so that is checked by the caller.
            options={"require": list(require), "verify_aud": False},
        )
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        return "token_" + type(error).__name__.removesuffix("Error").lower()
    times = [claims[name] for name in ("exp", "iat", "nbf", "auth_time") if name in claims]
    if not all(_is_moment(time) for time in times):
        return "token_times"
    is_whole = "sub" not in claims or _is_name(claims["sub"])
    return (header, claims) if is_whole else "token_subject"


def _acceptable_header(token: Secret) -> Claims | str:
    """
    The header of a well-formed token, or the reason why it is not taken: its kind of algorithm, or
    an extension that would have to be known.
    """
    if len(token.reveal()) > MAX_TOKEN_BYTES:
        return "token_too_long"
    try:
        header, _ = _strict_parts(token.reveal())
    except ValueError:
        return "token_malformed"
    algorithm = header.get("alg")
    is_known = isinstance(algorithm, str) and algorithm in ALGORITHMS
    is_extended = "crit" in header or header.get("b64", True) is not True
    return header if is_known and not is_extended else "token_header"


def _strict_parts(text: str) -> tuple[Claims, Claims]:
    """
    Header and claims as they are written, neither verified: JSON in which no key stands twice.

    Errors: ValueError for anything but a compact JWS of two JSON objects.
    """
    parts = text.split(".")
    if len(parts) != 3 or not all(BASE64URL.fullmatch(part) for part in parts):
        raise ValueError("not a compact JWS")
    header, claims = (
        strict_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2]
    )
    if isinstance(header, dict) and isinstance(claims, dict):
        return header, claims
    raise ValueError("a part is not an object")


def _is_moment(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MAX_MOMENT


def _is_name(value: Any) -> bool:
    """
    Is it a subject, or the id of a session or token? Source for a subject: OpenID Connect Core 1.0,
    section 2. Without control characters, for the database.
    """
    return (
        isinstance(value, str) and 0 < len(value) <= 255 and value.isascii() and value.isprintable()
    )


def _at_hash(algorithm: str, access_token: Secret) -> str | None:
    """
    Source: OpenID Connect Core 1.0, section 3.1.3.6. None for an algorithm whose hash is not
    settled.
    """
    digest = AT_HASH_DIGESTS.get(algorithm[-3:])
    if digest is None:
        return None
    left_half = digest(access_token.reveal().encode()).digest()
    return base64.urlsafe_b64encode(left_half[: len(left_half) // 2]).rstrip(b"=").decode()

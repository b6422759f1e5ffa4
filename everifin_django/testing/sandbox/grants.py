"""
The OAuth protocol logic of the sandbox: oauthlib, with Keycloak's rules.

oauthlib because it is agnostic of web framework and storage by design: it has no models, and its
one seam is a RequestValidator. `Rules` is that validator; what it raises carries the error texts of
Keycloak, which Everifin does not publish.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from oauthlib.common import Request
from oauthlib.oauth2.rfc6749 import errors
from oauthlib.oauth2.rfc6749.endpoints import (
    AuthorizationEndpoint,
    RevocationEndpoint,
    TokenEndpoint,
)
from oauthlib.oauth2.rfc6749.grant_types import AuthorizationCodeGrant as PlainCodeGrant
from oauthlib.oauth2.rfc6749.tokens import BearerToken
from oauthlib.openid import RequestValidator, UserInfoEndpoint
from oauthlib.openid.connect.core.grant_types import AuthorizationCodeGrant, RefreshTokenGrant
from oauthlib.openid.connect.core.grant_types.dispatchers import (
    AuthorizationCodeGrantDispatcher,
    AuthorizationTokenGrantDispatcher,
)

from everifin_django.testing.sandbox.state import State
from everifin_django.testing.sandbox.store import OFFLINE, Session, User

if logging.getLogger("oauthlib").level == logging.NOTSET:
    # At DEBUG oauthlib writes codes and tokens to its log, where a suite that looks for leaks in
    # the code under test would find the sandbox's instead.
    logging.getLogger("oauthlib").setLevel(logging.INFO)

CODE_SECONDS = 60
SCOPES = frozenset({"openid", "profile", "email", "offline_access", "ais", "pis"})
DEFAULT_SCOPES = ["ais"]
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
S256 = "S256"


class Endpoints:
    """The four endpoints of oauthlib that the identity provider serves."""

    def __init__(self, state: State) -> None:
        rules = Rules(state)
        plain, code = PlainCodeGrant(rules), AuthorizationCodeGrant(rules)
        for grant in (plain, code.proxy_target):
            grant._code_challenge_methods = {S256: grant._code_challenge_methods[S256]}
        refresh = RefreshTokenGrant(
            rules,
            issue_new_refresh_tokens=state.rotation != "off",
            post_token=[rules.spend_refresh_token],
        )
        bearer = BearerToken(
            rules, rules.new_access_token, state.access_token_seconds, rules.new_refresh_token
        )
        self.authorization = AuthorizationEndpoint(
            default_response_type="code",
            default_token_type=bearer,
            response_types={"code": AuthorizationCodeGrantDispatcher(plain, code)},
        )
        self.token = TokenEndpoint(
            default_grant_type="authorization_code",
            default_token_type=bearer,
            grant_types={
                "authorization_code": AuthorizationTokenGrantDispatcher(rules, plain, code),
                "refresh_token": refresh,
            },
        )
        self.revocation = RevocationEndpoint(rules)
        self.userinfo = UserInfoEndpoint(rules)
        self.rules = rules
        self._bearer, self._refresh = bearer, refresh

    def grant(self, user: User, scope: str) -> dict[str, Any]:
        """
        Return what the token endpoint answers once *user* has logged in and agreed to *scope*.

        Errors: oauthlib's InvalidScopeError.
        """
        rules, request = self.rules, Request("")
        client_id = request.client_id = rules.state.client_id
        request.user, request.scope = user, scope
        rules.validate_scopes(client_id, scope.split(), Client(client_id), request)
        request.session = rules.new_session(str(uuid.uuid4()), request)
        token: dict[str, Any] = self._bearer.create_token(request, refresh_token=True)
        token = self._refresh.add_id_token(token, self._bearer, request)
        rules.save_token(token, request)
        return token


@dataclass(frozen=True, slots=True)
class Client:
    client_id: str


class Rules(RequestValidator):
    """What oauthlib asks about clients, codes, tokens and users, answered from the state."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.store = state.store

    # The client

    def authenticate_client(self, request: Request, *args: Any, **kwargs: Any) -> bool:
        """Source: RFC 6749, section 2.3.1. The errors are Keycloak's."""
        client_id, secret = _basic_credentials(request.headers.get("Authorization", ""))
        if not client_id:
            client_id, secret = request.client_id or "", request.client_secret or ""
        description = "Invalid client or Invalid client credentials"
        if not _same(client_id, self.state.client_id):
            raise errors.InvalidClientError(description)
        if not _same(secret, self.state.client_secret):
            raise errors.UnauthorizedClientError(description, status_code=401)
        request.client = Client(client_id)
        return True

    def validate_client_id(self, client_id: str, request: Request, *args: Any, **kw: Any) -> bool:
        request.client = Client(client_id)
        return client_id == self.state.client_id

    def validate_redirect_uri(self, client_id: str, uri: str, *args: Any, **kwargs: Any) -> bool:
        return is_registered(self.state, uri)

    def get_default_redirect_uri(self, client_id: str, request: Request, *args: Any) -> None:
        if request.grant_type:
            raise errors.InvalidGrantError("Incorrect redirect_uri")

    def validate_response_type(self, client_id: str, response_type: str, *args: Any) -> bool:
        if response_type != "code":
            raise errors.UnsupportedResponseTypeError
        return True

    def validate_grant_type(self, *args: Any, **kwargs: Any) -> bool:
        return True

    # Scopes

    def get_default_scopes(self, *args: Any, **kwargs: Any) -> list[str]:
        """What a request without scope is granted: an invention, the older texts do not say."""
        return DEFAULT_SCOPES

    def validate_scopes(
        self, client_id: str, scopes: Sequence[str], client: Client, request: Request, *args: Any
    ) -> bool:
        request.scopes = list(dict.fromkeys(scope for scope in scopes if scope))
        if not SCOPES.issuperset(request.scopes):
            raise errors.InvalidScopeError(f"Invalid scopes: {request.scope}", request=request)
        return True

    def get_original_scopes(self, refresh_token: str, request: Request, *args: Any) -> list[str]:
        return list(request.session.scopes)

    # Authorization codes

    def validate_silent_login(self, request: Request) -> bool:
        """Everybody logs in each time: the sandbox sets no cookie."""
        return False

    def validate_user_match(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def is_pkce_required(self, client_id: str, request: Request) -> bool:
        return self.state.require_pkce

    def save_authorization_code(
        self, client_id: str, code: Mapping[str, str], request: Request, *args: Any, **kwargs: Any
    ) -> None:
        session = self.new_session(request.session_id, request)
        details = {
            "redirect_uri": request.redirect_uri,
            "nonce": request.nonce,
            "code_challenge": request.code_challenge,
            "scope": session.scope,
        }
        self.store.add_code(code["code"], session.id, details, session.auth_time + CODE_SECONDS)

    def new_session(self, session_id: str, request: Request) -> Session:
        """Return a session that ends with its code, unless the code is exchanged."""
        now, scope = self.state.now(), " ".join(request.scopes)
        until = now + CODE_SECONDS
        session = Session(session_id, request.user.sub, scope, auth_time=now, expires_at=until)
        self.store.add_session(session)
        return session

    def validate_code(self, client_id: str, code: str, client: Client, request: Request) -> bool:
        """
        Source: RFC 6749, section 4.1.2: a code that is used twice ends the session it began.

        The code is used up here, at the first try with the right client, whatever else is wrong.
        """
        known = self.store.code(code)
        if known is None:
            raise errors.InvalidGrantError("Code not valid")
        if not self.store.spend_code(code):
            self.store.end_login(known.session.sid)
            raise errors.InvalidGrantError("Code not valid")
        if self.state.now() >= known.expires_at or known.session.is_ended:
            raise errors.InvalidGrantError("Code not valid")
        self._remember(request, known.session)
        request.code_details = known.details
        return request.user is not None

    def get_code_challenge(self, code: str, request: Request) -> str | None:
        challenge: str | None = request.code_details["code_challenge"]
        if challenge is not None and not request.code_verifier:
            raise errors.InvalidGrantError("PKCE code verifier not specified")
        if challenge is not None and not _same(challenge, _s256(request.code_verifier)):
            raise errors.InvalidGrantError("PKCE verification failed: Code mismatch")
        return challenge

    def get_code_challenge_method(self, code: str, request: Request) -> str:
        return S256

    def confirm_redirect_uri(
        self, client_id: str, code: str, redirect_uri: str, client: Client, request: Request
    ) -> bool:
        if redirect_uri != request.code_details["redirect_uri"]:
            raise errors.InvalidGrantError("Incorrect redirect_uri")
        return True

    def get_authorization_code_scopes(
        self, client_id: str, code: str, redirect_uri: str, request: Request
    ) -> list[str]:
        known = self.store.code(code)
        return known.details["scope"].split() if known and self.state.issue_id_tokens else []

    def get_authorization_code_nonce(
        self, client_id: str, code: str, redirect_uri: str, request: Request
    ) -> str | None:
        nonce: str | None = request.code_details["nonce"]
        return nonce

    def invalidate_authorization_code(self, *args: Any, **kwargs: Any) -> None:
        """Done by validate_code."""

    # Refresh tokens

    def validate_refresh_token(self, token: str, client: Client, request: Request) -> bool:
        known = self.store.refresh_token(token)
        if known is None:
            raise errors.InvalidGrantError("Invalid refresh token")
        session = known.session
        if known.is_spent:
            self._refuse_reuse(session)
        now = self.state.now()
        if known.expires_at is not None and now >= known.expires_at:
            raise errors.InvalidGrantError("Token is not active")
        if session.is_ended and session.is_withdrawn:
            raise errors.InvalidGrantError("Session doesn't have required client")
        if not session.is_live(now):
            raise errors.InvalidGrantError("Session not active")
        if session.is_withdrawn:
            raise errors.InvalidScopeError("Client no longer has requested consent from user")
        self._remember(request, session)
        return True

    def rotate_refresh_token(self, request: Request) -> bool:
        return True

    def spend_refresh_token(self, request: Request) -> None:
        """In strict rotation only one request gets past here with the same token."""
        is_strict = self.state.rotation == "strict"
        if is_strict and not self.store.spend_refresh_token(request.refresh_token):
            self._refuse_reuse(request.session)

    def _refuse_reuse(self, session: Session) -> None:
        self.state.note_double_spend()
        if session.is_ended:
            raise errors.InvalidGrantError("Session not active")
        self.store.end_session(session.id)
        raise errors.InvalidGrantError("Maximum allowed refresh token reuse exceeded")

    def revoke_token(self, token: str, token_type_hint: str, request: Request, *args: Any) -> None:
        """
        End the session of a refresh token. Source: RFC 7009, section 2.1.

        An access token works until it expires, because the bank API does not ask the identity
        provider.
        """
        known = self.store.refresh_token(token)
        if known is not None:
            self.store.end_session(known.session.id)

    # New tokens

    def new_access_token(self, request: Request) -> str:
        now = int(self.state.now())
        claims = {
            "exp": now + self.state.access_token_seconds,
            "iat": now,
            "auth_time": int(request.session.auth_time),
            # Keycloak's token ids have a prefix as well. Here it lets expire_access_tokens() work.
            "jti": f"{self.state.generation(request.user.sub)}:{request.grant_type}:{uuid.uuid4()}",
            "iss": self.state.issuer,
            "aud": "account",
            "sub": request.user.sub,
            "typ": "Bearer",
            "azp": self.state.client_id,
            "sid": request.session.sid,
            "acr": "1",
            "scope": " ".join(request.scopes),
        }
        return self.state.signer.sign(claims)

    def new_refresh_token(self, request: Request) -> str:
        now = int(self.state.now())
        claims = {
            "iat": now,
            "jti": str(uuid.uuid4()),
            "iss": self.state.issuer,
            "aud": self.state.issuer,
            "sub": request.user.sub,
            "typ": "Offline" if _is_offline(request) else "Refresh",
            "azp": self.state.client_id,
            "sid": request.session.sid,
            "scope": " ".join(request.scopes),
        }
        if not _is_offline(request):
            claims["exp"] = now + self.state.refresh_token_seconds
        return self.state.signer.refresh_token(claims)

    def refresh_id_token(self, request: Request) -> bool:
        return self.state.issue_id_tokens

    def get_id_token(self, *args: Any) -> None:
        """Leave the first half to oauthlib: audience, nonce and at_hash."""

    def finalize_id_token(
        self, id_token: dict[str, Any], token: Mapping[str, Any], handler: Any, request: Request
    ) -> str:
        now = int(self.state.now())
        claims = {
            **id_token,
            "exp": now + self.state.access_token_seconds,
            "iat": now,
            "auth_time": int(request.session.auth_time),
            "jti": str(uuid.uuid4()),
            "iss": self.state.issuer,
            "typ": "ID",
            "azp": self.state.client_id,
            "sid": request.session.sid,
            "acr": "1",
            **identity(request.user),
        }
        headers: dict[str, Any] = {"kid": self.state.signing_key.kid}
        if self.state.id_token_hook is not None:
            changed = self.state.id_token_hook(headers, claims)
            if isinstance(changed, str):
                return changed
            headers, claims = changed
        return self.state.signing_key.sign(claims, headers)

    def save_bearer_token(self, token: dict[str, Any], request: Request, *args: Any) -> None:
        """Store the new refresh token, and format the response as Keycloak does."""
        lasts = not _is_offline(request)
        until = self.state.now() + self.state.refresh_token_seconds
        if "refresh_token" in token:
            session = request.session if lasts else self._offline_session(request.session, until)
            expires_at = until if lasts else None
            self.store.add_refresh_token(token["refresh_token"], session.id, expires_at)
            self.store.prolong_session(session.id, expires_at)
        has_expiry = "refresh_token" in token and lasts
        token["refresh_expires_in"] = self.state.refresh_token_seconds if has_expiry else 0
        token["not-before-policy"] = 0
        token["session_state"] = request.session.sid

    def _offline_session(self, session: Session, until: float) -> Session:
        """Return what the user granted for later; the browser's session goes on beside it."""
        if session.is_offline:
            return session
        self.store.prolong_session(session.id, until)
        offline = replace(session, id=f"{session.id}{OFFLINE}")
        self.store.add_session(offline)
        return offline

    # User info

    def validate_bearer_token(self, token: str | None, scopes: Any, request: Request) -> bool:
        claims = read_access_token(self.state, token or "")
        sid = str(claims.get("sid")) if claims else ""
        known = filter(None, map(self.store.session, (sid, f"{sid}{OFFLINE}")))
        session = next((one for one in known if one.is_live(self.state.now())), None)
        if claims is None or session is None:
            return False
        self._remember(request, session)
        request.scopes = str(claims.get("scope")).split()
        return request.user is not None

    def get_userinfo_claims(self, request: Request) -> dict[str, Any]:
        return identity(request.user)

    def _remember(self, request: Request, session: Session) -> None:
        request.session = session
        request.scopes = session.scopes
        request.user = self.store.user(sub=session.sub)


def identity(user: User) -> dict[str, Any]:
    """Return what this identity provider says about *user*, in ID tokens and at userinfo."""
    return {
        "sub": user.sub,
        "preferred_username": user.username,
        "name": user.name,
        "email": user.email,
        "email_verified": user.email_verified,
    }


NEW_SECONDS = 5
"""
How long a token from a refresh works although tokens were expired by hand. A site takes the refusal
of a token that is some 3 seconds old for an outage.
"""


def read_access_token(state: State, token: str) -> Mapping[str, Any] | None:
    """
    Return the claims of a token that is signed by this issuer and not expired, else None.

    Sessions are not looked at: an access token outlives a logout.
    Source: Everifin's "Authentication" page: the access token stays valid for the rest of its time.
    """
    claims = state.signer.verify(token)
    if claims is None or claims.get("iss") != state.issuer:
        return None
    generation, _, name = str(claims.get("jti")).partition(":")
    now, is_of_today = state.now(), generation == state.generation(str(claims.get("sub")))
    is_new = name.startswith("refresh_token:") and now < claims.get("iat", 0) + NEW_SECONDS
    return claims if (is_of_today or is_new) and now < claims.get("exp", 0) else None


def is_registered(state: State, uri: str) -> bool:
    """
    May the browser be sent to *uri*?

    Everifin documents that http://localhost is allowed for first tests; every loopback address with
    any port is our extension of it.
    """
    parts = urlsplit(uri)
    is_loopback = parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS
    return uri in state.redirect_uris or (is_loopback and "@" not in parts.netloc)


def _is_offline(request: Request) -> bool:
    return "offline_access" in request.scopes


def _basic_credentials(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        decoded = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    client_id, _, secret = decoded.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)


def _s256(code_verifier: str) -> str:
    """Source: RFC 7636, section 4.2."""
    digest = hashlib.sha256(code_verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())

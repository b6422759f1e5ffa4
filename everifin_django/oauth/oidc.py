"""
The bridge to mozilla-django-oidc: its authorization request, and its way from claims to a user.

The only module that imports it. Its ``OIDC_*`` settings belong to a site's other login, if it has
one, so everything it asks its settings for is answered from ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from mozilla_django_oidc.auth import OIDCAuthenticationBackend
from mozilla_django_oidc.views import OIDCAuthenticationRequestView

from everifin_django.conf import conf
from everifin_django.oauth.id_token import Claims

SETTINGS: Mapping[str, Callable[[], Any]] = {
    "OIDC_OP_AUTHORIZATION_ENDPOINT": lambda: conf.endpoint("auth"),
    "OIDC_RP_CLIENT_ID": lambda: conf.client_id,
    "OIDC_RP_SCOPES": lambda: conf.scopes,
    "OIDC_AUTHENTICATION_CALLBACK_URL": lambda: "everifin_django:callback",
    "OIDC_REDIRECT_FIELD_NAME": lambda: "next",
    "OIDC_USE_NONCE": lambda: True,
    "OIDC_USE_PKCE": lambda: conf.use_pkce,
    "OIDC_PKCE_CODE_CHALLENGE_METHOD": lambda: "S256",
    "OIDC_PKCE_CODE_VERIFIER_SIZE": lambda: 64,
    # 62 kinds of characters: 43 of them are 256 bits.
    "OIDC_STATE_SIZE": lambda: 43,
    "OIDC_NONCE_SIZE": lambda: 43,
    "OIDC_CREATE_USER": lambda: conf.create_users,
}


def get_setting(name: str, *default: Any) -> Any:
    """
    Return our value for a setting of mozilla-django-oidc; its ``get_settings`` hook.

    Errors: ImproperlyConfigured for an unknown name.
    """
    if name in SETTINGS:
        return SETTINGS[name]()
    raise ImproperlyConfigured(f"everifin_django has no answer for {name}.")


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """The URL that begins a login at Everifin, and what its answer is compared with."""

    url: str = field(repr=False)
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    code_verifier: str | None = field(repr=False)


def authorization_request(
    redirect_uri: str, params: Mapping[str, str] | None = None
) -> AuthorizationRequest:
    """
    Return a new authorization request, with a state, nonce and PKCE verifier of its own, and with
    the site's *params*.

    No request, no query. Source: OpenID Connect Core 1.0, section 3.1.2.1; RFC 7636.
    """
    request = _Request(redirect_uri)
    response = _RequestView(params=params or {}).get(request)
    ((state, record),) = request.session["oidc_states"].items()
    return AuthorizationRequest(response.url, state, record["nonce"], record["code_verifier"])


class _RequestView(OIDCAuthenticationRequestView):
    get_settings = staticmethod(get_setting)

    params: Mapping[str, str] = {}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return dict(self.params)


class _Request(HttpRequest):
    """
    A request with an empty session. mozilla-django-oidc stores its states under session keys that
    belong to the site's other login, so it gets none of the visitor's session.
    """

    def __init__(self, redirect_uri: str) -> None:
        super().__init__()
        self.session: Any = {}
        self._redirect_uri = redirect_uri

    def build_absolute_uri(self, location: str | None = None) -> str:
        """Only the callback's URL is asked for."""
        return self._redirect_uri


class ClaimsBackend:
    """
    mozilla-django-oidc's way from claims to a user, without its constructor and its ways to a
    token.

    Their backend's constructor reads settings, and Django makes every backend for every login: a
    wrong setting of ours must not keep a password from working. Nor is this one of their backends:
    their SessionRefresh would take our sessions for those of the site's other login.
    """

    get_settings = staticmethod(get_setting)
    get_or_create_user = OIDCAuthenticationBackend.get_or_create_user
    update_user = OIDCAuthenticationBackend.update_user

    def __init__(self) -> None:
        self.UserModel = get_user_model()

    def get_userinfo(self, access_token: Any, id_token: Any, payload: Claims) -> Claims:
        """Return the claims of the verified ID token: UserInfo is not requested."""
        return payload

    def verify_claims(self, claims: Claims) -> bool:
        return True

    def describe_user_by_claims(self, claims: Claims) -> str:
        return "this Everifin account"

"""
Those who are tried: this package, and mozilla-django-oidc as it ships.

Each has views of its own, at the same provider, in the same site.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import F
from django.test import Client
from django.urls import reverse

from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target
from tests.providers.certification.provider import Provider

LOGGED_IN = "logged in"
LOGGED_IN_AS_ANOTHER = "logged in as another"
REFUSED = "refused"
REFRESHED = "refreshed"
STOPPED = "stopped"
NOT_REFRESHED = "not refreshed"
NO_SUCH_FEATURE = "no such feature"


class Site(Protocol):
    """A relying site. *name* is the distribution it comes from."""

    name: str

    def settings(self, provider: Provider) -> dict[str, Any]:
        """What a site sets that uses it with *provider*."""

    def start(self, browser: Client) -> str:
        """Begin a login, and return the address of the provider the visitor is sent to."""

    def start_once_more(self, browser: Client) -> str:
        """The same for a visitor who is logged in already."""

    def callback(self) -> str:
        """Return where visitors come back to."""

    def ask_userinfo(self, visit: Visit) -> bool:
        """Go the way on which UserInfo is asked; did it end well?"""

    def refresh(self, visit: Visit) -> str:
        """Let the logged-in visitor's tokens run out, use them, and return what was observed."""

    def log_out(self, browser: Client) -> str:
        """Log out, and return the address the visitor is sent to."""

    def backchannel_logout(self) -> str | None:
        """Return where the provider can say that a session ended, None if nowhere."""


class Visit:
    """
    A visitor of one site's site, with a browser, and known to the provider by a name of their own.
    """

    def __init__(self, site: Site, provider: Provider) -> None:
        self.site = site
        self.provider = provider
        self.username = f"visitor-{uuid.uuid4().hex[:12]}"
        self.subject = provider.add_user(self.username)
        self.browser = Client(raise_request_exception=False)
        self.asked_for: Mapping[str, list[str]] = {}
        self.answer: Any = None

    @property
    def user_pk(self) -> str | None:
        user_pk: str | None = self.browser.session.get("_auth_user_id")
        return user_pk

    @property
    def is_logged_in(self) -> bool:
        return self.user_pk is not None

    def log_in(self) -> str:
        """Go to the provider and come back; return what a bystander sees of it."""
        url = self.site.start(self.browser)
        self.asked_for = parse_qs(urlsplit(url).query)
        self.answer = self.browser.get(self.provider.authorize(url, self.username))
        if self.answer.status_code >= 500:
            return f"error {self.answer.status_code}"
        if self.user_pk is None:
            return REFUSED
        user = get_user_model().objects.get(pk=self.user_pk)
        is_visitor = user.email == f"{self.username}@example.test"
        return LOGGED_IN if is_visitor else LOGGED_IN_AS_ANOTHER


class Ours:
    name = "everifin-django"

    def settings(self, provider: Provider) -> dict[str, Any]:
        return {}

    def start(self, browser: Client) -> str:
        return redirect_target(browser.post(reverse("everifin_django:login")))

    def start_once_more(self, browser: Client) -> str:
        """A logged-in user can connect."""
        return redirect_target(browser.post(reverse("everifin_django:connect")))

    def callback(self) -> str:
        return reverse("everifin_django:callback")

    def ask_userinfo(self, visit: Visit) -> bool:
        """UserInfo is asked only about who connects without an ID token."""
        visit.provider.issue_id_tokens = False
        user = get_user_model().objects.create_user(visit.username)
        visit.browser.force_login(user, "django.contrib.auth.backends.ModelBackend")
        start = visit.browser.post(reverse("everifin_django:connect"))
        visit.browser.get(visit.provider.authorize(redirect_target(start), visit.username))
        return BankToken.objects.filter(user=user, subject=visit.subject).exists()

    def refresh(self, visit: Visit) -> str:
        by = timedelta(minutes=6)
        BankToken.objects.filter(subject=visit.subject).update(
            issued_at=F("issued_at") - by, access_expires_at=F("access_expires_at") - by
        )
        visit.browser.get("/accounts/")
        if not visit.provider.calls["token.refresh_token"]:
            return NOT_REFRESHED
        return REFRESHED if visit.provider.calls["api"] else STOPPED

    def log_out(self, browser: Client) -> str:
        return redirect_target(browser.post(reverse("everifin_django:logout")))

    def backchannel_logout(self) -> str | None:
        return reverse("everifin_django:backchannel_logout")


class Plain:
    name = "mozilla-django-oidc"

    def settings(self, provider: Provider) -> dict[str, Any]:
        metadata = provider.metadata()
        return {
            "AUTHENTICATION_BACKENDS": ["mozilla_django_oidc.auth.OIDCAuthenticationBackend"],
            "MIDDLEWARE": [name for name in settings.MIDDLEWARE if "everifin" not in name],
            # Its installation guide asks for this one; with Django's None its logout fails.
            "LOGOUT_REDIRECT_URL": "/",
            "OIDC_RP_CLIENT_ID": provider.client_id,
            "OIDC_RP_CLIENT_SECRET": provider.client_secret,
            "OIDC_RP_SIGN_ALGO": "RS256",
            "OIDC_OP_AUTHORIZATION_ENDPOINT": metadata["authorization_endpoint"],
            "OIDC_OP_TOKEN_ENDPOINT": metadata["token_endpoint"],
            "OIDC_OP_USER_ENDPOINT": metadata["userinfo_endpoint"],
            "OIDC_OP_JWKS_ENDPOINT": metadata["jwks_uri"],
        }

    def start(self, browser: Client) -> str:
        return str(browser.get(reverse("oidc_authentication_init"))["Location"])

    def start_once_more(self, browser: Client) -> str:
        return self.start(browser)

    def callback(self) -> str:
        return reverse("oidc_authentication_callback")

    def ask_userinfo(self, visit: Visit) -> bool:
        return visit.log_in() == LOGGED_IN

    def refresh(self, visit: Visit) -> str:
        return NO_SUCH_FEATURE

    def log_out(self, browser: Client) -> str:
        return str(browser.post(reverse("oidc_logout"))["Location"])

    def backchannel_logout(self) -> str | None:
        return None


OURS, PLAIN = Ours(), Plain()
SITES: tuple[Site, ...] = (OURS, PLAIN)

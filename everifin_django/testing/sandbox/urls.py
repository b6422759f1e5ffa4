"""
Which path leads where, by which methods, and under which name faults and counters know it.

Paths of the identity provider are those Everifin documents, or Keycloak's; the bank API answers
under /v1 and, as in one of Everifin's samples, under /api/v1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpResponse
from django.urls import URLPattern, URLResolver, path
from django.urls.resolvers import RegexPattern

from everifin_django.testing.sandbox import bank, control, idp, payments, web_app

View = Callable[..., HttpResponse]

REALM = "auth/realms/<str:realm>"
OPENID = f"{REALM}/protocol/openid-connect"
ACCOUNT = "bank-accounts/<str:account_id>"


def _route(route: str, view: View, name: str, *methods: str) -> URLPattern:
    # Methods travel as what Django calls the extra arguments of a pattern.
    return path(route, view, {"methods": methods or ("GET",)}, name=name)


_PAYMENTS = (
    ("single", "", payments.single_payments, "payments", ("GET", "POST")),
    ("single", "/<str:payment_id>", payments.single_payment, "payment", ("GET", "PATCH")),
    ("bulk", "", payments.bulk_payments, "bulk_payments", ("GET", "POST")),
    ("bulk", "/<str:payment_id>", payments.bulk_payment, "bulk_payment", ("GET", "PATCH")),
)


def _api(prefix: str) -> list[URLPattern]:
    return [
        _route(f"{prefix}bank-accounts", bank.accounts, "api.accounts"),
        _route(f"{prefix}bank-accounts/refresh", bank.refresh, "api.refresh", "POST"),
        _route(f"{prefix}{ACCOUNT}", bank.account, "api.account"),
        _route(f"{prefix}{ACCOUNT}/transactions", bank.transactions, "api.transactions"),
        _route(
            f"{prefix}{ACCOUNT}/transactions/<str:transaction_id>",
            bank.transaction,
            "api.transaction",
        ),
        _route(f"{prefix}banks", bank.banks, "api.banks"),
        *(
            _route(f"{prefix}payments/{kind}{rest}", view, f"api.{name}", *methods)
            for kind, rest, view, name, methods in _PAYMENTS
        ),
    ]


_PATTERNS: list[URLPattern | URLResolver] = [
    _route(f"{OPENID}/auth", idp.authorize, "auth"),
    # Everifin's older samples have a slash before the query.
    _route(f"{OPENID}/auth/", idp.authorize, "auth"),
    _route(f"{OPENID}/token", idp.token, "token", "POST"),
    _route(f"{OPENID}/logout", idp.logout, "logout", "GET", "POST"),
    _route(f"{OPENID}/revoke", idp.revoke, "revoke", "POST"),
    _route(f"{OPENID}/certs", idp.certs, "certs"),
    _route(f"{OPENID}/userinfo", idp.userinfo, "userinfo", "GET", "POST"),
    _route(f"{REALM}/.well-known/openid-configuration", idp.discovery, "discovery"),
    _route(f"{REALM}/login-actions/authenticate", idp.login, "login", "POST"),
    _route(f"{REALM}/login-actions/registration", idp.register, "registration", "POST"),
    _route(f"{REALM}/login-actions/consent", idp.consent, "consent", "POST"),
    _route("_bank/<int:payment_id>", payments.bank_page, "bank_page", "GET", "POST"),
    *_api("v1/"),
    *_api("api/v1/"),
    _route("", web_app.home, "control", "GET", "POST"),
    _route("_sandbox/", control.home, "control"),
    _route("_sandbox/state", control.summary, "control"),
    _route("_sandbox/faults", control.faults, "control", "POST"),
    _route("_sandbox/faults/clear", control.clear_faults, "control", "POST", "DELETE"),
    _route("_sandbox/expire", control.expire, "control", "POST"),
    _route("_sandbox/end-sessions", control.end_sessions, "control", "POST"),
    _route("_sandbox/withdraw-consent", control.withdraw_consent, "control", "POST"),
    _route("_sandbox/clock-skew", control.clock_skew, "control", "POST"),
    _route("_sandbox/rotate-key", control.rotate_key, "control", "POST"),
]

# A resolver of our own, so that the site's ROOT_URLCONF plays no part.
RESOLVER = URLResolver(RegexPattern(r"^/"), _PATTERNS)


def resolve(path: str) -> tuple[View, str, tuple[str, ...], dict[str, Any]]:
    """Return (view, name, methods, arguments). Errors: django.urls.Resolver404."""
    match = RESOLVER.resolve(path)
    arguments = dict(match.kwargs)
    return match.func, match.url_name or "", arguments.pop("methods"), arguments

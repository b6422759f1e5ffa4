"""
What of a site's own policy reaches the pages of this app: its Content Security Policy, its cookies,
and what its proxy says.

Read from the settings of Django and of django-csp. A policy that a proxy adds is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.urls import NoReverseMatch, reverse

from everifin_django.conf import conf

Words = Iterator[tuple[str, ...]]

ALL = {"*", "https:"}
SANDBOX_NEEDS = ("allow-forms", "allow-same-origin")


def examine_csp() -> Words:
    """
    Source: Content Security Policy Level 3. ``form-action`` and ``sandbox`` have no fallback, the
    others fall back to ``default-src``.
    """
    policy = _policy()
    if policy is None:
        yield "ok", "The settings have no policy that is in force; one of a proxy is not seen here."
        return
    found = [*_examine_forms(policy), *_examine_pages(policy)]
    yield from found or [("ok", "The policy in the settings allows what the pages need.")]


def _policy() -> Mapping[str, tuple[str, ...]] | None:
    """The directives in force, each with its values; None if there is no policy."""
    middleware = set(settings.MIDDLEWARE)
    if "django.middleware.csp.ContentSecurityPolicyMiddleware" in middleware:
        given = getattr(settings, "SECURE_CSP", None)
    elif "csp.middleware.CSPMiddleware" in middleware:
        policy = getattr(settings, "CONTENT_SECURITY_POLICY", None)
        given = policy.get("DIRECTIVES") if isinstance(policy, Mapping) else _of_older_settings()
    else:
        return None
    if not isinstance(given, Mapping) or not given:
        return None
    return {str(name).lower(): _values(value) for name, value in given.items()}


def _of_older_settings() -> Mapping[str, Any]:
    """The settings of django-csp before version 4: CSP_FORM_ACTION and so on."""
    names = ("default-src", "style-src", "style-src-elem", "img-src", "form-action", "sandbox")
    given = {
        name: getattr(settings, f"CSP_{name.replace('-', '_').upper()}", None) for name in names
    }
    return {name: value for name, value in given.items() if value is not None}


def _values(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    return tuple(map(str, value)) if isinstance(value, Iterable) else ()


def _examine_forms(policy: Mapping[str, tuple[str, ...]]) -> Words:
    sources = policy.get("form-action")
    if sources is not None and not _allows_this_site(sources):
        yield (
            "error",
            "form-action keeps browsers from sending the forms to log in, connect and pay.",
            "Add 'self' to form-action.",
        )
    sandbox = policy.get("sandbox")
    missing = [word for word in SANDBOX_NEEDS if sandbox is not None and word not in sandbox]
    if missing:
        words = " and ".join(missing)
        yield "error", "sandbox keeps forms from being sent.", f"Add {words} to sandbox."


def _examine_pages(policy: Mapping[str, tuple[str, ...]]) -> Words:
    styles = _fetched(policy, "style-src-elem", "style-src", "default-src")
    host = urlsplit(settings.STATIC_URL or "").hostname
    if styles is not None and not _allows(styles, host):
        name = f"https://{host}" if host else "'self'"
        yield "warning", "The pages may not load their style sheet.", f"Add {name} to style-src."
    images = _fetched(policy, "img-src", "default-src")
    if "pis" in conf.scopes.split() and images is not None and "data:" not in images:
        message = "The payment page may not show the picture that some banks ask about."
        yield "warning", message, "Add data: to img-src."


def _fetched(policy: Mapping[str, tuple[str, ...]], *names: str) -> tuple[str, ...] | None:
    """The values of the first of *names* that the policy has."""
    return next((policy[name] for name in names if name in policy), None)


def _allows(sources: tuple[str, ...], host: str | None) -> bool:
    return _allows_this_site(sources) if host is None else _names_host(sources, host)


def _allows_this_site(sources: tuple[str, ...]) -> bool:
    host = urlsplit(conf.redirect_uri or "").hostname
    return "'self'" in sources or _names_host(sources, host or "")


def _names_host(sources: tuple[str, ...], host: str) -> bool:
    named = {urlsplit(one if "//" in one else f"//{one}").hostname for one in sources}
    parents = {f"*.{host.split('.', number)[-1]}" for number in range(1, host.count(".") + 1)}
    return bool(ALL.intersection(sources)) or bool(named & {host, *parents})


def examine_cookies() -> Words:
    """The session cookie has to come to the callback, back from Everifin's site."""
    try:
        path = reverse("everifin_django:callback")
    except NoReverseMatch:
        path = ""  # another finding says so
    cookie_path = settings.SESSION_COOKIE_PATH
    if path and not f"{path}/".startswith(f"{cookie_path.rstrip('/')}/"):
        message = f"The session cookie is for {cookie_path}, and does not come to {path}."
        yield "error", message, 'SESSION_COOKIE_PATH = "/"'
    host = urlsplit(conf.redirect_uri or "").hostname or ""
    domain = (settings.SESSION_COOKIE_DOMAIN or "").lstrip(".").lower()
    if host and domain and host != domain and not host.endswith(f".{domain}"):
        message = f"The session cookie is for {domain}, and does not come to {host}."
        yield "error", message, "SESSION_COOKIE_DOMAIN = None"


def examine_proxy() -> Words:
    """Behind a proxy that ends TLS, Django takes each request for plain http unless told."""
    if not conf.trusted_proxies and not settings.USE_X_FORWARDED_HOST:
        return
    needs_scheme = conf.redirect_uri is None or settings.SECURE_SSL_REDIRECT
    if needs_scheme and not settings.SECURE_PROXY_SSL_HEADER:
        yield (
            "warning",
            "If the proxy ends TLS, Django takes every request for plain http.",
            'SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https"), if the proxy sets it',
        )

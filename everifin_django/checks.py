"""
What ``manage.py check`` says: one small function for each concern, one id for each complaint, so
that a site can silence one alone, and a hint that says what to write.

No check asks the network; one asks the database, and only when it is told which:
``check --deploy --database default``. An id is never used again for something else; RETIRED_IDS
lists those that are no longer used.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.http.request import split_domain_port, validate_host
from django.urls import NoReverseMatch, reverse
from django.utils import translation
from django.utils.module_loading import import_string

from everifin_django.conf import (
    DEFAULT_KEY_PROVIDER,
    SETTINGS,
    conf,
    is_plain_loopback,
    params_refused,
    proof_is_needed,
)
from everifin_django.connections.key_rotation import UNREADABLE, keys_in_use
from everifin_django.encryption import KEY_BYTES, Key, is_known, parse_key, parse_keys
from everifin_django.exceptions import KeysUnavailableError
from everifin_django.models import BankToken
from everifin_django.web.login_flow import hosts_are_named

MIDDLEWARE = "everifin_django.middleware.EverifinMiddleware"
BACKEND = "everifin_django.backends.EverifinBackend"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
SIGNED_COOKIES = "django.contrib.sessions.backends.signed_cookies"
SANDBOX_CLIENT_SECRET = "everifin-sandbox-secret"  # noqa: S105 - it guards nothing
"""What ``manage.py everifin_sandbox`` prints to paste, so everybody knows it."""
REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")
REFERENCE = "docs/reference/settings.md"
RETIRED_IDS = frozenset({"E007", "E008", "E016", "E018", "E022"})
"""Each of these stood for several complaints."""

PLAIN_HTTP_IDS = {
    "EVERIFIN_IDP_URL": "E045",
    "EVERIFIN_API_URL": "E046",
    "EVERIFIN_ISSUER": "E047",
    "EVERIFIN_REDIRECT_URI": "E048",
    "EVERIFIN_POST_LOGOUT_REDIRECT_URI": "E049",
    "EVERIFIN_REVOCATION_URL": "E054",
    "EVERIFIN_WEB_APP_URL": "E088",
}


def register() -> None:
    for check in (
        check_settings,
        check_keys,
        check_middleware,
        check_sessions,
        check_login,
        check_params,
        check_access_check,
        check_logout,
        check_hosts,
        check_names,
        check_callback,
    ):
        checks.register(check, "everifin_django")
    for check in (
        check_plain_http,
        check_sandbox,
        check_redirect_uri,
        check_pkce,
        check_logout_of_browsers,
        check_session_cookie,
        check_dependencies,
        check_end_user_ip,
    ):
        checks.register(check, "everifin_django", deploy=True)
    checks.register(check_stored_keys, checks.Tags.database, deploy=True)


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    is_from_settings = _value_of("EVERIFIN_KEY_PROVIDER") in {None, DEFAULT_KEY_PROVIDER}
    unused = set() if is_from_settings else {"EVERIFIN_ENCRYPTION_KEYS"}
    return [error for name in SETTINGS if name not in unused for error in _errors_of(name)]


def check_keys(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    provider = _value_of("EVERIFIN_KEY_PROVIDER")
    if provider != DEFAULT_KEY_PROVIDER:
        return list(_errors_of_provider(provider)) if provider else []
    hint = SETTINGS["EVERIFIN_ENCRYPTION_KEYS"].hint
    keys, errors = [], []
    for text in _value_of("EVERIFIN_ENCRYPTION_KEYS") or ():
        try:
            keys.append(parse_key(text))
        except ImproperlyConfigured as error:
            errors.append(_error(str(error), id="E004", hint=hint))
    if errors or not keys:
        return errors
    return [*_errors_of_ids(), *_errors_of_origin(keys)]


def _errors_of_provider(path: str) -> Iterable[CheckMessage]:
    provider = _load(path)
    if not all(callable(getattr(provider, name, None)) for name in ("active", "get")):
        yield _error(
            "EVERIFIN_KEY_PROVIDER does not lead to a class with active() and get().",
            id="E044",
            hint=SETTINGS["EVERIFIN_KEY_PROVIDER"].hint,
        )


def _errors_of_ids() -> Iterable[CheckMessage]:
    try:
        parse_keys(conf.encryption_keys)
    except ImproperlyConfigured as error:
        yield _error(str(error), id="E005", hint="Give each key an id of its own.")


def _errors_of_origin(keys: Iterable[Key]) -> Iterable[CheckMessage]:
    derived = _derived_from_secret_key()
    for key in keys:
        if key.material in derived:
            yield _error(
                f"The key {key.key_id!r} in EVERIFIN_ENCRYPTION_KEYS is made from SECRET_KEY.",
                id="E006",
                hint="Who learns one of the two must not have the other. Put a key that "
                "`manage.py everifin_new_key` prints in front of the list.",
            )


def check_middleware(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    middleware = [_load(name) for name in settings.MIDDLEWARE]
    positions = [at for at, one in enumerate(middleware) if _is_kind_of(one, MIDDLEWARE)]
    if not positions:
        return [
            _error(
                "EverifinMiddleware is not in MIDDLEWARE, so there is no request.everifin.",
                id="E011",
                hint=f'Add "{MIDDLEWARE}" behind AuthenticationMiddleware.',
            )
        ]
    if not any(_is_kind_of(one, AUTHENTICATION) for one in middleware[: positions[0]]):
        return [
            _error(
                "EverifinMiddleware stands before AuthenticationMiddleware, "
                "so it does not know the user.",
                id="E012",
                hint=f'Move "{MIDDLEWARE}" behind "{AUTHENTICATION}" in MIDDLEWARE.',
            )
        ]
    return []


def check_sessions(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    errors: list[CheckMessage] = []
    if settings.SESSION_ENGINE == SIGNED_COOKIES:
        errors.append(
            _error(
                "Sessions are kept in signed cookies: the visitor could read a login's secret "
                "and bring back an old one.",
                id="E013",
                hint='Set SESSION_ENGINE to "django.contrib.sessions.backends.db" '
                "or another that keeps sessions on the server.",
            )
        )
    if str(settings.SESSION_COOKIE_SAMESITE).lower() == "strict":
        errors.append(
            _error(
                'SESSION_COOKIE_SAMESITE is "Strict": the visitor comes back from Everifin '
                "without a session.",
                id="E014",
                hint='Set it to "Lax", Django\'s default.',
            )
        )
    return errors


def check_login(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    scopes = _value_of("EVERIFIN_SCOPES")
    if not _logs_users_in() or scopes is None or "openid" in scopes.split():
        return []
    return [
        _error(
            "EverifinBackend logs users in, but EVERIFIN_SCOPES does not ask for openid, "
            "so no ID token will come.",
            id="E015",
            hint='Add "openid" to EVERIFIN_SCOPES, or take the backend out: '
            "connecting works without it.",
        )
    ]


def check_params(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [
        error
        for name in ("EVERIFIN_LOGIN_PARAMS", "EVERIFIN_CONNECT_PARAMS")
        for error in _errors_of_params(name)
    ]


def _errors_of_params(name: str) -> Iterable[CheckMessage]:
    params, scopes = _value_of(name), _value_of("EVERIFIN_SCOPES")
    if isinstance(params, str) and not callable(_load(params)):
        yield _error(
            f"{name} does not lead to a function.",
            id="E084",
            hint="Name a function that takes the request and returns a dict of parameters.",
        )
    if not params or isinstance(params, str):
        return
    if refused := params_refused(params):
        yield _error(
            f"{name} must not have {', '.join(refused)}.",
            id="E082",
            hint="everifin_django sets what the login itself depends on. With prompt=none, a user "
            "who is not signed in at Everifin could never log in.",
        )
    if scopes is not None and "openid" not in scopes.split() and proof_is_needed(params):
        yield _error(
            f"{name} asks for max_age or acr_values, but EVERIFIN_SCOPES does not ask for openid, "
            "so no ID token will prove them.",
            id="E083",
            hint='Add "openid" to EVERIFIN_SCOPES.',
        )


def check_access_check(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    path = _value_of("EVERIFIN_ACCESS_CHECK")
    if not path or callable(_load(path)):
        return []
    return [
        _error(
            "EVERIFIN_ACCESS_CHECK does not lead to a function.",
            id="E086",
            hint="Name a function that takes the request and an action.",
        )
    ]


def check_logout(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    scopes = _value_of("EVERIFIN_SCOPES")
    is_right = scopes is None or "offline_access" in scopes.split() or not _logs_users_in()
    if is_right or _value_of("EVERIFIN_LOGOUT_ENDS_CONNECTION") is not False:
        return []
    return [
        _error(
            "EVERIFIN_LOGOUT_ENDS_CONNECTION is False, but without offline_access a connection "
            "ends with the session at Everifin.",
            id="E057",
            hint='Add "offline_access" to EVERIFIN_SCOPES, or leave the setting at True.',
        )
    ]


def _logs_users_in() -> bool:
    return any(_is_kind_of(_load(name), BACKEND) for name in settings.AUTHENTICATION_BACKENDS)


def check_names(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [
        _warning(
            f"{name} is not a setting of everifin_django.",
            hint=_suggest(name),
            id="W001",
        )
        for name in sorted(dir(settings))
        if name.startswith("EVERIFIN_") and name not in SETTINGS
    ]


def check_hosts(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if _errors_of("EVERIFIN_REDIRECT_URI") or conf.redirect_uri or hosts_are_named():
        return []
    return [
        _error(
            "ALLOWED_HOSTS has a wildcard, so the URL that Everifin sends users back to cannot be "
            "built from the request.",
            id="E050",
            hint="Set EVERIFIN_REDIRECT_URI, or name each host in ALLOWED_HOSTS in full.",
        )
    ]


def check_callback(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    languages = [code for code, _ in settings.LANGUAGES] if settings.USE_I18N else []
    try:
        urls = {_callback_in(language) for language in languages}
    except NoReverseMatch:
        return []
    if len(urls) <= 1:
        return []
    return [
        checks.Warning(
            "The callback has another URL for each language, and Everifin accepts only those that "
            "are registered.",
            hint='Move include("everifin_django.urls") out of i18n_patterns.',
            id="everifin_django.W010",
        )
    ]


def _callback_in(language: str) -> str:
    with translation.override(language):
        return reverse("everifin_django:callback")


def check_plain_http(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [
        _error(
            f"{name} is a plain http URL on this machine: the sandbox, "
            "or a service nobody else can reach.",
            id=check_id,
            hint="Set it to an https URL.",
        )
        for name, check_id in PLAIN_HTTP_IDS.items()
        if is_plain_loopback(str(_value_of(name)))
    ]


def check_sandbox(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if _value_of("EVERIFIN_CLIENT_SECRET") != SANDBOX_CLIENT_SECRET:
        return []
    return [
        _error(
            "EVERIFIN_CLIENT_SECRET is the one of the sandbox, which everybody knows.",
            id="E020",
            hint="Set it to the secret that Everifin gave you.",
        )
    ]


def check_redirect_uri(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if _errors_of("EVERIFIN_REDIRECT_URI"):
        return []
    if conf.redirect_uri is None:
        return [
            _warning(
                "EVERIFIN_REDIRECT_URI is not set, so the URL that Everifin sends users back "
                "to is built from the request.",
                id="W002",
                hint="Set it to the URL of this site's callback, as you gave it to Everifin.",
            )
        ]
    host, _port = split_domain_port(urlsplit(conf.redirect_uri).netloc)
    is_local = is_plain_loopback(conf.redirect_uri)  # which check_plain_http reports
    if is_local or not settings.ALLOWED_HOSTS or validate_host(host, settings.ALLOWED_HOSTS):
        return []
    return [
        _warning(
            "ALLOWED_HOSTS does not have the host of EVERIFIN_REDIRECT_URI, so Django refuses "
            "users who come back from Everifin.",
            id="W006",
            hint="Add the host to ALLOWED_HOSTS. If a proxy of yours changes the host, silence "
            "this warning by SILENCED_SYSTEM_CHECKS.",
        )
    ]


def check_pkce(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if _value_of("EVERIFIN_USE_PKCE") is not False:
        return []
    return [
        _warning(
            "EVERIFIN_USE_PKCE is False: others could use a stolen authorization code.",
            id="W005",
            hint="Set it to True, and ask Everifin to demand PKCE of your site.",
        )
    ]


def check_logout_of_browsers(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    keeps_connection = _value_of("EVERIFIN_LOGOUT_ENDS_CONNECTION") is False
    if not keeps_connection or getattr(settings, "EVERIFIN_POST_LOGOUT_REDIRECT_URI", None):
        return []
    return [
        _warning(
            "EVERIFIN_LOGOUT_ENDS_CONNECTION is False, and nothing ends the browser's session at "
            "Everifin when a user logs out.",
            id="W008",
            hint="Set EVERIFIN_POST_LOGOUT_REDIRECT_URI: the browser then logs out there, too.",
        )
    ]


def check_session_cookie(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if settings.SESSION_COOKIE_SECURE:
        return []
    return [
        _warning(
            "SESSION_COOKIE_SECURE is not set: the session cookie, and a login with it, can "
            "travel in clear text.",
            id="W003",
            hint="Set SESSION_COOKIE_SECURE = True.",
        )
    ]


def check_dependencies(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Reads the metadata of installed packages: the floors are those this package declares."""
    outdated = [
        f"{name} {installed}"
        for name, floors, excluded in _declared_floors()
        if (installed := _installed(name)) and _is_outdated(installed, floors, excluded)
    ]
    if not outdated:
        return []
    return [
        _warning(
            f"Older than everifin_django asks for, with known security holes: "
            f"{', '.join(outdated)}.",
            id="W007",
            hint="Upgrade them. pip does so when it installs everifin-django again with --upgrade.",
        )
    ]


def check_end_user_ip(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Behind a proxy that is not counted, every visitor has the proxy's own IP address."""
    behind = ("SECURE_PROXY_SSL_HEADER", "USE_X_FORWARDED_HOST", "USE_X_FORWARDED_PORT")
    told = [name for name in behind if getattr(settings, name, None)]
    if not told or _errors_of("EVERIFIN_TRUSTED_PROXIES") or conf.trusted_proxies:
        return []
    return [
        _warning(
            f"{told[0]} says that the site is behind a proxy, and EVERIFIN_TRUSTED_PROXIES is 0: "
            "no user's IP address can be known, so nobody can pay.",
            id="W009",
            hint="Set EVERIFIN_TRUSTED_PROXIES to the number of your proxies that append to "
            "X-Forwarded-For.",
        )
    ]


def check_stored_keys(
    app_configs: Any, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Reads every stored token's key id."""
    alias = router.db_for_write(BankToken)
    if alias not in (databases or ()):
        return []
    if BankToken._meta.db_table not in connections[alias].introspection.table_names():
        return []
    try:
        missing = {
            key_id: count
            for key_id, count in keys_in_use().items()
            if key_id == UNREADABLE or not is_known(key_id)
        }
    except (ImproperlyConfigured, KeysUnavailableError):
        # What is wrong with the keys themselves, ``check_keys`` says.
        return []
    return [
        _warning(
            f"Stored tokens that cannot be opened, because {_cause(key_id)}: {count}.",
            hint="Put it back behind the newest one. `manage.py everifin_rotate_keys --status` "
            "says which keys are needed.",
            id="W004",
        )
        for key_id, count in sorted(missing.items())
    ]


def _cause(key_id: str) -> str:
    if key_id == UNREADABLE:
        return "this app did not write them"
    return f"the encryption key {key_id!r} is missing"


def _error(message: str, *, id: str, hint: str) -> CheckMessage:  # noqa: A002 - Django's own word
    return checks.Error(message, hint=hint, id=f"everifin_django.{id}")


def _warning(message: str, *, id: str, hint: str) -> CheckMessage:  # noqa: A002 - as above
    return checks.Warning(message, hint=hint, id=f"everifin_django.{id}")


def _errors_of(name: str) -> list[CheckMessage]:
    """What the setting *name* alone has wrong."""
    try:
        SETTINGS[name].read()
    except ImproperlyConfigured as error:
        return [_error(str(error), id=SETTINGS[name].check_id, hint=_hint_of(name))]
    return []


def _hint_of(name: str) -> str:
    return f"{SETTINGS[name].hint} See {REFERENCE}#{name.lower()}."


def _value_of(name: str) -> Any:
    """Return the value that the setting *name* alone gives; None if it is wrong."""
    try:
        return SETTINGS[name].read()
    except ImproperlyConfigured:
        return None


def _derived_from_secret_key() -> set[bytes]:
    """The 32 bytes that a hurried hand makes of SECRET_KEY."""
    try:
        secret_key = settings.SECRET_KEY
    except ImproperlyConfigured:
        # It is empty, which Django's own checks say.
        return set()
    secret = secret_key.encode() if isinstance(secret_key, str) else bytes(secret_key)
    cut = secret[:KEY_BYTES].ljust(KEY_BYTES, b"\0")
    hashes = (hashlib.sha256, hashlib.sha3_256, hashlib.blake2s)
    return {cut, base64.b64encode(secret)[:KEY_BYTES], *(make(secret).digest() for make in hashes)}


def _declared_floors() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield name, lowest version and excluded versions of each package that this one needs."""
    try:
        requirements = metadata.requires("everifin-django") or []
    except metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        if found := REQUIREMENT.match(requirement):
            versions = requirement.partition(";")[0]
            excluded = re.findall(r"!=\s*([\d.]+)", versions)
            yield found[0], re.findall(r">=\s*([\d.]+)", versions), excluded


@cache
def _installed(name: str) -> str | None:
    # Kept for the life of the process, since an upgrade counts after a restart: to find and parse
    # the metadata of all packages takes longer than all other checks together.
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # An extra that is not installed.
        return None


def _is_outdated(installed: str, floors: Iterable[str], excluded: Iterable[str]) -> bool:
    version = _numbers(installed)
    return any(version < _numbers(floor) for floor in floors) or any(
        version == _numbers(one) for one in excluded
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that *version* begins with, without zeros at the end: 6.0 is 6.0.0."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _load(name: str) -> Any:
    try:
        return import_string(name)
    except ImportError:
        return None


def _is_kind_of(one: Any, name: str) -> bool:
    """Is *one* the class *name*, or a site's subclass of it?"""
    return isinstance(one, type) and issubclass(one, import_string(name))


def _suggest(name: str) -> str:
    close = get_close_matches(name, SETTINGS, n=1)
    return f"Did you mean {close[0]}?" if close else f"{REFERENCE} lists the settings."

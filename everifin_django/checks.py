"""
What is missing or unsafe, said at ``manage.py check``: one small function a concern, each with a
hint that says what to write.

No check asks the network; one asks the database, and only when it is told which:
``check --deploy --database default``. Ids are never used again for something else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.utils.module_loading import import_string

from everifin_django.conf import DEFAULT_KEY_PROVIDER, SETTING_NAMES, conf, is_plain_loopback
from everifin_django.connections.key_rotation import UNREADABLE, keys_in_use
from everifin_django.encryption import KEY_BYTES, Key, is_known, parse_key, parse_keys
from everifin_django.exceptions import KeysUnavailableError
from everifin_django.models import BankToken

MIDDLEWARE = "everifin_django.middleware.EverifinMiddleware"
BACKEND = "everifin_django.backends.EverifinBackend"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
SIGNED_COOKIES = "django.contrib.sessions.backends.signed_cookies"
PROVIDER_HINT = "README's section on security shows one. Without it, the keys are in the settings."
SANDBOX_CLIENT_SECRET = "everifin-sandbox-secret"  # noqa: S105 - it guards nothing
"""What ``manage.py everifin_sandbox`` prints to paste, so everybody knows it."""
ADDRESSES = (
    "EVERIFIN_IDP_URL",
    "EVERIFIN_API_URL",
    "EVERIFIN_ISSUER",
    "EVERIFIN_REDIRECT_URI",
    "EVERIFIN_POST_LOGOUT_REDIRECT_URI",
)


def register() -> None:
    for check in (
        check_client,
        check_keys,
        check_urls,
        check_seconds,
        check_choices,
        check_values,
        check_api_paths,
        check_api_fields,
        check_middleware,
        check_sessions,
        check_login,
        check_names,
    ):
        checks.register(check, "everifin_django")
    checks.register(check_deployment, "everifin_django", deploy=True)
    checks.register(check_stored_keys, checks.Tags.database, deploy=True)


def check_client(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    hint = (
        "Everifin gives you a client id and secret when it registers your site. "
        "Without a contract yet, `manage.py everifin_sandbox` prints a pair to paste."
    )
    return [
        *_errors_of("EVERIFIN_CLIENT_ID", id="E001", hint=hint),
        *_errors_of("EVERIFIN_CLIENT_SECRET", id="E002", hint=hint),
    ]


def check_keys(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if errors := _errors_of("EVERIFIN_KEY_PROVIDER", id="E019", hint=PROVIDER_HINT):
        return errors
    if conf.key_provider != DEFAULT_KEY_PROVIDER:
        return list(_errors_of_provider())
    hint = (
        "Put a key that `manage.py everifin_new_key` prints in front of the list, "
        "and keep it as secret as SECRET_KEY."
    )
    if errors := _errors_of("EVERIFIN_ENCRYPTION_KEYS", id="E003", hint=hint):
        return errors
    keys, errors = [], []
    for text in conf.encryption_keys:
        try:
            keys.append(parse_key(text))
        except ImproperlyConfigured as error:
            errors.append(_error(str(error), id="E004", hint=hint))
    return errors or [*_errors_of_ids(), *_errors_of_origin(keys)]


def _errors_of_provider() -> Iterable[CheckMessage]:
    provider = _load(conf.key_provider)
    if not all(callable(getattr(provider, name, None)) for name in ("active", "get")):
        yield _error(
            "EVERIFIN_KEY_PROVIDER does not lead to a class with active() and get().",
            id="E019",
            hint=PROVIDER_HINT,
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


def check_urls(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    hint = "Tokens and login codes travel there. Plain http is for the sandbox on this machine."
    return [error for name in ADDRESSES for error in _errors_of(name, id="E007", hint=hint)]


def check_seconds(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    names = (
        "EVERIFIN_CONNECT_TIMEOUT_SECONDS",
        "EVERIFIN_DEADLINE_SECONDS",
        "EVERIFIN_REFRESH_MARGIN_SECONDS",
    )
    hint = "README names a default that suits most."
    return [error for name in names for error in _errors_of(name, id="E008", hint=hint)]


def check_choices(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    default = "README names a default that suits most."
    proxies = "Count the reverse proxies of yours that append to X-Forwarded-For."
    return [
        *_errors_of("EVERIFIN_CLIENT_AUTH", id="E009", hint="Everifin documents body."),
        *_errors_of("EVERIFIN_TRUSTED_PROXIES", id="E010", hint=proxies),
        *_errors_of("EVERIFIN_MAX_TRIES", id="E022", hint=default),
        *_errors_of("EVERIFIN_POOL_SIZE", id="E022", hint=default),
    ]


def check_middleware(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    middleware = [_load(name) for name in settings.MIDDLEWARE]
    places = [place for place, one in enumerate(middleware) if _is_kind_of(one, MIDDLEWARE)]
    if not places:
        return [
            _error(
                "EverifinMiddleware is not in MIDDLEWARE, so there is no request.everifin.",
                id="E011",
                hint=f'Add "{MIDDLEWARE}" behind AuthenticationMiddleware.',
            )
        ]
    if not any(_is_kind_of(one, AUTHENTICATION) for one in middleware[: places[0]]):
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
    is_login = any(_is_kind_of(_load(name), BACKEND) for name in settings.AUTHENTICATION_BACKENDS)
    if not is_login or _complaint("EVERIFIN_SCOPES") or "openid" in conf.scopes.split():
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


def check_api_paths(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    hint = "Name only the paths that differ from README's."
    return _errors_of("EVERIFIN_API_PATHS", id="E017", hint=hint)


def check_api_fields(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    hint = (
        "Name only the fields that differ from everifin_django.api_names.DEFAULT_API_FIELDS, "
        'such as {"transaction": {"counterparty_name": "partnerName"}}.'
    )
    return _errors_of("EVERIFIN_API_FIELDS", id="E021", hint=hint)


def check_values(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    names = (
        "EVERIFIN_REALM",
        "EVERIFIN_SCOPES",
        "EVERIFIN_USE_PKCE",
        "EVERIFIN_REQUIRE_ISS",
        "EVERIFIN_CREATE_USERS",
        "EVERIFIN_CONNECT_ALLOWS_LOGIN",
        "EVERIFIN_RETENTION_DAYS",
        "EVERIFIN_REFRESH_EVERY_VIEW",
        "EVERIFIN_LEGACY_LOGOUT",
        "EVERIFIN_BACKCHANNEL_LOGOUT",
        "EVERIFIN_CA_BUNDLE",
        "EVERIFIN_PROXIES",
    )
    hint = "README names type and default. What comes from the environment is a text at first."
    return [error for name in names for error in _errors_of(name, id="E018", hint=hint)]


def check_names(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [
        checks.Warning(
            f"{name} is not a setting of everifin_django.",
            hint=_suggest(name),
            id="everifin_django.W001",
        )
        for name in sorted(dir(settings))
        if name.startswith("EVERIFIN_") and name not in SETTING_NAMES
    ]


def check_deployment(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    messages: list[CheckMessage] = [
        _error(
            f"{name} is a plain http address on this machine: the sandbox, "
            "or a service nobody else can reach.",
            id="E016",
            hint="Set it to an https address.",
        )
        for name in ADDRESSES
        if is_plain_loopback(str(getattr(settings, name, "")))
    ]
    if getattr(settings, "EVERIFIN_CLIENT_SECRET", None) == SANDBOX_CLIENT_SECRET:
        messages.append(
            _error(
                "EVERIFIN_CLIENT_SECRET is the one of the sandbox, which everybody knows.",
                id="E020",
                hint="Set it to the secret that Everifin gave you.",
            )
        )
    if not _complaint("EVERIFIN_REDIRECT_URI") and conf.redirect_uri is None:
        messages.append(
            checks.Warning(
                "EVERIFIN_REDIRECT_URI is not set, so the address that Everifin sends users back "
                "to is taken from the request.",
                hint="Set it to the address of this site's callback, as you gave it to Everifin.",
                id="everifin_django.W002",
            )
        )
    if not _complaint("EVERIFIN_USE_PKCE") and not conf.use_pkce:
        messages.append(
            checks.Warning(
                "EVERIFIN_USE_PKCE is False: a login code that is stolen could be used by others.",
                hint="Set it to True, and ask Everifin to demand PKCE of your site.",
                id="everifin_django.W005",
            )
        )
    if not settings.SESSION_COOKIE_SECURE:
        messages.append(
            checks.Warning(
                "SESSION_COOKIE_SECURE is not set: the session that holds a login under way can "
                "travel in clear text.",
                hint="Set SESSION_COOKIE_SECURE = True.",
                id="everifin_django.W003",
            )
        )
    return messages


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
        checks.Warning(
            f"Stored tokens that cannot be opened, because {_cause(key_id)}: {count}.",
            hint="Put it back behind the newest one. `manage.py everifin_rotate_keys --status` "
            "says which keys are needed.",
            id="everifin_django.W004",
        )
        for key_id, count in sorted(missing.items())
    ]


def _cause(key_id: str) -> str:
    if key_id == UNREADABLE:
        return "this app did not write them"
    return f"the encryption key {key_id!r} is missing"


def _error(message: str, *, id: str, hint: str) -> CheckMessage:  # noqa: A002 - Django's own word
    return checks.Error(message, hint=hint, id=f"everifin_django.{id}")


def _errors_of(name: str, *, id: str, hint: str) -> list[CheckMessage]:  # noqa: A002 - as above
    complaint = _complaint(name)
    return [_error(complaint, id=id, hint=hint)] if complaint else []


def _complaint(name: str) -> str | None:
    """What ``conf`` has against the setting *name*; None also for what it has against another."""
    try:
        getattr(conf, name.removeprefix("EVERIFIN_").lower())
    except ImproperlyConfigured as error:
        return str(error) if str(error).startswith(name) else None
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


def _load(name: str) -> Any:
    try:
        return import_string(name)
    except ImportError:
        return None


def _is_kind_of(one: Any, name: str) -> bool:
    """Is *one* the class *name*, or a site's subclass of it?"""
    return isinstance(one, type) and issubclass(one, import_string(name))


def _suggest(name: str) -> str:
    close = get_close_matches(name, SETTING_NAMES, n=1)
    return f"Did you mean {close[0]}?" if close else "README lists the settings."

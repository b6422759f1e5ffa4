"""
Every setting, one typed property each, read at the moment of use.

Nothing is cached, so ``override_settings`` works and a changed setting counts at once. A value of
the wrong kind is ``ImproperlyConfigured``, whose message names the setting and never shows the
value. README lists each with type, default and meaning; a name beginning ``EVERIFIN_`` that is not
here earns a warning from the system checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from everifin_django.api_names import DEFAULT_API_FIELDS, DEFAULT_API_PATHS

T = TypeVar("T")

DEFAULT_KEY_PROVIDER = "everifin_django.encryption.SettingsKeys"

MAX_SECONDS = 60
"""The upper bound of every timeout, so that no setting can hold a worker for minutes."""

MAX_DAYS = 366
MAX_PROXIES = 10
MAX_TRIES = 10
MAX_POOL = 1000
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
CLIENT_AUTH_METHODS = ("client_secret_post", "client_secret_basic")
REALM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~-]{0,254}")


def is_secure(url: str) -> bool:
    """Is *url* https, or plain http to this very machine (the sandbox)?"""
    return _scheme_and_host(url)[0] == "https" or is_plain_loopback(url)


def is_plain_loopback(url: str) -> bool:
    """Is *url* plain http to this very machine?"""
    scheme, host = _scheme_and_host(url)
    return scheme == "http" and host in LOOPBACK_HOSTS


def _scheme_and_host(url: str) -> tuple[str, str]:
    """Both empty if *url* is none, or names no host."""
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    return (parts.scheme, parts.hostname or "") if is_whole else ("", "")


class Conf:
    # The three a site must give.

    @property
    def client_id(self) -> str:
        return self._from_everifin("EVERIFIN_CLIENT_ID")

    @property
    def client_secret(self) -> str:
        return self._from_everifin("EVERIFIN_CLIENT_SECRET")

    @property
    def encryption_keys(self) -> Sequence[str]:
        """Newest first; what each spells is read by ``crypto``."""
        unset: Sequence[str] = ()
        return self._read(
            "EVERIFIN_ENCRYPTION_KEYS",
            unset,
            lambda keys: isinstance(keys, list | tuple) and keys,
            "must be a list of keys, newest first. `manage.py everifin_new_key` prints one.",
        )

    @property
    def key_provider(self) -> str:
        """The path of a class that is a ``crypto.KeyProvider``."""
        return self._read(
            "EVERIFIN_KEY_PROVIDER",
            DEFAULT_KEY_PROVIDER,
            lambda path: isinstance(path, str) and path.count(".") >= 1,
            f'must be the path of a class, such as "{DEFAULT_KEY_PROVIDER}".',
        )

    # Where Everifin is.

    @property
    def idp_url(self) -> str:
        return self._base_url("EVERIFIN_IDP_URL", "https://app.everifin.com")

    @property
    def realm(self) -> str:
        return self._read(
            "EVERIFIN_REALM",
            "everifin_app",
            lambda realm: isinstance(realm, str) and REALM.fullmatch(realm) is not None,
            "must be the name that Everifin gives you: letters, digits, '.', '_', '~' and '-'.",
        )

    @property
    def issuer(self) -> str:
        """Compared byte by byte, so it is taken as it is written."""
        given = self._address("EVERIFIN_ISSUER")
        return given or f"{self.idp_url}/auth/realms/{self.realm}"

    @property
    def api_url(self) -> str:
        return self._base_url("EVERIFIN_API_URL", "https://api.everifin.com")

    @property
    def api_paths(self) -> Mapping[str, str]:
        none: Mapping[str, str] = {}
        corrections = self._read(
            "EVERIFIN_API_PATHS", none, _maps_texts, "must be a dict of names and paths."
        )
        for name, path in corrections.items():
            if name not in DEFAULT_API_PATHS:
                raise ImproperlyConfigured(
                    f"EVERIFIN_API_PATHS has a path for {name!r}. "
                    f"There are: {', '.join(DEFAULT_API_PATHS)}."
                )
            if not _is_path_like(path, DEFAULT_API_PATHS[name]):
                raise ImproperlyConfigured(
                    f"EVERIFIN_API_PATHS has a path for {name!r} that cannot be filled in. "
                    f"It must begin with '/' and have the same names in braces "
                    f"as {DEFAULT_API_PATHS[name]}."
                )
        return {**DEFAULT_API_PATHS, **corrections}

    @property
    def api_fields(self) -> Mapping[str, Mapping[str, str]]:
        """By object, our name of each field and Everifin's."""
        none: Mapping[str, Mapping[str, str]] = {}
        corrections = self._read(
            "EVERIFIN_API_FIELDS",
            none,
            _maps_fields,
            "must be a dict of objects, each a dict of our names of fields and Everifin's.",
        )
        for kind, names in corrections.items():
            if kind not in DEFAULT_API_FIELDS:
                raise ImproperlyConfigured(
                    f"EVERIFIN_API_FIELDS has fields of {kind!r}. "
                    f"There are: {', '.join(DEFAULT_API_FIELDS)}."
                )
            if unknown := names.keys() - DEFAULT_API_FIELDS[kind].keys():
                raise ImproperlyConfigured(
                    f"EVERIFIN_API_FIELDS has a field {min(unknown)!r} of {kind!r}. "
                    f"There are: {', '.join(DEFAULT_API_FIELDS[kind])}."
                )
        corrected = {
            kind: {**DEFAULT_API_FIELDS[kind], **names} for kind, names in corrections.items()
        }
        return {**DEFAULT_API_FIELDS, **corrected}

    def endpoint(self, name: str) -> str:
        """
        Return the URL of the identity provider's endpoint *name*: auth, token, logout, certs or
        userinfo.

        Source: Everifin documents auth and token literally; the others are Keycloak's siblings of
        them (inferred).
        """
        return f"{self.idp_url}/auth/realms/{self.realm}/protocol/openid-connect/{name}"

    # The login.

    @property
    def scopes(self) -> str:
        return self._read(
            "EVERIFIN_SCOPES",
            "openid ais",
            lambda scopes: isinstance(scopes, str) and _is_plain(scopes) and scopes.split(),
            'must be a text of scopes with spaces between them, such as "openid ais".',
        )

    @property
    def use_pkce(self) -> bool:
        return self._flag("EVERIFIN_USE_PKCE", default=True)

    @property
    def require_iss(self) -> bool:
        """Is an answer of the identity provider without ``iss`` refused? Source: RFC 9207, 2.4."""
        return self._flag("EVERIFIN_REQUIRE_ISS", default=False)

    @property
    def client_auth(self) -> str:
        """
        How the client authenticates at the token endpoint: "client_secret_post", as Everifin
        documents, or "client_secret_basic". Source: OpenID Connect Core 1.0, section 9.
        """
        return self._read(
            "EVERIFIN_CLIENT_AUTH",
            "client_secret_post",
            lambda way: (
                isinstance(way, str) and way in {"client_secret_post", "client_secret_basic"}
            ),
            'must be "client_secret_post" or "client_secret_basic".',
        )

    @property
    def redirect_uri(self) -> str | None:
        return self._address("EVERIFIN_REDIRECT_URI")

    @property
    def create_users(self) -> bool:
        return self._flag("EVERIFIN_CREATE_USERS", default=True)

    @property
    def connect_allows_login(self) -> bool:
        """May a user who has connected an Everifin account log in with it?"""
        return self._flag("EVERIFIN_CONNECT_ALLOWS_LOGIN", default=True)

    # The logout.

    @property
    def post_logout_redirect_uri(self) -> str | None:
        """Where Everifin sends a browser back to that this site sent there to log out."""
        return self._address("EVERIFIN_POST_LOGOUT_REDIRECT_URI")

    @property
    def legacy_logout(self) -> bool:
        """Does Everifin's logout take ``redirect_uri``, as Keycloak before version 18 does?"""
        return self._flag("EVERIFIN_LEGACY_LOGOUT", default=False)

    @property
    def backchannel_logout(self) -> bool:
        """May Everifin end sessions of this site?"""
        return self._flag("EVERIFIN_BACKCHANNEL_LOGOUT", default=False)

    # Time.

    @property
    def connect_timeout_seconds(self) -> float:
        """For a connection to come about."""
        return self._seconds("EVERIFIN_CONNECT_TIMEOUT_SECONDS", 3)

    @property
    def deadline_seconds(self) -> float:
        """For a whole call, all its tries included."""
        return self._seconds("EVERIFIN_DEADLINE_SECONDS", 10)

    @property
    def refresh_margin_seconds(self) -> float:
        """How long before its expiry an access token is refreshed, at most."""
        return self._seconds("EVERIFIN_REFRESH_MARGIN_SECONDS", 60)

    @property
    def retention_days(self) -> int:
        """How long a connection that has to be made again keeps its tokens."""
        return self._read(
            "EVERIFIN_RETENTION_DAYS",
            30,
            lambda days: type(days) is int and 1 <= days <= MAX_DAYS,
            f"must be a whole number of days from 1 to {MAX_DAYS}.",
        )

    # The middleware.

    @property
    def refresh_every_view(self) -> bool:
        return self._flag("EVERIFIN_REFRESH_EVERY_VIEW", default=False)

    @property
    def trusted_proxies(self) -> int:
        """
        How many reverse proxies of the site append to X-Forwarded-For; 0 takes the peer's own
        address.
        """
        return self._whole_number("EVERIFIN_TRUSTED_PROXIES", 0, least=0, most=MAX_PROXIES)

    # The network.

    @property
    def max_tries(self) -> int:
        """How often a call that only reads is tried at most, within the deadline."""
        return self._whole_number("EVERIFIN_MAX_TRIES", 3, least=1, most=MAX_TRIES)

    @property
    def pool_size(self) -> int:
        """How many connections a process keeps open to a host; more are closed after their call."""
        return self._whole_number("EVERIFIN_POOL_SIZE", 32, least=1, most=MAX_POOL)

    @property
    def ca_bundle(self) -> str | None:
        """The file or directory of certificates to trust instead of the ones requests brings."""
        unset: str | Path | None = None
        path = self._read(
            "EVERIFIN_CA_BUNDLE",
            unset,
            lambda path: _is_unset(path) or (isinstance(path, str | Path) and Path(path).exists()),
            "must name a file or directory of certificates that exists.",
        )
        return str(path) if path else None

    @property
    def proxies(self) -> Mapping[str, str]:
        """The proxy for each scheme of an address, as requests takes them; none by default."""
        none: Mapping[str, str] = {}
        return self._read(
            "EVERIFIN_PROXIES",
            none,
            lambda proxies: _maps_texts(proxies) and all(map(_is_web_proxy, proxies.values())),
            'must be a dict such as {"https": "http://proxy.example:3128"}.',
        )

    def _read(self, name: str, default: T, is_right: Callable[[Any], object], complaint: str) -> T:
        value = getattr(settings, name, default)
        if is_right(value):
            return cast("T", value)
        # It may be a secret, and a report of the error below would show it.
        del value
        raise ImproperlyConfigured(f"{name} {complaint}")

    def _from_everifin(self, name: str) -> str:
        return self._read(
            name,
            "",
            lambda value: isinstance(value, str) and value.strip(),
            "is not set. Everifin gives it to you when it registers your site.",
        )

    def _base_url(self, name: str, default: str) -> str:
        return self._read(name, default, _is_base_url, _ADDRESS).rstrip("/")

    def _address(self, name: str) -> str | None:
        unset: str | None = None
        return self._read(name, unset, _is_address_or_unset, _ADDRESS) or None

    def _flag(self, name: str, *, default: bool) -> bool:
        return self._read(
            name, default, lambda value: isinstance(value, bool), "must be True or False."
        )

    def _whole_number(self, name: str, default: int, *, least: int, most: int) -> int:
        return self._read(
            name,
            default,
            lambda number: type(number) is int and least <= number <= most,
            f"must be a whole number from {least} to {most}.",
        )

    def _seconds(self, name: str, default: float) -> float:
        return self._read(
            name,
            default,
            lambda value: type(value) in (int, float) and 0 < value <= MAX_SECONDS,
            f"must be a number of seconds above 0 and at most {MAX_SECONDS}.",
        )


_ADDRESS = (
    "must be a whole https address without user name or fragment. "
    "Plain http is for this machine only."
)


def _is_unset(value: Any) -> bool:
    """None, or the empty text that a missing environment variable often becomes."""
    return value is None or (isinstance(value, str) and not value)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _is_address(value: Any) -> bool:
    return (
        isinstance(value, str)
        and _is_plain(value)
        and not {" ", "#", "\\"}.intersection(value)
        and is_secure(value)
        and "@" not in urlsplit(value).netloc
    )


def _is_address_or_unset(value: Any) -> bool:
    return _is_unset(value) or _is_address(value)


def _is_base_url(value: Any) -> bool:
    return _is_address(value) and "?" not in value


def _is_web_proxy(value: str) -> bool:
    # For others, requests leaves the connections to code that knows no deadline.
    return value.startswith(("http://", "https://"))


def _maps_texts(value: Any) -> bool:
    return _maps(value, lambda text: isinstance(text, str))


def _maps(value: Any, is_right: Callable[[Any], object]) -> bool:
    """Is *value* a mapping of texts to what is right?"""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and is_right(given) for name, given in value.items()
    )


def _maps_fields(value: Any) -> bool:
    return _maps(value, lambda names: _maps_texts(names) and all(names.values()))


def _is_path_like(path: str, example: str) -> bool:
    if not path.startswith("/") or not _is_plain(path) or {" ", "?", "#", "%"}.intersection(path):
        return False
    if not {"", ".", ".."}.isdisjoint(path[1:].split("/")):
        return False
    try:
        return _names_in(path) == _names_in(example)
    except ValueError:
        return False


def _names_in(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


conf = Conf()

SETTING_NAMES = frozenset(
    {
        "EVERIFIN_" + name.upper()
        for name, value in vars(Conf).items()
        if isinstance(value, property)
    }
)
"""The names of all settings, as a site writes them."""

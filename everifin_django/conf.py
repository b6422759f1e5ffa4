"""
Every setting, declared once: name, type, default, bounds, check id, hint and meaning.

Settings are read at the moment of use and nothing is cached, so ``override_settings`` works and a
changed setting counts at once. A wrong value is ``ImproperlyConfigured``: the message names the
setting, and neither message nor traceback holds the value. The system checks, the settings
reference (docs/reference/settings.md) and the example's environment variables follow from the same
declarations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, Generic, TypeVar, cast, overload
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from everifin_django.api_names import DEFAULT_API_FIELDS, DEFAULT_API_PATHS

T = TypeVar("T")

DEFAULT_KEY_PROVIDER = "everifin_django.encryption.SettingsKeys"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

MAX_SECONDS = 60
"""The upper bound of every timeout, so that no setting can hold a worker for minutes."""

MAX_URL = 2000
MAX_NAME = 255
MAX_SECRET = 2000
MAX_ENTRIES = 100

SIGNING_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""Asymmetric ones only: whoever verifies must not be able to sign."""

MAX_TEXTS = 100
HOST_AND_PORT = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
APP_SCHEME = re.compile(r"(?=.{1,64}$)[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+")
REALM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~-]{0,254}")
SCOPES = re.compile(r" *[!#-\[\]-~]+(?: +[!#-\[\]-~]+)* *")
"""Source: RFC 6749, section 3.3."""

PARAM_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
MAX_AGE = re.compile(r"[0-9]{1,9}")
PROTOCOL_PARAMS = frozenset(
    {
        *("client_id", "client_secret", "redirect_uri", "response_type", "response_mode", "scope"),
        *("state", "nonce", "code_challenge", "code_challenge_method", "code_verifier"),
        *("request", "request_uri", "registration", "claims", "dpop_jkt", "code", "grant_type"),
    }
)
"""
What only this app may set. ``claims`` could ask for an ``acr`` that nobody would check: acr_values
is checked.
"""

DOTTED_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
URL = re.compile(r"[A-Za-z0-9._~:/?\[\]!$&'()*+,;=%-]+")
"""The characters of a URL (RFC 3986) without user name and fragment."""

SHOWN_NAME = re.compile(r"[A-Za-z_]{1,40}")
"""A name in a mapping that is safe to show: no secret looks like this."""


def is_secure(url: str) -> bool:
    """Is *url* https, or plain http to this very machine (the sandbox)?"""
    return _scheme_and_host(url)[0] == "https" or is_plain_loopback(url)


def is_plain_loopback(url: str) -> bool:
    """Is *url* plain http to this very machine?"""
    scheme, host = _scheme_and_host(url)
    return scheme == "http" and host in LOOPBACK_HOSTS


def _scheme_and_host(url: str) -> tuple[str, str]:
    """Both are empty if *url* is invalid or names no host."""
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    return (parts.scheme, parts.hostname or "") if is_whole else ("", "")


class _WrongValueError(ValueError):
    """The rest of a sentence that begins with the setting's name. It never shows the value."""


class Setting(Generic[T]):
    """
    One setting: a descriptor that reads it from Django's settings and holds it to its bounds.

    ``kind`` and ``bounds`` describe the value, ``meaning`` is the sentence of the reference and
    ``hint`` the one of the check ``check_id``.

    Errors: ImproperlyConfigured if the value is wrong.
    """

    kind = "str"
    bounds = ""
    hint = "The default suits most sites."

    def __init__(
        self,
        *,
        default: T,
        check_id: str,
        meaning: str,
        bounds: str = "",
        hint: str = "",
        default_shown: str = "",
    ) -> None:
        self.default = default
        self.check_id = check_id
        self.meaning = meaning
        self.bounds = bounds or self.bounds
        self.hint = hint or self.hint
        self.default_shown = default_shown or f"`{default!r}`"

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.name = f"EVERIFIN_{attribute.upper()}"

    @overload
    def __get__(self, conf: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, conf: Conf, owner: type) -> T: ...
    def __get__(self, conf: Conf | None, owner: type) -> Setting[T] | T:
        return self if conf is None else self.get(conf)

    def get(self, conf: Conf) -> T:
        """Return the value; a setting that follows from others asks *conf* for them."""
        return self.read()

    def read(self) -> T:
        """Return the value that this setting alone gives."""
        try:
            return self._clean_anything(getattr(settings, self.name, self.default))
        except _WrongValueError as error:
            complaint = str(error)
        # Raised out here, the error brings no frame along that holds the value.
        raise ImproperlyConfigured(f"{self.name} {complaint}")

    def _clean_anything(self, value: Any) -> T:
        try:
            return self.clean(value)
        except _WrongValueError:
            raise
        except Exception:  # noqa: BLE001 - the value's own methods may raise anything
            raise self.refusal() from None

    def clean(self, value: Any) -> T:
        if not self.is_valid(value):
            raise self.refusal()
        return cast("T", value)

    def is_valid(self, value: Any) -> object:
        raise NotImplementedError

    def refusal(self) -> _WrongValueError:
        return _WrongValueError(f"must be {self.bounds}.")


class Flag(Setting[bool]):
    kind = "bool"
    bounds = "True or False"
    hint = "Write True or False. A value from the environment is a string, and must be converted."

    def is_valid(self, value: Any) -> object:
        return isinstance(value, bool)


class WholeNumber(Setting[int]):
    kind = "int"

    def __init__(self, *, least: int, most: int, **columns: Any) -> None:
        super().__init__(bounds=f"a whole number from {least} to {most}", **columns)
        self.least, self.most = least, most

    def is_valid(self, value: Any) -> object:
        return type(value) is int and self.least <= value <= self.most


class Seconds(Setting[float]):
    kind = "number"

    def __init__(self, *, most: int = MAX_SECONDS, **columns: Any) -> None:
        bounds = f"a number of seconds above 0 and at most {most}"
        super().__init__(bounds=bounds, **columns)
        self.most = most

    def is_valid(self, value: Any) -> object:
        return type(value) in (int, float) and 0 < value <= self.most


class Choice(Setting[str]):
    def __init__(self, *, choices: Sequence[str], **columns: Any) -> None:
        bounds = " or ".join(f'"{choice}"' for choice in choices)
        super().__init__(bounds=bounds, **columns)
        self.choices = choices

    def is_valid(self, value: Any) -> object:
        return isinstance(value, str) and value in self.choices


class Algorithm(Setting[str | None]):
    bounds = " or ".join(f'"{name}"' for name in SIGNING_ALGORITHMS)

    def clean(self, value: Any) -> str | None:
        return None if _is_unset(value) else super().clean(value)

    def is_valid(self, value: Any) -> object:
        return isinstance(value, str) and value in SIGNING_ALGORITHMS


class Pattern(Setting[str]):
    def __init__(self, *, pattern: re.Pattern[str], most: int = MAX_NAME, **columns: Any) -> None:
        super().__init__(**columns)
        self.pattern, self.most = pattern, most

    def is_valid(self, value: Any) -> object:
        return isinstance(value, str) and len(value) <= self.most and self.pattern.fullmatch(value)


class FromEverifin(Setting[str]):
    """A string that Everifin gives to the site. Source: RFC 6749, appendix A.1 and A.2 (VSCHAR)."""

    def __init__(self, *, most: int, **columns: Any) -> None:
        bounds = f"1 to {most} printable ASCII characters"
        super().__init__(default="", bounds=bounds, default_shown="none: it must be set", **columns)
        self.most = most

    def clean(self, value: Any) -> str:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise _WrongValueError(
                "is not set. Everifin gives it to you when it registers your site."
            )
        return super().clean(value)

    def is_valid(self, value: Any) -> object:
        return isinstance(value, str) and len(value) <= self.most and _is_plain(value)


class Keys(Setting[Sequence[str]]):
    kind = "list of str"
    bounds = f"a list of 1 to {MAX_ENTRIES} keys, newest first"

    def is_valid(self, value: Any) -> object:
        return isinstance(value, list | tuple) and 1 <= len(value) <= MAX_ENTRIES

    def refusal(self) -> _WrongValueError:
        return _WrongValueError(
            f"must be {self.bounds}. `manage.py everifin_new_key` prints a new key."
        )


class Url(Setting[str | None]):
    bounds = (
        f"a whole https URL of at most {MAX_URL} ASCII characters, without user name or fragment; "
        "plain http is for this machine only"
    )
    hint = "Tokens and authorization codes travel there. Plain http is for the sandbox only."

    def clean(self, value: Any) -> str | None:
        return None if _is_unset(value) else super().clean(value)

    def is_valid(self, value: Any) -> object:
        return _is_url(value)


class BaseUrl(Setting[str]):
    bounds, hint = Url.bounds.replace("user name", "query, user name"), Url.hint

    def clean(self, value: Any) -> str:
        return super().clean(value).rstrip("/")

    def is_valid(self, value: Any) -> object:
        return _is_url(value) and "?" not in value


class IdpUrl(BaseUrl):
    bounds = f"{BaseUrl.bounds}; and only while DEBUG is on"

    def clean(self, value: Any) -> str:
        url = super().clean(value)
        if is_plain_loopback(url) and not settings.DEBUG:
            raise _WrongValueError(
                "is plain http to this machine, as the sandbox is, which needs DEBUG = True."
            )
        return url


class Issuer(Setting[str]):
    """Compared byte by byte, so it is taken as it is written."""

    bounds, hint = Url.bounds.replace(f"{MAX_URL} ASCII", f"{MAX_NAME} ASCII"), Url.hint

    def get(self, conf: Conf) -> str:
        issuer = self.read() or f"{conf.idp_url}/auth/realms/{conf.realm}"
        if len(issuer) > MAX_NAME:  # it is stored with each connection
            raise ImproperlyConfigured(f"{self.name} {self.refusal()}")
        return issuer

    def is_valid(self, value: Any) -> object:
        return _is_unset(value) or (_is_url(value) and len(value) <= MAX_NAME)


class WebAppUrl(Url):
    def get(self, conf: Conf) -> str:
        return self.read() or conf.idp_url


class Scopes(Pattern):
    def clean(self, value: Any) -> str:
        return " ".join(super().clean(value).split())


class ApiPaths(Setting[Mapping[str, str]]):
    kind = "dict of str"
    bounds = "a dict of names and paths"

    def get(self, conf: Conf) -> Mapping[str, str]:
        return {**DEFAULT_API_PATHS, **self.read()}

    def is_valid(self, value: Any) -> object:
        return _is_mapping(value, lambda path: isinstance(path, str))

    def clean(self, value: Any) -> Mapping[str, str]:
        for name, path in super().clean(value).items():
            _require_known(name, DEFAULT_API_PATHS, "path")
            if not _is_path_like(path, DEFAULT_API_PATHS[name]):
                raise _WrongValueError(
                    f"has a path for {name!r} that cannot be filled in. It must begin with '/' "
                    f"and have the same names in braces as {DEFAULT_API_PATHS[name]}."
                )
        return dict(value)


class ApiFields(Setting[Mapping[str, Mapping[str, str]]]):
    kind = "dict of dict"
    bounds = "a dict of objects, each a dict of our names of fields and Everifin's"

    def get(self, conf: Conf) -> Mapping[str, Mapping[str, str]]:
        corrected = {
            kind: {**DEFAULT_API_FIELDS[kind], **names} for kind, names in self.read().items()
        }
        return {**DEFAULT_API_FIELDS, **corrected}

    def is_valid(self, value: Any) -> object:
        return _is_mapping(value, lambda names: _is_mapping(names, _is_field_name))

    def clean(self, value: Any) -> Mapping[str, Mapping[str, str]]:
        for kind, names in super().clean(value).items():
            _require_known(kind, DEFAULT_API_FIELDS, "object")
            for name in names:
                _require_known(name, DEFAULT_API_FIELDS[kind], f"field of {kind!r}:")
        return dict(value)


class Params(Setting[Mapping[str, str] | str]):
    """Parameters that a site adds to authorization requests, or the path of what gives them."""

    kind = "dict of str"
    bounds = (
        "a dict of names and values, or the dotted path of a function that takes the request and "
        "returns one; max_age is a whole number of seconds"
    )
    hint = 'Write a dict such as {"prompt": "login", "max_age": 300}.'

    def get(self, conf: Conf) -> Mapping[str, str] | str:
        value = self.read()
        if not isinstance(value, str) and (refused := params_refused(value)):
            raise ImproperlyConfigured(f"{self.name} must not have {', '.join(refused)}.")
        return value

    def clean(self, value: Any) -> Mapping[str, str] | str:
        cleaned = super().clean(value)
        if isinstance(cleaned, str):
            return cleaned
        return {name: str(given) for name, given in cleaned.items()}

    def is_valid(self, value: Any) -> object:
        if isinstance(value, str):
            return len(value) <= MAX_NAME and DOTTED_PATH.fullmatch(value)
        return (
            _is_mapping(value, _is_param)
            and all(PARAM_NAME.fullmatch(name) for name in value)
            and MAX_AGE.fullmatch(str(value.get("max_age", 0)))
        )

    def clean_returned(self, value: Any) -> Mapping[str, str]:
        """
        Return what the site's function has returned, as clean as a dict in the settings. Errors:
        ImproperlyConfigured, which does not show it.
        """
        if isinstance(value, Mapping) and self.is_valid(value) and not params_refused(value):
            return {name: str(given) for name, given in value.items()}
        raise ImproperlyConfigured(
            f"The function that {self.name} names returned something else than {Params.bounds}, or "
            "a parameter that everifin_django sets itself."
        )


def proof_is_needed(params: Mapping[str, str]) -> bool:
    """Do *params* ask for what only an ID token can prove?"""
    return bool({"max_age", "acr_values"} & params.keys())


def params_refused(params: Mapping[str, Any]) -> list[str]:
    """
    Return what no site may add to an authorization request: what the login itself depends on, and
    ``prompt=none``, by which a user who is not signed in at Everifin never could be.
    """
    refused = [name for name in params if name.lower() in PROTOCOL_PARAMS]
    if "none" in str(params.get("prompt", "")).split():
        refused.append("prompt=none")
    return refused


class FunctionPath(Setting[str | None]):
    bounds = "the dotted path of a function, or None"

    def clean(self, value: Any) -> str | None:
        return None if _is_unset(value) else super().clean(value)

    def is_valid(self, value: Any) -> object:
        return isinstance(value, str) and len(value) <= MAX_NAME and DOTTED_PATH.fullmatch(value)


class CaBundle(Setting[str | None]):
    bounds = "the path of a file or directory of certificates that exists"
    hint = "Name a file of certificates in PEM form, or leave the setting out."

    def clean(self, value: Any) -> str | None:
        return None if _is_unset(value) else str(super().clean(value))

    def is_valid(self, value: Any) -> object:
        return isinstance(value, str | Path) and Path(value).exists()


class Proxies(Setting[Mapping[str, str]]):
    kind = "dict of str"
    bounds = 'a dict such as {"https": "http://proxy.example:3128"}'
    hint = "Use proxies that are reached by http or https."

    def is_valid(self, value: Any) -> object:
        return _is_mapping(value, _is_web_proxy)


class Texts(Setting["list[str] | tuple[str, ...]"]):
    """A list of texts, each of which matches *pattern* as a whole."""

    kind = "list of str"

    def __init__(self, *, pattern: re.Pattern[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pattern = pattern

    def is_valid(self, value: Any) -> object:
        if not isinstance(value, list | tuple) or len(value) > MAX_TEXTS:
            return False
        return all(isinstance(one, str) and self.pattern.fullmatch(one) for one in value)


def _is_unset(value: Any) -> bool:
    """None, or the empty string that a missing environment variable often becomes."""
    return value is None or (isinstance(value, str) and not value)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _is_url(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= MAX_URL
        and URL.fullmatch(value) is not None
        and is_secure(value)
    )


def _is_web_proxy(value: Any) -> bool:
    # For others, requests leaves the connections to code that knows no deadline.
    return (
        isinstance(value, str)
        and len(value) <= MAX_URL
        and _is_plain(value)
        and _scheme_and_host(value)[0] in {"http", "https"}
    )


def _is_mapping(value: Any, is_valid: Callable[[Any], object]) -> bool:
    """Is *value* a mapping of strings to valid values, of a bounded size?"""
    return (
        isinstance(value, Mapping)
        and len(value) <= MAX_ENTRIES
        and all(isinstance(name, str) and is_valid(given) for name, given in value.items())
    )


def _is_param(value: Any) -> bool:
    if type(value) is int:
        return value >= 0
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _is_field_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _require_known(name: str, known: Iterable[str], what: str) -> None:
    if name not in known:
        shown = f" {name!r}" if SHOWN_NAME.fullmatch(name) else ""
        raise _WrongValueError(f"has an unknown {what}{shown}. There are: {', '.join(known)}.")


def _is_path_like(path: str, example: str) -> bool:
    if len(path) > MAX_URL or not path.startswith("/") or not _is_plain(path):
        return False
    if {" ", "?", "#", "%", "\\"}.intersection(path):
        return False
    if not {"", ".", ".."}.isdisjoint(path[1:].split("/")):
        return False
    try:
        return _names_in(path) == _names_in(example)
    except ValueError:
        return False


def _names_in(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


class ClientConf:
    """What a site must give"""

    client_id = FromEverifin(
        most=MAX_NAME,
        check_id="E001",
        meaning="The client id that Everifin gave you.",
        hint="Everifin gives you a client id and secret when it registers your site. "
        "Without a contract yet, `manage.py everifin_sandbox` prints a pair to paste.",
    )
    client_secret = FromEverifin(
        most=MAX_SECRET,
        check_id="E002",
        meaning="The client secret that Everifin gave you. Keep it out of the repository.",
        hint=client_id.hint,
    )
    encryption_keys = Keys(
        default=(),
        check_id="E003",
        meaning='The keys that encrypt stored tokens, each `"<id>:<base64 of 32 bytes>"`, newest '
        "first: the first one encrypts, all decrypt. `manage.py everifin_new_key` prints one.",
        hint="Put a key that `manage.py everifin_new_key` prints in front of the list, "
        "and keep it as secret as SECRET_KEY.",
        default_shown="none: it must be set",
    )
    key_provider = Pattern(
        default=DEFAULT_KEY_PROVIDER,
        pattern=DOTTED_PATH,
        check_id="E019",
        meaning="The path of a class that gives the keys, for a site that does not keep them in "
        "its settings. [Encryption keys](../howto/keys.md) shows one.",
        bounds=f'the dotted path of a class, such as "{DEFAULT_KEY_PROVIDER}"',
        hint="docs/howto/keys.md shows a key provider. Without the setting, the keys are those of "
        "EVERIFIN_ENCRYPTION_KEYS.",
    )


class ServerConf:
    """Where Everifin is"""

    idp_url = IdpUrl(
        default="https://app.everifin.com",
        check_id="E023",
        meaning="The base URL of Everifin's identity provider.",
    )
    realm = Pattern(
        default="everifin_app",
        pattern=REALM,
        check_id="E033",
        meaning="Your realm at Everifin.",
        bounds="the name that Everifin gives you, of letters, digits, '.', '_', '~' and '-'",
        hint="Take the name as Everifin gave it to you.",
    )
    issuer = Issuer(
        default="",
        check_id="E025",
        meaning="The issuer of Everifin's tokens, which must equal their `iss` byte by byte.",
        default_shown="made from `EVERIFIN_IDP_URL` and `EVERIFIN_REALM`",
    )
    api_url = BaseUrl(
        default="https://api.everifin.com",
        check_id="E024",
        meaning="The base URL of the bank API.",
    )
    web_app_url = WebAppUrl(
        default=None,
        check_id="E087",
        meaning="Everifin's web app, where users add their banks. Tokens never go there.",
        default_shown="the one of `EVERIFIN_IDP_URL`",
    )
    api_paths = ApiPaths(
        default={},
        check_id="E017",
        meaning="Corrections of the paths of the bank API, by name. Everifin publishes only the "
        f"paths of payments. The names are {', '.join(DEFAULT_API_PATHS)}.",
        hint="Name only the paths that differ from everifin_django.api_names.DEFAULT_API_PATHS.",
    )
    api_fields = ApiFields(
        default={},
        check_id="E021",
        meaning="Corrections of the names of fields, such as "
        '`{"transaction": {"counterparty_name": "partnerName"}}`. '
        f"The objects are {', '.join(DEFAULT_API_FIELDS)}; "
        "`everifin_django.api_names` lists their fields.",
        hint="Name only the fields that differ from everifin_django.api_names.DEFAULT_API_FIELDS, "
        'such as {"transaction": {"counterparty_name": "partnerName"}}.',
    )


class LoginConf:
    """Login and connect"""

    redirect_uri = Url(
        default=None,
        check_id="E026",
        meaning="The URL of this site's callback, as you gave it to Everifin. Without it, the URL "
        "is built from the request, if `ALLOWED_HOSTS` names each host in full.",
        default_shown="built from the request",
    )
    scopes = Scopes(
        default="openid ais",
        pattern=SCOPES,
        most=1000,
        check_id="E034",
        meaning="The scopes that users are asked for. `openid` is needed to log in, `pis` to pay.",
        bounds='a string of scopes with spaces between them, such as "openid ais", '
        "of at most 1000 characters",
        hint='Write a string such as "openid ais pis".',
    )
    create_users = Flag(
        default=True,
        check_id="E037",
        meaning="A login with an Everifin account that no user here has makes a new user.",
    )
    connect_allows_login = Flag(
        default=True,
        check_id="E052",
        meaning="Users who have connected an Everifin account can log in with it. Staff and "
        "superusers never can.",
    )
    use_login_url = Flag(
        default=True,
        check_id="E063",
        meaning="Anonymous visitors of a decorated view go to `LOGIN_URL`. `False`: to Everifin's "
        "login, if the backend is installed.",
    )
    return_hosts = Texts(
        default=(),
        pattern=HOST_AND_PORT,
        check_id="E089",
        meaning="Hosts of front ends, beside this site's own, that `next` may lead to.",
        bounds=f"a list of at most {MAX_TEXTS} host names with their port, if any, in small "
        "letters, without a scheme",
        hint="Write them as in a browser's address, such as 'app.shop.example'.",
    )
    return_schemes = Texts(
        default=(),
        pattern=APP_SCHEME,
        check_id="E090",
        meaning="URL schemes of your mobile apps that `next` may lead to.",
        bounds=f"a list of at most {MAX_TEXTS} schemes with a dot in them, in small letters: a "
        "domain of yours turned around",
        hint="A scheme without a dot, such as 'shop', may be another app's (RFC 8252, section "
        "7.1): use one such as 'example.shop.app'.",
    )
    login_params = Params(
        default={},
        check_id="E080",
        meaning="Parameters that a login adds to its request to Everifin, such as `prompt`, "
        "`max_age`, `acr_values`, `ui_locales`, `login_hint` or Keycloak's `kc_idp_hint`; or the "
        "path of a function that takes the request and returns them. `max_age` and `acr_values` "
        "are checked in the ID token: [a fresh or stronger sign-in](../howto/sign-in-again.md).",
    )
    connect_params = Params(
        default={},
        check_id="E081",
        meaning="The same for connecting.",
    )
    use_pkce = Flag(
        default=True,
        check_id="E035",
        meaning="Authorization requests are protected by PKCE with S256.",
    )
    require_iss = Flag(
        default=False,
        check_id="E036",
        meaning="A response of the identity provider without `iss` (RFC 9207) is refused. A wrong "
        "`iss` is always refused.",
    )
    id_token_alg = Algorithm(
        default=None,
        check_id="E055",
        meaning="The algorithm by which Everifin signs ID tokens and logout tokens for your "
        "client. Tokens of any other are refused.",
        default_shown="for ID tokens any of the algorithms, for logout tokens that of the last ID "
        "token",
        hint="Take the algorithm that your client is registered with.",
    )
    client_auth = Choice(
        default="client_secret_post",
        choices=("client_secret_post", "client_secret_basic"),
        check_id="E009",
        meaning="How the site authenticates at the token endpoint. Everifin documents "
        '`"client_secret_post"`. The names are those of OpenID Connect Core 1.0, section 9.',
        hint='Everifin documents "client_secret_post".',
    )


class LogoutConf:
    """Logout"""

    post_logout_redirect_uri = Url(
        default=None,
        check_id="E027",
        meaning="Logging out leads the browser through Everifin's logout, and back to this URL. "
        "Everifin has to know the URL. The URL of the view `everifin_django:logged_out`, such as "
        "`https://shop.example/everifin/logged-out/`, leads on to the `next` of the logout.",
    )
    revocation_url = Url(
        default=None,
        check_id="E053",
        meaning="The URL at which refresh tokens are revoked (RFC 7009), for an identity provider "
        "that has one. Without it, they end by the identity provider's logout.",
    )
    logout_ends_connection = Flag(
        default=True,
        check_id="E056",
        meaning="Logging out ends the connection. `False` keeps one that was granted with "
        "`offline_access`, and needs that scope where `EverifinBackend` is installed.",
    )
    legacy_logout = Flag(
        default=False,
        check_id="E040",
        meaning="Everifin's logout page takes `redirect_uri`, as Keycloak before version 18 does.",
    )
    backchannel_logout = Flag(
        default=False,
        check_id="E041",
        meaning="Everifin may end sessions of this site by back-channel logout.",
    )


class TimeConf:
    """Time"""

    login_lifetime_seconds = WholeNumber(
        default=600,
        least=60,
        most=3600,
        check_id="E051",
        meaning="How long a user may take at Everifin to log in or connect. Afterwards the user "
        "has to begin again.",
    )
    connect_timeout_seconds = Seconds(
        default=3,
        check_id="E028",
        meaning="How long connecting to a host of Everifin may take.",
    )
    deadline_seconds = Seconds(
        default=10,
        check_id="E029",
        meaning="How long a whole call may take, all its tries included.",
    )
    max_tries = WholeNumber(
        default=3,
        least=1,
        most=10,
        check_id="E031",
        meaning="How often a call that only reads is tried within the deadline. All other calls "
        "are sent once.",
    )
    refresh_margin_seconds = Seconds(
        default=60,
        check_id="E030",
        meaning="How long before it expires an access token is refreshed, at most half its life.",
    )
    revocations_per_second = WholeNumber(
        default=20,
        least=1,
        most=1000,
        check_id="E066",
        meaning="How many grants a process ends at Everifin in a second, when it works off the "
        "outbox: `manage.py everifin_housekeeping`, and `everifin_disconnect` after an incident.",
    )
    retention_days = WholeNumber(
        default=30,
        least=1,
        most=366,
        check_id="E038",
        meaning="How long the tokens of a connection that the user has to make again are stored. "
        "`manage.py everifin_housekeeping` deletes them afterwards.",
    )
    disconnected_retention_days = WholeNumber(
        default=366,
        least=1,
        most=3660,
        check_id="E067",
        meaning="How long the row of a connection that ended here is stored, with the Everifin "
        "account it belonged to. `manage.py everifin_housekeeping` deletes it afterwards. After an "
        "end on purpose the row names no account, and stays: a login must not connect again.",
    )


class RequestConf:
    """Requests of users"""

    refresh_every_view = Flag(
        default=False,
        check_id="E039",
        meaning="The token is refreshed before every view of a logged-in user, decorated or not. "
        "Read when the site starts.",
    )
    access_check = FunctionPath(
        default=None,
        check_id="E085",
        meaning="The path of a function that is asked before a request uses a bank. It takes "
        'the request and `"connect"`, `"disconnect"`, `"read"` or `"pay"`, and returns `None`, '
        "or the response that is given instead: "
        "[keep others out](../howto/sign-in-again.md#keep-others-out).",
        hint="docs/howto/sign-in-again.md shows such a function.",
    )
    trusted_proxies = WholeNumber(
        default=0,
        least=0,
        most=10,
        check_id="E010",
        meaning="How many reverse proxies of yours append to `X-Forwarded-For`. Everifin asks for "
        "the user's IP address; with 0, it is the IP address that the request comes from.",
        hint="Count the reverse proxies of yours that append to X-Forwarded-For.",
    )


class PaymentConf:
    """Payments"""

    payment_absent_seconds = WholeNumber(
        default=86_400,
        least=600,
        most=366 * 86_400,
        check_id="E065",
        meaning="How long after a payment was sent, whose answer was lost, a complete list without "
        "it says that it was never made. Everifin does not publish how long that takes.",
    )


class NetworkConf:
    """The network"""

    pool_size = WholeNumber(
        default=32,
        least=1,
        most=1000,
        check_id="E032",
        meaning="How many idle connections a process keeps open to a host. More are opened when "
        "needed, and closed after use.",
    )
    ca_bundle = CaBundle(
        default=None,
        check_id="E042",
        meaning="The certificates to trust instead of those that requests brings. Verification "
        "cannot be switched off.",
    )
    proxies = Proxies(
        default={},
        check_id="E043",
        meaning="The proxy for each scheme of outgoing calls, as requests takes them. Proxies of "
        "the environment are ignored.",
    )


SECTIONS = (
    ClientConf,
    ServerConf,
    LoginConf,
    LogoutConf,
    TimeConf,
    RequestConf,
    PaymentConf,
    NetworkConf,
)


class Conf(  # each section has settings of its own
    ClientConf, ServerConf, LoginConf, LogoutConf, TimeConf, RequestConf, PaymentConf, NetworkConf
):
    """All settings, as typed attributes: ``conf.deadline_seconds`` is EVERIFIN_DEADLINE_SECONDS."""

    def endpoint(self, name: str) -> str:
        """
        Return the URL of the identity provider's endpoint *name*: auth, token, logout, certs or
        userinfo.

        Source: Everifin documents auth and token literally; the others are Keycloak's siblings of
        them (inferred).
        """
        return f"{self.idp_url}/auth/realms/{self.realm}/protocol/openid-connect/{name}"


conf = Conf()

SETTINGS: Mapping[str, Setting[Any]] = {
    setting.name: setting
    for section in SECTIONS
    for setting in vars(section).values()
    if isinstance(setting, Setting)
}
"""All settings by the name that a site writes, in the order of the reference."""

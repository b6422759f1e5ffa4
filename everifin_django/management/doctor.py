"""
What ``manage.py everifin_doctor`` examines: the site's settings, keys and tables, and what
Everifin answers.

Each function examines one concern and yields findings. None of them shows a secret or sends one:
everything is asked of Everifin without client secret and without token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from everifin_django.conf import DEFAULT_KEY_PROVIDER, SIGNING_ALGORITHMS, conf
from everifin_django.encryption import (
    EncryptionContext,
    Key,
    active_key,
    open_sealed,
    parse_keys,
    seal,
)
from everifin_django.exceptions import APIError, KeysUnavailableError, TokenUnreadableError
from everifin_django.http.client import Answer, send
from everifin_django.management.site_policy import examine_cookies, examine_csp, examine_proxy
from everifin_django.models import BankToken
from everifin_django.oauth.jwks import keys_in
from everifin_django.secret import Secret

MAX_BYTES = 256 * 1024
MAX_CLOCK_SECONDS = 30
FEW_BYTES = 12
"""A random key of 32 bytes has fewer different ones than this once in 10**20 times."""

ENDPOINTS = {
    "authorization_endpoint": "auth",
    "token_endpoint": "token",
    "end_session_endpoint": "logout",
    "jwks_uri": "certs",
    "userinfo_endpoint": "userinfo",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. *level* is "ok", "warning" or "error"; *hint* says what to write."""

    level: str
    about: str
    message: str
    hint: str = ""


def examine() -> Iterator[Finding]:
    """Yield all findings. Three requests, and a few queries."""
    for about, examination in EXAMINATIONS.items():
        try:
            found = [Finding(level, about, *words) for level, *words in examination()]
        except ImproperlyConfigured as error:
            hint = "The findings about settings say what to write."
            found = [Finding("error", about, f"Cannot be examined: {error}", hint)]
        yield from found or [Finding("ok", about, "Nothing to complain of.")]


Words = Iterable[tuple[str, ...]]


def examine_settings() -> Words:
    """The system checks of this app, those for a deployment included."""
    for message in checks.run_checks(tags=["everifin_django"], include_deployment_checks=True):
        if not message.is_silenced():
            level = "error" if message.is_serious() else "warning"
            yield level, f"{message.msg} ({message.id})", message.hint or ""


def examine_keys() -> Words:
    context = EncryptionContext(connection_id="doctor", user_pk="", kind="refresh")
    try:
        key = active_key()
        opened = open_sealed(seal(Secret("examined"), context, key), context)
    except (KeysUnavailableError, TokenUnreadableError):
        yield "error", "The keys cannot be had, or do not decrypt what they encrypt.", KEYS_HINT
        return
    if opened != Secret("examined"):
        yield "error", "The keys do not decrypt what they encrypt.", KEYS_HINT
    elif _is_weak(key):
        yield "error", f"The key {key.key_id!r} is not random.", KEYS_HINT
    else:
        yield "ok", f"The key {key.key_id!r} encrypts and decrypts."
    if conf.key_provider == DEFAULT_KEY_PROVIDER:
        for older in parse_keys(conf.encryption_keys)[1:]:
            if _is_weak(older):
                hint = "Run `manage.py everifin_rotate_keys`, then remove it."
                yield "warning", f"The older key {older.key_id!r} is not random.", hint


def _is_weak(key: Key) -> bool:
    """A word, a pattern or zeros repeat more bytes than chance does."""
    return len(set(key.material)) < FEW_BYTES


KEYS_HINT = "Put a key that `manage.py everifin_new_key` prints in front of the list."


def examine_database() -> Words:
    alias = router.db_for_write(BankToken)
    try:
        executor = MigrationExecutor(connections[alias])
        targets = [key for key in executor.loader.graph.leaf_nodes() if key[0] == "everifin_django"]
        missing = executor.migration_plan(targets)
    except DatabaseError:
        yield "error", f"The database {alias!r} cannot be asked.", "See DATABASES."
        return
    if missing:
        yield "error", f"Migrations are missing in {alias!r}: {len(missing)}.", "manage.py migrate"
    else:
        yield "ok", f"The tables in {alias!r} are those of this version."


def examine_redirect_uri() -> Words:
    try:
        path = reverse("everifin_django:callback")
    except NoReverseMatch:
        hint = 'Add path("everifin/", include("everifin_django.urls")) to the URLconf.'
        yield "error", "The URLconf does not include the URLs of everifin_django.", hint
        return
    given = conf.redirect_uri
    if given is None:
        yield "ok", f"Built from the request: https://<host>{path}"
    elif not given.endswith(path):
        hint = f"Everifin has to send users back to a URL that ends with {path}."
        yield "error", f"EVERIFIN_REDIRECT_URI is {given}, where no callback is.", hint
    else:
        yield "ok", given


def examine_identity_provider() -> Words:
    """Source: OpenID Connect Discovery 1.0, section 3; RFC 8414, section 2."""
    answer = _ask(f"{conf.issuer}/.well-known/openid-configuration")
    if isinstance(answer, str):
        yield "error", answer, "Check EVERIFIN_IDP_URL, EVERIFIN_CA_BUNDLE and EVERIFIN_PROXIES."
        return
    document = _object(answer)
    if document is None:
        yield (
            "error",
            f"There is no discovery document: status {answer.status}.",
            "Check EVERIFIN_IDP_URL and EVERIFIN_REALM.",
        )
        return
    yield "ok", f"It is reached at {conf.issuer}, and its certificate is verified."
    yield from _compare_clock(answer)
    for compare in (_compare_addresses, _compare_login, _compare_response, _compare_logout):
        yield from compare(document)


def _compare_clock(answer: Answer) -> Words:
    try:
        there = parsedate_to_datetime(answer.headers.get("Date", ""))
        seconds = abs((there - timezone.now()).total_seconds())
    except Exception:  # noqa: BLE001 - whatever the parser makes of a stranger's header
        yield "warning", "The identity provider does not say what time it is."
        return
    if seconds > MAX_CLOCK_SECONDS:
        hint = "Have the clock of this machine set by NTP."
        yield "error", f"The clocks differ by {seconds:.0f} seconds: tokens are refused.", hint
    else:
        yield "ok", f"The clocks differ by {seconds:.0f} seconds."


def _compare_addresses(document: Mapping[str, Any]) -> Words:
    if document.get("issuer") != conf.issuer:
        given = _shown(document.get("issuer"))
        hint = f"EVERIFIN_ISSUER = {given}"
        yield "error", f"The issuer calls itself {given}, which is not EVERIFIN_ISSUER.", hint
    for name, ours in ENDPOINTS.items():
        if name in document and document[name] != conf.endpoint(ours):
            yield (
                "error",
                f"{name} is {_shown(document[name])}, and this site uses {conf.endpoint(ours)}.",
                "Check EVERIFIN_IDP_URL and EVERIFIN_REALM.",
            )


def _compare_login(document: Mapping[str, Any]) -> Words:
    """Only what the document lists is compared: what it leaves out may be there."""
    if conf.use_pkce and not _lists(document, "code_challenge_methods_supported", {"S256"}):
        yield "error", "The identity provider does not know PKCE with S256.", "Ask Everifin for it."
    ours = {conf.id_token_alg} if conf.id_token_alg else SIGNING_ALGORITHMS
    if not _lists(document, "id_token_signing_alg_values_supported", ours):
        yield "error", "ID tokens are signed in no way that this app verifies.", "Ask for RS256."
    if not _lists(document, "token_endpoint_auth_methods_supported", {conf.client_auth}):
        hint = f"Choose one of {_shown(document['token_endpoint_auth_methods_supported'])}."
        yield "error", f"The token endpoint does not take {conf.client_auth}.", hint
    for scope in conf.scopes.split():
        if not _lists(document, "scopes_supported", {scope}):
            yield "warning", f"The scope {scope} is not among the listed ones.", "EVERIFIN_SCOPES"


def _compare_response(document: Mapping[str, Any]) -> Words:
    sends_iss = document.get("authorization_response_iss_parameter_supported") is True
    if sends_iss and not conf.require_iss:
        yield "warning", "Every response carries iss (RFC 9207).", "EVERIFIN_REQUIRE_ISS = True"
    if conf.require_iss and not sends_iss:
        hint = "EVERIFIN_REQUIRE_ISS = False"
        yield "error", "EVERIFIN_REQUIRE_ISS is set, but responses carry no iss.", hint
    if document.get("require_pushed_authorization_requests") is True:
        hint = "Ask Everifin to let your client do without (RFC 9126)."
        yield "error", "Pushed authorization requests are required, which this app lacks.", hint


def _compare_logout(document: Mapping[str, Any]) -> Words:
    if conf.post_logout_redirect_uri and "end_session_endpoint" not in document:
        yield (
            "warning",
            "The identity provider names no page for logging out.",
            "EVERIFIN_POST_LOGOUT_REDIRECT_URI = None",
        )
    told_nothing = document.get("backchannel_logout_supported") is False
    if conf.backchannel_logout and told_nothing:
        hint = "EVERIFIN_BACKCHANNEL_LOGOUT = False"
        yield "warning", "The identity provider has no back-channel logout.", hint


def examine_signing_keys() -> Words:
    answer = _ask(conf.endpoint("certs"))
    if isinstance(answer, str):
        yield "error", answer, "Without signing keys nobody can log in."
        return
    usable = keys_in(_object(answer))
    if usable:
        yield "ok", f"{len(usable)} of the published keys can verify ID tokens."
    else:
        yield (
            "error",
            f"No usable signing key is published: status {answer.status}.",
            "Ask Everifin.",
        )


def examine_api() -> Words:
    answer = _ask(conf.api_url + conf.api_paths["accounts"])
    if isinstance(answer, str):
        yield "error", answer, "Check EVERIFIN_API_URL, EVERIFIN_CA_BUNDLE and EVERIFIN_PROXIES."
    elif answer.status in {401, 403}:
        yield "ok", "The bank API answers, and asks for a token."
    else:
        hint = "Check EVERIFIN_API_URL and EVERIFIN_API_PATHS."
        yield "warning", f"The bank API answers {answer.status} instead of 401.", hint


def _ask(url: str) -> Answer | str:
    """Return the answer, or a sentence of what kept it away."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    try:
        return send("GET", url, headers=headers, max_bytes=MAX_BYTES)
    except APIError as error:
        return str(error)


def _object(answer: Answer) -> dict[str, Any] | None:
    try:
        decoded = answer.json() if answer.status == 200 else None
    except APIError:
        return None
    return decoded if isinstance(decoded, dict) else None


def _lists(document: Mapping[str, Any], name: str, ours: Iterable[str]) -> bool:
    listed = document.get(name)
    return not isinstance(listed, list) or any(one in listed for one in ours)


def _shown(value: Any) -> str:
    return repr(value)[:200]


EXAMINATIONS: Mapping[str, Callable[[], Words]] = {
    "settings": examine_settings,
    "keys": examine_keys,
    "cookies": examine_cookies,
    "proxy": examine_proxy,
    "Content Security Policy": examine_csp,
    "database": examine_database,
    "redirect URI": examine_redirect_uri,
    "identity provider": examine_identity_provider,
    "signing keys": examine_signing_keys,
    "bank API": examine_api,
}

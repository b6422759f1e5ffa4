"""
Seal a string with the active key; open it with any current key.

A sealed string is ASCII: ``evf1.<key id>.<base64url of nonce (12 bytes), ciphertext and tag (16
bytes)>``. It opens only in the context it was sealed for: the connection, its user and the kind
are bound into it, both in the sub-key (HKDF-SHA256) and as associated data (AES-256-GCM).

Why a sub-key for each context
    Random 96-bit nonces are safe for about 2**32 messages under one key (NIST SP 800-38D, section
    8.3). Five-minute tokens of a large site would pass that within weeks; under a sub-key for each
    row and column it is out of reach.

EVERIFIN_KEY_PROVIDER says where keys come from. Nothing here touches the database or any other
setting but EVERIFIN_ENCRYPTION_KEYS.
"""

from __future__ import annotations

import base64
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import Literal, Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from everifin_django.conf import conf
from everifin_django.exceptions import (
    KeysUnavailableError,
    MalformedError,
    TamperedError,
    UnknownKeyError,
)
from everifin_django.secret import Secret, hides_frames

__all__ = ["Key", "KeyProvider", "SettingsKeys"]

T = TypeVar("T")

FORMAT = "evf1"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")

TokenKind = Literal["access", "refresh", "id", "session_keys", "payment", "step", "flow"]
"""
What a sealed string is for. Frozen: a changed word makes every stored token of that kind
unreadable.
"""


@dataclass(frozen=True, slots=True)
class EncryptionContext:
    """Where a sealed string belongs: it opens there and nowhere else."""

    connection_id: str
    user_pk: str
    kind: TokenKind


@dataclass(frozen=True, slots=True)
class Key:
    """
    A key by its id, 1 to 32 letters, digits, '-' and '_', with its 32 bytes.

    Errors: ImproperlyConfigured, which never shows the bytes.
    """

    key_id: str
    material: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not KEY_ID.fullmatch(self.key_id):
            raise ImproperlyConfigured(
                "The id of an encryption key is 1 to 32 letters, digits, '-' and '_'."
            )
        if len(self.material) != KEY_BYTES:
            raise ImproperlyConfigured(
                f"The encryption key {self.key_id!r} has {len(self.material)} bytes "
                f"and needs {KEY_BYTES}."
            )


class KeyProvider(Protocol):
    """
    Where the keys come from: one object for each process, made without arguments on first use.

    Both methods are called for every token that is sealed or opened, from many threads. A provider
    that fetches or unwraps keys, as from a KMS, keeps what it got. Whatever it raises becomes
    KeysUnavailableError.
    """

    def active(self) -> Key:
        """Return the key that seals now."""

    def get(self, key_id: str) -> Key | None:
        """Return the key of that id, None if there is none."""


class SettingsKeys:
    """The keys in EVERIFIN_ENCRYPTION_KEYS. The default; a provider of keys may build on it."""

    def active(self) -> Key:
        return parse_keys(conf.encryption_keys)[0]

    def get(self, key_id: str) -> Key | None:
        keys = parse_keys(conf.encryption_keys)
        return next((key for key in keys if key.key_id == key_id), None)


@hides_frames
def parse_key(value: object) -> Key:
    """
    Return the key that *value* spells, ``<key id>:<base64 of 32 bytes>``.

    Errors: ImproperlyConfigured, which names the key by its id and never shows the rest.
    """
    key_id, colon, encoded = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not KEY_ID.fullmatch(key_id):
        raise ImproperlyConfigured(
            "A key in EVERIFIN_ENCRYPTION_KEYS does not read <id>:<base64>, with an id of 1 to 32 "
            "letters, digits, '-' and '_'. `manage.py everifin_new_key` prints one."
        )
    altchars = b"-_" if "-" in encoded or "_" in encoded else None
    try:
        material = base64.b64decode(encoded, altchars=altchars, validate=True)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"The key {key_id!r} in EVERIFIN_ENCRYPTION_KEYS is not valid base64."
        ) from error
    try:
        return Key(key_id, material)
    except ImproperlyConfigured as error:
        raise ImproperlyConfigured(f"EVERIFIN_ENCRYPTION_KEYS: {error}") from error


@hides_frames
def parse_keys(values: Sequence[object]) -> tuple[Key, ...]:
    """
    Return the keys that *values* spell, newest first. Errors: as ``parse_key``, and for two keys of
    one id.
    """
    keys = tuple(map(parse_key, values))
    # Whatever their case: some databases' LIKE, which finds a key's tokens, folds it.
    ids = [key.key_id.casefold() for key in keys]
    for key_id in ids:
        if ids.count(key_id) > 1:
            raise ImproperlyConfigured(
                f"The key id {key_id!r} appears twice in EVERIFIN_ENCRYPTION_KEYS."
            )
    return keys


def active_key() -> Key:
    """Return the key that seals now. Errors: KeysUnavailableError, ImproperlyConfigured."""
    return _ask(lambda provider: provider.active())


def is_known(key_id: str) -> bool:
    """Is there a key of that id? Errors: as ``active_key``."""
    return _ask(lambda provider: provider.get(key_id)) is not None


@hides_frames
def _ask(question: Callable[[KeyProvider], T]) -> T:
    try:
        return question(_provider(conf.key_provider))
    except ImproperlyConfigured:
        raise
    except Exception as error:
        raise KeysUnavailableError(type(error).__name__) from error


@cache
def _provider(path: str) -> KeyProvider:
    provider: KeyProvider = import_string(path)()
    return provider


def new_key(today: date) -> str:
    """Return a new random key as EVERIFIN_ENCRYPTION_KEYS takes it, named after the month."""
    return f"{today:%Y-%m}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


@hides_frames
def seal(secret: Secret, context: EncryptionContext, key: Key) -> str:
    """
    Return *secret* sealed with *key* for *context*. Costs some 10 microseconds and no query.

    The key is an argument, so that a caller can have it in hand before it spends an old token.
    """
    info = _info(key, context)
    nonce = os.urandom(NONCE_BYTES)
    sealed = nonce + _cipher(key, info).encrypt(nonce, secret.reveal().encode(), info)
    return f"{FORMAT}.{key.key_id}.{base64.urlsafe_b64encode(sealed).rstrip(b'=').decode()}"


@hides_frames
def open_sealed(sealed: str, context: EncryptionContext) -> Secret:
    """
    Return the string that was sealed for *context*.

    Errors: UnknownKeyError, TamperedError, MalformedError, KeysUnavailableError; never an empty or
    the sealed string instead.
    """
    key_id, payload = _split(sealed)
    key = _ask(lambda provider: provider.get(key_id))
    if key is None:
        raise UnknownKeyError(key_id)
    info = _info(key, context)
    try:
        opened = _cipher(key, info).decrypt(payload[:NONCE_BYTES], payload[NONCE_BYTES:], info)
    except InvalidTag as error:
        raise TamperedError(
            f"A stored {context.kind} token does not open: the ciphertext was changed, was copied "
            f"from another row or column, or the key {key_id!r} is not the one that sealed it."
        ) from error
    return Secret(opened.decode())


@hides_frames
def key_id_of(sealed: str) -> str:
    """Return the id of the key that sealed it, without opening it. Errors: MalformedError."""
    key_id, _ = _split(sealed)
    return key_id


def _split(sealed: str) -> tuple[str, bytes]:
    """
    Key id and payload. Errors: MalformedError if this app did not write *sealed*, to the last
    character.
    """
    version, _, rest = sealed.partition(".")
    key_id, _, encoded = rest.partition(".")
    try:
        payload = base64.b64decode(
            encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True
        )
    except ValueError:
        payload = b""
    is_ours = (
        version == FORMAT
        and KEY_ID.fullmatch(key_id) is not None
        and len(payload) >= NONCE_BYTES + TAG_BYTES
        and base64.urlsafe_b64encode(payload).rstrip(b"=").decode() == encoded
    )
    if not is_ours:
        raise MalformedError(
            f"A token column holds no text of the form {FORMAT}.<key id>.<base64url>."
        )
    return key_id, payload


def _info(key: Key, context: EncryptionContext) -> bytes:
    parts = (FORMAT, key.key_id, context.kind, context.connection_id, context.user_pk)
    return b"".join(
        struct.pack(">I", len(part)) + part for part in (text.encode() for text in parts)
    )


def _cipher(key: Key, info: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key.material))

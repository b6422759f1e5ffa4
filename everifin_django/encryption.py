"""
Seal a text with the active key; open it with any current key.

A sealed text is ASCII: ``evf1.<key id>.<base64url of nonce (12 bytes), ciphertext and tag (16
bytes)>``. It opens only in the context it was sealed for: the connection, its user and the kind
are bound into it, both in the sub-key (HKDF-SHA256) and as associated data (AES-256-GCM).

Why a sub-key for each context
    Random 96-bit nonces are safe for about 2**32 texts under one key (NIST SP 800-38D, section
    8.3). Five-minute tokens of a large site would pass that within weeks; under a sub-key for each
    row and column it is out of reach.

Where keys come from is EVERIFIN_KEY_PROVIDER's matter. Nothing here touches the database or any
other setting but EVERIFIN_ENCRYPTION_KEYS.
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
from everifin_django.secret import Secret

T = TypeVar("T")

FORMAT = "evf1"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")

TokenKind = Literal["access", "refresh", "id"]
"""
What a sealed text is for. Frozen: a changed word makes every stored token of that kind
unreadable.
"""


@dataclass(frozen=True, slots=True)
class EncryptionContext:
    """Where a sealed text belongs: it opens there and nowhere else."""

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

    Both methods are asked for every token that is sealed or opened, from many threads. One that
    fetches or unwraps keys elsewhere, as from a KMS, keeps what it got. Whatever they raise becomes
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


def parse_key(text: str) -> Key:
    """
    Return the key that *text* spells, ``<key id>:<base64 of 32 bytes>``.

    Errors: ImproperlyConfigured, which names the key by its id and never shows the rest.
    """
    key = _read_key(text)
    # A report of the error below would show it.
    del text
    if isinstance(key, str):
        raise ImproperlyConfigured(key)
    return key


def parse_keys(texts: Sequence[str]) -> tuple[Key, ...]:
    """
    Return the keys that *texts* spell, newest first. Errors: as parse_key, and for an id that
    stands twice.
    """
    read = [_read_key(text) for text in texts]
    # As above.
    del texts
    keys = tuple(key for key in read if isinstance(key, Key))
    complaints = [key for key in read if isinstance(key, str)]
    # Whatever their case: some databases' LIKE, which finds a key's tokens, folds it.
    ids = [key.key_id.casefold() for key in keys]
    complaints += [
        f"The key id {key_id!r} stands twice in EVERIFIN_ENCRYPTION_KEYS."
        for key_id in ids
        if ids.count(key_id) > 1
    ]
    if complaints:
        raise ImproperlyConfigured(complaints[0])
    return keys


def _read_key(text: object) -> Key | str:
    """The key, or what is wrong with it: raised here, the error's frame would hold the key."""
    key_id, colon, encoded = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not KEY_ID.fullmatch(key_id):
        return (
            "A key in EVERIFIN_ENCRYPTION_KEYS does not read <id>:<base64>, with an id of 1 to 32 "
            "letters, digits, '-' and '_'. `manage.py everifin_new_key` prints one."
        )
    altchars = b"-_" if "-" in encoded or "_" in encoded else None
    try:
        material = base64.b64decode(encoded, altchars=altchars, validate=True)
    except ValueError:
        return f"The key {key_id!r} in EVERIFIN_ENCRYPTION_KEYS is not valid base64."
    try:
        return Key(key_id, material)
    except ImproperlyConfigured as error:
        return f"EVERIFIN_ENCRYPTION_KEYS: {error}"


def active_key() -> Key:
    """Return the key that seals now. Errors: KeysUnavailableError, ImproperlyConfigured."""
    return _ask(lambda provider: provider.active())


def is_known(key_id: str) -> bool:
    """Is there a key of that id? Errors: as ``active_key``."""
    return _ask(lambda provider: provider.get(key_id)) is not None


def _ask(question: Callable[[KeyProvider], T]) -> T:
    provider = _provider(conf.key_provider)
    try:
        return question(provider)
    except ImproperlyConfigured:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a provider's library raises
        failure = type(error).__name__
    # Raised here, without the other as its context: that one's frames may hold keys.
    raise KeysUnavailableError(failure)


@cache
def _provider(path: str) -> KeyProvider:
    provider: KeyProvider = import_string(path)()
    return provider


def new_key(today: date) -> str:
    """Return a new random key as EVERIFIN_ENCRYPTION_KEYS takes it, named after the month."""
    return f"{today:%Y-%m}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def seal(secret: Secret, context: EncryptionContext, key: Key) -> str:
    """
    Return *secret* sealed with *key* for *context*. Costs some 10 microseconds and no query.

    The key is an argument so that who has spent a token for a new one need not ask for a key then.
    """
    info = _info(key, context)
    nonce = os.urandom(NONCE_BYTES)
    sealed = nonce + _cipher(key, info).encrypt(nonce, secret.reveal().encode(), info)
    return f"{FORMAT}.{key.key_id}.{base64.urlsafe_b64encode(sealed).rstrip(b'=').decode()}"


def open_sealed(sealed: str, context: EncryptionContext) -> Secret:
    """
    Return the text that was sealed for *context*.

    Errors: UnknownKeyError, TamperedError, MalformedError, KeysUnavailableError; never an empty or
    the sealed text instead.
    """
    parts = _split(sealed)
    # What is not sealed may be a token in clear, and a report of an error would show it.
    del sealed
    if parts is None:
        raise MalformedError(_MALFORMED)
    key_id, payload = parts
    key = _ask(lambda provider: provider.get(key_id))
    if key is None:
        raise UnknownKeyError(key_id)
    info = _info(key, context)
    try:
        text = _cipher(key, info).decrypt(payload[:NONCE_BYTES], payload[NONCE_BYTES:], info)
    except InvalidTag:
        text = None
    if text is None:
        raise TamperedError(
            f"A stored {context.kind} token does not open: the ciphertext was changed, was copied "
            f"from another row or column, or the key {key_id!r} is not the one that sealed it."
        )
    return Secret(text.decode())


def key_id_of(sealed: str) -> str:
    """Return the id of the key that sealed the text, without opening it. Errors: MalformedError."""
    parts = _split(sealed)
    # As above.
    del sealed
    if parts is None:
        raise MalformedError(_MALFORMED)
    return parts[0]


_MALFORMED = f"A token column holds no text of the form {FORMAT}.<key id>.<base64url>."


def _split(sealed: str) -> tuple[str, bytes] | None:
    """Key id and payload; None if this app did not write *sealed*, to the last character."""
    version, _, rest = sealed.partition(".")
    key_id, _, encoded = rest.partition(".")
    try:
        payload = base64.b64decode(
            encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True
        )
    except ValueError:
        return None
    is_ours = (
        version == FORMAT
        and KEY_ID.fullmatch(key_id) is not None
        and len(payload) >= NONCE_BYTES + TAG_BYTES
        and base64.urlsafe_b64encode(payload).rstrip(b"=").decode() == encoded
    )
    return (key_id, payload) if is_ours else None


def _info(key: Key, context: EncryptionContext) -> bytes:
    parts = (FORMAT, key.key_id, context.kind, context.connection_id, context.user_pk)
    return b"".join(
        struct.pack(">I", len(part)) + part for part in (text.encode() for text in parts)
    )


def _cipher(key: Key, info: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key.material))

"""
Environment variables as settings: each string is converted to the type of its setting.

A variable that is empty counts as not set. Errors: ImproperlyConfigured, which names the variable
and never shows its value.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from everifin_django.conf import SETTINGS

YES = frozenset({"1", "true", "yes", "on"})
NO = frozenset({"0", "false", "no", "off"})


def flag(text: str) -> bool:
    if text.lower() not in YES | NO:
        raise ValueError("must be 1 or 0")
    return text.lower() in YES


def words(text: str) -> list[str]:
    """Return the parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def mapping(text: str) -> dict[str, str]:
    """Return a JSON object of strings."""
    return _object_of(str, text, "must be a JSON object of strings")


def nested_mapping(text: str) -> dict[str, dict[str, str]]:
    """Return a JSON object of objects; the app checks what they hold."""
    return _object_of(dict, text, "must be a JSON object of objects")


def _object_of(kind: type, text: str, complaint: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, kind) for value in found.values()):
        raise ValueError(complaint)
    return found


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


CONVERTERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "bool": flag,
    "int": whole_number,
    "number": number,
    "list of str": words,
    "dict of str": mapping,
    "dict of dict": nested_mapping,
}
"""By the type of a setting, how its environment variable is read."""

SANDBOX = {
    "EVERIFIN_IDP_URL": "http://127.0.0.1:8001",
    "EVERIFIN_API_URL": "http://127.0.0.1:8001",
    "EVERIFIN_CLIENT_ID": "everifin-sandbox",
    "EVERIFIN_CLIENT_SECRET": "everifin-sandbox-secret",
}
"""What ``manage.py everifin_sandbox`` says on a machine where nothing else was asked for."""


def read(name: str, convert: Callable[[str], Any], default: Any = None) -> Any:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        return convert(text)
    except ValueError as error:
        raise ImproperlyConfigured(f"The environment variable {name} {error}.") from None


def everifin_settings() -> dict[str, Any]:
    """Return the settings that the environment names; all others keep the app's own defaults."""
    found = {name: read(name, CONVERTERS[setting.kind]) for name, setting in SETTINGS.items()}
    return {name: value for name, value in found.items() if value is not None}


def development_secrets(path: Path) -> dict[str, Any]:
    """
    Return SECRET_KEY and EVERIFIN_ENCRYPTION_KEYS for this checkout, made once and kept in *path*.

    Two processes that start together agree: a finished file is put there, by one of them only.
    """
    if not path.exists():
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        made = {
            "SECRET_KEY": secrets.token_urlsafe(50),
            "EVERIFIN_ENCRYPTION_KEYS": [f"development:{key}"],
        }
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found

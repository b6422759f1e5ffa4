"""The example site is tested as its user has it: by its environment, its pages, its commands."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "ALLOWED_HOSTS",
    "CSRF_TRUSTED_ORIGINS",
    "DATABASE_URL",
    "DEBUG",
    "DJANGO_SETTINGS_MODULE",
    "HTTPS",
    "SECRET_KEY",
}


def clean_environment() -> dict[str, str]:
    """Return this process's environment without anything that the example's settings read."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in NAMES and not name.startswith("EVERIFIN_")
    }

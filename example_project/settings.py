"""
Settings of the example site, all from the environment.

======================== =========================================================================
``EVERIFIN_...``         the settings of everifin_django, under their own names; lists are
                         separated by commas, switches are 1 or 0, mappings are JSON;
                         EVERIFIN_SCOPES has pis too, because the site pays
``DATABASE_URL``         as dj-database-url reads it; a SQLite file beside this one
``SECRET_KEY``           needed unless DEBUG is on
``ALLOWED_HOSTS``        separated by commas; with DEBUG, this machine
``CSRF_TRUSTED_ORIGINS`` separated by commas
``DEBUG``                off; on where ``manage.py`` runs and neither SECRET_KEY nor ALLOWED_HOSTS
                         is set, as on the machine of somebody who tries it out
``HTTPS``                the site is reached by https: on, unless DEBUG is on or Everifin's own
                         URL is plain http on this machine, as the sandbox's is
======================== =========================================================================

With DEBUG, and no address or client of Everifin set, the site talks to ``manage.py
everifin_sandbox``, and keys for development are made once and kept in a file that git ignores.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
import django
from django.core.exceptions import ImproperlyConfigured

from example_project.environment import (
    SANDBOX,
    development_secrets,
    everifin_settings,
    flag,
    read,
    words,
)

HERE = Path(__file__).resolve().parent

ALLOWED_HOSTS: list[str] = read("ALLOWED_HOSTS", words, [])
CSRF_TRUSTED_ORIGINS: list[str] = read("CSRF_TRUSTED_ORIGINS", words, [])
SECRET_KEY: str = read("SECRET_KEY", str, "")
IS_AT_A_DESK = Path(sys.argv[0]).name == "manage.py" and not SECRET_KEY and not ALLOWED_HOSTS
DEBUG: bool = read("DEBUG", flag, IS_AT_A_DESK)

# Everifin. Each setting of the app comes from the environment under its own name, as in
# EVERIFIN_CLIENT_ID = os.environ["EVERIFIN_CLIENT_ID"], with these instead of what is missing.

EVERIFIN_SCOPES = "openid ais pis"  # to read accounts, and to pay
named = everifin_settings()
if DEBUG:
    made = development_secrets(HERE / "development_secrets.json")
    SECRET_KEY = SECRET_KEY or made["SECRET_KEY"]
    EVERIFIN_ENCRYPTION_KEYS = made["EVERIFIN_ENCRYPTION_KEYS"]
    if not SANDBOX.keys() & named.keys():
        EVERIFIN_IDP_URL = SANDBOX["EVERIFIN_IDP_URL"]
        EVERIFIN_API_URL = SANDBOX["EVERIFIN_API_URL"]
        EVERIFIN_CLIENT_ID = SANDBOX["EVERIFIN_CLIENT_ID"]
        EVERIFIN_CLIENT_SECRET = SANDBOX["EVERIFIN_CLIENT_SECRET"]
vars().update(named)

if not SECRET_KEY:
    raise ImproperlyConfigured(
        "Set the environment variable SECRET_KEY to a long random text. "
        "To try the site out on your own machine, set DEBUG=1 instead."
    )

# The site

ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
ASGI_APPLICATION = "example_project.asgi.application"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"

INSTALLED_APPS = [
    "example_project",  # first: its templates come before those of the apps
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "everifin_django",
]

# With DEBUG, mails are printed. Django 6.1 has MAILERS instead of EMAIL_BACKEND.
if DEBUG and django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": "django.core.mail.backends.console.EmailBackend"}}
elif DEBUG:
    EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "everifin_django.middleware.EverifinMiddleware",
]

AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "everifin_django.backends.EverifinBackend",
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_THOUSAND_SEPARATOR = True
STATIC_URL = "static/"
STATIC_ROOT = HERE / "collected_static"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The database


def database() -> dict[str, Any]:
    url: str = read("DATABASE_URL", str, f"sqlite:///{HERE / 'db.sqlite3'}")
    chosen: dict[str, Any] = {**dj_database_url.parse(url), "ATOMIC_REQUESTS": True}
    if chosen["ENGINE"] == "django.db.backends.sqlite3":
        # Readers and the writer do not wait for each other; writers wait for their turn.
        chosen["OPTIONS"] = {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode = WAL",
        }
    if chosen["ENGINE"] == "django.db.backends.mysql" and not importlib.util.find_spec("MySQLdb"):
        import pymysql  # is used instead of mysqlclient, where that is not installed

        pymysql.install_as_MySQLdb()
    return chosen


DATABASES = {"default": database()}

# The network


def is_plain_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"}


HTTPS: bool = read(
    "HTTPS", flag, not DEBUG and not is_plain_loopback(named.get("EVERIFIN_IDP_URL", ""))
)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_HSTS_SECONDS = 365 * 24 * 60 * 60 if HTTPS else 0
if named.get("EVERIFIN_TRUSTED_PROXIES"):
    # A reverse proxy of the site's own stands in front, and says how it was reached.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

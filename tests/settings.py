"""A site that uses everifin_django the way README shows, on the database named by DATABASE_URL."""

import base64
import importlib.util
import os
from typing import Any

import dj_database_url

if importlib.util.find_spec("MySQLdb") is None:
    # PyMySQL is used instead of mysqlclient, which needs a compiler.
    import pymysql

    pymysql.install_as_MySQLdb()


def database() -> dict[str, Any]:
    """Return the settings of the database that DATABASE_URL names; SQLite if it names none."""
    chosen: dict[str, Any] = {**dj_database_url.config(default="sqlite://:memory:")}
    if chosen["ENGINE"] == "django.db.backends.sqlite3":
        # What Django's notes on SQLite advise against "database is locked": wait for the other
        # writer, and take the write lock when a transaction begins. Nothing here outlives the
        # run, so nothing waits for the disk. conftest puts the database into a file.
        chosen["OPTIONS"] = {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA synchronous = OFF",
        }
    # A process that a test starts works on that test's database.
    chosen["NAME"] = os.environ.get("TESTS_DATABASE_NAME", chosen["NAME"])
    if chosen["ENGINE"] == "django.db.backends.mysql":
        chosen["TEST"] = {"CHARSET": "utf8mb4"}
    return chosen


SECRET_KEY = "not a secret: signs only what tests make"
ALLOWED_HOSTS = ["testserver"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEST_RUNNER = "tests.support.runner.PytestRunner"
STATIC_URL = "static/"
# Django before 6.1 does not read it and mails to memory in tests by itself.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}

DATABASES = {"default": database()}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "everifin_django",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "everifin_django.middleware.EverifinMiddleware",
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

AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "everifin_django.backends.EverifinBackend",
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

EVERIFIN_CLIENT_ID = "everifin-sandbox"
EVERIFIN_CLIENT_SECRET = "everifin-sandbox-secret"
EVERIFIN_ENCRYPTION_KEYS = ["test:" + base64.b64encode(bytes(range(32))).decode()]
EVERIFIN_IDP_URL = "https://idp.everifin.test"
EVERIFIN_API_URL = "https://api.everifin.test"

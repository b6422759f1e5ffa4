"""The least that a site writes."""

import os

SECRET_KEY = "smoke test"
EVERIFIN_CLIENT_ID = "shop"
EVERIFIN_CLIENT_SECRET = "secret"
EVERIFIN_ENCRYPTION_KEYS = [os.environ["EVERIFIN_ENCRYPTION_KEYS"]]
EVERIFIN_IDP_URL = "https://idp.everifin.test"
EVERIFIN_API_URL = "https://api.everifin.test"
ROOT_URLCONF = "urls"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
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
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "everifin_django.middleware.EverifinMiddleware",
]
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "everifin_django.backends.EverifinBackend",
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
            ]
        },
    }
]

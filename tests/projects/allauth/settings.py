from tests.projects.base import *  # noqa: F403 - as said there
from tests.projects.base import AUTHENTICATION_BACKENDS, INSTALLED_APPS, MIDDLEWARE, databases

ROOT_URLCONF = "tests.projects.allauth.urls"
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
]
MIDDLEWARE = [*MIDDLEWARE, "allauth.account.middleware.AccountMiddleware"]
AUTHENTICATION_BACKENDS = [
    *AUTHENTICATION_BACKENDS,
    "allauth.account.auth_backends.AuthenticationBackend",
]
DATABASES = databases("allauth")
LOGIN_URL = "account_login"

ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_RATE_LIMITS = False
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "APPS": [
            {
                "provider_id": "theirs",
                "name": "Theirs",
                "client_id": "theirs",
                "secret": "their secret",
                "settings": {"server_url": "https://idp.theirs.test/auth/realms/theirs"},
            }
        ]
    }
}

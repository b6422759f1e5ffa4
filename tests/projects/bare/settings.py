from tests.projects.base import *  # noqa: F403 - as said there
from tests.projects.base import INSTALLED_APPS, databases

AUTH_USER_MODEL = "bare.User"
INSTALLED_APPS = [*INSTALLED_APPS, "tests.projects.bare"]
DATABASES = databases("bare")
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "tests.projects.bare.backends.JoiningBackend",
]

from tests.projects.base import *  # noqa: F403 - as said there
from tests.projects.base import INSTALLED_APPS, databases

AUTH_USER_MODEL = "by_email.User"
INSTALLED_APPS = [*INSTALLED_APPS, "tests.projects.by_email"]
DATABASES = databases("by_email")

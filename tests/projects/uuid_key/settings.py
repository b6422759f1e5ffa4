from tests.projects.base import *  # noqa: F403 - as said there
from tests.projects.base import INSTALLED_APPS, databases

AUTH_USER_MODEL = "uuid_key.User"
INSTALLED_APPS = [*INSTALLED_APPS, "tests.projects.uuid_key"]
DATABASES = databases("uuid_key")

import tempfile

from tests.projects.base import *  # noqa: F403 - as said there
from tests.projects.base import INSTALLED_APPS, databases

INSTALLED_APPS = [*INSTALLED_APPS, "tests.projects.jobs"]
DATABASES = databases("jobs")
EVERIFIN_SCOPES = "openid ais offline_access"
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": tempfile.mkdtemp(prefix="everifin-jobs-"),
    }
}

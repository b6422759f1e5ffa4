import warnings

from tests.projects.base import *  # noqa: F403 - as said there
from tests.projects.base import INSTALLED_APPS, databases

# python3-openid, which python-social-auth imports, looks for the XML parsers of old.
warnings.filterwarnings("ignore", message="defusedxml.cElementTree is deprecated")

INSTALLED_APPS = [*INSTALLED_APPS, "social_django"]
DATABASES = databases("social_auth")

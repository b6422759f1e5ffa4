"""
``asgi_site`` for a server: ``python -m uvicorn tests.protocol.asgi:application``, with the
settings in TESTS_SETTINGS on top of tests.settings.
"""

import json
import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.test import override_settings

override_settings(
    ROOT_URLCONF="tests.protocol.asgi_site",
    MIDDLEWARE=["tests.protocol.asgi_site.note_who_leaves", *settings.MIDDLEWARE],
    **json.loads(os.environ["TESTS_SETTINGS"]),
).enable()
application = get_asgi_application()

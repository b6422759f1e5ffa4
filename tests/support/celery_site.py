"""
A site's Celery application, for a worker: ``celery -A tests.support.celery_site worker``.

BROKER_URL and BACKEND_URL name the broker and where results go; SITE_SETTINGS has, as JSON, what
differs from the settings.
"""

from __future__ import annotations

import json
import os

from celery import Celery
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
for name, value in json.loads(os.environ["SITE_SETTINGS"]).items():
    setattr(settings, name, value)

app = Celery("site", broker=os.environ["BROKER_URL"], backend=os.environ["BACKEND_URL"])
app.conf.broker_connection_retry_on_startup = True
app.autodiscover_tasks()

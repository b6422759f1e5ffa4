"""The demo's site under a strict Content-Security-Policy, with pages for the browser tests."""

import os

from scripts.demo.settings import *  # noqa: F403
from scripts.demo.settings import INSTALLED_APPS, MIDDLEWARE

# The package's own pages come before the example's, which have a style of their own in them.
INSTALLED_APPS = ["everifin_django", *(one for one in INSTALLED_APPS if one != "everifin_django")]
MIDDLEWARE = [
    "tests.browser.pages.content_security_policy",
    "tests.browser.pages.cross_origin",
    *MIDDLEWARE,
]
ROOT_URLCONF = "tests.browser.pages"
SESSION_COOKIE_SAMESITE = os.environ.get("SESSION_COOKIE_SAMESITE", "Lax")
if SESSION_COOKIE_SAMESITE == "Strict":
    SILENCED_SYSTEM_CHECKS = ["everifin_django.E014"]  # which says why it does not work
if FRONT_END := os.environ.get("BROWSER_TEST_FRONT_END"):
    CSRF_TRUSTED_ORIGINS = [FRONT_END]
    EVERIFIN_RETURN_HOSTS = [FRONT_END.partition("//")[2]]

"""
The sandbox: a fake identity provider and bank API in one WSGI application.

Made for development and tests; nothing in it is real. Needs the extra `everifin-django[sandbox]`.

    sandbox = Sandbox(idp_url="https://idp.everifin.test")
    with everifin_django.testing.adapter.mount(sandbox):
        back = sandbox.authorize(authorization_url, "alice")
"""

from everifin_django.testing.sandbox.app import Sandbox
from everifin_django.testing.sandbox.faults import AnswerLost, Fault, Faults
from everifin_django.testing.sandbox.signing import SigningKey
from everifin_django.testing.sandbox.state import RecordedRefresh, RecordedRequest, Rotation

__all__ = [
    "AnswerLost",
    "Fault",
    "Faults",
    "RecordedRefresh",
    "RecordedRequest",
    "Rotation",
    "Sandbox",
    "SigningKey",
]

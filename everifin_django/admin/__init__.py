"""
Why can this customer not see their account? Connections, the outbox, login links and payments. No
token is shown.
"""

from everifin_django.admin import links, outbox, payments  # noqa: F401 - they register their pages
from everifin_django.admin.connections import connection_link

__all__ = ("connection_link",)

"""
drf-spectacular: the answers that a view behind ``EverifinConnected`` gives besides its own.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular import openapi

from everifin_django.contrib.rest_framework import EverifinConnected

__all__ = ["AutoSchema"]

# RFC 9457, with the members of web.responses.problem().
PROBLEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "connect_url": {"type": "string", "format": "uri"},
    },
    "required": ["type", "title", "status"],
}
DESCRIPTIONS = {
    "403": "The user has to connect Everifin at `connect_url`.",
    "503": "Everifin does not answer at the moment. Try again after `Retry-After` seconds.",
}


class AutoSchema(openapi.AutoSchema):
    """For ``REST_FRAMEWORK["DEFAULT_SCHEMA_CLASS"]``, or as a base of the site's own class."""

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        operation = super().get_operation(*args, **kwargs)
        if operation and self._needs_everifin():
            for status, description in DESCRIPTIONS.items():
                content = {"application/problem+json": {"schema": PROBLEM}}
                answer = {"description": description, "content": content}
                operation["responses"].setdefault(status, answer)
        return operation

    def _needs_everifin(self) -> bool:
        permissions = self.view.get_permissions()
        return any(isinstance(permission, EverifinConnected) for permission in permissions)

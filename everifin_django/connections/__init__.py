"""
A user's link to Everifin: made, used, refreshed, ended.

``everifin_for(user)`` calls the bank API as a user, without a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everifin_django.connections.grants import everifin_for

__all__ = ["everifin_for"]


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): the checks need one module of this package at every start, and
    # a process that calls no bank should not load the HTTP client for it.
    if name in __all__:
        from everifin_django.connections import grants

        return getattr(grants, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

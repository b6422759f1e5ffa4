"""
A user's link to Everifin: made, used, refreshed, ended.

``everifin_for(user)`` calls the bank API as a user, without a request; ``refresh_now(user)``
refreshes the user's tokens; ``link(user, issuer, subject)`` lets a user log in with an Everifin
account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everifin_django.connections.grants import everifin_for
    from everifin_django.connections.links import link
    from everifin_django.connections.refresh import refresh_now

__all__ = ["everifin_for", "link", "refresh_now"]


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): the checks need one module of this package at every start, and
    # a process that calls no bank should not load the HTTP client for it.
    if name in __all__:
        from everifin_django.connections import grants, links, refresh

        module: Any = {"link": links, "refresh_now": refresh}.get(name, grants)
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

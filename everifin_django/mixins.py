"""
The mixin for class-based views that need Everifin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from everifin_django.decorators import everifin_required

__all__ = ["EverifinRequiredMixin"]


class EverifinRequiredMixin:
    """
    ``everifin_required`` for a class-based view: put it first, and name scopes in
    ``everifin_scopes``.
    """

    # An EverifinRequest. Type checkers let no mixin narrow the type of an attribute of View.
    request: Any
    everifin_scopes: Iterable[str] = ()

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        scopes = initkwargs.get("everifin_scopes", cls.everifin_scopes)
        view = super().as_view(**initkwargs)  # type: ignore[misc]  # the view class comes after this one
        return everifin_required(scopes=scopes)(view)

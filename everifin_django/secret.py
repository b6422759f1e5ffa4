"""
Strings that are never shown, and errors that show none.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction, isgeneratorfunction
from typing import NoReturn, ParamSpec, SupportsIndex, TypeVar

__all__ = ["Secret"]

P = ParamSpec("P")
T = TypeVar("T")


class Secret:
    """
    A string that is never shown: masked wherever it is printed, refused by pickle, copy and JSON,
    compared in constant time.

    ``reveal()`` is the only way to read it. Functions pass secrets on unopened and reveal them in
    the very expression that needs the string, so that no report that captures local variables can
    show one.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    # Keeps templates, which call whatever is callable, from calling it in {{ token.reveal }}.
    reveal.alters_data = True  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return "Secret(**********)"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    # A secret in a set, or as a key, would be compared by its hash.
    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("A Secret is neither pickled nor copied.")

    def _bytes(self) -> bytes:
        # JSON may spell half a character ("\ud800"), which has no UTF-8.
        return self._text.encode(errors="surrogatepass")


def hides_frames(function: Callable[P, T]) -> Callable[P, T]:
    """
    Let an error leave *function* without the frames below it, its cause and its context: their
    local variables may hold secrets in clear. Class, message and attributes of the error stay.

    A report that captures local variables sees who called, and nothing of what was done inside.
    Arguments are also in the caller's frames, so pass secrets as ``Secret``.

    Errors: TypeError for a coroutine or generator function, whose body runs after the call.
    """
    if iscoroutinefunction(function) or isgeneratorfunction(function):
        raise TypeError("hides_frames is for functions that have done their work when they return.")

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure = error
        # This frame stays in the traceback; and raising outside the handler sets no context anew.
        del args, kwargs
        failure.__cause__ = failure.__context__ = None
        try:
            raise failure.with_traceback(None)
        finally:
            # The error refers to this frame: no circle for the garbage collector.
            del failure

    return wrapper

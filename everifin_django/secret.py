"""
A text that does not show.
"""

from __future__ import annotations

import hmac
from typing import NoReturn, SupportsIndex


class Secret:
    """
    A text that does not show: masked wherever it is printed, refused by pickle, copy and JSON,
    compared in constant time.

    ``reveal()`` is the one way to the text. Functions hand secrets on as they are and reveal them
    in the very expression that needs the text, so that no report that captures local variables can
    show one.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    # Templates call what they can; this keeps them from it, whoever writes {{ token.reveal }}.
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

"""
Faults: switches that make the sandbox fail.

Everything here is invented for development; no fault is taken from Everifin's documentation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from everifin_django.testing.sandbox.oddities import ODDITIES

Lost = Literal["before", "after"]

IDP_CALLS = (
    "auth",
    "login",
    "registration",
    "consent",
    "token",
    "token.authorization_code",
    "token.refresh_token",
    "logout",
    "revoke",
    "certs",
    "userinfo",
    "discovery",
)
API_CALLS = (
    "api",
    "api.accounts",
    "api.account",
    "api.transactions",
    "api.transaction",
    "api.refresh",
    "api.banks",
    "api.payments",
    "api.payment",
    "api.bulk_payments",
    "api.bulk_payment",
)
CALL_NAMES = frozenset(IDP_CALLS + API_CALLS)
"""
Every name that a fault can have as *where*, and that `Sandbox.calls` counts by. "token" stands for
any grant, "api" for any call to the bank API.
"""


class AnswerLost(ConnectionAbortedError):  # noqa: N818 - an event of the network, not a mistake
    """
    The sandbox was told to give no answer, or only part of one.

    Raised by the WSGI application, either at once or while its answer is being read. The HTTP
    server then closes the socket; the in-process adapter raises what requests would raise.
    *timed_out* says that the caller stopped waiting, and did not lose the connection.
    """

    def __init__(self, *, timed_out: bool = False) -> None:
        super().__init__("The sandbox was told to lose this answer.")
        self.timed_out = timed_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    One failure of one kind of call.

    With *status*, *body* or *html* the call is answered with only that, and nothing is done, unless
    *lost* is "after": then the work is done, and the caller gets this instead of the answer.
    *lost* alone closes the connection, before or after the work. *odd* names what is odd about an
    answer of the bank API that is whole (see `oddities`), one or several. *latency_seconds* passes
    before the work. *truncate* sends half the answer under the length of the whole. *html* is a
    page as from a proxy, status 400 unless *status* says otherwise.

    Units: *retry_after* goes into the header as it is (seconds, or an HTTP date); *times* is how
    many calls it hits, None for all.
    """

    where: str
    status: int | None = None
    body: str | bytes | Mapping[str, Any] | None = None
    content_type: str | None = None
    retry_after: int | str | None = None
    latency_seconds: float = 0
    lost: Lost | None = None
    truncate: bool = False
    html: bool = False
    odd: str | tuple[str, ...] = ()
    times: int | None = None

    def __post_init__(self) -> None:
        odd = self.odd.replace(",", " ").split() if isinstance(self.odd, str) else self.odd
        object.__setattr__(self, "odd", tuple(odd))
        if unknown := {*self.odd} - ODDITIES:
            raise ValueError(f"{sorted(unknown)} is not odd: choose from {sorted(ODDITIES)}.")
        if self.where not in CALL_NAMES:
            choices = ", ".join(sorted(CALL_NAMES))
            raise ValueError(f"There is no {self.where!r}: choose from {choices}.")
        if self.lost is not None and self.lost not in get_args(Lost):
            raise ValueError(f"lost is 'before', 'after' or None, not {self.lost!r}.")

    @property
    def replaces_answer(self) -> bool:
        return self.status is not None or self.body is not None or self.html


class Faults:
    """The faults in force, oldest first. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(  # noqa: PLR0913 - one argument for each switch of Fault
        self,
        where: str,
        *,
        status: int | None = None,
        body: str | bytes | Mapping[str, Any] | None = None,
        content_type: str | None = None,
        retry_after: int | str | None = None,
        latency_seconds: float = 0,
        lost: Lost | None = None,
        truncate: bool = False,
        html: bool = False,
        odd: str | tuple[str, ...] = (),
        times: int | None = None,
    ) -> Fault:
        """Make calls to *where* fail from now on: see `Fault`. The oldest match counts."""
        fault = Fault(
            where=where,
            status=status,
            body=body,
            content_type=content_type,
            retry_after=retry_after,
            latency_seconds=latency_seconds,
            lost=lost,
            truncate=truncate,
            html=html,
            odd=odd,
            times=times,
        )
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, names: tuple[str, ...]) -> Fault | None:
        """Return the fault of a call with these names, and count it as used."""
        with self._lock:
            for index, fault in enumerate(self._faults):
                if fault.where in names:
                    self._use(index, fault)
                    return fault
        return None

    def _use(self, index: int, fault: Fault) -> None:
        if fault.times is None:
            return
        if fault.times > 1:
            self._faults[index] = replace(fault, times=fault.times - 1)
        else:
            del self._faults[index]

    def __iter__(self) -> Iterator[Fault]:
        with self._lock:
            return iter(tuple(self._faults))

    def __len__(self) -> int:
        return len(self._faults)

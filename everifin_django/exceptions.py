"""
What can go wrong, and who has to act.

::

    EverifinError
    ├── TokenError                      the user's connection cannot give a token
    │   ├── TokenMissingError           the user connects Everifin
    │   ├── ConsentExpiredError         the user connects Everifin again
    │   ├── ScopeMissingError           the user connects again and grants more
    │   ├── TokenUnreadableError        the site's operator looks at the keys
    │   │   ├── UnknownKeyError
    │   │   ├── KeysUnavailableError
    │   │   ├── TamperedError
    │   │   └── MalformedError
    │   └── RefreshInTransactionError   the site's developer marks the view
    ├── AccessDeniedError               the user, as the site's own response says
    ├── APIError                        a call to Everifin did not give what was asked for
    │   ├── UnavailableError            nobody: try again later
    │   │   ├── UnreachableError        ... nothing was sent
    │   │   ├── AnswerLostError         ... it may have been carried out
    │   │   └── RateLimitedError        ... Everifin had too many calls
    │   ├── PaymentUncertainError       somebody looks whether the payment was made
    │   ├── AnswerError                 the site's developer: Everifin answered in another shape
    │   └── RefusedError                Everifin said no, and why: see ``code``
    │       ├── NotAuthorizedError
    │       ├── NotFoundError
    │       ├── RefreshRunningError     nobody: the refresh is already running
    │       ├── InvalidRequestError
    │       │   └── EndUserMissingError the site's developer: only a person who is present can pay
    │       ├── PaymentRejectedError    the user: the bank refused the payment
    │       └── PaymentNotEditableError nobody: read the payment instead
    ├── PaymentKeyTakenError            the site's developer: one key, one payment
    ├── PaymentInTransactionError       the site's developer takes the view out of the transaction
    ├── LoginError                      the visitor starts the login or connection again
    │   ├── InsufficientAuthenticationError
    │   │                               ... and signs in at Everifin anew, or in a stronger way
    │   └── LoginRefusedError           nobody: this site does not let the visitor log in
    ├── IdentityMismatchError           the user signs in at Everifin with the account of before
    └── IdentityTakenError              the visitor logs in as the user who has the Everifin account

A wrong setting is Django's ``ImproperlyConfigured``, outside this tree on purpose: who catches bank
trouble must not hide a bad setting.

No message holds a token, a login code, a secret, a response body or a person's data. Each error
can be pickled and copied, as task queues do.
"""

from __future__ import annotations

from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.http import Http404

__all__ = [
    "APIError",
    "AccessDeniedError",
    "AnswerError",
    "AnswerLostError",
    "ConsentExpiredError",
    "EndUserMissingError",
    "EverifinError",
    "IdentityMismatchError",
    "IdentityTakenError",
    "InsufficientAuthenticationError",
    "InvalidRequestError",
    "KeysUnavailableError",
    "LoginError",
    "MalformedError",
    "NotAuthorizedError",
    "NotFoundError",
    "PaymentNotEditableError",
    "PaymentRejectedError",
    "PaymentUncertainError",
    "RateLimitedError",
    "RefreshInTransactionError",
    "RefreshRunningError",
    "RefusedError",
    "ScopeMissingError",
    "TamperedError",
    "TokenError",
    "TokenMissingError",
    "TokenUnreadableError",
    "UnavailableError",
    "UnknownKeyError",
    "UnreachableError",
]


class EverifinError(Exception):
    """Something between this site and Everifin failed. Catch it to catch everything below."""


class TokenError(EverifinError):
    """The user's connection cannot give an access token."""


class TokenMissingError(TokenError):
    """The user has no connection to Everifin: send them to the connect page."""


class ConsentExpiredError(TokenError):
    """
    Everifin ended the user's connection: send them to the connect page again. ``reason`` says why.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class ScopeMissingError(TokenError):
    """
    The user's connection was granted without a scope that is needed. ``missing`` names what lacks,
    if it is known.
    """

    def __init__(self, missing: frozenset[str] = frozenset()) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        names = " ".join(sorted(self.missing)) or "not named"
        return f"Everifin did not grant the scope that is needed: {names}."


class TokenUnreadableError(TokenError):
    """
    A stored token cannot be decrypted. The row is left as it is: put the right key back and it
    works again.
    """


class UnknownKeyError(TokenUnreadableError):
    """The key that sealed the token is not among the site's keys. ``key_id`` names it."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.key_id = key_id

    def __str__(self) -> str:
        return (
            f"The encryption key {self.key_id!r} is not in EVERIFIN_ENCRYPTION_KEYS, or unknown to "
            "EVERIFIN_KEY_PROVIDER. Add it again, behind the newest one."
        )


class KeysUnavailableError(TokenUnreadableError):
    """
    The site's key provider failed, so nothing can be sealed or opened for now. ``failure`` names
    the kind of its error.
    """

    def __init__(self, failure: str) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return f"EVERIFIN_KEY_PROVIDER gave no encryption key ({self.failure})."


class TamperedError(TokenUnreadableError):
    """
    The ciphertext was changed, belongs to another row or column, or was sealed with another key of
    the same name.
    """


class MalformedError(TokenUnreadableError):
    """The column holds something that this app did not write."""


class RefreshInTransactionError(TokenError):
    """
    The token is overdue, and an open transaction has locked the database that a new one goes into.

    Mark the view with ``@everifin_required``: the token is then refreshed before the view's
    transaction begins. Raised on SQLite only, before anything is sent. ``refresh_later`` is for the
    middleware, which refreshes after the view's transaction has been rolled back.
    """

    refresh_later: Any = None


class AccessDeniedError(EverifinError):
    """
    The site's EVERIFIN_ACCESS_CHECK does not let this request use the bank. The middleware answers
    with ``response``; nothing was sent. It is None in a copy from a task queue.
    """

    def __init__(self, response: Any = None) -> None:
        super().__init__()
        self.response = response

    def __reduce__(self) -> Any:
        return type(self), ()

    def __str__(self) -> str:
        return "EVERIFIN_ACCESS_CHECK does not let this request use the bank. Nothing was sent."


class APIError(EverifinError):
    """
    A call to Everifin did not give what was asked for.

    ``method`` and ``path`` name the call; ``status`` is the HTTP status and ``code`` Everifin's own
    error code, each None where there was none.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str = "",
        path: str = "",
        status: int | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.method = method
        self.path = path
        self.status = status
        self.code = code


class UnavailableError(APIError):
    """
    Everifin cannot answer for now. Stored tokens are kept; try again after ``retry_after_seconds``,
    if it is set. ``refresh_later`` is set where a refresh has to wait for the end of a transaction.
    """

    retry_after_seconds: float | None = None
    refresh_later: Any = None


class UnreachableError(UnavailableError):
    """No connection to Everifin was made, so nothing was sent."""


class AnswerLostError(UnavailableError):
    """The request went out and no usable answer came back: Everifin may have carried it out."""


class PaymentUncertainError(APIError):
    """
    A payment, or another request that writes, was sent and no answer came that says what became of
    it. It was not sent again.

    It may exist, or not. Before paying once more, look: by ``payment_id`` where there is one, else
    by ``external_id`` (``find_payment``, ``find_bulk_payment``). Those raise it as well, where the
    list does not tell: then compare amount, recipient and time of those in ``payment_ids``.
    """

    payment_id: str | None = None
    external_id: str | None = None
    payment_ids: tuple[str, ...] = ()


class RateLimitedError(UnavailableError):
    """
    Everifin had too many calls (429) and says nothing of this one: call again, and less often,
    after ``retry_after_seconds``, if it is set.
    """


class AnswerError(APIError):
    """Everifin answered in a shape this app does not understand."""


class RefusedError(APIError):
    """Everifin refused; ``code`` says why, in Everifin's own words."""


class NotAuthorizedError(RefusedError):
    """Everifin refused the access token even after it was refreshed."""


class NotFoundError(RefusedError, Http404):
    """
    What was asked for does not exist, or belongs to somebody else. In a view, Django answers it
    with 404.
    """


class RefreshRunningError(RefusedError):
    """
    A download from the banks is running already (ACCOUNT_REFRESH_ALREADY_RUNNING): its rows come
    through the list of transactions, so nothing has to be asked for again.
    """


class InvalidRequestError(RefusedError):
    """
    A value in the request is wrong. ``field`` and ``rule`` name it where Everifin did, and
    ``message`` is its own sentence, if it only says which rule failed on which field: another one
    could repeat a person's data. What cannot be sent at all is found here, before anything goes
    out, and has no ``status``.
    """

    field: str | None = None
    rule: str | None = None
    message: str | None = None


class EndUserMissingError(InvalidRequestError):
    """
    Everifin needs the IP address and the browser of the person who pays, and they are not known.

    Use ``request.everifin``, and set EVERIFIN_TRUSTED_PROXIES to the number of your own proxies. A
    private or loopback IP address counts as unknown. Nothing was sent.
    """


class PaymentRejectedError(RefusedError):
    """The bank rejected the payment (PAYMENT_REJECTED). It will not be carried out."""


class PaymentNotEditableError(RefusedError):
    """The payment can no longer be processed (NOT_EDITABLE): read its state instead."""


class PaymentKeyTakenError(EverifinError):
    """
    The key given to ``pay_once`` belongs to another payment. Nothing was sent.

    It does not say whose: the other payment may be of another user.
    """

    def __str__(self) -> str:
        return (
            "Another payment has this key. Give each payment a key of its own, such as the id of "
            "its order. Nothing was sent."
        )


class PaymentInTransactionError(EverifinError):
    """
    ``pay_once`` was called inside a transaction whose rollback would remove the record of a payment
    that was made. Nothing was written or sent.
    """

    def __str__(self) -> str:
        return (
            "pay_once writes a payment down before it is sent, and the open transaction could roll "
            "that back. Decorate the view with django.db.transaction.non_atomic_requests, or call "
            "pay_once outside of atomic(). Nothing was written or sent."
        )


class LoginError(EverifinError, SuspiciousOperation):
    """
    A login or connection came back in a way that is not trusted. Nothing was changed.

    ``reason`` is a short code for the security log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The login with Everifin was stopped ({self.reason})."


class InsufficientAuthenticationError(LoginError):
    """
    The user signed in at Everifin longer ago than ``max_age`` allows, or in another way than
    ``acr_values`` names, as EVERIFIN_LOGIN_PARAMS or EVERIFIN_CONNECT_PARAMS ask for.
    """


class IdentityMismatchError(EverifinError):
    """The user's connection belongs to another Everifin account. Nothing was changed."""

    def __str__(self) -> str:
        return "This user's connection belongs to another Everifin account."


class LoginRefusedError(LoginError):
    """
    This site does not let the visitor log in. A backend's ``verify_claims`` raises it with a
    sentence to say why; the visitor is shown it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__("refused")
        self.args = (message,)
        self.message = message


class IdentityTakenError(EverifinError):
    """The Everifin account is connected to another user of this site. Nothing was changed."""

    def __str__(self) -> str:
        return "This Everifin account is connected to another user of this site."

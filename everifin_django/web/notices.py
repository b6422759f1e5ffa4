"""
What people read when something did not work: plain words for each reason, and no more than they
need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_lazy as _


@dataclass(frozen=True, slots=True)
class Notice:
    title: Any
    text: Any


CANCELLED = "cancelled"
EXPIRED = "expired"
TAKEN = "taken"
UNAVAILABLE = "unavailable"
ENDED = "ended"
SCOPE_MISSING = "scope_missing"
NO_USER = "no_user"
INACTIVE = "inactive"
REFUSED = "refused"
LOGGED_IN = "logged_in"
MISCONFIGURED = "misconfigured"
LOGIN_NOT_ALLOWED = "login_not_allowed"
OTHER_IDENTITY = "other_identity"
NOT_TRUSTED = "not_trusted"
SPENT = "spent"
LOGGED_OUT = "logged_out"
OTHER_USER = "other_user"
OTHER_HOST = "other_host"
BEGIN_AGAIN = "begin_again"
SIGN_IN_ANEW = "sign_in_anew"
SIGN_IN_BETTER = "sign_in_better"
FAILED = "failed"
PAYMENT_UNCERTAIN = "payment_uncertain"

NOTICES: Mapping[str, Notice] = {
    CANCELLED: Notice(
        _("You cancelled at Everifin"),
        _("Nothing has changed. You can try again whenever you like."),
    ),
    EXPIRED: Notice(
        _("That took too long"),
        _(
            "For your safety this step has to be finished within a short time. Nothing has "
            "changed. Please start again."
        ),
    ),
    TAKEN: Notice(
        _("This Everifin account belongs to another user here"),
        _(
            "Nothing has changed. Log in here as the user who connected it before, or sign out at "
            "Everifin and start again with another account."
        ),
    ),
    UNAVAILABLE: Notice(
        _("Everifin does not answer at the moment"),
        _("Your connection is kept. Please try again in a few minutes."),
    ),
    ENDED: Notice(
        _("Your connection to Everifin has ended"),
        _("Connect again to go on. Everifin asks for this from time to time, for your safety."),
    ),
    SCOPE_MISSING: Notice(
        _("A permission is missing"),
        _(
            "You did not allow everything this page needs. Connect again and allow access to your "
            "accounts."
        ),
    ),
    NO_USER: Notice(
        _("Nobody here has this Everifin account"),
        _("Log in the way you usually do, then connect Everifin."),
    ),
    INACTIVE: Notice(
        _("Your user here is deactivated"),
        _("Nothing has changed. If you think that this is a mistake, ask us."),
    ),
    REFUSED: Notice(
        _("You cannot log in here"),
        _("Everifin knows you, but this site did not accept the login. Nothing has changed."),
    ),
    LOGGED_IN: Notice(
        _("You are logged in already"),
        _("The page you asked for still wants you to log in: your user may not see it."),
    ),
    MISCONFIGURED: Notice(
        _("This page is not set up correctly"),
        _("It needs a permission that this site never asks Everifin for. Please tell us."),
    ),
    LOGIN_NOT_ALLOWED: Notice(
        _("Log in the way you usually do"),
        _("This Everifin account is connected to a user here, but it cannot be used to log in."),
    ),
    OTHER_IDENTITY: Notice(
        _("You came back with another Everifin account"),
        _(
            "Nothing has changed. There are two ways on: log out at Everifin and connect again "
            "with the account you connected before; or disconnect that one here first, then "
            "connect the other."
        ),
    ),
    NOT_TRUSTED: Notice(
        _("This link cannot be used"),
        _("It is not from a login that you have just begun in this browser. Nothing has changed."),
    ),
    SPENT: Notice(
        _("This was used before"),
        _("What Everifin sends you back with serves only once. You can start again."),
    ),
    LOGGED_OUT: Notice(
        _("You were logged out in the meantime"),
        _("So Everifin was not connected. Log in, then connect it again."),
    ),
    OTHER_USER: Notice(
        _("Another user is logged in by now"),
        _("Everifin is connected only for the user who began. Nothing has changed."),
    ),
    OTHER_HOST: Notice(
        _("You came back to another address of this site"),
        _(
            "You began at one address of this site and came back to this one, which does not know "
            "you from there. Nothing has changed. Please start again here."
        ),
    ),
    BEGIN_AGAIN: Notice(
        _("Everifin asks you to start again"),
        _("Its page was open for too long, or you have signed in there in another tab."),
    ),
    SIGN_IN_ANEW: Notice(
        _("Please sign in at Everifin again"),
        _(
            "This site needs a sign-in that is more recent. Nothing has changed. Start again and "
            "enter your password at Everifin; if it does not ask for it, sign out there first."
        ),
    ),
    SIGN_IN_BETTER: Notice(
        _("This site needs a stronger sign-in"),
        _(
            "You signed in at Everifin in a way that this site does not accept here. Nothing has "
            "changed. Start again and choose a stronger one, such as a code from your phone."
        ),
    ),
    PAYMENT_UNCERTAIN: Notice(
        _("We do not know whether your payment was made"),
        _("Please look at your account before you pay again, or ask us."),
    ),
    FAILED: Notice(
        _("Everifin could not finish this"),
        _("Nothing has changed. Please try again; if it happens again, tell us."),
    ),
}

BY_REASON: Mapping[str, str] = {
    "state_expired": EXPIRED,
    "state_spent": SPENT,
    "other_host": OTHER_HOST,
    "logged_out": LOGGED_OUT,
    "user_changed": OTHER_USER,
    "user_inactive": INACTIVE,
    "no_user": NO_USER,
    "refused": REFUSED,
    "login_not_allowed": LOGIN_NOT_ALLOWED,
    "no_id_token": FAILED,
    "id_token_auth_time": SIGN_IN_ANEW,
    "id_token_acr": SIGN_IN_BETTER,
}
"""Which words go with the reason of a LoginError, as far as its beginning does not say it."""
AFTER_ERRORS = frozenset({CANCELLED, BEGIN_AGAIN, SIGN_IN_BETTER, UNAVAILABLE, FAILED})
"""What a start page may be told to say by its URL, after Everifin has answered with an error."""

TOKEN_REASONS = ("token_", "id_token_")


def of_reason(reason: str) -> str:
    """Return which words go with the reason of a LoginError."""
    if reason in BY_REASON:
        return BY_REASON[reason]
    if reason.startswith(TOKEN_REASONS):
        # The visitor began this login, and came back with a code that was good: what is wrong is
        # what Everifin gave for it, or this site's clock.
        return FAILED
    return NOT_TRUSTED

"""
Every way a grant or a login ends, in one table: docs/explanation/ends.md is held to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class End:
    """
    One reason: who asked, what ends here and at Everifin, what is left alone, what the person is
    told.

    After an end *on purpose* a login does not connect again. One that *ends the login* is the end
    of the browser's session at Everifin as well.
    """

    asked_by: str
    here: str
    at_everifin: str
    left_alone: str
    told: str
    is_on_purpose: bool = False
    ends_login: bool = False


ENDS: Mapping[str, End] = {
    "disconnected": End(
        "the person, by Disconnect",
        "the connection, its identity, and login links that connecting made",
        "the grant",
        "the Django session; logins and links made by a first login or an import",
        "the page that the site shows next",
        is_on_purpose=True,
    ),
    "logout": End(
        "the person, by logging out in this browser",
        "the Django session and the login; the connection if its grant is this login's",
        "this browser's session, or this login's grant",
        "other browsers; a grant that one of them holds becomes the connection",
        "the page after logout",
        ends_login=True,
    ),
    "backchannel_logout": End(
        "Everifin, by back-channel logout",
        "the logins it names and their Django sessions; the connection if it lives there",
        "nothing more; a grant with `offline_access` that only an ended login held",
        "sessions that a password began; connections with `offline_access`, unless revoked",
        "the login page, at the next click",
        ends_login=True,
    ),
    "replaced": End(
        "the person, by a newer login or by connecting again",
        "nothing",
        "the older grant, if no browser's login owns it and it shares no session with the new one",
        "the other browser's login, whose record has the older grant",
        "nothing",
    ),
    "session_expired": End(
        "nobody: the Django session of a login is over",
        "the record of the login",
        "the grant that it held, if nothing else lives in its session",
        "the connection",
        "nothing",
    ),
    "refused": End(
        "Everifin, by refusing a refresh",
        "the connection has to be made again; its tokens stay until they are purged",
        "nothing",
        "logins and links",
        "the connect page, with the reason",
    ),
    "purged": End(
        "the operator, by `EVERIFIN_RETENTION_DAYS`",
        "the tokens of a connection that was not made again",
        "the grant, if no browser's login lives in its session",
        "logins and links; the connection's identity",
        "nothing",
    ),
    "deleted": End(
        "whoever deletes the user or the connection",
        "the connection; with the user also logins and links",
        "all their grants",
        "nothing",
        "nothing",
    ),
    "user_inactive": End(
        "whoever deactivates the user, also by a bulk update",
        "the connection and the logins",
        "all their grants",
        "the links, which give no login to an inactive user",
        "the login page",
    ),
    "admin": End(
        "an administrator, in the admin",
        "as for Disconnect",
        "the grant, when the outbox is worked off",
        "as for Disconnect",
        "the connect page, when a page needs the bank",
        is_on_purpose=True,
    ),
    "incident": End(
        "the operator, by `everifin_disconnect`",
        "as for Disconnect; the grants that logins in other browsers hold",
        "all their grants",
        "as for Disconnect",
        "the connect page, when a page needs the bank",
        is_on_purpose=True,
    ),
    "identity_changed": End(
        "nobody: a refresh was answered about somebody else",
        "the connection has to be made again",
        "the grant that came back",
        "logins and links",
        "the connect page, with the reason",
    ),
    "identity_taken": End(
        "nobody: the Everifin account belongs to another user",
        "nothing",
        "the new grant, if nothing else lives in its session",
        "the owner's connection and logins",
        "which user it belongs to is not said; the way on is",
    ),
    "no_user": End(
        "the site, which makes no user for this account",
        "nothing",
        "the new grant, if nothing else lives in its session",
        "everything else",
        "to log in as usual",
    ),
    "login_failed": End(
        "nobody: a login or connection could not be finished",
        "nothing",
        "the new grant, if nothing else lives in its session",
        "everything else",
        "what failed, and to start again",
    ),
}

ON_PURPOSE = frozenset(reason for reason, end in ENDS.items() if end.is_on_purpose)
ENDS_LOGIN = frozenset(reason for reason, end in ENDS.items() if end.ends_login)

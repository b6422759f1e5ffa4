"""
Which Everifin accounts a user may log in with.

A link is made by a first login, by connecting or by an import, and says nothing about whose bank
is read. Without EverifinBackend in AUTHENTICATION_BACKENDS there are no links, and nothing here
costs a query.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import IntegrityError, router, transaction
from django.db.models import QuerySet
from django.dispatch import Signal
from django.utils.module_loading import import_string

from everifin_django.conf import conf
from everifin_django.exceptions import IdentityTakenError
from everifin_django.models import BankToken, LoginLink, any_incident
from everifin_django.oauth.id_token import Identity
from everifin_django.signals import login_link_created, login_link_removed

MadeBy = LoginLink.MadeBy
MAX_SUBJECT = 255


def are_used() -> bool:
    """Tell whether this site logs users in with Everifin. No query."""
    return any(
        getattr(import_string(path), "logs_in_with_everifin", False)
        for path in settings.AUTHENTICATION_BACKENDS
    )


def find(identity: Identity) -> LoginLink | None:
    """Return the link of *identity* with its user, None if nobody has it. One query."""
    return _links().select_related("user").filter(digest=identity.digest).first()


def find_with_connection(identity: Identity) -> LoginLink | None:
    """As ``find``, with what ``connection_read_with`` returns. One query."""
    links = _links().select_related("user__bank_token").annotate(incident_id=any_incident(alias()))
    return links.filter(digest=identity.digest).first()


def connection_read_with(link: LoginLink) -> BankToken | None:
    """
    Return the connection of the link's user as ``find_with_connection`` has read it, and whether an
    incident is under way, as ``with_incident`` does. No query.
    """
    connection: BankToken | None = getattr(link.user, "bank_token", None)
    if connection is not None:
        connection.incident_id = link.incident_id  # type: ignore[attr-defined]  # annotated
    return connection


def may_log_in(link: LoginLink) -> bool:
    """
    Tell whether *link* can be used to log in now: a link that connecting made is checked each time.
    """
    return link.made_by != MadeBy.CONNECT or connecting_allows_login(link.user)


def connecting_allows_login(user: Any) -> bool:
    """Tell whether *user* may log in with an account they have only connected."""
    return conf.connect_allows_login and not is_privileged(user)


def is_privileged(user: Any) -> bool:
    return bool(getattr(user, "is_staff", False) or getattr(user, "is_superuser", False))


def link(user: Any, issuer: str, subject: str) -> LoginLink:
    """
    Let *user* log in with the Everifin account *subject* of *issuer*, and return the link. An
    existing link does not change. Two queries.

    Errors: IdentityTakenError if another user has it; ValueError for another issuer than this
    site's, or a subject that none can be.
    """
    if issuer != conf.issuer:
        raise ValueError("The issuer is not the one of EVERIFIN_ISSUER.")
    if not is_subject(subject):
        raise ValueError("A subject has 1 to 255 printable ASCII characters.")
    return create(user, Identity(issuer, subject), MadeBy.IMPORT)


def is_subject(subject: Any) -> bool:
    """Source: OpenID Connect Core 1.0, section 2. No control characters, for the database."""
    is_text = isinstance(subject, str) and 1 <= len(subject) <= MAX_SUBJECT
    return is_text and subject.isascii() and subject.isprintable()


def create(user: Any, identity: Identity, made_by: LoginLink.MadeBy) -> LoginLink:
    """
    Return the link of *identity* to *user*, made if there is none. One or two statements.

    Errors: IdentityTakenError if another user has it.
    """
    try:
        with transaction.atomic(using=alias()):
            created = _links().create(
                user=user,
                issuer=identity.issuer,
                subject=identity.subject,
                digest=identity.digest,
                made_by=made_by,
            )
    except IntegrityError:
        existing = find(identity)
        if existing is None or existing.user_id != user.pk:
            raise IdentityTakenError from None
        return existing
    _announce(login_link_created, created)
    return created


def create_by_connecting(user: Any, identity: Identity) -> None:
    """
    Link what *user* has just connected, where connecting allows a login. Two statements at most;
    none without the login backend.

    Errors: IdentityTakenError if another user has it.
    """
    if not are_used():
        return
    existing = find(identity)
    if existing is not None and existing.user_id != user.pk:
        raise IdentityTakenError
    if existing is None and connecting_allows_login(user):
        create(user, identity, MadeBy.CONNECT)


def remove_made_by_connecting(*users: Any) -> None:
    """
    Take back what connecting gave *users*. One query, and one more if there is something; none
    without the login backend.
    """
    if not are_used():
        return
    made = list(_links().filter(user__in=users, made_by=MadeBy.CONNECT).select_related("user"))
    if made:
        _links().filter(pk__in=[existing.pk for existing in made])._raw_delete(alias())
    for existing in made:
        _announce(login_link_removed, existing)


def remove(existing: LoginLink) -> None:
    """Remove *existing*, so that nobody can log in by it. One statement."""
    if _links().filter(pk=existing.pk)._raw_delete(alias()):
        _announce(login_link_removed, existing)


def move(existing: LoginLink, user: Any) -> None:
    """Let *user* log in by *existing*, and its user no longer. One statement."""
    if _links().filter(pk=existing.pk).update(user=user):
        _announce(login_link_removed, existing)
        moved = LoginLink(pk=existing.pk, user=user, made_by=existing.made_by)
        _announce(login_link_created, moved)


def alias() -> str:
    return router.db_for_write(LoginLink)


def _links() -> QuerySet[LoginLink]:
    return LoginLink.objects.using(alias())


def _announce(signal: Signal, changed: LoginLink) -> None:
    """Send *signal* once what it says is committed."""

    def send() -> None:
        signal.send_robust(sender=LoginLink, user=changed.user, made_by=changed.made_by)

    transaction.on_commit(send, using=alias(), robust=True)

"""
Let users log in with the Everifin accounts that another app, a file or their connections know.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.core.management.base import BaseCommand, CommandError, CommandParser

from everifin_django.conf import conf
from everifin_django.connections import links
from everifin_django.exceptions import EverifinError, IdentityTakenError
from everifin_django.models import BankToken, LoginLink, primary
from everifin_django.oauth.id_token import Identity

CREATED, KNOWN = "created", "known before"
SOURCES = ("csv", "allauth", "social-auth", "user-field", "connections")


@dataclass(frozen=True, slots=True)
class Row:
    """One user and their Everifin account, and where that is written."""

    where: str
    user: Any
    subject: str
    issuer: str


class _RefusedRowError(EverifinError):
    """A row that gives nobody a login; the message says why."""


class Command(BaseCommand):
    help = (
        "Create login links from a CSV file (columns user, subject and maybe issuer), from "
        "django-allauth, python-social-auth, a field of the user model (for mozilla-django-oidc), "
        "or from the connections that users made before the login was added. Without --apply it "
        "only says what it would do. Running it twice creates nothing twice."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source", choices=SOURCES)
        parser.add_argument("--issuer", required=True, help="The issuer that the subjects are of.")
        parser.add_argument("--file", type=Path, help="The file, for csv.")
        parser.add_argument("--provider", help="Its name there, for allauth and social-auth.")
        parser.add_argument("--field", help="The field with the subject, for user-field.")
        parser.add_argument("--staff", action="store_true", help="Staff and superusers, too.")
        parser.add_argument("--apply", action="store_true", help="Create the links.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["issuer"] != conf.issuer:
            raise CommandError("--issuer is not the issuer of this site's settings.")
        if not links.are_used():
            raise CommandError("EverifinBackend is not in AUTHENTICATION_BACKENDS.")
        counts = {CREATED: 0, KNOWN: 0}
        refused = 0
        seen: dict[str, Any] = {}
        for row in _rows(options):
            try:
                counts[self._import(row, seen, options)] += 1
            except EverifinError as error:
                refused += 1
                self.stderr.write(f"{row.where}: refused. {error}")
        done = "created" if options["apply"] else "to be created"
        self.stdout.write(f"{counts[CREATED]} {done}, {counts[KNOWN]} known, {refused} refused.")
        if not options["apply"]:
            self.stdout.write("Nothing was changed. Run it again with --apply.")

    def _import(self, row: Row, seen: dict[str, Any], options: dict[str, Any]) -> str:
        """Errors: _RefusedRowError with the reason; IdentityTakenError."""
        _check(row, is_staff_included=options["staff"])
        identity = Identity(conf.issuer, row.subject)
        existing = links.find(identity)
        owner = existing.user_id if existing is not None else seen.get(identity.digest, row.user.pk)
        if owner != row.user.pk:
            raise IdentityTakenError
        seen[identity.digest] = row.user.pk
        if existing is not None:
            return KNOWN
        if options["apply"]:
            links.create(row.user, identity, LoginLink.MadeBy.IMPORT)
        return CREATED


def _check(row: Row, *, is_staff_included: bool) -> None:
    if row.user is None:
        raise _RefusedRowError("There is no such user.")
    if row.issuer != conf.issuer:
        raise _RefusedRowError("It is of another issuer.")
    if not links.is_subject(row.subject):
        raise _RefusedRowError("A subject has 1 to 255 printable ASCII characters.")
    if links.is_privileged(row.user) and not is_staff_included:
        raise _RefusedRowError("The user is staff or a superuser: see --staff.")


def _rows(options: dict[str, Any]) -> Iterator[Row]:
    match options["source"]:
        case "csv":
            return _of_file(_needed(options, "file"))
        case "allauth":
            model = _model("socialaccount", "SocialAccount")
            return _of_accounts(model, _needed(options, "provider"))
        case "social-auth":
            model = _model("social_django", "UserSocialAuth")
            return _of_accounts(model, _needed(options, "provider"))
        case "user-field":
            return _of_field(_needed(options, "field"))
    return _of_connections()


def _of_file(path: Path) -> Iterator[Row]:
    users: Any = primary(get_user_model())
    columns, entries = _read(path)
    if not {"user", "subject"} <= columns:
        raise CommandError("The file needs the columns user and subject.")
    for line, entry in entries:
        user = users.filter(**{users.model.USERNAME_FIELD: entry["user"] or ""}).first()
        issuer = entry.get("issuer") or conf.issuer
        yield Row(f"line {line}", user, entry["subject"] or "", issuer)


def _read(path: Path) -> tuple[set[str], list[tuple[int, dict[str, str]]]]:
    """The columns and rows of the file, read to its end before anything is created."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return {*(reader.fieldnames or ())}, [(reader.line_num, one) for one in reader]
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the file
        raise CommandError(f"The file cannot be read ({type(error).__name__}).") from None


def _of_accounts(model: Any, provider: str) -> Iterator[Row]:
    accounts = primary(model).filter(provider=provider).select_related("user").order_by("pk")
    for account in accounts.iterator():
        claims = list(_kept_claims(account.extra_data))
        issuers = [str(one["iss"]) for one in claims if "iss" in one]
        foreign = [issuer for issuer in issuers if issuer != conf.issuer]
        subjects = [str(one["sub"]) for one in claims if "sub" in one]
        where = f"{model.__name__} {account.pk}"
        # An account that is known by something else than its subject, such as an email address.
        is_other = any(subject != account.uid for subject in subjects)
        subject = "" if is_other or not _is_by_subject(account) else account.uid
        yield Row(where, account.user, subject, foreign[0] if foreign else conf.issuer)


def _is_by_subject(account: Any) -> bool:
    """Newer releases of python-social-auth note which claim an account is known by."""
    return getattr(account, "id_key", "") in ("", "sub", "id")


def _kept_claims(extra: Any) -> Iterator[Mapping[str, Any]]:
    """
    Yield what the other app kept of ID token and UserInfo, as claims or as the token.

    No signature is checked: they can only make a row be refused.
    """
    if not isinstance(extra, dict):
        return
    yield extra
    for kept in extra.values():
        if isinstance(kept, dict):
            yield kept
        elif isinstance(kept, str) and kept.count(".") == 2:
            try:
                yield jwt.decode(kept, options={"verify_signature": False})
            except jwt.InvalidTokenError:
                continue


def _of_field(name: str) -> Iterator[Row]:
    users: Any = primary(get_user_model())
    try:
        field = users.model._meta.get_field(name)
    except FieldDoesNotExist:
        raise CommandError("The user model has no such field.") from None
    if not field.concrete or field.is_relation:
        raise CommandError("The field has to be one with a value, not a relation.")
    for user in users.order_by("pk").iterator():
        if (value := getattr(user, name)) not in (None, ""):
            yield Row(f"user {user.pk}", user, str(value), conf.issuer)


def _of_connections() -> Iterator[Row]:
    known = primary(BankToken).exclude(identity_digest=None).select_related("user")
    for connection in known.order_by("pk").iterator():
        where = f"connection {connection.pk}"
        yield Row(where, connection.user, connection.subject, connection.issuer)


def _model(app: str, name: str) -> Any:
    try:
        return apps.get_model(app, name)
    except LookupError:
        raise CommandError(f"{app} is not in INSTALLED_APPS.") from None


def _needed(options: dict[str, Any], name: str) -> Any:
    if not options[name]:
        raise CommandError(f"This source needs --{name}.")
    return options[name]

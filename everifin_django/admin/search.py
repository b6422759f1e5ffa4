"""Finding connections by what a customer tells: by indexes, as far as there are any."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Q

from everifin_django.conf import conf

MOST_USERS = 200
"""Of so many users the connections are looked for."""


def find(rows: Any, term: str) -> Any:
    """
    Return those of the connections *rows* whose id, subject (whole) or user is *term*: whose user
    name begins with it, or else whose email or first or last name it is.

    Two queries for the users at most. The second reads all users, unless the site has an index
    on the column: Django's own user has none on email and names.
    """
    term = term.strip()
    if not term or "\0" in term:
        return rows.none()
    found = Q(identity_digest=_digest(term)) | Q(user__in=users_named(term, rows.db))
    with suppress(ValueError):
        found |= Q(pk=uuid.UUID(term))
    return rows.filter(found)


def _digest(subject: str) -> str:
    from everifin_django.oauth.id_token import Identity  # the HTTP client loads when it is needed

    return Identity(conf.issuer, subject).digest


def users_named(term: str, alias: str) -> list[Any]:
    """
    Return the keys of the users that *term* may mean. Two queries at most.

    Asked first: a condition on two tables would be served by no index.
    """
    model: Any = get_user_model()
    rows = model._base_manager.using(alias).order_by().values_list("pk", flat=True)
    begins = {f"{model.USERNAME_FIELD}__startswith": term}
    return list(rows.filter(**begins)[:MOST_USERS]) or list(
        rows.filter(_is_named(model, term))[:MOST_USERS]
    )


def _is_named(model: Any, term: str) -> Q:
    columns = {field.name for field in model._meta.concrete_fields}
    spellings = list(dict.fromkeys([term, term.lower(), term.title()]))
    found = Q(pk__in=[])
    for name in {model.get_email_field_name(), "first_name", "last_name"} & columns:
        found |= Q(**{f"{name}__in": spellings})
    first, _space, last = term.partition(" ")
    if last and {"first_name", "last_name"} <= columns:
        found |= Q(first_name=first.title(), last_name=last.title())
        found |= Q(first_name=last.title(), last_name=first.title())
    return found

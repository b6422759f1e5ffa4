"""
What all of the bank API shares: the user of a call, its query, and its answer.

Documented by Everifin: the envelope, the error codes and the scope rules. Inferred: most HTTP
statuses, and page-number pagination, whose shape is that of its payment gateway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate

from django.http import HttpRequest, HttpResponse, JsonResponse

from everifin_django.testing.sandbox import data
from everifin_django.testing.sandbox.grants import read_access_token
from everifin_django.testing.sandbox.state import State
from everifin_django.testing.sandbox.store import User

Row = Mapping[str, Any]
Query = Mapping[str, str]

PAGING = ("page", "countPerPage", "sort")
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 100


# Errors


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 - the API's word for what the caller gets
    """The call is answered with an error in the API's envelope."""

    status: int
    code: str
    title: str
    detail: str | Mapping[str, Any] | None = None

    def response(self) -> JsonResponse:
        error: dict[str, Any] = {"code": self.code, "title": self.title}
        if self.detail is not None:
            error["detail"] = self.detail
        return JsonResponse({"meta": {"status": "ERROR"}, "errors": [error]}, status=self.status)


def not_found(path: str) -> Refusal:
    return Refusal(404, "NOT_FOUND", "URL not found", f"Invalid URL path: {path}")


def no_such_entity() -> Refusal:
    return Refusal(404, "DATA_NOT_FOUND", "Requested entity was not found.")


def wrong(rule: str, field: str, args: Mapping[str, Any] | None = None) -> Refusal:
    detail = {"rule": rule, "field": field, "message": f"{rule} validation failed on {field}"}
    title = "Invalid body / headers / query"
    return Refusal(422, "REQUEST_VALIDATION_ERROR", title, {**detail, "args": args or {}})


def _not_allowed(field: str) -> Refusal:
    detail = f'"{field}" is not allowed'
    return Refusal(422, "REQUEST_VALIDATION_ERROR", "Invalid Query Parameter", detail)


# The user of a call

UserView = Callable[Concatenate[State, HttpRequest, User, ...], HttpResponse]


def for_user(
    *, scope: str | None
) -> Callable[[UserView], Callable[Concatenate[State, HttpRequest, ...], HttpResponse]]:
    """Call the view with the user of the bearer token; without one, refuse."""

    def decorate(
        view: UserView,
    ) -> Callable[Concatenate[State, HttpRequest, ...], HttpResponse]:
        @wraps(view)
        def wrapper(state: State, request: HttpRequest, **kwargs: Any) -> HttpResponse:
            try:
                return view(state, request, _user(state, request, scope), **kwargs)
            except Refusal as refusal:
                return refusal.response()

        return wrapper

    return decorate


def _user(state: State, request: HttpRequest, scope: str | None) -> User:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refusal(401, "INVALID_AUTH_HEADER", "Invalid authorization header.")
    claims = read_access_token(state, token.strip())
    user = state.store.user(sub=str(claims.get("sub"))) if claims else None
    if claims is None or user is None:
        raise Refusal(401, "INVALID_ACCESS_TOKEN", "Invalid access token.")
    if scope is not None and scope not in str(claims.get("scope")).split():
        raise Refusal(403, "INVALID_SCOPE", "The access token does not cover this endpoint.")
    return user


def accounts_of(state: State, user: User) -> tuple[data.Account, ...]:
    connected_on = data.connection_day(state.opened_on)
    added = state.store.added_banks(user.sub)
    return data.accounts(user.sub, user.username, user.name, connected_on, added)


# What is asked


def read_query(request: HttpRequest, *, allowed: Sequence[str]) -> Query:
    query = {name: str(value) for name, value in request.GET.items()}
    for name in query:
        if name not in allowed:
            raise _not_allowed(name)
    return query


# Answers


def reply_one(row: Row) -> JsonResponse:
    return JsonResponse({"meta": {"status": "SUCCESS"}, "data": row})


def reply_list(query: Query, rows: Sequence[Row], *, sortable: Sequence[str]) -> HttpResponse:
    page = _number(query, "page", default=1, most=1_000_000)
    size = _number(query, "countPerPage", default=DEFAULT_PAGE_SIZE, most=MAX_PAGE_SIZE)
    rows = _sorted(query, rows, sortable)
    last = max(1, math.ceil(len(rows) / size))
    pagination = {
        "page": page,
        "countPerPage": size,
        "countTotal": len(rows),
        "first": 1,
        "last": last,
        "firstPageUrl": "/?page=1",
        "lastPageUrl": f"/?page={last}",
        "nextPageUrl": f"/?page={page + 1}" if page < last else None,
        "previousPageUrl": f"/?page={page - 1}" if page > 1 else None,
    }
    meta = {"status": "SUCCESS", "pagination": pagination}
    return JsonResponse({"meta": meta, "data": list(rows[(page - 1) * size : page * size])})


def _number(query: Query, name: str, *, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise wrong("number", name)
    if not 1 <= int(text) <= most:
        raise wrong("range", name, {"start": 1, "stop": most})
    return int(text)


def _sorted(query: Query, rows: Sequence[Row], sortable: Sequence[str]) -> Sequence[Row]:
    if "sort" not in query:
        return rows
    field, _, order = query["sort"].partition(":")
    if field not in sortable or order not in {"asc", "desc"}:
        choices = [f"{name}:{order}" for name in sortable for order in ("asc", "desc")]
        raise wrong("enum", "sort", {"choices": choices})
    return sorted(rows, key=lambda row: row[field], reverse=order == "desc")

"""The tree of errors: who is below whom, what they say, and that they survive a task queue."""

import copy
import pickle
import re
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.core.handlers.exception import convert_exception_to_response
from django.http import Http404
from django.test import RequestFactory

from everifin_django import exceptions
from everifin_django.exceptions import (
    AccessDeniedError,
    AnswerError,
    AnswerLostError,
    APIError,
    ConsentExpiredError,
    EndUserMissingError,
    EverifinError,
    IdentityMismatchError,
    IdentityTakenError,
    InsufficientAuthenticationError,
    InvalidRequestError,
    KeysUnavailableError,
    LoginError,
    LoginRefusedError,
    MalformedError,
    NotAuthorizedError,
    NotFoundError,
    PaymentInTransactionError,
    PaymentKeyTakenError,
    PaymentNotEditableError,
    PaymentRejectedError,
    PaymentUncertainError,
    RateLimitedError,
    RefreshInTransactionError,
    RefreshRunningError,
    RefusedError,
    ScopeMissingError,
    TamperedError,
    TokenError,
    TokenMissingError,
    TokenUnreadableError,
    UnavailableError,
    UnknownKeyError,
    UnreachableError,
)

API: dict[str, Any] = {"method": "GET", "path": "/v1/banks", "status": 503, "code": "SOME_CODE"}
ERRORS = [
    EverifinError("text"),
    TokenError("text"),
    TokenMissingError("text"),
    ConsentExpiredError("text", reason="invalid_grant"),
    ScopeMissingError(frozenset({"ais", "pis"})),
    TokenUnreadableError("text"),
    UnknownKeyError("2026-11"),
    KeysUnavailableError("ConnectionError"),
    TamperedError("text"),
    MalformedError("text"),
    RefreshInTransactionError("text"),
    AccessDeniedError(),
    APIError("text", **API),
    UnavailableError("text", **API),
    UnreachableError("text", **API),
    AnswerLostError("text", **API),
    PaymentUncertainError("text", **API),
    RateLimitedError("text", **API),
    AnswerError("text", **API),
    RefusedError("text", **API),
    NotAuthorizedError("text", **API),
    NotFoundError("text", **API),
    RefreshRunningError("text", **API),
    InvalidRequestError("text", **API),
    EndUserMissingError("text", **API),
    PaymentRejectedError("text", **API),
    PaymentNotEditableError("text", **API),
    LoginError("state_expired"),
    InsufficientAuthenticationError("id_token_acr"),
    LoginRefusedError("Not today."),
    IdentityMismatchError(),
    IdentityTakenError(),
    PaymentInTransactionError(),
    PaymentKeyTakenError(),
]
NAMES = [type(error).__name__ for error in ERRORS]


def test_every_error_is_looked_at_here():
    assert {name for name in vars(exceptions) if name.endswith("Error")} == set(NAMES)


@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_one_base_catches_all_but_wrong_settings(error):
    assert isinstance(error, EverifinError)
    assert not isinstance(error, ImproperlyConfigured)


def test_the_tree_is_drawn_in_the_docstring():
    drawn: list[list[str]] = []
    path: list[str] = []
    for lead, name in re.findall(r"(?m)^([ │├└─]*)(\w*)", exceptions.__doc__):
        if name.endswith("Error"):
            path = [*path[: len(lead) // 4 - 1], name]
            drawn.append(path)
    is_so = [[one.__name__ for one in reversed(_bases(type(error)))] for error in ERRORS]
    assert sorted(drawn) == sorted(is_so)


def _bases(error: type[BaseException]) -> list[type]:
    return [
        one
        for one in error.__mro__
        if vars(exceptions).get(one.__name__) is one and one.__name__.endswith("Error")
    ]


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],  # noqa: S301
)
@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_errors_survive_a_task_queue(error, duplicate):
    again = duplicate(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=NAMES)
def test_every_error_says_something(error):
    assert str(error)


def test_an_api_error_names_the_call():
    error = APIError("text", method="GET", path="/v1/banks", status=503, code="SOME_CODE")
    assert (error.method, error.path, error.status, error.code) == tuple(API.values())


def test_an_api_error_need_not_know_the_call():
    error = APIError("text")
    assert (error.method, error.path, error.status, error.code) == ("", "", None, None)


def test_unset_details_are_none():
    assert UnavailableError("text").retry_after_seconds is None
    assert (InvalidRequestError("text").field, InvalidRequestError("text").rule) == (None, None)
    assert ConsentExpiredError("text").reason == ""


def test_missing_scopes_are_named_in_order():
    assert str(ScopeMissingError(frozenset({"pis", "ais"}))).endswith("needed: ais pis.")
    assert str(ScopeMissingError()).endswith("needed: not named.")


def test_an_unknown_key_is_named_with_the_remedy():
    assert "'2026-11'" in str(UnknownKeyError("2026-11"))
    assert "EVERIFIN_ENCRYPTION_KEYS" in str(UnknownKeyError("2026-11"))


def test_a_login_error_names_its_reason():
    assert "(state_expired)" in str(LoginError("state_expired"))


@pytest.mark.parametrize(("error", "status"), [(NotFoundError("x"), 404), (LoginError("x"), 400)])
def test_django_answers_without_help(error, status, caplog):
    assert isinstance(error, Http404 if status == 404 else SuspiciousOperation)

    def view(request):
        raise error

    response: Any = convert_exception_to_response(view)(RequestFactory().get("/"))
    assert response.status_code == status

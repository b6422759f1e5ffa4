"""Which tenant's database is meant: the one that a context variable names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.http import HttpRequest

TENANT: ContextVar[str] = ContextVar("tenant", default="one")


@contextmanager
def in_tenant(alias: str) -> Iterator[None]:
    token = TENANT.set(alias)
    try:
        yield
    finally:
        TENANT.reset(token)


class TenantRouter:
    def db_for_read(self, model: Any, **hints: Any) -> str:
        return TENANT.get()

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return TENANT.get()

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return bool(one._state.db == other._state.db)


def choose_tenant(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    def middleware(request: HttpRequest) -> Any:
        token = TENANT.set(request.headers.get("X-Tenant", "one"))
        try:
            return get_response(request)
        finally:
            TENANT.reset(token)

    return middleware

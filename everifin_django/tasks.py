"""
Work for a scheduler: plain functions, which Celery and Django's own tasks (from 6.0 on) know too.

Celery finds them by ``autodiscover_tasks()``, under ``everifin_django.tasks.`` and their name. The
objects that end in ``_task`` are Django's, with ``enqueue``.
"""

from __future__ import annotations

import importlib.util

import django

from everifin_django.connections import everifin_for, ledger

__all__ = ["resolve_payments"]

LIMIT = 1000


def resolve_payments(*, limit: int = LIMIT) -> dict[str, int]:
    """
    Look at Everifin what became of payments that are not finished, as ``everifin_payments`` does;
    return how many there are by state afterwards. Nothing is sent again.

    Two statements and a request or more for each of the *limit* payments that were not looked for
    the longest. Two at once do no harm.
    """
    return ledger.look_at_all(everifin_for, limit=max(0, limit))


if importlib.util.find_spec("celery"):
    from celery import shared_task  # an extra

    shared_task(name="everifin_django.tasks.resolve_payments")(resolve_payments)

if django.VERSION >= (6, 0):
    from django.tasks import task

    @task
    def resolve_payments_task(*, limit: int = LIMIT) -> dict[str, int]:
        return resolve_payments(limit=limit)

"""The tasks in a real worker of Celery, behind real brokers: Redis and RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from everifin_django.models import BankToken
from everifin_django.testing.factories import UserFactory
from everifin_django.testing.fake import FakeEverifin, as_in_settings
from everifin_django.testing.sandbox.server import serve
from tests.support.celery_workers import RABBITMQ, REDIS, SECONDS, rabbitmq, redis, worker

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def site(settings) -> Iterator[dict[str, Any]]:
    """The settings of a site whose three connections are due, at a sandbox that is served."""
    sandbox = FakeEverifin(**as_in_settings())
    with serve(sandbox) as server:
        changed = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
            "EVERIFIN_SCOPES": "openid ais offline_access",
        }
        for name, value in changed.items():
            setattr(settings, name, value)
        for name in ("alice", "bob", "carol"):
            sandbox.add_user(name)
            sandbox.connect(UserFactory(), name)
        now = timezone.now()
        BankToken.objects.update(
            issued_at=now - timedelta(days=30), refresh_expires_at=now + timedelta(hours=1)
        )
        yield changed
        assert sandbox.double_spends == 0


@pytest.fixture
def results() -> Iterator[str]:
    """Where the results go: Redis."""
    if REDIS is None:
        pytest.skip("apt-get install redis-server brings it")
    with redis() as url:
        yield url


@pytest.fixture
def broker(request, results) -> Iterator[str]:
    if request.param == "redis":
        yield results
    elif RABBITMQ is None:
        pytest.skip("apt-get install rabbitmq-server brings the broker")
    else:
        with rabbitmq() as url:
            yield url


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_does_them(broker, results, site, pool):
    with worker(pool, broker, results, site) as app:
        tasks = [app.send_task("everifin_django.tasks.refresh_due") for _ in range(4)]
        answers = [task.get(timeout=SECONDS) for task in tasks]
        assert sum(answer.get("refreshed", 0) for answer in answers) == 3
        housekeeping = app.send_task("everifin_django.tasks.run_housekeeping")
        assert sum(housekeeping.get(timeout=SECONDS).values()) == 0
        payments = app.send_task("everifin_django.tasks.resolve_payments", kwargs={"limit": 5})
        assert payments.get(timeout=SECONDS) == {}
    assert BankToken.objects.filter(token_version=2).count() == 3

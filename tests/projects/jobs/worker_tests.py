"""The jobs page in a real worker of Celery: processes, and threads."""

import pytest
from django.core.cache import cache

from everifin_django.models import BankToken
from everifin_django.testing.factories import UserFactory
from everifin_django.testing.fake import FakeEverifin, as_in_settings
from everifin_django.testing.sandbox.server import serve
from tests.projects.jobs.models import BankAccount, Entry, Reminder
from tests.support.celery_workers import REDIS, SECONDS, redis, wait_until, worker

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(REDIS is None, reason="apt-get install redis-server brings the broker"),
]
USERS = ("alice", "bob", "carol")
HERE = "tests.projects.jobs"


@pytest.fixture
def sandbox():
    return FakeEverifin(**as_in_settings())


@pytest.fixture
def site(settings, sandbox, tmp_path):
    with serve(sandbox) as server:
        mails = tmp_path / "mails"
        changed = {
            "DEBUG": True,
            "EVERIFIN_IDP_URL": server.url,
            "EVERIFIN_API_URL": server.url,
            "CACHES": settings.CACHES,
            "EMAIL_BACKEND": "django.core.mail.backends.filebased.EmailBackend",
            "EMAIL_FILE_PATH": str(mails),
            "MAILERS": {
                "default": {
                    "BACKEND": "django.core.mail.backends.filebased.EmailBackend",
                    "OPTIONS": {"file_path": str(mails)},
                }
            },
        }
        for name in ("EVERIFIN_IDP_URL", "EVERIFIN_API_URL", "DEBUG"):
            setattr(settings, name, changed[name])
        for name in USERS:
            sandbox.add_user(name)
            sandbox.connect(UserFactory(email=f"{name}@example.test"), name)
        cache.clear()
        yield changed
        assert sandbox.double_spends == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_night(tmp_path, site, pool):
    ids = [str(pk) for pk in BankToken.objects.values_list("user_id", flat=True)]
    with redis() as broker, worker(pool, broker, broker, site) as app:
        # Each twice, at the same time.
        sent = [app.send_task(f"{HERE}.tasks.download", [pk]) for pk in ids * 2]
        for task in sent:
            task.get(timeout=SECONDS)
        count = Entry.objects.count()
        app.send_task(f"{HERE}.tasks.download_all").get(timeout=SECONDS)
        wait_until(lambda: not BankAccount.objects.filter(downloads__lt=2).exists())
        assert Entry.objects.count() == count > 0

        BankToken.objects.update(status=BankToken.Status.NEEDS_RECONNECT)
        for _ in range(3):
            app.send_task(f"{HERE}.reminders.remind_all").get(timeout=SECONDS)
        for pk in ids * 3:
            app.send_task(f"{HERE}.reminders.remind", [pk]).get(timeout=SECONDS)
        assert Reminder.objects.filter(times=1).count() == len(USERS)
    texts = "".join(one.read_text() for one in (tmp_path / "mails").iterdir())
    assert texts.count("Subject: Connect your bank again") == len(USERS)

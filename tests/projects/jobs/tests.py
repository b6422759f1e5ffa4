"""The jobs page, as it stands: its blocks are the modules beside this one."""

import re
import time
from datetime import timedelta
from pathlib import Path

import pytest
from celery.exceptions import Retry
from django.core import mail
from django.core.cache import cache
from django.utils import timezone

from everifin_django.exceptions import UnavailableError
from everifin_django.models import BankToken
from everifin_django.signals import everifin_connected
from everifin_django.testing.factories import BankTokenFactory, UserFactory
from tests.projects.jobs import reminders, tasks
from tests.projects.jobs.models import BankAccount, Entry, Reminder

pytestmark = pytest.mark.django_db
HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs/howto/jobs.md"


@pytest.fixture(autouse=True)
def no_pause():
    cache.clear()


@pytest.fixture
def user(everifin):
    user = UserFactory(email="holder@example.test")
    everifin.connect(user)
    return user


@pytest.mark.parametrize("name", ["models", "tasks", "reminders"])
def test_the_page_shows_what_is_tested(name):
    [block] = re.findall(
        rf"^```python\n# shop/{name}\.py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert block == (HERE / f"{name}.py").read_text()


class TestDownloading:
    def test_each_row_is_there_once_however_often_it_comes(self, user):
        tasks.download(str(user.pk))
        count = Entry.objects.count()
        assert count > 10
        BankAccount.objects.update(cursor=None)
        tasks.download(str(user.pk))
        assert Entry.objects.count() == count

    def test_pending_becomes_booked(self, user):
        tasks.download(str(user.pk))
        booked = Entry.objects.filter(status="BOOKED")
        Entry.objects.filter(pk=booked.first().pk).update(status="PENDING", amount=1)
        before = booked.count()
        BankAccount.objects.update(cursor=None)
        tasks.download(str(user.pk))
        assert booked.count() == before + 1

    def test_the_next_download_begins_where_this_one_ended(self, user):
        tasks.download(str(user.pk))
        assert not BankAccount.objects.filter(cursor=None).exists()
        tasks.download(str(user.pk))
        assert {one.downloads for one in BankAccount.objects.all()} == {2}

    def test_a_slower_download_overwrites_nothing_newer(self, user):
        account = BankAccount.objects.create(user=user, everifin_id="1")
        slower = BankAccount.objects.get()
        tasks.store(account, [], timezone.now())
        tasks.store(slower, [], None)
        account.refresh_from_db()
        assert (account.downloads, account.cursor is None) == (1, False)

    def test_an_outage_has_all_tasks_wait(self, user, everifin):
        everifin.faults.add("api", status=503, retry_after=120)
        with pytest.raises((Retry, UnavailableError)):
            tasks.download(str(user.pk))
        everifin.faults.clear()
        assert 100 < cache.get(tasks.PAUSED_UNTIL) - time.time() <= 120
        with pytest.raises(Retry):
            tasks.download(str(user.pk))
        assert not BankAccount.objects.exists()
        cache.clear()
        tasks.download(str(user.pk))
        assert Entry.objects.exists()

    def test_what_only_the_user_can_mend_is_no_failure(self, user):
        BankToken.objects.update(status=BankToken.Status.NEEDS_RECONNECT)
        tasks.download(str(user.pk))
        tasks.download(str(UserFactory().pk))
        assert not BankAccount.objects.exists()

    def test_one_task_for_each_user_who_is_connected(self, user, monkeypatch):
        given = []
        monkeypatch.setattr(tasks.download, "delay", given.append)
        UserFactory()
        tasks.download_all()
        assert given == [str(user.pk)]


class TestReminding:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        monkeypatch.setattr(reminders.remind, "delay", reminders.remind)

    @pytest.fixture
    def ended(self, user):
        BankToken.objects.update(status=BankToken.Status.NEEDS_RECONNECT)
        return user

    def test_a_user_is_told_once(self, ended):
        for _ in range(3):
            reminders.remind_all()
            reminders.remind(str(ended.pk))
        assert [message.to for message in mail.outbox] == [["holder@example.test"]]
        assert Reminder.objects.get().told_at is not None

    def test_and_once_again_later(self, ended):
        for _ in range(4):
            reminders.remind_all()
            Reminder.objects.update(again_at=timezone.now() - timedelta(seconds=1))
        assert len(mail.outbox) == 2

    def test_connecting_begins_anew(self, ended):
        reminders.remind_all()
        everifin_connected.send(sender=BankToken, user=ended)
        assert not Reminder.objects.exists()

    def test_the_end_of_an_online_grant_is_no_news(self, ended):
        BankToken.objects.update(is_offline=False)
        reminders.remind_all()
        assert mail.outbox == []

    def test_a_connection_that_lives_is_no_news(self, user):
        reminders.remind_all()
        assert mail.outbox == []

    def test_too_many_at_once_are_for_a_person_to_look_at(self, ended, monkeypatch, caplog):
        monkeypatch.setattr(reminders, "MOST_AT_ONCE", 1)
        BankTokenFactory(status=BankToken.Status.NEEDS_RECONNECT, is_offline=True)
        reminders.remind_all()
        assert mail.outbox == []
        assert "nobody was told" in caplog.text

"""Moving stored tokens to the newest key, beside a site that is running."""

import threading
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection, connections

from everifin_django.connections import grants
from everifin_django.connections.key_rotation import keys_in_use, reseal
from everifin_django.encryption import key_id_of
from everifin_django.models import BankToken, PendingRevocation
from everifin_django.secret import Secret
from everifin_django.testing.factories import BankTokenFactory, PendingRevocationFactory
from tests.support.grants import refresh_again

pytestmark = pytest.mark.django_db

OLD = "old:" + "A" * 43 + "="
NEW = "new:" + "B" * 42 + "A="


@pytest.fixture
def rotate(settings):
    """Give a function that puts the new key in front of the old one."""
    settings.EVERIFIN_ENCRYPTION_KEYS = [OLD]

    def rotate():
        settings.EVERIFIN_ENCRYPTION_KEYS = [NEW, OLD]

    return rotate


def _outcome(batch_size=500):
    return sum(reseal(batch_size), start=type(keys_in_use())())


def _command(*arguments) -> str:
    out = StringIO()
    call_command("everifin_rotate_keys", *arguments, stdout=out)
    return out.getvalue()


def test_every_token_moves_and_stays_what_it_was(rotate, settings):
    row = BankTokenFactory(access_token="a", refresh_token="r", id_token="i")
    pending: Any = PendingRevocationFactory(refresh_token="p")
    rotate()
    assert keys_in_use() == {"old": 4}
    assert _outcome() == {"resealed": 4}
    assert keys_in_use() == {"new": 4}
    settings.EVERIFIN_ENCRYPTION_KEYS = [NEW]
    row.refresh_from_db()
    pending.refresh_from_db()
    opened = [row.open_token(kind) for kind in ("access", "refresh", "id")]
    assert [*opened, pending.open_token()] == [Secret(text) for text in "arip"]


def test_two_key_ids_that_differ_in_case_alone_are_refused(settings):
    settings.EVERIFIN_ENCRYPTION_KEYS = [NEW, NEW.replace("new:", "NEW:")]
    with pytest.raises(ImproperlyConfigured, match="appears twice"):
        _command("--status")


def test_what_has_moved_is_not_touched_again(rotate):
    BankTokenFactory()
    rotate()
    _outcome()
    before = list(BankToken.objects.values())
    assert _outcome() == {}
    assert list(BankToken.objects.values()) == before


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_of_any_size_reach_every_row(rotate, batch_size):
    BankTokenFactory.create_batch(5)
    rotate()
    assert _outcome(batch_size) == {"resealed": 10}
    assert keys_in_use() == {"new": 10}


def test_stopped_half_way_it_goes_on_where_it_was(rotate):
    BankTokenFactory.create_batch(3)
    rotate()
    next(reseal(1))
    assert keys_in_use() == {"old": 5, "new": 1}
    assert _outcome() == {"resealed": 5}


def test_an_unreadable_token_is_left_as_it_is_and_does_not_stop_the_others(rotate):
    broken, lost = BankTokenFactory(), BankTokenFactory()
    whole = BankTokenFactory()
    BankToken.objects.filter(pk=broken.pk).update(access_ciphertext="nonsense")
    foreign = lost.access_ciphertext.replace("evf1.old.", "evf1.gone.")
    BankToken.objects.filter(pk=lost.pk).update(access_ciphertext=foreign)
    rotate()
    assert _outcome() == {"resealed": 4, "unreadable": 2}
    assert keys_in_use() == {"new": 4, "gone": 1, "unreadable": 1}
    assert BankToken.objects.get(pk=broken.pk).access_ciphertext == "nonsense"
    assert key_id_of(BankToken.objects.get(pk=whole.pk).access_ciphertext) == "new"


def test_a_token_refreshed_between_reading_and_writing_wins(rotate):
    row = BankTokenFactory(refresh_token=None)
    rotate()
    newer = BankTokenFactory.build(id=row.pk, user=row.user, access_token="newer").access_ciphertext
    raced: list[bool] = []

    def refresh_first(execute, sql, *args):
        if sql.startswith("UPDATE") and not raced:
            raced.append(True)
            BankToken.objects.filter(pk=row.pk).update(access_ciphertext=newer)
        return execute(sql, *args)

    with connection.execute_wrapper(refresh_first):
        assert _outcome() == {"overtaken": 1}
    assert BankToken.objects.get().open_token("access") == Secret("newer")


def _run_beside(threads, start):
    """Move tokens again and again until the threads have ended."""
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        _outcome(1)
    for thread in threads:
        thread.join()


@pytest.mark.django_db(transaction=True)
def test_a52_fifty_threads_that_refresh_meanwhile_lose_no_token(
    client, django_user_model, everifin, everifin_connect, rotate
):
    users = [django_user_model.objects.create_user(f"user{number}") for number in range(10)]
    for user in users:
        everifin.add_user(user.username, password="x")
        client.force_login(user)
        everifin_connect(client, username=user.username)
    rotate()
    start = threading.Barrier(51)
    failures: list[Exception] = []

    def refresh(user):
        start.wait()
        try:
            for _ in range(2):
                refresh_again(user)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=refresh, args=(user,)) for user in users * 5]
    _run_beside(threads, start)
    _outcome()

    assert failures == []
    assert everifin.double_spends == 0
    assert keys_in_use() == {"new": 40}
    for user in users:
        version = grants.get_access_token(user).version
        assert refresh_again(user) == version + 1


def test_a53_code_that_does_not_know_the_new_key_yet_writes_nothing(rotate, settings, client):
    row = BankTokenFactory()
    rotate()
    _outcome()
    before = BankToken.objects.values().get()
    settings.EVERIFIN_ENCRYPTION_KEYS = [OLD]
    client.force_login(row.user)
    response = client.get("/accounts/")
    assert response.status_code == 503
    assert BankToken.objects.values().get() == before


class TestCommand:
    def test_it_says_what_it_did_and_which_key_can_go(self, rotate):
        BankTokenFactory()
        rotate()
        assert _command().splitlines() == [
            "2 re-encrypted, 0 refreshed meanwhile, 0 unreadable.",
            "new: 2 tokens (the newest)",
            "old: 0 tokens (not needed any more, except for backups)",
        ]

    def test_status_changes_nothing(self, rotate):
        BankTokenFactory()
        rotate()
        assert _command("--status").splitlines() == [
            "new: 0 tokens (the newest)",
            "old: 2 tokens (still needed)",
        ]
        assert keys_in_use() == {"old": 2}

    def test_a_key_that_is_missing_is_named(self, rotate, settings):
        PendingRevocationFactory()
        settings.EVERIFIN_ENCRYPTION_KEYS = [NEW]
        assert "old: 1 tokens (its key is missing!)" in _command("--status")
        with pytest.raises(CommandError, match="put the key back, behind"):
            _command()
        assert PendingRevocation.objects.get().refresh_ciphertext.startswith("evf1.old.")

    def test_tokens_move_from_the_settings_keys_to_a_provider(self, rotate, settings):
        BankTokenFactory()
        settings.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.Vault"
        assert _command().splitlines() == [
            "2 re-encrypted, 0 refreshed meanwhile, 0 unreadable.",
            "vault-1: 2 tokens (the newest)",
        ]
        settings.EVERIFIN_ENCRYPTION_KEYS = []
        assert keys_in_use() == {"vault-1": 2}
        assert BankToken.objects.get().open_token("access") is not None

    def test_a_key_that_the_provider_still_gives_is_still_needed(self, rotate, settings):
        BankTokenFactory()
        settings.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.Vault"
        assert "old: 2 tokens (still needed)" in _command("--status")

    def test_what_is_no_token_is_said(self):
        BankTokenFactory(refresh_token=None)
        BankToken.objects.update(access_ciphertext="nonsense")
        assert "unreadable: 1 tokens (not written by this app)" in _command("--status")

    def test_a_batch_has_at_least_one_row(self):
        with pytest.raises(CommandError, match="at least 1"):
            _command("--batch-size", "0")

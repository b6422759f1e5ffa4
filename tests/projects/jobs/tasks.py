import random
import time

from celery import shared_task
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import connection, transaction

from everifin_django.connections import everifin_for
from everifin_django.exceptions import (
    ConsentExpiredError,
    ScopeMissingError,
    TokenMissingError,
    UnavailableError,
)
from everifin_django.models import BankToken

from .models import BankAccount, Entry

PAUSED_UNTIL = "everifin-paused-until"
LONGEST_PAUSE_SECONDS = 900
COLUMNS = ["amount", "currency", "direction", "status", "booking_date"]


@shared_task
def download_all():
    users = BankToken.objects.connected().values_list("user_id", flat=True)
    for user_id in users.iterator():
        download.delay(str(user_id))


@shared_task(bind=True, acks_late=True, max_retries=20)
def download(self, user_id):
    seconds = cache.get(PAUSED_UNTIL, 0) - time.time()
    if seconds > 0:
        raise self.retry(countdown=seconds + random.uniform(0, 60))
    user = get_user_model().objects.get(pk=user_id)
    everifin = everifin_for(user)
    try:
        for account in everifin.accounts():
            download_account(user, everifin, account.id)
    except (TokenMissingError, ConsentExpiredError, ScopeMissingError):
        return  # only the user can mend this
    except UnavailableError as error:
        seconds = min(error.retry_after_seconds or 60, LONGEST_PAUSE_SECONDS)
        cache.set(PAUSED_UNTIL, time.time() + seconds, seconds)
        raise self.retry(exc=error, countdown=seconds + random.uniform(0, 60)) from None


def download_account(user, everifin, everifin_id):
    account, _ = BankAccount.objects.get_or_create(user=user, everifin_id=everifin_id)
    changes = everifin.transaction_changes(everifin_id, since=account.cursor)
    rows = {row.id: row for row in changes}
    store(account, rows.values(), changes.cursor)


def store(account, rows, cursor):
    with transaction.atomic():
        unchanged = BankAccount.objects.filter(pk=account.pk, downloads=account.downloads)
        if not unchanged.update(cursor=cursor, downloads=account.downloads + 1):
            return  # another task was faster, and has what we have or newer
        has_target = connection.features.supports_update_conflicts_with_target
        Entry.objects.bulk_create(
            [entry(account, row) for row in rows],
            batch_size=500,
            update_conflicts=True,
            update_fields=COLUMNS,
            # MySQL and MariaDB look at every unique constraint, and take no list.
            unique_fields=["account", "everifin_id"] if has_target else None,
        )


def entry(account, row):
    return Entry(
        account=account,
        everifin_id=row.id,
        amount=row.amount,
        currency=row.currency or "",
        direction=row.direction or "",
        status=row.status or "",
        booking_date=row.booking_date,
    )

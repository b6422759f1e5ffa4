import logging
from datetime import timedelta

from celery import shared_task
from django.contrib.auth import get_user_model
from django.db.models import F
from django.dispatch import receiver
from django.utils import timezone

from everifin_django.models import BankToken
from everifin_django.signals import everifin_connected

from .models import Reminder

logger = logging.getLogger(__name__)

AGAIN_AFTER = timedelta(days=14)
MOST_TIMES = 2
MOST_AT_ONCE = 200


@shared_task
def remind_all():
    now = timezone.now()
    told = Reminder.objects.filter(again_at__gt=now) | Reminder.objects.filter(
        times__gte=MOST_TIMES
    )
    ended = BankToken.objects.to_reconnect().filter(is_offline=True, user__is_active=True)
    ended = ended.exclude(user__in=told.values("user"))
    users = list(ended.values_list("user_id", flat=True)[: MOST_AT_ONCE + 1])
    if len(users) > MOST_AT_ONCE:
        logger.error("More than %d users have to connect again: nobody was told.", MOST_AT_ONCE)
        return
    for user_id in users:
        remind.delay(str(user_id))


@shared_task
def remind(user_id):
    now = timezone.now()
    Reminder.objects.get_or_create(user_id=user_id, defaults={"again_at": now})
    due = Reminder.objects.filter(user_id=user_id, again_at__lte=now, times__lt=MOST_TIMES)
    if due.update(told_at=now, again_at=now + AGAIN_AFTER, times=F("times") + 1):
        user = get_user_model().objects.get(pk=user_id)
        user.email_user("Connect your bank again", "Your accounts are no longer updated.")


@receiver(everifin_connected)
def delete_reminder(sender, user, **kwargs):
    Reminder.objects.filter(user=user).delete()

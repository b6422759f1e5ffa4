from django.conf import settings
from django.db import models


class BankAccount(models.Model):
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    everifin_id = models.CharField(max_length=255)
    cursor = models.DateTimeField(null=True)
    downloads = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "everifin_id"], name="one_account")]


class Entry(models.Model):
    account = models.ForeignKey(BankAccount, models.CASCADE)
    everifin_id = models.CharField(max_length=255)
    amount = models.DecimalField(max_digits=20, decimal_places=4)
    currency = models.CharField(max_length=3, blank=True)
    direction = models.CharField(max_length=20, blank=True)
    status = models.CharField(max_length=40, blank=True)
    booking_date = models.DateField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "everifin_id"], name="one_entry")]


class Reminder(models.Model):
    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE)
    told_at = models.DateTimeField(null=True)
    again_at = models.DateTimeField()
    times = models.PositiveSmallIntegerField(default=0)

"""Users with neither a username nor an e-mail address, and with a date that has to be given."""

from datetime import date
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models


class UserManager(BaseUserManager["User"]):
    def create_user(
        self, handle: str, password: str | None = None, *, joined_on: date | None = None
    ) -> "User":
        user = self.model(handle=handle, joined_on=joined_on)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, handle: str, password: str | None = None, **more: Any) -> "User":
        user = self.create_user(handle, password, **more)
        user.is_superuser = True
        user.save(using=self._db)
        return user


class User(AbstractBaseUser, PermissionsMixin):
    handle = models.CharField(max_length=64, unique=True)
    joined_on = models.DateField()
    is_active = models.BooleanField(default=True)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "handle"
    REQUIRED_FIELDS = ["joined_on"]

    def __str__(self) -> str:
        return self.handle

    @property
    def is_staff(self) -> bool:
        return self.is_superuser

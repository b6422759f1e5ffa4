"""
Name the app, register the checks, connect the receivers.
"""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class EverifinConfig(AppConfig):
    name = "everifin_django"
    verbose_name = _("Everifin")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Django loads models after this module, so what imports them waits until now.
        from everifin_django import checks, receivers

        checks.register()
        receivers.connect()

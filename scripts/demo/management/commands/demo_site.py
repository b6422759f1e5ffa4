"""``manage.py demo_site``: the half of ``demo`` that is the site, in a process of its own."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

LOGIN = "demo"


class Command(BaseCommand):
    help = "Makes the database ready, adds the user demo / demo, and serves the site. Used by demo."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("address", help="Host and port, such as 127.0.0.1:8000.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEBUG:
            raise CommandError("Anybody can log in as demo, so this runs only with DEBUG=1.")
        call_command("migrate", verbosity=0)
        users = get_user_model().objects
        if not users.filter(username=LOGIN).exists():
            users.create_superuser(LOGIN, password=LOGIN)
        call_command("runserver", options["address"], use_reloader=False)

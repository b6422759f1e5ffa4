"""
Connect the example's receivers when Django is ready.
"""

from django.apps import AppConfig


class ExampleConfig(AppConfig):
    name = "example_project"

    def ready(self) -> None:
        from example_project import receivers

        receivers.connect()

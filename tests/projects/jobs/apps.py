from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "tests.projects.jobs"
    label = "jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from tests.projects.jobs import reminders  # noqa: F401 - its tasks and its receiver

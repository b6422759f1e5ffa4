from django.apps import AppConfig


class ProjectConfig(AppConfig):
    name = "tests.projects.by_email"
    label = "by_email"

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    name = "tests.projects.bare"
    label = "bare"

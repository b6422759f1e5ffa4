from django.apps import AppConfig


class ProjectConfig(AppConfig):
    name = "tests.projects.uuid_key"
    label = "uuid_key"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "everifin_django",
]
SECRET_KEY = "only for the type checker"

"""Import each module of the installed package; ARGUMENTS are the distributions of extras."""

import importlib
import pkgutil
import sys

import django

import everifin_django

EXTRAS = set(sys.argv[1:])

django.setup()
for module in pkgutil.walk_packages(everifin_django.__path__, "everifin_django.", onerror=print):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        # What needs an extra says so when it is imported.
        if error.name not in EXTRAS or not module.name.startswith(
            ("everifin_django.testing", "everifin_django.contrib")
        ):
            raise
print(everifin_django.__version__, everifin_django.__file__)

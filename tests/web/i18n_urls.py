"""Our URLs where they should not be."""

from django.conf.urls.i18n import i18n_patterns
from django.urls import include, path

urlpatterns = i18n_patterns(path("everifin/", include("everifin_django.urls")))

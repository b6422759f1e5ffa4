"""The site under test, with mozilla-django-oidc's own views beside ours."""

from django.urls import include, path

from tests.urls import urlpatterns as site

urlpatterns = [*site, path("oidc/", include("mozilla_django_oidc.urls"))]

"""django-allauth's URLs, and those of the site it is added to."""

from django.urls import include, path

from tests import test_beside

urlpatterns = [path("allauth/", include("allauth.urls")), *test_beside.urlpatterns]

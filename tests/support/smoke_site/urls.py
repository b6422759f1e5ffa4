from django.urls import include, path

urlpatterns = [path("everifin/", include("everifin_django.urls"))]

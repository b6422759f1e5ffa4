from django.urls import include, path

from everifin_django.decorators import everifin_required
from typed_site import views

urlpatterns = [
    path("everifin/", include("everifin_django.urls")),
    path("accounts/", views.accounts),
    path("accounts/<str:account_id>/", views.account),
    path("names/", views.names),
    path("latest/<str:account_id>/", views.latest),
    path("stacked/", views.stacked),
    path("decorated/", views.Decorated.as_view()),
    path("in-urls/", everifin_required(scopes={"ais"})(views.DecoratedWhole.as_view())),
    path("async/", views.DecoratedAsync.as_view()),
    path("mixed/", views.Mixed.as_view(everifin_scopes={"pis"})),
    path("mixed/<str:account_id>/", views.MixedAsync.as_view()),
    path("template/", views.MixedTemplate.as_view()),
]

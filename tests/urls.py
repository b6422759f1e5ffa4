"""The addresses of the site under test."""

from django.contrib import admin
from django.urls import include, path

from tests import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("everifin/", include("everifin_django.urls")),
    path("plain/", views.plain),
    path("aplain/", views.aplain),
    path("accounts/", views.accounts),
    path("aaccounts/", views.aaccounts),
    path("class/", views.Accounts.as_view()),
    path("aclass/", views.AsyncAccounts.as_view()),
    path("unmarked/", views.unmarked),
    path("aunmarked/", views.aunmarked),
    path("switched/", views.switched),
    path("hidden/", views.hidden),
    path("ahidden/", views.ahidden),
    path("payments/", views.payments),
    path("hidden/payments/", views.hidden_payments),
    path("ahidden/payments/", views.ahidden_payments),
    path("accounts/<str:account_id>/", views.account),
    path("broken/", views.broken),
    path("buttons/", views.buttons),
]

"""The addresses of the site."""

from django.contrib import admin
from django.contrib.auth.views import LoginView
from django.urls import include, path

from example_project import paying, views

urlpatterns = [
    path("", views.home, name="home"),
    path("accounts/", views.accounts, name="accounts"),
    path("accounts/<str:account_id>/", views.account, name="account"),
    path("pay/", paying.pay, name="pay"),
    path("pay/confirm/", paying.confirm, name="confirm_payment"),
    path("payments/", paying.payments, name="payments"),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("everifin/", include("everifin_django.urls")),
    path("admin/", admin.site.urls),
]

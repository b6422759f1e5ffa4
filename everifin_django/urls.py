"""
The app's views and their names: ``path("everifin/", include("everifin_django.urls"))``.
"""

from django.urls import path

from everifin_django.web import payment_views, views

app_name = "everifin_django"

urlpatterns = [
    path("login/", views.LoginView.as_view(), name="login"),
    path("connect/", views.ConnectView.as_view(), name="connect"),
    path("callback/", views.CallbackView.as_view(), name="callback"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
    path("logged-out/", views.LoggedOutView.as_view(), name="logged_out"),
    path("backchannel-logout/", views.BackchannelLogoutView.as_view(), name="backchannel_logout"),
    path("disconnect/", views.DisconnectView.as_view(), name="disconnect"),
    path("bank/", views.BankView.as_view(), name="bank"),
    path("payments/<uuid:pk>/", payment_views.PaymentView.as_view(), name="payment"),
    path(
        "payments/return/<str:value>/",
        payment_views.PaymentReturnView.as_view(),
        name="payment_return",
    ),
]

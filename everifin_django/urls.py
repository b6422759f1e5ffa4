"""
The app's views and their names: ``path("everifin/", include("everifin_django.urls"))``.
"""

from django.urls import path

from everifin_django.web import views

app_name = "everifin_django"

urlpatterns = [
    path("login/", views.LoginView.as_view(), name="login"),
    path("connect/", views.ConnectView.as_view(), name="connect"),
    path("callback/", views.CallbackView.as_view(), name="callback"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
    path("backchannel-logout/", views.BackchannelLogoutView.as_view(), name="backchannel_logout"),
    path("disconnect/", views.DisconnectView.as_view(), name="disconnect"),
]

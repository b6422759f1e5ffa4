"""Pages of the site that the browser tests visit, beside the example's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.shortcuts import redirect
from django.template import engines
from django.urls import include, path

from everifin_django.decorators import everifin_required
from everifin_django.request import EverifinRequest

STRICT = (
    "default-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "object-src 'none'; frame-ancestors 'none'"
)
FRONT_END = "BROWSER_TEST_FRONT_END"
"""The origin of the front end that the site serves."""

LIBRARY = "BROWSER_TEST_LIBRARY"
"""The file of the JavaScript library that ``scripted`` uses."""

SCRIPTED = """{% load everifin %}<!doctype html>
<html lang="en"><head><title>Scripted</title>
<meta name="htmx-config" content='{"includeIndicatorStyles": false}'>
<script src="/library.js" defer></script></head>
<body hx-boost="true" hx-boost:inherited="true">
<h1>{% if user.is_authenticated %}Logged in{% else %}Logged out{% endif %}</h1>
{% everifin_button "login" %}{% everifin_button "connect" %}{% everifin_button "logout" %}
<form method="post" action="{% url "everifin_django:login" %}">{% csrf_token %}
<button>Log in by script</button></form>
<form method="post" action="{% url "everifin_django:logout" %}">{% csrf_token %}
<button>Log out by script</button></form>
<a href="{{ payment }}">Payment by script</a>
</body></html>"""


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        is_ours = request.path.startswith("/everifin/") and response.status_code != 404
        # The example's own pages have a style sheet within them, as Django's page of a 404 has.
        inline = "" if is_ours else "; style-src 'self' 'unsafe-inline'"
        response["Content-Security-Policy"] = STRICT + inline
        return response

    return middleware


def scripted(request: HttpRequest) -> HttpResponse:
    """A page whose links and forms htmx or Turbo sends."""
    payment = request.GET.get("payment", "")
    template = engines["django"].from_string(SCRIPTED)
    return HttpResponse(template.render({"payment": payment}, request))


def redirecting(request: HttpRequest) -> HttpResponse:
    """A form that is answered by a redirect to another site, as our views never do."""
    if request.method == "POST":
        return redirect(f"{settings.EVERIFIN_IDP_URL}/_sandbox/")
    form = '<form method="post">{% csrf_token %}<button>Go</button></form>'
    return HttpResponse(engines["django"].from_string(form).render({}, request))


def cross_origin(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """What django-cors-headers does for a front end of another origin."""

    def middleware(request: HttpRequest) -> HttpResponse:
        is_preflight = request.method == "OPTIONS" and "Origin" in request.headers
        response = HttpResponse() if is_preflight else get_response(request)
        origin = request.headers.get("Origin")
        if origin is not None and origin == os.environ.get(FRONT_END):
            response["Access-Control-Allow-Origin"] = origin
            response["Access-Control-Allow-Credentials"] = "true"
            response["Access-Control-Allow-Headers"] = "accept, content-type, x-csrftoken"
        return response

    return middleware


def csrf(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"token": get_token(request)})


@everifin_required(scopes={"ais"})
def accounts(request: EverifinRequest) -> JsonResponse:
    return JsonResponse({"accounts": [account.iban for account in request.everifin.accounts()]})


def library(request: HttpRequest) -> FileResponse:
    return FileResponse(Path(os.environ[LIBRARY]).open("rb"), content_type="text/javascript")


def log_in_as(request: HttpRequest, name: str) -> HttpResponse:
    """Log in as a user of the site's own, who is made here."""
    user, _ = get_user_model().objects.get_or_create(username=name)
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("home")


urlpatterns = [
    path("scripted/", scripted),
    path("redirecting/", redirecting),
    path("library.js", library),
    path("csrf/", csrf),
    path("api/accounts/", accounts),
    path("log-in-as/<str:name>/", log_in_as),
    path("", include("example_project.urls")),
]

"""The views under a site's own rules: its middleware, decorators, caches and security headers."""

import re
from html.parser import HTMLParser

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import signals
from django.contrib.auth.decorators import permission_required
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.core.exceptions import DisallowedRedirect, PermissionDenied
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_page

from everifin_django.backends import EverifinBackend
from everifin_django.checks import check_callback
from everifin_django.decorators import everifin_required
from everifin_django.exceptions import LoginRefusedError
from everifin_django.models import BankToken
from everifin_django.testing.fake import redirect_target
from everifin_django.web.responses import leave_for
from tests.urls import urlpatterns as site_urls
from tests.views import ibans

LOGIN, CONNECT = "/everifin/login/", "/everifin/connect/"
CALLBACK, LOGOUT = "/everifin/callback/", "/everifin/logout/"
DISCONNECT, BACKCHANNEL = "/everifin/disconnect/", "/everifin/backchannel-logout/"
MODEL = "django.contrib.auth.backends.ModelBackend"
OURS = "everifin_django.backends.EverifinBackend"

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


@permission_required("auth.add_user")
def admins_only(request):
    return HttpResponse("for admins")


@everifin_required
@cache_page(60)
def cached_below(request):
    return ibans(request)


@cache_page(60)
@everifin_required
def cached_above(request):
    return ibans(request)


@everifin_required
def says_otherwise(request):
    return HttpResponse("news", headers={"Cache-Control": "private, max-age=60"})


class CachedMethod(View):
    @method_decorator(everifin_required)
    @method_decorator(cache_page(60))
    def get(self, request):
        return ibans(request)


urlpatterns = [
    *site_urls,
    path("admins/", admins_only),
    path("cached/below/", cached_below),
    path("cached/above/", cached_above),
    path("cached/method/", CachedMethod.as_view()),
    path("otherwise/", says_otherwise),
]


class Doubting(EverifinBackend):
    def verify_claims(self, claims):
        raise LoginRefusedError("Only <staff> may come in.")


class Locked:
    """A backend like those that lock out after too many tries."""

    def authenticate(self, request, **credentials):
        raise PermissionDenied


class AnyoneIsAnn:
    """A careless backend that takes whatever it is given."""

    def authenticate(self, request, **credentials):
        from django.contrib.auth import get_user_model

        return get_user_model().objects.get(username="ann")


@pytest.fixture
def user(django_user_model):
    return django_user_model.objects.create_user("ann", password="a password")


@pytest.fixture
def browser(client, user):
    client.force_login(user)
    return client


class TestLoginRequiredMiddleware:
    @pytest.fixture(autouse=True)
    def required(self, settings):
        settings.MIDDLEWARE = [
            *settings.MIDDLEWARE,
            "django.contrib.auth.middleware.LoginRequiredMiddleware",
        ]
        settings.LOGIN_URL = "everifin_django:login"

    def test_a_visitor_logs_in(self, everifin, client, everifin_login):
        assert client.get("/plain/")["Location"] == f"{LOGIN}?next=/plain/"
        assert client.get(LOGIN).status_code == 200
        assert everifin_login(client, next="/plain/")["Location"] == "/plain/"
        assert client.get("/plain/").status_code == 200

    def test_each_view_answers_by_its_own_rules(self, everifin, client, settings):
        settings.EVERIFIN_BACKCHANNEL_LOGOUT = True
        assert client.get(CALLBACK).status_code == 400
        assert client.post(BACKCHANNEL, {"logout_token": "x"}).status_code == 400
        assert client.post(LOGOUT)["Location"] == "/"
        assert client.post(DISCONNECT)["Location"] == "/accounts/profile/"
        assert client.get(CONNECT)["Location"].startswith(f"{LOGIN}?next=")


class TestPermissionRequired:
    @pytest.fixture(autouse=True)
    def ours(self, settings):
        settings.LOGIN_URL = "everifin_django:login"

    def test_a_user_without_the_permission_is_told_and_does_not_go_in_circles(self, browser):
        response = browser.get("/admins/", follow=True)
        assert (response.status_code, response.redirect_chain) == (403, [])
        assert "<h1>You are logged in already</h1>" in response.content.decode()

    def test_it_is_so_under_asgi_too(self, user):
        client = AsyncClient()
        async_to_sync(client.aforce_login)(user)
        assert async_to_sync(client.get)("/admins/").status_code == 403

    def test_a_script_gets_a_problem(self, browser):
        response = browser.get("/admins/", headers={"Accept": "application/json"})
        assert response.json()["type"] == "urn:everifin-django:not-allowed"

    def test_a_visitor_is_sent_to_log_in(self, client):
        assert client.get("/admins/")["Location"] == f"{LOGIN}?next=/admins/"

    def test_with_the_permission_the_page_is_shown(self, browser, user):
        user.user_permissions.add(Permission.objects.get(codename="add_user"))
        assert browser.get(LOGIN, {"next": "/admins/"}, follow=True).content == b"for admins"


class TestWithoutTheBackend:
    @pytest.fixture(autouse=True)
    def without(self, settings):
        settings.AUTHENTICATION_BACKENDS = [MODEL]

    @pytest.mark.parametrize("method", ["get", "head", "post"])
    def test_there_is_no_login_page(self, client, method):
        assert getattr(client, method)(LOGIN).status_code == 404

    def test_a_login_begun_before_comes_back_to_none(self, everifin, client, settings):
        settings.AUTHENTICATION_BACKENDS = [MODEL, OURS]
        back = everifin.authorize(redirect_target(client.post(LOGIN)))
        settings.AUTHENTICATION_BACKENDS = [MODEL]
        assert client.get(back).status_code == 404
        assert everifin.calls["token"] == 0


class Head(HTMLParser):
    def __init__(self, response) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(response.content.decode())

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


class TestLeaving:
    """A form's redirect to another site is blocked by ``form-action 'self'``."""

    def assert_leaves(self, response, start: str) -> None:
        assert response.status_code == 200
        assert "Location" not in response
        assert response["X-Frame-Options"] == "DENY"
        assert response["Referrer-Policy"] == "same-origin"
        assert "no-store" in response["Cache-Control"]
        found = Head(response).found
        [refresh] = [one for _, one in found if one.get("http-equiv") == "refresh"]
        [link] = [one["href"] for tag, one in found if tag == "a"]
        assert refresh["content"] == f"0;url={link}"
        assert link == response.url == redirect_target(response)
        assert link.startswith(start)
        assert "script" not in dict(found)

    def test_login_connect_and_logout(self, everifin, browser, everifin_login, settings):
        settings.EVERIFIN_POST_LOGOUT_REDIRECT_URI = "https://site.example/"
        self.assert_leaves(Client().post(LOGIN), everifin.issuer)
        self.assert_leaves(browser.post(CONNECT), everifin.issuer)
        everifin_login(client := Client())
        self.assert_leaves(client.post(LOGOUT), everifin.issuer)

    def test_htmx_gets_its_header(self, everifin, client):
        response = client.post(LOGIN, headers={"HX-Request": "true"})
        assert (response.status_code, response.content) == (200, b"")
        assert response["HX-Redirect"].startswith(everifin.issuer)
        assert client.get(everifin.authorize(redirect_target(response))).status_code == 302

    @pytest.mark.parametrize(
        "url", ["javascript:alert(1)", "data:text/html,x", "//evil.example", "/here/", "https:///x"]
    )
    def test_only_another_sites_web_page_is_led_to(self, rf, url):
        with pytest.raises(DisallowedRedirect):
            leave_for(rf.post("/"), url)

    def test_a_url_cannot_break_out_of_the_page(self, rf):
        url = """https://bank.example/?a="><script>alert(1)</script>'&b=1"""
        response = leave_for(rf.post("/"), url)
        assert "<script>" not in response.content.decode()
        assert redirect_target(response) == url

    def test_forms_are_kept_from_scripts_that_send_them(self, browser):
        for page in (Client().get(LOGIN), browser.get(CONNECT), browser.get("/buttons/")):
            forms = [one for tag, one in Head(page).found if tag == "form"]
            assert forms
            assert all(one["hx-boost"] == one["data-turbo"] == "false" for one in forms)

    def test_no_page_of_ours_has_an_inline_style_or_script(self, browser):
        for page in (Client().get(LOGIN), browser.get(CALLBACK), browser.post(CONNECT)):
            found = Head(page).found
            assert not {"style", "script"} & {tag for tag, _ in found}
            assert not [one for _, one in found if "style" in one]
            [sheet] = [one["href"] for tag, one in found if one.get("rel") == "stylesheet"]
            assert sheet == "/static/everifin_django/pages.css"


class TestReferrerPolicy:
    def test_a_form_on_our_error_page_keeps_its_origin(self, browser):
        assert browser.get(CALLBACK)["Referrer-Policy"] == "same-origin"


class TestAuthenticate:
    @pytest.fixture
    def failed(self):
        seen = []

        def note(sender, credentials, request, **kwargs):
            seen.append(credentials)

        signals.user_login_failed.connect(note)
        yield seen
        signals.user_login_failed.disconnect(note)

    def heading(self, response) -> str:
        [found] = re.findall("<h1>(.*?)</h1>", response.content.decode())
        return str(found)

    @pytest.mark.parametrize(
        ("create", "backend", "expected"),
        [
            (False, OURS, "Nobody here has this Everifin account"),
            (True, f"{__name__}.Doubting", "You cannot log in here"),
        ],
    )
    def test_a_refused_login_is_signalled(  # noqa: PLR0913, PLR0917
        self, everifin, everifin_login, client, settings, failed, create, backend, expected
    ):
        settings.EVERIFIN_CREATE_USERS = create
        settings.AUTHENTICATION_BACKENDS = [MODEL, backend]
        response = everifin_login(client)
        assert (response.status_code, self.heading(response)) == (403, expected)
        assert failed == [{"everifin_tokens": "*" * 20}]
        assert everifin.live_sessions() == 0
        assert not BankToken.objects.exists()

    def test_verify_claims_can_say_why(self, everifin_login, client, settings):
        settings.AUTHENTICATION_BACKENDS = [MODEL, f"{__name__}.Doubting"]
        assert "<p>Only &lt;staff&gt; may come in.</p>" in everifin_login(client).content.decode()

    def test_a_deactivated_user_is_told_so(
        self, everifin, everifin_login, client, failed, django_user_model
    ):
        everifin_login(client)
        django_user_model.objects.update(is_active=False)
        response = everifin_login(Client())
        assert response.status_code == 403
        assert self.heading(response) == "Your user here is deactivated"
        assert len(failed) == 1

    @pytest.mark.parametrize("backend", ["Locked", "AnyoneIsAnn"])
    def test_another_backend_may_refuse_and_never_let_in(
        self, everifin, everifin_login, client, settings, user, backend
    ):
        settings.AUTHENTICATION_BACKENDS = [f"{__name__}.{backend}", OURS]
        response = everifin_login(client)
        assert (response.status_code, self.heading(response)) == (403, "You cannot log in here")
        assert "_auth_user_id" not in client.session
        assert everifin.live_sessions() == 0


class TestCaches:
    @pytest.fixture(autouse=True)
    def empty(self):
        cache.clear()
        yield
        cache.clear()

    @pytest.fixture
    def two(self, everifin, everifin_login):
        clients = Client(), Client()
        for client, name in zip(clients, ("alice", "bob"), strict=True):
            everifin_login(client, name)
        return clients

    @pytest.mark.parametrize("way", ["below", "above", "method"])
    def test_nobody_is_shown_somebody_elses_accounts(self, two, way):
        shown = [client.get(f"/cached/{way}/") for client in (*two, *two)]
        assert len({response.content for response in shown}) == 2
        assert shown[0].content == shown[2].content
        for response in shown:
            assert {"private", "no-store"} <= set(response["Cache-Control"].split(", "))
        assert Client().get(f"/cached/{way}/").status_code == 302

    @pytest.mark.parametrize("path", ["/accounts/", "/aaccounts/", "/class/", "/aclass/"])
    def test_bank_pages_are_private(self, two, path):
        assert two[0].get(path)["Cache-Control"] == "private, no-store"

    def test_a_view_may_say_otherwise(self, two):
        assert two[0].get("/otherwise/")["Cache-Control"] == "private, max-age=60"

    def test_a_cache_for_the_whole_site_stores_none_of_them(self, two, settings):
        settings.MIDDLEWARE = [
            "django.middleware.cache.UpdateCacheMiddleware",
            *settings.MIDDLEWARE,
            "django.middleware.cache.FetchFromCacheMiddleware",
        ]
        assert len({client.get("/accounts/").content for client in (*two, *two)}) == 2


class TestCallbackUrl:
    def ids(self):
        return [one.id for one in check_callback(None)]

    def test_one_for_each_language_is_warned_of(self):
        with override_settings(ROOT_URLCONF="tests.web.i18n_urls"):
            assert self.ids() == ["everifin_django.W010"]

    def test_one_for_all_is_right(self):
        assert self.ids() == []
        with override_settings(ROOT_URLCONF="tests.web.i18n_urls", USE_I18N=False):
            assert self.ids() == []

"""Views that are marked."""

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from django.views.decorators.csrf import csrf_exempt

from everifin_django.decorators import everifin_required, required_scopes
from everifin_django.models import BankToken

CONNECT = "/everifin/connect/"


def view(request, *args):
    """A view."""
    return HttpResponse("done")


async def aview(request, *args):
    return HttpResponse("done")


class TestMark:
    @pytest.mark.parametrize("one", [view, aview])
    def test_it_works_with_and_without_parentheses(self, one):
        assert required_scopes(everifin_required(one)) == frozenset()
        assert required_scopes(everifin_required()(one)) == frozenset()
        assert required_scopes(one) is None

    @pytest.mark.parametrize("scopes", ["ais", ["ais"], {"ais"}, ("ais", "ais")])
    def test_scopes_come_in_any_shape(self, scopes):
        assert required_scopes(everifin_required(scopes=scopes)(view)) == frozenset({"ais"})

    def test_it_shows_through_decorators_that_wrap(self):
        assert required_scopes(csrf_exempt(everifin_required(view))) == frozenset()

    def test_the_view_keeps_its_name(self):
        assert everifin_required(view).__doc__ == "A view."

    def test_without_the_middleware_it_fails_rather_than_lets_through(self):
        with pytest.raises(AttributeError, match="everifin"):
            everifin_required(view)(RequestFactory().get("/"))


@pytest.mark.django_db
class TestHiddenMark:
    """A decorator without ``functools.wraps`` outside hides the decorator from the middleware."""

    @pytest.mark.parametrize("path", ["/hidden/", "/ahidden/"])
    def test_the_view_is_protected_all_the_same(
        self, everifin, everifin_connect, admin_client, path
    ):
        assert admin_client.get(path)["Location"] == f"{CONNECT}?next={path.replace('/', '%2F')}"
        everifin_connect(admin_client)
        assert admin_client.get(path).content.decode().startswith("SK")
        BankToken.objects.update(access_expires_at="2026-01-01T00:00Z")
        assert admin_client.get(path).status_code == 200
        assert everifin.calls["token.refresh_token"] == 1

    @pytest.mark.parametrize("path", ["/hidden/payments/", "/ahidden/payments/"])
    def test_so_is_one_that_asks_everifin_nothing_itself(
        self, settings, everifin_connect, admin_client, path
    ):
        everifin_connect(admin_client)
        settings.EVERIFIN_SCOPES = "openid ais pis"
        assert admin_client.get(path)["Location"].startswith(CONNECT)

"""Class-based views that are marked."""

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient
from django.views import View

from everifin_django.decorators import required_scopes
from everifin_django.mixins import EverifinRequiredMixin
from tests.views import Accounts, AsyncAccounts

pytestmark = pytest.mark.django_db


def test_scopes_are_on_the_class_or_in_the_url():
    assert required_scopes(Accounts.as_view()) == frozenset({"ais"})
    assert required_scopes(Accounts.as_view(everifin_scopes="pis")) == frozenset({"pis"})
    assert required_scopes(AsyncAccounts.as_view()) == frozenset()


def test_the_view_is_the_class_it_was():
    assert vars(Accounts.as_view())["view_class"] is Accounts


def test_another_mixin_may_follow():
    class Counting(View):
        made = 0

        @classmethod
        def as_view(cls, **initkwargs):
            Counting.made += 1
            return super().as_view(**initkwargs)

    class Both(EverifinRequiredMixin, Counting):
        pass

    assert required_scopes(Both.as_view()) == frozenset()
    assert Counting.made == 1


@pytest.mark.parametrize("path", ["/class/", "/aclass/"])
def test_it_runs_when_connected(everifin, everifin_connect, admin_client, path):
    assert admin_client.get(path)["Location"].startswith("/everifin/connect/")
    everifin_connect(admin_client)
    assert admin_client.get(path).content.decode().startswith("SK")


def test_it_runs_under_asgi(everifin_connect, admin_client):
    everifin_connect(admin_client)
    client = AsyncClient()
    client.cookies = admin_client.cookies
    for path in ("/class/", "/aclass/"):
        response = async_to_sync(client.get)(path)
        assert response.content.decode().startswith("SK")

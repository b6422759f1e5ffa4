"""Users who cannot be made from what Everifin says."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from everifin_django.models import BankToken
from tests.projects.users import User, user_of

PLAIN = "everifin_django.backends.EverifinBackend"

pytestmark = pytest.mark.django_db


class TestCannotBeMade:
    """The default makes a user of a name alone; these need a date."""

    @pytest.fixture(autouse=True)
    def plain(self, settings):
        settings.AUTHENTICATION_BACKENDS = [PLAIN]

    def fails(self, client, everifin, everifin_connect) -> ImproperlyConfigured:
        with pytest.raises(ImproperlyConfigured) as caught:
            everifin_connect(client, view="login")
        assert not User.objects.exists()
        assert not BankToken.objects.exists()
        assert everifin.live_sessions() == 0
        assert not user_of(client).is_authenticated
        return caught.value

    def test_a_column_that_needs_a_value(self, client, everifin, everifin_connect):
        error = self.fails(client, everifin, everifin_connect)
        # The database's own error may show the row, and with it the person.
        assert error.__cause__ is error.__context__ is None
        said = str(error)
        assert said.startswith("No bare.User can be made")
        assert "(IntegrityError)" in said
        assert "whose create_user(claims) makes the user" in said

    @pytest.mark.parametrize("error", [TypeError, ValueError, AttributeError])
    def test_a_manager_that_needs_more(
        self, client, everifin, everifin_connect, monkeypatch, error
    ):
        def create_user(manager, *given, **more):
            raise error

        monkeypatch.setattr(type(User.objects), "create_user", create_user)
        assert f"({error.__name__})" in str(self.fails(client, everifin, everifin_connect))

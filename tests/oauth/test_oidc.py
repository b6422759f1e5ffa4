"""The bridge to mozilla-django-oidc."""

import base64
import hashlib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured

import everifin_django
from everifin_django.oauth import oidc

CALLBACK = "https://site.example/everifin/callback/"


def sent(begun):
    return {name: value for name, (value,) in parse_qs(urlsplit(begun.url).query).items()}


class TestAuthorizationRequest:
    def test_it_asks_for_what_the_settings_name(self, settings):
        settings.EVERIFIN_SCOPES = "openid ais pis"
        begun = oidc.authorization_request(CALLBACK)
        assert begun.url.startswith(
            "https://idp.everifin.test/auth/realms/everifin_app/protocol/openid-connect/auth?"
        )
        digest = hashlib.sha256(str(begun.code_verifier).encode()).digest()
        assert sent(begun) == {
            "response_type": "code",
            "client_id": "everifin-sandbox",
            "scope": "openid ais pis",
            "redirect_uri": CALLBACK,
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }

    def test_each_has_values_of_its_own(self):
        one, two = (oidc.authorization_request(CALLBACK) for _ in range(2))
        values = [
            value for each in (one, two) for value in (each.state, each.nonce, each.code_verifier)
        ]
        assert len(set(values)) == 6
        assert min(len(str(value)) for value in values) >= 43

    def test_without_pkce_there_is_no_verifier(self, settings):
        settings.EVERIFIN_USE_PKCE = False
        begun = oidc.authorization_request(CALLBACK)
        assert begun.code_verifier is None
        assert "code_challenge" not in sent(begun)

    def test_its_repr_shows_none_of_them(self):
        begun = oidc.authorization_request(CALLBACK)
        assert repr(begun) == "AuthorizationRequest()"


def test_a_setting_unknown_to_us_is_an_error():
    with pytest.raises(ImproperlyConfigured, match="OIDC_VERIFY_SSL"):
        oidc.get_setting("OIDC_VERIFY_SSL", True)


def test_no_other_module_imports_mozilla_django_oidc():
    package = Path(everifin_django.__file__).parent
    importing = [
        path for path in package.rglob("*.py") if "mozilla_django_oidc" in path.read_text()
    ]
    assert importing == [package / "oauth" / "oidc.py"]

"""What ``manage.py check`` says: one wrong setting, one message with its id and a hint."""

import base64
import hashlib
import re
import socket
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings as site
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.core.checks import CheckMessage, Tags, run_checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings

from everifin_django import checks
from everifin_django.backends import EverifinBackend
from everifin_django.conf import PROTOCOL_PARAMS, SETTINGS
from everifin_django.middleware import EverifinMiddleware
from everifin_django.models import BankToken
from everifin_django.testing.factories import BankTokenFactory
from everifin_django.testing.sandbox import Sandbox

TAG = "everifin_django"
KEY = base64.b64encode(b"k" * 32).decode()
MIDDLEWARE = "everifin_django.middleware.EverifinMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
SECRET_KEY = "a secret key of the site, long enough to be cut"
WEIRD = [None, 5, -1.5, b"bytes", "ž\n", "", [], ["list"], {"a": 1}, {"set"}, len, object]
DEPLOYED = {
    "ALLOWED_HOSTS": ["site.test"],
    "EVERIFIN_CLIENT_SECRET": "a secret from Everifin",
    "EVERIFIN_REDIRECT_URI": "https://site.test/everifin/callback/",
    "SESSION_COOKIE_SECURE": True,
}


class OwnMiddleware(EverifinMiddleware):
    """A site's own version."""


class OwnAuthentication(AuthenticationMiddleware):
    """A site's own version."""


class OwnBackend(EverifinBackend):
    """A site's own version."""


def messages(*, deploy: bool = False) -> list[CheckMessage]:
    return run_checks(tags=[TAG], include_deployment_checks=deploy)


def ids(*, deploy: bool = False) -> list[str]:
    return [str(message.id).removeprefix("everifin_django.") for message in messages(deploy=deploy)]


def without(*names: str) -> list[str]:
    return [name for name in site.MIDDLEWARE if name not in names]


def key(material: bytes) -> list[str]:
    return [f"a:{base64.b64encode(material).decode()}"]


WRONG = [
    ("E019", {"EVERIFIN_KEY_PROVIDER": ""}),
    ("E019", {"EVERIFIN_KEY_PROVIDER": "keys"}),
    ("E044", {"EVERIFIN_KEY_PROVIDER": "tests.nowhere.Vault"}),
    ("E044", {"EVERIFIN_KEY_PROVIDER": "everifin_django.encryption.Key"}),
    ("E001", {"EVERIFIN_CLIENT_ID": ""}),
    ("E001", {"EVERIFIN_CLIENT_ID": None}),
    ("E002", {"EVERIFIN_CLIENT_SECRET": ""}),
    ("E002", {"EVERIFIN_CLIENT_SECRET": b"secret"}),
    ("E003", {"EVERIFIN_ENCRYPTION_KEYS": []}),
    ("E003", {"EVERIFIN_ENCRYPTION_KEYS": f"a:{KEY}"}),
    ("E004", {"EVERIFIN_ENCRYPTION_KEYS": [KEY]}),
    ("E004", {"EVERIFIN_ENCRYPTION_KEYS": ["a:!"]}),
    ("E004", {"EVERIFIN_ENCRYPTION_KEYS": key(b"short")}),
    ("E004", {"EVERIFIN_ENCRYPTION_KEYS": [None]}),
    ("E005", {"EVERIFIN_ENCRYPTION_KEYS": [f"a:{KEY}", f"a:{KEY}"]}),
    ("E023", {"EVERIFIN_IDP_URL": "http://idp.test"}),
    ("E023", {"EVERIFIN_IDP_URL": "http://127.0.0.1:8001"}),
    ("E024", {"EVERIFIN_API_URL": "api.test"}),
    ("E025", {"EVERIFIN_ISSUER": "http://idp.test/auth/realms/x"}),
    ("E026", {"EVERIFIN_REDIRECT_URI": "http://site.test/everifin/callback/"}),
    ("E026", {"EVERIFIN_REDIRECT_URI": "/everifin/callback/"}),
    ("E028", {"EVERIFIN_CONNECT_TIMEOUT_SECONDS": 0}),
    ("E029", {"EVERIFIN_DEADLINE_SECONDS": 3600}),
    ("E030", {"EVERIFIN_REFRESH_MARGIN_SECONDS": "60"}),
    ("E009", {"EVERIFIN_CLIENT_AUTH": "post"}),
    ("E010", {"EVERIFIN_TRUSTED_PROXIES": -1}),
    ("E010", {"EVERIFIN_TRUSTED_PROXIES": True}),
    ("E031", {"EVERIFIN_MAX_TRIES": 0}),
    ("E032", {"EVERIFIN_POOL_SIZE": "32"}),
    ("E065", {"EVERIFIN_PAYMENT_ABSENT_SECONDS": 5}),
    ("E066", {"EVERIFIN_REVOCATIONS_PER_SECOND": 0}),
    ("E067", {"EVERIFIN_DISCONNECTED_RETENTION_DAYS": 0}),
    ("E011", {"MIDDLEWARE": without(MIDDLEWARE)}),
    ("E012", {"MIDDLEWARE": [MIDDLEWARE, *without(MIDDLEWARE)]}),
    ("E013", {"SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies"}),
    ("E014", {"SESSION_COOKIE_SAMESITE": "Strict"}),
    ("E014", {"SESSION_COOKIE_SAMESITE": "strict"}),
    ("E015", {"EVERIFIN_SCOPES": "ais"}),
    ("E057", {"EVERIFIN_LOGOUT_ENDS_CONNECTION": False}),
    ("E050", {"ALLOWED_HOSTS": ["*"]}),
    ("E050", {"ALLOWED_HOSTS": [".site.test", "www.site.test"]}),
    ("E017", {"EVERIFIN_API_PATHS": {"nonsense": "/v1/nonsense"}}),
    ("E017", {"EVERIFIN_API_PATHS": {"account": "/v1/accounts"}}),
    ("E017", {"EVERIFIN_API_PATHS": {"banks": "v1/banks"}}),
    ("E021", {"EVERIFIN_API_FIELDS": {"nonsense": {"name": "title"}}}),
    ("E021", {"EVERIFIN_API_FIELDS": {"bank": {"nonsense": "title"}}}),
    ("E021", {"EVERIFIN_API_FIELDS": {"name": "title"}}),
    ("E033", {"EVERIFIN_REALM": "a/b"}),
    ("E034", {"EVERIFIN_SCOPES": ["openid", "ais"]}),
    ("E035", {"EVERIFIN_USE_PKCE": "True"}),
    ("E036", {"EVERIFIN_REQUIRE_ISS": "True"}),
    ("E037", {"EVERIFIN_CREATE_USERS": "False"}),
    ("E052", {"EVERIFIN_CONNECT_ALLOWS_LOGIN": "False"}),
    ("E085", {"EVERIFIN_ACCESS_CHECK": "check"}),
    ("E086", {"EVERIFIN_ACCESS_CHECK": "shop.nowhere"}),
    ("E080", {"EVERIFIN_LOGIN_PARAMS": ["prompt"]}),
    ("E080", {"EVERIFIN_LOGIN_PARAMS": {"max_age": "soon"}}),
    ("E081", {"EVERIFIN_CONNECT_PARAMS": "prompt=login"}),
    *(("E082", {"EVERIFIN_LOGIN_PARAMS": {name: "x"}}) for name in sorted(PROTOCOL_PARAMS)),
    ("E082", {"EVERIFIN_CONNECT_PARAMS": {"State": "x"}}),
    ("E082", {"EVERIFIN_CONNECT_PARAMS": {"prompt": "consent none"}}),
    ("E084", {"EVERIFIN_CONNECT_PARAMS": "bank.nowhere"}),
    ("E063", {"EVERIFIN_USE_LOGIN_URL": "False"}),
    ("E039", {"EVERIFIN_REFRESH_EVERY_VIEW": 1}),
    ("E042", {"EVERIFIN_CA_BUNDLE": "/nowhere/ca.pem"}),
    ("E043", {"EVERIFIN_PROXIES": "http://proxy.test"}),
    ("W001", {"EVERIFIN_CLIENTID": "x"}),
]
DERIVED = {
    "sha256": hashlib.sha256(SECRET_KEY.encode()).digest(),
    "sha3": hashlib.sha3_256(SECRET_KEY.encode()).digest(),
    "blake2": hashlib.blake2s(SECRET_KEY.encode()).digest(),
    "cut": SECRET_KEY.encode()[:32],
    "encoded": base64.b64encode(SECRET_KEY.encode())[:32],
}


def test_a_right_configuration_is_silent():
    assert messages() == []


def test_a_right_deployment_is_silent():
    with override_settings(**DEPLOYED):
        assert messages(deploy=True) == []


@pytest.mark.parametrize(("check_id", "overrides"), WRONG)
def test_a_wrong_setting_has_one_message_with_a_hint(check_id, overrides):
    with override_settings(**overrides):
        (message,) = messages()
    assert message.id == f"everifin_django.{check_id}"
    assert message.hint
    assert message.is_serious() == check_id.startswith("E")
    assert all(name in message.msg + message.hint for name in overrides)


@pytest.mark.parametrize("material", DERIVED.values(), ids=DERIVED.keys())
@pytest.mark.parametrize("secret_key", [SECRET_KEY, SECRET_KEY.encode()], ids=["text", "bytes"])
def test_a_key_made_from_the_secret_key_is_found(material, secret_key):
    with override_settings(SECRET_KEY=secret_key, EVERIFIN_ENCRYPTION_KEYS=key(material)):
        (message,) = messages()
    assert (message.id, bool(message.hint)) == ("everifin_django.E006", True)
    assert "'a'" in message.msg


def test_a_short_secret_key_that_was_filled_up_is_found():
    material = b"short".ljust(32, b"\0")
    with override_settings(SECRET_KEY="short", EVERIFIN_ENCRYPTION_KEYS=key(material)):
        assert ids() == ["E006"]


@pytest.mark.parametrize("name", ["EVERIFIN_LOGIN_PARAMS", "EVERIFIN_CONNECT_PARAMS"])
@pytest.mark.parametrize(
    ("params", "expected"),
    [({"max_age": 1}, ["E083"]), ({"acr_values": "2"}, ["E083"]), ({"prompt": "login"}, [])],
)
def test_what_only_an_id_token_proves_needs_openid(name, params, expected):
    backends = ["django.contrib.auth.backends.ModelBackend"]
    overrides = {name: params, "EVERIFIN_SCOPES": "ais", "AUTHENTICATION_BACKENDS": backends}
    with override_settings(**overrides):
        assert ids() == expected


def test_an_empty_secret_key_is_left_to_django():
    with override_settings(SECRET_KEY=""):
        assert messages() == []


@pytest.mark.parametrize(("name", "check_id"), checks.PLAIN_HTTP_IDS.items())
def test_the_sandbox_is_welcome_until_deployment(name, check_id):
    with override_settings(**{**DEPLOYED, name: "http://127.0.0.1:8001", "DEBUG": True}):
        assert messages() == []
        (message,) = messages(deploy=True)
    assert (message.id, bool(message.hint)) == (f"everifin_django.{check_id}", True)
    assert name in message.msg


def test_the_secret_of_the_sandbox_is_welcome_until_deployment():
    with override_settings(**{**DEPLOYED, "EVERIFIN_CLIENT_SECRET": Sandbox().client_secret}):
        assert messages() == []
        (message,) = messages(deploy=True)
    assert (message.id, bool(message.hint)) == ("everifin_django.E020", True)
    assert Sandbox().client_secret not in f"{message.msg}{message.hint}"


@pytest.mark.parametrize(
    ("check_id", "overrides"),
    [
        ("W002", {"EVERIFIN_REDIRECT_URI": None}),
        ("W002", {"EVERIFIN_REDIRECT_URI": ""}),
        ("W003", {"SESSION_COOKIE_SECURE": False}),
        ("W006", {"ALLOWED_HOSTS": ["www.site.test", "other.test"]}),
        ("W005", {"EVERIFIN_USE_PKCE": False}),
        (
            "W008",
            {
                "EVERIFIN_LOGOUT_ENDS_CONNECTION": False,
                "EVERIFIN_SCOPES": "openid ais offline_access",
            },
        ),
        ("W009", {"SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}),
        ("W009", {"USE_X_FORWARDED_HOST": True}),
    ],
)
def test_a_deployment_is_warned(check_id, overrides):
    with override_settings(**{**DEPLOYED, **overrides}):
        assert messages() == []
        (message,) = messages(deploy=True)
    assert message.id == f"everifin_django.{check_id}"
    assert message.hint
    assert not message.is_serious()


@pytest.mark.parametrize("hosts", [["*"], [".site.test"], ["SITE.TEST"]])
def test_a_callback_on_an_allowed_host_is_silent(hosts):
    with override_settings(**{**DEPLOYED, "ALLOWED_HOSTS": hosts}):
        assert messages(deploy=True) == []


class TestDependencies:
    """The floors are read from the metadata that the package is installed with."""

    @pytest.fixture
    def needs(self, monkeypatch, tmp_path):
        """Give a function that has the package installed with other requirements."""

        def needs(*requirements: str) -> list[CheckMessage]:
            info = tmp_path / "everifin_django-9.dist-info"
            info.mkdir()
            lines = [f"Requires-Dist: {one}\n" for one in requirements]
            head = "Metadata-Version: 2.1\nName: everifin-django\nVersion: 9\n"
            (info / "METADATA").write_text(head + "".join(lines))
            monkeypatch.syspath_prepend(tmp_path)
            with override_settings(**DEPLOYED):
                return messages(deploy=True)

        return needs

    @pytest.mark.parametrize(
        "requirement",
        ["django>=1000", "urllib3>=1.26,!=0.1,>=99.1", f"django!={django.__version__}"],
    )
    def test_one_with_known_holes_is_named(self, needs, requirement):
        (message,) = needs("requests>=2", requirement)
        assert message.id == "everifin_django.W007"
        assert re.search(r": (django|urllib3) [\d.]+\w*\.$", message.msg)

    @pytest.mark.parametrize(
        "requirement",
        [
            "django>=4.2",
            "urllib3",
            "no-such-package>=1000",
            "no-such-extra>=1000; extra == 'celery'",
        ],
    )
    def test_others_are_silent(self, needs, requirement):
        assert needs(requirement) == []


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("value", WEIRD, ids=lambda value: type(value).__name__)
def test_no_value_is_a_traceback(name, value):
    with override_settings(**{**DEPLOYED, name: value}):
        found = messages(deploy=True)
    assert all(name in message.msg for message in found)
    assert len(found) <= 1


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_wrong_value_of_any_setting_is_found(name):
    with override_settings(**{name: object()}):
        (message,) = messages()
    assert name in message.msg
    assert message.hint


def test_each_complaint_has_an_id_of_its_own():
    source = Path(checks.__file__).read_text(encoding="utf-8")
    retired = source[source.index("RETIRED_IDS =") : source.index('"""Each of these')]
    used = re.findall(r'"([EW]\d{3})"', source.replace(retired, ""))
    used += [setting.check_id for setting in SETTINGS.values()]
    assert sorted(used) == sorted(set(used))
    assert checks.RETIRED_IDS.isdisjoint(used)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_hint_leads_to_the_reference(name):
    with override_settings(**{name: object()}):
        (message,) = messages()
    assert message.id == f"everifin_django.{SETTINGS[name].check_id}"
    assert str(message.hint).endswith(f"docs/reference/settings.md#{name.lower()}.")


def test_every_wrong_key_has_its_message():
    with override_settings(EVERIFIN_ENCRYPTION_KEYS=["a:!", f"b:{KEY}", "c:!"]):
        found = messages()
    assert [message.id for message in found] == ["everifin_django.E004"] * 2
    assert ["'a'" in found[0].msg, "'c'" in found[1].msg] == [True, True]


@pytest.mark.parametrize(
    "keys", [[KEY], [f"a:{KEY[:-4]}"], [f"a:{KEY}", f"a:{KEY}"], f"a:{KEY}"], ids=len
)
def test_messages_do_not_show_keys(keys):
    with override_settings(EVERIFIN_ENCRYPTION_KEYS=keys):
        (message,) = messages()
    assert KEY[:20] not in str(message)


def test_a_wrong_address_is_not_reported_as_the_issuer_too():
    with override_settings(EVERIFIN_IDP_URL="http://idp.test"):
        (message,) = messages()
    assert "EVERIFIN_IDP_URL" in message.msg


def test_wrong_scopes_are_reported_once_also_with_the_backend():
    with override_settings(EVERIFIN_SCOPES=5):
        assert ids() == ["E034"]


def test_a_sites_own_backend_needs_openid_too():
    backends = [f"{__name__}.OwnBackend"]
    with override_settings(EVERIFIN_SCOPES="ais", AUTHENTICATION_BACKENDS=backends):
        assert ids() == ["E015"]


def test_without_the_backend_nobody_needs_openid():
    backends = ["django.contrib.auth.backends.ModelBackend", "no.such.Backend"]
    with override_settings(EVERIFIN_SCOPES="ais", AUTHENTICATION_BACKENDS=backends):
        assert ids() == []


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (MIDDLEWARE, f"{__name__}.OwnMiddleware"),
        (AUTHENTICATION, f"{__name__}.OwnAuthentication"),
    ],
)
def test_a_sites_own_middleware_counts(name, own):
    middleware = [own if one == name else one for one in site.MIDDLEWARE]
    with override_settings(MIDDLEWARE=middleware):
        assert ids() == []


def test_middleware_that_cannot_be_imported_is_left_to_django():
    with override_settings(MIDDLEWARE=["no.such.Middleware", *site.MIDDLEWARE]):
        assert ids() == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("EVERIFIN_CLIENTID", "Did you mean EVERIFIN_CLIENT_ID?"),
        ("EVERIFIN_CONNECT_TIMEOUT", "Did you mean EVERIFIN_CONNECT_TIMEOUT_SECONDS?"),
        ("EVERIFIN_QQQQQQQQQQQQQQQQQQQQQQ", "docs/reference/settings.md lists the settings."),
    ],
)
def test_a_misspelt_setting_gets_a_suggestion(name, hint):
    with override_settings(**{name: "x"}):
        (message,) = messages()
    assert name in message.msg
    assert message.hint == hint


def test_the_command_fails_with_id_and_hint(settings):
    settings.EVERIFIN_CLIENT_SECRET = ""
    with pytest.raises(CommandError, match=r"(?s)everifin_django\.E002.*HINT: .*everifin_sandbox"):
        call_command("check")


def test_the_command_passes_a_right_configuration(capsys):
    call_command("check")
    assert "no issues" in capsys.readouterr().out


def test_no_check_asks_network_or_database(monkeypatch):
    """pytest-django refuses the database; this refuses the rest."""

    def refuse(*args, **kwargs):
        raise AssertionError("a check asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert set(ids(deploy=True)) == {"E020", "W002", "W003"}


@pytest.mark.django_db
class TestStoredKeys:
    """Deployment checks that look into the database, which they do only when told."""

    @pytest.fixture(autouse=True)
    def row(self):
        return BankTokenFactory(access_token="a", refresh_token="r", id_token=None)

    def found(self, **more: Any) -> list[CheckMessage]:
        options: dict[str, Any] = {
            "databases": ["default"],
            "include_deployment_checks": True,
        } | more
        messages = run_checks(tags=[Tags.database], **options)
        return [message for message in messages if str(message.id).startswith(TAG)]

    def test_a_key_that_is_there_is_silent(self):
        assert self.found() == []

    def test_a_missing_key_is_named_with_what_it_sealed(self, settings):
        settings.EVERIFIN_ENCRYPTION_KEYS = key(b"k" * 32)
        (message,) = self.found()
        assert message.id == f"{TAG}.W004"
        assert message.msg.endswith("'test' is missing: 2.")
        assert "--status" in str(message.hint)

    def test_what_this_app_did_not_write_is_said(self, row):
        BankToken.objects.update(access_ciphertext="a token in clear")
        (message,) = self.found()
        assert message.msg.endswith("this app did not write them: 1.")
        assert "clear" not in message.msg

    @pytest.mark.parametrize("more", [{"databases": []}, {"include_deployment_checks": False}])
    def test_unless_told_it_is_silent(self, settings, more):
        settings.EVERIFIN_ENCRYPTION_KEYS = key(b"k" * 32)
        assert self.found(**more) == []

    def test_without_a_database_nothing_is_asked(self, settings, django_assert_num_queries):
        settings.EVERIFIN_ENCRYPTION_KEYS = key(b"k" * 32)
        with django_assert_num_queries(0):
            messages(deploy=True)

    def test_before_the_first_migration_it_is_silent(self, settings, monkeypatch):
        settings.EVERIFIN_ENCRYPTION_KEYS = key(b"k" * 32)
        introspection = type(connection.introspection)
        monkeypatch.setattr(introspection, "table_names", lambda *_args, **_kwargs: [])
        assert self.found() == []

    @pytest.mark.parametrize(
        "overrides",
        [
            {"EVERIFIN_ENCRYPTION_KEYS": []},
            {"EVERIFIN_KEY_PROVIDER": "tests.test_encryption.BrokenVault"},
        ],
    )
    def test_where_no_key_can_be_asked_for_it_is_silent(self, overrides):
        with override_settings(**overrides):
            assert self.found() == []

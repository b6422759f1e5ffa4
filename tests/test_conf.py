"""Every setting: its default, that it is read at the moment of use, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from everifin_django.api_names import DEFAULT_API_FIELDS, DEFAULT_API_PATHS
from everifin_django.conf import SETTINGS, Conf, Setting, conf, is_secure
from tests.support.malicious_server import report
from tests.support.settings_reference import PAGE, render

DEFAULTS = {
    "EVERIFIN_IDP_URL": "https://app.everifin.com",
    "EVERIFIN_REALM": "everifin_app",
    "EVERIFIN_ISSUER": "https://app.everifin.com/auth/realms/everifin_app",
    "EVERIFIN_API_URL": "https://api.everifin.com",
    "EVERIFIN_API_PATHS": DEFAULT_API_PATHS,
    "EVERIFIN_API_FIELDS": DEFAULT_API_FIELDS,
    "EVERIFIN_SCOPES": "openid ais",
    "EVERIFIN_KEY_PROVIDER": "everifin_django.encryption.SettingsKeys",
    "EVERIFIN_USE_PKCE": True,
    "EVERIFIN_REQUIRE_ISS": False,
    "EVERIFIN_ID_TOKEN_ALG": None,
    "EVERIFIN_CLIENT_AUTH": "client_secret_post",
    "EVERIFIN_REDIRECT_URI": None,
    "EVERIFIN_CREATE_USERS": True,
    "EVERIFIN_CONNECT_ALLOWS_LOGIN": True,
    "EVERIFIN_USE_LOGIN_URL": True,
    "EVERIFIN_RETURN_HOSTS": (),
    "EVERIFIN_RETURN_SCHEMES": (),
    "EVERIFIN_LOGIN_PARAMS": {},
    "EVERIFIN_CONNECT_PARAMS": {},
    "EVERIFIN_POST_LOGOUT_REDIRECT_URI": None,
    "EVERIFIN_REVOCATION_URL": None,
    "EVERIFIN_WEB_APP_URL": "https://app.everifin.com",
    "EVERIFIN_LEGACY_LOGOUT": False,
    "EVERIFIN_LOGOUT_ENDS_CONNECTION": True,
    "EVERIFIN_BACKCHANNEL_LOGOUT": False,
    "EVERIFIN_LOGIN_LIFETIME_SECONDS": 600,
    "EVERIFIN_CONNECT_TIMEOUT_SECONDS": 3,
    "EVERIFIN_DEADLINE_SECONDS": 10,
    "EVERIFIN_REFRESH_MARGIN_SECONDS": 60,
    "EVERIFIN_REVOCATIONS_PER_SECOND": 20,
    "EVERIFIN_RETENTION_DAYS": 30,
    "EVERIFIN_DISCONNECTED_RETENTION_DAYS": 366,
    "EVERIFIN_REFRESH_EVERY_VIEW": False,
    "EVERIFIN_ACCESS_CHECK": None,
    "EVERIFIN_TRUSTED_PROXIES": 0,
    "EVERIFIN_MAX_TRIES": 3,
    "EVERIFIN_PAYMENT_ABSENT_SECONDS": 86_400,
    "EVERIFIN_POOL_SIZE": 32,
    "EVERIFIN_CA_BUNDLE": None,
    "EVERIFIN_PROXIES": {},
}
REQUIRED = {"EVERIFIN_CLIENT_ID", "EVERIFIN_CLIENT_SECRET", "EVERIFIN_ENCRYPTION_KEYS"}
RIGHT = {
    "EVERIFIN_CLIENT_ID": ["site", "a:b%c"],
    "EVERIFIN_CLIENT_SECRET": ["s e c r e t"],
    "EVERIFIN_ENCRYPTION_KEYS": [["a:b"], ("a:b", "c:d")],
    "EVERIFIN_KEY_PROVIDER": ["shop.keys.Vault", "keys.Vault"],
    "EVERIFIN_IDP_URL": ["https://idp.test", "https://idp.test:8443/kc"],
    "EVERIFIN_REALM": ["site", "a.b-c_d~e"],
    "EVERIFIN_ISSUER": ["https://idp.test/", "http://[::1]:8001/x"],
    "EVERIFIN_API_URL": ["https://api.test", "http://localhost:8001"],
    "EVERIFIN_SCOPES": ["ais", "openid ais pis"],
    "EVERIFIN_USE_PKCE": [True, False],
    "EVERIFIN_REQUIRE_ISS": [True, False],
    "EVERIFIN_ID_TOKEN_ALG": ["RS256", "EdDSA"],
    "EVERIFIN_CLIENT_AUTH": ["client_secret_post", "client_secret_basic"],
    "EVERIFIN_REDIRECT_URI": ["https://site.test/back/?x=1"],
    "EVERIFIN_CREATE_USERS": [True, False],
    "EVERIFIN_CONNECT_ALLOWS_LOGIN": [True, False],
    "EVERIFIN_USE_LOGIN_URL": [True, False],
    "EVERIFIN_RETURN_HOSTS": [[], ["app.shop.example", "localhost:5173"], ("127.0.0.1:1",)],
    "EVERIFIN_RETURN_SCHEMES": [[], ["example.shop.app"], ("com.a-b.c+1",)],
    "EVERIFIN_LOGIN_PARAMS": [{}, {"prompt": "login", "kc_idp_hint": "a"}, "bank.params.login"],
    "EVERIFIN_CONNECT_PARAMS": [{"max_age": "300", "login_hint": "č@site.test"}],
    "EVERIFIN_POST_LOGOUT_REDIRECT_URI": ["https://site.test/", "http://127.0.0.1:8000/out/"],
    "EVERIFIN_REVOCATION_URL": ["https://idp.test/revoke"],
    "EVERIFIN_WEB_APP_URL": ["https://app.test/sk/", "http://127.0.0.1:8001"],
    "EVERIFIN_LEGACY_LOGOUT": [True, False],
    "EVERIFIN_LOGOUT_ENDS_CONNECTION": [True, False],
    "EVERIFIN_BACKCHANNEL_LOGOUT": [True, False],
    "EVERIFIN_LOGIN_LIFETIME_SECONDS": [60, 3600],
    "EVERIFIN_CONNECT_TIMEOUT_SECONDS": [0.1, 1, 60],
    "EVERIFIN_DEADLINE_SECONDS": [0.1, 1, 60],
    "EVERIFIN_REFRESH_MARGIN_SECONDS": [0.1, 1, 60],
    "EVERIFIN_REVOCATIONS_PER_SECOND": [1, 1000],
    "EVERIFIN_RETENTION_DAYS": [1, 366],
    "EVERIFIN_DISCONNECTED_RETENTION_DAYS": [1, 3660],
    "EVERIFIN_REFRESH_EVERY_VIEW": [True, False],
    "EVERIFIN_ACCESS_CHECK": ["shop.access.check"],
    "EVERIFIN_TRUSTED_PROXIES": [0, 1, 10],
    "EVERIFIN_MAX_TRIES": [1, 10],
    "EVERIFIN_PAYMENT_ABSENT_SECONDS": [600, 86_400],
    "EVERIFIN_POOL_SIZE": [1, 1000],
    "EVERIFIN_CA_BUNDLE": [__file__, str(Path(__file__).parent)],
    "EVERIFIN_PROXIES": [{}, {"https": "http://proxy.test:3128"}],
}
ADDRESSES = [
    "http://idp.test",
    "ftp://idp.test",
    "idp.test",
    "https://",
    "https:idp.test",
    "https:///path",
    "https://user:secret@idp.test",
    "https://idp.test/#x",
    "https://idp.test/a b",
    "https://idp.test\\evil",
    "https://idp.test\r\n",
    "https://žltý.test",
    'https://idp.test/"',
    "https://idp.test/<b>",
    "https://idp.test/" + "a" * 2000,
    "https://[::1",
    "https://idp.test:port",
    "https://idp.test:0",
    "http://127.0.0.1.evil.test",
    "http://127.0.0.2",
]
SECONDS = [0, -1, 60.1, True, "3", float("nan"), float("inf"), 10**400]
WRONG = {
    "EVERIFIN_CLIENT_ID": ["", " ", "ž", "site\n", "a" * 256],
    "EVERIFIN_CLIENT_SECRET": ["", "\n", "secret\n", "heslo-ž", "a" * 2001],
    "EVERIFIN_ENCRYPTION_KEYS": ["a:b", {"a:b"}, [], (), ["a:b"] * 101],
    "EVERIFIN_KEY_PROVIDER": ["", "Vault", None, object, "a..b", "a.b\n", "a b.C", ".a"],
    "EVERIFIN_IDP_URL": [*ADDRESSES, "", "https://idp.test?x=1"],
    "EVERIFIN_REALM": ["", "..", ".a", "a/b", "a b", "a\n", "a?b", "a" * 256],
    "EVERIFIN_ISSUER": ADDRESSES,
    "EVERIFIN_API_URL": [*ADDRESSES, "", "https://api.test?x=1"],
    "EVERIFIN_API_PATHS": [
        {"nonsense": "/v1/nonsense"},
        {"banks": "v1/banks"},
        {"banks": "//evil.test/banks"},
        {"banks": "/v1/../banks"},
        {"banks": "/v1/banks?x=1"},
        {"banks": "/v1/banks#x"},
        {"banks": "/v1/b%61nks"},
        {"banks": "/v1/ banks"},
        {"banks": "/v1/ž"},
        {"banks": ""},
        {"account": "/v1/accounts"},
        {"account": "/v1/accounts/{id}"},
        {"account": "/v1/accounts/{account_id"},
        {"account": "/v1/accounts/{account_id}/{other}"},
        {"account": "/v1/accounts/{account_id.__class__}"},
        {"account": None},
        {1: "/v1/banks"},
    ],
    "EVERIFIN_API_FIELDS": [
        {"nonsense": {"name": "title"}},
        {"bank": {"nonsense": "title"}},
        {"bank": {"id": "number"}},
        {"bank": {"name": ""}},
        {"bank": {"name": None}},
        {"bank": {1: "title"}},
        {"bank": None},
        {"name": "title"},
        {1: {"name": "title"}},
        [],
        None,
    ],
    "EVERIFIN_SCOPES": [
        "",
        "  ",
        "openid\nais",
        "žiadne",
        'open"id',
        "open\\id",
        "a" * 1001,
        ["openid", "ais"],
    ],
    "EVERIFIN_USE_PKCE": ["False", 0, 1, ""],
    "EVERIFIN_REQUIRE_ISS": ["False", 0, 1, ""],
    "EVERIFIN_ID_TOKEN_ALG": ["HS256", "none", "rs256", ["RS256"]],
    "EVERIFIN_CLIENT_AUTH": ["", "Body", "post"],
    "EVERIFIN_REDIRECT_URI": ADDRESSES,
    "EVERIFIN_CREATE_USERS": ["False", 0, 1, ""],
    "EVERIFIN_CONNECT_ALLOWS_LOGIN": ["False", 0, 1, ""],
    "EVERIFIN_USE_LOGIN_URL": ["False", 0, 1, ""],
    "EVERIFIN_RETURN_HOSTS": [
        *("app.shop.example", ["https://app.shop.example"], ["App.shop"], ["*"], [".shop.example"]),
        *([""], ["a b"], ["a/b"], ["a@b"], ["a:b"], ["a" * 254], [None], [5], {"a"}, None),
    ],
    "EVERIFIN_RETURN_SCHEMES": [
        *("example.shop.app", ["shop"], ["javascript"], ["https"], ["example.shop.app:"], [""]),
        *(["a..b"], [".a"], ["a."], ["Example.shop"], ["a.b\n"], ["a." + "b" * 63], [None], None),
    ],
    "EVERIFIN_LOGIN_PARAMS": [
        *(None, [], "params", "a b.c", {"a": ""}, {"a": None}, {"a": True}, {"a": "x\n"}),
        *({"": "x"}, {"a[]": "x"}, {"a": "x" * 256}, {"a": -1}, {"a" * 65: "x"}, {1: "x"}),
        *({"max_age": "soon"}, {"max_age": "1.5"}, {"max_age": -1}, {"max_age": "1" * 10}),
    ],
    "EVERIFIN_CONNECT_PARAMS": [
        *({"a": ["x"]}, {"state": "x"}, {"CLIENT_ID": "x"}, {"prompt": "none"}),
    ],
    "EVERIFIN_POST_LOGOUT_REDIRECT_URI": ADDRESSES,
    "EVERIFIN_REVOCATION_URL": ADDRESSES,
    "EVERIFIN_WEB_APP_URL": ADDRESSES,
    "EVERIFIN_LEGACY_LOGOUT": ["False", 0, 1, ""],
    "EVERIFIN_LOGOUT_ENDS_CONNECTION": ["False", 0, 1, ""],
    "EVERIFIN_BACKCHANNEL_LOGOUT": ["False", 0, 1, ""],
    "EVERIFIN_LOGIN_LIFETIME_SECONDS": [59, 3601, 600.0, "600", True],
    "EVERIFIN_CONNECT_TIMEOUT_SECONDS": SECONDS,
    "EVERIFIN_DEADLINE_SECONDS": SECONDS,
    "EVERIFIN_REFRESH_MARGIN_SECONDS": SECONDS,
    "EVERIFIN_REVOCATIONS_PER_SECOND": [0, 1001, True, "20", 0.5, None],
    "EVERIFIN_DISCONNECTED_RETENTION_DAYS": [0, 3661, True, "30", 1.5, None],
    "EVERIFIN_RETENTION_DAYS": [0, -1, 367, True, "30", 1.5],
    "EVERIFIN_REFRESH_EVERY_VIEW": ["False", 0, 1, ""],
    "EVERIFIN_ACCESS_CHECK": ["check", "a b.c", "a..b", True, {}],
    "EVERIFIN_TRUSTED_PROXIES": [-1, 11, True, "1", 1.0],
    "EVERIFIN_MAX_TRIES": [0, 11, True, "3", 3.0],
    "EVERIFIN_PAYMENT_ABSENT_SECONDS": [0, 599, 10**9, True, "600", None],
    "EVERIFIN_POOL_SIZE": [0, 1001, True, "32", None],
    "EVERIFIN_CA_BUNDLE": ["/nowhere/ca.pem", "a\0b", 0],
    "EVERIFIN_PROXIES": [
        {"https": None},
        {"https": "proxy.test:3128"},
        {"https": "socks5://proxy.test"},
        {"https": "http://"},
        {"https": "http://proxy.test\r\nX: y"},
        {"https": "http://proxy.test:0"},
        {1: "http://proxy.test"},
    ],
}
WEIRD = [None, 5, -1.5, b"bytes", "ž\n", ["list"], {"a": 1}, {"set"}, len, object]
ALLOWS_NONE = {
    "EVERIFIN_ACCESS_CHECK",
    "EVERIFIN_ID_TOKEN_ALG",
    "EVERIFIN_REVOCATION_URL",
    "EVERIFIN_WEB_APP_URL",
    "EVERIFIN_ISSUER",
    "EVERIFIN_REDIRECT_URI",
    "EVERIFIN_POST_LOGOUT_REDIRECT_URI",
    "EVERIFIN_CA_BUNDLE",
}
TAKES_SECONDS = {
    "EVERIFIN_CONNECT_TIMEOUT_SECONDS",
    "EVERIFIN_DEADLINE_SECONDS",
    "EVERIFIN_REFRESH_MARGIN_SECONDS",
}
RIGHT_AFTER_ALL: dict[str, list] = {
    "EVERIFIN_ENCRYPTION_KEYS": [["list"]],
    "EVERIFIN_RETURN_HOSTS": [["list"]],
    "EVERIFIN_REVOCATIONS_PER_SECOND": [5],
    "EVERIFIN_RETENTION_DAYS": [5],
    "EVERIFIN_DISCONNECTED_RETENTION_DAYS": [5],
    "EVERIFIN_TRUSTED_PROXIES": [5],
    "EVERIFIN_MAX_TRIES": [5],
    "EVERIFIN_LOGIN_PARAMS": [{"a": 1}],
    "EVERIFIN_CONNECT_PARAMS": [{"a": 1}],
    "EVERIFIN_POOL_SIZE": [5],
    **{name: [None] for name in ALLOWS_NONE},
    **{name: [5] for name in TAKES_SECONDS},
}


def read(name: str) -> Any:
    return getattr(conf, name.removeprefix("EVERIFIN_").lower())


def cases(values: dict) -> list:
    return [(name, value) for name, some in values.items() for value in some]


@pytest.fixture
def bare(settings):
    """Settings of a site that sets none of ours."""
    for name in SETTINGS:
        if hasattr(settings, name):
            delattr(settings, name)
    return settings


def test_every_declared_setting_is_in_the_table():
    declared = {name for name in dir(Conf) if isinstance(getattr(Conf, name), Setting)}
    assert {name.removeprefix("EVERIFIN_").lower() for name in SETTINGS} == declared


def test_the_reference_is_made_from_the_table():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "Run: python -m tests.support.settings_reference"
    )


def test_every_setting_says_what_it_means():
    for setting in SETTINGS.values():
        assert setting.meaning.endswith(".")
        assert setting.hint.endswith(".")
        assert setting.bounds


def test_every_setting_is_looked_at_here():
    assert DEFAULTS.keys() | REQUIRED == SETTINGS.keys()
    assert WRONG.keys() == SETTINGS.keys()
    assert RIGHT.keys() | {"EVERIFIN_API_PATHS", "EVERIFIN_API_FIELDS"} == SETTINGS.keys()


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults(bare, name):
    assert read(name) == DEFAULTS[name]


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_three_settings_have_no_default(bare, name):
    with pytest.raises(ImproperlyConfigured, match=name):
        read(name)


@pytest.mark.parametrize(("name", "value"), cases(RIGHT))
def test_a_changed_setting_counts_at_once(name, value):
    before = read(name)
    with override_settings(**{name: value}):
        assert read(name) == value
    assert read(name) == before


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_wrong_values_are_refused_by_name(name, value):
    with override_settings(**{name: value}), pytest.raises(ImproperlyConfigured, match=name):
        read(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in sorted(SETTINGS)
        for value in WEIRD
        if value not in RIGHT_AFTER_ALL.get(name, [])
    ],
)
def test_values_of_a_wrong_kind_are_refused_by_name(name, value):
    with override_settings(**{name: value}), pytest.raises(ImproperlyConfigured, match=name):
        read(name)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("value", [{"a": b"canary"}, b"canary", {"canary"}], ids=repr)
def test_no_report_shows_the_refused_value(name, value):
    with override_settings(**{name: value}), pytest.raises(ImproperlyConfigured) as caught:
        read(name)
    assert "canary" not in report(caught.value)


def test_a_key_in_place_of_the_list_is_shown_nowhere(settings):
    settings.EVERIFIN_ENCRYPTION_KEYS = "2026-11:canary"
    with pytest.raises(ImproperlyConfigured, match="everifin_new_key") as caught:
        read("EVERIFIN_ENCRYPTION_KEYS")
    assert "canary" not in report(caught.value)


@pytest.mark.parametrize("name", sorted(ALLOWS_NONE))
def test_empty_texts_from_the_environment_count_as_unset(bare, settings, name):
    setattr(settings, name, "")
    assert read(name) == DEFAULTS[name]


def test_the_identity_provider_is_reached_by_plain_http_in_development_only(settings):
    settings.EVERIFIN_IDP_URL = "http://127.0.0.1:8001"
    for use in (lambda: conf.issuer, lambda: conf.endpoint("token")):
        with pytest.raises(ImproperlyConfigured, match=r"EVERIFIN_IDP_URL .* DEBUG = True"):
            use()
    settings.DEBUG = True
    assert conf.endpoint("token").startswith("http://127.0.0.1:8001/")


@pytest.mark.parametrize("name", ["EVERIFIN_IDP_URL", "EVERIFIN_API_URL"])
def test_base_addresses_lose_their_last_slash(settings, name):
    setattr(settings, name, "https://host.test/base//")
    assert read(name) == "https://host.test/base"


def test_the_issuer_is_taken_byte_by_byte(settings):
    settings.EVERIFIN_ISSUER = "https://idp.test/Realm/"
    assert conf.issuer == "https://idp.test/Realm/"


def test_the_issuer_follows_from_address_and_realm(settings):
    settings.EVERIFIN_IDP_URL = "https://idp.test/"
    settings.EVERIFIN_REALM = "site"
    assert conf.issuer == "https://idp.test/auth/realms/site"


def test_endpoints_follow_from_address_and_realm(settings):
    settings.EVERIFIN_IDP_URL = "https://idp.test/"
    settings.EVERIFIN_REALM = "site"
    expected = "https://idp.test/auth/realms/site/protocol/openid-connect/token"
    assert conf.endpoint("token") == expected


def test_api_paths_are_corrected_one_by_one(settings):
    settings.EVERIFIN_API_PATHS = {"account": "/v2/accounts/{account_id}"}
    assert conf.api_paths == {**DEFAULT_API_PATHS, "account": "/v2/accounts/{account_id}"}


def test_a_wrong_path_is_named_with_the_remedy(settings):
    settings.EVERIFIN_API_PATHS = {"account": "/v2/accounts"}
    with pytest.raises(ImproperlyConfigured, match=r"'account'.*/v1/bank-accounts/\{account_id\}"):
        read("EVERIFIN_API_PATHS")


def test_an_unknown_path_is_named_with_the_known_ones(settings):
    settings.EVERIFIN_API_PATHS = {"acount": "/v2/accounts"}
    with pytest.raises(ImproperlyConfigured, match=r"'acount'.*accounts, account, "):
        read("EVERIFIN_API_PATHS")


def test_api_fields_are_corrected_one_by_one(settings):
    settings.EVERIFIN_API_FIELDS = {"bank": {"bic": "swift"}}
    bank = {"name": "name", "bic": "swift", "country_code": "countryCode"}
    assert conf.api_fields == {**DEFAULT_API_FIELDS, "bank": bank}


def test_an_unknown_field_is_named_with_the_known_ones(settings):
    settings.EVERIFIN_API_FIELDS = {"bank": {"swift": "bic"}}
    with pytest.raises(ImproperlyConfigured, match=r"of 'bank': 'swift'.*name, bic, country_code"):
        read("EVERIFIN_API_FIELDS")


def test_an_unknown_object_is_named_with_the_known_ones(settings):
    settings.EVERIFIN_API_FIELDS = {"row": {"bic": "swift"}}
    with pytest.raises(ImproperlyConfigured, match=r"'row'.*account, balance, transaction"):
        read("EVERIFIN_API_FIELDS")


def test_a_name_that_may_be_a_secret_is_not_shown(settings):
    for name in ("EVERIFIN_API_PATHS", "EVERIFIN_API_FIELDS"):
        setattr(settings, name, {"c4n4ry-canary": {} if "FIELDS" in name else "/"})
        with pytest.raises(ImproperlyConfigured, match=name) as caught:
            read(name)
        assert "canary" not in report(caught.value)


def test_a_value_whose_methods_raise_is_refused(settings):
    class Odd(dict):
        def __len__(self):
            raise ArithmeticError("canary")

    for name in ("EVERIFIN_API_PATHS", "EVERIFIN_API_FIELDS", "EVERIFIN_PROXIES"):
        setattr(settings, name, Odd())
        with pytest.raises(ImproperlyConfigured, match=name) as caught:
            read(name)
        assert "canary" not in report(caught.value)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_no_string_is_taken_without_a_bound(name):
    with override_settings(**{name: "a" * 5000}), pytest.raises(ImproperlyConfigured, match=name):
        read(name)


def test_a_bundle_may_be_a_path(settings):
    settings.EVERIFIN_CA_BUNDLE = Path(__file__)
    assert conf.ca_bundle == __file__


@pytest.mark.parametrize("url", ["https://a.test", "http://localhost:80/x", "http://[::1]/"])
def test_https_and_this_machine_are_secure(url):
    assert is_secure(url)


@pytest.mark.parametrize("url", ["http://a.test", "file:///etc/passwd", "", "//a.test", "http://["])
def test_all_else_is_not_secure(url):
    assert not is_secure(url)

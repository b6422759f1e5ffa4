"""The example's settings: what each environment variable becomes, and what is refused."""

import base64
import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from everifin_django.conf import SETTINGS
from example_project import environment
from tests.example_project import ROOT, clean_environment

KEY = "a:" + base64.b64encode(bytes(32)).decode()
DEPLOYED = {
    "SECRET_KEY": "b6GJ0fQ2Yx-only_for_this-test-7Hn3vKzLr9TtWqPd5sMc8e",
    "ALLOWED_HOSTS": "site.example",
    "EVERIFIN_IDP_URL": "https://app.everifin.com",
    "EVERIFIN_API_URL": "https://api.everifin.com",
    "EVERIFIN_CLIENT_ID": "site",
    "EVERIFIN_CLIENT_SECRET": "secret",
    "EVERIFIN_ENCRYPTION_KEYS": KEY,
    "EVERIFIN_REDIRECT_URI": "https://site.example/everifin/callback/",
}
BESIDE_THE_SANDBOX = {
    **DEPLOYED,
    "DEBUG": "1",
    "ALLOWED_HOSTS": "127.0.0.1",
    "EVERIFIN_IDP_URL": "http://127.0.0.1:8001",
    "EVERIFIN_API_URL": "http://127.0.0.1:8001",
    "EVERIFIN_REDIRECT_URI": "",
}


@pytest.fixture
def settings_with(monkeypatch, tmp_path):
    """Give a function that returns the settings under an environment, and under no other."""
    made = environment.development_secrets
    monkeypatch.setattr(environment, "development_secrets", lambda path: made(tmp_path / path.name))

    def settings_with(program="gunicorn", **variables):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [program])
            patch.setattr(os, "environ", clean_environment() | variables)
            return runpy.run_module("example_project.settings")

    return settings_with


def manage(*arguments, **variables):
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *arguments],
        env=clean_environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("EVERIFIN_REALM", "sandbox", "sandbox"),
        ("EVERIFIN_ISSUER", "https://idp.example/issuer", "https://idp.example/issuer"),
        ("EVERIFIN_SCOPES", "openid ais pis", "openid ais pis"),
        ("EVERIFIN_USE_PKCE", "0", False),
        ("EVERIFIN_CREATE_USERS", "off", False),
        ("EVERIFIN_REFRESH_EVERY_VIEW", "True", True),
        ("EVERIFIN_CONNECT_TIMEOUT_SECONDS", "2.5", 2.5),
        ("EVERIFIN_DEADLINE_SECONDS", "8", 8),
        ("EVERIFIN_REFRESH_MARGIN_SECONDS", "30", 30),
        ("EVERIFIN_TRUSTED_PROXIES", "2", 2),
        ("EVERIFIN_MAX_TRIES", "1", 1),
        ("EVERIFIN_POOL_SIZE", "8", 8),
        ("EVERIFIN_CLIENT_AUTH", "basic", "basic"),
        ("EVERIFIN_CA_BUNDLE", "/etc/ssl/own.pem", "/etc/ssl/own.pem"),
        ("EVERIFIN_ENCRYPTION_KEYS", "new:aaaa, old:bbbb", ["new:aaaa", "old:bbbb"]),
        ("EVERIFIN_API_PATHS", '{"accounts": "/v2/accounts"}', {"accounts": "/v2/accounts"}),
        (
            "EVERIFIN_API_FIELDS",
            '{"bank": {"bic": "swift"}}',
            {"bank": {"bic": "swift"}},
        ),
        (
            "CSRF_TRUSTED_ORIGINS",
            "https://a.example,https://b.example",
            ["https://a.example", "https://b.example"],
        ),
    ],
)
def test_a_variable_becomes_the_setting_of_its_name(settings_with, name, text, value):
    found = settings_with(**DEPLOYED | {name: text})[name]
    assert (found, type(found)) == (value, type(value)) or isinstance(found, float)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EVERIFIN_USE_PKCE", "perhaps"),
        ("EVERIFIN_CONNECT_TIMEOUT_SECONDS", "soon"),
        ("EVERIFIN_TRUSTED_PROXIES", "1.5"),
        ("EVERIFIN_API_PATHS", "[]"),
        ("EVERIFIN_API_PATHS", "{"),
        ("EVERIFIN_API_FIELDS", '{"bank": "bic"}'),
        ("DEBUG", "maybe"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(settings_with, name, text):
    with pytest.raises(ImproperlyConfigured, match=name):
        settings_with(**DEPLOYED | {name: text})


def test_every_setting_of_the_app_has_a_variable():
    assert {setting.kind for setting in SETTINGS.values()} == environment.CONVERTERS.keys()


def test_what_is_not_named_keeps_the_default_of_the_app(settings_with):
    found = settings_with(**DEPLOYED | {"EVERIFIN_REALM": ""})
    assert {name for name in found if name.startswith("EVERIFIN_")} == {
        "EVERIFIN_SCOPES",  # the site pays, which the app does not ask for by itself
        *(name for name in DEPLOYED if name.startswith("EVERIFIN_")),
    }


def test_a_deployment_without_a_secret_key_does_not_start(settings_with):
    with pytest.raises(ImproperlyConfigured, match="Set the environment variable SECRET_KEY"):
        settings_with()


def test_manage_without_any_variable_is_for_development(settings_with):
    found = settings_with(program="manage.py")
    assert found["DEBUG"] is True
    assert found["EVERIFIN_IDP_URL"] == found["EVERIFIN_API_URL"] == "http://127.0.0.1:8001"
    assert found["EVERIFIN_CLIENT_ID"] == "everifin-sandbox"


@pytest.mark.parametrize("name", ["SECRET_KEY", "ALLOWED_HOSTS"])
def test_manage_in_a_deployment_is_not_for_development(settings_with, name):
    try:
        found = settings_with(program="manage.py", **{name: DEPLOYED[name]})
    except ImproperlyConfigured:
        return
    assert found["DEBUG"] is False


def test_the_sandbox_is_taken_whole_or_not_at_all(settings_with):
    """A client id of Everifin's own must not meet the secret of the sandbox, nor its address."""
    found = settings_with(DEBUG="1", EVERIFIN_CLIENT_ID="site")
    assert "EVERIFIN_IDP_URL" not in found
    assert "EVERIFIN_CLIENT_SECRET" not in found


def test_secrets_for_development_are_made_once(settings_with, tmp_path):
    first, second = settings_with(DEBUG="1"), settings_with(DEBUG="1")
    for name in ("SECRET_KEY", "EVERIFIN_ENCRYPTION_KEYS"):
        assert first[name] == second[name]
    made = tmp_path / "development_secrets.json"
    assert made.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [made]


def test_processes_that_start_together_agree_on_their_secrets(tmp_path):
    path = tmp_path / "secrets.json"
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(environment.development_secrets, [path] * 8))
    assert all(one == json.loads(path.read_text()) for one in found)


def test_a_deployment_makes_no_secrets(settings_with, tmp_path):
    settings_with(**DEPLOYED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "is_https"),
    [
        (DEPLOYED, True),
        (DEPLOYED | {"HTTPS": "0"}, False),
        (BESIDE_THE_SANDBOX, False),
        (BESIDE_THE_SANDBOX | {"HTTPS": "1"}, True),
        ({"DEBUG": "1"}, False),
    ],
)
def test_https_is_left_out_where_there_is_none(settings_with, variables, is_https):
    found = settings_with(**variables)
    for name in ("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_SSL_REDIRECT"):
        assert found[name] is is_https
    assert bool(found["SECURE_HSTS_SECONDS"]) is is_https


def test_the_forwarded_scheme_is_believed_behind_proxies_of_ones_own_only(settings_with):
    assert "SECURE_PROXY_SSL_HEADER" not in settings_with(**DEPLOYED)
    assert "SECURE_PROXY_SSL_HEADER" in settings_with(**DEPLOYED, EVERIFIN_TRUSTED_PROXIES="1")


@pytest.mark.parametrize(
    ("url", "engine"),
    [
        ("", "django.db.backends.sqlite3"),
        ("postgres://site@db.example/site", "django.db.backends.postgresql"),
        ("mysql://site@db.example/site", "django.db.backends.mysql"),
    ],
)
def test_the_database_is_the_one_named(settings_with, url, engine):
    chosen = settings_with(**DEPLOYED, DATABASE_URL=url)["DATABASES"]["default"]
    assert chosen["ENGINE"] == engine
    assert chosen["ATOMIC_REQUESTS"] is True


def test_the_checks_of_a_deployment_pass():
    done = manage("check", "--deploy", "--fail-level", "WARNING", **DEPLOYED)
    assert done.returncode == 0, done.stderr


def test_beside_the_sandbox_only_the_checks_of_a_deployment_complain():
    assert manage("check", "--fail-level", "WARNING", **BESIDE_THE_SANDBOX).returncode == 0
    done = manage("check", "--deploy", **BESIDE_THE_SANDBOX)
    assert done.returncode != 0
    assert "everifin_django.E045" in done.stderr


@pytest.mark.parametrize("module", ["wsgi", "asgi"])
def test_a_server_is_told_what_to_set(module):
    done = subprocess.run(
        [sys.executable, "-c", f"import example_project.{module}"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "set DEBUG=1 instead" in done.stderr


def test_only_the_front_door_is_used():
    """What README does not name may change: the example does without."""
    documented = {
        "everifin_django.bank.accounts",
        "everifin_django.conf",
        "everifin_django.decorators",
        "everifin_django.exceptions",
        "everifin_django.request",
        "everifin_django.signals",
        "everifin_django.bank.payments",
        "everifin_django.testing",
        "everifin_django.testing.sandbox",
        "everifin_django.testing.sandbox.server",
        "everifin_django.connections.grants",
    }
    lines = [
        line.split()
        for path in Path(ROOT / "example_project").rglob("*.py")
        for line in path.read_text().splitlines()
    ]
    imported = {words[1] for words in lines if words[:1] in (["from"], ["import"]) and words[1:]}
    assert {name for name in imported if name.startswith("everifin_django")} <= documented

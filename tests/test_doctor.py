"""``everifin_doctor`` tells a site that it is right, and names each fault with what to write."""

import json
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
import requests
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from everifin_django.conf import conf
from everifin_django.encryption import new_key
from tests.test_checks import DEPLOYED

SECRET = "a secret from Everifin"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def deployed(settings, everifin):
    """A site that is right in everything."""
    for name, value in {**DEPLOYED, "EVERIFIN_REQUIRE_ISS": True}.items():
        setattr(settings, name, value)
    settings.EVERIFIN_ENCRYPTION_KEYS = [new_key(datetime.now(UTC).date())]
    return settings


def examine(*options: str) -> tuple[str, int]:
    """What the command prints, and its exit code."""
    written = StringIO()
    try:
        call_command("everifin_doctor", *options, stdout=written)
    except SystemExit as end:
        return written.getvalue(), int(str(end.code))
    return written.getvalue(), 0


def findings(level: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(examine("--json")[0])
    return [finding for finding in found if finding["level"] == level]


@pytest.fixture
def document(everifin):
    """Give a function that changes the discovery document."""
    original = requests.get(f"{conf.issuer}/.well-known/openid-configuration", timeout=5).json()

    def change(**changes: Any) -> None:
        changed = {name: value for name, value in {**original, **changes}.items() if value != ""}
        everifin.faults.add("discovery", status=200, body=changed)

    return change


def test_a_right_site_is_told_so():
    written, code = examine()
    assert code == 0, written
    assert {line.split()[0] for line in written.splitlines()} == {"ok"}, written


def test_nothing_secret_is_shown_or_sent(deployed, everifin):
    written = examine()[0] + examine("--json")[0]
    key = deployed.EVERIFIN_ENCRYPTION_KEYS[0].partition(":")[2]
    assert SECRET not in written
    assert key not in written
    for endpoint in ("discovery", "certs", "api.accounts"):
        assert not {"Authorization", "authorization"} & set(everifin.last_request[endpoint].headers)


@pytest.mark.parametrize(
    ("name", "value", "about"),
    [
        ("EVERIFIN_CLIENT_ID", "", "settings"),
        ("EVERIFIN_REALM", "other", "identity provider"),
        (
            "EVERIFIN_ISSUER",
            "https://idp.everifin.test/auth/realms/everifin_app/",
            "identity provider",
        ),
        ("EVERIFIN_ENCRYPTION_KEYS", ["a:" + "QUFB" * 10 + "QUE="], "keys"),
        ("EVERIFIN_ENCRYPTION_KEYS", [], "keys"),
        ("EVERIFIN_REDIRECT_URI", "https://site.test/elsewhere/", "redirect URI"),
        ("ROOT_URLCONF", "tests.testing.nowhere", "redirect URI"),
    ],
)
def test_a_wrong_setting_is_an_error_with_what_to_write(deployed, name, value, about):
    if name == "ROOT_URLCONF":
        value = "django.contrib.auth.urls"
    setattr(deployed, name, value)
    assert examine()[1] == 1
    assert about in {finding["about"] for finding in findings("error") if finding["hint"]}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"issuer": "https://idp.everifin.test/auth/realms/Everifin_app"}, "EVERIFIN_ISSUER"),
        ({"token_endpoint": "https://idp.everifin.test/token"}, "token_endpoint"),
        ({"code_challenge_methods_supported": ["plain"]}, "S256"),
        ({"id_token_signing_alg_values_supported": ["HS256"]}, "ID tokens"),
        ({"id_token_signing_alg_values_supported": []}, "ID tokens"),
        ({"token_endpoint_auth_methods_supported": ["private_key_jwt"]}, "client_secret_post"),
        ({"authorization_response_iss_parameter_supported": False}, "EVERIFIN_REQUIRE_ISS"),
        ({"require_pushed_authorization_requests": True}, "Pushed"),
    ],
)
def test_a_discovery_document_that_does_not_fit_is_an_error(document, changes, word):
    document(**changes)
    (finding,) = findings("error")
    assert word in finding["message"]
    assert finding["hint"]


def test_what_could_be_better_is_a_warning(deployed, document):
    document(scopes_supported=["openid"], backchannel_logout_supported=False)
    deployed.EVERIFIN_BACKCHANNEL_LOGOUT = True
    deployed.EVERIFIN_REQUIRE_ISS = False
    deployed.USE_X_FORWARDED_HOST = True
    written, code = examine()
    assert code == 0
    assert len(findings("warning")) == 4, written


@pytest.mark.parametrize("endpoint", ["discovery", "certs", "api.accounts"])
@pytest.mark.parametrize("fault", [{"lost": "before"}, {"status": 404, "html": True}])
def test_what_cannot_be_had_is_said(everifin, endpoint, fault):
    everifin.faults.add(endpoint, **fault)
    assert findings("error") or findings("warning")


def test_keys_that_verify_nothing_are_an_error(everifin):
    everifin.faults.add("certs", status=200, body={"keys": [{"kty": "oct", "k": "AAAA"}, 5]})
    (finding,) = findings("error")
    assert finding["about"] == "signing keys"


def test_a_clock_that_is_off_is_an_error(everifin):
    everifin.clock_skew_seconds = 600
    (finding,) = findings("error")
    assert "clocks differ by" in finding["message"]


def test_a_missing_migration_is_an_error():
    MigrationRecorder(connection).migration_qs.filter(app="everifin_django").delete()
    (finding,) = findings("error")
    assert (finding["about"], finding["hint"]) == ("database", "manage.py migrate")


class TestContentSecurityPolicy:
    """Of Django's own settings and of django-csp's."""

    @pytest.fixture
    def policy(self, deployed):
        """Give a function that puts a policy in force and returns what is found about it."""

        def put(**directives: Any) -> list[tuple[str, str]]:
            named = {name.replace("_", "-"): value for name, value in directives.items()}
            deployed.SECURE_CSP = named
            return self.about_it()

        deployed.MIDDLEWARE = [
            *deployed.MIDDLEWARE,
            "django.middleware.csp.ContentSecurityPolicyMiddleware",
        ]
        return put

    @staticmethod
    def about_it() -> list[tuple[str, str]]:
        return [
            (finding["level"], finding["hint"])
            for finding in json.loads(examine("--json")[0])
            if finding["about"] == "Content Security Policy"
        ]

    @pytest.mark.parametrize(
        "directives",
        [
            {},
            {"default_src": ["'self'"]},
            {"form_action": ["'self'"], "style_src": ["'self'"]},
            {"form_action": ["https://site.test"], "default_src": ["*"]},
            {"form_action": ["*.test"], "style_src": "'self' https://cdn.example"},
            {"sandbox": ["allow-forms", "allow-same-origin", "allow-scripts"]},
        ],
    )
    def test_one_that_allows_what_the_pages_need_is_right(self, policy, directives):
        assert policy(**directives) == [("ok", "")]

    @pytest.mark.parametrize(
        ("directives", "level", "hint"),
        [
            ({"form_action": ["'none'"]}, "error", "Add 'self' to form-action."),
            ({"form_action": []}, "error", "Add 'self' to form-action."),
            ({"form_action": ["https://other.test"]}, "error", "Add 'self' to form-action."),
            (
                {"sandbox": ["allow-scripts"]},
                "error",
                "Add allow-forms and allow-same-origin to sandbox.",
            ),
            ({"default_src": ["'none'"]}, "warning", "Add 'self' to style-src."),
            (
                {"default_src": ["'self'"], "style_src": ["'nonce-1'"]},
                "warning",
                "Add 'self' to style-src.",
            ),
        ],
    )
    def test_one_that_does_not_is_told_what_to_add(self, policy, directives, level, hint):
        assert policy(**directives) == [(level, hint)]

    def test_style_sheets_may_be_on_another_host(self, policy, deployed):
        deployed.STATIC_URL = "https://cdn.example/static/"
        hint = "Add https://cdn.example to style-src."
        assert policy(default_src=["'self'"]) == [("warning", hint)]
        assert policy(default_src=["'self'", "https://*.example"]) == [("ok", "")]

    def test_payments_may_need_a_picture(self, policy, deployed):
        deployed.EVERIFIN_SCOPES = "openid ais pis"
        assert policy(default_src=["'self'"]) == [("warning", "Add data: to img-src.")]
        assert policy(default_src=["'self'"], img_src=["'self'", "data:"]) == [("ok", "")]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("CONTENT_SECURITY_POLICY", {"DIRECTIVES": {"form-action": ["'none'"]}}),
            ("CSP_FORM_ACTION", ("'none'",)),
        ],
    )
    def test_django_csp_is_understood(self, deployed, name, value):
        deployed.MIDDLEWARE = [*deployed.MIDDLEWARE, "csp.middleware.CSPMiddleware"]
        setattr(deployed, name, value)
        assert self.about_it() == [("error", "Add 'self' to form-action.")]

    def test_a_policy_without_its_middleware_is_not_in_force(self, deployed):
        deployed.SECURE_CSP = {"form-action": ["'none'"]}
        assert self.about_it() == [("ok", "")]


@pytest.mark.parametrize(
    ("settings_given", "level", "about"),
    [
        ({"SESSION_COOKIE_PATH": "/shop/"}, "error", "cookies"),
        ({"SESSION_COOKIE_DOMAIN": "other.test"}, "error", "cookies"),
        ({"EVERIFIN_TRUSTED_PROXIES": 1, "SECURE_SSL_REDIRECT": True}, "warning", "proxy"),
    ],
)
def test_what_keeps_the_callback_from_working_is_found(deployed, settings_given, level, about):
    for name, value in settings_given.items():
        setattr(deployed, name, value)
    (finding,) = findings(level)
    assert finding["about"] == about
    assert finding["hint"]


@pytest.mark.parametrize("domain", [".site.test", "site.test", None])
def test_cookies_of_this_site_are_right(deployed, domain):
    deployed.SESSION_COOKIE_DOMAIN = domain
    assert findings("error") == []


def test_an_older_weak_key_is_a_warning(deployed):
    weak = "old:" + "QUFB" * 10 + "QUE="
    deployed.EVERIFIN_ENCRYPTION_KEYS = [*deployed.EVERIFIN_ENCRYPTION_KEYS, weak]
    (finding,) = findings("warning")
    assert "'old' is not random" in finding["message"]

"""everifin_import: from files, fields and connections to login links, once."""

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from everifin_django.models import LoginLink
from everifin_django.testing.factories import BankTokenFactory, LoginLinkFactory, UserFactory

ISSUER = "https://idp.everifin.test/auth/realms/everifin_app"

pytestmark = pytest.mark.django_db


def run(source: str, **options: Any) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("everifin_import", source, stdout=out, stderr=err, **{"issuer": ISSUER, **options})
    return out.getvalue(), err.getvalue()


@pytest.fixture
def file(tmp_path):
    """Give a function that writes a file of users and subjects."""

    def write(*lines: str, header: str = "user,subject"):
        path = tmp_path / "accounts.csv"
        path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
        return path

    return write


@pytest.fixture
def ann():
    return UserFactory(username="ann")


class TestFile:
    def test_a_dry_run_comes_first_and_twice_is_once(self, file, ann):
        path = file("ann,abc")
        out, _ = run("csv", file=path)
        assert "1 to be created, 0 known, 0 refused." in out
        assert not LoginLink.objects.exists()
        assert run("csv", file=path, apply=True)[0] == "1 created, 0 known, 0 refused.\n"
        made = LoginLink.objects.get()
        assert (made.user, made.subject, made.made_by) == (ann, "abc", "import")
        assert run("csv", file=path, apply=True)[0] == "0 created, 1 known, 0 refused.\n"

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("nobody,abc", "no such user"),
            ("ann,", "A subject has"),
            ("ann,ž", "A subject has"),
            ("ann,taken", "another user"),
            ("ann,twice", "another user"),
        ],
    )
    def test_conflicts_are_listed_and_the_rest_goes_on(self, file, ann, line, reason):
        LoginLinkFactory(subject="taken")
        UserFactory(username="bob")
        out, err = run("csv", file=file("bob,twice", line), apply=True)
        assert "1 created" in out
        assert "1 refused" in out
        assert err.startswith("line 3: refused.")
        assert reason in err

    def test_rows_of_another_issuer_are_refused(self, file, ann):
        path = file("ann,abc,https://other.example", header="user,subject,issuer")
        _, err = run("csv", file=path, apply=True)
        assert "another issuer" in err
        assert not LoginLink.objects.exists()

    @pytest.mark.parametrize("flag", ["is_staff", "is_superuser"])
    def test_staff_only_when_told_so(self, file, flag):
        UserFactory(username="boss", **{flag: True})
        path = file("boss,abc")
        assert "--staff" in run("csv", file=path, apply=True)[1]
        assert not LoginLink.objects.exists()
        run("csv", file=path, apply=True, staff=True)
        assert LoginLink.objects.exists()

    def test_a_file_of_another_shape_or_none_is_an_error(self, file, tmp_path):
        for path in (file("x", header="name"), tmp_path / "missing.csv", None):
            with pytest.raises(CommandError):
                run("csv", file=path)

    @pytest.mark.parametrize(
        "content", [b"user,subject\n\xe1nn,abc\n", b"user,subject\nann," + b"x" * 200_000 + b"\n"]
    )
    def test_what_is_no_text_is_an_error(self, tmp_path, content):
        path = tmp_path / "accounts.csv"
        path.write_bytes(content)
        with pytest.raises(CommandError, match="cannot be read"):
            run("csv", file=path)

    def test_a_short_and_a_long_line_are_told(self, file, ann):
        out, err = run("csv", file=file("ann", "ann,abc,more"), apply=True)
        assert "1 created, 0 known, 1 refused." in out
        assert err.startswith("line 2: refused. A subject has")


def test_the_issuer_has_to_be_this_sites(file):
    with pytest.raises(CommandError, match="issuer"):
        run("csv", file=file("ann,abc"), issuer="https://other.example")


def test_without_the_login_backend_there_is_nothing_to_link(settings):
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
    with pytest.raises(CommandError, match="EverifinBackend"):
        run("connections")


def test_users_who_connected_before_the_login_was_added():
    row = BankTokenFactory(subject="abc")
    BankTokenFactory(subject="")
    assert run("connections", apply=True)[0] == "1 created, 0 known, 0 refused.\n"
    assert LoginLink.objects.get().user == row.user


def test_a_field_of_the_user_model_that_the_site_names():
    user = UserFactory(username="ann", last_name="abc")
    UserFactory(username="bob")
    run("user-field", field="last_name", apply=True)
    assert (LoginLink.objects.get().user, LoginLink.objects.get().subject) == (user, "abc")
    for name, reason in (("nowhere", "no such field"), ("groups", "not a relation")):
        with pytest.raises(CommandError, match=reason):
            run("user-field", field=name)


def test_a_field_that_is_no_string():
    users = [UserFactory() for _ in range(2)]
    assert run("user-field", field="id", apply=True)[0] == "2 created, 0 known, 0 refused.\n"
    assert {one.subject for one in LoginLink.objects.all()} == {str(one.pk) for one in users}


def test_users_of_mozilla_django_oidc_who_have_their_subject_in_a_field(settings):
    """It keeps no subject itself: its user is found by the email address."""
    for name in ("TOKEN", "USER"):
        setattr(settings, f"OIDC_OP_{name}_ENDPOINT", f"{ISSUER}/{name.lower()}")
    settings.OIDC_RP_CLIENT_ID = settings.OIDC_RP_CLIENT_SECRET = "theirs"

    class TheirBackend(OIDCAuthenticationBackend):
        def create_user(self, claims):
            user = super().create_user(claims)
            user.last_name = claims["sub"]
            user.save()
            return user

    user = TheirBackend().create_user({"sub": "abc", "email": "ann@site.example"})
    assert run("user-field", field="last_name", apply=True)[0].startswith("1 created")
    link = LoginLink.objects.get()
    assert (link.user, link.subject) == (user, "abc")


@pytest.mark.parametrize("source", ["allauth", "social-auth"])
def test_another_app_has_to_be_installed_and_its_provider_named(source):
    with pytest.raises(CommandError, match="INSTALLED_APPS"):
        run(source, provider="everifin")

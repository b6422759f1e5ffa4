"""
Write to a user whenever an Everifin account is added to their logins, or removed from them.
"""

from typing import Any

from django.utils.translation import gettext as _

from everifin_django.signals import login_link_created, login_link_removed


def connect() -> None:
    login_link_created.connect(tell_of_new_login, dispatch_uid="example_project.created")
    login_link_removed.connect(tell_of_removed_login, dispatch_uid="example_project.removed")


def tell_of_new_login(user: Any, **kwargs: Any) -> None:
    if user.email:
        user.email_user(
            _("A new way to log in"),
            _("You can now log in with your Everifin account. If this was not you, tell us."),
        )


def tell_of_removed_login(user: Any, **kwargs: Any) -> None:
    if user.email:
        user.email_user(
            _("A way to log in was removed"),
            _("Your Everifin account no longer logs you in. If this was not you, tell us."),
        )

"""
mozilla-django-oidc's login, made stricter: tokens are verified in full, users are found by issuer
and subject, and grants are stored.

A site that wants to shape users subclasses ``EverifinBackend`` and names its class in
AUTHENTICATION_BACKENDS; the hooks are the ones mozilla-django-oidc documents:
``create_user(claims)``, ``update_user(user, claims)``, ``get_username(claims)`` and
``verify_claims(claims)``, which refuses a login by returning False, or by raising
LoginRefusedError with a sentence for the visitor.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.core.exceptions import (
    ImproperlyConfigured,
    PermissionDenied,
    SuspiciousOperation,
    ValidationError,
)
from django.db import IntegrityError, router, transaction
from django.http import HttpRequest
from django.utils.module_loading import import_string
from django.views.decorators.debug import sensitive_variables

from everifin_django.conf import conf, proof_is_needed
from everifin_django.connections import grants, links, revocation
from everifin_django.encryption import active_key
from everifin_django.exceptions import APIError, IdentityTakenError, LoginError, LoginRefusedError
from everifin_django.models import BankToken, LoginLink, primary
from everifin_django.oauth import endpoints, id_token
from everifin_django.oauth.endpoints import TokenSet
from everifin_django.oauth.id_token import Claims, Identity
from everifin_django.oauth.oidc import ClaimsBackend
from everifin_django.secret import Secret

__all__ = ["EverifinBackend"]

logger = logging.getLogger(__name__)


class HiddenClaims(dict[str, Any]):
    """What an ID token says about a person; a report that captures local variables shows none."""

    def __repr__(self) -> str:
        return f"<{len(self)} claims>"


@dataclass(frozen=True, slots=True)
class Grant:
    """
    What a login code was exchanged for. *claims* are those of the verified ID token, None if there
    was none; *login_session_id* names the record of the login, once it is stored.
    """

    tokens: TokenSet
    identity: Identity | None = field(repr=False)
    claims: Claims | None = field(repr=False)
    login_session_id: uuid.UUID = field(default_factory=uuid.uuid4)


@dataclass(slots=True, eq=False)
class LoginAttempt:
    """
    The credential that ``authenticate`` takes. Other backends see an object without content.

    *error* says why EverifinBackend refused it: Django keeps no reason.
    """

    grant: Grant = field(repr=False)
    error: LoginError | IdentityTakenError | None = None


class EverifinBackend(ClaimsBackend, ModelBackend):
    """Logs in the user to whom an Everifin identity belongs."""

    path = "everifin_django.backends.EverifinBackend"
    """The class's name in AUTHENTICATION_BACKENDS, as the sessions it begins refer to it."""

    link: LoginLink | None = None
    """The login link that the user was found by; of this one login, as Django makes backends."""

    logs_in_with_everifin = True
    """What tells ``connections.links`` that this site has a login to keep links for."""

    def exchange_code(
        self,
        code: Secret,
        *,
        redirect_uri: str,
        code_verifier: Secret | None,
        nonce: str,
        started_at: datetime,
        asked: Mapping[str, str] | None = None,
    ) -> Grant:
        """
        Return the grant for an authorization code: its tokens, and the identity they are for.
        *asked* says how the user was to sign in at Everifin.

        One request while the signing keys are cached; without an ID token up to one more. A grant
        whose ID token is not valid is ended at Everifin.

        Errors: LoginError, RefusedError, UnavailableError.
        """
        # The keys prove themselves before the code is spent: a grant that cannot be sealed could
        # not even be ended.
        active_key()
        granted = endpoints.exchange_code(
            code, redirect_uri=redirect_uri, code_verifier=code_verifier
        )
        try:
            if granted.id is None:
                _refuse_without_proof(asked or {})
                return Grant(granted, _identity_without_id_token(granted), None)
            claims = id_token.verify_id_token(
                granted.id,
                nonce=nonce,
                access_token=granted.access,
                started_at=started_at,
                asked=asked,
            )
        except BaseException:
            revocation.revoke_unused(granted, "login_failed")
            raise
        claims = HiddenClaims(claims)
        sid = granted.sid or id_token.sid_of(claims)
        return Grant(replace(granted, sid=sid), id_token.identity_of(claims), claims)

    @sensitive_variables()
    def authenticate(  # type: ignore[override]  # no credentials but ours, as said below
        self, request: HttpRequest | None, *, everifin_tokens: LoginAttempt
    ) -> Any:
        """
        Return the user whom the grant's identity belongs to, with the grant stored.

        Django calls this for no credentials but ours, so another login's code is never taken for
        Everifin's. Django masks credentials of this name in ``user_login_failed``.
        Errors: PermissionDenied, with the reason in the attempt: no other backend is asked.
        """
        self.request = request
        try:
            return self._authenticate(everifin_tokens.grant)
        except (LoginError, IdentityTakenError) as error:
            everifin_tokens.error = error.with_traceback(None)
        raise PermissionDenied

    def _authenticate(self, grant: Grant) -> Any:
        if grant.claims is None:
            logger.error(
                "Everifin gave no ID token, and without one nobody can be logged in. "
                "Does EVERIFIN_SCOPES ask for openid?"
            )
            raise LoginError("no_id_token")
        log_in = partial(self._log_in, grant.claims, grant)
        try:
            return grants.repeat_until_stored(log_in)
        except IdentityTakenError:
            # The same person's first login, twice at once: the other one has just made the user.
            return grants.repeat_until_stored(log_in)

    def _log_in(self, claims: Claims, grant: Grant) -> Any:
        try:
            user = self.get_or_create_user(None, None, claims)
        except LoginError:
            raise
        except SuspiciousOperation:
            # mozilla-django-oidc's way to say that verify_claims returned False.
            logger.warning("A login with Everifin was refused by this site's verify_claims.")
            raise LoginRefusedError from None
        if user is None:
            raise LoginError("no_user")
        if not self.user_can_authenticate(user):
            raise LoginError("user_inactive")
        identity, known = id_token.identity_of(claims), None
        if self.link is None:
            links.create(user, identity, LoginLink.MadeBy.LOGIN)
        else:
            known = links.connection_read_with(self.link)
        grants.save_login_grant(user, grant.tokens, identity, grant.login_session_id, known=known)
        return user

    def filter_users_by_claims(self, claims: Claims) -> Any:
        """
        Find the user by issuer and subject. An email address is no proof of being somebody here.
        One query; one more if nobody is found.

        Errors: LoginError for an account that is connected here but gives no login.
        """
        identity = id_token.identity_of(claims)
        self.link = links.find_with_connection(identity)
        if self.link is None:
            if primary(BankToken).filter(identity_digest=identity.digest).exists():
                raise LoginError("login_not_allowed")
            return []
        if not links.may_log_in(self.link):
            raise LoginError("login_not_allowed")
        return [self.link.user]

    @sensitive_variables()
    def create_user(self, claims: Claims) -> Any:
        """
        Create a user without a password; the email address only if Everifin has verified it.

        None if the user model wants an address that no other user has, and this one is somebody's
        or not verified: whoever has it logs in as before, then connects.
        Errors: ImproperlyConfigured if the model's manager needs more than name and address.
        """
        email, field = _verified_email(claims), _email_field(self.UserModel)
        if len(email) > (getattr(field, "max_length", None) or len(email)):
            email = ""
        if field is not None and field.unique and not self._is_free(field, email):
            return None
        is_apart = field is not None and field.name != self.UserModel.USERNAME_FIELD
        more = {field.name: email} if is_apart else {}
        alias = router.db_for_write(self.UserModel)
        try:
            with transaction.atomic(using=alias):
                users = self.UserModel.objects.db_manager(alias)
                return users.create_user(self.get_username(claims), **more)
        except (AttributeError, TypeError, ValueError, ValidationError) as error:
            raise self._cannot_create(error) from error
        except IntegrityError as error:
            failure = self._cannot_create(error)
        # Not from the database's own error, which may show the row.
        if field is not None and field.unique and not self._is_free(field, email):
            raise IdentityTakenError
        raise failure

    def get_username(self, claims: Claims) -> str:
        """
        A name nobody has: usernames are often shown, so nothing of the person goes into it. The
        verified email address where the user model names users by that.
        """
        field = _email_field(self.UserModel)
        if field is not None and field.name == self.UserModel.USERNAME_FIELD:
            return _verified_email(claims)
        return f"everifin-{secrets.token_hex(8)}"

    def _is_free(self, field: Any, email: str) -> bool:
        taken = primary(self.UserModel).filter(**{f"{field.name}__iexact": email})
        return bool(email) and not taken.exists()

    def _cannot_create(self, error: Exception) -> ImproperlyConfigured:
        return ImproperlyConfigured(
            f"No {self.UserModel._meta.label} can be made from a name and an e-mail address alone "
            f"({type(error).__name__}). In AUTHENTICATION_BACKENDS, name a subclass of "
            "EverifinBackend whose create_user(claims) makes the user, or set "
            "EVERIFIN_CREATE_USERS to False."
        )


def login_backend() -> EverifinBackend | None:
    """
    Return the backend that logs users in here: the first of ours in AUTHENTICATION_BACKENDS, None
    without one.
    """
    for path in filter(is_ours, settings.AUTHENTICATION_BACKENDS):
        backend: EverifinBackend = import_string(path)()
        backend.path = path
        return backend
    return None


def is_ours(backend_path: str) -> bool:
    """Is the class that *backend_path* names EverifinBackend, or made from it?"""
    backend = import_string(backend_path)
    return isinstance(backend, type) and issubclass(backend, EverifinBackend)


def _refuse_without_proof(asked: Mapping[str, str]) -> None:
    if proof_is_needed(asked):
        logger.error(
            "Everifin gave no ID token, and nothing else proves the max_age or acr_values that was "
            "asked for. Does EVERIFIN_SCOPES ask for openid?"
        )
        raise LoginError("no_id_token")


def _identity_without_id_token(granted: TokenSet) -> Identity | None:
    """
    Whose tokens these are, as far as it can be known: by UserInfo, else by an access token that is
    a JWT.
    """
    if granted.access is None:
        return None
    if "openid" in granted.scope.split():
        try:
            return Identity(conf.issuer, id_token.fetch_userinfo(granted.access)["sub"])
        except APIError:
            pass
    return id_token.subject_of_access_token(granted.access)


def _verified_email(claims: Claims) -> str:
    return id_token.email_of(claims) if claims.get("email_verified") is True else ""


def _email_field(user_model: Any) -> Any:
    """The model's field for an email address, None if it has none."""
    name = user_model.get_email_field_name()
    return next((field for field in user_model._meta.concrete_fields if field.name == name), None)

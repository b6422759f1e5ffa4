"""
factory-boy factories for every model of this app, and for the users they belong to.

``BankTokenFactory(refresh_token="...")`` seals the tokens it is given as the app itself does.
"""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

import factory
from django.conf import settings
from django.utils import timezone

from everifin_django.conf import conf
from everifin_django.encryption import EncryptionContext, TokenKind, active_key, seal
from everifin_django.models import (
    OFFLINE_ACCESS,
    BankToken,
    EndpointState,
    Incident,
    LoginFlow,
    LoginLink,
    LoginSession,
    LogoutSeen,
    Payment,
    PendingRevocation,
    SpentState,
)
from everifin_django.oauth.id_token import Identity
from everifin_django.secret import Secret

__all__ = [
    "BankTokenFactory",
    "EndpointStateFactory",
    "IncidentFactory",
    "LoginFlowFactory",
    "LoginLinkFactory",
    "LoginSessionFactory",
    "LogoutSeenFactory",
    "PaymentFactory",
    "PendingRevocationFactory",
    "SpentStateFactory",
    "UserFactory",
]


def _sealed(text: str | None, connection_id: Any, user_pk: Any, kind: TokenKind) -> str:
    if text is None:
        return ""
    context = EncryptionContext(str(connection_id), str(user_pk), kind)
    return seal(Secret(text), context, active_key())


class UserFactory(factory.django.DjangoModelFactory):
    """A user of the site, with whatever the user model has as USERNAME_FIELD."""

    class Meta:
        model = settings.AUTH_USER_MODEL

    @classmethod
    def _adjust_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        name_field = cls._meta.get_model_class().USERNAME_FIELD
        return {name_field: f"{uuid.uuid4().hex}@example.test", **kwargs}


class BankTokenFactory(factory.django.DjangoModelFactory):
    """An active connection whose access token is fresh for five minutes."""

    class Meta:
        model = BankToken

    class Params:
        access_token = "an access token"
        refresh_token = "a refresh token"
        id_token = None

    id = factory.LazyFunction(uuid.uuid4)
    user = factory.SubFactory(UserFactory)
    issuer = factory.LazyFunction(lambda: conf.issuer)
    subject = factory.Sequence(lambda number: f"subject-{number}")
    identity_digest = factory.LazyAttribute(
        lambda row: Identity(row.issuer, row.subject).digest if row.subject else None
    )
    access_ciphertext = factory.LazyAttribute(
        lambda row: _sealed(row.access_token, row.id, row.user.pk, "access")
    )
    refresh_ciphertext = factory.LazyAttribute(
        lambda row: _sealed(row.refresh_token, row.id, row.user.pk, "refresh")
    )
    id_ciphertext = factory.LazyAttribute(
        lambda row: _sealed(row.id_token, row.id, row.user.pk, "id")
    )
    encrypted_for = factory.LazyAttribute(lambda row: str(row.user.pk))
    scope = "openid ais"
    is_offline = factory.LazyAttribute(lambda row: OFFLINE_ACCESS in row.scope.split())
    token_version = 1
    issued_at = factory.LazyFunction(timezone.now)
    access_expires_at = factory.LazyAttribute(lambda row: row.issued_at + timedelta(minutes=5))
    refresh_expires_at = factory.LazyAttribute(lambda row: row.issued_at + timedelta(minutes=30))


class LoginLinkFactory(factory.django.DjangoModelFactory):
    """An Everifin account that a user may log in with, made by a first login."""

    class Meta:
        model = LoginLink

    user = factory.SubFactory(UserFactory)
    issuer = factory.LazyFunction(lambda: conf.issuer)
    subject = factory.Sequence(lambda number: f"subject-{number}")
    digest = factory.LazyAttribute(lambda row: Identity(row.issuer, row.subject).digest)
    made_by = LoginLink.MadeBy.LOGIN


class PendingRevocationFactory(factory.django.DjangoModelFactory):
    """A refresh token in the outbox, due now."""

    class Meta:
        model = PendingRevocation

    class Params:
        refresh_token = "a refresh token"

    connection_id = factory.LazyFunction(uuid.uuid4)
    user_pk = "1"
    refresh_ciphertext = factory.LazyAttribute(
        lambda row: _sealed(row.refresh_token, row.connection_id, row.user_pk, "refresh")
    )
    reason = "disconnected"


class PaymentFactory(factory.django.DjangoModelFactory):
    """A payment that is written down and not sent; *state* gives it another one."""

    class Meta:
        model = Payment

    class Params:
        recipient_iban = "SK3112000000198742637541"

    id = factory.LazyFunction(uuid.uuid4)
    user = factory.SubFactory(UserFactory)
    user_pk = factory.LazyAttribute(lambda row: str(row.user.pk))
    key = factory.Sequence(lambda number: f"order-{number}")
    key_digest = factory.LazyAttribute(lambda row: sha256(row.key.encode()).hexdigest())
    kind = Payment.Kind.SINGLE
    external_id = factory.LazyFunction(lambda: str(uuid.uuid4()))
    amount = Decimal("12.30")
    currency = "EUR"
    payment_ciphertext = factory.LazyAttribute(
        lambda row: _sealed(_asked(row), row.id, row.user_pk, "payment")
    )


def _asked(row: Any) -> str:
    return json.dumps(
        {
            "amount": str(row.amount),
            "currency": row.currency,
            "recipient_iban": row.recipient_iban,
            "external_id": row.external_id,
        }
    )


class SpentStateFactory(factory.django.DjangoModelFactory):
    """A login state that has come back."""

    class Meta:
        model = SpentState

    digest = factory.Sequence(lambda number: f"{number:064x}")


class LoginFlowFactory(factory.django.DjangoModelFactory):
    """A login under way that no browser has begun."""

    class Meta:
        model = LoginFlow

    digest = factory.Sequence(lambda number: f"{number:064x}")
    flow_ciphertext = factory.LazyAttribute(lambda row: _sealed("{}", row.digest, "", "flow"))
    started_at = factory.LazyFunction(timezone.now)


class LoginSessionFactory(factory.django.DjangoModelFactory):
    """The record of a login whose grant is the connection's; *refresh_token* gives it its own."""

    class Meta:
        model = LoginSession

    class Params:
        refresh_token = None

    id = factory.LazyFunction(uuid.uuid4)
    user = factory.SubFactory(UserFactory)
    sid = factory.LazyFunction(lambda: str(uuid.uuid4()))
    identity_digest = factory.Sequence(lambda number: f"{number:064x}")
    session_keys_ciphertext = factory.LazyAttribute(
        lambda row: _sealed("[]", row.id, row.user.pk, "session_keys")
    )
    refresh_ciphertext = factory.LazyAttribute(
        lambda row: _sealed(row.refresh_token, row.id, row.user.pk, "refresh")
    )
    check_after = factory.LazyFunction(lambda: timezone.now() + timedelta(days=15))


class LogoutSeenFactory(factory.django.DjangoModelFactory):
    """A logout that Everifin has told of."""

    class Meta:
        model = LogoutSeen

    digest = factory.Sequence(lambda number: f"{number:064x}")
    seen_at = factory.LazyFunction(timezone.now)


class EndpointStateFactory(factory.django.DjangoModelFactory):
    """What processes know of an endpoint: nothing that stops anything."""

    class Meta:
        model = EndpointState

    name = factory.Sequence(lambda number: f"endpoint {number}")


class IncidentFactory(factory.django.DjangoModelFactory):
    """An incident that covers every connection, and that nobody has begun to work off."""

    class Meta:
        model = Incident

    started_at = factory.LazyFunction(timezone.now)

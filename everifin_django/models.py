"""
What is stored: one connection to Everifin for each user, the grants still to be ended there, and
the login states that were used.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections as db_connections
from django.db import models, router, transaction
from django.db.models.functions import Cast, Concat, Now, Replace
from django.db.models.lookups import Exact, GreaterThan, LessThanOrEqual
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from everifin_django.encryption import FORMAT, EncryptionContext, Key, TokenKind, open_sealed, seal
from everifin_django.secret import Secret

if TYPE_CHECKING:
    from everifin_django.oauth.endpoints import TokenSet
    from everifin_django.oauth.id_token import Identity

ModelT = TypeVar("ModelT", bound=models.Model)
ViewT = TypeVar("ViewT", bound=Callable[..., Any])

OFFLINE_ACCESS = "offline_access"
"""The scope of a grant that lives beside the browser's session. OpenID Connect Core 1.0, 11."""

MANDATORY_SHARE = 4
"""
The window in which nobody may use the old token any more is this part of the one in which a refresh
is due.
"""
LONGEST_LEASE_SECONDS = 3600
LONGEST_PAUSE_SECONDS = 24 * 3600
"""A lease or pause that ends later than this was not written by us, and is ignored."""
LAST_VERSION = 2**62
MOST_COUNTED = 1_000_000
"""Counters of failures stop here, far below what their columns can hold."""


def primary(model: type[ModelT]) -> models.QuerySet[ModelT]:
    """
    Return all rows of *model* in the database that is written to. No query.

    Everything this app decides is decided by rows from here: a replica may be behind, and "default"
    may be empty.
    """
    return model._default_manager.using(router.db_for_write(model))


def database_of(row: models.Model) -> str:
    """Return the alias of the database that *row* was read from."""
    return row._state.db or router.db_for_write(type(row))


def database_for(user: Any) -> str:
    """
    Return the alias of the database that holds the connection of *user*. No query.

    Errors: ImproperlyConfigured if no row there can belong to *user*, as the routers'
    ``allow_relation`` says it. A thread or a stream that runs without the site's tenant would find
    another user there, who has the same primary key.
    """
    alias = router.db_for_write(BankToken)
    came_from = getattr(getattr(user, "_state", None), "db", None)
    if came_from not in (None, alias):
        here = BankToken()
        here._state.db = alias
        if not router.allow_relation(user, here):
            raise ImproperlyConfigured(
                f"The user comes from the database {came_from!r}, and the routers give {alias!r} "
                "for Everifin's connections here, where another user may have the same primary "
                "key. Choose the tenant in each thread, task and stream; for a replica, "
                "allow_relation has to be true."
            )
    return alias


def outside_transactions(view: ViewT) -> ViewT:
    """Keep ATOMIC_REQUESTS of every database away from *view*. Django's own way knows one alias."""
    for alias in db_connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


class DatabaseNow(Now):
    """
    The database's clock, as the columns of that database hold a datetime.

    SQLite and MySQL store datetimes without an offset: in UTC, in the ``TIME_ZONE`` of the entry in
    DATABASES, or with ``USE_TZ = False`` in the site's local time. Their own clocks are asked for
    UTC and moved by today's offset of that zone; a comparison of two different zones would be wrong
    by hours.
    """

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        moved = f"'NOW', '{utc_offset_seconds(connection):+d} seconds'"
        template = f"STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', {moved})"
        return self.as_sql(compiler, connection, template=template, **context)

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        seconds = utc_offset_seconds(connection)
        template = f"(UTC_TIMESTAMP(6) + INTERVAL {seconds:d} SECOND)"
        return self.as_sql(compiler, connection, template=template, **context)


def utc_offset_seconds(connection: Any) -> int:
    """Return how far the zone in which *connection* stores datetimes is from UTC at present."""
    # The time zone is None with USE_TZ = False: local time, as django.utils.timezone.now() has it.
    offset = datetime.now(UTC).astimezone(connection.timezone).utcoffset() or timedelta()
    return round(offset.total_seconds())


def in_database_seconds(seconds: float) -> Any:
    """Return the time *seconds* from now by the database's clock, which all hosts share."""
    return models.ExpressionWrapper(
        DatabaseNow() + timedelta(seconds=seconds), output_field=models.DateTimeField()
    )


def is_over(column: str, longest_seconds: float) -> models.Q:
    """
    Return the condition that the time in *column* has passed by the database's clock, is not set,
    or is further ahead than *longest_seconds*, which this app never writes.
    """
    return (
        models.Q(**{column: None})
        | models.Q(**{f"{column}__lt": DatabaseNow()})
        | models.Q(**{f"{column}__gt": in_database_seconds(longest_seconds)})
    )


def scope_columns(scope: str) -> dict[str, Any]:
    return {"scope": scope, "is_offline": OFFLINE_ACCESS in scope.split()}


@dataclass(frozen=True, slots=True)
class ConnectionVersion:
    """
    One version of one user's connection, as its reader saw it.

    This is all that another thread or database connection is told of a connection: it must find the
    same one there. *is_rejected* says that Everifin refused the access token of this version,
    *is_forced* that it is to be refreshed although it is good.
    """

    alias: str
    connection_id: uuid.UUID
    user_pk: Any
    identity_digest: str | None
    token_version: int
    is_rejected: bool = False
    is_forced: bool = False

    def matches(self, row: BankToken | None) -> bool:
        """Is *row* this connection, for the same identity, in this version or a later one?"""
        return (
            row is not None
            and row.pk == self.connection_id
            and row.user_id == self.user_pk
            and row.identity_digest == self.identity_digest
            and row.token_version >= self.token_version
        )


class ByBytes(models.Func):
    """
    A column as the string that ``str()`` makes of it, compared byte by byte on every database.
    """

    template = "CAST(%(expressions)s AS TEXT)"
    output_field: models.Field[Any, Any] = models.TextField()

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "CAST(CAST(%(expressions)s AS CHAR) AS BINARY)"
        return self.as_sql(compiler, connection, template=template, **context)


class Holds(Exact):
    """
    Is the string in a column exactly this one? As Python says it, on every database.

    MySQL's own comparison ignores case, accents and trailing spaces; it is made, too, because the
    indexes serve it.
    """

    def __init__(self, column: str, value: str) -> None:
        super().__init__(models.F(column), models.Value(value))

    def as_mysql(self, compiler: Any, connection: Any) -> Any:
        plain, params = self.as_sql(compiler, connection)
        by_bytes = Exact(ByBytes(self.lhs), ByBytes(self.rhs))
        exact, more = compiler.compile(by_bytes)
        return f"({plain} AND {exact})", (*params, *more)


class IndexIn(models.Func):
    """
    Where a string, byte by byte, is in another; 0 if it is not. LIKE ignores case on SQLite, and
    MySQL's INSTR wherever the collation does.
    """

    function = "STRPOS"
    output_field: models.Field[Any, Any] = models.IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="INSTR", **context)

    as_mysql = as_sqlite


def has_status(status: str) -> Holds:
    """Return the condition that a connection has exactly this status."""
    return Holds("status", status)


def _has_ended() -> models.Q:
    """
    Is the status neither ``active`` nor ``disconnected``? In three ranges, because no index serves
    "not equal", and two values, because MySQL finds other strings equal to these.
    """
    active, disconnected = BankToken.Status.ACTIVE, BankToken.Status.DISCONNECTED
    between = models.Q(status__gt=active, status__lt=disconnected)
    ranges = models.Q(status__gt=disconnected) | models.Q(status__lt=active) | between
    similar = models.Q(status=active) & ~models.Q(has_status(active))
    return ranges | similar | models.Q(status=disconnected) & ~models.Q(has_status(disconnected))


def _is_moved() -> models.Q:
    """``BankToken.is_moved`` as a condition."""
    tokens_of, user = (ByBytes(_without_dashes(name)) for name in ("encrypted_for", "user"))
    return ~models.Q(encrypted_for="") & ~models.Q(Exact(tokens_of, user))


def _without_dashes(column: str) -> Any:
    """*column* as it is; without dashes if users have UUIDs, which some databases store so."""
    field: Any = BankToken._meta.get_field("user")
    while field.is_relation:
        field = field.target_field
    text = Cast(column, models.CharField(max_length=255))
    is_uuid = isinstance(field, models.UUIDField)
    return Replace(text, models.Value("-"), models.Value("")) if is_uuid else models.F(column)


def _is_near_end(column: str, within: timedelta, share: int, now: datetime) -> models.Q:
    """
    Does the time in *column* come *within* that time from *now*, and is no more than one part in
    *share* of the time since ``issued_at`` left? The share does not count where nothing is known.
    """
    left, life = _between(models.Value(now), column), _between(models.F("issued_at"), column)
    times: Any = left
    for _number in range(share - 1):  # MySQL cannot multiply a duration
        times = times + left
    near = models.Q(LessThanOrEqual(times, life)) | models.Q(issued_at=None)
    return models.Q(**{f"{column}__lte": now + within}) & near


def _between(start: Any, column: str) -> Any:
    start = models.ExpressionWrapper(start, output_field=models.DateTimeField())
    return models.ExpressionWrapper(models.F(column) - start, output_field=models.DurationField())


def any_incident(using: str) -> models.Subquery:
    """Return the key of an incident that is under way in the database *using*, NULL without one."""
    return models.Subquery(primary(Incident).using(using).values("pk")[:1])


class BankTokenQuerySet(models.QuerySet["BankToken"]):
    """
    Selections of connections, each by an index. They say what ``health`` says of each row, at
    *now*, which is the present unless it is given.
    """

    def connected(self) -> BankTokenQuerySet:
        """Return the connections whose users need not connect again: healthy, or degraded."""
        return self.filter(has_status(BankToken.Status.ACTIVE), ~_is_moved())

    def degraded(self, *, now: datetime | None = None) -> BankTokenQuerySet:
        """Return the connections that cannot be used or refreshed for now, but are kept."""
        return self.connected().filter(_is_degraded(now))

    def expiring(
        self, within: timedelta | None = None, *, now: datetime | None = None
    ) -> BankTokenQuerySet:
        """
        Return the connections that end *within* that time unless they are refreshed, or whose end
        is past. Without *within*, those whose health is ``expiring``.
        """
        now = now or timezone.now()
        connected = self.connected().filter(EITHER_KIND)
        if within is not None:
            return connected.filter(refresh_expires_at__lte=now + within)
        return connected.filter(_is_expiring(now)).exclude(_is_degraded(now))

    def to_reconnect(self, since: datetime | None = None) -> BankTokenQuerySet:
        """
        Return the connections that their users have to make again, because Everifin ended them, the
        row was given to another user or has an unknown status; with *since*, those that changed
        then or later.
        """
        is_active = models.Q(has_status(BankToken.Status.ACTIVE))
        rows = self.filter(_has_ended() | is_active & _is_moved())
        return rows if since is None else rows.filter(updated_at__gte=since)

    def disconnected(self) -> BankTokenQuerySet:
        """Return the connections that were ended here. Users who never connected have no row."""
        return self.filter(has_status(BankToken.Status.DISCONNECTED))

    def with_health(
        self, health: BankToken.Health, *, now: datetime | None = None
    ) -> BankTokenQuerySet:
        """Return the connections of which ``health`` says *health*."""
        now = now or timezone.now()
        if health == BankToken.Health.ACTIVE:
            return self.connected().exclude(_is_degraded(now)).exclude(_is_expiring(now))
        return {
            BankToken.Health.EXPIRING: lambda: self.expiring(now=now),
            BankToken.Health.DEGRADED: lambda: self.degraded(now=now),
            BankToken.Health.NEEDS_RECONNECT: self.to_reconnect,
            BankToken.Health.DISCONNECTED: self.disconnected,
        }[BankToken.Health(health)]()

    def by_trouble(self, *, now: datetime | None = None) -> dict[str, BankTokenQuerySet]:
        """
        Return all connections in five queries by health, worst first and in each the newest first,
        so that each is read in the order of an index.

        A row that was given to another user, which no index tells apart, is with the active ones.
        """
        now, newest = now or timezone.now(), ("-updated_at", "-pk")
        is_healthy = ~_is_degraded(now) & ~_is_expiring(now)
        active = self.filter(has_status(BankToken.Status.ACTIVE))
        return {
            BankToken.Health.NEEDS_RECONNECT: self.filter(_has_ended()).order_by(
                "-status", *newest
            ),
            BankToken.Health.DEGRADED: self.degraded(now=now).order_by(*newest),
            BankToken.Health.EXPIRING: self.expiring(now=now).order_by("refresh_expires_at", "-pk"),
            BankToken.Health.ACTIVE: active.filter(is_healthy | _is_moved()).order_by(*newest),
            BankToken.Health.DISCONNECTED: self.disconnected().order_by(*newest),
        }

    def with_scopes(self, *scopes: str) -> BankTokenQuerySet:
        """
        Return the connections that were granted all of *scopes*. Each row that the other conditions
        leave is looked at; ``offline()`` has an index.
        """
        granted = Concat(
            models.Value(" "), "scope", models.Value(" "), output_field=models.TextField()
        )
        rows = self
        for scope in scopes:
            wanted = ByBytes(models.Value(f" {scope} "))
            rows = rows.filter(GreaterThan(IndexIn(ByBytes(granted), wanted), 0))
        return rows

    def offline(self) -> BankTokenQuerySet:
        """Return the connections whose grants have the scope ``offline_access``."""
        return self.filter(is_offline=True)

    def due(
        self,
        within: timedelta | None = None,
        *,
        access_within: timedelta | None = None,
        not_refreshed_for: timedelta | None = None,
        now: datetime | None = None,
    ) -> BankTokenQuerySet:
        """
        Return the connections to refresh so that they stay alive: the refresh token ends *within*
        that time, the access token *access_within* that time, or the tokens are older than
        *not_refreshed_for*. Without any of the three, the refresh token ends within a day.

        A token is never due in the first half of its life, so what was refreshed just now is not
        due again, however long the times are. Those that somebody is refreshing, or that wait after
        a failure, are among them.
        """
        criteria = due_criteria(within, access_within, not_refreshed_for, now or timezone.now())
        is_due = models.Q()
        for criterion in criteria:
            is_due |= criterion.condition
        return self.refreshable().filter(EITHER_KIND, is_due)

    def refreshable(self) -> BankTokenQuerySet:
        """Return the connected ones that have a refresh token."""
        return self.connected().exclude(refresh_ciphertext="")

    def with_incident(self) -> BankTokenQuerySet:
        """Have each row know as ``incident_id`` whether an incident is under way (see Incident)."""
        return self.annotate(incident_id=any_incident(self.db))

    def claimable(self) -> BankTokenQuerySet:
        """Return the connections that nobody is refreshing and that may be tried again."""
        return self.filter(
            is_over("lease_until", LONGEST_LEASE_SECONDS),
            is_over("retry_after", LONGEST_PAUSE_SECONDS),
            has_status(BankToken.Status.ACTIVE),
        )

    def ended_before(self, when: datetime) -> BankTokenQuerySet:
        """Return the connections that ended before *when*, and still hold tokens."""
        return self.filter(_has_ended(), updated_at__lt=when).exclude(
            access_ciphertext="", refresh_ciphertext="", id_ciphertext=""
        )


@dataclass(frozen=True, slots=True)
class DueCriterion:
    """One reason to refresh, and the column that an index has in order."""

    column: str
    condition: models.Q


def due_criteria(
    within: timedelta | None,
    access_within: timedelta | None,
    not_refreshed_for: timedelta | None,
    now: datetime,
) -> list[DueCriterion]:
    """Return the conditions of ``due``, each by itself."""
    if within is None and access_within is None and not_refreshed_for is None:
        within = BankToken.EXPIRING_WITHIN
    ends = {"refresh_expires_at": within, "access_expires_at": access_within}
    found = [
        DueCriterion(column, _is_near_end(column, before, DUE_SHARE, now))
        for column, before in ends.items()
        if before is not None
    ]
    if not_refreshed_for is not None:
        is_old = models.Q(issued_at__lte=now - not_refreshed_for)
        found.append(DueCriterion("issued_at", is_old))
    return found


def health_at(now: datetime) -> models.Case:
    """Return ``BankToken.health`` as an expression."""
    health, status = BankToken.Health, BankToken.Status
    to_reconnect = ~models.Q(has_status(status.ACTIVE)) | _is_moved()
    return models.Case(
        models.When(has_status(status.DISCONNECTED), then=models.Value(health.DISCONNECTED)),
        models.When(to_reconnect, then=models.Value(health.NEEDS_RECONNECT)),
        models.When(_is_degraded(now), then=models.Value(health.DEGRADED)),
        models.When(_is_expiring(now), then=models.Value(health.EXPIRING)),
        default=models.Value(health.ACTIVE),
        output_field=models.CharField(),
    )


def _is_degraded(now: datetime | None) -> models.Q:
    paused_since = (now or timezone.now()) - BankToken.REJECTION_PAUSE
    # The status in both, so that each has an index of its own.
    active: Any = {"status": BankToken.Status.ACTIVE}
    is_rejected = models.Q(rejected_at__isnull=False, rejected_at__gt=paused_since, **active)
    return models.Q(failures__gt=0, **active) | is_rejected


def _is_expiring(now: datetime) -> models.Q:
    known = models.Q(refresh_expires_at__isnull=False, issued_at__isnull=False)
    return known & _is_near_end(
        "refresh_expires_at", BankToken.EXPIRING_WITHIN, EXPIRING_SHARE, now
    )


EITHER_KIND = models.Q(is_offline__in=[False, True])
"""Leaves nothing out, but lets an index that begins with this column be read by the next one."""
EXPIRING_SHARE = 4
"""A connection is expiring in the last part of so many of its life, and within EXPIRING_WITHIN."""
DUE_SHARE = 2


class BankToken(models.Model):
    """
    A user's connection to Everifin.

    The three tokens are stored as ciphertext, bound to this row, its user and their column;
    ``values()``, dumps, pickles and the admin hold nothing else. Only ``open_token`` decrypts.
    """

    class Status(models.TextChoices):
        ACTIVE = "active", pgettext_lazy("connection", "active")
        NEEDS_RECONNECT = "needs_reconnect", pgettext_lazy("connection", "needs reconnect")
        DISCONNECTED = "disconnected", pgettext_lazy("connection", "disconnected")

    class Health(models.TextChoices):
        """The state of a connection, in the words a user is told."""

        ACTIVE = "active", pgettext_lazy("connection", "connected")
        EXPIRING = "expiring", pgettext_lazy("connection", "connected, to be renewed soon")
        DEGRADED = (
            "degraded",
            pgettext_lazy("connection", "connected, but Everifin does not answer at the moment"),
        )
        NEEDS_RECONNECT = "needs_reconnect", pgettext_lazy("connection", "to be connected again")
        DISCONNECTED = "disconnected", pgettext_lazy("connection", "not connected")

    EXPIRING_WITHIN: ClassVar = timedelta(days=1)
    REJECTION_PAUSE: ClassVar = timedelta(minutes=10)
    """For how long a connection whose newest access token was refused is not refreshed for that."""

    id = models.UUIDField(_("connection id"), primary_key=True, default=uuid.uuid4, editable=False)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="bank_token",
        verbose_name=_("user"),
    )
    issuer = models.CharField(_("issuer"), max_length=255, blank=True)
    subject = models.CharField(_("subject"), max_length=255, blank=True)
    # Unique by bytes on every database, which a constraint over the two columns above is not; None
    # while unknown.
    identity_digest = models.CharField(  # noqa: DJ001 - two unknown identities are not the same
        max_length=64, null=True, editable=False
    )
    sid = models.CharField(_("session at Everifin"), max_length=255, blank=True)
    # The login whose browser the grant came from; None for one that a password user connected.
    login_session_id = models.UUIDField(null=True, editable=False)

    access_ciphertext = models.TextField(blank=True, editable=False)
    refresh_ciphertext = models.TextField(blank=True, editable=False)
    id_ciphertext = models.TextField(blank=True, editable=False)
    # The user whose tokens these are; no other can open them. Empty while unknown.
    encrypted_for = models.CharField(max_length=255, blank=True, editable=False)

    scope = models.CharField(_("scope"), max_length=1024, blank=True)
    # Of the scope, for an index.
    is_offline = models.BooleanField(default=False, editable=False)
    issued_at = models.DateTimeField(_("last refreshed"), null=True)
    access_expires_at = models.DateTimeField(_("access expires"), null=True)
    refresh_expires_at = models.DateTimeField(_("connection expires"), null=True)

    status = models.CharField(_("status"), max_length=16, choices=Status, default=Status.ACTIVE)
    token_version = models.PositiveBigIntegerField(_("token version"), default=0)
    lease_id = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(_("being refreshed until"), null=True)
    retry_after = models.DateTimeField(_("next try"), null=True)
    failures = models.PositiveIntegerField(_("failures in a row"), default=0)
    last_error = models.CharField(_("last error"), max_length=64, blank=True)
    # Why this site ended it; after an end on purpose, a login does not connect again.
    end_reason = models.CharField(max_length=32, blank=True, editable=False)
    # All four by the database's clock.
    connected_at = models.DateTimeField(null=True, editable=False)
    refreshed_at = models.DateTimeField(null=True, editable=False, db_index=True)
    refused_since = models.DateTimeField(null=True, editable=False)
    rejected_at = models.DateTimeField(null=True, editable=False)

    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = BankTokenQuerySet.as_manager()

    class Meta:
        verbose_name = _("bank connection")
        verbose_name_plural = _("bank connections")
        permissions = (
            ("disconnect_banktoken", "Can end bank connections"),
            ("refresh_banktoken", "Can refresh bank connections"),
        )
        # No index with a condition or an expression: MariaDB has neither. None by ``db_index`` or
        # ``unique`` of a string: PostgreSQL would get a second one for LIKE, which nothing asks.
        constraints = (
            models.UniqueConstraint(fields=["identity_digest"], name="everifin_bank_identity"),
        )
        indexes = (
            models.Index(fields=["sid"], name="everifin_bank_sid"),
            models.Index(fields=["status", "updated_at"], name="everifin_bank_updated"),
            models.Index(fields=["status", "failures"], name="everifin_bank_failures"),
            models.Index(fields=["status", "rejected_at"], name="everifin_bank_rejected"),
            models.Index(fields=["status", "access_expires_at"], name="everifin_bank_access"),
            models.Index(
                fields=["status", "is_offline", "refresh_expires_at"], name="everifin_bank_refresh"
            ),
            models.Index(fields=["status", "is_offline", "issued_at"], name="everifin_bank_issued"),
        )

    def __str__(self) -> str:
        return str(self.pk)

    def is_stopped(self) -> bool:
        """
        Has the connection ended, or does an incident cover it? Of a row that ``with_incident``
        read. No query, unless an incident is under way.
        """
        if self.status == self.Status.DISCONNECTED:
            return True
        if getattr(self, "incident_id", None) is None:
            return False
        return any(
            incident.covered().filter(pk=self.pk).exists()
            for incident in Incident.objects.using(database_of(self))
        )

    @property
    def next_version(self) -> int:
        """The version after this one, which always fits into its column."""
        return self.token_version + 1 if 0 <= self.token_version < LAST_VERSION else 1

    def seen(self, *, is_rejected: bool = False) -> ConnectionVersion:
        """Return which connection this is, and in which version."""
        return ConnectionVersion(
            database_of(self),
            self.pk,
            self.user_id,
            self.identity_digest,
            self.token_version,
            is_rejected,
        )

    @property
    def is_moved(self) -> bool:
        """Was the row given to another user than the one whose tokens it holds?"""
        return bool(self.encrypted_for) and self.encrypted_for != str(self.user_id)

    def encryption_context(self, kind: TokenKind) -> EncryptionContext:
        return EncryptionContext(connection_id=str(self.pk), user_pk=str(self.user_id), kind=kind)

    def open_token(self, kind: TokenKind) -> Secret | None:
        """
        Return the decrypted access, refresh or ID token; None if the connection has no such token.

        Errors: UnknownKeyError, TamperedError, MalformedError. The row is not touched.
        """
        sealed = getattr(self, f"{kind}_ciphertext")
        return open_sealed(sealed, self.encryption_context(kind)) if sealed else None

    def sealed(self, tokens: TokenSet, key: Key) -> dict[str, Any]:
        """
        Return the columns that hold *tokens*, encrypted with *key* for this row. A token that did
        not come keeps its column.
        """
        columns = {
            "encrypted_for": str(self.user_id),
            **scope_columns(tokens.scope or self.scope),
            "sid": tokens.sid or self.sid,
            "issued_at": tokens.issued_at,
            "access_expires_at": tokens.expires_at,
            "refresh_expires_at": tokens.refresh_expires_at,
        }
        if tokens.access is not None:
            columns["access_ciphertext"] = seal(
                tokens.access, self.encryption_context("access"), key
            )
        if tokens.refresh is not None:
            columns["refresh_ciphertext"] = seal(
                tokens.refresh, self.encryption_context("refresh"), key
            )
        if tokens.id is not None:
            columns["id_ciphertext"] = seal(tokens.id, self.encryption_context("id"), key)
        return columns

    def is_of_another(self, identity: Identity | None) -> bool:
        """
        Tell whether both identities are known and differ. What a row holds that was moved from
        another user is not this user's.
        """
        return bool(
            identity is not None
            and self.identity_digest
            and not self.is_moved
            and self.identity_digest != identity.digest
        )

    @property
    def scopes(self) -> frozenset[str]:
        return frozenset(self.scope.split())

    def due_at(self, margin_seconds: float) -> datetime:
        """Return when a refresh becomes due, although the access token can still be used."""
        return self._before_expiry(self._margin(margin_seconds))

    def overdue_at(self, margin_seconds: float) -> datetime:
        """Return when the access token is too close to its end to be used."""
        return self._before_expiry(self._margin(margin_seconds) / MANDATORY_SHARE)

    def health(self, now: datetime | None = None) -> Health:
        now = now or timezone.now()
        if self.status == self.Status.DISCONNECTED:
            return self.Health.DISCONNECTED
        if self.status != self.Status.ACTIVE or self.is_moved:
            return self.Health.NEEDS_RECONNECT
        if self.failures or self.was_rejected(now):
            return self.Health.DEGRADED
        return self.Health.EXPIRING if self._is_expiring(now) else self.Health.ACTIVE

    def _is_expiring(self, now: datetime) -> bool:
        if self.refresh_expires_at is None or self.issued_at is None:
            return False
        left, life = self.refresh_expires_at - now, self.refresh_expires_at - self.issued_at
        return left <= self.EXPIRING_WITHIN and left * EXPIRING_SHARE <= life

    def was_rejected(self, now: datetime) -> bool:
        """Did the bank API refuse a new access token of this connection within REJECTION_PAUSE?"""
        return self.rejected_at is not None and now - self.rejected_at < self.REJECTION_PAUSE

    def _margin(self, margin_seconds: float) -> timedelta:
        """
        The margin, but at most half the token's life: a 4-second token must not be refreshed for
        every request.
        """
        if self.access_expires_at is None or self.issued_at is None:
            return timedelta(seconds=margin_seconds)
        half_of_its_life = max(timedelta(), (self.access_expires_at - self.issued_at) / 2)
        return min(timedelta(seconds=margin_seconds), half_of_its_life)

    def _before_expiry(self, margin: timedelta) -> datetime:
        """Shape: a datetime like ``timezone.now()``'s; in the past for a token without an end."""
        end = self.access_expires_at
        try:
            return timezone.now() - margin if end is None else end - margin
        except OverflowError:  # in the first days of the year 1
            return end or timezone.now()


class Incident(models.Model):
    """
    An incident under way. The connections that it covers can no longer be used, although their own
    rows do not say so yet: to write that into a million rows takes a minute, and this takes none.

    It covers the connections that were made before it began; of those with *encrypted_by* only
    those with a token encrypted with that key, and with *issued_since* only those that were made or
    refreshed since then. The row is deleted when none of them is left.
    """

    id = models.BigAutoField(primary_key=True)
    encrypted_by = models.CharField(max_length=32, blank=True)
    issued_since = models.DateTimeField(null=True)
    started_at = models.DateTimeField()
    # The last user whose token is in the outbox; the tokens move in the order of users.
    moved_until = models.CharField(max_length=255, blank=True)
    is_moved = models.BooleanField(default=False)

    class Meta:
        verbose_name = _("incident")
        verbose_name_plural = _("incidents")

    def __str__(self) -> str:
        return str(self.pk)

    def covered(self) -> BankTokenQuerySet:
        """Return the connections that this incident covers. What is unknown counts as covered."""
        rows: BankTokenQuerySet = BankToken.objects.using(database_of(self)).filter(
            models.Q(connected_at=None) | models.Q(connected_at__lte=self.started_at)
        )
        rows = rows.exclude(has_status(BankToken.Status.DISCONNECTED))
        if self.encrypted_by:
            rows = rows.filter(encrypted_by(self.encrypted_by, "access", "refresh", "id"))
        if self.issued_since is not None:
            rows = rows.filter(
                models.Q(issued_at=None) | models.Q(issued_at__gte=self.issued_since)
            )
        return rows

    def covered_logins(self) -> models.QuerySet[LoginSession]:
        """Return the logins whose grants this incident covers."""
        rows = LoginSession.objects.using(database_of(self)).exclude(refresh_ciphertext="")
        if self.encrypted_by:
            rows = rows.filter(encrypted_by(self.encrypted_by, "refresh"))
        if self.issued_since is not None:
            # A grant moves to a login when its user's connection is made anew.
            covered = self.covered().order_by().values("user_id")
            since = models.Q(created_at__gte=self.issued_since)
            rows = rows.filter(since | models.Q(user_id__in=covered))
        return rows


def encrypted_by(key_id: str, *kinds: TokenKind) -> models.Q:
    """Return the condition that a token of one of *kinds* is encrypted with the key *key_id*."""
    found = models.Q()
    for kind in kinds:
        found |= models.Q(**{f"{kind}_ciphertext__startswith": f"{FORMAT}.{key_id}."})
    return found


class LoginLink(models.Model):
    """
    An Everifin account that a user may log in with. Whose bank is read is another matter: that is
    the connection.
    """

    class MadeBy(models.TextChoices):
        LOGIN = "login", pgettext_lazy("login link", "first login")
        CONNECT = "connect", pgettext_lazy("login link", "connecting")
        IMPORT = "import", pgettext_lazy("login link", "import")

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="everifin_login_links",
        verbose_name=_("user"),
    )
    issuer = models.CharField(_("issuer"), max_length=255)
    subject = models.CharField(_("subject"), max_length=255)
    # Unique by bytes on every database, which a constraint over issuer and subject is not.
    digest = models.CharField(max_length=64, unique=True, editable=False)
    made_by = models.CharField(_("made by"), max_length=8, choices=MadeBy)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("login link")
        verbose_name_plural = _("login links")

    def __str__(self) -> str:
        return str(self.pk)


class PendingRevocation(models.Model):
    """
    The outbox: a refresh token that still has to be ended at Everifin.

    The ciphertext moves here as it is, with the connection and user that it was encrypted for. So
    ending a connection needs no key, and a key fault cannot stop a user from being deleted.
    """

    id = models.BigAutoField(primary_key=True)
    connection_id = models.UUIDField(_("connection id"))
    user_pk = models.CharField(_("user"), max_length=255, blank=True)
    refresh_ciphertext = models.TextField(editable=False)
    # A refresh had sent it, and no answer had come. Then that Everifin does not know it any more
    # says nothing about what it was exchanged for.
    is_spent = models.BooleanField(_("spent"), default=False)
    reason = models.CharField(_("reason"), max_length=32)
    expires_at = models.DateTimeField(_("dies by itself"), null=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    retry_after = models.DateTimeField(_("next try"), null=True)
    last_error = models.CharField(_("last error"), max_length=64, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("pending revocation")
        verbose_name_plural = _("pending revocations")

    def __str__(self) -> str:
        return f"{self.connection_id} ({self.reason})"

    def encryption_context(self, kind: TokenKind) -> EncryptionContext:
        """Return the context the token was encrypted for: its connection's."""
        return EncryptionContext(str(self.connection_id), self.user_pk, kind)

    def open_token(self) -> Secret:
        """
        Return the decrypted refresh token. Errors: UnknownKeyError, TamperedError, MalformedError.
        """
        return open_sealed(self.refresh_ciphertext, self.encryption_context("refresh"))


class PaymentQuerySet(models.QuerySet["Payment"]):
    def unfinished(self) -> PaymentQuerySet:
        return self.exclude(is_final())

    def uncertain_first(self) -> PaymentQuerySet:
        is_uncertain = models.Case(
            models.When(state=Payment.State.UNCERTAIN, then=0),
            default=1,
            output_field=models.IntegerField(),
        )
        return self.order_by(is_uncertain, "-created_at")

    def unannounced(self) -> PaymentQuerySet:
        """Payments that are finished and whose signal was not sent yet."""
        return self.filter(is_final(), announced_at=None)


def is_final() -> models.Q:
    """``Payment.is_final`` as a condition: a state that is not known is not final."""
    states = (models.Q(Holds("state", state)) for state in Payment.FINAL_STATES)
    return reduce(or_, states)


class Payment(models.Model):
    """
    A payment, written down under the site's own key before anything is sent.

    The key is unique for the site and is never free again: rows stay until the site deletes them,
    also when their user is deleted. What names a person is encrypted.
    """

    class Kind(models.TextChoices):
        SINGLE = "single", pgettext_lazy("payment", "single")
        BULK = "bulk", pgettext_lazy("payment", "bulk")

    class State(models.TextChoices):
        RECORDED = "recorded", pgettext_lazy("payment", "not sent yet")
        SENDING = "sending", pgettext_lazy("payment", "being sent")
        OPEN = "open", pgettext_lazy("payment", "waiting to be confirmed")
        UNCERTAIN = "uncertain", pgettext_lazy("payment", "uncertain")
        PAID = "paid", pgettext_lazy("payment", "paid")
        PARTIALLY_PAID = "partially_paid", pgettext_lazy("payment", "partially paid")
        FAILED = "failed", pgettext_lazy("payment", "not paid")
        REFUSED = "refused", pgettext_lazy("payment", "refused by Everifin")
        ABSENT = "absent", pgettext_lazy("payment", "never made")

    class Awaits(models.TextChoices):
        NOTHING = "", pgettext_lazy("payment", "nothing")
        REDIRECT = "redirect", pgettext_lazy("payment", "the user at the bank")
        INPUT = "input", pgettext_lazy("payment", "an input of the user")
        PUSH = "push", pgettext_lazy("payment", "the user in the bank's app")
        NEXT = "next", pgettext_lazy("payment", "the next step")

    FINAL_STATES: ClassVar = (
        State.PAID,
        State.PARTIALLY_PAID,
        State.FAILED,
        State.REFUSED,
        State.ABSENT,
    )

    id = models.UUIDField(_("payment"), primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        related_name="everifin_payments",
        verbose_name=_("user"),
    )
    # Outlives the user: the encryption is bound to it, and nobody else can use the key.
    user_pk = models.CharField(max_length=255, editable=False)
    key = models.CharField(_("key"), max_length=255)
    # Unique by bytes on every database, which the column above is not.
    key_digest = models.CharField(max_length=64, unique=True, editable=False)
    kind = models.CharField(_("kind"), max_length=8, choices=Kind)
    external_id = models.CharField(_("external id"), max_length=255, db_index=True)
    everifin_id = models.CharField(_("id at Everifin"), max_length=255, blank=True)
    amount = models.DecimalField(_("amount"), max_digits=22, decimal_places=2)
    currency = models.CharField(_("currency"), max_length=3)
    state = models.CharField(
        _("state"), max_length=16, choices=State, default=State.RECORDED, db_index=True
    )
    awaits = models.CharField(_("waits for"), max_length=16, choices=Awaits, blank=True)
    reason = models.CharField(_("reason"), max_length=64, blank=True)
    next_url = models.CharField(max_length=2000, blank=True, editable=False)

    payment_ciphertext = models.TextField(blank=True, editable=False)
    step_ciphertext = models.TextField(blank=True, editable=False)
    return_digest = models.CharField(  # noqa: DJ001 - two payments that were not sent may have none
        max_length=64, unique=True, null=True, editable=False
    )

    version = models.PositiveIntegerField(_("version"), default=0)
    lease_until = models.DateTimeField(_("worked on until"), null=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    sent_at = models.DateTimeField(_("sent"), null=True)
    looked_at = models.DateTimeField(_("last looked for"), null=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)
    finished_at = models.DateTimeField(_("finished"), null=True)
    announced_at = models.DateTimeField(null=True, editable=False)
    note = models.TextField(_("note"), blank=True)
    ended_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        related_name="+",
        verbose_name=_("ended by"),
    )

    objects = PaymentQuerySet.as_manager()

    class Meta:
        verbose_name = _("payment")
        verbose_name_plural = _("payments")
        permissions = (("end_payment", "Can say what became of an uncertain payment"),)

    def __str__(self) -> str:
        return str(self.pk)

    def get_absolute_url(self) -> str:
        """Return the URL of the page that leads the user through this payment."""
        return reverse("everifin_django:payment", args=[self.pk])

    def encryption_context(self, kind: TokenKind) -> EncryptionContext:
        return EncryptionContext(str(self.pk), self.user_pk, kind)

    def open_text(self, kind: Literal["payment", "step"]) -> Secret | None:
        """
        Return the decrypted payment as it was asked for, or its last step; None where there is
        none.

        Errors: UnknownKeyError, TamperedError, MalformedError. The row is not touched.
        """
        sealed = getattr(self, f"{kind}_ciphertext")
        return open_sealed(sealed, self.encryption_context(kind)) if sealed else None

    @property
    def is_final(self) -> bool:
        """Will it stay like this?"""
        return self.state in self.FINAL_STATES

    @property
    def is_paid(self) -> bool:
        """Has all of it been paid?"""
        return self.state == self.State.PAID


class LoginFlow(models.Model):
    """
    A login or connection that was begun, found by the hash of its state. What it holds is encrypted
    and only serves the browser that has its cookie. Deleted after two hours.
    """

    digest = models.CharField(max_length=64, primary_key=True)
    flow_ciphertext = models.TextField(editable=False)
    started_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = _("login under way")
        verbose_name_plural = _("logins under way")

    def __str__(self) -> str:
        return str(self.started_at)

    def encryption_context(self, kind: TokenKind) -> EncryptionContext:
        return EncryptionContext(connection_id=self.digest, user_pk="", kind=kind)

    def open(self) -> Secret:
        """Return the decrypted flow. Errors: UnknownKeyError, TamperedError, MalformedError."""
        return open_sealed(self.flow_ciphertext, self.encryption_context("flow"))


class SpentState(models.Model):
    """
    The hash of a login state that was used, or of a logout token's id. Inserting it a second time
    fails, so each can be used once.
    """

    digest = models.CharField(max_length=64, primary_key=True)
    spent_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        verbose_name = _("spent login state")
        verbose_name_plural = _("spent login states")

    def __str__(self) -> str:
        return str(self.spent_at)


LOGIN_SESSION_KEY = "everifin_login"
"""Under this name the browser's Django session names its record."""


class LoginSession(models.Model):
    """
    The record of one login with Everifin in one browser.

    The browser's Django session names the record by its id, and the record holds the encrypted list
    of that session's keys: the table alone gives nobody a session.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    sid = models.CharField(max_length=255, blank=True, db_index=True)
    has_ended_sid = models.BooleanField(default=False)
    identity_digest = models.CharField(max_length=64, db_index=True)
    session_keys_ciphertext = models.TextField(blank=True, editable=False)
    id_ciphertext = models.TextField(blank=True, editable=False)
    # Only while the grant is not the connection's.
    refresh_ciphertext = models.TextField(blank=True, editable=False)
    refresh_expires_at = models.DateTimeField(null=True)
    # As for PendingRevocation.
    is_spent = models.BooleanField(default=False)
    scope = models.CharField(max_length=1024, blank=True)
    version = models.PositiveBigIntegerField(default=0)
    check_after = models.DateTimeField(db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = _("login session")
        verbose_name_plural = _("login sessions")

    def __str__(self) -> str:
        return str(self.pk)

    def encryption_context(self, kind: TokenKind) -> EncryptionContext:
        return EncryptionContext(connection_id=str(self.pk), user_pk=str(self.user_id), kind=kind)

    def open_token(self, kind: TokenKind) -> Secret | None:
        """
        Return the decrypted refresh or ID token; None where there is none.

        Errors: UnknownKeyError, TamperedError, MalformedError. The row is not touched.
        """
        sealed = getattr(self, f"{kind}_ciphertext")
        return open_sealed(sealed, self.encryption_context(kind)) if sealed else None


class EndpointState(models.Model):
    """
    What the processes of a site tell each other of an endpoint at Everifin. Times by the database's
    clock.
    """

    name = models.CharField(max_length=16, primary_key=True)
    paused_until = models.DateTimeField(null=True)
    client_refused_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("state of an endpoint")
        verbose_name_plural = _("states of endpoints")

    def __str__(self) -> str:
        return self.name


class LogoutSeen(models.Model):
    """
    The hash of a session, or of a user, that Everifin has logged out: a login which that logout
    overtook is refused. Kept for 15 minutes.
    """

    digest = models.CharField(max_length=64, primary_key=True)
    seen_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = _("logout seen")
        verbose_name_plural = _("logouts seen")

    def __str__(self) -> str:
        return str(self.seen_at)

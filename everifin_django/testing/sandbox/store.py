"""
What the sandbox stores, in SQLite: one file, or a database in memory.

Both are the same code: one connection, one lock. Tokens and codes are stored as hashes only, so
that a file left behind opens nothing.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS signing_key (
    kid TEXT PRIMARY KEY, pem TEXT NOT NULL, position INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS user (
    sub TEXT PRIMARY KEY, username TEXT NOT NULL UNIQUE, password TEXT NOT NULL,
    name TEXT NOT NULL, email TEXT NOT NULL, email_verified INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS added_bank (
    sub TEXT NOT NULL, bank TEXT NOT NULL, PRIMARY KEY (sub, bank)
);
CREATE TABLE IF NOT EXISTS pending (
    id TEXT PRIMARY KEY, query TEXT NOT NULL, sub TEXT, created_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS session (
    id TEXT PRIMARY KEY, sub TEXT NOT NULL, scope TEXT NOT NULL, auth_time REAL NOT NULL,
    expires_at REAL, is_ended INTEGER NOT NULL DEFAULT 0, is_withdrawn INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS code (
    hash TEXT PRIMARY KEY, session TEXT NOT NULL, details TEXT NOT NULL, expires_at REAL NOT NULL,
    is_spent INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS refresh_token (
    hash TEXT PRIMARY KEY, session TEXT NOT NULL, expires_at REAL,
    is_spent INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS payment (
    id INTEGER PRIMARY KEY AUTOINCREMENT, sub TEXT NOT NULL, kind TEXT NOT NULL,
    document TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class User:
    sub: str
    username: str
    password: str
    name: str
    email: str
    email_verified: bool


@dataclass(frozen=True, slots=True)
class Pending:
    """An authorization request whose visitor is still on the login or consent page."""

    id: str
    query: str
    sub: str | None
    created_at: float


OFFLINE = "/offline"
"""Ends the id of a session that was granted for when the user is away."""


@dataclass(frozen=True, slots=True)
class Session:
    """
    One login of one user, alive until it is ended or not used for too long.

    With offline_access there is a second one of the same ``sid``, which outlives the first, as in a
    Keycloak.
    """

    id: str
    sub: str
    scope: str
    auth_time: float
    expires_at: float | None
    is_ended: bool = False
    is_withdrawn: bool = False

    @property
    def scopes(self) -> list[str]:
        return self.scope.split()

    @property
    def sid(self) -> str:
        return self.id.removesuffix(OFFLINE)

    @property
    def is_offline(self) -> bool:
        return self.id.endswith(OFFLINE)

    def is_live(self, now: float) -> bool:
        return not self.is_ended and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Code:
    """An authorization code. *details* are what the token request is compared with."""

    session: Session
    details: Mapping[str, Any]
    expires_at: float
    is_spent: bool


@dataclass(frozen=True, slots=True)
class RefreshToken:
    session: Session
    expires_at: float | None
    is_spent: bool


@dataclass(frozen=True, slots=True)
class StoredPayment:
    """A payment of *sub*, single or bulk as *kind* says. *text* is what the store has of it."""

    id: int
    sub: str
    kind: str
    text: str

    @property
    def document(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.text)
        return decoded


class Store:
    def __init__(self, path: str = ":memory:") -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        self._db.row_factory = sqlite3.Row
        # Python 3.13 warns about a connection nobody closed, and nobody closes a sandbox in a test.
        self.close = weakref.finalize(self, self._db.close)
        with self._lock:
            self._db.executescript(SCHEMA)

    # Facts by name

    def meta(self, name: str, default: str) -> str:
        """Return the value stored under *name*, and store *default* if there is none."""
        statement = "SELECT value FROM meta WHERE name = ?"
        row = self._row(statement, name)
        if row is None:
            self._run("INSERT OR IGNORE INTO meta VALUES (?, ?)", name, default)
            row = self._row(statement, name)
        return str(row["value"])

    def count_up(self, name: str) -> None:
        with self._transaction():
            number = int(self.meta(name, "0")) + 1
            self._run("UPDATE meta SET value = ? WHERE name = ?", str(number), name)

    # Signing keys

    def signing_keys(self) -> list[tuple[str, str]]:
        """Return (kid, PEM) of every published key, newest first."""
        rows = self._rows("SELECT kid, pem FROM signing_key ORDER BY position DESC")
        return [(row["kid"], row["pem"]) for row in rows]

    def add_signing_key(self, kid: str, pem: str, *, only: bool = False) -> None:
        with self._transaction():
            newest = self._row("SELECT COALESCE(MAX(position), 0) AS position FROM signing_key")
            if only:
                self._run("DELETE FROM signing_key")
            self._run("INSERT INTO signing_key VALUES (?, ?, ?)", kid, pem, newest["position"] + 1)

    # Users

    def add_user(self, user: User) -> bool:
        """Store *user*; False if the name or the sub is taken."""
        statement = "INSERT OR IGNORE INTO user VALUES (?, ?, ?, ?, ?, ?)"
        values = (user.sub, user.username, user.password, user.name, user.email)
        return self._run(statement, *values, user.email_verified) == 1

    def user(self, *, sub: str | None = None, username: str | None = None) -> User | None:
        row = self._row("SELECT * FROM user WHERE sub = ? OR username = ?", sub, username)
        return User(**{**row, "email_verified": bool(row["email_verified"])}) if row else None

    def add_bank(self, sub: str, bank_id: str) -> bool:
        """Note that the user has added a bank; False if they had it already."""
        return self._run("INSERT OR IGNORE INTO added_bank VALUES (?, ?)", sub, bank_id) == 1

    def added_banks(self, sub: str) -> tuple[str, ...]:
        rows = self._rows("SELECT bank FROM added_bank WHERE sub = ? ORDER BY rowid", sub)
        return tuple(row["bank"] for row in rows)

    # Authorization requests in progress

    def add_pending(self, query: str, now: float) -> Pending:
        pending = Pending(uuid.uuid4().hex, query, None, now)
        self._run("INSERT INTO pending VALUES (?, ?, NULL, ?)", pending.id, query, now)
        return pending

    def pending(self, pending_id: str, *, since: float) -> Pending | None:
        statement = "SELECT * FROM pending WHERE id = ? AND created_at > ?"
        row = self._row(statement, pending_id, since)
        return Pending(**row) if row else None

    def name_user(self, pending_id: str, sub: str) -> None:
        self._run("UPDATE pending SET sub = ? WHERE id = ?", sub, pending_id)

    def finish_pending(self, pending_id: str) -> bool:
        """Take the request out; False if somebody else has."""
        return self._run("DELETE FROM pending WHERE id = ?", pending_id) == 1

    # Sessions

    def add_session(self, session: Session) -> None:
        self._run(
            "INSERT INTO session (id, sub, scope, auth_time, expires_at) VALUES (?, ?, ?, ?, ?)",
            *(session.id, session.sub, session.scope, session.auth_time, session.expires_at),
        )

    def session(self, session_id: str) -> Session | None:
        row = self._row("SELECT * FROM session WHERE id = ?", session_id)
        return _session(row) if row else None

    def sessions(self, sub: str | None = None) -> list[Session]:
        rows = self._rows("SELECT * FROM session WHERE ? IS NULL OR sub = ?", sub, sub)
        return [_session(row) for row in rows]

    def prolong_session(self, session_id: str, expires_at: float | None) -> None:
        self._run("UPDATE session SET expires_at = ? WHERE id = ?", expires_at, session_id)

    def end_session(self, session_id: str) -> None:
        self._run("UPDATE session SET is_ended = 1 WHERE id = ?", session_id)

    def end_login(self, sid: str) -> None:
        """End all that came of one login, also what was granted for when the user is away."""
        for session_id in (sid, f"{sid}{OFFLINE}"):
            self.end_session(session_id)

    def withdraw_consent(self, session_id: str) -> None:
        self._run("UPDATE session SET is_withdrawn = 1 WHERE id = ?", session_id)

    # Authorization codes and refresh tokens

    def add_code(self, code: str, session: str, details: Mapping[str, Any], until: float) -> None:
        statement = "INSERT INTO code (hash, session, details, expires_at) VALUES (?, ?, ?, ?)"
        self._run(statement, digest(code), session, json.dumps(details), until)

    def code(self, code: str) -> Code | None:
        with self._transaction():
            row = self._row("SELECT * FROM code WHERE hash = ?", digest(code))
            session = self.session(row["session"]) if row else None
        if session is None:
            return None
        return Code(session, json.loads(row["details"]), row["expires_at"], bool(row["is_spent"]))

    def spend_code(self, code: str) -> bool:
        """Mark the code as used; False if it already was."""
        statement = "UPDATE code SET is_spent = 1 WHERE hash = ? AND is_spent = 0"
        return self._run(statement, digest(code)) == 1

    def add_refresh_token(self, token: str, session: str, expires_at: float | None) -> None:
        statement = "INSERT INTO refresh_token (hash, session, expires_at) VALUES (?, ?, ?)"
        self._run(statement, digest(token), session, expires_at)

    def refresh_token(self, token: str) -> RefreshToken | None:
        # One transaction, so that token and session are seen at the same moment.
        with self._transaction():
            row = self._row("SELECT * FROM refresh_token WHERE hash = ?", digest(token))
            session = self.session(row["session"]) if row else None
        if session is None:
            return None
        return RefreshToken(session, row["expires_at"], bool(row["is_spent"]))

    def spend_refresh_token(self, token: str) -> bool:
        """Mark the token as spent; False if it already was. One statement: only one caller wins."""
        statement = "UPDATE refresh_token SET is_spent = 1 WHERE hash = ? AND is_spent = 0"
        return self._run(statement, digest(token)) == 1

    # Payments

    def add_payment(self, sub: str, kind: str, document: Mapping[str, Any]) -> int:
        statement = "INSERT INTO payment (sub, kind, document) VALUES (?, ?, ?) RETURNING id"
        return int(self._row(statement, sub, kind, json.dumps(document))["id"])

    def payment(self, payment_id: int) -> StoredPayment | None:
        row = self._row("SELECT * FROM payment WHERE id = ?", payment_id)
        return StoredPayment(*row) if row else None

    def payments(self, sub: str, kind: str) -> list[StoredPayment]:
        statement = "SELECT * FROM payment WHERE sub = ? AND kind = ? ORDER BY id DESC"
        return [StoredPayment(*row) for row in self._rows(statement, sub, kind)]

    def change_payment(self, payment: StoredPayment, document: Mapping[str, Any]) -> bool:
        """Give *payment* another document; False if somebody else has since it was read."""
        statement = "UPDATE payment SET document = ? WHERE id = ? AND document = ?"
        return self._run(statement, json.dumps(document), payment.id, payment.text) == 1

    # The one connection

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _run(self, statement: str, *values: object) -> int:
        with self._lock:
            return self._db.execute(statement, values).rowcount

    def _row(self, statement: str, *values: object) -> Any:
        with self._lock:
            return self._db.execute(statement, values).fetchone()

    def _rows(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()


def _session(row: Mapping[str, Any]) -> Session:
    flags = {"is_ended": bool(row["is_ended"]), "is_withdrawn": bool(row["is_withdrawn"])}
    return Session(**{**row, **flags})


def digest(token: str) -> str:
    """Return the digest by which the sandbox recognises a token or code."""
    return hashlib.sha256(token.encode()).hexdigest()

"""The records: one SQLite file that web and controller, each with many threads, read and write at the same time.

A record is stored whole, as JSON. The columns beside it serve lists and limits, and are written in the same
transaction. Writers queue by `BEGIN IMMEDIATE`, so a transaction's reads stay valid until its end; readers never wait
(WAL). A connection with an error is closed, which rolls its transaction back.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from builds.build import VERSION, Build, RecordVersion, State
from builds.engines import UNREADABLE, Conflict, EngineError, NotFound, Page, Submission, Unavailable, paging
from builds.engines.marks import (
    asks_of,
    cancelled,
    gained,
    joined,
    newly_queued,
    queue_full,
    resent,
    share_full,
    withdrawn,
)
from builds.engines.paging import microseconds
from builds.faults import Fault, crash_if_armed
from builds.structs import make_ready

log = logging.getLogger(__name__)

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another writer: Git hosts wait ten for the response."""

CONNECTIONS = 8
"""Concurrent connections. Further readers wait for a short time instead of opening more files. (SQLite keeps a file
open while any other connection has a lock on it.)"""

SCHEMA = 1
"""Version of the file (its `user_version`); the records in it have a version of their own."""

_TABLES = (
    # Revisions are never reused, not even for a record that was deleted and created again.
    "CREATE TABLE clock (revision INTEGER NOT NULL) STRICT",
    "INSERT INTO clock VALUES (0)",
    """CREATE TABLE builds (
        name TEXT PRIMARY KEY,
        record BLOB NOT NULL,       -- builds.build.Build as JSON
        revision INTEGER NOT NULL,
        open INTEGER NOT NULL,
        state TEXT NOT NULL,        -- as the API shows it
        repository TEXT NOT NULL,
        askers TEXT NOT NULL,       -- JSON list: the person of each ask that waits for an answer
        created INTEGER NOT NULL,   -- microseconds since 1970
        finished INTEGER
    ) STRICT""",
    "CREATE INDEX builds_newest ON builds (created, name)",
    "CREATE INDEX builds_by_repository ON builds (repository, created, name)",
    "CREATE INDEX builds_by_state ON builds (state, created, name)",
    "CREATE INDEX builds_open ON builds (created, name) WHERE open = 1",
    "CREATE INDEX builds_closed ON builds (finished, name) WHERE open = 0",
    f"PRAGMA user_version = {SCHEMA}",
)

_TROUBLES = {
    sqlite3.SQLITE_BUSY: "is kept locked by another process",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_READONLY: "may not be written to",
    sqlite3.SQLITE_PERM: "may not be opened",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_NOTADB: "is not a database",
}

_Row = tuple[str, bytes, int]
"""name, record, revision"""


class Store:
    """The half of an engine that stores records; `builds.engines.Engine` documents the methods."""

    def __init__(self, path: Path, *, max_queued: int, max_queued_per_user: int, now: Callable[[], datetime]) -> None:
        self._path = path
        self._max_queued = max_queued
        self._max_queued_per_user = max_queued_per_user
        self._now = now
        self._idle: list[sqlite3.Connection] = []
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        # Threads of one process queue here, without SQLite's polling.
        self._writer = threading.Lock()
        self._reported: set[tuple[str, int]] = set()
        make_ready()
        with self._translated():
            self._prepare()

    def connect(self) -> sqlite3.Connection:
        """A new connection, for one thread at a time. Raises sqlite3.Error."""
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def accept(self, submissions: Sequence[Submission]) -> list[Build]:
        groups: dict[str, list[Submission]] = {}
        for ask in submissions:
            groups.setdefault(ask.name, []).append(ask)
        with self._writing() as connection:
            builds = {name: self._join(connection, group) for name, group in groups.items()}
            crash_if_armed(Fault.WEB_ACCEPTING)
        crash_if_armed(Fault.WEB_ACCEPTED)
        return [builds[ask.name] for ask in submissions]

    def get(self, name: str) -> Build:
        with self._reading() as connection:
            return self._require(connection, name)

    def list(self, *, repository: str | None, state: State | None, limit: int, cursor: str | None) -> Page:
        wanted = {"repository = ?": repository, "state = ?": state}
        conditions = [condition for condition, value in wanted.items() if value is not None]
        values: list[object] = [str(value) for value in wanted.values() if value is not None]
        if cursor is not None:
            conditions.append("(created, name) < (?, ?)")
            values += paging.place(cursor)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT created, name, record, revision FROM builds {where} ORDER BY created DESC, name DESC LIMIT ?"  # noqa: S608  (conditions are constants)
        with self._reading() as connection:
            rows = connection.execute(query, (*values, limit + 1)).fetchall()
        more = len(rows) > limit
        builds = tuple(self._readable(row[1:] for row in rows[:limit]))
        return Page(builds=builds, cursor=paging.cursor(rows[limit - 1][:2]) if more else None)

    def cancel(self, name: str, by: str | None) -> Build:
        return self._marked(name, lambda build: cancelled(build, by, self._now()))

    def resend(self, name: str, sink: str, by: str | None) -> Build:
        return self._marked(name, lambda build: resent(build, sink, by, self._now()))

    def withdraw(self, name: str, ref: str) -> Build:
        return self._marked(name, lambda build: withdrawn(build, ref))

    def _marked(self, name: str, mark: Callable[[Build], Build]) -> Build:
        with self._writing() as connection:
            before = self._require(connection, name)
            after = mark(before)
            return before if after is before else self._put(connection, after)

    def write(self, build: Build) -> Build:
        with self._writing() as connection:
            stored = self._require(connection, build.name)
            if stored.revision != build.revision:
                raise Conflict(f"The record of {build.name} has changed since revision {build.revision}.")
            return self._put(connection, replace(stored, status=build.status, open=build.open))

    def open(self) -> tuple[Sequence[Build], dict[str, str]]:
        """All open records, oldest first; and, by name, why others cannot be read."""
        with self._reading() as connection:
            query = "SELECT name, record, revision FROM builds WHERE open = 1 ORDER BY created, name"
            rows = connection.execute(query).fetchall()
        builds: dict[str, Build] = {}
        unreadable: dict[str, str] = {}
        for row in rows:
            try:
                builds[row[0]] = _decoded(row)
            except Unavailable as error:
                unreadable[row[0]] = str(error)
        return tuple(builds.values()), unreadable

    def has(self, name: str) -> bool:
        """Whether a record of that name exists, readable or not."""
        with self._reading() as connection:
            return connection.execute("SELECT 1 FROM builds WHERE name = ?", (name,)).fetchone() is not None

    def closed(self, before: datetime) -> Iterator[Build]:
        """Reads in batches and holds nothing between them, so that each record may be forgotten as it comes."""
        place: tuple[int, str] = (-(2**63), "")
        query = """SELECT finished, name, record, revision FROM builds
            WHERE open = 0 AND (finished, name) > (?, ?) AND finished <= ? ORDER BY finished, name LIMIT 100"""
        while True:
            with self._reading() as connection:
                rows = connection.execute(query, (*place, microseconds(before))).fetchall()
            yield from self._readable(row[1:] for row in rows)
            if not rows:
                return
            place = rows[-1][:2]

    def forget(self, build: Build) -> None:
        """Deletes the record unless it has changed, because then it was requested again."""
        with self._writing() as connection:
            same = (build.name, build.revision)
            connection.execute("DELETE FROM builds WHERE name = ? AND revision = ?", same)

    # ---- Inside a transaction ---------------------------------------------------------------------------------------

    def _join(self, connection: sqlite3.Connection, submissions: Sequence[Submission]) -> Build:
        """Writes the build if the submissions add something."""
        before = self._find(connection, submissions[0].name)
        after = joined(
            before, submissions, uid=lambda: str(uuid.uuid4()), now=self._now(), share=self._max_queued_per_user
        )
        if after is before:
            return after
        written = self._put(connection, after)
        if newly_queued(before, after):
            self._check_queue(connection)
        self._check_shares(connection, gained(before, after))
        return written

    def _check_queue(self, connection: sqlite3.Connection) -> None:
        """Raises QueueFull if the build just written exceeds the limit."""
        (queued,) = connection.execute("SELECT count(*) FROM builds WHERE state = 'queued'").fetchone()
        if queued > self._max_queued:
            raise queue_full(self._max_queued)

    def _check_shares(self, connection: sqlite3.Connection, persons: Iterable[str]) -> None:
        """Raises QueueFull if one of them exceeds their share."""
        query = "SELECT count(*) FROM builds, json_each(askers) AS asker WHERE state = 'queued' AND asker.value = ?"
        for by in persons:
            (theirs,) = connection.execute(query, (by,)).fetchone()
            if theirs > self._max_queued_per_user:
                raise share_full(by, self._max_queued_per_user)

    def _find(self, connection: sqlite3.Connection, name: str) -> Build | None:
        query = "SELECT name, record, revision FROM builds WHERE name = ?"
        row: _Row | None = connection.execute(query, (name,)).fetchone()
        return None if row is None else _decoded(row)

    def _require(self, connection: sqlite3.Connection, name: str) -> Build:
        build = self._find(connection, name)
        if build is None:
            raise NotFound(f"Build {name} not found.")
        return build

    def _put(self, connection: sqlite3.Connection, build: Build) -> Build:
        """Writes a record with its columns; returns it with its new revision."""
        (revision,) = connection.execute("UPDATE clock SET revision = revision + 1 RETURNING revision").fetchone()
        columns = {
            "name": build.name,
            "record": msgspec.json.encode(replace(build, revision="")),
            "revision": revision,
            "open": int(build.open),
            "state": str(build.state),
            "repository": build.request.repository,
            "askers": msgspec.json.encode(sorted(asks_of(build).elements())).decode(),
            "created": microseconds(build.created_at),
            "finished": build.status.finished_at and microseconds(build.status.finished_at),
        }
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        updates = ", ".join(f"{column} = excluded.{column}" for column in columns)
        connection.execute(
            f"INSERT INTO builds ({names}) VALUES ({places}) ON CONFLICT (name) DO UPDATE SET {updates}",  # noqa: S608
            tuple(columns.values()),
        )
        return replace(build, revision=str(revision))

    # ---- The file ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Creates the tables. One process at a time: SQLite does not wait while the file changes to WAL."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            with suppress(OSError):  # SQLite's own mode would be readable for others
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
            connection = self.connect()
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > SCHEMA:
                    raise EngineError(
                        f"{self._path} belongs to a newer Kiln (schema {version}; this version supports {SCHEMA}). "
                        "Upgrade Kiln, or set another KILN_STATE_DIR."
                    )
                if version == 0:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in _TABLES:
                        connection.execute(statement)
                    connection.execute("COMMIT")
            finally:
                connection.close()
        finally:
            os.close(folder)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """An exclusive connection; outside a transaction each statement sees all earlier commits."""
        with self._room, self._translated():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self.connect()
            try:
                yield connection
            except EngineError:  # an answer: the connection itself works
                connection.rollback()
                self._idle.append(connection)
                raise
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed at the end, rolled back by any exception."""
        if not self._writer.acquire(timeout=BUSY_TIMEOUT):
            raise Unavailable(f"{self._path.name} is locked by another thread. Try again.")
        try:
            with self._reading() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        finally:
            self._writer.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            trouble = _TROUBLES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, f"fails: {error}")
            raise Unavailable(f"The file of records, {self._path.name} in KILN_STATE_DIR, {trouble}.") from error

    def _readable(self, rows: Iterable[_Row]) -> Iterator[Build]:
        """Skips records that this version cannot read, and logs that once: a newer version may have written them."""
        for row in rows:
            try:
                yield _decoded(row)
            except Unavailable as error:
                if (row[0], row[2]) not in self._reported:
                    self._reported.add((row[0], row[2]))
                    log.warning("%s It is left unchanged.", error, extra={"build": row[0]})


def _decoded(row: _Row) -> Build:
    """Raises Unavailable for a record of another version, or an unreadable one."""
    name, record, revision = row
    try:
        version = msgspec.json.decode(record, type=RecordVersion).version
        if version != VERSION:
            raise Unavailable(
                f"The record of {name} has version {version}, but this version of Kiln supports only {VERSION}."
            )
        return replace(msgspec.json.decode(record, type=Build), name=name, revision=str(revision))
    except UNREADABLE as error:
        raise Unavailable(f"The record of {name} cannot be read: {error}.") from error

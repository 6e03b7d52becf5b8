"""Notifies waiting threads of changes to a record by any process.

SQLite can tell whether another connection has written, at the cost of a read of shared memory (`PRAGMA data_version`,
https://www.sqlite.org/pragma.html#pragma_data_version), but it has to be polled. One thread polls on behalf of all
waiting threads, and only while there are any. It reads the revisions of the awaited records, and wakes those threads
whose record has changed. So hundreds of viewers of a log cost as much as one, regardless of other writes.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable

POLL_INTERVAL = 0.05
"""Seconds between two polls."""

Mark = tuple[int, int]
"""The connection that was polled, and its answer. Equal marks mean that nothing was written in between."""


class _Watched:
    """An awaited record. `revision` is `None` if the record is missing or cannot be read."""

    def __init__(self, lock: threading.Lock, revision: int | None) -> None:
        self.news = threading.Condition(lock)
        self.revision = revision
        self.waiting = 0

    def is_new(self, since: int) -> bool:
        """Whether the record is newer than `since`, which may itself be newer than the revision known here."""
        return self.revision is None or self.revision > since


class Changes:
    """`connect` makes a separate connection, which sees the writes of all others."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._connections = 0
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}
        self._watching = False

    def mark(self) -> Mark:
        """A mark to take before reading: a different mark later means that something was written after it."""
        with self._lock:
            return self._ask()

    def wait(self, name: str, since: int, timeout: float) -> bool:
        """Whether a record is newer than `since`, or becomes so within `timeout` seconds.

        A missing or unreadable record counts as newer: its reader gets the reason.
        """
        with self._lock:
            watched = self._watched.get(name)
            if watched is None:
                watched = self._watched[name] = _Watched(self._lock, self._revision(name))
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, args=(self._ask(),), name="changes", daemon=True).start()
            watched.waiting += 1
            try:
                return watched.news.wait_for(lambda: watched.is_new(since), timeout)
            finally:
                watched.waiting -= 1
                if not watched.waiting:
                    del self._watched[name]

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _watch(self, last: Mark) -> None:
        while True:
            time.sleep(POLL_INTERVAL)
            with self._lock:
                if not self._watched:
                    self._watching = False
                    return
                mark = self._ask()
                if mark == last:
                    continue
                last = mark
                for name, watched in self._watched.items():
                    watched.revision, before = self._revision(name), watched.revision
                    if watched.revision != before:
                        watched.news.notify_all()

    def _ask(self) -> Mark:
        """While the file cannot be read the mark stays the same, so that waiting threads do not spin."""
        version = self._read("PRAGMA data_version")
        return (0, 0) if version is None else (self._connections, version)

    def _revision(self, name: str) -> int | None:
        return self._read("SELECT revision FROM builds WHERE name = ?", name)

    def _read(self, query: str, *values: str) -> int | None:
        """One number; `None` if it is missing, or the file cannot be read."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connections += 1
            found = self._connection.execute(query, values).fetchone()
        except sqlite3.Error:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return None
        return None if found is None else int(found[0])

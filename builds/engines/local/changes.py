"""Tells those who wait that the records have changed, whichever process changed them.

SQLite can say so of a connection at the price of a look at shared memory (`PRAGMA data_version`,
https://www.sqlite.org/pragma.html#pragma_data_version), but it has to be asked. One thread asks for everybody who
waits, and only while somebody does: a hundred viewers of logs cost what one costs.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable

TICK = 0.05
"""Seconds between two questions."""

Mark = tuple[int, int]
"""Which connection was asked, and what it answered; equal marks mean that nothing was written in between."""


class Changes:
    """`connect` makes a connection of our own, so that the writes of all others are news to it."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._connections = 0
        self._lock = threading.Condition()
        self._waiting = 0
        self._watched = False

    def mark(self) -> Mark:
        """To be taken before reading: `wait` returns for what is written after it."""
        with self._lock:
            return self._ask()

    def wait(self, mark: Mark, timeout: float) -> None:
        """Returns once the mark is another one, or after `timeout` seconds."""
        with self._lock:
            self._waiting += 1
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, args=(mark,), name="changes", daemon=True).start()
            self._lock.wait_for(lambda: self._ask() != mark, timeout)
            self._waiting -= 1

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _watch(self, last: Mark) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._watched = False
                    return
                mark = self._ask()
                if mark != last:
                    self._lock.notify_all()
                last = mark
            time.sleep(TICK)

    def _ask(self) -> Mark:
        """While the file cannot be read the mark stays the same: who waits must not spin, and who reads is told why."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connections += 1
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return (0, 0)
        return (self._connections, int(version))

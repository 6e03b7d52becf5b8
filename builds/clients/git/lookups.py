"""Limits how many callers wait for a Git host concurrently: each holds a thread of web while the host is silent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from builds.build import is_person
from builds.errors import TryAgain

SHARE = 8
"""Concurrent look-ups of one person."""
RETRY_AFTER = 10.0
"""Seconds. A resolution times out earlier."""


class LookupLimiter:
    """Places for callers whose ref is being looked up. Safe to use from many threads."""

    def __init__(self, limit: int, share: int = SHARE) -> None:
        self._limit = limit
        self._share = share
        self._lock = threading.Lock()
        self._here = Counter[str]()

    @contextmanager
    def place(self, by: str | None) -> Iterator[None]:
        """Reserves a place without waiting. Raises TryAgain if none is free, or the person already has their share."""
        who = by or ""
        with self._lock:
            self._check(who)
            self._here[who] += 1
        try:
            yield
        finally:
            with self._lock:
                self._here[who] -= 1
                self._here += Counter()  # drops zero counts

    def _check(self, who: str) -> None:
        if self._here.total() >= self._limit:
            raise TryAgain("Too many refs are being looked up. Try again.", retry_after=RETRY_AFTER)
        if is_person(who) and self._here[who] >= self._share:
            said = f"Kiln is looking up {self._share} refs for you already, which is one person's share. Try again."
            raise TryAgain(said, retry_after=RETRY_AFTER)

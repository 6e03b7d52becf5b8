"""How many may wait for a Git host at the same time: each holds a thread of web while the host is silent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from builds.build import is_person
from builds.errors import TryAgain

SHARE = 8
"""Of one person."""
RETRY_AFTER = 10.0
"""Seconds: a look-up is given up before that."""


class LookupLimiter:
    """Places for those whose ref is being looked up. Safe to use from many threads."""

    def __init__(self, limit: int, share: int = SHARE) -> None:
        self._limit = limit
        self._share = share
        self._lock = threading.Lock()
        self._here = Counter[str]()

    @contextmanager
    def place(self, by: str | None) -> Iterator[None]:
        """A place, without waiting for one. Raises TryAgain where there is none, or a person has their share."""
        who = by or ""
        with self._lock:
            self._check(who)
            self._here[who] += 1
        try:
            yield
        finally:
            with self._lock:
                self._here[who] -= 1
                self._here += Counter()  # without those who have left

    def _check(self, who: str) -> None:
        if self._here.total() >= self._limit:
            raise TryAgain("Too many refs are being looked up. Try again.", retry_after=RETRY_AFTER)
        if is_person(who) and self._here[who] >= self._share:
            said = f"Kiln is looking up {self._share} refs for you already, which is one person's share. Try again."
            raise TryAgain(said, retry_after=RETRY_AFTER)

"""Liveness: each long-lived thread announces its next heartbeat.

A thread that blocks forever does its work no longer and reports nothing. A late pulse therefore fails `/livez` and,
soon after, ends the process (`kiln.vitals`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

ROUND = 20.0
"""Seconds to the next heartbeat, unless the thread announces more."""


class Pulse:
    """The heartbeat of one thread. It is late only after its first `beat`; another thread may beat on its behalf."""

    def __init__(self, name: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`name` is the name of the thread in messages."""
        self.name = name
        self._monotonic = monotonic
        self._due = math.inf

    def beat(self, seconds: float = ROUND) -> None:
        """Announce the next beat within so many seconds."""
        self._due = self._monotonic() + seconds

    def rest(self) -> None:
        """Expect no further beat: the thread has stopped as requested."""
        self._due = math.inf

    @property
    def late(self) -> float:
        """Return the seconds since the beat was due; 0 before that."""
        return max(self._monotonic() - self._due, 0.0)

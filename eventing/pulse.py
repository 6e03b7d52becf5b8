"""Signs of life: each long-lived thread says by when it will come round again.

A thread that is blocked for good is worse than one that has died: nothing is done, and nobody is told. So a pulse that
is late makes `/livez` fail and, soon after, ends the process (`kiln.vitals`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

ROUND = 20.0
"""Seconds within which a thread comes round, unless it says that it may take longer."""


class Pulse:
    """One thread's. It is late only after its first `beat`; what beats may be another thread that works for it."""

    def __init__(self, name: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`name` is the thread's, as people are told."""
        self.name = name
        self._monotonic = monotonic
        self._due = math.inf

    def beat(self, seconds: float = ROUND) -> None:
        """The next beat comes within so many seconds."""
        self._due = self._monotonic() + seconds

    def rest(self) -> None:
        """None is due: the thread has ended as it was told to."""
        self._due = math.inf

    @property
    def late(self) -> float:
        """Seconds since it was due; 0 while it is not."""
        return max(self._monotonic() - self._due, 0.0)

"""A circuit breaker: who asks a server that does not answer is told so at once, and not after a time-out of their own.

https://learn.microsoft.com/en-us/azure/architecture/patterns/circuit-breaker

Not pybreaker, whose `call` holds a lock: one call at a time. Here the call that tries again is also shortened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FAILURES = 3
"""In a row, after which it opens."""
REST = 2.0
"""Seconds for which it stays open; then one call tries whether it can be closed."""
SUSPICIOUS = 2.0
"""Seconds that the call may take which tries whether the circuit can be closed."""


class Circuit:
    """Counts calls that had no answer. For any number of threads.

    Closed: calls pass. Open: none does. Half-open, after `rest` seconds: one passes, and its outcome decides.
    """

    def __init__(
        self, *, failures: int = FAILURES, rest: float = REST, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = failures
        self._rest = rest
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try = float("-inf")

    def passes(self) -> bool:
        """Whether a call may be made now. Whoever makes it says what came of it."""
        with self._lock:
            if self._failures < self._most:
                return True
            now = self._monotonic()
            if now < self._next_try:
                return False
            self._next_try = now + max(self._rest, SUSPICIOUS)  # nobody else tries before this one has an answer
            return True

    def patience(self, seconds: float) -> float:
        """The seconds that a call may take, which takes `seconds` at most."""
        return min(seconds, SUSPICIOUS) if self._failures >= self._most else seconds

    def answered(self) -> None:
        with self._lock:
            self._failures = 0

    def unanswered(self) -> None:
        with self._lock:
            self._failures += 1
            self._next_try = self._monotonic() + self._rest

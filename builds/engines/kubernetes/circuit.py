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
SILENCE = 3.0
"""Seconds without any answer to so many calls that are under way, after which it is open as well: whoever comes then
need not wait until they are given up."""
FAILING = 10.0
"""Seconds after a call that had no answer for which the server counts as failing: it may answer some calls and not
others, as one of several behind a load balancer that hangs."""
SUSPICIOUS = 2.0
"""Seconds that the call may take which tries whether the circuit can be closed."""


class Circuit:
    """Counts calls that had no answer. For any number of threads.

    Closed: calls pass. Open: none does. Half-open, after `rest` seconds: one passes, and its outcome decides. While the
    server is silent to calls that are under way, these decide.
    """

    def __init__(
        self,
        *,
        failures: int = FAILURES,
        rest: float = REST,
        silence: float = SILENCE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = failures
        self._rest = rest
        self._silence = silence
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try = float("-inf")
        self._under_way = 0
        self._heard = float("-inf")
        self._failed = float("-inf")

    def passes(self) -> bool:
        """Whether a call may be made now. Whoever makes it says what came of it."""
        with self._lock:
            now = self._monotonic()
            if self._failures >= self._most:
                if now < self._next_try:
                    return False
                self._next_try = now + max(self._rest, SUSPICIOUS)  # nobody else tries before this one has an answer
            elif self._silent(now):
                return False
            if not self._under_way:
                self._heard = now
            self._under_way += 1
            return True

    @property
    def open(self) -> bool:
        """Whether there is no hope for who waits to make a call."""
        with self._lock:
            return self._failures >= self._most or self._silent(self._monotonic())

    @property
    def failing(self) -> bool:
        """Whether a call had no answer lately: who waits to make one should not count on having much time for it."""
        return self.open or self._monotonic() - self._failed < FAILING

    def _silent(self, now: float) -> bool:
        return self._under_way >= self._most and now - self._heard > self._silence

    def patience(self, seconds: float) -> float:
        """The seconds that a call may take, which takes `seconds` at most."""
        return min(seconds, SUSPICIOUS) if self._failures >= self._most else seconds

    def answered(self) -> None:
        with self._lock:
            self._failures = 0
            self._under_way -= 1
            self._heard = self._monotonic()

    def unanswered(self) -> None:
        with self._lock:
            self._failures += 1
            self._under_way -= 1
            self._failed = self._monotonic()
            self._next_try = self._failed + self._rest

    def missed(self) -> None:
        """That somebody has waited for another's call in vain: what many share fails as often as each by itself."""
        with self._lock:
            self._failures += 1

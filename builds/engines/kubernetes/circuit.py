"""A circuit breaker: calls to a server that does not answer fail immediately, instead of after a timeout each.

https://learn.microsoft.com/en-us/azure/architecture/patterns/circuit-breaker

pybreaker's `call` holds a lock, which allows one call at a time. This breaker also shortens the probe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FAILURES = 3
"""Consecutive failures that open the circuit."""
REST = 2.0
"""Seconds for which the circuit stays open. Then one call, the probe, decides whether it closes."""
SILENCE = 3.0
"""Seconds without any answer to so many calls in progress, after which the circuit opens as well. Later calls need not
wait for the timeout of those."""
FAILING = 10.0
"""Seconds after an unanswered call for which the server counts as failing. Some calls may be answered then: one of
several API servers behind a load balancer hangs."""
SUSPICIOUS = 2.0
"""Seconds that the probe may take."""


class Circuit:
    """Counts unanswered calls. Thread-safe.

    Closed: calls pass. Open: none does. Half-open, after `rest` seconds: one passes, and its outcome decides. While the
    server is silent to calls under way, their outcome decides.
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
        """Whether a call may be made now. Its caller then calls `answered` or `unanswered`."""
        with self._lock:
            now = self._monotonic()
            if self._failures >= self._most:
                if now < self._next_try:
                    return False
                self._next_try = now + max(self._rest, SUSPICIOUS)  # one probe at a time
            elif self._silent(now):
                return False
            if not self._under_way:
                self._heard = now
            self._under_way += 1
            return True

    @property
    def open(self) -> bool:
        """Whether a call that waits for its turn would fail."""
        with self._lock:
            return self._failures >= self._most or self._silent(self._monotonic())

    @property
    def failing(self) -> bool:
        """Whether a call was unanswered within the last `FAILING` seconds."""
        return self.open or self._monotonic() - self._failed < FAILING

    def _silent(self, now: float) -> bool:
        return self._under_way >= self._most and now - self._heard > self._silence

    def patience(self, seconds: float) -> float:
        """The time limit of a call whose own limit is `seconds`: shorter for the probe."""
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
        """Counts a caller that waited for another caller's unanswered call, as if it had made the call itself."""
        with self._lock:
            self._failures += 1

"""One question for all who ask it at the same time, and an answer that is believed for a moment.

Web's role may not watch, so who waits for a change has to ask again and again; with this a hundred viewers of a build
cost the API server what one costs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT = 256
"""Answers kept; the oldest go first."""


class _Answer(Generic[T]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.at = float("-inf")
        self.value: T | None = None


class Shared(Generic[T]):
    """Answers by key. Whatever `ask` raises is raised for the one who asked; the next asks again."""

    def __init__(self, max_age: float) -> None:
        self._max_age = max_age
        self._lock = threading.Lock()
        self._answers: dict[Hashable, _Answer[T]] = {}

    def get(self, key: Hashable, ask: Callable[[], T], *, max_age: float | None = None) -> T:
        """The answer to `ask`, at most `max_age` seconds old (by default what all answers may be)."""
        oldest = self._max_age if max_age is None else max_age
        answer = self._answer(key)
        with answer.lock:
            began = time.monotonic()
            if answer.value is None or began - answer.at > oldest:
                answer.value = ask()
                answer.at = began
            return answer.value

    def put(self, key: Hashable, value: T) -> None:
        """An answer that was had elsewhere: nobody is told an older one from now on."""
        answer = self._answer(key)
        with answer.lock:
            answer.value, answer.at = value, time.monotonic()

    def known(self, key: Hashable) -> T | None:
        """The answer that there is, however old."""
        with self._lock:
            answer = self._answers.get(key)
        return None if answer is None else answer.value

    def forget(self, key: Hashable) -> None:
        """The next who asks gets a new answer: this process has just changed it."""
        with self._lock:
            self._answers.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._answers.clear()

    def _answer(self, key: Hashable) -> _Answer[T]:
        with self._lock:
            answer = self._answers.pop(key, None) or _Answer()
            self._answers[key] = answer  # the newest place
            while len(self._answers) > KEPT:
                del self._answers[next(iter(self._answers))]
            return answer

"""A thread pool with a priority queue: the most urgent task goes first."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, PriorityQueue, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

BLOCKED_AFTER = 60.0
"""Seconds after which a task counts as blocked: every call that a task makes has a shorter time limit."""


class Writers(Generic[T]):
    """`number` threads that run tasks, none of which may raise.

    One thread submits tasks and takes their results. The thread that ran a task calls `ended` with its result, once
    `results` returns it.
    """

    def __init__(self, number: int, ended: Callable[[T], None]) -> None:
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="write")
        self._ended = ended
        self._numbers = itertools.count()
        self._waiting: PriorityQueue[tuple[int, int, Callable[[], T]]] = PriorityQueue()
        self._began: dict[int, float] = {}
        self._results: SimpleQueue[T] = SimpleQueue()

    def submit(self, urgency: int, task: Callable[[], T]) -> None:
        """Lower `urgency` goes first; among equals, first come, first served."""
        self._waiting.put((urgency, next(self._numbers), task))
        self._threads.submit(self._run)

    def results(self) -> list[T]:
        """The results of the tasks that have ended since the last call."""
        found: list[T] = []
        while True:
            try:
                found.append(self._results.get_nowait())
            except Empty:
                return found

    @property
    def backlog(self) -> int:
        """The number of tasks that wait for a free thread."""
        return self._waiting.qsize()

    @property
    def blocked(self) -> bool:
        """Whether a task has run for more than `BLOCKED_AFTER`."""
        return time.monotonic() - min(self._began.copy().values(), default=math.inf) > BLOCKED_AFTER

    def close(self) -> None:
        """Returns when all tasks have ended."""
        self._threads.shutdown()

    def _run(self) -> None:
        _, number, task = self._waiting.get_nowait()
        self._began[number] = time.monotonic()
        try:
            result = task()
        finally:
            del self._began[number]
        self._results.put(result)
        self._ended(result)

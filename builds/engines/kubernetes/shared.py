"""Single flight, write coalescing and a fair semaphore for web's calls of the API server.

Web's role has no `watch`, so requests that wait for a change poll. With `SingleFlight`, a hundred viewers of a build
cost the API server as much as one. The webhooks of a commit that was pushed to many refs arrive together:
`CoalescedWrites` writes them together. `FairSemaphore` bounds the number of concurrent writes, so that a storm of
commits does not slow down each of them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Generic, TypeVar

T = TypeVar("T")
W = TypeVar("W")

CHECK_INTERVAL = 0.5
"""Seconds between two checks whether to go on waiting."""
MAX_ANSWERS = 256
"""Answers kept; the oldest go first."""


class _CacheEntry(Generic[T]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.at = float("-inf")
        self.value: T | None = None
        self.failed_at = float("-inf")
        self.error: Exception | None = None


class SingleFlight(Generic[T]):
    """Single flight: answers by key. An exception of `ask` reaches its caller and all waiting callers, which would
    otherwise repeat the wait one after the other. The next caller asks again. Each waiting caller calls `missed` with
    the exception."""

    def __init__(self, max_age: float, missed: Callable[[Exception], object] = lambda _: None) -> None:
        self._max_age = max_age
        self._missed = missed
        self._lock = threading.Lock()
        self._answers: dict[Hashable, _CacheEntry[T]] = {}

    def get(self, key: Hashable, ask: Callable[[], T], *, max_age: float | None = None, waits: bool = True) -> T:
        """The answer to `ask`, at most `max_age` seconds old (default: the maximum age of all answers).

        Without `waits`, the call returns an older answer, if one exists, while another thread asks.
        """
        came = time.monotonic()
        oldest = self._max_age if max_age is None else max_age
        answer = self._answer(key)
        if not waits and answer.value is not None and answer.lock.locked():
            return answer.value
        with answer.lock:
            began = time.monotonic()
            if answer.value is not None and began - answer.at <= oldest:
                return answer.value
            if answer.error is not None and answer.failed_at >= came:
                self._missed(answer.error)
                raise answer.error.with_traceback(None)
            try:
                answer.value, answer.at, answer.error = ask(), began, None
            except Exception as error:
                answer.error, answer.failed_at = error, time.monotonic()
                raise
            return answer.value

    def put(self, key: Hashable, value: T) -> None:
        """Stores an answer from elsewhere, which replaces all older ones."""
        answer = self._answer(key)
        with answer.lock:
            answer.value, answer.at = value, time.monotonic()

    def known(self, key: Hashable, *, max_age: float = math.inf) -> T | None:
        """The stored answer, if it is at most `max_age` seconds old."""
        with self._lock:
            answer = self._answers.get(key)
        return None if answer is None or time.monotonic() - answer.at > max_age else answer.value

    def forget(self, key: Hashable) -> None:
        """Drops the answer, which this process has just changed."""
        with self._lock:
            self._answers.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._answers.clear()

    def _answer(self, key: Hashable) -> _CacheEntry[T]:
        with self._lock:
            answer = self._answers.pop(key, None) or _CacheEntry()
            self._answers[key] = answer  # the newest place
            while len(self._answers) > MAX_ANSWERS:
                del self._answers[next(iter(self._answers))]
            return answer


class _Batch(Generic[W, T]):
    """The next write of a key; then its result."""

    def __init__(self) -> None:
        self.wanted: list[W] = []
        self.done = False
        self.value: T | None = None
        self.error: Exception | None = None


class _KeyQueue(Generic[W, T]):
    """The callers of one key: one of them writes, and the others' items form the next batch."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.next: _Batch[W, T] = _Batch()
        self.users = 0


class CoalescedWrites(Generic[W, T]):
    """Write coalescing: one write at a time for each key, of all items so far. Its result or exception is for all
    callers.

    A write begins within `turn`: a caller that waits for its turn also writes the items that arrive meanwhile. An
    exception of `turn` is for all of them too. A caller that waits for another caller's write calls `check` every half
    second, and stops waiting with its exception. Its own items may be written all the same.
    """

    def __init__(
        self,
        write: Callable[[str, Sequence[W]], T],
        turn: Callable[[], AbstractContextManager[object]] = nullcontext,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._write = write
        self._turn = turn
        self._check = check
        self._lock = threading.Lock()
        self._queues: dict[str, _KeyQueue[W, T]] = {}

    def __call__(self, key: str, wanted: Sequence[W]) -> T:
        with self._lock:
            queue = self._queues.setdefault(key, _KeyQueue())
            queue.users += 1
            batch = queue.next
            batch.wanted += wanted
        try:
            with self._in(queue):
                if not batch.done:
                    self._do(key, queue, batch)
        finally:
            with self._lock:
                queue.users -= 1
                if not queue.users:
                    del self._queues[key]
        if batch.error is not None:
            raise batch.error
        return batch.value  # type: ignore[return-value]  # the result of the write

    @contextmanager
    def _in(self, queue: _KeyQueue[W, T]) -> Iterator[None]:
        while not queue.turn.acquire(timeout=CHECK_INTERVAL):
            self._check()
        try:
            yield
        finally:
            queue.turn.release()

    def _do(self, key: str, queue: _KeyQueue[W, T], batch: _Batch[W, T]) -> None:
        try:
            with self._turn():
                self._close(queue)
                batch.value = self._write(key, batch.wanted)
        except Exception as error:  # noqa: BLE001  (all waiting callers get it)
            batch.error = error
            if queue.next is batch:
                self._close(queue)
        batch.done = True

    def _close(self, queue: _KeyQueue[W, T]) -> None:
        """Begins the next batch."""
        with self._lock:
            queue.next = _Batch()


class FairSemaphore:
    """A fair semaphore: `number` at a time, first come, first served."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def one(self, timeout: float, check: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Raises TimeoutError without a turn within `timeout` seconds, or the exception of `check`, called every half
        second."""
        self._take(timeout, check)
        try:
            yield
        finally:
            self._give()

    def _take(self, timeout: float, check: Callable[[], object]) -> None:
        with self._lock:
            if self._free:  # no caller waits
                self._free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        deadline = time.monotonic() + timeout
        try:
            while not mine.wait(min(CHECK_INTERVAL, max(deadline - time.monotonic(), 0))):
                check()
                if time.monotonic() >= deadline:
                    raise TimeoutError  # noqa: TRY301  (like the exceptions of `check`)
        except BaseException:
            with self._lock:
                if mine.is_set():  # just now
                    self._hand_on()
                else:
                    self._waiting.remove(mine)
            raise

    def _give(self) -> None:
        with self._lock:
            self._hand_on()

    def _hand_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._free += 1

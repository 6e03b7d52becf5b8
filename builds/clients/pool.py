"""A pool of threads for requests to a site, with a limit on the number of waiting callers.

The pool has one thread for each permitted caller, so no request waits behind another. A caller reserves a place first,
and is refused immediately if none is free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class BoundedPool:
    """Safe for many threads. `most` callers may wait concurrently, each for `limit` seconds at most."""

    def __init__(self, name: str, *, most: int, limit: float) -> None:
        self.limit = limit
        self._threads = ThreadPoolExecutor(most, thread_name_prefix=name)
        self._places = threading.BoundedSemaphore(most)

    @contextmanager
    def place(self, refusal: Exception) -> Iterator[None]:
        """Reserves a place. Raises `refusal` if none is free."""
        if not self._places.acquire(blocking=False):
            raise refusal
        try:
            yield
        finally:
            self._places.release()

    def submit(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._threads.submit(ask, *args, **kwargs)

    def answer(self, asked: Future[T]) -> T:
        """Raises TimeoutError after the limit, and the exceptions of the request."""
        try:
            return asked.result(self.limit)
        except (TimeoutError, CancelledError):
            asked.cancel()  # a request that has begun ends by its own limits
            raise TimeoutError(f"no answer within {self.limit:g} s") from None

    def close(self) -> None:
        self._threads.shutdown()

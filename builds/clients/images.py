"""Checks whether an image exists in the registry, with a time limit for waiting callers.

The registry's response time depends on name servers, logins and disks. So requests run on a few threads of this module,
and callers get an answer within the limit. It is the digest, that the image is missing, or that the registry did not
answer in time. The last one is no reason to refuse a build.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from builds.builder.spec import LABEL_BUILD
from builds.clients.errors import RegistryError
from builds.clients.store import ImageStore

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = 2.0
"""Seconds that a caller waits for the registry."""
THREADS = 4
HEALTH_TTL = 15.0
"""Seconds for which an answer about the registry's health is cached, because clients may ask as often as they like."""


class Images:
    """Safe for many threads. `store` makes a client for an image; a client is for one thread at a time."""

    def __init__(self, store: Callable[[str], ImageStore], limit: float = TIMEOUT) -> None:
        self._store = store
        self._limit = limit
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="registry")
        self._health = threading.Lock()
        self._asked_at = -HEALTH_TTL
        self._answers = False

    def digest(self, image: str, tag: str, build: str) -> str | None:
        """The digest of the image that this build pushed under this name and tag; `None` if it is missing or unknown.

        The image's label must name the build, because another client may have pushed something else under this name.
        """

        def pushed(store: ImageStore) -> str | None:
            manifest = store.manifest(image, tag)
            labels = store.labels(image, manifest.digest) if manifest else None
            return manifest.digest if manifest and labels and labels.get(LABEL_BUILD) == build else None

        return self._within_limit(image, pushed)

    def answers(self, image: str) -> bool:
        """Whether the registry of an image (or of a prefix of images) answers."""
        with self._health:
            if time.monotonic() - self._asked_at >= HEALTH_TTL:
                self._answers = self._within_limit(image, lambda store: store.answers(image)) is True
                self._asked_at = time.monotonic()
            return self._answers

    def _within_limit(self, image: str, ask: Callable[[ImageStore], T]) -> T | None:
        asked = self._pool.submit(lambda: ask(self._store(image)))
        try:
            return asked.result(self._limit)
        except TimeoutError:
            asked.cancel()  # a request that has begun ends by its own limits
            log.warning("The registry did not answer within %g s", self._limit)
        except RegistryError as error:
            log.warning("%s", error)
        return None

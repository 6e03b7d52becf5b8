"""Whether an image is in the registry already, asked while somebody waits.

What a registry does with a question is not ours: a name server, a login and a slow disk come in between. So it is asked
on a few threads of this module's own, and who asks gets an answer within the limit: the digest, that there is none, or
that nobody knows, which is no reason to refuse a build.
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
"""Seconds after which nobody waits for the registry any more."""
THREADS = 4
HEALTH_TTL = 15.0
"""Seconds for which an answer about the registry's health holds: who may ask may ask as often as they like."""


class Images:
    """Safe to use from many threads. `store` makes a client for an image: one is for one thread at a time."""

    def __init__(self, store: Callable[[str], ImageStore], limit: float = TIMEOUT) -> None:
        self._store = store
        self._limit = limit
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="registry")
        self._health = threading.Lock()
        self._asked_at = -HEALTH_TTL
        self._answers = False

    def digest(self, image: str, tag: str, build: str) -> str | None:
        """Of what this build has pushed under this name and tag; `None` where it has not, or nobody can tell in time.

        The label says whose it is: what somebody else has put there was not built from what is asked for.
        """

        def pushed(store: ImageStore) -> str | None:
            manifest = store.manifest(image, tag)
            labels = store.labels(image, manifest.digest) if manifest else None
            return manifest.digest if manifest and labels and labels.get(LABEL_BUILD) == build else None

        return self._within_limit(image, pushed)

    def answers(self, image: str) -> bool:
        """Whether the registry of an image (or of a prefix of images) is up."""
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
            asked.cancel()  # unless it has begun; then the registry client's own limits end it
            log.warning("The registry did not answer within %g s", self._limit)
        except RegistryError as error:
            log.warning("%s", error)
        return None

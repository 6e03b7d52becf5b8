"""REST APIs of Git hosts: conditional GET requests with a short time limit.

Each response is cached with its `ETag`, because GitHub does not count a response of 304, Not Modified. A host that does
not answer, or reports too many requests, is suspended for a while. So callers must not rely on an answer: without a
clear one, `UnclearError` is raised.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeVar

import msgspec
import requests
from cachetools import LRUCache

from builds.clients.responses import TooLarge, read_body

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = 3.0
"""Seconds for one response. Git is queried afterwards, and needs time as well."""
BACKOFF = 60.0
"""Seconds for which an API is suspended after a failure or too many requests."""
MAX_BACKOFF = 3600.0
"""GitHub counts by the hour."""
MAX_CACHED = 1024
MAX_RESPONSE = 1 << 20
"""Default limit for the bytes of a response. Larger responses are not cached."""


class _Response(NamedTuple):
    status: int
    etag: str
    content: bytes


class UnclearError(Exception):
    """The API gives no clear answer."""


class HostApi:
    """Serves any number of hosts. Safe for many threads."""

    def __init__(self, *, limit: float = TIMEOUT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._cache: LRUCache[bytes, tuple[str, bytes]] = LRUCache(MAX_CACHED)
        self._suspended: dict[tuple[str, bool], float] = {}

    def get(
        self,
        host: str,
        url: str,
        token: str | None,
        deadline: float,
        kind: type[T],
        *,
        headers: Mapping[str, str],
        missing: Collection[int] = (404,),
        most: int = MAX_RESPONSE,
    ) -> T | None:
        """The answer of `host`, of at most `most` bytes; `None` if its status is among `missing`. `deadline` is a time
        of `time.monotonic`.

        Raises UnclearError.
        """
        counted = (host, token is not None)  # without a token, GitHub allows sixty an hour
        if time.monotonic() < self._suspended.get(counted, 0.0):
            raise UnclearError
        key = hashlib.sha256(f"{url} {token or ''}".encode()).digest()  # answers depend on the token
        with self._lock:
            etag, content = self._cache.get(key, ("", b""))
        condition = {"If-None-Match": etag} if etag else {}
        seconds = min(self._limit, deadline - time.monotonic())
        answer = self._asked(counted, url, token, {**headers, **condition}, seconds=seconds, most=most)
        if answer.status in missing:
            return None
        if answer.status == requests.codes.ok:
            content = answer.content
            self._store(key, answer.etag, content)
        elif answer.status != requests.codes.not_modified:
            raise UnclearError
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, RecursionError):
            raise UnclearError from None

    def _asked(
        self,
        counted: tuple[str, bool],
        url: str,
        token: str | None,
        headers: Mapping[str, str],
        *,
        seconds: float,
        most: int,
    ) -> _Response:
        """Raises UnclearError if no response arrives."""
        if seconds <= 0:
            raise UnclearError

        def authorized(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if token is not None:  # otherwise nothing, not even a netrc's entry
                request.headers["Authorization"] = f"Bearer {token}"
            return request

        try:
            with requests.get(
                url, headers=dict(headers), auth=authorized, timeout=seconds, allow_redirects=False, stream=True
            ) as answer:
                content = read_body(answer, most, seconds)
        except TooLarge:
            raise UnclearError from None
        except (requests.RequestException, OSError) as error:
            self._suspend(counted, BACKOFF, type(error).__name__)
            raise UnclearError from None
        if answer.status_code >= requests.codes.server_error or _counted_out(answer):
            self._suspend(counted, _pause(answer), f"status {answer.status_code}")
        return _Response(answer.status_code, answer.headers.get("ETag", ""), content)

    def _store(self, key: bytes, etag: str, content: bytes) -> None:
        with self._lock:
            if etag and len(content) <= MAX_RESPONSE:
                self._cache[key] = (etag, content)
            else:
                self._cache.pop(key, None)

    def _suspend(self, counted: tuple[str, bool], seconds: float, why: str) -> None:
        self._suspended[counted] = time.monotonic() + seconds
        log.warning("The API of %s is left alone for %.0f s (%s)", counted[0], seconds, why)


def _counted_out(answer: requests.Response) -> bool:
    """Whether the host reports too many requests. GitHub reports both of its limits with either status."""
    limited = "Retry-After" in answer.headers or answer.headers.get("X-RateLimit-Remaining") == "0"
    return answer.status_code == requests.codes.too_many_requests or (
        answer.status_code == requests.codes.forbidden and limited
    )


def _pause(answer: requests.Response) -> float:
    """Seconds until the next request is allowed."""
    after, reset = answer.headers.get("Retry-After", ""), answer.headers.get("X-RateLimit-Reset", "")
    if re.fullmatch(r"\d{1,9}", after):
        seconds = float(after)
    elif re.fullmatch(r"\d{1,12}", reset):
        seconds = float(reset) - time.time()
    else:
        seconds = BACKOFF
    return min(max(seconds, 1.0), MAX_BACKOFF)

"""The logs of attempts, as the kubelet serves them, for any number of readers at the cost of one.

While a log has readers, it is copied into a file as it grows: first the present content, then each new line. Readers
read the file. When an attempt has ended, its log is read once more to the end, so that the copy is complete. A log
without readers is dropped after a while. If the pod is gone, the log comes from the archive (`archive`).

The builder numbers its lines, so the copy skips lines that the kubelet serves twice.
"""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from builds.engines import LogLine, Unavailable, logfile
from builds.engines.kubernetes.api import Absent, Api, ApiError, Invalid, Stream
from builds.engines.kubernetes.jobs import CONTAINER, LABEL_ATTEMPT, LABEL_BUILD
from builds.engines.kubernetes.records import selector

log = logging.getLogger(__name__)

IDLE_TIMEOUT = 30.0
"""Seconds without a reader after which a copy is dropped."""
RETRY_INTERVAL = 1.0
"""Seconds between two attempts to read a log that does not exist yet, or whose stream broke."""
OVERLAP = 3
"""Seconds by which a stream overlaps the copied content, because clocks may differ."""

Key = tuple[str, int]
Kept = Callable[[], bytes | None]
"""Returns the archived log of an ended attempt. Raises ApiError."""


class Logs:
    """The logs of all builds; safe to use from many threads."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._folder = tempfile.TemporaryDirectory(prefix="kiln-logs-")
        self._lock = threading.Lock()
        self._copies: dict[Key, _Copy] = {}

    def lines(self, build: str, attempt: int, after: int, *, ended: Kept | None) -> Iterator[LogLine]:
        """The present lines after line `after`; the complete log if the attempt has `ended`. Raises Unavailable."""
        copy = self._copy((build, attempt))
        copy.refresh(ended=ended)
        yield from copy.lines(after)

    def content(self, build: str, attempt: int, pod: str | None = None) -> bytes:
        """The complete log of an ended attempt, as its pod (`pod`, if known) serves it. Raises Unavailable."""
        copy = self._copy((build, attempt))
        copy.pod = pod
        try:
            copy.refresh(ended=lambda: None)
            return copy.content()
        finally:
            self._let_go((build, attempt))

    def close(self) -> None:
        with self._lock:
            copies, self._copies = list(self._copies.values()), {}
        for copy in copies:
            copy.close()
        self._folder.cleanup()

    def _let_go(self, key: Key) -> None:
        with self._lock:
            copy = self._copies.pop(key, None)
        if copy is not None:
            copy.close()

    def _copy(self, key: Key) -> _Copy:
        with self._lock:
            idle = [other for other, copy in self._copies.items() if other != key and copy.idle > IDLE_TIMEOUT]
            gone = [self._copies.pop(other) for other in idle]
            copy = self._copies.get(key)
            if copy is None:
                path = Path(self._folder.name) / f"{key[0]}-{key[1]}"
                copy = self._copies[key] = _Copy(self._api, key, path)
        for other in gone:
            other.close()
        return copy


class _Copy:
    """The copy of one attempt's log. Readers call `refresh`, which decides which requests are needed."""

    def __init__(self, api: Api, key: Key, path: Path) -> None:
        self._api = api
        self._key = key
        self._path = path
        self._path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._appending = threading.Lock()
        self._last = 0
        self._complete = False
        self._asked = float("-inf")
        self._failure: Unavailable | None = None
        self._read = time.monotonic()
        self._stream: Stream | None = None
        self._follower: threading.Thread | None = None
        self._closed = False
        self.pod: str | None = None
        """The name of its pod, if known, because a list searches all pods of the namespace."""

    @property
    def idle(self) -> float:
        """Seconds since the last read."""
        return time.monotonic() - self._read

    def lines(self, after: int) -> Iterator[LogLine]:
        try:
            with self._path.open("rb") as file:
                yield from logfile.lines(file, self._key[1], after)
        except FileNotFoundError:
            return  # dropped in the same instant: the reader comes back

    def content(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def refresh(self, *, ended: Kept | None) -> None:
        """Raises Unavailable."""
        self._read = time.monotonic()
        if self._complete or (self._following and not ended):
            return
        with self._lock:
            if self._complete or self._closed or (self._following and not ended):
                return
            if self._asked_just_now(ended=ended is not None):
                return
            began = self._asked = time.monotonic()
            try:
                pod = self._take(ended)
            except Unavailable as error:
                self._failure, self._asked = error, time.monotonic()  # callers that waited for this need not wait again
                raise
            self._failure = None
            if ended:
                self._complete = True
                self._stop_following()
            elif pod is not None:
                self._follow(pod, began)

    def _take(self, ended: Kept | None) -> str | None:
        """Copies the pod's log, or else the archived one. Returns the pod if it has a log. Raises Unavailable."""
        try:
            pod = self._pod()
            if pod is not None and self._snapshot(pod):
                return pod
        except Unavailable:
            if ended is None or not self._take_kept(ended):
                raise
            return None
        if ended is not None:
            self._take_kept(ended)
        return None

    def _take_kept(self, kept: Kept) -> bool:
        """Whether the archive had the log. Raises Unavailable."""
        try:
            content = kept()
            self._append((content or b"").splitlines(keepends=True))
        except (ApiError, OSError) as error:
            raise Unavailable(f"The log that was kept cannot be read: {error}") from error
        return content is not None

    def _asked_just_now(self, *, ended: bool) -> bool:
        """Whether it is too soon for another request. Raises Unavailable if the last one failed."""
        if time.monotonic() - self._asked >= RETRY_INTERVAL:
            return False
        if self._failure is not None:
            raise Unavailable(str(self._failure))
        return not ended

    def close(self) -> None:
        self._closed = True
        self._stop_following()
        self._path.unlink(missing_ok=True)

    @property
    def _following(self) -> bool:
        return self._follower is not None and self._follower.is_alive()

    def _pod(self) -> str | None:
        if self.pod is not None:
            return self.pod
        build, attempt = self._key
        labels = selector({LABEL_BUILD: build, LABEL_ATTEMPT: str(attempt)})
        try:
            found = [one["metadata"]["name"] for one in self._api.list("pods", labels=labels, metadata_only=True)]
        except ApiError as error:
            raise Unavailable(f"The build's pod cannot be looked up: {error}") from error
        return found[-1] if found else None

    def _snapshot(self, pod: str) -> bool:
        """Copies the present content; `False` without a log."""
        path = self._api.path("pods", pod, "log")
        try:
            content = self._api.request("GET", path, query={"container": CONTAINER})
            self._append(content.splitlines(keepends=True))
        except (Absent, Invalid):
            return False  # the pod is gone, or its container waits to start
        except (ApiError, OSError) as error:
            raise Unavailable(f"The log of {pod} cannot be read: {error}") from error
        return True

    def _follow(self, pod: str, since: float) -> None:
        self._follower = threading.Thread(target=self._copying, args=(pod, since), name=f"log {pod}", daemon=True)
        self._follower.start()

    def _copying(self, pod: str, since: float) -> None:
        query = {
            "container": CONTAINER,
            "follow": "true",
            "sinceSeconds": str(math.ceil(time.monotonic() - since) + OVERLAP),
        }
        try:
            with self._api.stream(self._api.path("pods", pod, "log"), query=query) as stream:
                self._stream = stream
                for line in stream.lines():
                    self._append([line + b"\n"])
                    if self._closed or self.idle > IDLE_TIMEOUT:
                        return
        except (ApiError, OSError) as error:
            log.debug("The stream of %s's log broke: %s", pod, error)
        finally:
            self._stream = None

    def _stop_following(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.close()

    def _append(self, lines: list[bytes]) -> None:
        """Appends the new lines, in order. The follower may still append while the last snapshot is taken."""
        with self._appending:
            new, last = [], self._last
            for line in lines:
                number = logfile.number(line)
                if number is not None and number > last:
                    new.append(line)
                    last = number
            if new and not self._closed:
                _write(self._path, b"".join(new))
                self._last = last


def _write(path: Path, content: bytes) -> None:
    """Writes the complete content at the end of the file, or nothing. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        before, view = file.tell(), memoryview(content)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError:
            file.truncate(before)
            raise

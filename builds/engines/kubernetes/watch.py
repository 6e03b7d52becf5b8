"""A copy of all objects of a kind that a selector matches, updated by a thread: list once, then watch.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes

The official client's equivalent sends a failing server a thousand requests per second. Here the policy is one list of
waits. A watch that has lasted for a while resumes immediately from the last resourceVersion. One that ends sooner (an
error, a broken connection, a server that closes) is retried after a random wait that grows. The watch lists only
without a version to resume from (initially, and after "410 Gone"), and on request (`fresh`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import tenacity

from builds.engines.kubernetes.api import SILENCE, Api, ApiError, Busy, Gone, Object, Status, Stream
from builds.metrics import WATCH_RESTARTS
from eventing.pulse import ROUND, Pulse

log = logging.getLogger(__name__)

SECONDS = (240.0, 300.0)
"""The range of a watch's requested duration, after which the server ends it. It is random, so that watches do not end
at the same time after a restart."""
HELD = 5.0
"""Seconds that a watch must have lasted to be resumed without a wait."""
FIRST, MOST = 0.5, 10.0
"""Maximum seconds of the first wait, and of any wait."""
LEAST = 0.1
REMEMBERED = 300.0
"""Seconds for which deleted objects are kept for `take_deleted`, which a standby never calls."""

WAIT = tenacity.wait_random_exponential(multiplier=FIRST, min=LEAST, max=MOST)


class _Event(msgspec.Struct):
    """A line of a watch."""

    type: str
    object: msgspec.Raw


class _Meta(msgspec.Struct):
    version: str = msgspec.field(default="", name="resourceVersion")


class _Bookmark(msgspec.Struct):
    metadata: _Meta


class _Trouble(NamedTuple):
    message: str
    at: datetime
    since: float


class Watch:
    """`changed` is called from the watch's thread after each change; it must not block.

    After `silence` seconds without data from the API server, which sends a bookmark every minute, the connection counts
    as broken.
    """

    def __init__(
        self,
        api: Api,
        kind: str,
        *,
        labels: str | None = None,
        fields: str | None = None,
        changed: Callable[[], None],
        silence: float = SILENCE,
    ) -> None:
        self.synced = threading.Event()
        """Set after the first list."""
        self._api = api
        self._kind = kind
        self._labels = labels
        self._fields = fields
        self._changed = changed
        self._silence = silence
        self._lock = threading.Condition()
        self._objects: dict[str, Object] = {}
        self._deleted: deque[tuple[float, Object]] = deque()
        self._version: str | None = None
        self._trouble: _Trouble | None = None
        self._asked = self._served = 0  # lists requested by `fresh`, and those of them that are done
        self._stream: Stream | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self.pulse = Pulse(f"watch {kind}")
        self._thread = threading.Thread(target=self._run, name=f"watch {kind}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when its thread has ended, after the exchange in progress, if any."""
        self._stopping.set()
        self._interrupt()
        self._thread.join()

    def objects(self) -> dict[str, Object]:
        """The present objects by name. The dictionary is the caller's. The objects are shared: do not change them."""
        with self._lock:
            return dict(self._objects)

    def take_deleted(self) -> list[Object]:
        """Objects that left the watch since the last call, in their last known state.

        Each was deleted, or no longer matches the selectors: only a GET can distinguish the two.
        """
        with self._lock:
            taken, self._deleted = self._deleted, deque()
        return [each for _, each in taken]

    def fresh(self, timeout: float) -> None:
        """Returns after another list, so that the copy shows at least all writes before the call.

        Raises Busy if that took longer than `timeout` seconds.
        """
        with self._lock:
            self._asked += 1
            asked = self._asked
        self._interrupt()
        with self._lock:
            if not self._lock.wait_for(lambda: self._served >= asked, timeout):
                why = self.trouble or "the Kubernetes API server did not answer"
                raise Busy(f"No fresh list of {self._kind} within {timeout:g} s: {why}")

    @property
    def trouble(self) -> str | None:
        """Why it does not follow the API server now, and since when; `None` while it follows."""
        trouble = self._trouble
        if trouble is None:
            return None
        return f"Watch of {self._kind} failing since {trouble.at:%H:%M:%S} UTC: {trouble.message}"

    @property
    def age(self) -> float:
        """Seconds for which it has failed; 0 while it follows."""
        trouble = self._trouble
        return time.monotonic() - trouble.since if trouble else 0.0

    # In its thread. --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ApiError) | tenacity.retry_if_result(lambda held: not held),
            wait=_wait,
            before_sleep=self._will_sleep,
            sleep=tenacity.sleep_using_event(self._wake),
            stop=tenacity.stop_when_event_set(self._stopping),
            retry_error_callback=lambda _: None,
        )
        try:
            while not self._stopping.is_set():
                patiently(self._once)
            self.pulse.rest()
        finally:
            if not self._stopping.is_set():  # from now on, its objects are out of date
                self._failed("its thread ended by an internal error. See the log.")

    def _once(self) -> bool:
        """Returns whether the watch lasted for `HELD`."""
        self.pulse.beat()
        self._wake.clear()
        began = time.monotonic()
        try:
            if self._version is None or self._served < self._asked:
                self._list()
            self._follow()
        except Gone:
            self._version = None
            raise
        except ApiError as error:
            self._failed(str(error))
            raise
        return time.monotonic() - began >= HELD

    def _will_sleep(self, state: tenacity.RetryCallState) -> None:
        WATCH_RESTARTS.labels(self._kind).inc()
        self.pulse.beat((state.next_action.sleep if state.next_action else 0.0) + ROUND)

    def _list(self) -> None:
        """Lists all objects in their present state: without a resourceVersion the answer is no older than the
        request."""
        asked = self._asked
        objects: dict[str, Object] = {}
        version = ""
        for page in self._api.pages(self._kind, labels=self._labels, fields=self._fields):
            self.pulse.beat()
            objects |= {each["metadata"]["name"]: each for each in page.items}
            version = version or page.metadata.version
        with self._lock:
            for name, old in self._objects.items():
                if name not in objects or objects[name]["metadata"]["uid"] != old["metadata"]["uid"]:
                    self._remember(old)
            self._objects, self._version, self._served = objects, version, asked
            self._lock.notify_all()
        self._well()
        self.synced.set()
        self._changed()

    def _follow(self) -> None:
        """Applies changes until either side ends the stream. Raises Gone without a version to resume from."""
        query = {
            "watch": "true",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": int(random.uniform(*SECONDS)),  # noqa: S311
            "labelSelector": self._labels,
            "fieldSelector": self._fields,
        }
        with self._api.stream(self._api.path(self._kind), query, silence=self._silence) as stream:
            if self._hold(stream):
                self._well()
                self.pulse.beat(self._silence + ROUND)
                for line in stream.lines():
                    self.pulse.beat()
                    self._apply(line)
                    self.pulse.beat(self._silence + ROUND)
        self._stream = None

    def _hold(self, stream: Stream) -> bool:
        """Allows `_interrupt` to end the stream. Returns `False` if it was called already, so that the stream is not
        needed."""
        with self._lock:
            self._stream = stream
            return not self._wake.is_set() and not self._stopping.is_set()

    def _interrupt(self) -> None:
        with self._lock:
            self._wake.set()
            if self._stream is not None:
                self._stream.close()

    def _apply(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line, type=_Event)
            if event.type == "ERROR":
                status = msgspec.json.decode(event.object, type=Status)
                raise status.error(status.code)
            if event.type == "BOOKMARK":
                self._version = msgspec.json.decode(event.object, type=_Bookmark).metadata.version
                return
            thing = msgspec.json.decode(event.object, type=Object)
        except msgspec.MsgspecError as error:
            raise Busy(f"The Kubernetes API server sent an incomplete watch event: {error}.") from None
        name = thing["metadata"]["name"]
        with self._lock:
            if event.type == "DELETED":
                self._objects.pop(name, None)
                self._remember(thing)
            else:
                self._objects[name] = thing
            self._version = thing["metadata"]["resourceVersion"]
        self._changed()

    def _remember(self, deleted: Object) -> None:
        now = time.monotonic()
        self._deleted.append((now, deleted))
        while self._deleted[0][0] < now - REMEMBERED:
            self._deleted.popleft()

    def _failed(self, message: str) -> None:
        before = self._trouble
        if before is None:
            log.warning("Watch of %s failed: %s", self._kind, message)
            self._trouble = _Trouble(message, datetime.now(UTC), time.monotonic())
        else:
            self._trouble = before._replace(message=message)

    def _well(self) -> None:
        if self._trouble is not None:
            log.info("Watch of %s resumed after %.0f s", self._kind, self.age)
            self._trouble = None


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: the policy's wait, or longer if the API server requested that."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, Busy) else None
    return max(WAIT(state), asked or 0.0)

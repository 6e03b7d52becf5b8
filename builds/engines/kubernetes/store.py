"""Web's half of the engine: records as ConfigMaps, with the verbs create, get, list and patch only.

A request for a build is one POST, and its 409 is the deduplication: across replicas, senders and restarts. Web reads an
existing record, adds the cause and patches it under the revision that it read, or wrote a moment ago. Requests for the
same build that arrive meanwhile go into the next write. All requests of this process share the lists and the length of
the queue for two seconds. So the queue may exceed `KILN_MAX_QUEUED` by the requests of two seconds. If the queue is far
from its limit, it is counted less often, because the cost grows with its length.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NoReturn, TypeVar

import msgspec
from msgspec.structs import replace
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from builds.build import Build, Node, State
from builds.engines import Conflict, LogLine, NotFound, Page, QueueFull, Refused, Submission, Unavailable, paging
from builds.engines.kubernetes.api import TIMEOUT, Absent, AlreadyExists, Api, ApiError, Busy, Conflict409
from builds.engines.kubernetes.archive import Archive
from builds.engines.kubernetes.circuit import Circuit
from builds.engines.kubernetes.logs import Logs
from builds.engines.kubernetes.records import (
    COMPONENT,
    DAEMON,
    LABEL_REPOSITORY,
    LABEL_STATE,
    NAME,
    Manifest,
    Release,
    Unreadable,
    build_of,
    hashed,
    made_at,
    manifest,
    patch,
    selector,
    summary_of,
)
from builds.engines.kubernetes.shared import CoalescedWrites, FairSemaphore, SingleFlight
from builds.engines.kubernetes.sightings import moment, nodes_of
from builds.engines.marks import (
    asks_of,
    cancelled,
    gained,
    joined,
    newly_queued,
    queue_full,
    resent,
    share_full,
    withdrawn,
)
from builds.faults import Fault, crash_if_armed

log = logging.getLogger(__name__)

T = TypeVar("T")

FRESH = 2.0
"""Seconds for which a list is cached."""
POLL_INTERVAL = 0.5
"""Seconds between two reads of a record while a request waits for its change."""
FAR = 20.0
"""Seconds for which the length of a queue is cached that is far from its limit."""
SHARE = 8
"""A queue counts as near its limit after this part of the limit was added: unseen replicas may have added as much."""
CERTAIN = 0.2
"""Seconds for which the length of the queue is cached if it leads to a refusal."""
UNSEEN = timedelta(seconds=20)
"""Time after which web reports a record that no controller has touched, or a Lease that no controller renews."""
WRITERS = 16
"""Concurrent writes of records. More do not raise the API server's throughput, and each write takes longer."""
TURN = 20.0
"""Seconds to wait for a turn to write while the API server answers. Git hosts wait ten for a response and do not retry:
a late write is better than none."""
LATE = 4.0
"""Seconds after which a request no longer waits for its turn while calls of the API server fail. A write may take
`TIMEOUT` of the ten seconds of Git hosts."""
TRANSIENT = frozenset({401, 408, 429})
"""4xx answers about the client or a temporary condition, and not about one object. (A policy may refuse with any.)"""
REQUEST_TIMEOUT = 8.0
"""Seconds for which a write is retried after conflicts; the limit of all exchanges of one request."""


_ALL = "all"
_KEPT = ("name", "uid", "resourceVersion", "annotations")
"""The members of an object's metadata that a cached list keeps."""


def connect(namespace: str | None, circuit: Circuit | None = None) -> Api:
    """The API server of the present cluster, or of kubectl's configuration. Raises Unavailable.

    Processes whose callers wait use a `circuit`: senders of webhooks have ten seconds.
    """
    try:
        return Api.connect(namespace=namespace, circuit=circuit)
    except ApiError as error:
        raise Unavailable(str(error)) from error


class _Entry(msgspec.Struct, frozen=True):
    """A build in a list: its place, and the metadata from which it can be decoded."""

    place: paging.Place
    metadata: Manifest


class _Queue:
    """The numbers of waiting builds and of each person's submissions: the last count, and this process's additions
    since."""

    def __init__(self, waiting: Iterable[Build]) -> None:
        self.length = 0
        self.shares = Counter[str]()
        self._lock = threading.Lock()
        for build in waiting:
            self.add(asks_of(build))
        self._counted = self.length

    def far(self, limit: int) -> bool:
        """Whether the queue was less than half full when it was counted, and few builds were added since then."""
        return self.length < limit // 2 and self.length - self._counted < limit // SHARE

    def add(self, submissions: Counter[str], builds: int = 1) -> None:
        with self._lock:
            self.length += builds
            self.shares += submissions


class KubernetesRecords:
    """`Records` in a namespace. `anchor` names the ConfigMap that owns the whole release; without one, records stay.

    Raises Unavailable if the API server does not answer, or refuses a request.
    """

    def __init__(
        self,
        api: Api,
        release: Release,
        *,
        anchor: str | None = None,
        max_queued: int = 1000,
        max_queued_per_user: int = 20,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._release = release
        self._anchor = anchor
        self._owner: Manifest | None = None
        self._max_queued = max_queued
        self._max_queued_per_user = max_queued_per_user
        self._now = now
        self._lists: SingleFlight[tuple[_Entry, ...]] = SingleFlight(FRESH, api.missed)
        self._queues: SingleFlight[_Queue] = SingleFlight(FRESH, api.missed)
        self._seen: SingleFlight[Build] = SingleFlight(POLL_INTERVAL, api.missed)
        self._last_written: SingleFlight[Build] = SingleFlight(FRESH)  # the last writes of this process
        self._turns = FairSemaphore(WRITERS)
        self._joint: CoalescedWrites[Submission, Build] = CoalescedWrites(self._join, self._in_turn, self._check_hope)
        self._asked_at = threading.local()
        self._nodes: SingleFlight[tuple[Node, ...]] = SingleFlight(FRESH, api.missed)
        self._leaders: SingleFlight[str] = SingleFlight(FRESH, api.missed)
        self._logs = Logs(api)
        self._archive = Archive(api, release)
        self._reported: set[tuple[str, str]] = set()

    def close(self) -> None:
        self._logs.close()

    # ---- Records ----------------------------------------------------------------------------------------------------

    def accept(self, submissions: Sequence[Submission]) -> list[Build]:
        groups: dict[str, list[Submission]] = {}
        for ask in submissions:
            groups.setdefault(ask.name, []).append(ask)
        self._asked_at.value = time.monotonic()
        with translated():
            with self._api.within(REQUEST_TIMEOUT):
                self._check_room(groups)
            crash_if_armed(Fault.WEB_ACCEPTING)
            builds = {name: self._asked(name, group) for name, group in groups.items()}
        crash_if_armed(Fault.WEB_ACCEPTED)
        return [builds[ask.name] for ask in submissions]

    def get(self, name: str) -> Build:
        with translated():
            build = self._require(name)
            self._seen.put(name, build)  # a reader of the log must not see an older state after this one
            unseen = build.status.round == 0 and self._now() - build.created_at > UNSEEN
            why = self._leaders.get(_ALL, self._leaderless) if unseen and self._anchor else ""
        return replace(build, status=replace(build.status, waiting=why)) if why else build

    def list(
        self, *, repository: str | None = None, state: State | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page:
        after = None if cursor is None else paging.place(cursor)
        with translated():
            entries = self._lists.get((repository, state), lambda: self._listed(repository, state))
        rest = [entry for entry in entries if after is None or entry.place < after]
        builds = tuple(self._readable(entry.metadata, summary_of) for entry in rest[:limit])
        more = len(rest) > limit
        return Page(
            builds=tuple(build for build in builds if build is not None),
            cursor=paging.cursor(rest[limit - 1].place) if more else None,
        )

    def cancel(self, name: str, by: str | None) -> Build:
        return self._marked(name, lambda build: cancelled(build, by, self._now()))

    def resend(self, name: str, sink: str, by: str | None) -> Build:
        return self._marked(name, lambda build: resent(build, sink, by, self._now()))

    def withdraw(self, name: str, ref: str) -> Build:
        return self._marked(name, lambda build: withdrawn(build, ref))

    def _marked(self, name: str, mark: Callable[[Build], Build]) -> Build:
        with translated(), self._api.within(REQUEST_TIMEOUT):
            for attempt in _meeting_others():
                with attempt:
                    before = self._require(name)
                    after = mark(before)
                    return before if after is before else self._put(after)
        raise AssertionError("tenacity returns or raises")

    def nodes(self) -> tuple[Node, ...]:
        daemons = selector(self._release.of(DAEMON))
        with translated():
            return self._nodes.get(_ALL, lambda: nodes_of(self._api.list("pods", labels=daemons)))

    def log(self, name: str, attempt: int, after: int = 0) -> Iterator[LogLine]:
        try:
            build = self._recent(name)
        except NotFound:
            return
        tried = next((one for one in build.status.attempts if one.number == attempt), None)
        if tried is None:
            return
        kept = partial(self._archive.read, build, attempt)
        yield from self._logs.lines(name, attempt, after, ended=kept if tried.state else None)

    def changed(self, name: str, since: str, timeout: float) -> Build | None:
        deadline = time.monotonic() + timeout
        while True:
            build = self._recent(name)
            if build.revision != since:
                return build
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(left, POLL_INTERVAL))

    # ---- Asking -----------------------------------------------------------------------------------------------------

    def _asked(self, name: str, submissions: Sequence[Submission]) -> Build:
        try:
            return self._joint(name, submissions)
        except QueueFull:  # possibly because of other requests in the same write
            with self._in_turn():
                return self._join(name, submissions)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        with ExitStack() as turn:
            try:
                turn.enter_context(self._turns.one(TURN, self._check_hope))
            except TimeoutError:
                raise Unavailable("Too many requests are waiting to be written. Try again.") from None
            turn.enter_context(self._api.within(TIMEOUT if self._api.failing else REQUEST_TIMEOUT))
            yield

    def _check_hope(self) -> None:
        """Raises Busy if the request cannot be answered in time."""
        self._api.check()
        if self._api.failing and time.monotonic() - self._asked_at.value > LATE:
            raise Busy("The Kubernetes API server does not answer all calls. Try again in a moment.")

    def _join(self, name: str, submissions: Sequence[Submission]) -> Build:
        """Creates the record with the causes of all `submissions`, or adds them to the existing one."""
        with suppress(Conflict, NotFound, QueueFull):
            if (written := self._joined_unread(name, submissions)) is not None:
                return written
        for attempt in _meeting_others():
            with attempt:
                before = self._find(name)
                after = self._joined(before, submissions)
                return after if after is before else self._replaced(before, after)
        raise AssertionError("tenacity returns or raises")

    def _joined_unread(self, name: str, submissions: Sequence[Submission]) -> Build | None:
        """Creates the record, or patches the revision that this process wrote a moment ago. `None` if a read is needed.
        Raises Conflict, NotFound or QueueFull if that revision is out of date."""
        before = self._last_written.known(name, max_age=FRESH)
        if before is None and self._last_written.known(name) is not None:
            return None  # it exists, and may have changed since
        after = self._joined(before, submissions)
        return None if after is before else self._replaced(before, after)

    def _replaced(self, before: Build | None, after: Build) -> Build:
        return self._queued(before, self._create(after) if before is None else self._put(after))

    def _joined(self, before: Build | None, submissions: Sequence[Submission]) -> Build:
        return joined(before, submissions, uid=str, now=self._now(), share=self._max_queued_per_user)

    def _queued(self, before: Build | None, after: Build) -> Build:
        queue = self._queues.known(_ALL)
        if queue is not None:
            queue.add(gained(before, after), int(newly_queued(before, after)))
        return after

    def _create(self, build: Build) -> Build:
        """Raises Conflict if a record of that name exists."""
        try:
            stored = self._api.create("configmaps", manifest(build, self._release, self._owned_by()))
        except AlreadyExists as error:
            raise Conflict(f"The record of {build.name} exists already.") from error
        return self._written(build, stored)

    def _put(self, build: Build) -> Build:
        """Raises Conflict if the record no longer has the build's revision, NotFound if it was deleted."""
        try:
            stored = self._api.patch("configmaps", build.name, patch(build))
        except Conflict409 as error:
            raise Conflict(f"The record of {build.name} has changed since revision {build.revision}.") from error
        except Absent as error:
            raise NotFound(f"Build {build.name} not found.") from error
        return self._written(build, stored)

    def _written(self, build: Build, stored: Manifest) -> Build:
        self._seen.forget(build.name)
        self._lists.clear()
        written = replace(build, uid=stored["metadata"]["uid"], revision=stored["metadata"]["resourceVersion"])
        self._last_written.put(build.name, written)
        return written

    def _owned_by(self) -> Manifest | None:
        """The anchor, read once: its uid is needed so that records are deleted with the release."""
        if self._anchor is not None and self._owner is None:
            try:
                self._owner = self._api.read("configmaps", self._anchor, metadata_only=True)
            except Absent as error:
                raise Unavailable(
                    f"The ConfigMap {self._anchor} (KILN_ANCHOR) is not in the namespace {self._api.namespace}: "
                    "the chart makes it, and it owns all records."
                ) from error
        return self._owner

    def _leaderless(self) -> str:
        """Why no controller reads the records, as far as web can know; empty if one does."""
        assert self._anchor is not None  # noqa: S101  (callers check that)
        try:
            spec = self._api.read("leases", self._anchor).get("spec") or {}
        except Absent:
            return f"No controller can lead: Lease {self._anchor} not found. Run `helm upgrade`."
        holder, renewed = spec.get("holderIdentity"), moment(spec.get("renewTime"))
        if holder and renewed and self._now() - renewed < UNSEEN:
            return ""
        return f"No controller leads: the Lease {self._anchor} is not renewed. Check the controller's pods."

    # ---- The queue's limits -----------------------------------------------------------------------------------------

    def _check_room(self, groups: Mapping[str, Sequence[Submission]]) -> None:
        """Raises QueueFull, before anything is written, if these builds would make the queue too long.

        The known length usually suffices. Before it refuses a request, web counts the queue and the new builds again.
        """
        asked = Counter(
            ask.cause.by or "" for submissions in groups.values() for ask in submissions if ask.cause.counts
        )
        known = self._queues.known(_ALL)
        far = known is not None and not asked and known.far(self._max_queued)
        queue = self._queues.get(_ALL, self._counted, max_age=FAR if far else FRESH, waits=not far)
        if self._without_room(len(groups), asked, queue) is None:
            return
        builds, asked = 0, Counter()
        for name, submissions in groups.items():
            before = self._find(name)
            after = self._joined(before, submissions)
            builds += newly_queued(before, after)
            asked += gained(before, after)
        full = self._without_room(builds, asked, self._queues.get(_ALL, self._counted, max_age=CERTAIN))
        if full is not None:
            raise full

    def _without_room(self, builds: int, asked: Counter[str], queue: _Queue) -> QueueFull | None:
        """The limit that so many more builds, and submissions of each person, would exceed."""
        if builds and queue.length + builds > self._max_queued:
            return queue_full(self._max_queued)
        for by, number in asked.items():
            if queue.shares[by] + number > self._max_queued_per_user:
                return share_full(by, self._max_queued_per_user)
        return None

    def _counted(self) -> _Queue:
        entries = self._listed(None, State.QUEUED)
        return _Queue(filter(None, (self._readable(entry.metadata, summary_of) for entry in entries)))

    # ---- Reading ----------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Build | None:
        if not NAME.fullmatch(name):
            return None
        try:
            stored = self._api.read("configmaps", name)
        except Absent:
            return None
        labels = stored["metadata"].get("labels", {})
        ours = self._release.of(COMPONENT)
        return build_of(stored) if labels.items() >= ours.items() else None

    def _require(self, name: str) -> Build:
        build = self._find(name)
        if build is None:
            raise NotFound(f"Build {name} not found.")
        return build

    def _recent(self, name: str) -> Build:
        """The record, shared by all requests that wait for it."""
        with translated():
            return self._seen.get(name, lambda: self._require(name))

    def _listed(self, repository: str | None, state: State | None) -> tuple[_Entry, ...]:
        """All matching builds, newest first. The API server lists by name, so the order is known only at the end."""
        wanted = {LABEL_STATE: state and str(state), LABEL_REPOSITORY: repository and hashed(repository)}
        labels = {**self._release.of(COMPONENT), **{name: value for name, value in wanted.items() if value}}
        found = []
        for stored in self._api.list("configmaps", labels=selector(labels), metadata_only=True):
            metadata = {name: stored["metadata"].get(name) for name in _KEPT}
            made = self._readable(metadata, made_at)
            if made is not None:
                found.append(_Entry((paging.microseconds(made), metadata["name"]), metadata))
        return tuple(sorted(found, key=lambda entry: entry.place, reverse=True))

    def _readable(self, stored: Manifest, read: Callable[[Manifest], T]) -> T | None:
        """The decoded object; `None`, with one line in the log, for a record that a newer version of Kiln may have
        written."""
        try:
            return read(stored)
        except Unreadable as error:
            metadata = stored.get("metadata", stored)
            which = (str(metadata["name"]), str(metadata["resourceVersion"]))
            if which not in self._reported:
                self._reported.add(which)
                log.warning("Record skipped: %s", error, extra={"build": which[0]})
            return None


def _meeting_others() -> Retrying:
    """Retries a change after a conflict, based on the record's new state."""
    return Retrying(
        retry=retry_if_exception_type(Conflict),
        wait=wait_random_exponential(multiplier=0.02, max=0.5),
        stop=stop_after_delay(REQUEST_TIMEOUT),
        retry_error_callback=_given_up,
    )


def _given_up(_: RetryCallState) -> NoReturn:
    raise Unavailable("Too many concurrent changes of one record. Try again.")


@contextmanager
def translated() -> Iterator[None]:
    """Translates errors of the API into those of an engine."""
    try:
        yield
    except ApiError as error:
        message = f"Kubernetes API request failed: {error}"
        if 400 <= (error.status or 0) < 500 and error.status not in TRANSIENT:  # noqa: PLR2004
            raise Refused(message) from error
        raise Unavailable(message) from error

"""The core values, all immutable: the request, its causes, and the state of the build.

A `Build` is the complete durable record. It has two writers with separate parts: web adds causes and the marks to
cancel and to resend, the controller owns `status`. Every engine stores exactly this value, so everything that must
survive a restart is here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import rfc8785

from eventing.event import Event
from eventing.tracing import Trace

VERSION = 1
"""Version of the stored record. An engine reports a record of another version and leaves it unchanged."""

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A record with a naive time is invalid: such a time could not be compared with any other."""

LOCAL_IMAGES = "localhost/"
"""The beginning of the names of images that stay where they were built. Without a port `localhost` is not a registry's
address. Podman names its own images this way (https://docs.podman.io/en/v5.4.2/markdown/podman-build.1.html,
`--tag`)."""


def stays_with_daemon(image: str) -> bool:
    """Whether an image of this name, or prefix of names, stays with its daemon and is never pushed."""
    return image.startswith(LOCAL_IMAGES)


MAX_OUTBOX = 50
"""Events of one build that may wait for a sink, each stored whole. Further requests get 429 and may be repeated
later."""

MAX_SENTENCE = 1024
"""Bytes, as JSON, of each sentence in a record, and of other outside text that has no limit of its own."""

MAX_CAUSES = 100
"""Causes that a record keeps. Answered causes are dropped for new ones; a request that does not fit gets 429."""

MAX_CAUSES_BYTES = 64 * 1024
"""Bytes of all causes as JSON: a ConfigMap is limited to 1 MiB, and ids may be long."""


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Reason(StrEnum):
    """The reason why a build, or one attempt, ended."""

    REPOSITORY = "repository"  # failed: the repository's fault, final
    INFRASTRUCTURE = "infrastructure"  # failed: the fault of Kiln, the cluster or the network
    TIMEOUT = "timeout"  # failed
    REQUESTED = "requested"  # cancelled: by a user
    SUPERSEDED = "superseded"  # cancelled: a newer push replaced it
    DELETED = "deleted"  # cancelled: the record was deleted by hand


class Kind(StrEnum):
    """The priority class of a cause: people before pushes, pushes before Kiln's own synchronisation."""

    PERSON = "person"
    PUSH = "push"
    SYNC = "sync"


SYNC = "sync"
"""The requester (`Cause.by`) of builds that Kiln's own synchronisation requests for listed repositories."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The specification of a build.

    `repository` is the canonical URL and serves as identity only; git gets `clone_url`. `commit` has 40 (SHA-1) or 64
    (SHA-256) lower-case hex digits. `image` is an image repository with its registry, without tag and digest.
    """

    repository: str
    clone_url: str
    commit: str
    image: str
    subdir: str = ""
    build_args: Mapping[str, str] = {}

    @property
    def stays(self) -> bool:
        """Whether its image stays with the daemon that builds it, and is pushed nowhere."""
        return stays_with_daemon(self.image)


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """A Git host's report of the push that requested the build. It names the replaced commit, so no clock is needed."""

    before: str | None
    """The previous commit of the ref; `None` if the push created the ref or the host did not report it."""
    at: Time | None = None
    """Time of the push by the host's clock."""


def is_person(by: str | None) -> bool:
    """Whether a requester (`Cause.by`) may be a person, and so has a share of the queue."""
    return by is not None and by.startswith(("user:", "oidc:"))


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One event that requested a build, identified by (`source`, `id`). The same pair again changes nothing.

    A person chooses both values for the events that they send. So a person's event equals only an earlier event of the
    same person, and no sender can occupy the identity of an event that is still to come.
    """

    source: str
    id: str
    type: str
    by: str | None
    """`user:<name>`, `service:<name>`, `token:<name>`, `oidc:<sub>`, `webhook:<host>`, `sync`; `None` under
    `KILN_AUTH=none`."""
    at: Time
    """When web wrote the cause into the record."""
    kind: Kind
    trigger: str | None = None
    ref: str | None = None
    """The `refs/…` that the event was about, or `None`."""
    tags: tuple[str, ...] = ()
    """Further tags for the image. Each is set only while `tagged_by` (if any) still points at the commit."""
    push: Push | None = None
    force: bool = False
    head: str | None = None
    """The branch (`refs/heads/…`) that points at the commit, if the host has no ref named `ref`."""
    foreign: bool = False
    """Whether the event is a pull request from a fork, whose commit is not trusted."""
    default: bool = False
    """Whether `ref` is known to be the repository's default branch."""
    withdrawn: bool = False
    """Whether the cause no longer waits for the build, because its pull request was closed."""
    trace: Trace | None = None
    """The trace that the event belongs to."""
    hops_left: int | None = None
    """How many more brokers the event may pass (`eventing.hops`)."""
    credentials: bool = False
    """Whether the build may use stored Git credentials for this cause, as checked when the event came in."""
    merged: tuple[str, ...] = ()
    """Keys of earlier causes of the same requester that were merged into this one."""

    @property
    def tagged_by(self) -> str | None:
        return self.head or self.ref

    @property
    def counts(self) -> bool:
        """Whether the cause counts towards its requester's share of the queue: a person's request, not an event's."""
        return is_person(self.by) and self.kind is Kind.PERSON

    @property
    def key(self) -> str:
        """8 hex digits that identify (`source`, `id`) and, for a person, the sender."""
        return _cause_key(*self.identity)

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for equal events only."""
        return (self.source, self.id, *([self.by] if self.by and is_person(self.by) else []))

    def stands_for(self, key: str) -> bool:
        """Whether the end of this cause also answers the request under that key."""
        return key == self.key or key in self.merged

    def knows(self, other: Cause) -> bool:
        """Whether another cause adds nothing to this one."""
        return self.identity == other.identity or (self.by == other.by and other.key in self.merged)


@lru_cache(maxsize=20_000)
def _cause_key(*identity: str) -> str:
    """Cached, because each plan over a thousand builds needs it repeatedly."""
    return fingerprint([*identity])[:8]


def fingerprint(value: list[Any]) -> str:
    """SHA-256 over RFC 8785 JSON, in hexadecimal: equal for equal values, on every machine."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()


class RefusedTag(msgspec.Struct, frozen=True, kw_only=True):
    """A further tag that the registry refused to set, and why. Registries may forbid moving a tag."""

    name: str
    message: str


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A pushed image, identified by the digest (`sha256:…`) of its manifest in the registry. An image that stays with
    its daemon (`LOCAL_IMAGES`) is identified by its ID there."""

    repository: str
    tag: str
    digest: str
    tags: tuple[str, ...] = ()
    """Further tags that were set on the same manifest."""
    refused_tags: tuple[RefusedTag, ...] = ()
    """Further tags that the registry refused to set."""

    @property
    def reference(self) -> str:
        """`name:tag@sha256:…`: identifies the image permanently, and shows the commit to a reader. An image that was
        never pushed has no digest, and its reference is `name:tag`."""
        named = f"{self.repository}:{self.tag}"
        return named if stays_with_daemon(self.repository) else f"{named}@{self.digest}"


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds spent in each stage; `None` if the stage was not reached."""

    fetch: float | None = None
    build: float | None = None
    push: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The builder's result (its result file; in a pod, the termination message of at most 4096 bytes).

    `state` is `succeeded`, `failed` or, after SIGTERM, `cancelled`.
    """

    state: State
    reason: Reason | None = None
    message: str | None = None
    image: Image | None = None
    commit: str | None = None
    timings: Timings = Timings()
    log_tail: str = ""
    counted: bool = True
    """Whether a failure counts towards `KILN_MAX_ATTEMPTS`. The loss of the daemon does not."""
    out_of_memory: bool = False
    """The kernel killed the daemon or a step for lack of memory. The next attempt gets a node of its own."""
    unserved: bool = False
    """The Git host did not serve the commit, or that of a submodule. It may do so later."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. It is written to the record before it is started, so that no crash can start it twice."""

    number: int
    node: str | None
    """`None`: not pinned; any node may run it."""
    written_at: Time
    started_at: Time | None = None
    finished_at: Time | None = None
    stopping: Reason | None = None
    """The reason to stop it; `None` if there is none. `infrastructure`: it was evicted before it ran."""
    state: State | None = None
    """`None` while it runs."""
    reason: Reason | None = None
    message: str | None = None
    counted: bool = True
    """Whether it counts towards `KILN_MAX_ATTEMPTS`. An attempt lost to a drain or a daemon restart does not."""
    alone: bool = False
    """It has its node to itself, because an earlier attempt ran out of memory."""
    quarantine: bool = msgspec.field(default=False, name="unfit")
    """Its node could not run it, so placement avoids that node for a while."""
    cache_from: tuple[str, ...] = ()
    """Digests, in the request's image repository, of earlier images whose layers the build may reuse."""
    out_of_memory: bool = False
    unserved: bool = False
    timings: Timings = Timings()


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """The cancel mark. Web sets it; the controller acts on it, and only in the round that it was made in."""

    round: int
    by: str | None
    at: Time


class Resend(msgspec.Struct, frozen=True, kw_only=True):
    """The mark to send the terminal event to one sink once more. Web sets it; the controller acts on it once."""

    sink: str
    by: str | None
    at: Time

    @property
    def key(self) -> str:
        return f"{self.at.isoformat()} {self.sink}"


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"  # dead letter: refused permanently, or not accepted within KILN_DELIVERY_PERIOD


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one sink."""

    sink: str
    event: str
    type: str
    state: DeliveryState = DeliveryState.PENDING
    tries: int = 0
    due_at: Time
    """No attempt to deliver before this time."""
    at: Time | None = None
    """When it was delivered, or became a dead letter."""
    error: str | None = None


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the outbox: written before it is sent, and kept whole until every sink has it."""

    event: Event
    at: Time
    deliveries: tuple[Delivery, ...]


class BuildStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The controller's part of the record.

    A *round* runs from the request to the terminal event. `attempt` is the number that the build waits for or runs.
    Numbers are never reused: a round that ended before its attempt began has used its number up.
    """

    state: State = State.QUEUED
    reason: Reason | None = None
    message: str | None = None
    waiting: str | None = None
    """Why it does not run yet, as a sentence."""
    round: int = 0
    """0: no controller has seen the build yet."""
    attempt: int = 1
    attempts: tuple[Attempt, ...] = ()
    """Attempts of all rounds, oldest first; bounded by `MAX_ATTEMPTS_KEPT`."""
    round_began_with: int = 1
    """The number of the round's first attempt."""
    image: Image | None = None
    queued_at: Time | None = None
    started_at: Time | None = None
    finished_at: Time | None = None
    trace: Trace | None = None
    """The trace of the round: that of the first requester with a trace."""
    not_before: Time | None = None
    """Backoff: the next attempt does not start before this time."""
    answered: tuple[str, ...] = ()
    """Keys of the causes that have received their terminal event."""
    outbox: tuple[Announcement, ...] = ()
    """Announced events that are still pending at some sink."""
    deliveries: tuple[Delivery, ...] = ()
    """Results of earlier deliveries; bounded."""
    resent: tuple[str, ...] = ()
    """Keys of the resend marks that need no further action."""
    log_tail: str = ""


MAX_ATTEMPTS_KEPT = 20
MAX_DELIVERIES_KEPT = 50
MAX_DELIVERIES_SHOWN = 100
"""The latest deliveries of a build that the API, lists and events show."""
MAX_ERROR = 200
"""Bytes, as JSON, of a delivery's error: a record has thousands of deliveries when every sink is down."""
MAX_TAIL = 4096
"""Characters of a log's tail."""


class RecordVersion(msgspec.Struct):
    """The only field that may be assumed before a record's version is known."""

    version: int


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """The durable record of one build.

    `uid` is created with the record and is part of every event id. `revision` belongs to the engine: a write carries
    the revision that it was based on, and fails if another write came between. `open` until all requests are answered
    and all events are settled.
    """

    name: str
    uid: str
    request: Request
    causes: tuple[Cause, ...]
    created_at: Time
    status: BuildStatus = BuildStatus()
    cancel: Cancel | None = None
    resends: tuple[Resend, ...] = ()
    """Resend marks, the latest of each sink."""
    open: bool = True
    version: int = VERSION
    revision: str = ""

    @property
    def live(self) -> Attempt | None:
        """The attempt in progress, if any."""
        attempts = self.status.attempts
        return attempts[-1] if attempts and attempts[-1].state is None else None

    @property
    def unanswered(self) -> tuple[Cause, ...]:
        """Causes without a terminal event so far."""
        answered = self.status.answered
        return tuple(cause for cause in self.causes if cause.key not in answered) if answered else self.causes

    @property
    def resending(self) -> tuple[str, ...]:
        """The sinks that wait for the terminal event once more; none before the build's end."""
        if not self.status.state.ended or self.reopened:
            return ()
        return tuple(mark.sink for mark in self.resends if mark.key not in self.status.resent)

    def apart(self, causes: Iterable[Cause]) -> str | None:
        """A key that keeps builds of a fork's pull request apart from the repository's other builds: the request's ref,
        or the commit if no ref is known. `None` if no such request is among the causes."""
        return next((cause.ref or self.request.commit for cause in causes if cause.foreign), None)

    @property
    def reopened(self) -> bool:
        """Whether the build has ended and was requested again in a way that needs a new attempt. It then counts as
        queued."""
        if not self.status.state.ended:
            return False
        return any(cause.force or self.status.state is not State.SUCCEEDED for cause in self.unanswered)

    @property
    def state(self) -> State:
        """The state that the API and events show."""
        return State.QUEUED if self.reopened else self.status.state

    @property
    def first_attempt(self) -> int:
        """The number of the round's first attempt, which is still to come if the build is reopened."""
        return self.status.attempt + 1 if self.reopened else self.status.round_began_with

    @property
    def kind(self) -> Kind:
        """The most urgent kind among the waiting causes."""
        kinds = {cause.kind for cause in self.unanswered} or {Kind.SYNC}
        return next(kind for kind in Kind if kind in kinds)


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The file system where a daemon keeps images and caches, in bytes."""

    free: int
    size: int


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A place where attempts can run. `ready`: its daemon answers, and it accepts new builds."""

    name: str
    ready: bool = True
    why: str | None = None
    """Why it is not ready, in a sentence."""
    disk: Disk | None = None
    """`None` if Kiln cannot inspect it."""


class Phase(StrEnum):
    """The phase of an attempt, as an engine observes it."""

    ABSENT = "absent"  # never created, as far as the engine can tell
    PENDING = "pending"  # created, not running
    RUNNING = "running"
    ENDED = "ended"  # by itself: `result` says how, or cannot be read
    LOST = "lost"  # removed by a drain, an eviction or a deletion


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why a pending attempt will not start, as far as the engine can tell. `message` is a sentence."""

    message: str
    elsewhere: bool
    """Another node may be able to run it. Otherwise no node is, and only time or an operator can help."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's observation of one attempt."""

    build: str
    attempt: int
    phase: Phase
    node: str | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    result: Result | None = None
    result_lost: bool = False
    """Its result cannot be read, though it may have succeeded: the registry must be queried."""
    log_tail: str = ""
    """The end of the log, if there is no result to contain it."""
    overdue: bool = False
    """It was stopped from outside, because it had run for longer than any attempt may."""
    waiting: str | None = None
    """Why it is pending, or how it was lost, as a sentence."""
    trouble: Trouble | None = None
    """The obstacle to a pending attempt, if waiting does not help."""


def build_name(instance: str, request: Request) -> str:
    """The build's name: a pure function of the request, so that the same request always finds the same record.

    `build-<slug, at most 24>-<first 20 hex of SHA-256>` over RFC 8785 JSON of `[1, instance, repository, commit,
    subdir, build args, image]`; a valid DNS label (RFC 1123) of at most 51 characters, so that `-<attempt>` fits.
    Test vectors: `tests/data/names.json`.
    """
    args = {**request.build_args}
    where = (request.repository, request.commit, request.subdir)
    digest = fingerprint([1, instance, *where, args, request.image])[:20]
    slug = readable(_last_parts(request.repository), 24)
    return "-".join(part for part in ("build", slug, digest) if part)


def shortened(text: str, most: int = MAX_SENTENCE) -> str:
    """The beginning of the text, of at most `most` bytes as JSON; lone surrogates become `?`."""
    text = text.encode(errors="replace").decode()
    if len(msgspec.json.encode(text)) <= most:
        return text
    text = text[:most]
    while len(msgspec.json.encode(f"{text}…")) > most:
        text = text[: len(text) * 7 // 8]
    return f"{text}…"


def readable(text: str, most: int) -> str:
    """At most `most` characters, as lower-case letters, digits and single `-` between them; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].rstrip("-")


def _last_parts(repository: str) -> str:
    """The short name that people use for a repository: the last two parts of its path."""
    path = repository.split("://", 1)[-1].partition("/")[2]
    return "/".join(path.split("/")[-2:])

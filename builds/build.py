"""The words of the system as immutable values: what to build, who asked, and what became of it.

A `Build` is the whole durable record. Two parties write it, and never the same part: web adds causes and a cancel mark,
the controller owns `status`. Every engine stores exactly this value, so everything that must survive a restart is here.
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
"""Of the stored record. An engine leaves a record of another version alone and reports it."""

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A record with a time without zone cannot be read: it could be compared with no other."""

LOCAL_IMAGES = "localhost/"
"""How the names of images begin that stay where they were built. Without a port `localhost` is no registry's address;
Podman names its own images so (https://docs.podman.io/en/v5.4.2/markdown/podman-build.1.html, `--tag`)."""

MAX_OUTBOX = 50
"""Events of one build that may wait for a sink, each kept whole. Who asks for more is told to come back later."""

MAX_SENTENCE = 1024
"""Bytes, as JSON, of each sentence in a record, and of other text that is not ours and has no limit of its own."""

MAX_CAUSES = 100
"""How many causes a record keeps. Answered ones make room; who finds none is told to come back later."""

MAX_CAUSES_BYTES = 64 * 1024
"""And how much room they take, as JSON: a record has its limits (1 MiB in Kubernetes), and ids may be long."""


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
    """Why a build, or one attempt at it, ended as it did."""

    REPOSITORY = "repository"  # failed: its own fault, final
    INFRASTRUCTURE = "infrastructure"  # failed: ours, or the network's
    TIMEOUT = "timeout"  # failed
    REQUESTED = "requested"  # cancelled: somebody asked for that
    SUPERSEDED = "superseded"  # cancelled: a newer push took its place
    DELETED = "deleted"  # cancelled: the record was deleted by hand


class Kind(StrEnum):
    """Who waits: people come before pushes, and those before what Kiln asks of itself."""

    PERSON = "person"
    PUSH = "push"
    SYNC = "sync"


SYNC = "sync"
"""Who asks where Kiln asks of itself (`Cause.by`): for what the operator has listed."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to build.

    `repository` is the canonical URL and identity only; git is given `clone_url`. `commit` is 40 (SHA-1) or 64
    (SHA-256) lower-case hex digits. `image` is a repository with its registry, without tag and digest.
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
        return self.image.startswith(LOCAL_IMAGES)


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """What a Git host said of the push that asked: enough to know, without any clock of ours, what it replaced."""

    before: str | None
    """The commit the ref pointed at until then; `None` where the push created the ref or the host did not say."""
    at: Time | None = None
    """When the host says it was pushed."""


def is_person(by: str | None) -> bool:
    """Whether an asker (`Cause.by`) may be a person, who has a share of what there is."""
    return by is not None and by.startswith(("user:", "oidc:"))


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One event that asked for a build. (`source`, `id`) says which; the same pair again changes nothing.

    A person chooses both for the events that they send, so what they send is the same only as what they have sent
    themselves: nobody can take the place of an event that is yet to come.
    """

    source: str
    id: str
    type: str
    by: str | None
    """`user:<name>`, `service:<name>`, `token:<name>`, `oidc:<sub>`, `webhook:<host>`, `sync`; `None` under
    `KILN_AUTH=none`."""
    at: Time
    """When web wrote it down."""
    kind: Kind
    trigger: str | None = None
    ref: str | None = None
    """`refs/…` the event was about, or `None`."""
    tags: tuple[str, ...] = ()
    """Further tags to set on the image, each only while `tagged_by` (if any) still points at the commit."""
    push: Push | None = None
    force: bool = False
    head: str | None = None
    """`refs/heads/…` that is at the commit, where the host has no ref that is called `ref`."""
    foreign: bool = False
    """Whether it is a pull request from a fork: the commit may be anybody's."""
    default: bool = False
    """Whether `ref` is known to be the repository's default branch."""
    withdrawn: bool = False
    """Whether it waits no longer: the pull request that it is of was closed."""
    trace: Trace | None = None
    """The trace that the event is part of."""
    hops_left: int | None = None
    """How many brokers the event might still pass (`eventing.hops`)."""
    credentials: bool = False
    """Whether it may have the build use stored Git credentials: that was checked when it came in."""
    merged: tuple[str, ...] = ()
    """Keys of earlier causes of the same asker that this one stands for."""

    @property
    def tagged_by(self) -> str | None:
        return self.head or self.ref

    @property
    def counts(self) -> bool:
        """Whether it counts in its asker's share of the queue: what a person asks for, and no sender of events."""
        return is_person(self.by) and self.kind is Kind.PERSON

    @property
    def key(self) -> str:
        """8 hex digits that stand for (`source`, `id`), and for the person who sent it."""
        return _cause_key(*self.identity)

    @property
    def identity(self) -> tuple[str, ...]:
        """The same for the same event only."""
        return (self.source, self.id, *([self.by] if self.by and is_person(self.by) else []))

    def stands_for(self, key: str) -> bool:
        """Whether who asked under that key is answered when this cause is."""
        return key == self.key or key in self.merged

    def knows(self, other: Cause) -> bool:
        """Whether another one is no news beside it."""
        return self.identity == other.identity or (self.by == other.by and other.key in self.merged)


@lru_cache(maxsize=20_000)
def _cause_key(*identity: str) -> str:
    """Kept, because a plan over a thousand builds asks for it again and again."""
    return fingerprint([*identity])[:8]


def fingerprint(value: list[Any]) -> str:
    """SHA-256 over RFC 8785 JSON, in hexadecimal: the same for equal values, whoever computes it."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()


class RefusedTag(msgspec.Struct, frozen=True, kw_only=True):
    """A further tag that the registry does not let be set, and why: registries may forbid that a tag is moved."""

    name: str
    message: str


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A pushed image, known by the digest (`sha256:…`) of its manifest in the registry; or one that stays with its
    daemon (`LOCAL_IMAGES`), known by its ID there."""

    repository: str
    tag: str
    digest: str
    tags: tuple[str, ...] = ()
    """Further tags that were set on the same manifest."""
    refused_tags: tuple[RefusedTag, ...] = ()
    """Those that the registry would not set."""

    @property
    def reference(self) -> str:
        """`name:tag@sha256:…`: names the image for good, and still tells a reader which commit it is. A daemon knows no
        digest of an image that was never pushed: there it is `name:tag`."""
        named = f"{self.repository}:{self.tag}"
        return named if self.repository.startswith(LOCAL_IMAGES) else f"{named}@{self.digest}"


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds spent in each stage; `None` where the stage was not reached."""

    fetch: float | None = None
    build: float | None = None
    push: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What the builder says at its end (its result file; in a pod, the termination message: at most 4096 bytes).

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
    """Whether a failure counts against `KILN_MAX_ATTEMPTS`: that the daemon went away is nobody's fault."""
    out_of_memory: bool = False
    """The daemon, or a step in it, was killed for its memory: the next attempt gets a node of its own."""
    unserved: bool = False
    """The Git host did not serve the commit, or one of a submodule: it may do so later."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try. It is in the record before it exists in the cluster, so that no crash can start it twice."""

    number: int
    node: str | None
    """`None`: not pinned; whichever node can be had."""
    written_at: Time
    started_at: Time | None = None
    finished_at: Time | None = None
    stopping: Reason | None = None
    """Why it has been told to stop; `None` while it has not. `infrastructure`: it was given up before it ran."""
    state: State | None = None
    """`None` until it has ended."""
    reason: Reason | None = None
    message: str | None = None
    counted: bool = True
    """Whether it counts against `KILN_MAX_ATTEMPTS`: what a drain or a daemon's restart took does not."""
    alone: bool = False
    """It has its node to itself, because one before it ran out of memory."""
    quarantine: bool = msgspec.field(default=False, name="unfit")
    """Its node could not take it: others are kept away from there for a while."""
    cache_from: tuple[str, ...] = ()
    """Digests, in the request's image repository, of earlier images whose layers it may reuse."""
    out_of_memory: bool = False
    unserved: bool = False
    timings: Timings = Timings()


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """The mark that web leaves; only the controller acts on it, and only in the round it was made in."""

    round: int
    by: str | None
    at: Time


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"  # refused for good, or not accepted within KILN_DELIVERY_PERIOD


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event given to one sink."""

    sink: str
    event: str
    type: str
    state: DeliveryState = DeliveryState.PENDING
    tries: int = 0
    due_at: Time
    """Not to be tried before this."""
    at: Time | None = None
    """When it was delivered, or given up."""
    error: str | None = None


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """An event that has been decided on: written down before it is sent, kept whole until every sink has it."""

    event: Event
    at: Time
    deliveries: tuple[Delivery, ...]


class BuildStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The controller's part of the record.

    A *round* runs from being asked for to the terminal event; `attempt` is the number that the build waits for or has
    running, and no number is ever used twice, so a round that ended before its attempt began has used its number up.
    """

    state: State = State.QUEUED
    reason: Reason | None = None
    message: str | None = None
    waiting: str | None = None
    """Why it is not running yet, in a sentence."""
    round: int = 0
    """0: not yet seen by a controller."""
    attempt: int = 1
    attempts: tuple[Attempt, ...] = ()
    """Of all rounds, oldest first; bounded by `MAX_ATTEMPTS_KEPT`."""
    round_began_with: int = 1
    """The number of the round's first attempt."""
    image: Image | None = None
    queued_at: Time | None = None
    started_at: Time | None = None
    finished_at: Time | None = None
    trace: Trace | None = None
    """Of the round: of the first who asked and was part of one."""
    not_before: Time | None = None
    """Backoff: the next attempt is not due before this."""
    answered: tuple[str, ...] = ()
    """Keys of the causes that have had their terminal event."""
    outbox: tuple[Announcement, ...] = ()
    """Announced, and not yet settled with every sink."""
    deliveries: tuple[Delivery, ...] = ()
    """What became of earlier announcements; bounded."""
    log_tail: str = ""


MAX_ATTEMPTS_KEPT = 20
MAX_DELIVERIES_KEPT = 50
MAX_DELIVERIES_SHOWN = 100
"""Those of a build as others see it, in lists and in events, too: the latest ones."""
MAX_ERROR = 200
"""Bytes, as JSON, of why a delivery failed: a record has thousands of them where every sink is away."""
MAX_TAIL = 4096
"""Characters of a log's end."""


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One Request being done: the durable record.

    `uid` is made with the record and is in every event id. `revision` is the engine's: a write carries the revision it
    was decided on, and fails if another came between. `open` until everything that was asked for is done and told.
    """

    name: str
    uid: str
    request: Request
    causes: tuple[Cause, ...]
    created_at: Time
    status: BuildStatus = BuildStatus()
    cancel: Cancel | None = None
    open: bool = True
    version: int = VERSION
    revision: str = ""

    @property
    def live(self) -> Attempt | None:
        """The attempt that is under way, if any."""
        attempts = self.status.attempts
        return attempts[-1] if attempts and attempts[-1].state is None else None

    @property
    def unanswered(self) -> tuple[Cause, ...]:
        """Causes that have not had a terminal event yet."""
        answered = self.status.answered
        return tuple(cause for cause in self.causes if cause.key not in answered) if answered else self.causes

    def apart(self, causes: Iterable[Cause]) -> str | None:
        """What tells a build for a pull request from a fork from all others of the repository: the request's ref, or
        where none is known the commit. `None` where no such request is among the causes."""
        return next((cause.ref or self.request.commit for cause in causes if cause.foreign), None)

    @property
    def reopened(self) -> bool:
        """Ended, and asked for again in a way that takes a new attempt: it counts as queued from that moment."""
        if not self.status.state.ended:
            return False
        return any(cause.force or self.status.state is not State.SUCCEEDED for cause in self.unanswered)

    @property
    def state(self) -> State:
        """As everybody outside sees it."""
        return State.QUEUED if self.reopened else self.status.state

    @property
    def first_attempt(self) -> int:
        """The number of the round's first attempt, which is yet to come where the build is reopened."""
        return self.status.attempt + 1 if self.reopened else self.status.round_began_with

    @property
    def kind(self) -> Kind:
        """The most urgent of those who wait."""
        kinds = {cause.kind for cause in self.unanswered} or {Kind.SYNC}
        return next(kind for kind in Kind if kind in kinds)


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The file system where a daemon keeps images and caches, in bytes."""

    free: int
    size: int


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A place where attempts can run. `ready`: a daemon answers there, and it takes new builds."""

    name: str
    ready: bool = True
    why: str | None = None
    """Why it is not ready, in a sentence."""
    disk: Disk | None = None
    """`None` where nobody here can see it."""


class Phase(StrEnum):
    """Of an attempt, as an engine sees it."""

    ABSENT = "absent"  # never created, as far as can be known
    PENDING = "pending"  # created, not running
    RUNNING = "running"
    ENDED = "ended"  # by itself: `result` says how, or cannot be read
    LOST = "lost"  # taken away: drain, eviction, deletion


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why a pending attempt will not come to run, as far as can be known. `message` is a sentence."""

    message: str
    elsewhere: bool
    """Another node may do better; otherwise no node cures it, and only time or an operator can."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine sees of one attempt now."""

    build: str
    attempt: int
    phase: Phase
    node: str | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    result: Result | None = None
    result_lost: bool = False
    """Its result cannot be read though it may have ended well: the registry knows."""
    log_tail: str = ""
    """The end of the log, where there is no result to hold it."""
    overdue: bool = False
    """It was ended from outside, because it had run for longer than any attempt may."""
    waiting: str | None = None
    """Why it is pending, or how it was lost, in a sentence."""
    trouble: Trouble | None = None
    """What keeps a pending one from running, if it is more than a matter of time."""


def build_name(instance: str, request: Request) -> str:
    """The build's name: a pure function of the request, so that asking twice is asking once.

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
    """Its beginning, of at most so many bytes as JSON; what cannot be encoded (lone surrogates) becomes `?`."""
    text = text.encode(errors="replace").decode()
    if len(msgspec.json.encode(text)) <= most:
        return text
    text = text[:most]
    while len(msgspec.json.encode(f"{text}…")) > most:
        text = text[: len(text) * 7 // 8]
    return f"{text}…"


def readable(text: str, most: int) -> str:
    """At most so many characters of it, in lower-case letters, digits and single `-` between them; maybe none."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].rstrip("-")


def _last_parts(repository: str) -> str:
    """The part of a URL that people call the repository by: its last two path parts."""
    path = repository.split("://", 1)[-1].partition("/")[2]
    return "/".join(path.split("/")[-2:])

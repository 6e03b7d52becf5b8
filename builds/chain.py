"""A build as a chain of CDEvents, for sinks with `format: cdevents`.

| Kiln's event | CDEvents |
|---|---|
| queued | build.queued |
| started | build.started |
| retrying | build.queued, of the next attempt |
| succeeded | artifact.packaged, artifact.published, build.finished |
| failed, cancelled | build.finished |

All CDEvents of a round have one `chainId`; each but the first links to the one before. A build has one build.finished,
and an attempt has none. CDEvents has no outcome for an attempt that will be retried, so a receiver takes build.finished
for the end of the build. `customData` holds the outcome.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any

import msgspec

from builds.build import Build, Cause, Reason, State
from builds.plan import Word
from eventing import cdevents
from eventing.cdevents import Link, Name
from eventing.event import Event
from eventing.hops import counted

MAX_LINKS = 10
"""Causes that a chain's first event links to."""
MAX_LINKED_ID = 256
"""Characters of a linked id: a record stores each announced event, and ids may be long."""


class Ending(StrEnum):
    """The outcome of a build in CDEvents' terms for a run (core.md, `taskRun`)."""

    SUCCESS = "success"
    FAILURE = "failure"  # the repository's fault, or a timeout
    CANCEL = "cancel"
    ERROR = "error"  # the infrastructure's fault


class BuildCustomData(msgspec.Struct, frozen=True, kw_only=True):
    """`customData` of each CDEvent: the fields that CDEvents lacks. Absent values are null.

    `attempt` is the subject of the event, `outcome` that of the build. `reason` and `message` explain the end,
    or, in a build.queued, the end of the attempt before.
    """

    build: str
    attempt: int
    outcome: Ending | None
    reason: Reason | None
    message: str | None
    repository: str
    ref: str | None
    commit: str
    image: str


def events(build: Build, word: Word, attempt: int, own: Event, cause: Cause | None = None) -> list[Event]:
    """The CDEvents for `own`, Kiln's own event `word` about the build in the state after that event.

    `cause` is a cause that joined after the end. Its answer is a build.finished in the chain that made the image.
    """
    return [*_Chain(build, own).events(word, attempt, cause)]


class _Chain:
    def __init__(self, build: Build, own: Event) -> None:
        self._build = build
        self._own = own
        seed = f"{build.uid} {build.status.round or 1}"  # 0: deleted before a controller saw it
        self._id = cdevents.chain_id(hashlib.sha256(seed.encode()).digest())

    def events(self, word: Word, attempt: int, cause: Cause | None) -> Iterator[Event]:
        if cause is not None:
            yield self._answer(attempt, cause)
        elif word is Word.QUEUED:
            yield self._first(attempt)
        elif word is Word.STARTED:
            yield self._next("build.started", attempt, "build.queued")
        elif word is Word.RETRYING:
            yield self._again(attempt)
        else:
            yield from self._end(word, attempt)

    def _first(self, attempt: int) -> Event:
        ids = (each.id for each in self._build.unanswered or self._build.causes)
        links = cdevents.triggered_by(islice((each for each in ids if len(each) <= MAX_LINKED_ID), MAX_LINKS))
        return self._made("build.queued", attempt, links)

    def _again(self, ended: int) -> Event:
        links = [cdevents.path(self._id_of(self._latest(ended), ended))]
        return self._made("build.queued", ended + 1, links, message=self._build.status.attempts[-1].message)

    def _end(self, word: Word, attempt: int) -> Iterator[Event]:
        if not self._build.status.round:
            yield self._first(attempt)
        before = self._latest(attempt)
        if word is Word.SUCCEEDED:
            yield self._next("artifact.packaged", attempt, before)
            yield self._next("artifact.published", attempt, "artifact.packaged")
            before = "artifact.published"
        last = self._id_of(before, attempt)
        links = [cdevents.path(last), cdevents.end(last)]
        yield self._made("build.finished", attempt, links, message=self._build.status.message, ended=True)

    def _answer(self, attempt: int, cause: Cause) -> Event:
        last = self._id_of("artifact.published", attempt)
        by = cdevents.triggered_by([cause.id] if len(cause.id) <= MAX_LINKED_ID else [])
        links = [*by, cdevents.path(last), cdevents.end(last)]
        return self._made("build.finished", attempt, links, cause=cause, ended=True)

    def _next(self, name: Name, attempt: int, before: Name) -> Event:
        return self._made(name, attempt, [cdevents.path(self._id_of(before, attempt))])

    def _latest(self, attempt: int) -> Name:
        """The last announced event about an attempt before its end."""
        latest = self._build.status.attempts[-1:]
        began = latest and latest[0].number == attempt and latest[0].started_at
        return "build.started" if began else "build.queued"

    def _made(
        self,
        name: Name,
        attempt: int,
        links: Sequence[Link],
        *,
        cause: Cause | None = None,
        message: str | None = None,
        ended: bool = False,
    ) -> Event:
        assert self._own.time is not None  # noqa: S101  (`builds.report` gives each event its time)
        return cdevents.cdevent(
            name,
            id=self._id_of(name, attempt, cause),
            source=self._own.source,
            time=self._own.time,
            chain_id=self._id,
            links=links,
            subject=self._build.name if name.startswith("build.") else self._purl(),
            content=self._content(name),
            custom=msgspec.to_builtins(self._details(attempt, message, ended=ended)),
            extensions=counted(self._own.extensions),
        )

    def _id_of(self, name: Name, attempt: int, cause: Cause | None = None) -> str:
        return ".".join([self._build.uid, str(attempt), name, *([cause.key] if cause else [])])

    def _content(self, name: Name) -> Mapping[str, object]:
        request, image = self._build.request, self._build.status.image
        if name == "artifact.packaged":
            return {"change": {"id": request.commit, "source": request.repository}}
        if name == "build.finished" and image and self._build.status.state is State.SUCCEEDED:
            return {"artifactId": self._purl()}
        return {}

    def _purl(self) -> str:
        image = self._build.status.image
        assert image is not None  # noqa: S101  (the plan reports no success without an image)
        return cdevents.purl(image.repository, image.tag, image.digest)

    def _details(self, attempt: int, message: str | None, *, ended: bool) -> BuildCustomData:
        shown: Any = self._own.data
        status, image = self._build.status, shown["image"]
        return BuildCustomData(
            build=self._build.name,
            attempt=attempt,
            outcome=ending(status.state, status.reason) if ended else None,
            reason=self._own.extensions.get("reason") if ended or message else None,  # type: ignore[arg-type]
            message=message,
            repository=shown["repository"],
            ref=self._own.extensions.get("ref"),  # type: ignore[arg-type]
            commit=shown["commit"],
            image=image["reference"] or f"{image['repository']}:{image['tag']}",
        )


def ending(state: State, reason: Reason | None) -> Ending:
    """The CDEvents outcome of a build in that state."""
    if state is State.FAILED:
        return Ending.ERROR if reason is Reason.INFRASTRUCTURE else Ending.FAILURE
    return Ending.CANCEL if state is State.CANCELLED else Ending.SUCCESS

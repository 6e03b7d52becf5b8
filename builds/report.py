"""The public view of a build: one JSON object, used by API responses and events.

The structs in this module define the shape. The JSON Schemas in `builds/schemas` are generated from them (`python -m
builds.schemas`) and shipped with Kiln, because events name them in `dataschema`.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from builds.build import (
    MAX_DELIVERIES_SHOWN,
    Attempt,
    Build,
    Cause,
    Delivery,
    DeliveryState,
    Reason,
    RefusedTag,
    State,
    Timings,
)
from builds.image import tag_for
from builds.triggers import BuildRequestBody
from eventing.event import Event, Scalar
from eventing.hops import EXTENSION, next_hop
from eventing.http import attribute_text

SCHEMAS = uuid.UUID("0b9a0c33-6f43-4c0e-9d5b-5a1f2f3f6a11")
"""UUID namespace for the schemas' names if no web address is known for them (RFC 9562, §5.5)."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `state` and `reason` are null until it ends."""

    number: int
    node: str | None
    state: State | None
    reason: Reason | None
    message: str | None
    started_at: Instant | None
    finished_at: Instant | None


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """The image of the build. `repository` and `tag` are known from the start, the other fields after the push.

    `reference` is `repository:tag@digest`, or `repository:tag` for an image that stays with its daemon. `tags` are
    further tags that were set on the same manifest. `refused_tags` are those that the registry refused, with its
    messages.
    """

    reference: str | None
    repository: str
    tag: str
    tags: tuple[str, ...]
    refused_tags: tuple[RefusedTag, ...]
    digest: str | None


class DurationsView(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds; null for a phase that was not reached. All but `queued` belong to the latest attempt."""

    queued: float | None
    fetch: float | None
    build: float | None
    push: float | None


class CauseView(msgspec.Struct, frozen=True, kw_only=True):
    """One event that requested the build."""

    source: str
    id: str
    type: str
    trigger: str | None
    ref: str | None
    tags: tuple[str, ...]
    by: str | None


class LogView(msgspec.Struct, frozen=True, kw_only=True):
    """`tail` is absent in lists."""

    url: str
    tail: str | UnsetType | None = UNSET


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one sink; `at` is the time of success or of the final failure."""

    sink: str
    event: str
    type: str
    state: DeliveryState
    tries: int
    at: Instant | None
    error: str | None


class BuildView(msgspec.Struct, frozen=True, kw_only=True):
    """A build of one image from one commit. Absent values are null, times RFC 3339 in UTC."""

    name: str
    state: State
    reason: Reason | None
    message: str | None
    waiting: str | None
    attempt: int
    attempts: tuple[AttemptView, ...]
    repository: str
    ref: str | None
    commit: str
    subdir: str | None
    image: ImageView
    node: str | None
    queued_at: Instant
    started_at: Instant | None
    finished_at: Instant | None
    durations: DurationsView
    causes: tuple[CauseView, ...]
    log: LogView
    deliveries: tuple[DeliveryView, ...]


def as_json(build: Build, *, base: str = "/", tail: bool = True) -> dict[str, Any]:
    """The build as plain JSON values. `base` is the base path, or a URL that ends in it; `tail` adds the log's tail.

    An ended build with a new request is shown as queued for its next attempt from the moment of that request, even
    before a controller has seen it.
    """
    if build.reopened:
        build = _asked_again(build)
    return _plain(_view(build, base, tail=tail))


def event(
    build: Build,
    word: str,
    attempt: int,
    *,
    source: str,
    now: datetime,
    base: str = "/",
    public_url: str | None = None,
    cause: Cause | None = None,
) -> Event:
    """The event `dev.kiln.build.<word>.v1` about a build in the state after the change.

    `cause` joined after the end, and only this event answers it. The id is deterministic: `<uid>.<attempt>.<word>`, and
    with a `cause` also `.<8 hex of it>`.
    """
    data = _plain(_view(build, base, tail=True))
    reasons = (tried.reason for tried in build.status.attempts if tried.number == attempt)
    trace = cause.trace if cause else build.status.trace
    hops = (asker.hops_left for asker in ((cause,) if cause else build.causes))
    ref = cause.ref if cause else data["ref"]
    extensions: dict[str, Scalar | None] = {
        "repository": build.request.repository,
        "ref": ref and attribute_text(ref),
        "commit": build.request.commit,
        "image": data["image"]["reference"],
        "reason": data["reason"] or next(reasons, None),
        "partitionkey": build.request.repository,
        **(trace.carried if trace else {}),
        EXTENSION: next_hop(hops),
    }
    return Event(
        id=".".join([build.uid, str(attempt), word, *([cause.key] if cause else [])]),
        source=source,
        type=f"dev.kiln.build.{word}.v1",
        subject=build.name,
        time=now,
        datacontenttype="application/json",
        dataschema=schema_id("build.v1.json", public_url),
        extensions={name: value for name, value in extensions.items() if value is not None},
        data=data,
    )


def schema_id(name: str, public_url: str | None = None) -> str:
    """The identifier of a schema: the URL that web serves it under, or a UUID if `KILN_PUBLIC_URL` is not set."""
    if public_url is None:
        return uuid.uuid5(SCHEMAS, name).urn
    return f"{public_url.rstrip('/')}/schemas/{name}"


def schemas(public_url: str | None = None) -> dict[str, dict[str, Any]]:
    """The JSON Schemas (draft 2020-12) of a build and of a request for one, by file name."""
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": schema_id(name, public_url),
            **msgspec.json.schema(shape),
        }
        for name, shape in (("build.v1.json", BuildView), ("request.v1.json", BuildRequestBody))
    }


def _plain(view: BuildView) -> dict[str, Any]:
    """Values after a round trip through JSON, so that a sent event equals the event that a record returns later."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(view))
    return plain


def _asked_again(build: Build) -> Build:
    """The build as the controller will have it at the beginning of the next round."""
    status = build.status
    next_round = msgspec.structs.replace(
        status,
        state=State.QUEUED,
        reason=None,
        message=None,
        waiting=None,
        attempt=status.attempt + 1,
        image=None,
        queued_at=min(cause.at for cause in build.unanswered),
        started_at=None,
        finished_at=None,
        log_tail="",
    )
    return msgspec.structs.replace(build, status=next_round)


def _view(build: Build, base: str, *, tail: bool) -> BuildView:
    status, request = build.status, build.request
    latest = status.attempts[-1] if status.attempts and status.attempts[-1].number == status.attempt else None
    queued_at = status.queued_at or build.created_at
    url = f"{base.rstrip('/')}/api/v1/builds/{build.name}/log"
    deliveries = [*status.deliveries, *(each for announced in status.outbox for each in announced.deliveries)]
    return BuildView(
        name=build.name,
        state=status.state,
        reason=status.reason,
        message=status.message,
        waiting=status.waiting,
        attempt=status.attempt,
        attempts=tuple(map(_attempt, status.attempts)),
        repository=request.repository,
        ref=build.causes[0].ref if build.causes else None,
        commit=request.commit,
        subdir=request.subdir or None,
        image=_image(build),
        node=latest.node if latest else None,
        queued_at=queued_at,
        started_at=status.started_at,
        finished_at=status.finished_at,
        durations=_durations(queued_at, status.started_at, latest.timings if latest else Timings()),
        causes=tuple(map(_cause, build.causes)),
        log=LogView(url=url, tail=(status.log_tail or None) if tail else UNSET),
        deliveries=tuple(map(_delivery, deliveries[-MAX_DELIVERIES_SHOWN:])),
    )


def _image(build: Build) -> ImageView:
    request, image = build.request, build.status.image
    if image is not None and build.status.state is State.SUCCEEDED:
        return ImageView(
            reference=image.reference,
            repository=image.repository,
            tag=image.tag,
            tags=image.tags,
            refused_tags=image.refused_tags,
            digest=image.digest,
        )
    tag = tag_for(request.commit, request.subdir, request.build_args)
    return ImageView(reference=None, repository=request.image, tag=tag, tags=(), refused_tags=(), digest=None)


def _durations(queued_at: datetime, started_at: datetime | None, timings: Timings) -> DurationsView:
    """A clock that was set back never makes a duration negative."""
    queued = None if started_at is None else max(0.0, round((started_at - queued_at).total_seconds(), 3))
    return DurationsView(queued=queued, fetch=timings.fetch, build=timings.build, push=timings.push)


def _attempt(attempt: Attempt) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        node=attempt.node,
        state=attempt.state,
        reason=attempt.reason,
        message=attempt.message,
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
    )


def _cause(cause: Cause) -> CauseView:
    return CauseView(
        source=cause.source,
        id=cause.id,
        type=cause.type,
        trigger=cause.trigger,
        ref=cause.ref,
        tags=cause.tags,
        by=cause.by,
    )


def _delivery(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        sink=delivery.sink,
        event=delivery.event,
        type=delivery.type,
        state=delivery.state,
        tries=delivery.tries,
        at=delivery.at,
        error=delivery.error,
    )

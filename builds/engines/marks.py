"""Web's part of a record: its causes, and the marks to cancel and to resend. Pure; every engine stores the result.

The controller owns the rest and acts on these marks. Nothing here starts, stops or announces anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace

from builds.build import MAX_CAUSES, MAX_CAUSES_BYTES, MAX_OUTBOX, Build, Cancel, Cause, Resend, State
from builds.engines import AlreadyEnded, NothingToSend, QueueFull, Submission

Causes = tuple[Cause, ...]


def joined(
    before: Build | None, submissions: Sequence[Submission], *, uid: Callable[[], str], now: datetime, share: int
) -> Build:
    """One build with the causes of all `submissions`, which are for it; the identical value if they add nothing.

    `share` limits how many requests of one person may wait in it. Raises QueueFull beyond that limit. Raises QueueFull,
    too, if the record has no space for the causes, or if too many of its events wait for a sink.
    """
    first = submissions[0]
    after = before or Build(name=first.name, uid=uid(), request=first.request, causes=(), created_at=now, revision="")
    for ask in submissions:
        after = _with_cause(after, ask.cause)
    if after is before:
        return after
    if before is not None and len(before.status.outbox) >= MAX_OUTBOX:
        raise QueueFull(f"{MAX_OUTBOX} events of this build wait for a sink that refuses them. Try again later.")
    for by, number in asks_of(after).items():
        if number > share and any(ask.cause.by == by for ask in submissions):
            raise share_full(by, share)
    return replace(after, open=True)


def newly_queued(before: Build | None, after: Build) -> bool:
    """Whether the build has just begun to wait, and so counts towards the queue's limits."""
    return after.state is State.QUEUED and (before is None or before.state is not State.QUEUED)


def cancelled(build: Build, by: str | None, now: datetime) -> Build:
    """The build with a cancel mark for its present round; the identical value if it has one. Raises AlreadyEnded."""
    if build.state.ended:
        raise AlreadyEnded(f"The build {build.name} has ended already: {build.state}.")
    # A reopened build is in its next round already, though the controller has not recorded that yet.
    current = build.status.round + 1 if build.reopened else max(build.status.round, 1)
    if build.cancel is not None and build.cancel.round == current:
        return build
    return replace(build, cancel=Cancel(round=current, by=by, at=now))


def resent(build: Build, sink: str, by: str | None, now: datetime) -> Build:
    """The build with a mark to send its terminal event to the sink once more; the identical value if that event is
    pending there. Raises NothingToSend."""
    if not build.state.ended:
        raise NothingToSend(f"The build {build.name} has not ended, so it has no last event yet. Send it again later.")
    pending = {one.sink for announcement in build.status.outbox for one in announcement.deliveries}
    if sink in pending or sink in build.resending:
        return build
    if sink not in {delivery.sink for delivery in build.status.deliveries}:
        raise NothingToSend(f"The build {build.name} has sent no event to a sink {sink}.")
    others = tuple(mark for mark in build.resends if mark.sink != sink)
    return replace(build, resends=(*others, Resend(sink=sink, by=by, at=now)), open=True)


def withdrawn(build: Build, ref: str) -> Build:
    """The build with the causes of that ref's pull request withdrawn; the identical value if it has none.

    Only causes from the pull request itself are withdrawn: other requests for that ref remain.
    """
    gone = {each.key for each in build.unanswered if each.push and each.ref == ref and not each.withdrawn}
    if not gone:
        return build
    return replace(
        build, causes=tuple(replace(each, withdrawn=True) if each.key in gone else each for each in build.causes)
    )


def asks_of(build: Build) -> Counter[str]:
    """How many requests of each person wait for an answer."""
    waiting: Counter[str] = Counter()
    for cause in build.unanswered:
        if cause.by and cause.counts:
            waiting[cause.by] += 1 + len(cause.merged)
    return waiting


def gained(before: Build | None, after: Build) -> Counter[str]:
    """How many more requests of each person wait in the queue with this build."""
    earlier = asks_of(before) if before is not None and before.state is State.QUEUED else Counter[str]()
    return asks_of(after) - earlier if after.state is State.QUEUED else Counter()


def queue_full(limit: int) -> QueueFull:
    return QueueFull(f"The queue is full: {limit} builds wait already (KILN_MAX_QUEUED). Try again later.")


def share_full(by: str, limit: int) -> QueueFull:
    said = f"{by} has {limit} requests waiting, which is the limit (KILN_MAX_QUEUED_PER_USER). Try again later."
    return QueueFull(said, per_user=True)


def _with_cause(build: Build, cause: Cause) -> Build:
    """The build with one more cause; the identical value if it has the cause already. Raises QueueFull."""
    if any(known.knows(cause) for known in build.causes):
        return build
    return replace(build, causes=_fitted((*build.causes, cause), build.status.answered))


def _fitted(causes: Causes, answered: Collection[str]) -> Causes:
    """The causes within the record's limits: answered ones are dropped, then one requester's are merged.

    Waiting causes are never dropped. Raises QueueFull.
    """
    while len(causes) > MAX_CAUSES or sum(map(_size, causes)) > MAX_CAUSES_BYTES:
        fewer = _without_an_answered(causes, answered) or _with_an_askers_merged(causes, answered)
        if fewer is None:
            raise QueueFull("Too many requests wait for this build, so its record is full. Try again later.")
        causes = fewer
    return causes


def _without_an_answered(causes: Causes, answered: Collection[str]) -> Causes | None:
    """Drops an answered cause. The first cause stays, because it made the build."""
    for place, cause in enumerate(causes[1:], start=1):
        if cause.key in answered:
            return causes[:place] + causes[place + 1 :]
    return None


def _with_an_askers_merged(causes: Causes, answered: Collection[str]) -> Causes | None:
    """Merges the causes of one requester: of the one with the most."""
    groups: dict[Hashable, list[Cause]] = defaultdict(list)
    for cause in causes:
        if cause.key not in answered:
            groups[_likeness(cause)].append(cause)
    most = max(groups.values(), key=len, default=[])
    if len(most) < 2:  # noqa: PLR2004  (a merge needs two)
        return None
    merged = _merged(most)
    return tuple(merged if cause is most[0] else cause for cause in causes if cause is most[0] or cause not in most)


def _likeness(cause: Cause) -> Hashable:
    """Equal for causes that may be merged. A tag belongs to its ref."""
    ref = cause.tagged_by if cause.tags else None
    trust = (cause.credentials, cause.foreign, cause.withdrawn)
    return (cause.by, cause.kind, cause.trigger, *trust, ref, bool(cause.tags))


def _merged(causes: Sequence[Cause]) -> Cause:
    """The latest cause, which is still unanswered, with the requests of all. It is not a push, as those supersede."""
    *earlier, latest = causes
    return replace(
        latest,
        tags=tuple(dict.fromkeys(tag for cause in causes for tag in cause.tags)),
        force=any(cause.force for cause in causes),
        push=None,
        hops_left=min((cause.hops_left for cause in causes if cause.hops_left is not None), default=None),
        merged=tuple(dict.fromkeys(key for cause in earlier for key in (*cause.merged, cause.key))) + latest.merged,
    )


def _size(cause: Cause) -> int:
    return len(msgspec.json.encode(cause))

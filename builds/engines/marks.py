"""Web's part of a record: who asked, and the mark that it should be cancelled. Pure; every engine stores the result.

The controller owns the rest and acts on these marks; nothing here starts, stops or announces anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace

from builds.build import MAX_CAUSES, MAX_CAUSES_BYTES, MAX_OUTBOX, Build, Cancel, Cause, State
from builds.engines import AlreadyEnded, QueueFull, Submission

Causes = tuple[Cause, ...]


def joined(
    before: Build | None, submissions: Sequence[Submission], *, uid: Callable[[], str], now: datetime, share: int
) -> Build:
    """One build with the causes of all `submissions`, which are for it; the very same value where that is no news.

    `share` is how many asks of one person may wait in it. Raises QueueFull beyond that, where its causes have no room
    that an answered one could give, and where so many events of it wait for a sink that no more may be caused.
    """
    first = submissions[0]
    after = before or Build(name=first.name, uid=uid(), request=first.request, causes=(), created_at=now, revision="")
    for ask in submissions:
        after = _with_cause(after, ask.cause)
    if after is before:
        return after
    if before is not None and len(before.status.outbox) >= MAX_OUTBOX:
        raise QueueFull(f"{MAX_OUTBOX} events of this build wait for a sink that does not take them.")
    for by, number in asks_of(after).items():
        if number > share and any(ask.cause.by == by for ask in submissions):
            raise share_full(by, share)
    return replace(after, open=True)


def newly_queued(before: Build | None, after: Build) -> bool:
    """Whether the build has just begun to wait: then it counts against the queue's limits."""
    return after.state is State.QUEUED and (before is None or before.state is not State.QUEUED)


def cancelled(build: Build, by: str | None, now: datetime) -> Build:
    """The build with a cancel mark for its present round; the very same value where it has one. Raises AlreadyEnded."""
    if build.state.ended:
        raise AlreadyEnded(f"The build {build.name} has ended: {build.state}.")
    # One that waits to be opened again is in its next round already, though no controller has said so yet.
    current = build.status.round + 1 if build.reopened else max(build.status.round, 1)
    if build.cancel is not None and build.cancel.round == current:
        return build
    return replace(build, cancel=Cancel(round=current, by=by, at=now))


def withdrawn(build: Build, ref: str) -> Build:
    """The build without anybody who waits for it only for the pull request of that ref; the very same value where
    nobody does.

    Those causes alone that came of the request itself: who has asked for that ref still wants it.
    """
    gone = {each.key for each in build.unanswered if each.push and each.ref == ref and not each.withdrawn}
    if not gone:
        return build
    return replace(
        build, causes=tuple(replace(each, withdrawn=True) if each.key in gone else each for each in build.causes)
    )


def asks_of(build: Build) -> Counter[str]:
    """How many asks of each person still wait for an answer."""
    waiting: Counter[str] = Counter()
    for cause in build.unanswered:
        if cause.by and cause.counts:
            waiting[cause.by] += 1 + len(cause.merged)
    return waiting


def gained(before: Build | None, after: Build) -> Counter[str]:
    """How many more asks of each person wait in the queue with this build."""
    earlier = asks_of(before) if before is not None and before.state is State.QUEUED else Counter[str]()
    return asks_of(after) - earlier if after.state is State.QUEUED else Counter()


def queue_full(limit: int) -> QueueFull:
    return QueueFull(f"{limit} builds are waiting already, and no more may (KILN_MAX_QUEUED).")


def share_full(by: str, limit: int) -> QueueFull:
    said = f"{by} has asked {limit} times and waits for the answers; no more may (KILN_MAX_QUEUED_PER_USER)."
    return QueueFull(said, per_user=True)


def _with_cause(build: Build, cause: Cause) -> Build:
    """The build with one more cause; the very same if it knows it. Raises QueueFull."""
    if any(known.knows(cause) for known in build.causes):
        return build
    return replace(build, causes=_fitted((*build.causes, cause), build.status.answered))


def _fitted(causes: Causes, answered: Collection[str]) -> Causes:
    """As many as a record has room for: answered ones go, then one asker's are merged. Nobody who waits is left out.

    Raises QueueFull.
    """
    while len(causes) > MAX_CAUSES or sum(map(_size, causes)) > MAX_CAUSES_BYTES:
        fewer = _without_an_answered(causes, answered) or _with_an_askers_merged(causes, answered)
        if fewer is None:
            raise QueueFull("So many wait for this build that its record has no room for one more.")
        causes = fewer
    return causes


def _without_an_answered(causes: Causes, answered: Collection[str]) -> Causes | None:
    """The first cause stays: it made the build."""
    for place, cause in enumerate(causes[1:], start=1):
        if cause.key in answered:
            return causes[:place] + causes[place + 1 :]
    return None


def _with_an_askers_merged(causes: Causes, answered: Collection[str]) -> Causes | None:
    """With those of one asker as one: of the one who has the most."""
    groups: dict[Hashable, list[Cause]] = defaultdict(list)
    for cause in causes:
        if cause.key not in answered:
            groups[_likeness(cause)].append(cause)
    most = max(groups.values(), key=len, default=[])
    if len(most) < 2:  # noqa: PLR2004  (what it takes to merge)
        return None
    merged = _merged(most)
    return tuple(merged if cause is most[0] else cause for cause in causes if cause is most[0] or cause not in most)


def _likeness(cause: Cause) -> Hashable:
    """Equal for causes that may be one. A tag belongs to its ref."""
    ref = cause.tagged_by if cause.tags else None
    trust = (cause.credentials, cause.foreign, cause.withdrawn)
    return (cause.by, cause.kind, cause.trigger, *trust, ref, bool(cause.tags))


def _merged(causes: Sequence[Cause]) -> Cause:
    """The latest, which nobody has acted on yet, with what all of them ask for. It is no push: those supersede."""
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

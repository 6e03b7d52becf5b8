"""Web's part of a record: who asked, and the mark that it should be cancelled. Pure; every engine stores the result.

The controller owns the rest and acts on these marks; nothing here starts, stops or announces anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace

from builds.build import MAX_CAUSES, MAX_CAUSES_BYTES, MAX_OUTBOX, Build, Cancel, Cause, State
from builds.engines import AlreadyEnded, Ask, QueueFull


def joined(before: Build | None, asks: Sequence[Ask], *, uid: Callable[[], str], now: datetime) -> Build:
    """One build with the causes of all `asks`, which are for it; the very same value where that is no news.

    Raises QueueFull where so many events of it wait for a sink that no more may be caused.
    """
    first = asks[0]
    after = before or Build(
        name=first.name, uid=uid(), request=first.request, causes=(first.cause,), created_at=now, revision=""
    )
    for ask in asks:
        after = _with_cause(after, ask.cause)
    if after is before:
        return after
    if before is not None and len(before.status.outbox) >= MAX_OUTBOX:
        raise QueueFull(f"{MAX_OUTBOX} events of this build wait for a sink that does not take them.")
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


def askers(build: Build) -> set[str]:
    """Those who still wait for an answer."""
    return {cause.by for cause in build.unanswered if cause.by}


def limited(by: str | None) -> bool:
    """Whether an asker is a person, who has a share of the queue."""
    return by is not None and by.startswith(("user:", "oidc:"))


def queue_full(limit: int) -> QueueFull:
    return QueueFull(f"{limit} builds are waiting already, and no more may (KILN_MAX_QUEUED).")


def share_full(by: str, limit: int) -> QueueFull:
    said = f"{limit} builds of {by} are waiting already, and no more may (KILN_MAX_QUEUED_PER_USER)."
    return QueueFull(said, per_user=True)


def _with_cause(build: Build, cause: Cause) -> Build:
    """The build with one more cause; the very same if it knows it. The first is kept for ever, and the latest are."""
    if any((known.source, known.id) == (cause.source, cause.id) for known in build.causes):
        return build
    first, *others = (*build.causes, cause)
    latest = others[-(MAX_CAUSES - 1) :]
    room = MAX_CAUSES_BYTES - _size(first)
    kept: list[Cause] = []
    for other in reversed(latest):
        room -= _size(other)
        if room < 0 and kept:
            break
        kept.append(other)
    return replace(build, causes=(first, *reversed(kept)))


def _size(cause: Cause) -> int:
    return len(msgspec.json.encode(cause))

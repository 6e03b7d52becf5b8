"""A round of a build as stages: the waiting times, and the phases of each attempt.

The timeline is computed after the round from the record alone. Builders have no access to a collector, and no reason to
wait for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from builds.build import Attempt, Build, State
from eventing.spans import Stage


def timeline(build: Build) -> Stage:
    """The last round of an ended build: `queue` and `attempt` in turn, with the phases of each attempt."""
    status = build.status
    start = status.queued_at or build.created_at
    end = max(status.finished_at or start, start)
    about: dict[str, str | int | None] = {
        "kiln.build": build.name,
        "kiln.state": status.state,
        "kiln.reason": status.reason,
        "vcs.repository.url.full": build.request.repository,
        "vcs.ref.head.revision": build.request.commit,
        "container.image.name": build.request.image,
        "oci.manifest.digest": status.image.digest if status.image else None,
    }
    return Stage(
        name="build",
        start=start,
        end=end,
        attributes={name: value for name, value in about.items() if value is not None},
        error=status.message or status.reason if status.state is State.FAILED else None,
        parts=tuple(_stages(build, start, end)),
    )


def phases(whole: Stage) -> Iterator[tuple[str, float]]:
    """Name (`queue`, `fetch`, `build`, `push`) and seconds of each leaf of a timeline."""
    for stage in whole.parts:
        for part in stage.parts or ([stage] if stage.name == "queue" else []):
            yield part.name, (part.end - part.start).total_seconds()


def _stages(build: Build, waits_since: datetime, end: datetime) -> Iterator[Stage]:
    attempts = [each for each in build.status.attempts if each.number >= build.status.round_began_with]
    for attempt in attempts:
        began = max(attempt.started_at or attempt.finished_at or end, waits_since)  # a clock may have been set back
        ended = max(attempt.finished_at or end, began)
        yield Stage(name="queue", start=waits_since, end=began, attributes=_number(attempt))
        if attempt.started_at is not None:
            yield _attempt(attempt, began, ended)
        waits_since = ended
    if not attempts or build.status.attempt != attempts[-1].number:  # it ended before the next attempt began
        yield Stage(name="queue", start=waits_since, end=max(end, waits_since))


def _attempt(attempt: Attempt, start: datetime, end: datetime) -> Stage:
    node = {"kiln.node": attempt.node} if attempt.node else {}
    return Stage(
        name="attempt",
        start=start,
        end=end,
        attributes={**_number(attempt), **node},
        error=attempt.message or attempt.reason if attempt.state is State.FAILED else None,
        parts=tuple(_parts(attempt, start)),
    )


def _parts(attempt: Attempt, start: datetime) -> Iterator[Stage]:
    """The phases one after the other, as the builder runs them."""
    for name in ("fetch", "build", "push"):
        seconds: float | None = getattr(attempt.timings, name)
        if seconds is not None:
            end = start + timedelta(seconds=seconds)
            yield Stage(name=name, start=start, end=end)
            start = end


def _number(attempt: Attempt) -> dict[str, str | int]:
    return {"kiln.attempt": attempt.number}

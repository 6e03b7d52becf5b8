"""The transitions of a record: pure functions, and the only place that changes the controller's part of a record.

A change of state and the event about it go into the record in one write. So no build ends unannounced, and no sink
receives an event about a state that never was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from builds.build import (
    MAX_ATTEMPTS_KEPT,
    MAX_DELIVERIES_KEPT,
    MAX_ERROR,
    MAX_TAIL,
    Announcement,
    Attempt,
    Build,
    Cause,
    Delivery,
    DeliveryState,
    Image,
    Reason,
    State,
    shortened,
)
from builds.plan import Action, DeadLetter, Explain, Repeat, Report, Settle, Start, Stop, Word, first_trace, opened
from eventing.event import Event

change = msgspec.structs.replace

Announce = Callable[[Build, Word, int, Cause | None], Sequence[tuple[Event, tuple[str, ...]]]]
"""Makes the events of a change, each with the names of its sinks. Arguments: the build after the change, the word, the
attempt, and the answered cause or `None`."""


def advance(build: Build, action: Action, now: datetime, announce: Announce) -> Build:  # noqa: PLR0911  (one for each action)
    """The record after the action. Raises TypeError for an action that does not change records."""
    match action:
        case Report():
            return _report(build, action, now, announce)
        case Start():
            return _start(build, action, now, announce)
        case Stop():
            return _live(build, stopping=action.reason, message=_said(action.message), quarantine=action.quarantine)
        case Explain():
            return _status(build, waiting=_said(action.waiting))
        case DeadLetter():
            return delivered(build, action.event, action.sink, now, error=None, dead=True)
        case Repeat():
            return _repeated(build, now, announce)
        case Settle():
            return change(build, open=False)
        case _:
            raise TypeError(f"{type(action).__name__} changes no record")


def delivered(build: Build, event: str, sink: str, now: datetime, *, error: str | None, dead: bool = False) -> Build:
    """The delivery is complete, or failed permanently (`dead`)."""
    state = DeliveryState.DEAD if dead else DeliveryState.DELIVERED
    return _delivery(build, event, sink, lambda delivery: _ended(delivery, state, now, error))


def undelivered(build: Build, event: str, sink: str, now: datetime, *, error: str, pause: timedelta) -> Build:
    """A try failed; another follows."""

    def again(delivery: Delivery) -> Delivery:
        return change(delivery, tries=delivery.tries + 1, due_at=now + pause, error=shortened(error, MAX_ERROR))

    return _delivery(build, event, sink, again)


def _ended(delivery: Delivery, state: DeliveryState, now: datetime, error: str | None) -> Delivery:
    tried = state is DeliveryState.DELIVERED or error is not None
    said = shortened(error, MAX_ERROR) if error else None
    kept = None if state is DeliveryState.DELIVERED else said or delivery.error
    return change(delivery, state=state, at=now, error=kept, tries=delivery.tries + tried)


def _delivery(build: Build, event: str, sink: str, update: Callable[[Delivery], Delivery]) -> Build:
    """Updates one delivery. An announcement without pending deliveries leaves the outbox, and its event the record."""
    outbox: list[Announcement] = []
    done = list(build.status.deliveries)
    for announcement in build.status.outbox:
        deliveries = tuple(
            update(delivery) if (delivery.event, delivery.sink) == (event, sink) else delivery
            for delivery in announcement.deliveries
        )
        if any(delivery.state is DeliveryState.PENDING for delivery in deliveries):
            outbox.append(change(announcement, deliveries=deliveries))
        else:
            done.extend(deliveries)
    return _status(build, outbox=tuple(outbox), deliveries=tuple(done[-MAX_DELIVERIES_KEPT:]))


def _start(build: Build, start: Start, now: datetime, announce: Announce) -> Build:
    """Adds the attempt. A start that opens the round announces `queued` in the same write."""
    build = _traced(build)
    if start.opens:
        build = opened(build, start.attempt, now)
        build = _announced(build, now, announce(build, Word.QUEUED, start.attempt, None))
    attempts = (*build.status.attempts, _attempt(start, now))[-MAX_ATTEMPTS_KEPT:]
    return _status(build, attempts=attempts, waiting=None)


def _attempt(start: Start, now: datetime) -> Attempt:
    return Attempt(
        number=start.attempt, node=start.node, written_at=now, alone=start.alone, cache_from=start.cache_from
    )


def _report(build: Build, report: Report, now: datetime, announce: Announce) -> Build:
    at = report.at or now
    if report.causes:
        return _answered(build, report, now, announce)
    build = _traced(build)
    if report.node and build.live:
        build = _live(build, node=report.node)
    if report.word is Word.QUEUED:
        after = _status(opened(build, report.attempt, at), waiting=_said(report.waiting))
    elif report.word is Word.STARTED:
        after = _status(_live(build, started_at=at), state=State.RUNNING, started_at=at, waiting=None)
    elif report.word is Word.RETRYING:
        after = _close_attempt(build, report, at)
        after = _status(
            after, state=State.QUEUED, started_at=None, attempt=report.attempt + 1, not_before=report.retry_at
        )
    else:
        after = _terminal(_close_attempt(build, report, at), report, at)
    return _announced(after, now, announce(after, report.word, report.attempt, None))


def _traced(build: Build) -> Build:
    """Gives a build without a trace the first trace among its waiting causes."""
    return build if build.status.trace else _status(build, trace=first_trace(build))


def _terminal(build: Build, report: Report, at: datetime) -> Build:
    """The end of a round.

    It does not answer a request that came after the cancellation: that request opens the next round. Nor does it answer
    a request that joined too late for its tags. The image gets those tags next, and the request its answer.
    """
    outcome = report.outcome
    assert outcome is not None  # noqa: S101  (every terminal report of the plan has one)
    answered = build.causes
    if outcome.reason is Reason.REQUESTED:
        until = build.cancel and build.cancel.at
        answered = tuple(cause for cause in build.causes if cause.withdrawn or (until and cause.at <= until))
    elif outcome.image:
        answered = tuple(cause for cause in build.causes if not _lacks_tags(build, cause, outcome.image))
    return _status(
        build,
        state=outcome.state,
        reason=outcome.reason,
        message=_said(outcome.message),
        waiting=None,
        not_before=None,
        attempt=report.attempt,
        image=outcome.image,
        finished_at=at,
        log_tail=outcome.log_tail[-MAX_TAIL:],
        answered=_keys(build, answered),
    )


def _lacks_tags(build: Build, cause: Cause, image: Image) -> bool:
    """Whether the cause joined after the attempt was written, so that the builder did not know its tags. It is answered
    like a request for an existing image, which sets them."""
    joined = any(cause.at > attempt.written_at for attempt in build.status.attempts[-1:])
    known = {image.tag, *image.tags, *(refused.name for refused in image.refused_tags)}
    return joined and not (cause.force or cause.withdrawn) and not {*cause.tags} <= known


def _keys(build: Build, answered: Sequence[Cause]) -> tuple[str, ...]:
    """The keys answered now and before, as far as the record still contains their causes."""
    now = {cause.key for cause in answered} | set(build.status.answered)
    return tuple(cause.key for cause in build.causes if cause.key in now)


def _answered(build: Build, report: Report, now: datetime, announce: Announce) -> Build:
    """Answers requests for an existing image: each gets a `succeeded` event with an id of its own."""
    joined = [cause for cause in build.causes if cause.key in report.causes]
    image = report.outcome.image if report.outcome else None
    after = _status(build, image=image or build.status.image, answered=_keys(build, joined))
    events = [made for cause in joined for made in announce(after, report.word, report.attempt, cause)]
    return _announced(after, now, events)


def _repeated(build: Build, now: datetime, announce: Announce) -> Build:
    """Puts the terminal event into the outbox once more, for the marked sinks alone. A sink that is no longer
    configured for it gets nothing."""
    waiting = build.resending
    events = announce(build, Word(build.status.state.value), build.status.attempt, None)
    after = _announced(build, now, [(event, tuple(one for one in sinks if one in waiting)) for event, sinks in events])
    return _status(after, resent=tuple(mark.key for mark in build.resends))


def _close_attempt(build: Build, report: Report, at: datetime) -> Build:
    """Records the end of the live attempt, if any. A node that has run it is not quarantined after all."""
    outcome, live = report.outcome, build.live
    if outcome is None or live is None:
        return build
    return _live(
        build,
        quarantine=live.quarantine and live.started_at is None,
        finished_at=at,
        state=State.FAILED if report.word is Word.RETRYING else outcome.state,
        reason=outcome.reason,
        message=_said(outcome.message),
        counted=outcome.counted,
        out_of_memory=outcome.out_of_memory,
        unserved=outcome.unserved,
        timings=outcome.timings,
    )


def _announced(build: Build, now: datetime, events: Sequence[tuple[Event, tuple[str, ...]]]) -> Build:
    """Puts events into the outbox, due immediately."""
    announcements = tuple(
        Announcement(
            event=event,
            at=now,
            deliveries=tuple(Delivery(sink=sink, event=event.id, type=event.type, due_at=now) for sink in sinks),
        )
        for event, sinks in events
        if sinks
    )
    return _status(build, outbox=(*build.status.outbox, *announcements))


def _live(build: Build, **changes: object) -> Build:
    """Changes the live attempt."""
    *ended, live = build.status.attempts
    return _status(build, attempts=(*ended, change(live, **changes)))


def _status(build: Build, **changes: object) -> Build:
    return change(build, status=change(build.status, **changes))


def _said(sentence: str | None) -> str | None:
    return None if sentence is None else shortened(sentence)

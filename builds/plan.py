"""The whole policy of Kiln: facts in, actions out.

`plan` is a pure function. It reads the records of the open builds, the observed state of their attempts, and the nodes,
and returns actions. The controller carries them out and calls it again. So all rules about order, fairness, retries,
cancellation and ends are in this module, free of any cluster, and tests can run them by the thousand.

The plan keeps no state between calls: facts that must survive a restart are in the records. The controller's own facts
(deliveries in flight, the rotation) come in with `Facts`. A restarted controller has none of them: it may repeat
itself, but never contradict itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from builds.build import (
    MAX_OUTBOX,
    Attempt,
    Build,
    BuildStatus,
    Cause,
    DeliveryState,
    Image,
    Kind,
    Node,
    Phase,
    Reason,
    Sighting,
    State,
    Timings,
    shortened,
)
from builds.locality import Locality, Success
from eventing.sinks import keeps_order
from eventing.tracing import Trace

MAX_UNCOUNTED = 10
"""Attempts in one round, counted or not: an unstable node must not cause builds without end."""
BACKOFF = timedelta(seconds=10)
MAX_BACKOFF = timedelta(minutes=5)
BACKSTOP = timedelta(seconds=120)
"""How long after the builder's own time limit the attempt is stopped from outside."""
QUARANTINE = timedelta(minutes=5)
"""How long placement avoids a node that could not run an attempt."""
SETTLING = timedelta(seconds=2)
"""Time within which an attempt usually runs, so an earlier explanation does not justify a write."""
MAX_NODE_WAIT = timedelta(minutes=10)
"""How long an attempt may wait for a node: a machine must be ordered, boot, and pull the daemon's image."""
FORMATS = 2
"""Event formats (`eventing.sinks.Format`): sinks may need one change in several of them."""
OLDEST_EVERY = 4
"""Every fourth start goes to the build that has waited longest, of any requester: this prevents starvation."""


class Supersede(StrEnum):
    """`KILN_SUPERSEDE`: which builds of a commit end after its ref has moved on."""

    OFF = "off"
    QUEUED = "queued"
    RUNNING = "running"  # these, and the queued ones


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's limits; docs/settings.md describes each."""

    builds_per_node: int = 2
    max_attempts: int = 3
    build_timeout: timedelta = timedelta(hours=1)
    supersede: Supersede = Supersede.QUEUED
    pending_grace: timedelta = timedelta(seconds=60)
    scale_up_after: timedelta = timedelta(seconds=30)
    delivery_period: timedelta = timedelta(hours=24)
    log_history: timedelta = timedelta(hours=24)
    history: timedelta = timedelta(days=7)
    ledger: bool = False
    """Whether the record of an image is kept until the image itself is gone (`builds.prune`)."""
    daemon: str = "Docker daemon"
    """Name of the building daemon, for sentences."""


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """The registry's answer about a build's image: `image`, or `None` if it is gone.

    `causes`: keys of the causes that the question covered, and whose tags are set. Later causes need another answer.
    """

    image: Image | None
    causes: tuple[str, ...]


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The registry's answer about an attempt without a result: the image that it pushed, or `None`."""

    image: Image | None


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """The rotation among requesters: the number of starts, and the start at which each was last served."""

    starts: int = 0
    served: Mapping[str, int] = {}

    def after(self, build: Build) -> Rotation:
        """The rotation after one more start, that of this build."""
        served = {
            **self.served,
            f"by {asker(build)}": self.starts + 1,
            f"of {build.request.repository}": self.starts + 1,
        }
        recent = sorted(served.items(), key=lambda entry: -entry[1])[:1000]
        return Rotation(starts=self.starts + 1, served=dict(recent))


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All inputs of a plan at one moment.

    `sightings` has at most one entry for each build, that of its live attempt, and entries for running attempts
    without a record.
    """

    builds: Sequence[Build] = ()
    sightings: Sequence[Sighting] = ()
    nodes: Sequence[Node] = ()
    scalable: bool = False
    """An attempt without a node may bring one, by an autoscaler."""
    confirmations: Mapping[str, Confirmation] = {}
    """The registry's answers, by build."""
    confirming: frozenset[str] = frozenset()
    """Builds with an open question to the registry."""
    inspections: Mapping[tuple[str, int], Inspection] = {}
    """The registry's answers, by (build, attempt)."""
    inspecting: frozenset[tuple[str, int]] = frozenset()
    """(build, attempt) with an open question to the registry."""
    sending: frozenset[tuple[str, str]] = frozenset()
    """(event id, sink) in flight."""
    stopped: frozenset[tuple[str, int]] = frozenset()
    """(build, attempt) that this controller has stopped."""
    watched: Mapping[tuple[str, int], timedelta] = {}
    """How long (build, attempt) has been observed in its present phase, by a monotonic clock."""
    troubled: Mapping[tuple[str, int], timedelta] = {}
    """How long the present kind of trouble (`Trouble.elsewhere`) has been observed for (build, attempt)."""
    rotation: Rotation = Rotation()
    quarantine: Sequence[Attempt] = ()
    """Attempts that quarantine their node, of builds that are no longer open."""
    in_flight: Mapping[str, Action | None] = {}
    """By build: the action in progress, or `None` for deliveries only. Nothing else is decided about such a build, and
    its start already occupies a slot."""
    successes: Mapping[str, Sequence[Success]] = {}
    """The latest successful builds by repository, newest first."""


class Word(StrEnum):
    """The last word of an event type, `dev.kiln.build.<word>.v1`."""

    QUEUED = "queued"
    STARTED = "started"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (Word.SUCCEEDED, Word.FAILED, Word.CANCELLED)


class AttemptOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an attempt, or of a build without one."""

    state: State
    reason: Reason | None = None
    message: str | None = None
    image: Image | None = None
    timings: Timings = Timings()
    log_tail: str = ""
    counted: bool = True
    out_of_memory: bool = False
    unserved: bool = False


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Root of the actions. All actions are idempotent."""

    build: str


class Start(Action, frozen=True, kw_only=True):
    """Write the attempt into the record unless it is in it already, then run it.

    `opens`: the same write opens the round and announces `queued`.
    """

    attempt: int
    node: str | None
    alone: bool = False
    cache_from: tuple[str, ...] = ()
    opens: bool = False


class Stop(Action, frozen=True, kw_only=True):
    """Record the reason, then stop the attempt.

    `infrastructure` evicts an attempt that does not start. `message` explains why. `quarantine`: its node is the cause.
    """

    attempt: int
    reason: Reason
    message: str | None = None
    quarantine: bool = False


class Report(Action, frozen=True, kw_only=True):
    """Change the record, and announce the change to every interested sink.

    `outcome` goes with `retrying` and the terminal words. `causes`: keys of causes that joined after the end and are
    answered now; empty if the word is about the build itself. `retry_at` goes with `retrying`.
    """

    word: Word
    attempt: int
    outcome: AttemptOutcome | None = None
    causes: tuple[str, ...] = ()
    retry_at: datetime | None = None
    waiting: str | None = None
    """Why the build waits; goes with `queued`."""
    at: datetime | None = None
    """Time of the change, if it is known better than by the time of writing."""
    node: str | None = None
    """Place of the change, if the record does not contain it because the attempt was not pinned."""


class Explain(Action, frozen=True, kw_only=True):
    """Record why the build waits."""

    waiting: str | None


class Confirm(Action, frozen=True, kw_only=True):
    """Ask the registry whether the image still exists, and set the tags of later causes."""


class Inspect(Action, frozen=True, kw_only=True):
    """Ask the registry whether the attempt pushed its image, and set the tags of the causes."""

    attempt: int


class Deliver(Action, frozen=True, kw_only=True):
    """Send one event to one sink."""

    event: str
    sink: str


class DeadLetter(Action, frozen=True, kw_only=True):
    """Abandon a delivery, which becomes a dead letter."""

    event: str
    sink: str


class Repeat(Action, frozen=True, kw_only=True):
    """Announce the terminal event once more, with the same id, to the sinks that web has marked."""


class Settle(Action, frozen=True, kw_only=True):
    """Close the build: all requests are answered and all events settled."""


class Forget(Action, frozen=True, kw_only=True):
    """Delete the record and everything that belongs to it."""


class ClearAttempts(Action, frozen=True, kw_only=True):
    """Delete the remains of the attempts; record and logs stay."""


def plan(facts: Facts, limits: Limits, now: datetime) -> list[Action]:
    """The next actions: at most one on each build's record, and any number of deliveries.

    The controller carries them out, and calls again meanwhile: `Facts.in_flight` lists the actions in progress.
    """
    snapshot = _Snapshot(facts, limits, now)
    actions: list[Action] = []
    waiting: list[Build] = []
    opening: dict[str, Report] = {}
    for build in facts.builds:
        if build.name in facts.in_flight:
            continue
        own = _next(build, snapshot)
        if isinstance(own, Report) and own.word is Word.QUEUED:
            after = opened(build, own.attempt, now)
            if _reason_to_cancel(after, snapshot) is None:
                opening[build.name], own = own, None
                waiting.append(after)
        elif own is None and build.status.state is State.QUEUED and build.live is None:
            waiting.append(build)
        if own is not None:
            actions.append(own)
            snapshot.quarantine_node(build, own)
        actions.extend(_deliveries(build, snapshot))
    return [*actions, *_starts(waiting, opening, snapshot)]


def opened(build: Build, attempt: int, at: datetime) -> Build:
    """The build in its next round, waiting for `attempt`. Only attempts, deliveries and answers are kept."""
    kept = build.status
    status = BuildStatus(
        round=kept.round + 1,
        attempt=attempt,
        round_began_with=attempt,
        queued_at=at if kept.round else build.created_at,
        trace=first_trace(build),
        attempts=kept.attempts,
        answered=kept.answered,
        outbox=kept.outbox,
        deliveries=kept.deliveries,
        resent=tuple(mark.key for mark in build.resends),  # the next terminal event goes to every sink
    )
    return msgspec.structs.replace(build, status=status)


def first_trace(build: Build) -> Trace | None:
    """The first trace among the waiting causes."""
    return next((cause.trace for cause in build.unanswered if cause.trace), None)


def expired(build: Build, limits: Limits, now: datetime) -> Action | None:
    """The deletion that is due for a settled build, if any."""
    if build.open or build.status.finished_at is None:
        return None
    age = now - build.status.finished_at
    if age >= limits.history and not (limits.ledger and build.status.image):
        return Forget(build=build.name)
    return ClearAttempts(build=build.name) if age >= limits.log_history else None


def done_and_told(build: Build) -> bool:
    """Whether no request and no event of a build is pending."""
    pending = build.live or build.unanswered or build.status.outbox or build.resending
    return build.status.state.ended and not pending


def deleted(build: Build) -> Report | None:
    """The announcement for an open build whose record was deleted: its end, unless it has been announced before."""
    return None if build.status.state.ended else _cancelled(build, build.status.attempt, Reason.DELETED)


class _Snapshot:
    """One observation of the world, with the queries that the rules need."""

    def __init__(self, facts: Facts, limits: Limits, now: datetime) -> None:
        self.facts = facts
        self.limits = limits
        self.now = now
        self.pushes = _pushes(facts.builds)
        self._sightings = {(sighting.build, sighting.attempt): sighting for sighting in facts.sightings}
        self.holders = _holders(self)
        self.quarantined = _quarantined(facts, now)
        self.locality = Locality(facts.successes)
        for build in facts.builds:
            self.quarantine_node(build, facts.in_flight.get(build.name))

    def sighting(self, build: Build, attempt: Attempt) -> Sighting | None:
        return self._sightings.get((build.name, attempt.number))

    def quarantine_node(self, build: Build, action: Action | None) -> None:
        """Stop placing builds on a node that this plan evicts an attempt from."""
        if isinstance(action, Stop) and action.quarantine and build.live and build.live.node:
            self.quarantined.setdefault(build.live.node, _quarantine_sentence(build.live.node, action.message))

    def watched(self, build: Build, attempt: Attempt) -> timedelta:
        """How long the attempt has been observed in its present phase."""
        return self.facts.watched.get((build.name, attempt.number), timedelta())


# ---- One build ----------------------------------------------------------------------------------------------------


def _next(build: Build, snapshot: _Snapshot) -> Action | None:
    """The change that the record needs, if any."""
    if build.status.round == 0 or build.reopened:
        return _queue(build)
    if build.live is not None:
        sighting = snapshot.sighting(build, build.live)
        return _under_way(build, build.live, sighting, snapshot) if sighting else None
    if build.status.state is State.QUEUED:
        reason = _reason_to_cancel(build, snapshot)
        return _cancelled(build, build.status.attempt, reason) if reason else None
    if build.unanswered:
        return _answer(build, snapshot.facts)
    if build.resending:
        return Repeat(build=build.name)
    return Settle(build=build.name) if done_and_told(build) else None


def _queue(build: Build) -> Report:
    """Opens a round. A number that an earlier round waited for is used up, even if that attempt never started."""
    number = build.status.attempt + 1 if build.status.round else build.status.attempt
    return Report(build=build.name, word=Word.QUEUED, attempt=number)


def _under_way(build: Build, live: Attempt, sighting: Sighting, snapshot: _Snapshot) -> Action | None:
    """The next step for a live attempt. Followers of the events see a start before each end, however short."""
    node = None if live.node else sighting.node
    if live.started_at is None and sighting.started_at is not None:
        return Report(build=build.name, word=Word.STARTED, attempt=live.number, at=sighting.started_at, node=node)
    if sighting.phase in (Phase.ENDED, Phase.LOST):
        end = _ended(build, live, sighting, snapshot)
        return msgspec.structs.replace(end, at=sighting.ended_at, node=node) if isinstance(end, Report) else end
    stop = _stop(build, live, sighting, snapshot)
    if sighting.phase is Phase.ABSENT:
        return _complete(build, live, stop, sighting, snapshot)
    if stop and (live.stopping is None or (build.name, live.number) not in snapshot.facts.stopped):
        return stop
    if sighting.trouble:
        return _explain(build, sighting.trouble.message)
    return _explain(build, sighting.waiting) if snapshot.watched(build, live) >= SETTLING else None


def _ended(build: Build, live: Attempt, sighting: Sighting, snapshot: _Snapshot) -> Action | None:
    """Reads an end from the result. If the result is lost, the registry is queried first, however long it takes."""
    attempt = (build.name, live.number)
    inspection = snapshot.facts.inspections.get(attempt)
    if sighting.phase is Phase.ENDED and sighting.result is None and sighting.result_lost and inspection is None:
        return None if attempt in snapshot.facts.inspecting else Inspect(build=build.name, attempt=live.number)
    outcome = _outcome(build, live, sighting, inspection)
    if sighting.overdue and outcome.reason is Reason.INFRASTRUCTURE and not (live.stopping or _withdrawn(build)):
        outcome = _stopped(build, outcome, Reason.TIMEOUT)
    return _end(build, live, outcome, snapshot)


def _stop(build: Build, live: Attempt, sighting: Sighting, snapshot: _Snapshot) -> Stop | None:
    """The stop that a live attempt needs, if any. A recorded reason stays."""
    if live.stopping:
        return Stop(
            build=build.name,
            attempt=live.number,
            reason=live.stopping,
            message=live.message,
            quarantine=live.quarantine,
        )
    reason = _reason_to_cancel(build, snapshot)
    if reason is None and sighting.phase is Phase.RUNNING:
        reason = _overdue(build, live, snapshot)
    if reason is None and sighting.phase is Phase.PENDING:
        return _evict(build, live, sighting, snapshot)
    return Stop(build=build.name, attempt=live.number, reason=reason) if reason else None


def _evict(build: Build, live: Attempt, sighting: Sighting, snapshot: _Snapshot) -> Stop | None:
    """Evicts an attempt that does not start, so that another can run elsewhere or later.

    An attempt without a node exists to wait for a node and its daemon, so trouble that other nodes lack is ignored.
    """
    trouble, waited = sighting.trouble, snapshot.watched(build, live)
    troubled = snapshot.facts.troubled.get((build.name, live.number), timedelta())
    judged = trouble is not None and not (live.node is None and trouble.elsewhere)
    given_up = Stop(build=build.name, attempt=live.number, reason=Reason.INFRASTRUCTURE)
    if trouble and judged and troubled > snapshot.limits.pending_grace:
        return msgspec.structs.replace(given_up, message=trouble.message, quarantine=trouble.elsewhere)
    if waited > (MAX_NODE_WAIT if live.node is None else snapshot.limits.build_timeout + BACKSTOP):
        why = trouble.message if trouble else sighting.waiting
        message = "No node became available." if live.node is None else "The attempt did not start."
        return msgspec.structs.replace(given_up, message=" ".join(filter(None, [message, why])))
    return None


def _complete(build: Build, live: Attempt, stop: Stop | None, sighting: Sighting, snapshot: _Snapshot) -> Action:
    """Completes a recorded start that was not carried out, perhaps because a controller crashed."""
    if stop and stop.reason is not Reason.INFRASTRUCTURE:
        return _cancelled(build, live.number, stop.reason)
    if stop:
        why = stop.message
    elif snapshot.watched(build, live) > snapshot.limits.pending_grace:
        why = sighting.waiting or "The attempt could not be started."
    elif _lost_its_slot(build, live, snapshot):
        why = "Another build took the slot meanwhile."
    else:
        explanation = _explain(build, sighting.waiting) if sighting.waiting else None
        return explanation or Start(build=build.name, attempt=live.number, node=live.node, alone=live.alone)
    return _end(build, live, _uncounted(why), snapshot)


def _infrastructure(message: str) -> AttemptOutcome:
    return AttemptOutcome(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message=message)


def _uncounted(message: str | None) -> AttemptOutcome:
    """A failure outside of the build's influence: the attempt was lost to a drain or to scheduling."""
    return AttemptOutcome(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message=message, counted=False)


def _outcome(build: Build, live: Attempt, sighting: Sighting, inspection: Inspection | None) -> AttemptOutcome:
    """Reads the end of an attempt. A success overrides a late stop, and so does a fault of the repository."""
    result = sighting.result
    if sighting.phase is Phase.LOST:
        outcome = _uncounted(sighting.waiting or "The attempt was removed before it ended.")
    elif result is None and inspection and inspection.image:
        outcome = AttemptOutcome(state=State.SUCCEEDED, image=inspection.image)
    elif result is None:
        outcome = _infrastructure(sighting.waiting or "The builder ended without a result.")
    elif result.state is State.CANCELLED:
        outcome = _uncounted("The attempt was terminated from outside.")
    else:
        outcome = AttemptOutcome(
            state=result.state,
            reason=result.reason,
            message=result.message,
            image=result.image,
            counted=result.counted,
            unserved=result.unserved,
        )
    if result is None:
        outcome = msgspec.structs.replace(outcome, log_tail=sighting.log_tail)
    else:
        outcome = msgspec.structs.replace(
            outcome, timings=result.timings, log_tail=result.log_tail, out_of_memory=result.out_of_memory
        )
    if live.stopping is Reason.INFRASTRUCTURE and outcome.reason is Reason.INFRASTRUCTURE:
        return msgspec.structs.replace(outcome, message=live.message, counted=False)
    if live.stopping and outcome.reason is Reason.INFRASTRUCTURE:
        return _stopped(build, outcome, live.stopping)
    return outcome


def _stopped(build: Build, outcome: AttemptOutcome, reason: Reason) -> AttemptOutcome:
    """Gives an end that Kiln caused the meaning of the stop's reason."""
    state = State.FAILED if reason is Reason.TIMEOUT else State.CANCELLED
    message = CLOSED if reason is Reason.REQUESTED and not _cancel_asked(build) else _WHY_STOPPED[reason]
    return msgspec.structs.replace(outcome, state=state, reason=reason, message=message)


def _end(build: Build, live: Attempt, outcome: AttemptOutcome, snapshot: _Snapshot) -> Report:
    """Decides after an attempt's end whether the build ends with it or another attempt follows."""
    if outcome.reason is Reason.INFRASTRUCTURE and _withdrawn(build):
        outcome = _stopped(build, outcome, Reason.REQUESTED)
    report = Report(build=build.name, word=Word(outcome.state), attempt=live.number, outcome=outcome)
    if outcome.reason is not Reason.INFRASTRUCTURE:
        return report
    tries = [*_of_round(build)[:-1], msgspec.structs.replace(live, counted=outcome.counted)]
    if sum(attempt.counted for attempt in tries) >= snapshot.limits.max_attempts or len(tries) >= MAX_UNCOUNTED:
        return report
    pause = min(BACKOFF * 2 ** (len(tries) - 1), MAX_BACKOFF)
    return msgspec.structs.replace(report, word=Word.RETRYING, retry_at=snapshot.now + pause)


def _of_round(build: Build) -> list[Attempt]:
    """The attempts of this round, oldest first."""
    return [attempt for attempt in build.status.attempts if attempt.number >= build.status.round_began_with]


def _answer(build: Build, facts: Facts) -> Action | None:
    """Answers requests for an existing image immediately, if the registry still has it.

    Each request gets an event in each format, so the free places in the outbox limit the number of answers at a time.
    """
    room = (MAX_OUTBOX - len(build.status.outbox)) // FORMATS
    if room <= 0:
        return None
    confirmation = facts.confirmations.get(build.name)
    answered = tuple(cause.key for cause in build.unanswered if confirmation and cause.key in confirmation.causes)
    if confirmation is None or not answered:
        return None if build.name in facts.confirming else Confirm(build=build.name)
    if confirmation.image is None:
        return _queue(build)
    return Report(
        build=build.name,
        word=Word.SUCCEEDED,
        attempt=build.status.attempt,
        outcome=AttemptOutcome(state=State.SUCCEEDED, image=confirmation.image),
        causes=answered[:room],
    )


def _cancel_asked(build: Build) -> bool:
    """Whether the build has a cancel mark for its present round."""
    return build.cancel is not None and build.cancel.round == build.status.round


def _withdrawn(build: Build) -> bool:
    """Whether a user has cancelled it, or all its waiting causes are closed pull requests."""
    waiting = build.unanswered
    return _cancel_asked(build) or (bool(waiting) and all(cause.withdrawn for cause in waiting))


def _reason_to_cancel(build: Build, snapshot: _Snapshot) -> Reason | None:
    """The reason to end a build that has no fault, if there is one."""
    if _withdrawn(build):
        return Reason.REQUESTED
    supersede = snapshot.limits.supersede
    allowed = supersede is Supersede.RUNNING or (supersede is Supersede.QUEUED and build.live is None)
    return Reason.SUPERSEDED if allowed and _superseded(build, snapshot.pushes) else None


def _overdue(build: Build, live: Attempt, snapshot: _Snapshot) -> Reason | None:
    """The backstop behind the builder's own time limit. It uses a monotonic clock, so a clock change ends no build."""
    return Reason.TIMEOUT if snapshot.watched(build, live) > snapshot.limits.build_timeout + BACKSTOP else None


CLOSED = "The pull request was closed."
_WHY_STOPPED = {
    Reason.REQUESTED: "Cancelled on request.",
    Reason.SUPERSEDED: "A newer push to the same ref superseded it.",
    Reason.TIMEOUT: "The build exceeded its time limit.",
    Reason.DELETED: "Its record was deleted.",
}


def _cancelled(build: Build, attempt: int, reason: Reason) -> Report:
    """Ends a build without a running attempt."""
    outcome = _stopped(build, AttemptOutcome(state=State.CANCELLED), reason)
    return Report(build=build.name, word=Word(outcome.state), attempt=attempt, outcome=outcome)


def _explain(build: Build, waiting: str | None) -> Explain | None:
    waiting = None if waiting is None else shortened(waiting)  # as the record has it
    return None if build.status.waiting == waiting else Explain(build=build.name, waiting=waiting)


# ---- Superseded ---------------------------------------------------------------------------------------------------


class _Pushed(msgspec.Struct, frozen=True, kw_only=True):
    before: str | None
    after: str
    at: datetime | None


_Pushes = Mapping[tuple[str, str], Sequence[_Pushed]]


def _pushes(builds: Iterable[Build]) -> _Pushes:
    """The known history of each ref, by (repository, ref)."""
    known: dict[tuple[str, str], list[_Pushed]] = defaultdict(list)
    for build in builds:
        for cause in build.causes:
            if cause.push and cause.ref:
                known[build.request.repository, cause.ref].append(_pushed(build, cause))
    return known


def _pushed(build: Build, cause: Cause) -> _Pushed:
    assert cause.push is not None  # noqa: S101  (both callers have checked)
    return _Pushed(before=cause.push.before, after=build.request.commit, at=cause.push.at)


def _superseded(build: Build, pushes: _Pushes) -> bool:
    """Whether every waiting cause is a push to a ref that has since moved on, according to its host.

    The order in which webhooks arrive does not count: hosts deliver late, twice and in any order.
    """
    causes = [cause for cause in build.unanswered if not cause.withdrawn]
    return bool(causes) and all(
        cause.push is not None
        and cause.ref is not None
        and _moved_on(_pushed(build, cause), pushes[build.request.repository, cause.ref])
        for cause in causes
    )


def _moved_on(push: _Pushed, others: Sequence[_Pushed]) -> bool:
    for other in others:
        if other.after == push.after:
            continue
        if push.at and other.at and push.at != other.at:
            if other.at > push.at:
                return True
        elif other.before == push.after and not _leads_to(other.after, push.after, others):
            return True
    return False


def _leads_to(start: str, goal: str, pushes: Sequence[_Pushed]) -> bool:
    """Whether the ref may have returned from one commit to another by a forced revert. Then the order is unknown."""
    seen, edge = {start}, [start]
    while edge:
        here = edge.pop()
        following = {push.after for push in pushes if push.before == here} - seen
        if goal in following:
            return True
        seen |= following
        edge.extend(following)
    return False


# ---- Deliveries ---------------------------------------------------------------------------------------------------


def _deliveries(build: Build, snapshot: _Snapshot) -> Iterator[Action]:
    """The deliveries that are due. Every one is tried at least once, however late.

    The first tries of a build's events follow one another, so a sink that answers receives the events in order. A
    failed delivery delays no later ones, except to a sink that is of use only in order.
    """
    waited_for: set[str] = set()
    for announcement in build.status.outbox:
        for delivery in announcement.deliveries:
            if delivery.state is not DeliveryState.PENDING or delivery.sink in waited_for:
                continue
            if not delivery.tries or keeps_order(delivery.sink):
                waited_for.add(delivery.sink)
            if (delivery.event, delivery.sink) in snapshot.facts.sending:
                continue
            if delivery.tries and snapshot.now - announcement.at >= snapshot.limits.delivery_period:
                yield DeadLetter(build=build.name, event=delivery.event, sink=delivery.sink)
            elif _due(delivery.due_at, snapshot.now, MAX_PAUSE):
                yield Deliver(build=build.name, event=delivery.event, sink=delivery.sink)


MAX_PAUSE = timedelta(hours=1)
"""Maximum pause between two tries of a delivery, regardless of the sink's `Retry-After`."""


def _due(at: datetime | None, now: datetime, longest: timedelta) -> bool:
    """Whether a time has come. A time beyond the longest pause means that the clock was set back, and is due, too."""
    return at is None or at <= now or at - now > longest


# ---- Starts -------------------------------------------------------------------------------------------------------


def _starts(waiting: Sequence[Build], opening: Mapping[str, Report], snapshot: _Snapshot) -> Iterator[Action]:
    """Fills the free slots in order, and explains to the remaining builds why they wait.

    `opening`: the reports that open the rounds of new builds. A build that starts immediately needs no such write.
    """
    slots = _Slots(snapshot)
    due = [build for build in waiting if _due(build.status.not_before, snapshot.now, MAX_BACKOFF)]
    starts = [*_placed(due, slots, snapshot)] or [*_unplaced(due, slots, snapshot)]
    for start in starts:
        yield msgspec.structs.replace(start, opens=start.build in opening)
    started = {start.build for start in starts}
    for build in waiting:
        if build.name in started:
            continue
        why = _why_waiting(build, snapshot)
        own = opening.get(build.name)
        action = _explain(build, why) if own is None else msgspec.structs.replace(own, waiting=why)
        if action:
            yield action


def _placed(due: Sequence[Build], slots: _Slots, snapshot: _Snapshot) -> Iterator[Start]:
    rotation = snapshot.facts.rotation
    left = {build.name: (build, _QueuePosition(build)) for build in due}
    while left and slots.left:
        build = _take_first(left, rotation)
        alone = _to_be_alone(build)
        node = slots.take(build, alone=alone)
        if node is not None:
            rotation = rotation.after(build)
            yield _started(build, node, snapshot, alone=alone)


def _take_first(left: dict[str, tuple[Build, _QueuePosition]], rotation: Rotation) -> Build:
    build, _ = min(left.values(), key=lambda one: one[1].rank(rotation))
    del left[build.name]
    return build


def queue(builds: Sequence[Build], now: datetime) -> Iterator[Build]:
    """Yield the queued builds in the order in which they will start, according to the records.

    Only the controller knows which requester was served last; the running builds are a substitute. Builds that wait for
    a retry come last.
    """
    live = [build for build in builds if build.live]
    rotation = Rotation()
    for build in sorted(live, key=lambda build: build.status.attempts[-1].written_at):
        rotation = rotation.after(build)
    waiting = [build for build in builds if build.state is State.QUEUED and not build.live]
    later = {build.name: build for build in waiting if not _due(_not_before(build), now, MAX_BACKOFF)}
    left = {
        build.name: (build, _QueuePosition(_in_its_round(build, now))) for build in waiting if build.name not in later
    }
    while left:
        build = _take_first(left, rotation)
        rotation = rotation.after(build)
        yield build
    yield from sorted(later.values(), key=lambda build: (_not_before(build) or now, build.name))


def _not_before(build: Build) -> datetime | None:
    """Return the end of the backoff. A new round does not inherit it from the previous one."""
    return None if build.reopened else build.status.not_before


def _in_its_round(build: Build, now: datetime) -> Build:
    """Return the build as the controller will see it, which may not have opened its round yet."""
    new = build.reopened or build.status.round == 0
    return opened(build, _queue(build).attempt, now) if new else build


def _unplaced(due: Sequence[Build], slots: _Slots, snapshot: _Snapshot) -> Iterator[Start]:
    """If no node is ready, starts one attempt without a node: an autoscaler sees it wait, and brings a node.

    It may be scheduled to any existing node, so it needs a slot on all of them.
    """
    after = snapshot.limits.scale_up_after
    if (
        not snapshot.facts.scalable
        or any(node.ready for node in snapshot.facts.nodes)
        or any(map(_has_no_node, snapshot.facts.builds))
        or any(isinstance(one, Start) and one.node is None for one in snapshot.facts.in_flight.values())
    ):
        return
    if any(_due(_waits_since(build) + after, snapshot.now, after) for build in due):
        build = min(due, key=lambda build: _QueuePosition(build).rank(snapshot.facts.rotation))
        alone = _to_be_alone(build)
        if slots.on_all(alone=alone):
            yield _started(build, None, snapshot, alone=alone)


def _started(build: Build, node: str | None, snapshot: _Snapshot, *, alone: bool) -> Start:
    """The build's next attempt. After a failed one it reuses no image, as the image may have caused the failure."""
    images = () if _of_round(build) else snapshot.locality.images(build, node, snapshot.now)
    return Start(build=build.name, attempt=build.status.attempt, node=node, alone=alone, cache_from=images)


def _has_no_node(build: Build) -> bool:
    return build.live is not None and build.live.node is None


def _waits_since(build: Build) -> datetime:
    status = build.status
    return max(filter(None, (status.queued_at or build.created_at, status.not_before)))


def _to_be_alone(build: Build) -> bool:
    """Whether the last conclusive attempt ran out of memory."""
    conclusive = [attempt for attempt in _of_round(build) if attempt.counted or attempt.out_of_memory]
    return any(attempt.out_of_memory for attempt in conclusive[-1:])


def asker(build: Build) -> str:
    """The requester of the build: the first among the most urgent waiting causes."""
    return next((str(cause.by) for cause in build.unanswered if cause.kind is build.kind), "")


_URGENCY = {kind: place for place, kind in enumerate(Kind)}


class _QueuePosition:
    """A build's rank in the queue. Values that do not depend on the rotation are computed once."""

    def __init__(self, build: Build) -> None:
        self._age = (build.status.queued_at or build.created_at, build.name)
        self._urgency = _URGENCY[build.kind]
        self._by, self._of = f"by {asker(build)}", f"of {build.request.repository}"

    def rank(self, rotation: Rotation) -> tuple[object, ...]:
        """Lower goes first: people, pushes, sync; then the requester served longest ago; then the oldest build."""
        if rotation.starts % OLDEST_EVERY == OLDEST_EVERY - 1:
            return self._age
        return (self._urgency, rotation.served.get(self._by, 0), rotation.served.get(self._of, 0), *self._age)


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that occupies slots: from the decision to start it until it is known to have ended."""

    node: str | None
    slots: int
    order: tuple[bool, datetime, str]
    """Precedence: existing attempts before those that are only recorded, then in the order of their records."""


def _holders(snapshot: _Snapshot) -> Sequence[_Holder]:
    live = [(build, build.live) for build in snapshot.facts.builds if build.live]
    known = {(build.name, attempt.number) for build, attempt in live}
    orphans = [
        _Holder(node=sighting.node, slots=1, order=(False, snapshot.now, sighting.build))
        for sighting in snapshot.facts.sightings
        if sighting.phase in (Phase.PENDING, Phase.RUNNING) and (sighting.build, sighting.attempt) not in known
    ]
    begun = [
        _Holder(node=start.node, slots=_slots_of(start.alone, snapshot), order=(False, snapshot.now, start.build))
        for start in snapshot.facts.in_flight.values()
        if isinstance(start, Start) and (start.build, start.attempt) not in known
    ]
    return [*(_holder(build, attempt, snapshot) for build, attempt in live), *orphans, *begun]


def _holder(build: Build, live: Attempt, snapshot: _Snapshot) -> _Holder:
    sighting = snapshot.sighting(build, live)
    return _Holder(
        node=live.node or (sighting.node if sighting else None),
        slots=_slots_of(live.alone, snapshot),
        order=(sighting is not None and sighting.phase is Phase.ABSENT, live.written_at, build.name),
    )


def _slots_of(alone: bool, snapshot: _Snapshot) -> int:
    return snapshot.limits.builds_per_node if alone else 1


def _lost_its_slot(build: Build, live: Attempt, snapshot: _Snapshot) -> bool:
    """Whether a recorded start has lost its slot. A paused controller may have written it long after the decision, when
    another controller had given the slot away."""
    own = _holder(build, live, snapshot)
    taken = _taken(holder for holder in snapshot.holders if holder.order < own.order)
    nodes = {own.node} if own.node else {None, *taken}
    return any(own.slots > snapshot.limits.builds_per_node - _on(node, taken) for node in nodes)


def _taken(holders: Iterable[_Holder]) -> Counter[str | None]:
    taken: Counter[str | None] = Counter()
    for holder in holders:
        taken[holder.node] += holder.slots
    return taken


def _on(node: str | None, taken: Counter[str | None]) -> int:
    """The occupied slots of a node. An attempt without a node may be scheduled to any, so it counts on each."""
    return taken[node] + (taken[None] if node else 0)


def _quarantine_sentence(node: str, message: str | None, until: datetime | None = None) -> str:
    time = f" until {until:%H:%M:%S} UTC" if until else ""
    return f"Node {node} is quarantined{time}: {message}"


def quarantined_until(attempt: Attempt, now: datetime) -> datetime | None:
    """The end of the quarantine of the attempt's node; `None` if this attempt causes none."""
    until = (attempt.finished_at or now) + QUARANTINE
    return until if attempt.quarantine and not _due(until, now, QUARANTINE) else None


def _quarantined(facts: Facts, now: datetime) -> dict[str, str]:
    """The quarantined nodes, each with an explanation."""
    quarantined: dict[str, tuple[datetime, str]] = {}
    for attempt in (*facts.quarantine, *(attempt for build in facts.builds for attempt in build.status.attempts)):
        node, until = attempt.node, quarantined_until(attempt, now)
        if node and until:
            said = (until, _quarantine_sentence(node, attempt.message, until if attempt.finished_at else None))
            quarantined[node] = max(said, quarantined.get(node, said))
    return {node: sentence for node, (_, sentence) in quarantined.items()}


class _Slots:
    """The free slots of each ready node. An attempt occupies its slot from the decision to start it."""

    def __init__(self, snapshot: _Snapshot) -> None:
        self._per_node = snapshot.limits.builds_per_node
        self._locality = snapshot.locality
        taken = _taken(snapshot.holders)
        nodes = {None, *taken, *(node.name for node in snapshot.facts.nodes)}
        self._least = min(self._per_node - _on(node, taken) for node in nodes)
        self._free = {
            node.name: max(0, self._per_node - _on(node.name, taken))
            for node in snapshot.facts.nodes
            if node.ready and node.name not in snapshot.quarantined
        }

    def on_all(self, *, alone: bool) -> bool:
        """Whether an attempt fits on every node."""
        return self._least >= (self._per_node if alone else 1)

    @property
    def left(self) -> bool:
        return any(self._free.values())

    def take(self, build: Build, *, alone: bool) -> str | None:
        """The node for the build's next attempt, or `None`; called only while a slot is free.

        A repository returns to the node that has its layers; if that node is full, it goes to the next in its own
        order without waiting. Nodes where this round has failed come last. An attempt that must be alone reserves its
        node until the node is empty; otherwise it would wait forever.
        """
        failed = {attempt.node for attempt in _of_round(build)}
        distance, key = self._locality.distance(build), build.request.repository
        ranked = sorted(self._free, key=lambda node: (node in failed, distance(node), rendezvous(key, node)))
        need = self._per_node if alone else 1
        for node in ranked:
            if self._free[node] >= need:
                self._free[node] -= need
                return node
        self._free[ranked[0]] = 0
        return None


def rendezvous(key: str, node: str) -> int:
    """Highest-random-weight hashing (Thaler and Ravishankar, 1998): each key has its own order of nodes."""
    return int.from_bytes(hashlib.blake2b(f"{key}\0{node}".encode(), digest_size=8).digest())


def _why_waiting(build: Build, snapshot: _Snapshot) -> str:
    """A sentence that is stable while nothing changes, so that it is not written again in each round."""
    not_before = build.status.not_before
    if not_before and not _due(not_before, snapshot.now, MAX_BACKOFF):
        last = next((a.message for a in reversed(build.status.attempts) if a.message), "The last attempt failed.")
        return f"Retrying after {not_before:%H:%M:%S} UTC: {last}"
    ready = [node.name for node in snapshot.facts.nodes if node.ready]
    if not ready:
        reasons = {node.why for node in snapshot.facts.nodes if node.why}
        return " ".join([f"No node has a ready {snapshot.limits.daemon}.", *sorted(reasons)])
    quarantined = [snapshot.quarantined[node] for node in sorted(ready) if node in snapshot.quarantined]
    return " ".join([*(["Waiting for a free build slot."] if len(quarantined) < len(ready) else []), *quarantined])

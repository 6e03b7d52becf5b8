"""All the policy of Kiln: what is, in; what to do about it, out.

`plan` is a pure function. It sees the records of the open builds, what the engine sees of their attempts, and the
nodes, and answers with actions; the controller carries them out and looks again. So every rule about order, fairness,
retries, cancelling and ends can be read here without knowing any cluster, and be tried by the thousand without one.

Nothing here is remembered between two calls: what must survive a restart is in the records. The few facts that are the
controller's own (what it is just sending, whose turn it was) come in with `Facts`, and a controller that starts anew
starts with none of them: it may repeat itself then, never contradict itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from builds.build import (
    Attempt,
    Build,
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
)

MAX_UNCOUNTED = 10
"""Attempts in one round, counted or not: a node that keeps dying must not build for ever."""
BACKOFF = timedelta(seconds=10)
MAX_BACKOFF = timedelta(minutes=5)
BACKSTOP = timedelta(seconds=120)
"""After the builder's own time limit, before it is stopped from outside."""
OLDEST_EVERY = 4
"""Every fourth start goes to the build that has waited longest, whoever asked, so that nobody starves."""


class Supersede(StrEnum):
    """`KILN_SUPERSEDE`: which builds of a commit end when its ref has moved on."""

    OFF = "off"
    QUEUED = "queued"
    RUNNING = "running"  # these, and the queued ones


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator has set; docs/settings.md says what each is for."""

    builds_per_node: int = 2
    max_attempts: int = 3
    build_timeout: timedelta = timedelta(hours=1)
    supersede: Supersede = Supersede.QUEUED
    pending_grace: timedelta = timedelta(seconds=60)
    delivery_period: timedelta = timedelta(hours=24)
    log_history: timedelta = timedelta(hours=24)
    history: timedelta = timedelta(days=7)


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry says of a build's image: `image`, or `None` where it has gone.

    `causes`: keys of those for whom it was asked, and whose tags are set. Who joins meanwhile needs another answer.
    """

    image: Image | None
    causes: tuple[str, ...]


class Turns(msgspec.Struct, frozen=True, kw_only=True):
    """Whose turn it was: how many starts there were, and at which of them each asker and repository was served."""

    starts: int = 0
    served: Mapping[str, int] = {}

    def after(self, build: Build) -> Turns:
        """With one more start, this build's."""
        served = {
            **self.served,
            f"by {asker(build)}": self.starts + 1,
            f"of {build.request.repository}": self.starts + 1,
        }
        recent = sorted(served.items(), key=lambda entry: -entry[1])[:1000]
        return Turns(starts=self.starts + 1, served=dict(recent))


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is, at one moment. `sightings` holds at most one for each build: that of its live attempt."""

    builds: Sequence[Build] = ()
    sightings: Sequence[Sighting] = ()
    nodes: Sequence[Node] = ()
    confirmations: Mapping[str, Confirmation] = {}
    """Answers of the registry, by build."""
    confirming: frozenset[str] = frozenset()
    """Builds about which the registry is just being asked."""
    sending: frozenset[tuple[str, str]] = frozenset()
    """(event id, sink) that are under way."""
    stopped: frozenset[tuple[str, int]] = frozenset()
    """(build, attempt) that this controller has told to stop."""
    watched: Mapping[tuple[str, int], timedelta] = {}
    """For how long this controller has seen (build, attempt) under way, by a clock that nobody sets."""
    turns: Turns = Turns()


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


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt, or a build without one, ended."""

    state: State
    reason: Reason | None = None
    message: str | None = None
    image: Image | None = None
    timings: Timings = Timings()
    log_tail: str = ""
    counted: bool = True
    out_of_memory: bool = False


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Root of the actions. Each can be carried out twice without harm."""

    build: str


class Start(Action, frozen=True, kw_only=True):
    """Write the attempt into the record if it is not there yet, then run it."""

    attempt: int
    node: str | None
    alone: bool = False


class Stop(Action, frozen=True, kw_only=True):
    """Write down why, then tell the attempt to end."""

    attempt: int
    reason: Reason


class Report(Action, frozen=True, kw_only=True):
    """Change the record, and announce that to every sink that wants to know.

    `outcome` is there for `retrying` and the terminal words. `causes`: keys of those who joined after the end and are
    answered now; empty where the word is the build's own. `retry_at` goes with `retrying`.
    """

    word: Word
    attempt: int
    outcome: Outcome | None = None
    causes: tuple[str, ...] = ()
    retry_at: datetime | None = None
    at: datetime | None = None
    """When it happened, where that is known better than by the moment of writing."""


class Explain(Action, frozen=True, kw_only=True):
    """Write down why the build waits."""

    waiting: str | None


class Confirm(Action, frozen=True, kw_only=True):
    """Ask the registry whether the image is still there, and set the tags that later causes want."""


class Deliver(Action, frozen=True, kw_only=True):
    """Send one event to one sink."""

    event: str
    sink: str


class Bury(Action, frozen=True, kw_only=True):
    """Give up a delivery: it is a dead letter."""

    event: str
    sink: str


class Settle(Action, frozen=True, kw_only=True):
    """Everything is done and told: the build leaves the watch."""


class Forget(Action, frozen=True, kw_only=True):
    """Delete the record and all that belongs to it."""


class ForgetLogs(Action, frozen=True, kw_only=True):
    """Delete the logs; the record keeps their tail."""


def plan(facts: Facts, limits: Limits, now: datetime) -> list[Action]:
    """What to do now: at most one action on each build's record, and any number of deliveries.

    The controller carries out the answer and calls again until there is nothing left to do.
    """
    look = _Look(facts, limits, now)
    actions: list[Action] = []
    waiting: list[Build] = []
    for build in facts.builds:
        own = _next(build, look)
        if own is not None:
            actions.append(own)
        elif build.status.state is State.QUEUED and build.live is None:
            waiting.append(build)
        actions.extend(_deliveries(build, look))
    return [*actions, *_starts(waiting, look)]


def expired(build: Build, limits: Limits, now: datetime) -> Action | None:
    """What is due to be deleted of a settled build."""
    if build.open or build.status.finished_at is None:
        return None
    age = now - build.status.finished_at
    if age >= limits.history:
        return Forget(build=build.name)
    return ForgetLogs(build=build.name) if age >= limits.log_history else None


class _Look:
    """One look at the world: what every rule may ask."""

    def __init__(self, facts: Facts, limits: Limits, now: datetime) -> None:
        self.facts = facts
        self.limits = limits
        self.now = now
        self.pushes = _pushes(facts.builds)
        self._sightings = {(sighting.build, sighting.attempt): sighting for sighting in facts.sightings}

    def sighting(self, build: Build, attempt: Attempt) -> Sighting | None:
        return self._sightings.get((build.name, attempt.number))


# ---- One build ----------------------------------------------------------------------------------------------------


def _next(build: Build, look: _Look) -> Action | None:
    """The one change that the record needs, if any."""
    if build.status.round == 0 or build.reopened:
        return _queue(build)
    if build.live is not None:
        sighting = look.sighting(build, build.live)
        return _under_way(build, build.live, sighting, look) if sighting else None
    if build.status.state is State.QUEUED:
        reason = _unwanted(build, look)
        return _cancelled(build, build.status.attempt, reason) if reason else None
    if build.unanswered:
        return _answer(build, look.facts)
    return None if build.status.outbox else Settle(build=build.name)


def _queue(build: Build) -> Report:
    """Opens a round. A number that an earlier round waited for is used up, even if nothing came of it."""
    number = build.status.attempt + 1 if build.status.round else build.status.attempt
    return Report(build=build.name, word=Word.QUEUED, attempt=number)


def _under_way(build: Build, live: Attempt, sighting: Sighting, look: _Look) -> Action | None:
    """What a live attempt needs. Whoever follows the events sees a start before each end, however short it was."""
    if live.started_at is None and sighting.started_at is not None:
        return Report(build=build.name, word=Word.STARTED, attempt=live.number, at=sighting.started_at)
    if sighting.phase in (Phase.ENDED, Phase.LOST):
        report = _end(build, live, _outcome(live, sighting), look)
        return msgspec.structs.replace(report, at=sighting.ended_at)
    reason = live.stopping or _unwanted(build, look) or _overdue(build, live, look)
    if sighting.phase is Phase.ABSENT:
        return _complete(build, live, reason, sighting, look)
    if reason and (live.stopping is None or (build.name, live.number) not in look.facts.stopped):
        return Stop(build=build.name, attempt=live.number, reason=reason)
    return _explain(build, sighting.waiting)


def _complete(build: Build, live: Attempt, reason: Reason | None, sighting: Sighting, look: _Look) -> Action:
    """A start that was written and not carried out, perhaps by a controller that died in between."""
    if reason:
        return _cancelled(build, live.number, reason)
    if look.now - live.written_at > look.limits.pending_grace:
        return _end(build, live, _infrastructure(sighting.waiting or "The attempt could not be started."), look)
    return Start(build=build.name, attempt=live.number, node=live.node, alone=live.alone)


def _infrastructure(message: str, *, counted: bool = True) -> Outcome:
    return Outcome(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message=message, counted=counted)


def _outcome(live: Attempt, sighting: Sighting) -> Outcome:
    """Reads an attempt's end. Success beats a stop that came late, and so does a fault of the repository."""
    result = sighting.result
    if sighting.phase is Phase.LOST:
        outcome = _infrastructure(sighting.waiting or "The attempt was taken away before it ended.", counted=False)
    elif result is None:
        outcome = _infrastructure("The builder ended without saying how.")
    elif result.state is State.CANCELLED:
        outcome = _infrastructure("The attempt was terminated from outside.", counted=False)
    else:
        outcome = Outcome(state=result.state, reason=result.reason, message=result.message, image=result.image)
    if result is not None:
        outcome = msgspec.structs.replace(
            outcome, timings=result.timings, log_tail=result.log_tail, out_of_memory=result.out_of_memory
        )
    if live.stopping and outcome.reason is Reason.INFRASTRUCTURE:
        return _stopped(outcome, live.stopping)
    return outcome


def _stopped(outcome: Outcome, reason: Reason) -> Outcome:
    """An end that we asked for means what we meant by it."""
    state = State.FAILED if reason is Reason.TIMEOUT else State.CANCELLED
    return msgspec.structs.replace(outcome, state=state, reason=reason, message=_WHY_STOPPED[reason])


def _end(build: Build, live: Attempt, outcome: Outcome, look: _Look) -> Report:
    """An attempt has ended: does the build end with it, or does another follow?"""
    if outcome.reason is Reason.INFRASTRUCTURE and _cancel_asked(build):
        outcome = _stopped(outcome, Reason.REQUESTED)
    report = Report(build=build.name, word=Word(outcome.state), attempt=live.number, outcome=outcome)
    if outcome.reason is not Reason.INFRASTRUCTURE:
        return report
    tries = [*_of_round(build)[:-1], msgspec.structs.replace(live, counted=outcome.counted)]
    if sum(attempt.counted for attempt in tries) >= look.limits.max_attempts or len(tries) >= MAX_UNCOUNTED:
        return report
    pause = min(BACKOFF * 2 ** (len(tries) - 1), MAX_BACKOFF)
    return msgspec.structs.replace(report, word=Word.RETRYING, retry_at=look.now + pause)


def _of_round(build: Build) -> list[Attempt]:
    """The attempts of this round, oldest first."""
    return [attempt for attempt in build.status.attempts if attempt.number >= build.status.round_began_with]


def _answer(build: Build, facts: Facts) -> Action | None:
    """Somebody asked for an image that is there already: they get it at once, if the registry still has it."""
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
        outcome=Outcome(state=State.SUCCEEDED, image=confirmation.image),
        causes=answered,
    )


def _cancel_asked(build: Build) -> bool:
    """Whether the mark is there, and meant for this round."""
    return build.cancel is not None and build.cancel.round == build.status.round


def _unwanted(build: Build, look: _Look) -> Reason | None:
    """Whether the build should end although nothing is wrong with it."""
    if _cancel_asked(build):
        return Reason.REQUESTED
    supersede = look.limits.supersede
    allowed = supersede is Supersede.RUNNING or (supersede is Supersede.QUEUED and build.live is None)
    return Reason.SUPERSEDED if allowed and _superseded(build, look.pushes) else None


def _overdue(build: Build, live: Attempt, look: _Look) -> Reason | None:
    """The backstop behind the builder's own time limit. Not by the time of day: a clock that is set ends no build."""
    watched = look.facts.watched.get((build.name, live.number), timedelta())
    return Reason.TIMEOUT if watched > look.limits.build_timeout + BACKSTOP else None


_WHY_STOPPED = {
    Reason.REQUESTED: "Cancelled on request.",
    Reason.SUPERSEDED: "A newer push to the same ref took its place.",
    Reason.TIMEOUT: "The build took longer than it may.",
}


def _cancelled(build: Build, attempt: int, reason: Reason) -> Report:
    """Ends a build that has nothing running."""
    outcome = _stopped(Outcome(state=State.CANCELLED), reason)
    return Report(build=build.name, word=Word(outcome.state), attempt=attempt, outcome=outcome)


def _explain(build: Build, waiting: str | None) -> Explain | None:
    return None if build.status.waiting == waiting else Explain(build=build.name, waiting=waiting)


# ---- Superseded ---------------------------------------------------------------------------------------------------


class _Pushed(msgspec.Struct, frozen=True, kw_only=True):
    before: str | None
    after: str
    at: datetime | None


_Pushes = Mapping[tuple[str, str], Sequence[_Pushed]]


def _pushes(builds: Iterable[Build]) -> _Pushes:
    """What is known of each ref's way, by (repository, ref)."""
    known: dict[tuple[str, str], list[_Pushed]] = defaultdict(list)
    for build in builds:
        for cause in build.causes:
            if cause.push and cause.ref:
                known[build.request.repository, cause.ref].append(_pushed(build, cause))
    return known


def _pushed(build: Build, cause: Cause) -> _Pushed:
    assert cause.push is not None  # noqa: S101  (both callers have looked)
    return _Pushed(before=cause.push.before, after=build.request.commit, at=cause.push.at)


def _superseded(build: Build, pushes: _Pushes) -> bool:
    """Whether every cause that waits is a push of a ref that has since moved on, as its host tells it.

    Never by the order in which the webhooks came: hosts deliver late, twice and in any order.
    """
    causes = build.unanswered
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
    """Whether the ref may have come back from one commit to another (a revert by force): then nobody can tell."""
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


def _deliveries(build: Build, look: _Look) -> Iterator[Action]:
    """Events that are due at a sink. Every one is tried at least once, however late we are.

    The first tries of a build's events are made one after the other, so that a sink that answers hears of them in
    their order; one that fails holds none of the later ones up.
    """
    untried: set[str] = set()
    for announcement in build.status.outbox:
        for delivery in announcement.deliveries:
            if delivery.state is not DeliveryState.PENDING or delivery.sink in untried:
                continue
            if not delivery.tries:
                untried.add(delivery.sink)
            if (delivery.event, delivery.sink) in look.facts.sending:
                continue
            if delivery.tries and look.now - announcement.at >= look.limits.delivery_period:
                yield Bury(build=build.name, event=delivery.event, sink=delivery.sink)
            elif _due(delivery.due_at, look.now, MAX_PAUSE):
                yield Deliver(build=build.name, event=delivery.event, sink=delivery.sink)


MAX_PAUSE = timedelta(hours=1)
"""Between two tries of a delivery, whatever the sink's `Retry-After` says."""


def _due(at: datetime | None, now: datetime, longest: timedelta) -> bool:
    """Whether a moment has come. One further off than any pause we make is a clock that was set back: due as well."""
    return at is None or at <= now or at - now > longest


# ---- Starts -------------------------------------------------------------------------------------------------------


def _starts(waiting: Sequence[Build], look: _Look) -> Iterator[Action]:
    """Fills the free slots, in order; tells those who are left why they wait."""
    slots = _Slots(look)
    turns = look.facts.turns
    due = [build for build in waiting if _due(build.status.not_before, look.now, MAX_BACKOFF)]
    started = set()
    while due and slots.left:
        build = min(due, key=lambda build: _rank(build, turns))
        due.remove(build)
        alone = any(attempt.out_of_memory for attempt in _of_round(build)[-1:])
        node = slots.take(build, alone=alone)
        if node is not None:
            turns = turns.after(build)
            started.add(build.name)
            yield Start(build=build.name, attempt=build.status.attempt, node=node, alone=alone)
    for build in waiting:
        explain = None if build.name in started else _explain(build, _why_waiting(build, look))
        if explain:
            yield explain


def asker(build: Build) -> str:
    """The one for whom the build is done: the first of the most urgent who wait."""
    return next((str(cause.by) for cause in build.unanswered if cause.kind is build.kind), "")


_URGENCY = {kind: place for place, kind in enumerate(Kind)}


def _rank(build: Build, turns: Turns) -> tuple[object, ...]:
    """Lower goes first: people, pushes, sync; then who was served longest ago; then the oldest."""
    age = (build.status.queued_at or build.created_at, build.name)
    if turns.starts % OLDEST_EVERY == OLDEST_EVERY - 1:
        return age
    by, of = turns.served.get(f"by {asker(build)}", 0), turns.served.get(f"of {build.request.repository}", 0)
    return (_URGENCY[build.kind], by, of, *age)


class _Slots:
    """The free slots of each ready node. An attempt has its slot from the moment that it is in the record."""

    def __init__(self, look: _Look) -> None:
        self._per_node = look.limits.builds_per_node
        taken: Counter[str | None] = Counter()
        for build in look.facts.builds:
            if live := build.live:
                sighting = look.sighting(build, live)
                taken[live.node or (sighting.node if sighting else None)] += self._per_node if live.alone else 1
        # One that no node has yet may come to any of them, so it counts on each.
        self._free = {
            node.name: max(0, self._per_node - taken[node.name] - taken[None])
            for node in look.facts.nodes
            if node.ready
        }

    @property
    def left(self) -> bool:
        return any(self._free.values())

    def take(self, build: Build, *, alone: bool) -> str | None:
        """The node for the build's next attempt, or `None`; asked only while a slot is left.

        The same repository comes back to the node that has its layers, and goes to the next in its own order when that
        one is full; away from nodes where this round has failed, as long as there are others. One that must be alone
        keeps its node free of newcomers until it is empty, or it would wait for ever.
        """
        failed = {attempt.node for attempt in _of_round(build)}
        ranked = sorted(self._free, key=lambda node: (node in failed, rendezvous(build.request.repository, node)))
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


def _why_waiting(build: Build, look: _Look) -> str:
    """A sentence that stays the same while nothing changes, so that it is not written anew at every look."""
    not_before = build.status.not_before
    if not_before and not _due(not_before, look.now, MAX_BACKOFF):
        last = next((a.message for a in reversed(build.status.attempts) if a.message), "The last attempt failed.")
        return f"Tried again after {not_before:%H:%M:%S} UTC: {last}"
    nodes = look.facts.nodes
    if not any(node.ready for node in nodes):
        return " ".join(["No node has a ready Docker daemon.", *sorted({node.why for node in nodes if node.why})])
    return "Waiting for a free build slot."

"""The plan in a hostile world: thousands of steps with crashes, lost and repeated messages, clock jumps.

The world is a small model: records with compare-and-swap, attempts that exist or do not, sinks that answer or do not.
It replaces no engine under test, because the tests are of `plan` and `advance`, which are pure. Each step checks the
safety properties. The end checks the liveness properties, once all faults are repaired.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from builds.build import (
    Build,
    Cancel,
    Cause,
    DeliveryState,
    Image,
    Kind,
    Node,
    Phase,
    Push,
    Reason,
    Request,
    Result,
    Sighting,
    State,
    Trouble,
)
from builds.engines.marks import withdrawn
from builds.plan import (
    MAX_NODE_WAIT,
    MAX_UNCOUNTED,
    QUARANTINE,
    Action,
    Confirm,
    Confirmation,
    DeadLetter,
    Deliver,
    Explain,
    Facts,
    Inspect,
    Inspection,
    Limits,
    Report,
    Rotation,
    Settle,
    Start,
    Stop,
    Supersede,
    Word,
    deleted,
    opened,
    plan,
)
from builds.transitions import advance, delivered, undelivered
from eventing.event import Event

TROUBLES = (None, Trouble(message="no room", elsewhere=True), Trouble(message="no secret", elsewhere=False))
START = datetime(2026, 1, 1, tzinfo=UTC)
SINKS = ("hub", "broker")
COMMITS = tuple(f"{n}" * 40 for n in range(1, 5))
REPOSITORIES = ("https://github.com/a/b", "https://github.com/c/d")
REF = "refs/heads/main"


class Crashed(Exception):
    pass


@dataclass
class Real:
    """The real state of an attempt. `build` is the uid of its record, which may be deleted."""

    build: str
    number: int
    node: str | None
    alone: bool
    created: timedelta
    phase: Phase = Phase.PENDING
    started_at: datetime | None = None
    ended_at: datetime | None = None
    result: Result | None = None
    result_lost: bool = False
    pushed: bool = False
    trouble: Trouble | None = None
    told_to_stop: bool = False

    @property
    def exists(self) -> bool:
        return self.phase in (Phase.PENDING, Phase.RUNNING)


@dataclass
class Story:
    """The events of one build, in the order of the record's writes."""

    words: list[tuple[Word, int]] = field(default_factory=list)
    ids: dict[str, tuple[str, int]] = field(default_factory=dict)


def result(state: State, reason: Reason | None = None, *, oom: bool = False) -> Result:
    image = Image(repository="r/x", tag="t", digest="sha256:" + "0" * 64) if state is State.SUCCEEDED else None
    return Result(state=state, reason=reason, message=f"{state} {reason}", image=image, out_of_memory=oom)


ENDS = [
    result(State.SUCCEEDED),
    result(State.FAILED, Reason.REPOSITORY),
    result(State.FAILED, Reason.TIMEOUT),
    result(State.FAILED, Reason.INFRASTRUCTURE),
    result(State.FAILED, Reason.INFRASTRUCTURE, oom=True),
    None,
]


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.elapsed = timedelta()
        self.records: dict[str, Build] = {}
        self.attempts: dict[tuple[str, int], Real] = {}
        self.deleted: list[Build] = []
        self.stories: dict[str, Story] = defaultdict(Story)
        self.nodes = {"n1": True, "n2": True}
        self.images: set[str] = set()
        self.sinks_up = dict.fromkeys(SINKS, True)
        self.received: dict[str, dict[str, str]] = {sink: {} for sink in SINKS}
        self.announced: dict[str, tuple[str, datetime]] = {}
        self.counter = 0
        self.restart()

    @initialize(
        per_node=st.integers(1, 3),
        attempts=st.integers(1, 3),
        supersede=st.sampled_from(list(Supersede)),
        scalable=st.booleans(),
    )
    def set_up(self, per_node: int, attempts: int, supersede: Supersede, scalable: bool) -> None:
        self.scalable = scalable
        self.limits = Limits(
            builds_per_node=per_node,
            max_attempts=attempts,
            supersede=supersede,
            build_timeout=timedelta(minutes=30),
            delivery_period=timedelta(hours=2),
        )

    def restart(self) -> None:
        """Replace the controller; the new one knows only the records."""
        self.rotation = Rotation()
        self.first_seen: dict[tuple[str, int, Phase], timedelta] = {}
        self.first_troubled: dict[tuple[str, int, bool], timedelta] = {}
        self.stopped: set[tuple[str, int]] = set()
        self.sending: set[tuple[str, str]] = set()
        self.confirming: set[str] = set()
        self.asked: dict[str, tuple[str, ...]] = {}
        self.confirmations: dict[str, Confirmation] = {}
        self.inspecting: set[tuple[str, int]] = set()
        self.inspections: dict[tuple[str, int], Inspection] = {}
        self.in_flight: dict[str, tuple[Build, Action]] = {}
        self.deleted.clear()

    # ---- Users and hosts ------------------------------------------------------------------------------------------

    @rule(
        repository=st.sampled_from(REPOSITORIES),
        commit=st.sampled_from(COMMITS),
        kind=st.sampled_from(list(Kind)),
        before=st.none() | st.sampled_from(COMMITS),
        pushed=st.none() | st.integers(0, 100),
        force=st.booleans(),
        by=st.sampled_from(["user:a", "user:b", "webhook:github.com"]),
    )
    def ask(
        self,
        repository: str,
        commit: str,
        kind: Kind,
        before: str | None,
        pushed: int | None,
        force: bool,
        by: str,
    ) -> None:
        self.counter += 1
        push = None
        if kind is Kind.PUSH:
            at = None if pushed is None else START + timedelta(seconds=pushed)
            push = Push(before=before, at=at)
        cause = Cause(
            source=repository,
            id=str(self.counter),
            type="com.github.push",
            by=by,
            at=self.now,
            kind=kind,
            ref=REF,
            push=push,
            force=force and kind is Kind.PERSON,
        )
        name = f"build-{repository[-1]}-{commit[0]}"
        known = self.records.get(name)
        if known is None:
            request = Request(repository=repository, clone_url=repository, commit=commit, image="r/x")
            known = Build(name=name, uid=f"{name}#{self.counter}", request=request, causes=(), created_at=self.now)
        self.put(msgspec.structs.replace(known, causes=(*known.causes, cause), open=True))

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        build = data.draw(st.sampled_from(sorted(self.records.values(), key=lambda build: build.name)))
        if build.open and not build.state.ended and (build.cancel is None or build.cancel.round != build.status.round):
            mark = Cancel(round=max(1, build.status.round), by=None, at=self.now)
            self.put(msgspec.structs.replace(build, cancel=mark))

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def pull_request_is_closed(self, data: st.DataObject) -> None:
        """Withdraw the causes of `REF`, the only ref here, as if it were a pull request's."""
        self.put(
            withdrawn(data.draw(st.sampled_from(sorted(self.records.values(), key=lambda build: build.name))), REF)
        )

    @precondition(lambda self: any(build.open for build in self.records.values()))
    @rule(data=st.data())
    def record_is_deleted(self, data: st.DataObject) -> None:
        """Delete a record by hand. Its attempt runs until the engine stops it; the controller keeps nothing of it."""
        name = data.draw(st.sampled_from(sorted(name for name, build in self.records.items() if build.open)))
        build = self.records.pop(name)
        self.deleted.append(build)
        for real in self.existing():
            if real.build == build.uid:
                real.told_to_stop, real.alone = True, False
        self.sending = {(event, sink) for event, sink in self.sending if self.announced[event][0] != build.uid}
        self.stopped = {key for key in self.stopped if key[0] != name}
        self.inspecting = {key for key in self.inspecting if key[0] != name}
        self.inspections = {key: said for key, said in self.inspections.items() if key[0] != name}
        self.confirming.discard(name)
        self.confirmations.pop(name, None)
        self.images.discard(name)

    # ---- Attempts, nodes and sinks --------------------------------------------------------------------------------

    def existing(self) -> list[Real]:
        return [real for real in self.attempts.values() if real.exists]

    @precondition(lambda self: self.existing())
    @rule(data=st.data(), end=st.sampled_from(ENDS), lost=st.booleans())
    def attempt_ends(self, data: st.DataObject, end: Result | None, lost: bool) -> None:
        real = data.draw(st.sampled_from(self.existing()))
        self.place(real, data.draw(st.sampled_from(sorted(self.nodes))))
        self.end(real, end, lost=lost)

    def place(self, real: Real, node: str) -> None:
        real.node = real.node or node

    @precondition(lambda self: any(real.node is None for real in self.existing()))
    @rule(data=st.data())
    def attempt_comes_to_a_node(self, data: st.DataObject) -> None:
        """Any node will do: an attempt without a node holds a slot on each."""
        real = data.draw(st.sampled_from([real for real in self.existing() if real.node is None]))
        self.place(real, data.draw(st.sampled_from(sorted(self.nodes))))

    @precondition(lambda self: self.existing())
    @rule(data=st.data(), trouble=st.sampled_from(TROUBLES))
    def attempt_has_trouble(self, data: st.DataObject, trouble: Trouble | None) -> None:
        data.draw(st.sampled_from(self.existing())).trouble = trouble

    @precondition(lambda self: any(real.phase is Phase.PENDING for real in self.existing()))
    @rule(data=st.data(), trouble=st.sampled_from(TROUBLES), seconds=st.sampled_from([61, 590, 700]))
    def attempt_is_stuck(self, data: st.DataObject, trouble: Trouble | None, seconds: int) -> None:
        """Leave an attempt pending for so long that the plan probably gives it up."""
        stuck = [real for real in self.existing() if real.phase is Phase.PENDING]
        data.draw(st.sampled_from(stuck)).trouble = trouble
        self.look()
        self.time_passes(seconds)
        self.look()
        for real in stuck:
            if real.told_to_stop:
                real.phase = data.draw(st.sampled_from([Phase.LOST, Phase.ABSENT]))

    @precondition(lambda self: self.existing())
    @rule(data=st.data())
    def attempt_runs(self, data: st.DataObject) -> None:
        real = data.draw(st.sampled_from(self.existing()))
        if real.phase is Phase.PENDING:
            self.place(real, data.draw(st.sampled_from(sorted(self.nodes))))
            real.phase, real.started_at = Phase.RUNNING, self.now

    @precondition(lambda self: self.existing())
    @rule(data=st.data(), how=st.sampled_from(["lost", "sigterm"]))
    def attempt_is_taken_away(self, data: st.DataObject, how: str) -> None:
        real = data.draw(st.sampled_from(self.existing()))
        if how == "lost":
            real.phase = Phase.LOST
        else:
            self.end(real, result(State.CANCELLED))

    def end(self, real: Real, end: Result | None, *, lost: bool = False) -> None:
        real.started_at = real.started_at or self.now
        real.phase, real.ended_at = Phase.ENDED, self.now
        real.result, real.result_lost = (None if lost else end), lost
        if end is not None and end.state is State.SUCCEEDED:
            real.pushed = True
            self.images.add(real.build.partition("#")[0])

    @precondition(lambda self: any(real.told_to_stop for real in self.existing()))
    @rule(data=st.data())
    def stop_takes_effect(self, data: st.DataObject) -> None:
        """A pending attempt is deleted, and then appears as lost or not at all."""
        real = data.draw(st.sampled_from([real for real in self.existing() if real.told_to_stop]))
        if real.phase is Phase.PENDING:
            real.phase = data.draw(st.sampled_from([Phase.LOST, Phase.ABSENT]))
        else:
            self.end(real, result(State.CANCELLED))

    @rule(name=st.sampled_from(["n1", "n2"]))
    def node_changes(self, name: str) -> None:
        self.nodes[name] = not self.nodes[name]

    @rule()
    def no_node_is_ready(self) -> None:
        self.nodes = dict.fromkeys(self.nodes, False)

    @rule(name=st.sampled_from(SINKS))
    def sink_changes(self, name: str) -> None:
        self.sinks_up[name] = not self.sinks_up[name]

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def image_is_deleted(self, data: st.DataObject) -> None:
        self.images.discard(data.draw(st.sampled_from(sorted(self.images))))

    @rule(seconds=st.sampled_from([1, 15, 90, 400, 3000, 9000]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.elapsed += timedelta(seconds=seconds)

    @rule(hours=st.sampled_from([-48, -1, 1, 48]))
    def clock_jumps(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    # ---- The controller -------------------------------------------------------------------------------------------

    @rule(looks=st.integers(1, 6), blind=st.booleans(), slow=st.sets(st.sampled_from([one[0] for one in COMMITS])))
    def controller_works(self, looks: int, blind: bool, slow: set[str]) -> None:
        """The writes of records with a last digit in `slow` stay in flight; the controller goes on with the others."""
        for _ in range(looks):
            if not self.look(blind=blind, slow=slow):
                break

    @rule()
    def writes_land(self) -> None:
        """Carry out the actions in flight, except those whose record has changed since."""
        for name, (decided_on, action) in self.in_flight.items():
            if self.records.get(name) is decided_on:
                self.carry_out(decided_on, action)
        self.in_flight.clear()

    @rule(after=st.integers(0, 3), before_effect=st.booleans())
    def controller_crashes(self, after: int, before_effect: bool) -> None:
        """Crash after `after` actions, before or after the effect of the next; another takes over immediately."""
        with contextlib.suppress(Crashed):
            self.look(crash_at=after, before_effect=before_effect)
        self.restart()

    def waiting(self) -> list[Build]:
        queued = [b for b in self.records.values() if b.open and b.status.round and b.status.state is State.QUEUED]
        return sorted((b for b in queued if b.live is None and b.cancel is None), key=lambda build: build.name)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), seconds=st.integers(0, 90))
    def start_is_written_late(self, data: st.DataObject, seconds: int) -> None:
        """A controller that was paused after its decision writes the start.

        The record accepts it because it has not changed since. The controller no longer leads, so it does no more.
        """
        build = data.draw(st.sampled_from(self.waiting()))
        node = data.draw(st.sampled_from([*sorted(self.nodes), None] if self.scalable else sorted(self.nodes)))
        start = Start(build=build.name, attempt=build.status.attempt, node=node)
        self.put(advance(build, start, self.now - timedelta(seconds=seconds), self.announce))

    @precondition(lambda self: self.sending)
    @rule(doubled=st.booleans())
    def deliveries_end(self, doubled: bool) -> None:
        for event, sink in sorted(self.sending):
            self.deliver(event, sink)
            if doubled:
                self.received[sink].setdefault(event, self.announced[event][0])
        self.sending.clear()

    @precondition(lambda self: self.confirming or self.inspecting)
    @rule()
    def registry_answers(self) -> None:
        for name, number in sorted(self.inspecting):
            real = self.attempts[self.records[name].uid, number]
            image = ENDS[0] and ENDS[0].image if real.pushed else None
            self.inspections[name, number] = Inspection(image=image)
        self.inspecting.clear()
        for name in sorted(self.confirming):
            image = self.records[name].status.image if name in self.images else None
            self.confirmations[name] = Confirmation(image=image, causes=self.asked[name])
        self.confirming.clear()

    def facts(self, blind: bool) -> Facts:
        """The facts of this round; if `blind`, half of the attempts are invisible."""
        builds = tuple(build for build in self.records.values() if build.open)
        sightings = [
            self.sighting(build.name, build.uid, build.live.number)
            for build in builds
            if build.live is not None and not (blind and int(build.name[-1]) % 2) and build.name not in self.in_flight
        ]
        uids = {build.uid for build in self.records.values()}
        sightings += [
            self.sighting(real.build, real.build, real.number) for real in self.existing() if real.build not in uids
        ]
        seen = {(one.build, one.attempt, one.phase) for one in sightings}
        seen |= {key for key in self.first_seen if key[0] in self.in_flight}
        self.first_seen = {key: self.first_seen.get(key, self.elapsed) for key in seen}
        troubled = {(one.build, one.attempt, one.trouble.elsewhere) for one in sightings if one.trouble}
        troubled |= {key for key in self.first_troubled if key[0] in self.in_flight}
        self.first_troubled = {key: self.first_troubled.get(key, self.elapsed) for key in troubled}
        return Facts(
            builds=builds,
            sightings=sightings,
            nodes=[Node(name=name, ready=ready) for name, ready in self.nodes.items()],
            scalable=self.scalable,
            confirmations=dict(self.confirmations),
            confirming=frozenset(self.confirming),
            inspections=dict(self.inspections),
            inspecting=frozenset(self.inspecting),
            sending=frozenset(self.sending),
            stopped=frozenset(self.stopped),
            watched={key[:2]: self.elapsed - since for key, since in self.first_seen.items()},
            troubled={key[:2]: self.elapsed - since for key, since in self.first_troubled.items()},
            rotation=self.rotation,
            in_flight={name: action for name, (_, action) in self.in_flight.items()},
        )

    def sighting(self, name: str, uid: str, number: int) -> Sighting:
        real = self.attempts.get((uid, number))
        if real is None:
            return Sighting(build=name, attempt=number, phase=Phase.ABSENT)
        return Sighting(
            build=name,
            attempt=number,
            phase=real.phase,
            node=real.node,
            started_at=real.started_at,
            ended_at=real.ended_at,
            result=real.result,
            result_lost=real.result_lost,
            trouble=real.trouble if real.phase is Phase.PENDING else None,
        )

    def look(
        self,
        *,
        blind: bool = False,
        crash_at: int = -1,
        before_effect: bool = False,
        slow: Set[str] = frozenset(),
    ) -> bool:
        for build in self.deleted:
            report = deleted(build)
            if report is not None:
                advance(build, report, self.now, self.announce)
        self.deleted.clear()
        facts = self.facts(blind)
        actions = plan(facts, self.limits, self.now)
        on_records = [action.build for action in actions if not isinstance(action, Deliver | DeadLetter)]
        assert len(on_records) == len(set(on_records)), "two changes of one record in one plan"
        assert not {action.build for action in actions} & self.in_flight.keys()
        changed = False
        for place, action in enumerate(actions):
            if action.build[-1] in slow and isinstance(action, Explain | Report | Settle | Start | Stop):
                self.hand_over(action)
                continue
            changed |= self.act(action, crash=place == crash_at, before_effect=before_effect)
        return changed

    def hand_over(self, action: Action) -> None:
        """Put a decided action in flight; `writes_land` carries it out."""
        build = self.records[action.build]
        if not isinstance(action, Start) or build.live is None:
            self.check(build, action)
        self.in_flight[build.name] = build, action

    def act(self, action: Action, *, crash: bool, before_effect: bool) -> bool:
        build = self.records[action.build]
        match action:
            case Deliver():
                assert (action.event, action.sink) not in self.sending
                self.sending.add((action.event, action.sink))
                return False
            case Confirm():
                assert build.state is State.SUCCEEDED
                self.confirming.add(build.name)
                self.asked[build.name] = tuple(cause.key for cause in build.unanswered)
                return False
            case Inspect():
                real = self.attempts[build.uid, action.attempt]
                assert real.result_lost
                self.inspecting.add((build.name, action.attempt))
                return False
            case DeadLetter():
                announced = next(a for a in build.status.outbox if a.event.id == action.event)
                assert self.now - announced.at >= self.limits.delivery_period
                self.put(advance(build, action, self.now, self.announce))
                return True
            case Start() if build.live is not None:
                pass
            case _:
                self.check(build, action)
        self.carry_out(build, action, crash=crash, before_effect=before_effect)
        return True

    def carry_out(self, build: Build, action: Action, *, crash: bool = False, before_effect: bool = False) -> None:
        if isinstance(action, Start) and build.live is not None:
            assert (build.live.number, build.live.node) == (action.attempt, action.node)
        else:
            build = self.put(advance(build, action, self.now, self.announce))
            if isinstance(action, Report) or (isinstance(action, Start) and action.opens):
                self.confirmations.pop(build.name, None)
                self.inspections.pop((build.name, action.attempt), None)
            if isinstance(action, Start):
                self.rotation = self.rotation.after(build)
        if crash and before_effect:
            raise Crashed
        if isinstance(action, Start):
            self.start(build, action)
        elif isinstance(action, Stop):
            real = self.attempts[build.uid, action.attempt]
            real.told_to_stop = True
            self.stopped.add((build.name, action.attempt))
        if crash:
            raise Crashed

    def check(self, build: Build, action: Action) -> None:
        """Check the invariants of an action when it is carried out."""
        if isinstance(action, Start) and action.opens:
            gone = build.name in self.confirmations and self.confirmations[build.name].image is None
            assert build.status.round == 0 or build.reopened or gone
            build = opened(build, action.attempt, self.now)
        cancelled = build.cancel is not None and build.cancel.round == build.status.round
        cancelled = cancelled or (bool(build.unanswered) and all(cause.withdrawn for cause in build.unanswered))
        match action:
            case Start():
                self.check_node(action.node)
                assert build.status.state is State.QUEUED
                assert not cancelled, "started after a cancel"
                assert action.attempt == build.status.attempt
            case Report():
                self.check_report(build, action, cancelled=cancelled)
            case Settle():
                assert build.state.ended
                assert not build.unanswered
            case Stop(reason=Reason.TIMEOUT):
                real = self.attempts[build.uid, action.attempt]
                late = self.elapsed - real.created > self.limits.build_timeout
                assert late or real.told_to_stop, "ended by a clock that was set"
            case Stop(reason=Reason.INFRASTRUCTURE):
                real = self.attempts[build.uid, action.attempt]
                waited = self.elapsed - real.created
                assert waited > self.limits.pending_grace or real.told_to_stop, "given up before its time"
                assert build.live is not None
                if build.live.node is None and not (real.trouble and not real.trouble.elsewhere):
                    assert not action.quarantine, "no node is to blame"
                    assert waited > MAX_NODE_WAIT or real.told_to_stop, "it was to wait for a node"
            case Stop() | Explain():
                pass
            case _:
                raise AssertionError(f"unexpected {action}")

    def check_report(self, build: Build, action: Report, *, cancelled: bool) -> None:
        match action:
            case Report(causes=joined) if joined:
                assert set(joined) <= set(self.asked[build.name]), "answered, and the registry was never asked for them"
            case Report(word=Word.RETRYING):
                assert action.outcome is not None
                assert action.outcome.reason is Reason.INFRASTRUCTURE
                assert not cancelled, "retried after a cancel"
                self.check_counted(build, action)
            case Report(word=Word.FAILED, outcome=outcome) if outcome and outcome.reason is Reason.INFRASTRUCTURE:
                self.check_counted(build, action)
            case Report(word=Word.SUCCEEDED) if not action.causes:
                assert self.attempts[build.uid, action.attempt].pushed
            case Report(word=Word.CANCELLED):
                assert action.outcome is not None
                if action.outcome.reason is Reason.REQUESTED:
                    assert cancelled or (build.live and build.live.stopping is Reason.REQUESTED)
                else:
                    assert all(cause.push for cause in build.unanswered)

    def check_node(self, node: str | None) -> None:
        """Check that an attempt may start on the node, or without one."""
        live = [build.live for build in self.records.values() if build.live]
        if node is None:
            assert self.scalable
            assert not any(self.nodes.values()), "without a node although one is ready"
            assert all(attempt.node for attempt in live), "two without a node"
            return
        assert self.nodes[node], "started on a node that is not ready"
        tried = [attempt for build in self.records.values() if build.open for attempt in build.status.attempts]
        unfit = [attempt.finished_at for attempt in tried if attempt.quarantine and attempt.node == node]
        assert all(at and not timedelta() <= self.now - at < QUARANTINE for at in unfit), "placed on a quarantined node"

    def check_counted(self, build: Build, report: Report) -> None:
        """Check that only a result of the builder, or its absence, counts as a failed attempt."""
        real = self.attempts.get((build.uid, report.attempt))
        assert report.outcome is not None
        if report.outcome.counted:
            assert real is not None
            assert real.phase is Phase.ENDED, "lost to scheduling, and counted"
            assert real.result is None or real.result.state is State.FAILED
            assert not real.pushed, "it was pushed, and called a failure"

    def start(self, build: Build, action: Start) -> None:
        """Start an attempt as an engine does: a repeated start has no effect."""
        key = (build.uid, action.attempt)
        if key in self.attempts:
            assert self.attempts[key].phase is not Phase.ABSENT, "what was given up is begun again"
            return
        others = [real for real in self.existing() if real.build == build.uid]
        assert not others, "two attempts at one build at the same time"
        self.attempts[key] = Real(
            build=build.uid,
            number=action.attempt,
            node=action.node,
            alone=action.alone,
            created=self.elapsed,
        )

    def announce(
        self, build: Build, word: Word, attempt: int, cause: Cause | None
    ) -> list[tuple[Event, tuple[str, ...]]]:
        id_ = f"{build.uid}.{attempt}.{word}" + (f".{cause.key}" if cause else "")
        assert self.announced.get(id_) is None, f"{id_} announced twice"
        self.announced[id_] = (build.uid, self.now)
        if cause is None:
            self.heard(build, word, attempt)
        self.told(build, word, attempt, cause)
        return [(Event(id=id_, source="/kiln", type=f"dev.kiln.build.{word}.v1"), SINKS)]

    def told(self, build: Build, word: Word, attempt: int, cause: Cause | None) -> None:
        """Hook for subclasses that check more than the order of events."""

    def heard(self, build: Build, word: Word, attempt: int) -> None:
        """Check the order of events on which a consumer may rely."""
        words = self.stories[build.uid].words
        last = words[-1] if words else None
        if last is None and build.status.reason is Reason.DELETED:
            pass  # deleted before the controller had seen it
        elif last is None or last[0].terminal:
            assert word is Word.QUEUED, f"{word} after the end"
        else:
            assert word is not Word.QUEUED, "queued twice in one round"
        if word is Word.QUEUED:
            assert all(number < attempt for _, number in words), "a number was used in two rounds"
        if word is Word.STARTED:
            assert (Word.STARTED, attempt) not in words
        words.append((word, attempt))

    def deliver(self, event: str, sink: str) -> None:
        """End one try of a delivery and record its outcome."""
        build = self.by_uid(event)
        assert build is not None
        if self.sinks_up[sink]:
            kind = self.announced[event][0]
            assert self.received[sink].setdefault(event, kind) == kind
            self.put(delivered(build, event, sink, self.now, error=None))
        else:
            pause = timedelta(seconds=60)
            self.put(undelivered(build, event, sink, self.now, error="no answer", pause=pause))

    def by_uid(self, event: str) -> Build | None:
        """Return the record of an event, or None if it was deleted."""
        return next((b for b in self.records.values() if b.uid == self.announced[event][0]), None)

    def put(self, build: Build) -> Build:
        self.records[build.name] = build
        return build

    # ---- Safety ---------------------------------------------------------------------------------------------------

    @invariant()
    def slots_are_never_exceeded(self) -> None:
        for node in self.nodes:
            reals = [real for real in self.existing() if real.node in (node, None)]
            assert len(reals) <= self.limits.builds_per_node
            assert len(reals) == 1 or not any(real.alone for real in reals)

    @invariant()
    def a_round_has_its_bounds(self) -> None:
        for build in self.records.values():
            round_ = [a for a in build.status.attempts if a.number >= build.status.round_began_with]
            assert len(round_) <= MAX_UNCOUNTED
            assert sum(attempt.counted for attempt in round_) <= self.limits.max_attempts
            final = [a for a in round_ if a.reason in (Reason.REPOSITORY, Reason.TIMEOUT) or a.state is State.SUCCEEDED]
            assert not final or final == [round_[-1]], "an attempt followed a final end"

    @invariant()
    def an_end_stays(self) -> None:
        for build in self.records.values():
            words = self.stories[build.uid].words
            if words and words[-1][0].terminal:
                assert build.status.state == State(words[-1][0])

    @invariant()
    def a_closed_record_is_done(self) -> None:
        for build in self.records.values():
            if not build.open:
                assert build.status.state.ended
                assert not build.status.outbox
                assert not build.unanswered

    # ---- Liveness -------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Once all faults are repaired and time has passed, every cause has its answer."""
        if not hasattr(self, "limits"):
            return
        self.nodes = dict.fromkeys(self.nodes, True)
        self.sinks_up = dict.fromkeys(SINKS, True)
        self.writes_land()
        for _ in range(400):
            for real in self.existing():
                self.place(real, "n1")
                self.end(real, result(State.CANCELLED if real.told_to_stop else State.SUCCEEDED))
            self.deliveries_end(doubled=False)
            self.registry_answers()
            changed = self.look()
            if not changed and not self.sending and not self.confirming and not self.inspecting:
                if not any(build.open for build in self.records.values()):
                    break
                self.time_passes(61)
        for build in self.records.values():
            assert not build.open, f"{build.name} never settled: {build.status}"
            assert not self.existing()
        for event in self.announced:
            for sink in SINKS:
                assert event in self.received[sink] or self.buried(event, sink), f"{sink} never got {event}"

    def buried(self, event: str, sink: str) -> bool:
        build = self.by_uid(event)
        if build is None:
            return True  # the event went with its record
        kept = [d for d in build.status.deliveries if (d.event, d.sink) == (event, sink)]
        return not kept or kept[0].state is DeliveryState.DEAD


World.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestWorld = World.TestCase

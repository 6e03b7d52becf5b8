"""The reconcile loop: observe, plan, act, repeat.

The process may be killed at any instant. Each decision is in the record before the controller acts on it, so its
successor completes the work: it completes written starts, sends announced events, adopts running attempts. The loop is
level-based: every round observes all open builds, and the order of events does not matter.

Writer threads write records concurrently, one thread per record, under the revision that the plan saw. The next round
does not wait for them. `Facts.in_flight` names their records, about which the plan decides nothing, and whose starts
already occupy their slots. Only the loop's thread changes the controller's own state, when it collects the results of
the writers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

import msgspec

from builds import chain, metrics
from builds.build import Attempt, Build, Cause, DeliveryState, Image, Phase, Sighting, State, Timings
from builds.engines import Conflict, Engine, NotFound, Refused, Unavailable, World
from builds.faults import Fault, crash_if_armed
from builds.locality import RecentBuilds
from builds.plan import (
    BACKOFF,
    MAX_BACKOFF,
    Action,
    ClearAttempts,
    Confirm,
    Confirmation,
    DeadLetter,
    Deliver,
    Explain,
    Facts,
    Forget,
    Inspect,
    Inspection,
    Limits,
    Report,
    Rotation,
    Start,
    Stop,
    Word,
    deleted,
    done_and_told,
    expired,
    plan,
    quarantined_until,
)
from builds.removal import DELETING
from builds.statuses import Statuses
from builds.structs import make_ready
from builds.timeline import phases, timeline
from builds.transitions import Announce, advance, delivered, undelivered
from builds.writers import Writers
from eventing.event import Event
from eventing.pulse import Pulse
from eventing.sinks import Outcome, Sink, pause, wanted
from eventing.spans import Spans, export_stage
from eventing.statuses import HostSink

log = logging.getLogger(__name__)

K = TypeVar("K")

IDLE_INTERVAL = 5.0
"""Seconds between two rounds while no build is open and nothing changes."""
BUSY_INTERVAL = 1.0
"""Seconds between two rounds while builds are open: the precision of backoff and time limits."""
MOMENT, URGENT_MOMENT = 0.5, 2.0
"""Seconds after which the writers drop a decision that has waited for a free thread, and the plan decides again. The
longer limit is for starts and stops, because no later decision precedes them."""
REST, BACKLOG_REST = 1, 4
"""After each round, the loop rests for so many times the round's processor time; longer while decisions wait for a
thread."""
WRITERS = 8
"""Records written at a time. More did not raise the throughput of an API server on two cores."""
HOUSEKEEPING = timedelta(minutes=10)
"""Interval between two sweeps of ended builds; shorter if the history is shorter."""
SWEEP = 20
"""Builds that the sweep processes between two rounds: thousands may be due, and new builds must not wait."""
SWEEP_SHARE = 10
"""While builds are open, the sweep uses at most one part in so many of the time."""
EXPLAINED_WITHIN = 3.0
"""Seconds for which urgent writes may delay those of `Status.waiting`."""
RECORDED_WITHIN = timedelta(seconds=1)
"""The result of a delivery may wait for so long for another write of its record."""

NO_SINK = Outcome(delivered=False, final=True, error="No sink of that name is configured any more.")


class Sender(Protocol):
    """Sends events to sinks without blocking. Calls `done` from any thread."""

    def send(self, event: Event, sink: Sink | HostSink, done: Callable[[Outcome], None]) -> None: ...


class Confirmer(Protocol):
    """Looks up a build's image in its registry. Raises any exception if the registry does not answer."""

    def __call__(self, build: Build, /) -> Image | None: ...


class Inspector(Protocol):
    """Looks up the image that an attempt has pushed. Raises any exception if the registry does not answer."""

    def __call__(self, build: Build, attempt: Attempt, /) -> Image | None: ...


class _Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A record in quarantine until `until` (by the monotonic clock), or until its next revision."""

    revision: str
    failures: int
    until: float


class DeliveryResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one try at a delivery."""

    build: str
    event: str
    sink: str
    outcome: Outcome
    at: float
    """By the monotonic clock."""


class _Work(msgspec.Struct, kw_only=True, eq=False):
    """The actions on one record, and their result. Only the writer's thread changes it until it has ended."""

    decided_on: Build
    build: Build
    """The record as last written."""
    actions: Sequence[Action]
    results: Sequence[DeliveryResult]
    """Results of its deliveries, for the first write to record."""
    until: float = float("inf")
    """By the monotonic clock: work that has not begun by then is dropped."""
    began: float | None = None
    ended: float = float("-inf")
    recorded: Sequence[DeliveryResult] = ()
    gone: bool = False
    """Its record was deleted, and `recorded` with it."""
    done: list[Action] = msgspec.field(default_factory=list)
    trouble: str | None = None
    """Why the attempt could not be started."""
    changed: bool = False
    """The work has changed the cluster, or found it changed."""
    error: Exception | None = None

    @property
    def unavailable(self) -> bool:
        """Whether the engine may be unavailable, rather than this record refused."""
        return isinstance(self.error, Unavailable) and not isinstance(self.error, Refused)

    @property
    def to_decide(self) -> bool:
        """Whether the plan may have something to decide immediately."""
        return not self.unavailable and (self.began is None or self.changed or self.error is not None)


class Controller:
    """Reconciles records and attempts. `events` makes an event: (build, word, attempt, time, cause) → Event."""

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Limits,
        sinks: Sequence[Sink],
        sender: Sender,
        confirmer: Confirmer,
        inspector: Inspector,
        events: Callable[[Build, Word, int, datetime, Cause | None], Event],
        statuses: Statuses | None = None,
        spans: Spans | None = None,
        pulse: Pulse | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        make_ready()
        self._engine = engine
        self._limits = limits
        self._sinks: Mapping[str, Sink] = {sink.name: sink for sink in sinks}
        self._statuses = statuses
        self._spans = spans
        self._sender = sender
        self._confirmer = confirmer
        self._inspector = inspector
        self._events = events
        self._pulse = pulse or Pulse("controller")
        self._clock = clock
        self._monotonic = monotonic
        self._first_seen: dict[tuple[str, int, Phase], float] = {}
        self._first_troubled: dict[tuple[str, int, bool], float] = {}
        self._rotation = Rotation()
        self._quarantining: list[Attempt] = []
        self._recent_builds = RecentBuilds()
        self._stopped: set[tuple[str, int]] = set()
        self._troubles: dict[tuple[str, int], str] = {}
        self._sending: set[tuple[str, str]] = set()
        self._results: SimpleQueue[DeliveryResult] = SimpleQueue()
        self._unrecorded: dict[str, list[DeliveryResult]] = {}
        self._quarantine: dict[str, _Quarantined] = {}
        self._held: frozenset[str] = frozenset()
        self._unreadable: Mapping[str, str] = {}
        self._confirming: set[str] = set()
        self._confirmations: dict[str, Confirmation] = {}
        self._inspecting: set[tuple[str, int]] = set()
        self._inspections: dict[tuple[str, int], Inspection] = {}
        self._registry = ThreadPoolExecutor(2, thread_name_prefix="confirm")
        self._keepers = ThreadPoolExecutor(2, thread_name_prefix="log")
        self._writers: Writers[_Work] = Writers(WRITERS, self._worked)
        self._in_flight: dict[str, Action | None] = {}
        self._to_collect = False
        self._wrote = float("-inf")
        self._tidied: datetime | None = None
        self._sweep: Iterator[Build | None] | None = None
        self._sweeps_again = float("-inf")
        self._explained = float("-inf")
        self._open = False
        self._unavailable = ""

    def run(self, over: Callable[[], bool]) -> None:
        """Runs rounds until `over` returns true. Running attempts continue, and the next controller adopts them."""
        try:
            while not over():
                self._engine.wait(self._turn())
            self._record_rest()
        finally:
            self._registry.shutdown(wait=False, cancel_futures=True)
            self._writers.close()
            self._keepers.shutdown(wait=False, cancel_futures=True)
            self._count(None)
            metrics.RECORDS_PUT_ASIDE.set(0)  # from now on, another controller counts them

    def _turn(self) -> float:
        """One round, and part of the sweep. Returns the seconds until the next round, unless an event comes earlier."""
        if self._writers.blocked:
            return BUSY_INTERVAL  # without a beat, so that the process ends when the pulse is late
        try:
            self._look_and_rest()
            tidy_again = IDLE_INTERVAL if self._in_flight else self._tidy()
        except Unavailable as error:
            if str(error) != self._unavailable:  # a standby would repeat it for weeks
                log.warning("Engine unavailable, retrying in %g s: %s", BUSY_INTERVAL, error)
            self._unavailable = str(error)
            self._count(None)
            return BUSY_INTERVAL
        self._unavailable = ""
        if self._to_collect:  # since before the engine was observed, which forgets that it was woken
            return 0.0
        return min(tidy_again, BUSY_INTERVAL if self._open else IDLE_INTERVAL)

    def _look_and_rest(self) -> None:
        """One round, and a rest in proportion to its cost: the writers and the sender need the processor as well."""
        began = time.thread_time()
        self.reconcile()
        spent = time.thread_time() - began
        time.sleep(spent * (BACKLOG_REST if self._writers.backlog else REST))

    def reconcile(self) -> None:
        """Observes, plans, and hands the actions to the writers."""
        with metrics.PLAN_SECONDS.time():
            self._pulse.beat()
            self._collect_work()
            world = self._engine.observe(self._in_flight.keys())
            self._pulse.beat()
            self._open = bool(world.builds)
            builds = {build.name: build for build in world.builds}
            self._drop({*builds} - {build.name for build in world.deleted})
            for build in world.deleted:
                self._announce_deletion(build)
            self._count(world)
            self._note_unreadable(world.unreadable)
            self._collect_results(builds)
            now = self._clock()
            for build in world.builds:
                self._recent_builds.note(build)
            self._quarantining = [attempt for attempt in self._quarantining if quarantined_until(attempt, now)]
            facts = Facts(
                builds=self._not_quarantined(world.builds),
                sightings=tuple(map(self._with_trouble, world.sightings)),
                nodes=world.nodes,
                scalable=world.scalable,
                confirmations=dict(self._confirmations),
                confirming=frozenset(self._confirming),
                inspections=dict(self._inspections),
                inspecting=frozenset(self._inspecting),
                sending=frozenset(self._sending),
                stopped=frozenset(self._stopped),
                watched=self._watched(world),
                troubled=self._troubled(world),
                rotation=self._rotation,
                quarantine=self._quarantining,
                in_flight=self._in_flight,
                successes=self._recent_builds.successes,
            )
            self._carry_out(self._planned(facts, now), builds)

    def _planned(self, facts: Facts, now: datetime) -> Sequence[Action]:
        """The plan. Records that cause an exception go to quarantine."""
        try:
            return plan(facts, self._limits, now)
        except Exception:
            bad = {build.name: error for build in facts.builds if (error := self._unplannable(build, facts, now))}
            if not bad:
                raise
            for build in facts.builds:
                if build.name in bad:
                    self._put_aside(build, f"no plan can be made: {bad[build.name]!r}")
            return plan(msgspec.structs.replace(facts, builds=self._not_quarantined(facts.builds)), self._limits, now)

    def _unplannable(self, build: Build, facts: Facts, now: datetime) -> Exception | None:
        try:
            plan(msgspec.structs.replace(facts, builds=(build,)), self._limits, now)
        except Exception as error:  # noqa: BLE001  (any error belongs to this record)
            return error
        return None

    def _carry_out(self, actions: Sequence[Action], builds: Mapping[str, Build]) -> None:
        """Gives the actions to the writers: those on one record to one thread, in order."""
        idle = [name for name in self._unrecorded if name not in self._held and name not in self._in_flight]
        work: dict[str, list[Action]] = {name: [] for name in idle if self._to_record(builds[name])}
        for action in sorted(self._without_early_words(actions), key=_urgency):
            work.setdefault(action.build, []).append(action)
        for name, todo in work.items():
            self._hand_over(builds[name], todo)

    def _hand_over(self, build: Build, actions: Sequence[Action]) -> None:
        urgency = min(map(_urgency, actions), default=NOT_URGENT)
        until = self._monotonic() + (URGENT_MOMENT if urgency == URGENT else MOMENT)
        results = self._unrecorded.pop(build.name, ())
        work = _Work(decided_on=build, build=build, actions=actions, results=results, until=until)
        self._in_flight[build.name] = next((one for one in actions if not isinstance(one, Deliver | DeadLetter)), None)
        if build.live is None and any(isinstance(one, Start) for one in actions):
            self._rotation = self._rotation.after(build)
        self._writers.submit(urgency, partial(self._act_on, work))

    def _worked(self, work: _Work) -> None:
        """Runs in a writer's thread."""
        if work.to_decide:
            self._to_collect = True
            self._engine.wake()

    def _collect_work(self) -> None:
        """Collects the writers' results since the last round. Raises Unavailable if no record can be written."""
        self._to_collect = False
        ended = self._writers.results()
        for work in ended:
            del self._in_flight[work.build.name]
            self._remember(work)
        self._judge([work for work in ended if work.error])

    def _remember(self, work: _Work) -> None:
        build = work.build
        if work.results:
            self._unrecorded[build.name] = [*work.results, *self._unrecorded.get(build.name, ())]
        self._recorded(work.recorded, gone=work.gone)
        for action in work.done:
            self._remember_done(build, action)
        self._note_trouble(work)
        if work.changed:
            self._wrote = max(self._wrote, work.ended)
        if work.changed and work.error is None:
            self._quarantine.pop(build.name, None)
        if not build.open:
            # Its nodes stay in quarantine, so that the next build does not repeat the failure.
            self._quarantining += [attempt for attempt in build.status.attempts if attempt.quarantine]

    def _remember_done(self, build: Build, action: Action) -> None:
        match action:
            case Stop():
                self._stopped.add((build.name, action.attempt))
            case Start():
                self._troubles.pop((build.name, action.attempt), None)
            case Report():
                self._confirmations.pop(build.name, None)
                self._inspections.pop((build.name, action.attempt), None)
                if action.outcome is not None and not action.causes:
                    self._stopped.discard((build.name, action.attempt))
                    self._troubles.pop((build.name, action.attempt), None)

    def _note_trouble(self, work: _Work) -> None:
        """Logs once why an attempt was not started."""
        live = work.build.live
        if work.trouble is None or live is None:
            return
        if self._troubles.get((work.build.name, live.number)) != work.trouble:
            log.warning("Attempt not started: %s", work.trouble, extra={"build": work.build.name})
        self._troubles[work.build.name, live.number] = work.trouble

    def _without_early_words(self, actions: Sequence[Action]) -> Sequence[Action]:
        """The actions without `Explain`, unless no other action is due or the last ones were written `EXPLAINED_WITHIN`
        ago.

        If two hundred builds are requested in the same second, most start within that time and need no explanation.
        """
        words = [action for action in actions if isinstance(action, Explain)]
        now = self._monotonic()
        if (len(words) == len(actions) and not self._in_flight) or now - self._explained >= EXPLAINED_WITHIN:
            self._explained = now
            return actions
        return [action for action in actions if not isinstance(action, Explain)]

    def _judge(self, failed: Sequence[_Work]) -> None:
        """Quarantines records whose writes failed. Raises Unavailable if the engine failed: no other write has
        succeeded since the failed one began."""
        down = [one for one in failed if one.unavailable and (one.began or 0.0) >= self._wrote]
        for one in failed:
            if one not in down:
                self._put_aside(one.decided_on, str(one.error) or repr(one.error))
        for one in down:
            raise Unavailable(str(one.error)) from one.error

    # ---- Quarantine -----------------------------------------------------------------------------------------------

    def _put_aside(self, build: Build, why: str) -> None:
        """Quarantines a record, and retries it with exponential backoff, so that it delays no other."""
        before = self._quarantine.get(build.name)
        failures = before.failures + 1 if before else 1
        pause = min(BACKOFF * 2 ** (failures - 1), MAX_BACKOFF).total_seconds()
        until = self._monotonic() + pause
        self._quarantine[build.name] = _Quarantined(revision=build.revision, failures=failures, until=until)
        log.warning("Record quarantined, retrying in %.0f s: %s", pause, why, extra={"build": build.name})

    def _note_unreadable(self, unreadable: Mapping[str, str]) -> None:
        for name, why in unreadable.items():
            if self._unreadable.get(name) != why:
                log.warning("Record quarantined until it can be read: %s", why, extra={"build": name})
        self._unreadable = unreadable

    def _not_quarantined(self, builds: Sequence[Build]) -> Sequence[Build]:
        now = self._monotonic()
        self._held = frozenset(
            build.name
            for build in builds
            if (entry := self._quarantine.get(build.name)) and entry.revision == build.revision and now < entry.until
        )
        metrics.RECORDS_PUT_ASIDE.set(len(self._held | self._unreadable.keys()))
        return [build for build in builds if build.name not in self._held]

    def _with_trouble(self, sighting: Sighting) -> Sighting:
        """The sighting with the error of the last start, which only the controller knows."""
        if sighting.waiting or sighting.phase is not Phase.ABSENT:
            return sighting
        return msgspec.structs.replace(sighting, waiting=self._troubles.get((sighting.build, sighting.attempt)))

    def _watched(self, world: World) -> dict[tuple[str, int], timedelta]:
        """The observed duration of each attempt's present phase."""
        now = self._monotonic()
        seen = {(sighting.build, sighting.attempt, sighting.phase) for sighting in world.sightings}
        seen |= {key for key in self._first_seen if key[0] in self._in_flight}
        self._first_seen = {key: self._first_seen.get(key, now) for key in seen}
        return {key[:2]: timedelta(seconds=now - since) for key, since in self._first_seen.items()}

    def _troubled(self, world: World) -> dict[tuple[str, int], timedelta]:
        """The observed duration for which the present kind of trouble has kept each attempt from running."""
        now = self._monotonic()
        seen = {(one.build, one.attempt, one.trouble.elsewhere) for one in world.sightings if one.trouble}
        seen |= {key for key in self._first_troubled if key[0] in self._in_flight}
        self._first_troubled = {key: self._first_troubled.get(key, now) for key in seen}
        return {key[:2]: timedelta(seconds=now - since) for key, since in self._first_troubled.items()}

    def _drop(self, open_: set[str]) -> None:
        """Drops the state of builds that are not open, for example because their record was deleted."""
        self._stopped = {key for key in self._stopped if key[0] in open_}
        self._troubles = {key: why for key, why in self._troubles.items() if key[0] in open_}
        for name in {*self._confirmations} - open_:
            del self._confirmations[name]
        for name in {*self._quarantine} - open_:
            del self._quarantine[name]
        for key in [key for key in (*self._inspections,) if key[0] not in open_]:
            del self._inspections[key]

    # ---- Actions --------------------------------------------------------------------------------------------------

    def _act_on(self, work: _Work) -> _Work:
        """Carries out the actions on one record, in a writer's thread, unless `until` has passed."""
        now = self._monotonic()
        if now > work.until:
            return work
        work.began = now
        try:
            for action in work.actions:
                self._act(work, action)
            if work.results:
                self._write(work, None)
        except Conflict:
            metrics.CONFLICTS.inc()
            work.changed = True
        except (NotFound, Unavailable) as error:
            work.error = error
        except Exception as error:
            log.exception("Action failed", extra={"build": work.build.name})
            work.error = error
        work.ended = self._monotonic()
        return work

    def _act(self, work: _Work, action: Action) -> None:
        """Carries out one action."""
        match action:
            case Start():
                self._start(work, action)
            case Deliver():
                self._deliver(work, action)
            case Confirm() | Inspect():
                self._ask_registry(work.build, action)
            case _:
                self._write(work, action)
                self._after(work, action)

    def _write(self, work: _Work, action: Action | None) -> None:
        """Writes the record after `action`, with the results of its deliveries. The same write closes the record if the
        build is done and all its events are delivered."""
        now, after = self._clock(), work.build
        for one in work.results:
            after = self._after_try(after, one)
        after = advance(after, action, now, self._announce(now)) if action else after
        try:
            work.build = self._engine.write(msgspec.structs.replace(after, open=not done_and_told(after)))
        except NotFound:
            work.recorded, work.results, work.gone = work.results, (), True
            raise
        if work.results:
            crash_if_armed(Fault.CONTROLLER_DELIVERED)
        work.recorded, work.results, work.changed = [*work.recorded, *work.results], (), True
        if not work.build.open:
            crash_if_armed(Fault.CONTROLLER_SETTLED)

    def _announce(self, now: datetime) -> Announce:
        def announce(
            after: Build, word: Word, attempt: int, cause: Cause | None
        ) -> list[tuple[Event, tuple[str, ...]]]:
            own = self._events(after, word, attempt, now, cause)
            words = {"kiln": [own]}
            if any(sink.format == "cdevents" for sink in self._sinks.values()):
                words["cdevents"] = chain.events(after, word, attempt, own, cause)
            hosts = self._statuses.wanted(after, word, cause) if self._statuses else ()
            return [
                (event, tuple(self._wanting(form, event.type, own.type)) + (hosts if event is own else ()))
                for form, events in words.items()
                for event in events
            ]

        return announce

    def _wanting(self, form: str, *types: str) -> Iterator[str]:
        """The names of the sinks that subscribe to these types in this format."""
        return (name for name, sink in self._sinks.items() if sink.format == form and wanted(sink, *types))

    def _sink(self, name: str, build: Build) -> Sink | HostSink | None:
        return self._sinks.get(name) or (self._statuses.sink(name, build) if self._statuses else None)

    def _after(self, work: _Work, action: Action) -> None:
        """The effect of a written action, and its log line."""
        match action:
            case Stop():
                if work.build.live is not None:
                    self._engine.stop(work.build, work.build.live)
            case Report():
                self._reported(work.build, action)
            case DeadLetter():
                self._dead(work.build.name, action.event, action.sink, "not taken within KILN_DELIVERY_PERIOD")
        work.done.append(action)

    def _reported(self, build: Build, report: Report) -> None:
        crash_if_armed(Fault.CONTROLLER_END_WRITTEN if report.word.terminal else Fault.CONTROLLER_ANNOUNCED)
        self._told_of(build, report)
        if report.outcome is not None and not report.causes:
            self._keepers.submit(self._keep_log, build, report.attempt)

    def _keep_log(self, build: Build, attempt: int) -> None:
        """Archives the log while its pod exists. `clear_attempts` retries what fails."""
        try:
            self._engine.keep_log(build, attempt)
        except NotFound:
            return
        except Exception as error:  # noqa: BLE001  (no thread waits for it)
            log.warning("Log not archived yet: %s", error, extra={"build": build.name, "attempt": attempt})

    def _told_of(self, build: Build, report: Report) -> None:
        """Logs, counts and traces a report."""
        outcome, trace = report.outcome, build.status.trace
        log.info(
            "Build %s%s",
            report.word,
            f": {outcome.message}" if outcome and outcome.message else "",
            extra={"build": build.name, "attempt": report.attempt, "trace": trace.id if trace else None},
        )
        if outcome is None or report.causes:
            return
        metrics.ATTEMPTS.labels(outcome.state, outcome.reason or "").inc()
        if outcome.state is State.SUCCEEDED and _built_nothing(build, report.attempt):
            metrics.FOUND.inc()
        if report.word.terminal:
            metrics.ENDED.labels(outcome.state, outcome.reason or "").inc()
            if build.status.finished_at and build.status.queued_at:
                took = (build.status.finished_at - build.status.queued_at).total_seconds()
                metrics.SECONDS.labels(outcome.state).observe(took)
            stages = timeline(build)
            for name, seconds in phases(stages):
                metrics.PHASES.labels(name).observe(seconds)
            if self._spans is not None:
                export_stage(self._spans, stages, trace)

    def _start(self, work: _Work, start: Start) -> None:
        """Runs an attempt that the record already contains, so that any leader completes the start under the same
        name."""
        if work.build.live is None:
            self._write(work, start)
            if start.opens:
                self._after(work, Report(build=start.build, word=Word.QUEUED, attempt=start.attempt))
            crash_if_armed(Fault.CONTROLLER_START_WRITTEN)
        assert work.build.live is not None  # noqa: S101  (it has just been written)
        try:
            self._engine.start(work.build, work.build.live)
        except Unavailable as error:
            work.trouble = str(error)
            return
        work.changed = True
        work.done.append(start)

    def _deliver(self, work: _Work, deliver: Deliver) -> None:
        build = work.build
        event = next(a.event for a in build.status.outbox if a.event.id == deliver.event)
        sink = self._sink(deliver.sink, build)
        if sink is None:
            self._on_sent(build, deliver, NO_SINK)
            return
        self._sending.add((event.id, sink.name))
        self._sender.send(event, sink, partial(self._on_sent, build, deliver))

    def _on_sent(self, build: Build, deliver: Deliver, outcome: Outcome) -> None:
        if outcome.delivered:
            crash_if_armed(Fault.CONTROLLER_SENT)
        at = self._monotonic()
        self._results.put(
            DeliveryResult(build=build.name, event=deliver.event, sink=deliver.sink, outcome=outcome, at=at)
        )
        self._engine.wake()

    def _ask_registry(self, build: Build, action: Confirm | Inspect) -> None:
        """Asks on a separate thread, because a registry may answer slowly, and no round waits for it."""
        if isinstance(action, Inspect):
            self._submit_lookup(build, self._inspecting, (build.name, action.attempt), self._inspect)
        else:
            self._submit_lookup(build, self._confirming, build.name, self._confirm)

    def _confirm(self, build: Build) -> None:
        asking = tuple(cause.key for cause in build.unanswered)
        self._confirmations[build.name] = Confirmation(image=self._confirmer(build), causes=asking)

    def _inspect(self, build: Build) -> None:
        if (live := build.live) is not None:
            self._inspections[build.name, live.number] = Inspection(image=self._inspector(build, live))

    def _submit_lookup(self, build: Build, pending: set[K], key: K, question: Callable[[Build], None]) -> None:
        pending.add(key)

        def ask() -> None:
            try:
                question(build)
            except Exception as error:  # noqa: BLE001  (after any error, the question stays open and is repeated)
                log.warning("Registry lookup failed, retrying: %s", error, extra={"build": build.name})
                time.sleep(BUSY_INTERVAL)  # otherwise the next round would repeat it immediately
            finally:
                pending.discard(key)
                self._engine.wake()

        self._registry.submit(ask)

    def _announce_deletion(self, build: Build) -> None:
        try:
            self._deleted(build)
        except Exception:  # any error is this record's
            log.exception("Announcing the end of a deleted record failed", extra={"build": build.name})

    def _deleted(self, build: Build) -> None:
        """Announces the end of a build whose record was deleted, and sends its undelivered events.

        Without a record no retry survives a restart: each event is sent once, and becomes a dead letter if that fails.
        """
        log.warning("Record of an open build was deleted", extra={"build": build.name})
        report, now, after = deleted(build), self._clock(), build
        if report is not None:
            after = advance(build, report, now, self._announce(now))
            self._told_of(after, report)
        for announcement in after.status.outbox:
            for delivery in announcement.deliveries:
                under_way = (delivery.event, delivery.sink) in self._sending
                if delivery.state is DeliveryState.PENDING and not under_way:
                    self._send_once(announcement.event, delivery.sink, build)

    def _send_once(self, event: Event, name: str, build: Build) -> None:
        def done(outcome: Outcome) -> None:
            metrics.DELIVERIES.labels(_word(outcome)).inc()
            if not outcome.delivered:
                self._dead(build.name, event.id, name, outcome.error or "refused")

        sink = self._sink(name, build)
        if sink is None:
            done(NO_SINK)
        else:
            self._sender.send(event, sink, done)

    # ---- Deliveries -----------------------------------------------------------------------------------------------

    def _collect_results(self, builds: Mapping[str, Build]) -> None:
        """Takes the results of deliveries since the last round, by record, for the next write of each."""
        for name in {*self._unrecorded} - {*builds}:
            self._recorded(self._unrecorded.pop(name), gone=True)
        while True:
            try:
                result = self._results.get_nowait()
            except Empty:
                return
            if result.build in builds:
                self._unrecorded.setdefault(result.build, []).append(result)
            else:
                self._recorded([result], gone=True)

    def _to_record(self, build: Build) -> bool:
        """Whether to write the results of its deliveries now. While a build is in progress, and no later event waits
        for the results, they wait `RECORDED_WITHIN` for another write of the record."""
        results = self._unrecorded[build.name]
        if build.status.state.ended or not all(one.outcome.delivered for one in results):
            return True
        had = {(one.event, one.sink) for one in results}
        sinks = {sink for _, sink in had}
        due = ((delivery.event, delivery.sink) for one in build.status.outbox for delivery in one.deliveries)
        later = any(sink in sinks and (event, sink) not in had for event, sink in due)
        return later or self._monotonic() - results[0].at >= RECORDED_WITHIN.total_seconds()

    def _record_rest(self) -> None:
        """Writes the pending results of deliveries, so that the next controller does not send those events again."""
        self._writers.close()
        try:
            self._collect_work()
            builds = {build.name: build for build in self._engine.observe().builds}
            self._collect_results(builds)
            for name in self._unrecorded.keys() - self._quarantine.keys():
                work = _Work(decided_on=builds[name], build=builds[name], actions=(), results=self._unrecorded[name])
                self._write(work, None)
                self._recorded(work.recorded)
        except (Conflict, NotFound, Unavailable) as error:
            log.warning("Results of deliveries not recorded, their events will be sent again: %s", error)

    def _recorded(self, results: Sequence[DeliveryResult], *, gone: bool = False) -> None:
        """Counts the results that are now in the record, or whose record was deleted (`gone`)."""
        for one in results:
            self._sending.discard((one.event, one.sink))
            self._count_try(one, last=gone)

    def _after_try(self, build: Build, result: DeliveryResult) -> Build:
        outcome, now = result.outcome, self._clock()
        if outcome.delivered:
            return delivered(build, result.event, result.sink, now, error=None)
        error = outcome.error or "no reason given"
        if outcome.final:
            return delivered(build, result.event, result.sink, now, error=error, dead=True)
        tries = next(
            (
                d.tries
                for a in build.status.outbox
                for d in a.deliveries
                if (d.event, d.sink) == (result.event, result.sink)
            ),
            0,
        )
        seconds = pause(tries + 1, outcome.retry_after)
        return undelivered(build, result.event, result.sink, now, error=error, pause=timedelta(seconds=seconds))

    def _count_try(self, result: DeliveryResult, *, last: bool) -> None:
        outcome = result.outcome
        metrics.DELIVERIES.labels(_word(outcome)).inc()
        if not outcome.delivered and (outcome.final or last):
            self._dead(result.build, result.event, result.sink, outcome.error or "refused")

    def _dead(self, build: str, event: str, sink: str, why: str) -> None:
        metrics.DEAD_LETTERS.inc()
        log.error("Dead letter: sink %s did not take event %s: %s", sink, event, why, extra={"build": build})

    # ---- Housekeeping ---------------------------------------------------------------------------------------------

    def _tidy(self) -> float:
        """Sweeps some ended builds, if a sweep is due. Returns the seconds until the next one."""
        rest = self._sweeps_again - self._monotonic()
        if self._open and rest > 0:
            return rest
        began = self._monotonic()
        more = self._tidy_some()
        ended = self._monotonic()
        self._sweeps_again = ended + SWEEP_SHARE * (ended - began)
        return IDLE_INTERVAL if not more else self._sweeps_again - ended if self._open else 0.0

    def _tidy_some(self) -> bool:
        """Sweeps up to `SWEEP` ended builds, and returns whether more are due. A clock set back starts a new sweep.

        The first sweep reads all ended builds, because their attempts contain facts about nodes and images.
        """
        now = self._clock()
        kept = min(self._limits.history, self._limits.log_history)
        pause = max(timedelta(seconds=IDLE_INTERVAL), min(HOUSEKEEPING, kept))
        if self._sweep is None:
            if self._tidied is not None and timedelta() <= now - self._tidied < pause:
                return False
            kept = timedelta() if self._tidied is None else kept
            self._tidied = now
            self._sweep = self._engine.closed(now - kept)
        for number, build in enumerate(self._sweep, start=1):
            self._pulse.beat()
            if build is not None:
                self._recent_builds.note(build)
                self._delete_expired(build, now)
            if build is None or number == SWEEP:
                return True
        self._sweep = None
        return False

    def _delete_expired(self, build: Build, now: datetime) -> None:
        self._pulse.beat(DELETING)
        try:
            match expired(build, self._limits, now):
                case Forget():
                    self._engine.forget(build)
                case ClearAttempts():
                    self._engine.clear_attempts(build)
        except Refused as error:
            log.warning("Deletion refused, retrying at the next sweep: %s", error, extra={"build": build.name})

    def _count(self, world: World | None) -> None:
        """Sets the gauges of open builds and slots; to zero if this controller does not lead (`None`)."""
        builds = world.builds if world else ()
        states = [build.state for build in builds]
        for state in (State.QUEUED, State.RUNNING):
            metrics.BUILDS.labels(state).set(states.count(state))
        waits = [build.status.queued_at or build.created_at for build in builds if build.state is State.QUEUED]
        metrics.QUEUE_AGE.set(max(0.0, (self._clock() - min(waits)).total_seconds()) if waits else 0)
        slots = sum(node.ready for node in world.nodes) * self._limits.builds_per_node if world else 0
        used = sum(build.live is not None for build in builds)
        metrics.SLOTS.labels("used").set(used)
        metrics.SLOTS.labels("free").set(max(0, slots - used))
        metrics.LEADER.set(world is not None)


def _built_nothing(build: Build, number: int) -> bool:
    """Whether an attempt found its image in the registry, and so neither fetched nor built."""
    return any(attempt.number == number and attempt.timings == Timings() for attempt in build.status.attempts)


def _word(outcome: Outcome) -> str:
    """The outcome as a label value of the metric."""
    return "delivered" if outcome.delivered else "refused" if outcome.final else "failed"


URGENT, NOT_URGENT = 0, 3


def _urgency(action: Action) -> int:
    """Lower goes first: starts and stops, on which slots depend, then the ends of builds."""
    match action:
        case Start() | Stop():
            return URGENT
        case Report(word=word) if word is not Word.QUEUED:
            return 1
        case Deliver() | Confirm() | Inspect():
            return 2
        case _:
            return NOT_URGENT

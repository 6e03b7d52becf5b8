"""Looks at what is, asks the plan what to do, and does it: again and again, until there is nothing left to do.

It may be killed at any instant. What it has decided is in the record before it acts on it, so the next one does the
rest: completes a start that was written, sends what was announced, adopts what runs. Nothing is done in the order of
what came in; every round begins with a look at everything that is open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

import msgspec

from builds import metrics
from builds.build import Attempt, Build, Cause, Image, Phase, Sighting, State
from builds.engines import Conflict, Engine, EngineError, NotFound, Unavailable, World
from builds.faults import Fault, reached
from builds.plan import (
    Action,
    Bury,
    Confirm,
    Confirmation,
    Deliver,
    Facts,
    Forget,
    ForgetLogs,
    Inspect,
    Inspection,
    Limits,
    Report,
    Start,
    Stop,
    Turns,
    Word,
    deleted,
    expired,
    left_out_until,
    plan,
)
from builds.record import Announce, advance, delivered, undelivered
from eventing.event import Event
from eventing.sinks import Outcome, Sink, pause, wanted

log = logging.getLogger(__name__)

K = TypeVar("K")

IDLE = 5.0
"""Seconds between two looks when nothing is open and nothing happens."""
BUSY = 1.0
"""Seconds between two looks while builds are open: backoff and time limits are kept to this."""
MOMENT = 0.5
"""Seconds of acting between two looks."""
TOLD_AT_ONCE = 50
"""What became of so many tries of a delivery is written down between two plans."""
HOUSEKEEPING = timedelta(minutes=10)
"""Between two looks at what has ended; less where it is to be kept for less than that."""
SWEEP = 20
"""Builds of which something is deleted between two looks: thousands may be due at once, and what is new cannot wait."""


class Courier(Protocol):
    """Gives events to sinks; never blocks. `done` may be called from any thread."""

    def send(self, event: Event, sink: Sink, done: Callable[[Outcome], None]) -> None: ...


class Confirmer(Protocol):
    """Asks the registry whether a build's image is still there. Raises any exception where it cannot know."""

    def __call__(self, build: Build, /) -> Image | None: ...


class Inspector(Protocol):
    """Asks the registry for the image that an attempt has pushed. Raises any exception where it cannot know."""

    def __call__(self, build: Build, attempt: Attempt, /) -> Image | None: ...


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one try at a delivery."""

    build: str
    event: str
    sink: str
    outcome: Outcome


class Controller:
    """The one that acts. `events` makes an event: (build, word, attempt, time, cause) → Event."""

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Limits,
        sinks: Sequence[Sink],
        courier: Courier,
        confirmer: Confirmer,
        inspector: Inspector,
        events: Callable[[Build, Word, int, datetime, Cause | None], Event],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._sinks: Mapping[str, Sink] = {sink.name: sink for sink in sinks}
        self._courier = courier
        self._confirmer = confirmer
        self._inspector = inspector
        self._events = events
        self._clock = clock
        self._monotonic = monotonic
        self._first_seen: dict[tuple[str, int, Phase], float] = {}
        self._turns = Turns()
        self._unfit: list[Attempt] = []
        self._stopped: set[tuple[str, int]] = set()
        self._troubles: dict[tuple[str, int], str] = {}
        self._sending: set[tuple[str, str]] = set()
        self._told: SimpleQueue[Told] = SimpleQueue()
        self._unrecorded: list[Told] = []
        self._recorded = False
        self._confirming: set[str] = set()
        self._confirmations: dict[str, Confirmation] = {}
        self._inspecting: set[tuple[str, int]] = set()
        self._inspections: dict[tuple[str, int], Inspection] = {}
        self._registry = ThreadPoolExecutor(2, thread_name_prefix="confirm")
        self._tidied: datetime | None = None
        self._sweep: Iterator[Build] | None = None
        self._open = False
        self._unavailable = ""

    def run(self, over: Callable[[], bool]) -> None:
        """Until it is `over`. Attempts that run then go on; the next controller adopts them."""
        try:
            while not over():
                self._engine.wait(self._turn())
        finally:
            self._registry.shutdown(wait=False, cancel_futures=True)

    def _turn(self) -> float:
        """Looks until there is nothing to do; returns for how many seconds nothing is expected."""
        try:
            while self.look():
                pass
            more = self._tidy()
        except Unavailable as error:
            if str(error) != self._unavailable:  # one that stands by says the same for weeks
                log.warning("There is nothing to be done now: %s", error)
            self._unavailable = str(error)
            self._count(())
            return BUSY
        self._unavailable = ""
        return 0.0 if more else BUSY if self._open else IDLE

    def look(self) -> bool:
        """One look and what follows from it. Returns whether it changed anything."""
        with metrics.LOOKS.time():
            world = self._engine.observe()
            self._open = bool(world.builds)
            builds = {build.name: build for build in world.builds}
            self._drop({*builds} - {build.name for build in world.deleted})
            for build in world.deleted:
                self._deleted(build)
            self._count(world.builds)
            recorded, self._recorded = self._recorded, False
            if not recorded and self._record_told(builds):
                self._recorded = True  # the next look is for what waits: a thousand deliveries must not hold a start up
                return True
            now = self._clock()
            self._unfit = [attempt for attempt in self._unfit if left_out_until(attempt, now)]
            facts = Facts(
                builds=world.builds,
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
                turns=self._turns,
                unfit=self._unfit,
            )
            return self._carry_out(plan(facts, self._limits, now), builds) or recorded

    def _carry_out(self, actions: Sequence[Action], builds: Mapping[str, Build]) -> bool:
        """The urgent ones first, and no more than fit into a moment: then it is time to look again for urgent ones.

        They are about different records, so their order is free. Returns whether the world has changed.
        """
        changed, until = False, self._monotonic() + MOMENT
        for action in sorted(actions, key=_urgency):
            changed |= self._act(builds[action.build], action)
            if changed and self._monotonic() > until:
                break
        return changed

    def _with_trouble(self, sighting: Sighting) -> Sighting:
        """Why an attempt could not be started is known here, and by nobody else."""
        if sighting.waiting or sighting.phase is not Phase.ABSENT:
            return sighting
        return msgspec.structs.replace(sighting, waiting=self._troubles.get((sighting.build, sighting.attempt)))

    def _watched(self, world: World) -> dict[tuple[str, int], timedelta]:
        """For how long each attempt has been seen in the phase that it is in."""
        now = self._monotonic()
        seen = {(sighting.build, sighting.attempt, sighting.phase) for sighting in world.sightings}
        self._first_seen = {key: self._first_seen.get(key, now) for key in seen}
        return {key[:2]: timedelta(seconds=now - since) for key, since in self._first_seen.items()}

    def _drop(self, open_: set[str]) -> None:
        """Forgets what was known of builds that are not open any more: some end without a word of ours."""
        self._stopped = {key for key in self._stopped if key[0] in open_}
        self._troubles = {key: why for key, why in self._troubles.items() if key[0] in open_}
        for name in {*self._confirmations} - open_:
            del self._confirmations[name]
        for key in [key for key in (*self._inspections,) if key[0] not in open_]:
            del self._inspections[key]

    # ---- Actions --------------------------------------------------------------------------------------------------

    def _act(self, build: Build, action: Action) -> bool:
        """Carries out one action. Returns whether the world has changed by it."""
        try:
            match action:
                case Start():
                    return self._start(build, action)
                case Deliver():
                    return self._deliver(build, action)
                case Confirm() | Inspect():
                    return self._ask_registry(build, action)
                case _:
                    after = self._write(build, action)
                    self._after(after, action)
                    return True
        except Conflict:
            metrics.CONFLICTS.inc()
            return True
        except NotFound:
            log.warning("The record has gone", extra={"build": build.name})
            return False

    def _write(self, build: Build, action: Action) -> Build:
        now = self._clock()
        return self._engine.write(advance(build, action, now, self._announce(now)))

    def _announce(self, now: datetime) -> Announce:
        def announce(
            after: Build, word: Word, attempt: int, cause: Cause | None
        ) -> list[tuple[Event, tuple[str, ...]]]:
            event = self._events(after, word, attempt, now, cause)
            return [(event, tuple(name for name, sink in self._sinks.items() if wanted(sink, event.type)))]

        return announce

    def _after(self, build: Build, action: Action) -> None:
        """What follows a write: the effect, and what is worth telling."""
        match action:
            case Stop():
                live = build.live
                if live is not None:
                    self._engine.stop(build, live)
                    self._stopped.add((build.name, live.number))
            case Report():
                self._reported(build, action)
            case Bury():
                self._dead(build.name, action.event, action.sink, "not taken within KILN_DELIVERY_PERIOD")
            case _ if not build.open:
                # Its nodes stay left out: the next build must not find out again what this one has.
                self._unfit += [attempt for attempt in build.status.attempts if attempt.unfit]
                reached(Fault.CONTROLLER_SETTLED)

    def _reported(self, build: Build, report: Report) -> None:
        reached(Fault.CONTROLLER_END_WRITTEN if report.word.terminal else Fault.CONTROLLER_ANNOUNCED)
        self._confirmations.pop(build.name, None)
        self._inspections.pop((build.name, report.attempt), None)
        self._told_of(build, report)
        if report.outcome is not None and not report.causes:
            self._stopped.discard((build.name, report.attempt))
            self._troubles.pop((build.name, report.attempt), None)

    def _told_of(self, build: Build, report: Report) -> None:
        """In the log, and in the metrics."""
        outcome = report.outcome
        log.info(
            "Build %s%s",
            report.word,
            f": {outcome.message}" if outcome and outcome.message else "",
            extra={"build": build.name, "attempt": report.attempt},
        )
        if outcome is None or report.causes:
            return
        metrics.ATTEMPTS.labels(outcome.state, outcome.reason or "").inc()
        if report.word.terminal:
            metrics.ENDED.labels(outcome.state, outcome.reason or "").inc()
            if build.status.finished_at and build.status.queued_at:
                took = (build.status.finished_at - build.status.queued_at).total_seconds()
                metrics.SECONDS.labels(outcome.state).observe(took)

    def _start(self, build: Build, start: Start) -> bool:
        """The start is in the record before the attempt exists: who finds it there completes it under the same name."""
        live = build.live
        if live is None:
            build = self._write(build, start)
            live = build.live
            self._turns = self._turns.after(build)
            reached(Fault.CONTROLLER_START_WRITTEN)
        assert live is not None  # noqa: S101  (it has just been written)
        try:
            self._engine.start(build, live)
        except Unavailable as error:
            log.warning("The attempt cannot be started: %s", error, extra={"build": build.name})
            self._troubles[build.name, live.number] = str(error)
            return False
        self._troubles.pop((build.name, live.number), None)
        return True

    def _deliver(self, build: Build, deliver: Deliver) -> bool:
        event = next(a.event for a in build.status.outbox if a.event.id == deliver.event)
        sink = self._sinks.get(deliver.sink)
        if sink is None:
            gone = Outcome(delivered=False, final=True, error="No sink of that name is configured any more.")
            self._tell(Told(build=build.name, event=event.id, sink=deliver.sink, outcome=gone))
            return True
        self._sending.add((event.id, sink.name))

        def done(outcome: Outcome) -> None:
            self._tell(Told(build=build.name, event=event.id, sink=deliver.sink, outcome=outcome))

        self._courier.send(event, sink, done)
        return False

    def _tell(self, told: Told) -> None:
        if told.outcome.delivered:
            reached(Fault.CONTROLLER_SENT)
        self._told.put(told)
        self._engine.wake()

    def _ask_registry(self, build: Build, action: Confirm | Inspect) -> bool:
        """On a thread of its own: a registry may take long to answer, and no look waits for it."""
        if isinstance(action, Inspect):
            self._ask(build, self._inspecting, (build.name, action.attempt), self._inspect)
        else:
            self._ask(build, self._confirming, build.name, self._confirm)
        return False

    def _confirm(self, build: Build) -> None:
        asking = tuple(cause.key for cause in build.unanswered)
        self._confirmations[build.name] = Confirmation(image=self._confirmer(build), causes=asking)

    def _inspect(self, build: Build) -> None:
        if (live := build.live) is not None:
            self._inspections[build.name, live.number] = Inspection(image=self._inspector(build, live))

    def _ask(self, build: Build, asking: set[K], key: K, question: Callable[[Build], None]) -> None:
        asking.add(key)

        def ask() -> None:
            try:
                question(build)
            except Exception as error:  # noqa: BLE001  (whatever it is, the question stays open and is asked again)
                log.warning(
                    "The registry does not say whether the image is there: %s", error, extra={"build": build.name}
                )
                time.sleep(BUSY)  # or it would be asked again at once
            finally:
                asking.discard(key)
                self._engine.wake()

        self._registry.submit(ask)

    def _deleted(self, build: Build) -> None:
        """Tells of the end of a build whose record has gone. There is nothing to write it into: it is sent once."""
        log.warning("The record of an open build was deleted", extra={"build": build.name})
        report = deleted(build)
        if report is None:
            return
        now = self._clock()
        after = advance(build, report, now, self._announce(now))
        for announcement in after.status.outbox[len(build.status.outbox) :]:
            for delivery in announcement.deliveries:
                self._send_once(announcement.event, self._sinks[delivery.sink], build.name)
        self._told_of(after, report)

    def _send_once(self, event: Event, sink: Sink, build: str) -> None:
        def done(outcome: Outcome) -> None:
            metrics.DELIVERIES.labels(_word(outcome)).inc()
            if not outcome.delivered:
                self._dead(build, event.id, sink.name, outcome.error or "refused")

        self._courier.send(event, sink, done)

    # ---- Deliveries -----------------------------------------------------------------------------------------------

    def _record_told(self, builds: Mapping[str, Build]) -> bool:
        """Writes down what became of deliveries. What meets a conflict is written at the next look."""
        told, self._unrecorded = self._unrecorded[:TOLD_AT_ONCE], self._unrecorded[TOLD_AT_ONCE:]
        while len(told) < TOLD_AT_ONCE:
            try:
                told.append(self._told.get_nowait())
            except Empty:
                break
        current = dict(builds)
        for one in told:
            build = current.get(one.build)
            if build is not None:
                try:
                    current[one.build] = self._engine.write(self._after_try(build, one))
                except Conflict:
                    self._unrecorded.append(one)
                    continue
                except NotFound:
                    pass
                except EngineError:
                    self._unrecorded.extend(told[told.index(one) :])
                    raise
            self._sending.discard((one.event, one.sink))
            self._count_try(one)
            reached(Fault.CONTROLLER_DELIVERED)
        return bool(told)

    def _after_try(self, build: Build, told: Told) -> Build:
        outcome, now = told.outcome, self._clock()
        if outcome.delivered:
            return delivered(build, told.event, told.sink, now, error=None)
        error = outcome.error or "no reason given"
        if outcome.final:
            return delivered(build, told.event, told.sink, now, error=error, dead=True)
        tries = next(
            (
                d.tries
                for a in build.status.outbox
                for d in a.deliveries
                if (d.event, d.sink) == (told.event, told.sink)
            ),
            0,
        )
        seconds = pause(tries + 1, outcome.retry_after)
        return undelivered(build, told.event, told.sink, now, error=error, pause=timedelta(seconds=seconds))

    def _count_try(self, told: Told) -> None:
        outcome = told.outcome
        metrics.DELIVERIES.labels(_word(outcome)).inc()
        if outcome.final and not outcome.delivered:
            self._dead(told.build, told.event, told.sink, outcome.error or "refused")

    def _dead(self, build: str, event: str, sink: str, why: str) -> None:
        metrics.DEAD_LETTERS.inc()
        log.error("Dead letter: sink %s has not got event %s: %s", sink, event, why, extra={"build": build})

    # ---- Housekeeping ---------------------------------------------------------------------------------------------

    def _tidy(self) -> bool:
        """Deletes some of what is over its time. Returns whether there is more of it.

        The clock may have been set back: then it is done once more.
        """
        now = self._clock()
        kept = min(self._limits.history, self._limits.log_history)
        pause = max(timedelta(seconds=IDLE), min(HOUSEKEEPING, kept))
        if self._sweep is None:
            if self._tidied is not None and timedelta() <= now - self._tidied < pause:
                return False
            self._tidied = now
            self._sweep = self._engine.closed(now - kept)
        some = list(islice(self._sweep, SWEEP))
        for build in some:
            match expired(build, self._limits, now):
                case Forget():
                    self._engine.forget(build)
                case ForgetLogs():
                    self._engine.forget_logs(build)
        if len(some) < SWEEP:
            self._sweep = None
        return self._sweep is not None

    def _count(self, builds: Sequence[Build]) -> None:
        states = [build.state for build in builds]
        for state in (State.QUEUED, State.RUNNING):
            metrics.BUILDS.labels(state).set(states.count(state))


def _word(outcome: Outcome) -> str:
    """As the metric has it."""
    return "delivered" if outcome.delivered else "refused" if outcome.final else "failed"


def _urgency(action: Action) -> int:
    """Lower goes first: what a slot, or somebody who waits for an end, depends on."""
    match action:
        case Start() | Stop():
            return 0
        case Report(word=word) if word is not Word.QUEUED:
            return 1
        case Deliver() | Confirm() | Inspect():
            return 2
        case _:
            return 3

"""The controller's loop over a real engine. `test_plan` tests the decisions."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from builds import report
from builds.build import Announcement, Attempt, Build, Cause, Delivery, DeliveryState, Image, Node, Phase, State
from builds.controller import SWEEP, SWEEP_SHARE, Controller
from builds.engines import NotFound, Refused, Unavailable, World
from builds.engines.local import LocalEngine
from builds.plan import Limits, Word
from eventing.cdevents import TYPES
from eventing.event import Event
from eventing.sinks import Outcome, Sink
from tests.builds.engine_contract import everything
from tests.builds.engine_factories import AT, local_engine, new_submission, settled_build, start_build, started_build
from tests.builds.plan_factories import IMAGE
from tests.parts.kiln import until

HUB = Sink(name="hub", url="https://hub.example/events")


class Post:
    """Keep the events sent, and give every delivery the outcome `answer`."""

    def __init__(self, answer: Outcome, *sinks: Sink) -> None:
        self.answer = answer
        self.sinks = sinks or (HUB,)
        self.sent: list[Event] = []
        self.by_sink: dict[str, list[Event]] = {sink.name: [] for sink in self.sinks}

    def send(self, event: Event, sink: Sink, done: Callable[[Outcome], None]) -> None:
        self.sent.append(event)
        self.by_sink[sink.name].append(event)
        done(self.answer)


DELIVERED = Outcome(delivered=True, final=True)
REFUSED = Outcome(delivered=False, final=True, error="answered 400")
AWAY = Outcome(delivered=False, final=False, error="answered 503")


class Clock:
    now = AT


class Seen(LocalEngine):
    """A local engine whose observations pass through `change` before the controller gets them."""

    change: Callable[[World], World] = staticmethod(lambda world: world)

    def observe(self, in_flight: Collection[str] = ()) -> World:
        return self.change(super().observe(in_flight))


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    local = local_engine(tmp_path, kind=Seen)
    assert isinstance(local, Seen)
    yield local
    local.close()


def never(*_: object) -> Image | None:
    raise AssertionError


def event(build: Build, word: Word, attempt: int, now: datetime, cause: Cause | None) -> Event:
    return report.event(build, word, attempt, source="/test", now=now, cause=cause)


@contextmanager
def running(
    engine: LocalEngine,
    clock: Clock,
    *,
    post: Post | None = None,
    inspector: Callable[[Build, Attempt], Image | None] = never,
    **limits: timedelta | int,
) -> Iterator[None]:
    controller = Controller(
        engine,
        limits=Limits(**limits),  # type: ignore[arg-type]
        sinks=post.sinks if post else [],
        sender=post or Post(REFUSED),
        confirmer=never,
        inspector=inspector,
        events=event,
        clock=lambda: clock.now,
    )
    stop = threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop.is_set,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        engine.wake()
        thread.join(20)


def gone(engine: LocalEngine, name: str) -> bool:
    try:
        engine.get(name)
    except NotFound:
        return True
    return False


@pytest.mark.parametrize("kept", [timedelta(seconds=7), timedelta(days=7)])
def test_what_has_ended_is_kept_no_longer_than_it_is_to_be(tmp_path: Path, kept: timedelta) -> None:
    """The controller deletes first the logs, then the record, even with a short retention."""
    engine, clock = local_engine(tmp_path, now=lambda: AT), Clock()
    try:
        (build,) = engine.accept([new_submission()])
        engine.write(settled_build(build))
        folder = tmp_path / "attempts" / "b-1"
        folder.mkdir()
        with running(engine, clock, log_history=kept, history=3 * kept):
            engine.accept([new_submission("other")])
            until(lambda: engine.get("other").status.round)  # one check is over, and nothing was due
            assert folder.exists()
            clock.now += kept
            engine.wake()
            until(lambda: not folder.exists())
            assert not gone(engine, "b")
            clock.now += 2 * kept
            engine.wake()
            until(lambda: gone(engine, "b"))
    finally:
        engine.close()


class Keeping(LocalEngine):
    """An engine that cannot archive the log of the build "first"."""

    kept: ClassVar[list[tuple[str, int]]] = []

    def keep_log(self, build: Build, attempt: int) -> None:
        self.kept.append((build.name, attempt))
        if build.name == "first":
            raise Unavailable("The kubelet is away.")


def test_the_log_of_each_attempt_is_kept_when_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log that cannot be archived does not delay its build."""
    engine = local_engine(tmp_path, kind=Keeping)
    try:
        for name in ("first", "second"):
            start_build(engine, name)
        with running(engine, Clock()):
            until(lambda: sorted(Keeping.kept) == [("first", 1), ("second", 1)])
            until(lambda: engine.get("first").status.state is State.SUCCEEDED)
    finally:
        engine.close()
    assert "Log not archived yet: The kubelet is away." in caplog.messages


def test_between_two_looks_at_what_is_new_little_of_what_is_old_is_deleted(seen: Seen) -> None:
    for build in seen.accept([new_submission(f"b{n}") for n in range(5 * SWEEP)]):
        seen.write(settled_build(build))
    left: list[int] = []

    def counted(world: World) -> World:
        left.append(len(everything(seen)))
        return world

    seen.change = counted
    clock = Clock()
    clock.now += timedelta(days=8)
    with running(seen, clock):
        until(lambda: not everything(seen))
        until(lambda: left[-1] == 0)
    assert {before - after for before, after in pairwise(left)} <= {0, SWEEP}


class Slow(Seen):
    """An engine whose history takes a second per piece, on a clock that only reading and waiting advance."""

    seconds = 0.0
    pieces = 0

    def closed(self, before: datetime) -> Iterator[None]:  # type: ignore[override]  # noqa: ARG002
        while True:
            self.seconds += 1
            self.pieces += 1
            yield None

    def wait(self, timeout: float) -> None:
        self.seconds += timeout


@pytest.mark.parametrize("busy", [True, False])
def test_while_builds_are_open_little_of_the_time_goes_to_what_has_ended(tmp_path: Path, *, busy: bool) -> None:
    with closing(local_engine(tmp_path, kind=Slow)) as engine:
        assert isinstance(engine, Slow)
        if busy:
            engine.accept([new_submission()])
        controller = Controller(
            engine,
            limits=Limits(),
            sinks=[],
            sender=Post(REFUSED),
            confirmer=never,
            inspector=never,
            events=event,
            monotonic=lambda: engine.seconds,
        )
        controller.run(lambda: engine.pieces == 5)
        assert engine.seconds >= 5 + 4 * SWEEP_SHARE if busy else engine.seconds == 5


# ---- Formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("do", "kinds"),
    [
        ("succeed", ["build.queued", "build.started", "artifact.packaged", "artifact.published", "build.finished"]),
        ("environment", ["build.queued", "build.started", "build.finished"]),
    ],
)
def test_each_sink_is_told_in_its_own_words(counted: Counted, do: str, kinds: list[str]) -> None:
    """CDEvents are recorded and counted one by one, like Kiln's own events."""
    url = "https://sink.example/"
    all_of_them = Sink(name="all", url=url, format="cdevents")
    ends = Sink(name="ends", url=url, format="cdevents", types=("dev.cdevents.build.finished.*",))
    successes = Sink(name="successes", url=url, format="cdevents", types=("dev.kiln.build.succeeded.v1",))
    post = Post(DELIVERED, HUB, all_of_them, ends, successes)
    counted.change = with_node
    with running(counted, Clock(), post=post):
        counted.accept([new_submission(args={"do": do})])
        until(lambda: not counted.get("b").open)
    own, whole = post.by_sink["hub"], post.by_sink["all"]
    assert [event.type.split(".")[3] for event in own][:2] == ["queued", "started"]
    assert len(own) == 3
    assert [event.type for event in whole] == [TYPES[kind] for kind in kinds]  # type: ignore[index]
    assert post.by_sink["ends"] == whole[-1:]
    assert post.by_sink["successes"] == (whole[2:] if do == "succeed" else [])
    told = counted.get("b").status.deliveries
    assert {(each.sink, each.event) for each in told} == {
        (sink, event.id) for sink, events in post.by_sink.items() for event in events
    }


# ---- What only a cluster does -------------------------------------------------------------------------------------


def dead_letters() -> float:
    return REGISTRY.get_sample_value("kiln_dead_letters_total") or 0.0


def deleted_by_hand(state: Path, name: str) -> None:
    with closing(sqlite3.connect(state / "kiln.db")) as connection, connection:
        connection.execute("DELETE FROM builds WHERE name = ?", (name,))


@pytest.mark.parametrize("answer", [DELIVERED, REFUSED, AWAY])
def test_an_event_that_waits_when_its_record_is_deleted_is_sent_once_more_or_dead(
    tmp_path: Path, answer: Outcome
) -> None:
    engine, post, before = local_engine(tmp_path), Post(AWAY), dead_letters()
    try:
        with running(engine, Clock(), post=post):
            engine.accept([new_submission()])
            until(lambda: engine.get("b").status.outbox and engine.get("b").status.outbox[0].deliveries[0].tries)
            (first,) = post.sent
            post.answer = answer
            deleted_by_hand(tmp_path, "b")
            until(lambda: any(told.type == "dev.kiln.build.cancelled.v1" for told in post.sent))
        assert sorted(told.id for told in post.sent[1:]) == sorted([first.id, first.id.replace("queued", "cancelled")])
        assert dead_letters() - before == (0 if answer is DELIVERED else 2)
    finally:
        engine.close()


def test_an_attempt_whose_record_was_deleted_ends_and_leaves_nothing(tmp_path: Path) -> None:
    engine = local_engine(tmp_path)
    try:
        start_build(engine, "b", "wait")
        with running(engine, Clock(), post=Post(DELIVERED)):
            until((tmp_path / "attempts" / "b-1" / "ready").exists)
            deleted_by_hand(tmp_path, "b")
            until(lambda: not (tmp_path / "attempts" / "b-1").exists())
    finally:
        engine.close()


@pytest.mark.parametrize("answer", [DELIVERED, REFUSED])
def test_who_deletes_an_open_record_cancels_its_build(
    seen: Seen, answer: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    """The event is sent once, from memory: the record that could keep it is gone."""
    post = Post(answer)
    gone: list[Build] = []

    def deleted(world: World) -> World:
        told, gone[:] = tuple(gone), []
        return replace(world, deleted=told)

    seen.change = deleted
    build = start_build(seen, "b", "wait")
    done = replace(settled_build(seen.accept([new_submission("done")])[0]), open=True)
    with running(seen, Clock(), post=post):
        until(lambda: seen.get("b").state is State.RUNNING)
        build = seen.get("b")
        assert build.live
        seen.stop(build, build.live)
        seen.forget(build)
        gone += [build, done]
        seen.wake()
        until(lambda: any(event.type == "dev.kiln.build.cancelled.v1" for event in post.sent))
        seen.wake()
        seen.accept([new_submission("other")])
        until(lambda: seen.get("other").status.round)
    (told,) = [event for event in post.sent if event.type == "dev.kiln.build.cancelled.v1"]
    assert told.id == f"{build.uid}.1.cancelled"
    assert isinstance(told.data, dict)
    assert (told.data["state"], told.data["reason"], told.data["message"]) == (
        "cancelled",
        "deleted",
        "Its record was deleted.",
    )
    dead = [entry for entry in caplog.records if "Dead letter" in entry.message and told.id in entry.message]
    assert bool(dead) is (answer is REFUSED)


def lost(world: World) -> World:
    sightings = [
        replace(sighting, result=None, result_lost=True) if sighting.phase is Phase.ENDED else sighting
        for sighting in world.sightings
    ]
    return replace(world, sightings=tuple(sightings))


def test_a_lost_result_is_asked_for_until_the_registry_answers(seen: Seen) -> None:
    seen.change = lost
    start_build(seen)
    asked: list[tuple[str, int]] = []

    def inspect(build: Build, attempt: Attempt) -> Image | None:
        asked.append((build.name, attempt.number))
        if len(asked) == 1:
            raise Unavailable("The registry is away.")
        return IMAGE

    with running(seen, Clock(), inspector=inspect):
        until(lambda: seen.get("b").state is State.SUCCEEDED)
    assert seen.get("b").status.image == IMAGE
    assert asked == [("b", 1), ("b", 1)]


def test_one_that_stands_by_says_so_once_and_goes_on(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    leads = threading.Event()
    looks: list[int] = []

    def only_the_leader(world: World) -> World:
        looks.append(1)
        if not leads.is_set():
            raise Unavailable("Another controller leads.")
        return world

    seen.change = only_the_leader
    seen.accept([new_submission()])
    with caplog.at_level(logging.WARNING), running(seen, Clock()):
        until(lambda: len(looks) > 2)
        leads.set()
        until(lambda: seen.get("b").status.round)
    assert len([entry for entry in caplog.records if "Another controller leads." in entry.message]) == 1


# ---- Side by side -------------------------------------------------------------------------------------------------


class Counted(Seen):
    """Count the writes, refuse those of some records, and optionally block all until several have begun."""

    refused: frozenset[str] = frozenset()
    together: threading.Barrier | None = None
    wrong: Mapping[str, Exception] = {}

    def write(self, build: Build) -> Build:
        self.writes.append(build)
        if build.name in self.wrong:
            raise self.wrong[build.name]
        if build.name in self.refused:
            raise Refused("A policy denies it.")
        if self.together:
            self.together.wait(10)
        return super().write(build)

    @cached_property
    def writes(self) -> list[Build]:
        return []


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    local = local_engine(tmp_path, kind=Counted)
    assert isinstance(local, Counted)
    yield local
    local.close()


def with_node(world: World) -> World:
    return replace(world, nodes=(Node(name="local"),))


def test_from_a_record_to_its_attempt_is_one_write(counted: Counted) -> None:
    counted.change = with_node
    counted.accept([new_submission(args={"do": "wait"})])
    with running(counted, Clock()):
        until(lambda: counted.get("b").state is State.RUNNING)
        build = counted.get("b")
        assert build.live
        counted.stop(build, build.live)
    assert [(one.status.round, one.live is not None, one.status.started_at) for one in counted.writes[:1]] == [
        (1, True, None)
    ]
    assert counted.writes[1].status.started_at is not None, "nothing is written in between"


def test_records_are_written_side_by_side(counted: Counted) -> None:
    """Each write waits until the others have begun, so sequential writes would never end."""
    counted.together = threading.Barrier(3)
    counted.accept([new_submission(name) for name in "abc"])
    with running(counted, Clock()):
        until(lambda: all(counted.get(name).status.round for name in "abc"))


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"kiln_{name}", labels) or 0.0


def test_the_queue_the_slots_and_who_leads_are_counted(counted: Counted) -> None:
    counted.change = with_node
    counted.accept([new_submission(name, args={"do": "wait"}) for name in ("a", "b")])
    clock = Clock()
    clock.now = datetime.now(UTC)
    with running(counted, clock, builds_per_node=1):
        until(lambda: metric("slots", state="used") == 1 and metric("builds", state="queued") == 1)
        assert metric("slots", state="free") == 0
        assert metric("leader") == 1
        clock.now += timedelta(seconds=300)
        counted.wake()
        until(lambda: metric("queue_age_seconds") >= 300)
        until(lambda: State.RUNNING in [counted.get(name).state for name in "ab"])
    [running_one] = [build for build in map(counted.get, "ab") if build.live]
    assert running_one.live
    counted.stop(running_one, running_one.live)
    names = (("slots", "used"), ("slots", "free"), ("builds", "queued"), ("builds", "running"))
    assert [metric(name, state=state) for name, state in names] == [0, 0, 0, 0]
    assert metric("leader") == metric("queue_age_seconds") == 0


def test_who_cannot_act_does_not_lead(counted: Counted) -> None:
    def away(world: World) -> World:
        raise Unavailable("Another one leads.")

    with running(counted, Clock()):
        until(lambda: metric("leader") == 1)
        counted.change = away
        counted.wake()
        until(lambda: metric("leader") == 0)


def test_phases_and_images_that_were_there_already_are_counted(counted: Counted) -> None:
    """The builder of these tests pushes an image and reports no phase."""
    counted.change = with_node
    counted.accept([new_submission(args={"do": "succeed"})])
    names = ("phase_seconds_count", "images_found_total")
    before = [metric(names[0], phase="queue"), metric(names[1])]
    with running(counted, Clock()):
        until(lambda: counted.get("b").state is State.SUCCEEDED and metric(names[1]) == before[1] + 1)
        assert metric(names[0], phase="queue") == before[0] + 1


class Held(Counted):
    """Block starts and writes of the records in `held` until `going_on` is set."""

    held: frozenset[str] = frozenset()

    @cached_property
    def going_on(self) -> threading.Event:
        return threading.Event()

    @cached_property
    def waiting(self) -> set[str]:
        return set()

    def write(self, build: Build) -> Build:
        if build.name in self.held:
            self.waiting.add(build.name)
            assert self.going_on.wait(60)
        return super().write(build)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    local = local_engine(tmp_path, kind=Held)
    assert isinstance(local, Held)
    yield local
    local.going_on.set()
    local.close()


def test_nothing_waits_for_the_write_of_another_record(held: Held) -> None:
    """A slow write of one record delays no build that arrives meanwhile."""
    held.held, held.change = frozenset({"slow"}), with_node
    held.accept([new_submission("slow")])
    with running(held, Clock(), builds_per_node=2):
        until(lambda: held.waiting)
        for name in ("one", "two"):
            held.accept([new_submission(name, args={"do": "succeed"})])
            until(lambda name=name: held.get(name).state is State.SUCCEEDED)  # type: ignore[misc]
        assert held.get("slow").status.round == 0
        held.going_on.set()
        until(lambda: held.get("slow").live)


def test_a_write_that_will_never_end_stops_the_looks_and_with_them_the_pulse(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a pulse the process ends, and another one takes over."""
    held.held = frozenset({"slow"})
    held.accept([new_submission("slow")])
    looks, turns = list[World](), list[float]()
    held.change = lambda world: looks.append(world) or world
    held.wait = lambda timeout: turns.append(timeout) or LocalEngine.wait(held, 0.01)  # type: ignore[method-assign]
    with running(held, Clock()):
        until(lambda: held.waiting)
        monkeypatch.setattr("builds.writers.BLOCKED_AFTER", 0.0)
        turned = len(turns)
        until(lambda: len(turns) >= turned + 2)  # a round may have been under way
        seen = len(looks)
        until(lambda: len(turns) >= turned + 7)
        assert len(looks) == seen
        held.going_on.set()
        until(lambda: len(looks) > seen)


def test_a_start_has_its_slot_while_it_is_written(held: Held) -> None:
    held.held, held.change = frozenset({"slow"}), with_node
    held.accept([new_submission("slow", args={"do": "succeed"})])
    with running(held, Clock(), builds_per_node=1):
        until(lambda: held.waiting)
        held.accept([new_submission("next", args={"do": "succeed"})])
        until(lambda: held.get("next").status.waiting)
        assert held.get("next").live is None
        held.going_on.set()
        until(lambda: held.get("next").state is State.SUCCEEDED)
    assert held.get("slow").state is State.SUCCEEDED


def test_what_has_changed_while_it_was_written_is_decided_anew(held: Held) -> None:
    """A cancellation that arrives during the write is not overwritten."""
    held.held, held.change = frozenset({"slow"}), with_node
    held.accept([new_submission("slow", args={"do": "wait"})])
    with running(held, Clock()):
        until(lambda: held.waiting)
        held.cancel("slow", None)
        held.going_on.set()
        until(lambda: held.get("slow").state is State.CANCELLED)
    assert held.get("slow").status.attempts == ()


def test_a_record_that_is_refused_harms_no_other(counted: Counted, caplog: pytest.LogCaptureFixture) -> None:
    counted.refused = frozenset({"bad"})
    counted.accept([new_submission(name) for name in ("bad", "good", "fine")])
    with running(counted, Clock()):
        until(lambda: counted.get("good").status.round and counted.get("fine").status.round)
        until(lambda: REGISTRY.get_sample_value("kiln_records_put_aside") == 1)
        counted.accept([new_submission("later")])
        until(lambda: counted.get("later").status.round)
    assert counted.get("bad").status.round == 0
    tried = [build for build in counted.writes if build.name == "bad"]
    assert len(tried) == 1, "not again before its pause is over"
    (told,) = [entry for entry in caplog.records if entry.message.startswith("Record quarantined")]
    assert vars(told)["build"] == "bad"


def test_a_record_that_was_put_aside_goes_on_when_somebody_has_changed_it(counted: Counted) -> None:
    counted.refused = frozenset({"bad"})
    counted.accept([new_submission("bad")])
    with running(counted, Clock()):
        until(lambda: REGISTRY.get_sample_value("kiln_records_put_aside") == 1)
        counted.refused = frozenset()
        counted.accept([new_submission("bad", "2")])
        until(lambda: counted.get("bad").status.round)


def test_a_record_that_cannot_be_planned_harms_no_other(counted: Counted, caplog: pytest.LogCaptureFixture) -> None:
    """The record has a time without zone, so no comparison with it succeeds."""

    def edited(world: World) -> World:
        naive = datetime(2026, 1, 1)  # noqa: DTZ001
        builds = [
            replace(one, status=replace(one.status, round=1, not_before=naive)) if one.name == "bad" else one
            for one in world.builds
        ]
        return replace(with_node(world), builds=tuple(builds))

    counted.change = edited
    counted.accept([new_submission(name, args={"do": "succeed"}) for name in ("bad", "good")])
    with running(counted, Clock()):
        until(lambda: counted.get("good").state is State.SUCCEEDED)
    assert counted.get("bad").status.round == 0
    assert [entry for entry in caplog.records if entry.message.startswith("Record quarantined")]


UNREADABLE = (b"", b"not JSON", b"\xff\xfe", b"[]", b'{"version":1}', b'{"version":2,"new":{}}', b"[" * 50000)
UNWRITABLE = (Refused("A policy denies it."), NotFound("Gone, it says."), ValueError("no such value"), KeyError("x"))


def test_whatever_is_wrong_with_some_records_fifty_others_end(
    counted: Counted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad record for each way to be unreadable or unwritable, and for attempts that cannot be inspected."""
    unreadable = {f"unreadable-{n}": content for n, content in enumerate(UNREADABLE)}
    counted.wrong = {f"unwritable-{n}": error for n, error in enumerate(UNWRITABLE)}
    (no_event,) = counted.accept([new_submission("no-event")])
    waiting = Delivery(sink="hub", event="of-no-announcement", type="t", due_at=AT)
    told = Announcement(event=Event(id="other", source="/s", type="t"), at=AT, deliveries=(waiting,))
    Seen.write(counted, replace(no_event, status=replace(no_event.status, round=1, outbox=(told,))))
    (no_time,) = counted.accept([new_submission("no-time")])
    far = datetime.max.replace(tzinfo=UTC)
    attempt = Attempt(number=1, node="other", written_at=AT, state=State.FAILED, quarantine=True, finished_at=far)
    Seen.write(counted, replace(no_time, status=replace(no_time.status, round=1, attempt=2, attempts=(attempt,))))
    counted.accept([new_submission("no-file-has-a-\0")])
    for name in ("no-folder", "no-spec"):
        started_build(counted, name)
    attempts = tmp_path / "attempts"
    (attempts / "no-folder-1").write_text("")
    (attempts / "no-spec-1" / "spec.json").mkdir(parents=True)
    (attempts / "no-spec-1" / "lock").touch()
    counted.accept([new_submission(name) for name in (*unreadable, *counted.wrong)])
    with closing(sqlite3.connect(tmp_path / "kiln.db")) as connection, connection:
        for name, content in unreadable.items():
            connection.execute("UPDATE builds SET record = ? WHERE name = ?", (content, name))
    good = [f"good-{n}" for n in range(50)]
    counted.accept([new_submission(name, args={"do": "succeed"}) for name in good])
    bad = {*unreadable, *counted.wrong, "no-event", "no-time", "no-folder", "no-spec", "no-file-has-a-\0"}
    counted.change = with_node
    with running(counted, Clock(), builds_per_node=8):
        until(lambda: all(counted.get(name).state is State.SUCCEEDED for name in good), seconds=50)
        until(lambda: REGISTRY.get_sample_value("kiln_records_put_aside") == len(bad))
    assert bad == {vars(entry)["build"] for entry in caplog.records if entry.message.startswith("Record quarantined")}


def test_what_became_of_deliveries_goes_along_with_the_next_write(counted: Counted) -> None:
    """The outcomes of a record's deliveries share one write, and the end of the deliveries needs none of its own."""
    counted.change = with_node
    with running(counted, Clock(), post=Post(DELIVERED)):
        counted.accept([new_submission(args={"do": "succeed"})])
        until(lambda: not counted.get("b").open)
    assert [delivery.state for delivery in counted.get("b").status.deliveries] == [DeliveryState.DELIVERED] * 3
    assert len(counted.writes) <= 6
    assert [build.open for build in counted.writes[-2:]] == [True, False]
    assert counted.writes[-2].status.outbox, "the last write also tells that the sink has the last event"


def test_that_a_sink_has_an_event_is_written_though_nothing_else_is(counted: Counted) -> None:
    with running(counted, Clock(), post=Post(DELIVERED)):
        counted.accept([new_submission()])
        until(lambda: [one.state for one in counted.get("b").status.deliveries] == [DeliveryState.DELIVERED])
    assert counted.get("b").state is State.QUEUED


def test_the_last_event_goes_again_to_the_sink_that_was_marked_and_to_no_other(seen: Seen) -> None:
    post = Post(DELIVERED, HUB, Sink(name="other", url="https://other.example/events"))
    seen.accept([new_submission("b")])
    seen.cancel("b", None)

    def ends(sink: str) -> list[str]:
        return [event.id for event in post.by_sink[sink] if event.type == "dev.kiln.build.cancelled.v1"]

    with running(seen, Clock(), post=post):
        until(lambda: not seen.get("b").open)
        first = ends("hub")
        seen.resend("b", "hub", "user:root")
        until(lambda: len(ends("hub")) == 2 and not seen.get("b").open)
    assert (ends("hub"), ends("other")) == (first * 2, first)
    assert [one.sink for one in seen.get("b").status.deliveries if one.event == first[0]].count("hub") == 2


def test_a_controller_that_ends_leaves_nothing_to_be_sent_again(counted: Counted) -> None:
    post = Post(DELIVERED)
    with running(counted, Clock(), post=post):
        counted.accept([new_submission()])
        until(lambda: post.sent)
    assert [one.state for one in counted.get("b").status.deliveries] == [DeliveryState.DELIVERED]


def test_a_controller_that_starts_anew_knows_the_images_of_what_has_ended(seen: Seen) -> None:
    """A settled build has left the watch.

    The controller reads ended builds as time allows, so the first request may arrive too early.
    """
    (build,) = seen.accept([new_submission("settled")])
    image = replace(IMAGE, repository=build.request.image)
    seen.write(settled_build(replace(build, status=replace(build.status, image=image)), State.SUCCEEDED))
    seen.change = lambda world: replace(world, nodes=(Node(name="local"),))
    reused: list[tuple[str, ...]] = []

    def asked() -> bool:
        (one,) = seen.accept([new_submission(f"new{len(reused)}", args={"do": "break"})])
        until(lambda: seen.get(one.name).status.attempts)
        reused.append(seen.get(one.name).status.attempts[0].cache_from)
        return reused[-1] == (image.digest,)

    with running(seen, Clock(), max_attempts=1):
        until(asked)

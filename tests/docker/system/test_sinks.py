"""Sinks that fail in every way: final failures, retries, and that no sink delays another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, lateness
from tests.parts.registry import Registry
from tests.parts.sink import CUT, SILENT, TRICKLE, Answer
from tests.parts.system import System

pytestmark = pytest.mark.slow

GOOD = ("good", "another")
WORDS = ("queued", "started", "succeeded")


@pytest.fixture
def told(tmp_path: Path, registry: Registry, host: GitHost) -> Iterator[System]:
    """Web, no controller yet, and sinks of every temper."""
    names = (*GOOD, "refusing", "silent", "trickling", "failing", "rejecting", "resetting", "patient")
    with System(tmp_path, registry=registry, host=host, sinks=names) as running:
        running.start("web")
        yield running


def by_sink(build: dict[str, Any], sink: str) -> list[dict[str, Any]]:
    return [delivery for delivery in build["deliveries"] if delivery["sink"] == sink]


def every(sink: str, holds: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], bool]:
    """Whether something holds for all deliveries of a build to a sink."""
    return lambda build: all(holds(one) for one in by_sink(build, sink))


def test_every_temper_at_once(told: System) -> None:
    sinks = told.sinks
    sinks["refusing"].refuse()
    sinks["silent"].answer(then=SILENT)
    sinks["trickling"].answer(then=TRICKLE)
    sinks["failing"].answer(*[500] * 8)
    sinks["rejecting"].answer(then=400)
    sinks["resetting"].answer(CUT, CUT)
    sinks["patient"].answer(Answer(status=503, retry_after="2"), Answer(status=429, retry_after="2"))
    controller = told.start("controller")
    name = told.build("ada/told", told.commit("ada/told", {"Dockerfile": SMALL}))
    told.wait(name, lambda build: build["state"] == "succeeded")
    for sink in GOOD:
        for word in WORDS:
            event = told.arrived(sink, name, word)
            assert lateness(event, sinks[sink]) < 5, "half of what a silent sink is waited for"
        assert sorted(event.type.split(".")[3] for event in told.events(sink, name)) == list(WORDS)

    # 400 is the last word: a dead letter for each event, sent once, visible.
    rejected = told.wait(name, every("rejecting", lambda one: one["state"] == "dead"))
    assert len(by_sink(rejected, "rejecting")) == 3
    assert {one["tries"] for one in by_sink(rejected, "rejecting")} == {1}
    assert "400" in by_sink(rejected, "rejecting")[0]["error"]
    assert len(sinks["rejecting"].received) == 3
    assert "Dead letter: sink rejecting" in controller.log.read_text()

    for sink in ("failing", "resetting", "patient"):
        told.wait(name, every(sink, lambda one: one["state"] == "delivered"))
        assert {event.type.split(".")[3] for event in told.events(sink, name)} == {*WORDS}
    waits = [one.at for one in sinks["patient"].received if one.events[0].type.endswith("queued.v1")]
    assert waits[1] - waits[0] >= 1.9

    # Hanging deliveries are retried, and then those that were suspended for a while get through.
    for sink in ("silent", "trickling", "refusing"):
        assert {one["state"] for one in by_sink(told.one(name), sink)} == {"pending"}
    for sink in ("silent", "trickling"):
        told.wait(name, every(sink, lambda one: one["error"]))
        sinks[sink].answer()
    sinks["refusing"].accept()
    build = told.ended(name)
    for sink in ("silent", "trickling", "refusing"):
        assert {one["state"] for one in by_sink(build, sink)} == {"delivered"}
        assert {event.type.split(".")[3] for event in told.events(sink, name)} == {*WORDS}
    of_all = [{event.id for event in told.events(sink, name)} for sink in sinks if sink != "rejecting"]
    assert all(ids == of_all[0] for ids in of_all)


def test_a_sink_that_was_down_is_told_by_the_next_controller(told: System) -> None:
    told.sinks["refusing"].refuse()
    first = told.start("controller")
    name = told.build("ada/later", told.commit("ada/later", {"Dockerfile": SMALL}))
    told.wait(name, lambda build: build["state"] == "succeeded" and all(d["tries"] for d in by_sink(build, "refusing")))
    first.stop()
    assert "refus" in by_sink(told.one(name), "refusing")[0]["error"]
    told.sinks["refusing"].accept()
    told.start("controller")
    build = told.ended(name)
    assert {one["state"] for one in build["deliveries"]} == {"delivered"}
    assert {event.type.split(".")[3] for event in told.events("refusing", name)} == {*WORDS}
    for sink in GOOD:
        assert len(told.events(sink, name)) == 3

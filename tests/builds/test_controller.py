"""The controller's loop over a real engine. What it decides is the plan's, and is tested there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from builds.controller import Controller
from builds.engines import NotFound
from builds.engines.local import LocalEngine
from builds.plan import Limits
from eventing.event import Event
from tests.builds.making import AT, ask, ended, engine_in
from tests.parts.kiln import until


class Silent:
    """No sink, so nothing to send."""

    def send(self, *_: object) -> None:
        raise AssertionError


class Clock:
    now = AT


@contextmanager
def running(engine: LocalEngine, clock: Clock, **limits: timedelta) -> Iterator[None]:
    controller = Controller(
        engine,
        limits=Limits(**limits),  # type: ignore[arg-type]
        sinks=(),
        courier=Silent(),
        confirmer=lambda _: None,
        inspector=lambda *_: None,
        events=lambda *_: Event(id="1", source="/test", type="test"),
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
    """First the logs go, then the record; however short the time is that they are kept."""
    engine, clock = engine_in(tmp_path, now=lambda: AT), Clock()
    try:
        (build,) = engine.accept([ask()])
        engine.write(ended(build))
        folder = tmp_path / "attempts" / "b-1"
        folder.mkdir()
        with running(engine, clock, log_history=kept, history=3 * kept):
            engine.accept([ask("other")])
            until(lambda: engine.get("other").status.round)  # it has looked, and found nothing that is due
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

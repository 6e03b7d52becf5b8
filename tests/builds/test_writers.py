"""The threads that carry out the controller's decisions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from builds import writers
from builds.writers import Writers
from tests.parts.kiln import until


@pytest.fixture
def going_on() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def waits(going_on: threading.Event, name: str) -> Callable[[], str]:
    def task() -> str:
        assert going_on.wait(60)
        return name

    return task


def test_the_most_urgent_goes_first_and_of_equals_the_first(going_on: threading.Event) -> None:
    ended: list[str] = []
    one: Writers[str] = Writers(1, ended.append)
    one.submit(9, waits(going_on, "under way"))
    until(lambda: not one.backlog)
    for number, (urgency, name) in enumerate([(2, "c"), (0, "a"), (2, "d"), (1, "b")], start=1):
        one.submit(urgency, lambda name=name: name)  # type: ignore[misc]
        assert one.backlog == number
    assert one.results() == []
    going_on.set()
    one.close()
    assert one.results() == ended == ["under way", "a", "b", "c", "d"]
    assert one.results() == []


def test_a_task_that_does_not_end_holds_up_no_other_and_counts_as_blocked(
    going_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    two: Writers[str] = Writers(2, lambda _: None)
    assert not two.blocked
    two.submit(0, waits(going_on, "slow"))
    for name in "abc":
        two.submit(0, lambda name=name: name)  # type: ignore[misc]
    found: list[str] = []
    until(lambda: found.extend(two.results()) or found == ["a", "b", "c"])
    assert not two.blocked
    monkeypatch.setattr(writers, "BLOCKED_AFTER", 0.0)
    until(lambda: two.blocked)
    going_on.set()
    two.close()
    assert not two.blocked
    assert two.results() == ["slow"]

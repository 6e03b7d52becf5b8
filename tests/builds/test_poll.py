"""The schedule by which the controller polls repositories. `test_sync` tests the result of a poll."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from builds.engines import Submission, Unavailable
from builds.errors import Unreachable
from builds.sync.missing import Listed
from builds.sync.poller import MAX_PAUSE, Poller
from builds.sync.reconciler import Comparison, SyncReport
from tests.builds.engine_factories import new_submission
from tests.parts.kiln import until

MINUTE = 60.0


class Looks:
    """Record the polls of repositories, by a clock that the test sets. Every poll raises `error` if it is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: list[tuple[float, str]] = []
        self.error: Exception | None = None
        self.asked: tuple[Submission, ...] = ()
        self.refused: tuple[str, ...] = ()

    def __call__(self, listed: Listed) -> SyncReport:
        self.at.append((self.now, listed.url))
        if self.error:
            raise self.error
        comparison = Comparison(
            repository=listed.url, missing=(), known=0, refused=self.refused, unanswered=(), seen={}
        )
        return SyncReport(comparison=comparison, asked=self.asked)

    def times(self, url: str = "a") -> list[float]:
        return [at for at, looked in self.at if looked == url]


def poller(looks: Looks, *listed: Listed, leading: Callable[[], bool] = lambda: True) -> Poller:
    return Poller(looks, listed or [Listed(url="a", poll=10 * MINUTE)], leading=leading, monotonic=lambda: looks.now)


def go_on(poller: Poller, looks: Looks, seconds: float) -> None:
    """Advance the clock through the polls that `run` would make."""
    end = looks.now + seconds
    while looks.now < end:
        looks.now = min(end, looks.now + max(poller.poll_due(), 0.5))


@pytest.fixture
def looks() -> Looks:
    return Looks()


@given(st.lists(st.floats(MINUTE, 60 * MINUTE), min_size=1, max_size=5))
def test_each_is_looked_at_at_once_and_then_about_every_interval(intervals: list[float]) -> None:
    looks = Looks()
    listed = [Listed(url=str(number), poll=poll) for number, poll in enumerate(intervals)]
    go_on(poller(looks, *listed), looks, 3 * max(intervals))
    for one in listed:
        times = looks.times(one.url)
        assert one.poll is not None
        assert times[0] <= len(listed)
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert pauses
        assert all(0.9 * one.poll <= pause <= 1.1 * one.poll + len(listed) for pause in pauses)


def test_one_without_an_interval_is_not_looked_at(looks: Looks) -> None:
    polled = poller(looks, Listed(url="a", poll=MINUTE), Listed(url="b"))
    go_on(polled, looks, 5 * MINUTE)
    assert looks.times("a")
    assert looks.times("b") == []
    go_on(poller(looks, Listed(url="b")), looks, MINUTE)
    assert looks.times("b") == []


def test_only_the_one_that_leads_looks_and_at_once_when_it_does(looks: Looks) -> None:
    leads = False
    polled = poller(looks, leading=lambda: leads)
    go_on(polled, looks, 60 * MINUTE)
    assert looks.at == []
    leads = True
    go_on(polled, looks, 2.0)
    assert len(looks.at) == 1


@pytest.mark.parametrize("error", [Unreachable("Nobody answers."), Unavailable("The disk is full."), KeyError("bug")])
def test_failures_back_off_and_are_told_once(looks: Looks, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    looks.error = error
    polled = poller(looks)
    go_on(polled, looks, 4 * MAX_PAUSE)
    pauses = [later - earlier for earlier, later in pairwise(looks.times())]
    assert pauses[0] >= 2 * 0.9 * 10 * MINUTE
    assert 0.9 * MAX_PAUSE <= pauses[-1] <= 1.1 * MAX_PAUSE + 1
    assert REGISTRY.get_sample_value("kiln_sync_failing") == 1
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == (1 if not isinstance(error, KeyError) else len(looks.at))
    looks.error = None
    with caplog.at_level(logging.INFO):
        go_on(polled, looks, 1.1 * MAX_PAUSE + 2 * 11 * MINUTE)
    assert REGISTRY.get_sample_value("kiln_sync_failing") == 0
    assert looks.times()[-1] - looks.times()[-2] <= 1.1 * 10 * MINUTE + 1


def test_what_is_refused_is_told_once_until_it_changes(looks: Looks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    polled = poller(looks)
    looks.refused = ("refs/heads/main: no.",)
    go_on(polled, looks, 60 * MINUTE)
    looks.refused = ()
    go_on(polled, looks, 60 * MINUTE)
    assert [record.getMessage() for record in caplog.records] == [
        "Repository a: refs/heads/main: no.",
        "Repository a: polling works again",
    ]


def test_what_is_asked_for_is_counted_and_logged_with_its_build(looks: Looks, caplog: pytest.LogCaptureFixture) -> None:
    before = REGISTRY.get_sample_value("kiln_sync_asked_total") or 0
    looks.asked = (new_submission("b-1", "1"), new_submission("b-1", "2"))
    with caplog.at_level(logging.INFO):
        poller(looks).poll_due()
    assert REGISTRY.get_sample_value("kiln_sync_asked_total") == before + 1
    assert [getattr(record, "build", None) for record in caplog.records] == ["b-1"]


def test_it_ends_when_it_is_told_to() -> None:
    looks, stop = Looks(), threading.Event()
    thread = threading.Thread(target=poller(looks).run, args=(stop,))
    thread.start()
    until(lambda: looks.at)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()

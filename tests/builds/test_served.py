"""A commit that its host serves late or never, from the webhook to the end of the build, by the plan's own clock."""

from __future__ import annotations

from datetime import timedelta

import pytest

from builds.build import Build, Phase, Reason, Result, State
from builds.builder.spec import REPLICATION, Surroundings, spec_for
from builds.plan import Facts, Limits, Report, Start, plan
from builds.transitions import advance
from tests.builds.plan_factories import IMAGE, NOW, build, node, pushed, replace, sighting_of

HOUR = timedelta(hours=1)


def ended(served_after: timedelta) -> Build:
    """Return the ended build of a push whose host serves the commit this late. Attempts take no time."""
    now, asked = NOW, build("b", replace(pushed("1"), at=NOW), created=0)
    while not asked.status.state.ended:
        for action in plan(Facts(builds=[asked], nodes=[node()]), Limits(), now):
            if isinstance(action, Report | Start):
                asked = advance(asked, action, now, lambda *_: [])
        if asked.live:
            result = attempted(asked, served=now - NOW >= served_after)
            sighting = sighting_of(asked, Phase.ENDED, result, started_at=now, ended_at=now)
            for _ in range(2):  # the first report is of the start
                for action in plan(Facts(builds=[asked], nodes=[node()], sightings=[sighting]), Limits(), now):
                    if isinstance(action, Report):
                        asked = advance(asked, action, now, lambda *_: [])
        now = max(now + timedelta(seconds=1), asked.status.not_before or now)
        assert now - NOW < HOUR
    return asked


def attempted(asked: Build, *, served: bool) -> Result:
    """Return the builder's result (`builds.builder.attempt`)."""
    assert asked.live is not None
    if served:
        return Result(state=State.SUCCEEDED, image=IMAGE)
    waits = spec_for(asked, asked.live, Surroundings()).just_pushed
    reason = Reason.INFRASTRUCTURE if waits else Reason.REPOSITORY
    return Result(state=State.FAILED, reason=reason, message="not there", counted=not waits, unserved=True)


@pytest.mark.parametrize("seconds", [0, 2, 40, 200])
def test_what_is_served_late_is_built(seconds: int) -> None:
    done = ended(timedelta(seconds=seconds))
    assert done.status.state is State.SUCCEEDED
    *before, last = done.status.attempts
    assert last.finished_at is not None
    assert last.finished_at - NOW <= max(timedelta(seconds=10), timedelta(seconds=seconds) * 2)
    assert all(attempt.unserved and not attempt.counted for attempt in before)


def test_what_is_never_served_is_the_repository_s_fault_in_the_end() -> None:
    done = ended(HOUR)
    assert (done.status.state, done.status.reason) == (State.FAILED, Reason.REPOSITORY)
    last = done.status.attempts[-1]
    assert last.unserved, "and that is what `kiln sync` looks for"
    assert last.finished_at is not None
    assert REPLICATION <= last.finished_at - NOW <= 2 * REPLICATION

"""The pure rules of leadership: the time at which a candidate may take a Lease, and the record that it writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.engines.kubernetes.lease import Lease, Record, held, released, remaining

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DURATION = 9.0

identities = st.sampled_from(["", "a", "b", "c"])
seconds = st.floats(0, 1000)
records = st.builds(
    Record,
    holder_identity=st.none() | identities,
    lease_duration_seconds=st.none() | st.integers(1, 60),
    acquire_time=st.none() | st.just("2026-03-01T00:00:00.000000Z"),
    renew_time=st.none() | st.just("2026-03-01T00:00:00.000000Z"),
    lease_transitions=st.none() | st.integers(0, 1000),
)


@given(records, seconds, seconds)
def test_what_another_holds_is_waited_for_from_when_it_was_seen(record: Record, seen: float, passed: float) -> None:
    left = remaining(record, "a", seen, seen + passed, DURATION)
    if record.holder_identity in (None, "", "a"):
        assert left == 0
    else:
        assert left == pytest.approx(max((record.lease_duration_seconds or DURATION) - passed, 0), abs=1e-6)


@given(records)
def test_a_new_holder_is_a_transition_and_a_renewal_is_none(record: Record) -> None:
    taken = held(record, "a", DURATION, AT)
    mine = record.holder_identity == "a"
    grown = (taken.lease_transitions or 0) - (record.lease_transitions or 0)
    assert grown == (0 if mine or record.acquire_time is None else 1)
    assert taken.acquire_time == (record.acquire_time if mine and record.acquire_time else taken.renew_time)
    later = held(taken, "a", DURATION, AT + timedelta(seconds=2))
    assert later.renew_time == "2026-03-01T12:00:02.000000Z"
    assert (later.acquire_time, later.lease_transitions) == (taken.acquire_time, taken.lease_transitions)


@given(records)
def test_what_is_released_is_free_at_once_and_keeps_its_history(record: Record) -> None:
    free = released(held(record, "a", DURATION, AT), AT)
    assert remaining(free, "b", 0, 0, DURATION) == 0
    assert (
        held(free, "b", DURATION, AT).lease_transitions == (held(record, "a", DURATION, AT).lease_transitions or 0) + 1
    )


@given(records, seconds, seconds, st.floats(0.1, 3), st.floats(0, 100))
def test_a_leader_has_stopped_before_another_may_take_it(
    record: Record, sent: float, answered: float, margin: float, offset: float
) -> None:
    """The proof needs no synchronized clocks.

    The other candidate sees a renewal only after it was sent, and counts more seconds from then.
    """
    written = held(record, "a", DURATION, AT)
    stops = sent + DURATION - margin
    seen = sent + answered
    taken_at = remaining(written, "b", seen + offset, seen + offset, DURATION) + seen
    assert taken_at > stops


@pytest.mark.parametrize(("retry", "stop_after", "duration"), [(6, 6, 9), (2, 9, 9), (0, 6, 9)])
def test_times_that_cannot_be_right_are_refused(retry: float, stop_after: float, duration: float) -> None:
    with pytest.raises(ValueError, match="renewed before its leader must stop"):
        Lease(cast("Any", None), "kiln", "a", duration=duration, stop_after=stop_after, retry=retry)

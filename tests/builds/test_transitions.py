"""The changes that an action makes in a record, and the events that it announces."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from builds.build import Build, Cancel, Cause, DeliveryState, Reason, Resend, State, Timings
from builds.plan import AttemptOutcome, DeadLetter, Deliver, Explain, Repeat, Report, Settle, Start, Stop, Word
from builds.transitions import advance, delivered, undelivered
from eventing.event import Event
from eventing.tracing import Trace
from tests.builds.plan_factories import IMAGE, NOW, ago, attempt, build, cause, failed, replace, running, unpinned


def announce(build: Build, word: Word, attempt: int, cause: Cause | None) -> list[tuple[Event, tuple[str, ...]]]:
    """Put the state of the record at the time of the event into its data."""
    suffix = f".{cause.key}" if cause else ""
    data = {"state": build.status.state, "outbox": len(build.status.outbox)}
    id_ = f"{build.uid}.{attempt}.{word}{suffix}"
    return [(Event(id=id_, source="/kiln", type=f"dev.kiln.build.{word}.v1", data=data), ("hub", "broker"))]


def report(word: Word, number: int = 1, outcome: AttemptOutcome | None = None, **more: object) -> Report:
    return Report(build="b", word=word, attempt=number, outcome=outcome, **more)  # type: ignore[arg-type]


SUCCESS = AttemptOutcome(state=State.SUCCEEDED, image=IMAGE, timings=Timings(build=3), log_tail="done")


def test_a_round_opens_with_nothing_left_of_the_last_but_its_history() -> None:
    ended = build(
        "b",
        cause("1"),
        cause("2"),
        state=State.FAILED,
        reason=Reason.TIMEOUT,
        message="late",
        attempt=2,
        attempts=(failed(1), failed(2)),
        answered=(cause("1").key,),
        image=IMAGE,
        finished_at=ago(9),
        log_tail="x",
    )
    status = advance(ended, report(Word.QUEUED, 3), NOW, announce).status
    assert (status.state, status.round, status.attempt, status.round_began_with) == (State.QUEUED, 2, 3, 3)
    assert (status.reason, status.message, status.image, status.finished_at, status.log_tail) == (
        None,
        None,
        None,
        None,
        "",
    )
    assert (status.attempts, status.answered, status.queued_at) == (ended.status.attempts, (cause("1").key,), NOW)


def test_the_first_round_began_when_the_record_was_made() -> None:
    fresh = build(round=0, queued_at=None, created=7)
    assert advance(fresh, report(Word.QUEUED), NOW, announce).status.queued_at == ago(7)


def test_a_start_is_written_before_anything_runs() -> None:
    after = advance(build(), Start(build="b", attempt=1, node="n1", alone=True), NOW, announce)
    assert after.live is not None
    assert (after.live.number, after.live.node, after.live.alone, after.live.written_at) == (1, "n1", True, NOW)
    assert after.status.state is State.QUEUED
    assert after.status.outbox == ()


def test_a_start_that_opens_the_round_announces_it_in_the_same_write() -> None:
    fresh = build(round=0, queued_at=None, created=7)
    after = advance(fresh, Start(build="b", attempt=1, node="n1", opens=True), NOW, announce)
    status = after.status
    assert (status.state, status.round, status.queued_at) == (State.QUEUED, 1, ago(7))
    assert [attempt.number for attempt in status.attempts] == [1]
    assert [one.event.type for one in status.outbox] == ["dev.kiln.build.queued.v1"]


def test_why_a_build_waits_is_written_with_its_announcement() -> None:
    fresh = build(round=0, queued_at=None)
    after = advance(fresh, report(Word.QUEUED, waiting="Waiting for a free build slot."), NOW, announce)
    assert after.status.waiting == "Waiting for a free build slot."


def test_the_record_keeps_a_bounded_number_of_attempts() -> None:
    old = build(attempts=tuple(failed(n) for n in range(1, 21)), attempt=21)
    after = advance(old, Start(build="b", attempt=21, node="n1"), NOW, announce)
    assert [attempt.number for attempt in after.status.attempts] == list(range(2, 22))


def test_started() -> None:
    written = build(attempts=(attempt(),), waiting="Waiting for a free build slot.")
    status = advance(written, report(Word.STARTED, at=ago(3)), NOW, announce).status
    assert (status.state, status.started_at, status.waiting) == (State.RUNNING, ago(3), None)
    assert status.attempts[0].started_at == ago(3)


def test_a_start_tells_where_an_attempt_that_was_not_pinned_has_come_to() -> None:
    written = build(attempts=(unpinned(),))
    assert advance(written, report(Word.STARTED, node="n7"), NOW, announce).status.attempts[0].node == "n7"
    pinned = build(attempts=(attempt(),))
    assert advance(pinned, report(Word.STARTED), NOW, announce).status.attempts[0].node == "n1"


def test_who_gives_an_attempt_up_writes_down_why() -> None:
    stop = Stop(build="b", attempt=1, reason=Reason.INFRASTRUCTURE, message="Disk full.", quarantine=True)
    given_up = advance(build(attempts=(attempt(),)), stop, NOW, announce)
    assert given_up.live is not None
    assert (given_up.live.stopping, given_up.live.message, given_up.live.quarantine) == (
        Reason.INFRASTRUCTURE,
        "Disk full.",
        True,
    )
    outcome = AttemptOutcome(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="Disk full.", counted=False)
    retrying = report(Word.RETRYING, outcome=outcome, retry_at=NOW, node=None)
    assert advance(given_up, retrying, NOW, announce).status.attempts[0].quarantine
    came_to_run = advance(given_up, report(Word.STARTED), NOW, announce)
    assert not advance(came_to_run, retrying, NOW, announce).status.attempts[0].quarantine, "its node has taken it"


def test_a_retry_closes_the_attempt_and_waits_for_the_next() -> None:
    outcome = AttemptOutcome(
        state=State.FAILED,
        reason=Reason.INFRASTRUCTURE,
        message="m",
        counted=False,
        out_of_memory=True,
        unserved=True,
    )
    later = NOW + timedelta(seconds=10)
    status = advance(running(), report(Word.RETRYING, outcome=outcome, retry_at=later), NOW, announce).status
    assert (status.state, status.attempt, status.not_before, status.started_at) == (State.QUEUED, 2, later, None)
    ended = status.attempts[0]
    assert ended.unserved
    assert (ended.state, ended.reason, ended.message, ended.counted, ended.out_of_memory, ended.finished_at) == (
        State.FAILED,
        Reason.INFRASTRUCTURE,
        "m",
        False,
        True,
        NOW,
    )


def test_the_end_answers_everybody_and_is_announced_in_the_same_write() -> None:
    live = running("b", cause("1"), cause("2"))
    after = advance(live, report(Word.SUCCEEDED, outcome=SUCCESS, at=ago(1)), NOW, announce)
    status = after.status
    assert (status.state, status.image, status.finished_at, status.log_tail) == (
        State.SUCCEEDED,
        IMAGE,
        ago(1),
        "done",
    )
    assert after.unanswered == ()
    assert status.attempts[0].timings == Timings(build=3)
    [announcement] = status.outbox
    assert announcement.event.data == {"state": State.SUCCEEDED, "outbox": 0}, "made from the record as it is then"
    assert [(d.sink, d.event, d.due_at) for d in announcement.deliveries] == [
        ("hub", "uid-b.1.succeeded", NOW),
        ("broker", "uid-b.1.succeeded", NOW),
    ]


def test_the_terminal_event_goes_again_to_the_marked_sinks_with_the_same_id() -> None:
    marks = (Resend(sink="broker", by=None, at=NOW), Resend(sink="gone", by=None, at=NOW))
    ended = build("b", cause("1"), state=State.FAILED, attempt=2, answered=(cause("1").key,), resends=marks)
    after = advance(ended, Repeat(build="b"), NOW, announce)
    [announcement] = after.status.outbox
    assert [(one.sink, one.event) for one in announcement.deliveries] == [("broker", "uid-b.2.failed")]
    assert after.resending == ()
    assert advance(after, report(Word.QUEUED, 3), NOW, announce).resending == ()


def test_who_joins_for_tags_that_the_attempt_does_not_know_is_answered_apart() -> None:
    first, late = cause("1", at=ago(60), tags=("main",)), cause("2", at=ago(5), tags=("pr-7",))
    live = running("b", first, late, attempts=(attempt(1, written_at=ago(50), started_at=ago(40)),))
    after = advance(live, report(Word.SUCCEEDED, outcome=SUCCESS), NOW, announce)
    assert after.state is State.SUCCEEDED
    assert after.unanswered == (late,)
    assert first.key in after.status.answered, "its tag was left out by the builder that knew it"


@pytest.mark.parametrize("change", [{"tags": ()}, {"tags": ("latest",)}, {"force": True}, {"withdrawn": True}])
def test_who_joins_for_nothing_more_is_answered_by_the_end(change: dict[str, Any]) -> None:
    late = cause("2", at=ago(5), **{"tags": ("pr-7",)} | change)
    live = running("b", late, attempts=(attempt(1, written_at=ago(50), started_at=ago(40)),))
    tagged = replace(SUCCESS, image=replace(IMAGE, tags=("latest",)))
    assert advance(live, report(Word.SUCCEEDED, outcome=tagged), NOW, announce).unanswered == ()


def test_who_asks_after_a_cancel_is_not_answered_by_it() -> None:
    early, late = cause("1", at=ago(60)), cause("2", at=ago(5))
    cancelled = build("b", early, late, cancel=Cancel(round=1, by=None, at=ago(10)))
    outcome = AttemptOutcome(state=State.CANCELLED, reason=Reason.REQUESTED, message="m")
    after = advance(cancelled, report(Word.CANCELLED, outcome=outcome), NOW, announce)
    assert after.unanswered == (late,)
    assert after.state is State.QUEUED
    superseded = replace(outcome, reason=Reason.SUPERSEDED)
    assert advance(cancelled, report(Word.CANCELLED, outcome=superseded), NOW, announce).unanswered == ()


def test_who_asks_after_a_request_was_closed_is_not_answered_by_that() -> None:
    closed, late = cause("1", withdrawn=True), cause("2")
    outcome = AttemptOutcome(state=State.CANCELLED, reason=Reason.REQUESTED, message="m")
    after = advance(build("b", closed, late), report(Word.CANCELLED, outcome=outcome), NOW, announce)
    assert after.unanswered == (late,)
    assert after.state is State.QUEUED


def traced(id_: str, **more: object) -> Cause:
    return cause(id_, trace=Trace(traceparent=f"00-{id_ * 32}-{'b' * 16}-01"), **more)  # type: ignore[arg-type]


def test_a_round_is_part_of_the_trace_of_the_first_who_asked_in_it() -> None:
    first, second, third = traced("1"), traced("2"), traced("3")
    queued = advance(build("b", first, second, round=0), report(Word.QUEUED), NOW, announce)
    assert queued.status.trace == first.trace
    done = advance(replace(queued, causes=(*queued.causes, third)), report(Word.SUCCEEDED, 1, SUCCESS), NOW, announce)
    assert done.status.trace == first.trace
    again = advance(replace(done, causes=(*done.causes, traced("4"))), report(Word.QUEUED, 2), NOW, announce)
    assert again.status.trace == traced("4").trace
    untraced = advance(replace(done, causes=(*done.causes, cause("5"))), report(Word.QUEUED, 2), NOW, announce)
    assert untraced.status.trace is None, "the trace of those who have their answer"


def test_a_build_of_no_trace_becomes_part_of_that_of_who_joins() -> None:
    """Its later events join the trace; events already sent stay unchanged."""
    alone = advance(build("b", cause("5"), round=0), report(Word.QUEUED), NOW, announce)
    assert alone.status.trace is None
    joined = replace(alone, causes=(*alone.causes, traced("1")))
    begun = advance(joined, Start(build="b", attempt=1, node="n1"), NOW, announce)
    assert begun.status.trace == traced("1").trace
    end = report(Word.CANCELLED, 1, AttemptOutcome(state=State.CANCELLED))
    assert advance(joined, end, NOW, announce).status.trace == traced("1").trace
    assert advance(alone, end, NOW, announce).status.trace is None


def test_joiners_get_an_event_of_their_own_each() -> None:
    joiners = [cause("2"), cause("3")]
    done = build("b", cause("1"), *joiners, state=State.SUCCEEDED, image=IMAGE, answered=(cause("1").key,))
    image = replace(IMAGE, tags=("main",))
    outcome = AttemptOutcome(state=State.SUCCEEDED, image=image)
    answer = report(Word.SUCCEEDED, outcome=outcome, causes=tuple(joiner.key for joiner in joiners))
    after = advance(done, answer, NOW, announce)
    assert [a.event.id for a in after.status.outbox] == [f"uid-b.1.succeeded.{joiner.key}" for joiner in joiners]
    assert (after.status.image, after.unanswered) == (image, ())


def test_what_changes_nothing_else() -> None:
    assert advance(build(), Explain(build="b", waiting="w"), NOW, announce).status.waiting == "w"
    stopped = advance(running(), Stop(build="b", attempt=1, reason=Reason.REQUESTED), NOW, announce)
    assert stopped.live is not None
    assert stopped.live.stopping is Reason.REQUESTED
    assert advance(build(), Settle(build="b"), NOW, announce).open is False
    with pytest.raises(TypeError, match="Deliver"):
        advance(build(), Deliver(build="b", event="e", sink="s"), NOW, announce)


def test_an_announcement_leaves_the_outbox_when_every_sink_has_had_it() -> None:
    ended = advance(running(), report(Word.SUCCEEDED, outcome=SUCCESS), NOW, announce)
    event = ended.status.outbox[0].event.id
    failing = undelivered(ended, event, "hub", NOW, error="answered 500", pause=timedelta(seconds=4))
    hub, broker = failing.status.outbox[0].deliveries
    assert (hub.tries, hub.error, hub.due_at, hub.state) == (
        1,
        "answered 500",
        NOW + timedelta(seconds=4),
        DeliveryState.PENDING,
    )
    assert (broker.tries, broker.state) == (0, DeliveryState.PENDING)
    one = delivered(failing, event, "broker", NOW, error=None)
    assert len(one.status.outbox) == 1
    both = delivered(one, event, "hub", NOW, error=None)
    assert both.status.outbox == ()
    assert [(d.sink, d.state, d.tries, d.at, d.error) for d in both.status.deliveries] == [
        ("hub", DeliveryState.DELIVERED, 2, NOW, None),
        ("broker", DeliveryState.DELIVERED, 1, NOW, None),
    ]
    assert delivered(both, event, "hub", NOW, error=None) == both, "news that comes twice changes nothing"


def test_a_dead_letter_keeps_why() -> None:
    ended = advance(running(), report(Word.SUCCEEDED, outcome=SUCCESS), NOW, announce)
    event = ended.status.outbox[0].event.id
    refused = delivered(ended, event, "hub", NOW, error="answered 400", dead=True)
    silent = undelivered(refused, event, "broker", NOW, error="no answer", pause=timedelta())
    buried = advance(silent, DeadLetter(build="b", event=event, sink="broker"), NOW, announce)
    assert [(d.state, d.tries, d.error) for d in buried.status.deliveries] == [
        (DeliveryState.DEAD, 1, "answered 400"),
        (DeliveryState.DEAD, 1, "no answer"),
    ]

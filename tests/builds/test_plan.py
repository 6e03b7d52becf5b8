"""Each rule of the plan in the smallest history that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import (
    Announcement,
    Build,
    Cancel,
    Delivery,
    DeliveryState,
    Image,
    Kind,
    Node,
    Phase,
    Reason,
    Resend,
    Result,
    Sighting,
    State,
    Timings,
    Trouble,
)
from builds.plan import (
    Action,
    AttemptOutcome,
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
    Repeat,
    Report,
    Rotation,
    Settle,
    Start,
    Stop,
    Supersede,
    Word,
    asker,
    deleted,
    expired,
    plan,
    queue,
    rendezvous,
)
from builds.transitions import advance
from eventing.event import Event
from tests.builds.plan_factories import (
    ELSEWHERE,
    IMAGE,
    NOW,
    NOWHERE,
    ago,
    attempt,
    build,
    cause,
    failed,
    node,
    pushed,
    replace,
    running,
    sighting_of,
    unpinned,
)

ONE = Limits(builds_per_node=1)
CANCEL = Cancel(round=1, by="user:a", at=ago(1))


def decide(
    *builds: Build,
    sightings: Sequence[Sighting] = (),
    nodes: Sequence[Node] = (node(),),
    limits: Limits = Limits(),  # noqa: B008
    now: datetime = NOW,
    **facts: object,
) -> list[Action]:
    return plan(
        Facts(builds=builds, sightings=sightings, nodes=nodes, **facts),  # type: ignore[arg-type]
        limits,
        now,
    )


def started(actions: Sequence[Action]) -> list[str]:
    return [action.build for action in actions if isinstance(action, Start)]


def only(actions: Sequence[Action]) -> Action:
    assert len(actions) == 1, actions
    return actions[0]


def uncounted(action: Action) -> str | None:
    """Check that the attempt failed by infrastructure, does not count and is retried; return its message."""
    assert isinstance(action, Report), action
    assert action.outcome is not None
    assert (action.word, action.outcome.reason, action.outcome.counted) == (
        Word.RETRYING,
        Reason.INFRASTRUCTURE,
        False,
    ), action
    return action.outcome.message


# ---- Rounds -------------------------------------------------------------------------------------------------------


FULL = Limits(builds_per_node=0)
NO_SLOT = "Waiting for a free build slot."


def test_a_new_record_is_announced_and_started_in_one_write() -> None:
    assert only(decide(build(round=0))) == Start(build="b", attempt=1, node="n1", opens=True)


def test_a_new_record_that_has_to_wait_is_announced_with_the_reason() -> None:
    assert only(decide(build(round=0), limits=FULL)) == Report(build="b", word=Word.QUEUED, attempt=1, waiting=NO_SLOT)


def test_what_is_cancelled_before_anybody_has_seen_it_is_announced_and_not_started() -> None:
    cancel = Cancel(round=1, by=None, at=NOW)
    assert only(decide(build(round=0, cancel=cancel))) == Report(build="b", word=Word.QUEUED, attempt=1)


def test_slots_are_shared_by_those_that_are_new_and_those_that_waited() -> None:
    actions = decide(build("new", round=0, created=9), build("old"), limits=Limits(builds_per_node=1))
    assert actions == [
        Start(build="old", attempt=1, node="n1"),
        Report(build="new", word=Word.QUEUED, attempt=1, waiting=NO_SLOT),
    ]


def test_a_failed_build_that_is_asked_for_again_gets_a_new_round_with_a_new_number() -> None:
    ended = build("b", cause("1"), cause("2"), state=State.FAILED, attempt=3, answered=(cause("1").key,))
    assert only(decide(ended, limits=FULL)) == Report(build="b", word=Word.QUEUED, attempt=4, waiting=NO_SLOT)


def test_force_opens_a_round_on_what_succeeded() -> None:
    forced = build("b", cause("1", force=True), state=State.SUCCEEDED, attempt=1, image=IMAGE)
    assert only(decide(forced)) == Start(build="b", attempt=2, node="n1", opens=True)


def test_what_has_ended_and_been_told_is_settled() -> None:
    assert only(decide(build(state=State.FAILED, answered=(cause().key,)))) == Settle(build="b")


def test_a_terminal_event_is_announced_again_for_a_mark_and_once() -> None:
    mark = Resend(sink="hub", by=None, at=NOW)
    marked = build("b", state=State.FAILED, answered=(cause().key,), resends=(mark,))
    assert only(decide(marked)) == Repeat(build="b")
    acted = build("b", state=State.FAILED, answered=(cause().key,), resends=(mark,), resent=(mark.key,))
    assert only(decide(acted)) == Settle(build="b")
    again = build("b", cause("1"), state=State.FAILED, attempt=1, resends=(mark,))
    assert not isinstance(only(decide(again)), Repeat), "the end of the next round goes to every sink"


class TestJoiners:
    """A request for an image that exists already."""

    done = build("b", cause("1"), cause("2"), state=State.SUCCEEDED, image=IMAGE, answered=(cause("1").key,))

    def test_the_registry_is_asked_once(self) -> None:
        assert only(decide(self.done)) == Confirm(build="b")
        assert decide(self.done, confirming=frozenset({"b"})) == []

    def test_answered_at_once_if_it_is_still_there(self) -> None:
        confirmation = Confirmation(image=IMAGE, causes=(cause("2").key,))
        report = only(decide(self.done, confirmations={"b": confirmation}))
        outcome = AttemptOutcome(state=State.SUCCEEDED, image=IMAGE)
        assert report == Report(build="b", word=Word.SUCCEEDED, attempt=1, outcome=outcome, causes=(cause("2").key,))

    def test_built_again_if_it_has_gone(self) -> None:
        confirmation = Confirmation(image=None, causes=(cause("2").key,))
        start = only(decide(self.done, confirmations={"b": confirmation}))
        assert start == Start(build="b", attempt=2, node="n1", opens=True)

    def test_who_joins_while_the_registry_is_asked_needs_an_answer_of_their_own(self) -> None:
        more = replace(self.done, causes=(*self.done.causes, cause("3")))
        report = only(decide(more, confirmations={"b": Confirmation(image=IMAGE, causes=(cause("2").key,))}))
        assert isinstance(report, Report)
        assert report.causes == (cause("2").key,)

    @pytest.mark.parametrize("image", [IMAGE, None])
    def test_an_answer_for_others_is_none(self, image: Image | None) -> None:
        others = {"b": Confirmation(image=image, causes=(cause("1").key,))}
        assert only(decide(self.done, confirmations=others)) == Confirm(build="b")
        assert decide(self.done, confirmations=others, confirming=frozenset({"b"})) == []


# ---- Order and slots ----------------------------------------------------------------------------------------------


def test_people_come_before_pushes_and_those_before_sync() -> None:
    builds = [
        build("sync", cause(kind=Kind.SYNC), created=300),
        build("push", pushed("1"), created=200),
        build("person", cause(), created=100),
    ]
    assert started(decide(*builds, limits=Limits(builds_per_node=3))) == ["person", "push", "sync"]


def test_who_was_served_longest_ago_comes_first_then_the_repository_then_the_oldest() -> None:
    builds = [
        build("a1", cause(by="user:a"), created=400, repository="https://h/r1"),
        build("a2", cause(by="user:a"), created=300, repository="https://h/r2"),
        build("b1", cause(by="user:b"), created=200, repository="https://h/r3"),
        build("b2", cause(by="user:b"), created=100, repository="https://h/r3"),
        build("b3", cause(by="user:b"), created=50, repository="https://h/r4"),
    ]
    served = Rotation(starts=4, served={"by user:a": 1})
    # b1 was never served. Then a (1) precedes b (5), with its oldest build. The eighth start goes to the oldest build.
    # Of b's repositories, r4 was never served.
    order = started(decide(*builds, limits=Limits(builds_per_node=9), rotation=served))
    assert order == ["b1", "a1", "b3", "a2", "b2"]


def test_a_build_that_pushes_share_with_a_person_is_the_persons() -> None:
    shared = build("b", pushed("1"), cause("2", by="user:z"))
    assert shared.kind is Kind.PERSON
    assert asker(shared) == "user:z"
    assert asker(build("b", pushed("1"), answered=(pushed("1").key,))) == ""


def test_the_oldest_is_the_one_that_was_asked_for_first_in_this_round() -> None:
    again = replace(build("again", created=10), created_at=ago(9000))
    assert started(decide(again, build("older", created=20), limits=Limits(builds_per_node=1))) == ["older"]


def test_a_repository_that_was_never_served_comes_before_one_that_was() -> None:
    once = Rotation(starts=1, served={"of https://h/served": 1})
    builds = [build("served", repository="https://h/served", created=99), build("never", repository="https://h/never")]
    assert started(decide(*builds, limits=Limits(builds_per_node=1), rotation=once)) == ["never"]


def test_every_fourth_start_is_the_oldests() -> None:
    builds = [build("old", cause(kind=Kind.SYNC), created=900)]
    builds += [build(f"p{n}", cause(by=f"user:{n}"), created=n) for n in range(1, 8)]
    order = started(decide(*builds, limits=Limits(builds_per_node=9)))
    assert order[3] == "old"


@st.composite
def queues(draw: st.DrawFn) -> list[Build]:
    """Draw waiting builds of people, pushes and sync, of several repositories, some of them retries."""
    found = []
    for number in range(draw(st.integers(0, 8))):
        who = cause(by=draw(st.sampled_from(["user:a", "user:b", None])), kind=draw(st.sampled_from(Kind)))
        status = {"not_before": ago(-60)} if draw(st.booleans()) else {}
        made = build(f"b{number}", who, created=draw(st.integers(0, 5)), **status)
        repository = draw(st.sampled_from(["https://example.org/a", "https://example.org/b"]))
        found.append(replace(made, request=replace(made.request, repository=repository)))
    return found


@given(queues())
def test_the_queue_that_people_see_is_the_order_of_starts(waiting: list[Build]) -> None:
    order = [one.name for one in queue(waiting, NOW)]
    starts = started(decide(*waiting, limits=Limits(builds_per_node=20)))
    assert order[: len(starts)] == starts
    assert sorted(order) == sorted(one.name for one in waiting)
    assert all(one.status.not_before for one in waiting if one.name in order[len(starts) :])


def test_who_has_a_build_that_runs_comes_later_in_the_queue() -> None:
    theirs, others = build("theirs", cause(by="user:a"), created=9), build("others", cause(by="user:b"), created=1)
    assert [one.name for one in queue([others, theirs], NOW)] == ["theirs", "others"]
    live = running("live", cause(by="user:a"))
    assert [one.name for one in queue([live, others, theirs], NOW)] == ["others", "theirs"]


@given(st.integers(1, 12), st.integers(1, 4))
def test_nobody_starves(rivals: int, per_node: int) -> None:
    """A sync build starts fourth, no matter how many people compete and how many rounds that takes."""
    rotation = Rotation()
    order: list[str] = []
    old = build("old", cause(kind=Kind.SYNC), created=900)
    while len(order) < 4:
        crowd = [build(f"p{n}", cause(by=f"user:{n}"), created=n) for n in range(rivals + per_node)]
        names = started(decide(old, *crowd, limits=Limits(builds_per_node=per_node), rotation=rotation))
        assert names
        for name in names:
            rotation = rotation.after(next(b for b in [old, *crowd] if b.name == name))
        order += names
    assert order[3] == "old"


def test_slots_are_taken_from_the_moment_that_a_start_is_written() -> None:
    live = build("live", attempts=(attempt(),))
    absent = sighting_of(live, Phase.ABSENT, started_at=None)
    actions = decide(live, build("next"), sightings=[absent], limits=Limits(builds_per_node=1))
    assert started(actions) == ["live"]
    assert Explain(build="next", waiting="Waiting for a free build slot.") in actions


def test_a_slot_stays_taken_while_nothing_is_seen_of_its_attempt() -> None:
    assert started(decide(build("live", attempts=(attempt(),)), build("next"), limits=Limits(builds_per_node=1))) == []


def test_every_other_attempt_takes_one_slot() -> None:
    limits = Limits(builds_per_node=3)
    actions = decide(running("x"), running("y"), *(build(name) for name in "abc"), limits=limits)
    assert len(started(actions)) == 1


def test_an_attempt_without_a_node_counts_on_every_node() -> None:
    roaming = build("roaming", attempts=(replace(attempt(), node=None),))
    pending = Sighting(build="roaming", attempt=1, phase=Phase.PENDING)
    limits = Limits(builds_per_node=1)
    nodes = [node("n1"), node("n2")]
    assert started(decide(roaming, build("next"), sightings=[pending], nodes=nodes, limits=limits)) == []
    assert started(decide(roaming, build("next"), nodes=nodes, limits=limits)) == []
    placed = replace(pending, node="n1")
    assert Start(build="next", attempt=1, node="n2") in decide(
        roaming, build("next"), sightings=[placed], nodes=nodes, limits=limits
    )


def test_only_ready_nodes_get_builds_and_the_others_say_why() -> None:
    nodes = [node("n1", ready=False, why="The daemon on n1 does not answer."), node("n2")]
    assert only(decide(build(), nodes=nodes)) == Start(build="b", attempt=1, node="n2")
    waiting = "No node has a ready Docker daemon. The daemon on n1 does not answer."
    assert only(decide(build(), nodes=nodes[:1])) == Explain(build="b", waiting=waiting)
    assert decide(build(waiting=waiting), nodes=nodes[:1]) == []


def test_a_repository_returns_to_its_node_and_spills_when_that_is_full() -> None:
    repository = "https://github.com/a/b"
    home, second = sorted(["n1", "n2"], key=lambda name: rendezvous(repository, name))
    both, limits = [node("n1"), node("n2")], Limits(builds_per_node=1)
    actions = decide(build("x"), build("y"), nodes=both, limits=limits)
    assert [action.node for action in actions if isinstance(action, Start)] == [home, second]


def test_repositories_spread_over_the_nodes() -> None:
    homes = {min(["n1", "n2", "n3"], key=lambda name: rendezvous(f"https://h/{n}", name)) for n in range(20)}
    assert homes == {"n1", "n2", "n3"}
    assert rendezvous("https://github.com/a/b", "n1") == 0xE9D0DB096755CDAC, "the same with every version of Kiln"


# ---- Ends and retries ---------------------------------------------------------------------------------------------


def ended(of: Build, result: Result | None, **more: object) -> Sighting:
    return sighting_of(of, Phase.ENDED, result, ended_at=ago(1), **more)


INFRASTRUCTURE = Result(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="registry away")


def test_a_start_is_told_once_even_if_the_end_is_seen_first() -> None:
    fresh = build(attempts=(attempt(),))
    seen = ended(fresh, INFRASTRUCTURE, started_at=ago(9))
    assert only(decide(fresh, sightings=[seen])) == Report(build="b", word=Word.STARTED, attempt=1, at=ago(9))


def test_success_is_the_end() -> None:
    live = running()
    success = Result(state=State.SUCCEEDED, image=IMAGE, log_tail="done", message="ok")
    report = only(decide(live, sightings=[ended(live, success)]))
    outcome = AttemptOutcome(state=State.SUCCEEDED, image=IMAGE, log_tail="done", message="ok")
    assert report == Report(build="b", word=Word.SUCCEEDED, attempt=1, outcome=outcome, at=ago(1))


@pytest.mark.parametrize("reason", [Reason.REPOSITORY, Reason.TIMEOUT])
def test_its_own_fault_is_final(reason: Reason) -> None:
    live = running()
    report = only(decide(live, sightings=[ended(live, Result(state=State.FAILED, reason=reason, message="no"))]))
    assert isinstance(report, Report)
    assert (report.word, report.outcome and report.outcome.reason) == (Word.FAILED, reason)


def test_infrastructure_is_tried_again_later_and_later() -> None:
    live = running()
    report = only(decide(live, sightings=[ended(live, INFRASTRUCTURE)]))
    assert isinstance(report, Report)
    assert (report.word, report.retry_at) == (Word.RETRYING, NOW + timedelta(seconds=10))
    second = running(attempts=(failed(1), attempt(2, started_at=ago(5))), attempt=2)
    report = only(decide(second, sightings=[ended(second, INFRASTRUCTURE)]))
    assert isinstance(report, Report)
    assert (report.word, report.retry_at) == (Word.RETRYING, NOW + timedelta(seconds=20))


def test_up_to_the_limit_of_counted_attempts_in_the_round() -> None:
    third = running(attempts=(failed(1), failed(2), attempt(3, started_at=ago(5))), attempt=3, round_began_with=1)
    report = only(decide(third, sightings=[ended(third, INFRASTRUCTURE)]))
    assert isinstance(report, Report)
    assert (report.word, report.retry_at) == (Word.FAILED, None)
    assert report.outcome == AttemptOutcome(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="registry away")
    in_next_round = replace(third, status=replace(third.status, round=2, round_began_with=3))
    report = only(decide(in_next_round, sightings=[ended(in_next_round, INFRASTRUCTURE)]))
    assert isinstance(report, Report)
    assert report.word is Word.RETRYING


@pytest.mark.parametrize("phase", [Phase.LOST, Phase.ENDED])
def test_what_was_taken_away_does_not_count_but_ten_are_enough(phase: Phase) -> None:
    terminated = Result(state=State.CANCELLED) if phase is Phase.ENDED else None
    for before, word in [(8, Word.RETRYING), (9, Word.FAILED)]:
        past = tuple(failed(n, counted=False) for n in range(1, before + 1))
        live = running(attempts=(*past, attempt(before + 1, started_at=ago(5))), attempt=before + 1)
        report = only(decide(live, sightings=[sighting_of(live, phase, terminated)]))
        assert isinstance(report, Report)
        assert report.word is word
        assert report.outcome is not None
        assert (report.outcome.reason, report.outcome.counted) == (Reason.INFRASTRUCTURE, False)
        assert report.outcome.message in (
            "The attempt was removed before it ended.",
            "The attempt was terminated from outside.",
        )
        if report.retry_at:
            assert report.retry_at == NOW + timedelta(minutes=5), "backoff has an upper bound"


def test_the_engines_sentence_for_a_loss_is_told() -> None:
    live = running()
    report = only(decide(live, sightings=[sighting_of(live, Phase.LOST, waiting="The node was drained.")]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert report.outcome.message == "The node was drained."


def test_an_uncounted_end_at_the_limit_is_tried_again() -> None:
    third = running(attempts=(failed(1), failed(2), attempt(3, started_at=ago(5))), attempt=3)
    report = only(decide(third, sightings=[sighting_of(third, Phase.LOST)]))
    assert isinstance(report, Report)
    assert report.word is Word.RETRYING


def test_what_the_builder_measured_is_kept() -> None:
    live = running()
    timings = Timings(fetch=1, build=2)
    result = replace(INFRASTRUCTURE, timings=timings, out_of_memory=True, unserved=True, log_tail="Killed")
    report = only(decide(live, sightings=[ended(live, result)]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert (report.outcome.timings, report.outcome.out_of_memory, report.outcome.log_tail) == (timings, True, "Killed")
    assert report.outcome.unserved


def test_a_daemon_that_goes_away_does_not_count() -> None:
    third = running(attempts=(failed(1), failed(2), attempt(3, started_at=ago(5))), attempt=3)
    result = replace(INFRASTRUCTURE, counted=False)
    assert uncounted(only(decide(third, sightings=[ended(third, result)]))) == "registry away"


def test_an_end_without_a_result_is_infrastructure() -> None:
    live = running()
    report = only(decide(live, sightings=[ended(live, None)]))
    assert isinstance(report, Report)
    assert report.outcome == AttemptOutcome(
        state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="The builder ended without a result."
    )


def test_a_retry_waits_for_its_time_and_goes_elsewhere() -> None:
    again = build(attempts=(failed(1, "n1"),), attempt=2, not_before=NOW + timedelta(seconds=5))
    nodes = [node("n1"), node("n2")]
    assert only(decide(again, nodes=nodes)) == Explain(build="b", waiting="Retrying after 12:00:05 UTC: gone")
    assert only(decide(again, nodes=nodes, now=NOW + timedelta(seconds=5))) == Start(build="b", attempt=2, node="n2")
    silent = build(attempts=(failed(1, message=None),), attempt=2, not_before=NOW + timedelta(seconds=5))
    waiting = "Retrying after 12:00:05 UTC: The last attempt failed."
    assert only(decide(silent)) == Explain(build="b", waiting=waiting)
    late = build(attempts=(failed(1),), attempt=2, not_before=ago(5))
    assert only(decide(late, nodes=[])) == Explain(build="b", waiting="No node has a ready Docker daemon.")
    of_podman = Limits(daemon="Podman service")
    assert only(decide(late, nodes=[], limits=of_podman)) == Explain(
        build="b", waiting="No node has a ready Podman service."
    )
    away = build(attempts=(failed(1, "n2"),), attempt=2)
    assert only(decide(away, nodes=nodes)) == Start(build="b", attempt=2, node="n1")
    assert only(decide(away, nodes=[node("n2")])) == Start(build="b", attempt=2, node="n2")


def test_a_clock_that_was_set_back_does_not_stop_the_queue() -> None:
    again = build(attempts=(failed(1),), attempt=2, not_before=NOW + timedelta(minutes=5))
    assert started(decide(again)) == []
    assert started(decide(again, now=NOW - timedelta(seconds=1))) == ["b"]


def test_after_running_out_of_memory_the_next_attempt_is_alone() -> None:
    memory = failed(1, out_of_memory=True)
    again = build("again", attempts=(memory,), attempt=2, created=900)
    assert only(decide(again)) == Start(build="again", attempt=2, node="n1", alone=True)
    other = running("other")
    crowded = decide(other, again, build("next"), sightings=[sighting_of(other)])
    assert started(crowded) == [], "its node is kept free of newcomers until it is empty"
    nodes = [node("n1"), node("n2")]
    both = [running("x", node="n1"), running("y", node="n2")]
    assert len(started(decide(*both, again, build("next"), build("more"), nodes=nodes))) == 1, "the other node is free"
    alone = running("alone", attempts=(attempt(1, started_at=ago(5), alone=True),))
    assert started(decide(alone, build("next"), sightings=[sighting_of(alone)])) == []
    lost = build("lost", attempts=(memory, failed(2, "n2", counted=False)), attempt=3)
    assert only(decide(lost)) == Start(build="lost", attempt=3, node="n1", alone=True), "it has not been alone yet"
    both_ = failed(2, out_of_memory=True, counted=False)
    assert only(decide(replace(lost, status=replace(lost.status, attempts=(failed(1), both_))))) == Start(
        build="lost", attempt=3, node="n1", alone=True
    )
    later = build("later", attempts=(memory, failed(2)), attempt=3)
    assert only(decide(later)) == Start(build="later", attempt=3, node="n1")


# ---- Starts that were written -------------------------------------------------------------------------------------


def test_a_written_start_is_completed_on_the_same_node() -> None:
    written = build(attempts=(attempt(1, "n7", alone=True),))
    absent = sighting_of(written, Phase.ABSENT)
    assert only(decide(written, sightings=[absent])) == Start(build="b", attempt=1, node="n7", alone=True)


def test_a_start_that_cannot_be_carried_out_is_given_up_after_the_grace() -> None:
    """The grace period starts when this controller first sees the start, so no clock change or late leader ends it."""
    written = build(attempts=(attempt(1, written_at=ago(9000)),))

    def after(seconds: float, waiting: str | None = None) -> Action:
        watched = {("b", 1): timedelta(seconds=seconds)}
        return only(decide(written, sightings=[sighting_of(written, Phase.ABSENT, waiting=waiting)], watched=watched))

    assert after(60) == Start(build="b", attempt=1, node="n1")
    assert uncounted(after(61, "No space left on device.")) == "No space left on device."
    assert uncounted(after(61)) == "The attempt could not be started."


def test_a_start_that_cannot_be_carried_out_says_why_and_is_tried_again() -> None:
    written = build(attempts=(attempt(1, "n1"),))
    absent = sighting_of(written, Phase.ABSENT, waiting="The quota is used up.")
    assert only(decide(written, sightings=[absent])) == Explain(build="b", waiting="The quota is used up.")
    told = replace(written, status=replace(written.status, waiting="The quota is used up."))
    assert only(decide(told, sightings=[absent])) == Start(build="b", attempt=1, node="n1")
    silent = replace(absent, waiting=None)
    assert only(decide(told, sightings=[silent])) == Start(build="b", attempt=1, node="n1"), "and forgets nothing"


def test_nothing_is_done_about_an_attempt_that_cannot_be_seen() -> None:
    assert decide(running()) == []


def test_why_an_attempt_is_pending_is_told() -> None:
    pending = build(attempts=(attempt(),))
    seen = sighting_of(pending, Phase.PENDING, waiting="Pulling the builder's image.")
    assert decide(pending, sightings=[seen]) == [], "it may run in a moment"
    watched = {("b", 1): timedelta(seconds=2)}
    told = only(decide(pending, sightings=[seen], watched=watched))
    assert told == Explain(build="b", waiting="Pulling the builder's image.")
    assert decide(replace(pending, status=replace(pending.status, waiting=seen.waiting)), sightings=[seen]) == []


# ---- Attempts that do not start -----------------------------------------------------------------------------------


def pends(of: Build, trouble: Trouble | None = None, seconds: float = 61, **more: object) -> list[Action]:
    """Return the actions for an attempt that has been pending for `seconds`."""
    sighting = sighting_of(of, Phase.PENDING, trouble=trouble, **more)
    waited = {("b", 1): timedelta(seconds=seconds)}
    return decide(of, sightings=[sighting], watched=waited, troubled=waited)


def test_what_is_in_its_way_is_told_at_once_and_it_is_given_up_after_the_grace() -> None:
    pending = build(attempts=(attempt(),))
    stop = Stop(build="b", attempt=1, reason=Reason.INFRASTRUCTURE)
    for trouble in (ELSEWHERE, NOWHERE):
        assert only(pends(pending, trouble, 60, waiting="x")) == Explain(build="b", waiting=trouble.message)
        given_up = replace(stop, message=trouble.message, quarantine=trouble.elsewhere)
        assert only(pends(pending, trouble)) == given_up
    assert only(pends(pending, waiting="Pulling the image.")) == Explain(build="b", waiting="Pulling the image.")
    assert pends(pending) == []


def test_what_comes_into_its_way_late_has_the_whole_grace_to_go_again() -> None:
    """An attempt that has waited minutes for its node is not evicted at the first problem of its container."""
    for live in (attempt(), unpinned()):
        pending = build(attempts=(live,))
        seen = sighting_of(pending, Phase.PENDING, trouble=NOWHERE)
        for seconds, kind in ((60, Explain), (61, Stop)):
            times = {"watched": {("b", 1): timedelta(seconds=300)}, "troubled": {("b", 1): timedelta(seconds=seconds)}}
            assert type(only(decide(pending, sightings=[seen], **times))) is kind


def test_a_reason_to_stop_that_is_there_comes_first() -> None:
    cancelled = build(attempts=(attempt(),), cancel=CANCEL)
    assert only(pends(cancelled, ELSEWHERE)) == Stop(build="b", attempt=1, reason=Reason.REQUESTED)


@pytest.mark.parametrize(
    ("phase", "result"),
    [
        (Phase.ABSENT, None),
        (Phase.LOST, None),
        (Phase.ENDED, None),
        (Phase.ENDED, Result(state=State.CANCELLED)),
        (Phase.ENDED, Result(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="daemon away")),
    ],
)
def test_an_attempt_that_was_given_up_is_tried_again_and_does_not_count(phase: Phase, result: Result | None) -> None:
    live = attempt(1, stopping=Reason.INFRASTRUCTURE, message="no room", quarantine=True)
    given_up = build(attempts=(live,))
    assert uncounted(only(decide(given_up, sightings=[sighting_of(given_up, phase, result)]))) == "no room"
    cancelled = replace(given_up, cancel=CANCEL)
    report = only(decide(cancelled, sightings=[sighting_of(cancelled, phase, result)]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert (report.word, report.outcome.reason) == (Word.CANCELLED, Reason.REQUESTED)


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (Result(state=State.SUCCEEDED, image=IMAGE), Word.SUCCEEDED),
        (Result(state=State.FAILED, reason=Reason.REPOSITORY), Word.FAILED),
        (Result(state=State.FAILED, reason=Reason.TIMEOUT), Word.FAILED),
    ],
)
def test_an_end_in_the_last_moment_is_an_end(result: Result, word: Word) -> None:
    live = attempt(1, stopping=Reason.INFRASTRUCTURE, message="no room", started_at=ago(9))
    given_up = build(attempts=(live,), state=State.RUNNING)
    report = only(decide(given_up, sightings=[ended(given_up, result)]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert (report.word, report.outcome.reason, report.outcome.message) == (word, result.reason, None)


def test_a_stop_that_is_repeated_says_the_same() -> None:
    given_up = build(attempts=(attempt(1, stopping=Reason.INFRASTRUCTURE, message="no room", quarantine=True),))
    again = Stop(build="b", attempt=1, reason=Reason.INFRASTRUCTURE, message="no room", quarantine=True)
    assert only(pends(given_up, NOWHERE, 1)) == again


def test_a_node_that_could_not_take_an_attempt_is_left_out_for_a_while() -> None:
    unfit = build("unfit", attempts=(failed(1, quarantine=True, message="Disk full.", finished_at=NOW),), attempt=2)
    waiting = "Node n1 is quarantined until 12:05:00 UTC: Disk full."

    def after(minutes: float, *nodes: Node) -> list[Action]:
        return decide(unfit, build("b"), nodes=nodes, now=NOW + timedelta(minutes=minutes))

    explain = [Explain(build=name, waiting=waiting) for name in ("unfit", "b")]
    assert after(0, node("n1")) == explain
    assert after(4.99, node("n1")) == explain
    assert len(started(after(5, node("n1")))) == 2
    assert len(started(after(-1, node("n1")))) == 2, "a clock that was set back leaves out no node"
    both = after(0, node("n1"), node("n2"))
    assert [action.node for action in both if isinstance(action, Start)] == ["n2", "n2"]
    crowded = decide(unfit, running("live", node="n2"), nodes=[node("n1"), node("n2")], limits=ONE)
    assert only(crowded) == Explain(build="unfit", waiting=f"Waiting for a free build slot. {waiting}")
    gone = decide(unfit, nodes=[node("n1", ready=False, why="n1 is away.")])
    assert only(gone) == Explain(build="unfit", waiting="No node has a ready Docker daemon. n1 is away.")


def test_a_node_stays_left_out_when_the_build_that_found_it_unfit_has_been_settled() -> None:
    unfit = failed(1, quarantine=True, message="Disk full.", finished_at=NOW)
    waiting = "Node n1 is quarantined until 12:05:00 UTC: Disk full."
    assert only(decide(build(), quarantine=[unfit])) == Explain(build="b", waiting=waiting)
    assert started(decide(build(), quarantine=[unfit], now=NOW + timedelta(minutes=5))) == ["b"]
    assert started(decide(build(), quarantine=[failed(1, finished_at=NOW)])) == ["b"]


def test_a_node_is_left_out_from_the_moment_that_its_attempt_is_given_up() -> None:
    live = attempt(1, stopping=Reason.INFRASTRUCTURE, message="Disk full.", quarantine=True)
    actions = decide(build("unfit", attempts=(live,)), build("b"))
    assert only(actions) == Explain(build="b", waiting="Node n1 is quarantined: Disk full.")
    pending = build("unfit", attempts=(attempt(),))
    waited = {("unfit", 1): timedelta(seconds=61)}
    for trouble, explain in [
        (ELSEWHERE, Explain(build="b", waiting=f"Node n1 is quarantined: {ELSEWHERE.message}")),
        (NOWHERE, Start(build="b", attempt=1, node="n1")),
    ]:
        seen = sighting_of(pending, Phase.PENDING, trouble=trouble)
        assert decide(pending, build("b"), sightings=[seen], troubled=waited)[1:] == [explain]


def test_the_last_attempt_that_a_node_could_not_take_counts() -> None:
    attempts = tuple(failed(n, quarantine=True, message=f"m{n}", finished_at=ago(at)) for n, at in ((1, 240), (2, 60)))
    waiting = "Node n1 is quarantined until 12:04:00 UTC: m2"
    assert only(decide(build(attempts=attempts, attempt=3))) == Explain(build="b", waiting=waiting)
    assert only(decide(build(attempts=attempts[::-1], attempt=3))) == Explain(build="b", waiting=waiting)


# ---- Scale from zero ----------------------------------------------------------------------------------------------


def scaled(*builds: Build, **more: object) -> list[Action]:
    return decide(*builds, **{"nodes": (), "scalable": True, **more})  # type: ignore[arg-type]


def test_where_no_node_is_ready_one_attempt_is_started_without() -> None:
    builds = [build("sync", cause(kind=Kind.SYNC), created=30), build("person", created=1)]
    waiting = "No node has a ready Docker daemon."
    start, explain = scaled(*builds)
    assert start == Start(build="person", attempt=1, node=None), "the first build of the order"
    assert explain == Explain(build="sync", waiting=waiting)
    for reason in (
        decide(*builds, nodes=()),
        scaled(*builds, limits=Limits(scale_up_after=timedelta(seconds=31))),
        scaled(*builds, build("live", attempts=(unpinned(),))),
    ):
        assert [type(action) for action in reason] == [Explain, Explain]
    assert only(scaled(builds[0], nodes=[node(ready=False)])) == Start(build="sync", attempt=1, node=None)
    assert only(scaled(builds[0], nodes=[node(), node("n2", ready=False)])) == Start(build="sync", attempt=1, node="n1")


def test_a_node_that_is_left_out_is_a_node() -> None:
    unfit = build("unfit", attempts=(failed(1, quarantine=True, message="Disk full.", finished_at=NOW),), attempt=2)
    assert started(scaled(unfit, nodes=[node()])) == []


def test_they_wait_since_they_were_asked_for_or_since_the_last_try() -> None:
    again = build(attempts=(failed(1),), attempt=2, not_before=ago(29), created=900)
    assert started(scaled(again)) == []
    assert started(scaled(again, now=NOW + timedelta(seconds=1))) == ["b"]
    later = build(queued_at=ago(29), created=900)
    assert started(scaled(later)) == []
    assert started(scaled(later, now=NOW - timedelta(minutes=5))) == ["b"], "a clock that was set back stops nothing"
    fresh = replace(build(queued_at=None), created_at=ago(30))
    assert started(scaled(fresh)) == ["b"]


def test_it_needs_a_slot_on_each_node_that_it_may_come_to() -> None:
    drained, limits = node(ready=False), Limits(builds_per_node=1)
    assert started(scaled(running("live"), build(), nodes=[drained], limits=limits)) == []
    assert started(scaled(running("live"), build(), limits=limits)) == [], "a node that no list contains any more"
    assert started(scaled(running("live"), build(), nodes=[drained])) == ["b"]
    memory = build(attempts=(failed(1, out_of_memory=True),), attempt=2)
    assert started(scaled(running("live"), memory, nodes=[drained])) == []
    assert only(scaled(memory)) == Start(build="b", attempt=2, node=None, alone=True)


def test_an_attempt_without_a_node_is_not_judged_by_nodes_but_has_its_time() -> None:
    roaming = build(attempts=(unpinned(),))
    assert only(pends(roaming, ELSEWHERE, 600)) == Explain(build="b", waiting=ELSEWHERE.message)
    stop = Stop(build="b", attempt=1, reason=Reason.INFRASTRUCTURE)
    said = f"No node became available. {ELSEWHERE.message}"
    assert only(pends(roaming, ELSEWHERE, 601)) == replace(stop, message=said)
    assert only(pends(roaming, None, 601, waiting="Booting.")) == replace(
        stop, message="No node became available. Booting."
    )
    assert only(pends(roaming, NOWHERE)) == replace(stop, message=NOWHERE.message)


def test_the_node_that_it_came_to_is_told_with_its_start_or_end() -> None:
    roaming = build(attempts=(unpinned(),))
    seen = sighting_of(roaming, Phase.RUNNING, node="n7", started_at=ago(3))
    assert only(decide(roaming, sightings=[seen])) == Report(
        build="b", word=Word.STARTED, attempt=1, at=ago(3), node="n7"
    )
    report = only(decide(roaming, sightings=[sighting_of(roaming, Phase.LOST, node="n7")]))
    assert isinstance(report, Report)
    assert report.node == "n7"
    pinned = build(attempts=(attempt(),))
    report = only(decide(pinned, sightings=[sighting_of(pinned, Phase.LOST)]))
    assert isinstance(report, Report)
    assert report.node is None, "the record knows"


# ---- Slots assigned twice -----------------------------------------------------------------------------------------


def written(name: str, number: int = 1, at: float = 30, **more: object) -> Build:
    return build(name, attempts=(attempt(number, written_at=ago(at), **more),), attempt=number)


def absent(*builds: Build) -> list[Sighting]:
    return [sighting_of(one, Phase.ABSENT) for one in builds]


def test_a_start_that_was_written_too_late_gives_way() -> None:
    """Two leaders have each assigned the slot; one was paused between its decision and its write."""
    first, second = written("second", at=40), written("first", at=30)
    actions = decide(first, second, sightings=absent(first, second), limits=ONE)
    assert actions[0] == Start(build="second", attempt=1, node="n1")
    assert uncounted(actions[1]) == "Another build took the slot meanwhile."
    same = [written("b"), written("a")]
    actions = decide(*same, sightings=absent(*same), limits=ONE)
    assert started(actions) == ["a"]


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.RUNNING, None])
def test_what_runs_has_its_slot_whenever_it_was_written(phase: Phase | None) -> None:
    early, late = written("early", at=900), written("late", at=1)
    seen = [sighting_of(late, phase)] if phase else []
    actions = decide(early, late, sightings=[*absent(early), *seen], limits=ONE)
    assert uncounted(only(actions)) == "Another build took the slot meanwhile."
    assert started(decide(early, late, sightings=[*absent(early), *seen])) == ["early"]


def test_slots_elsewhere_are_not_in_its_way() -> None:
    other = running("other", node="n2")
    mine = written("mine")
    assert started(decide(mine, other, sightings=[*absent(mine), sighting_of(other)], limits=ONE)) == ["mine"]


def test_one_that_is_to_be_alone_gives_way_to_any_and_any_to_it() -> None:
    other = running("other")
    alone = build("alone", attempts=(attempt(alone=True),))
    assert uncounted(decide(alone, other, sightings=[*absent(alone), sighting_of(other)])[0]) is not None
    mine = written("mine", at=1)
    assert uncounted(decide(mine, alone, sightings=[*absent(mine), sighting_of(alone)])[0]) is not None


def test_one_without_a_node_gives_way_if_it_would_be_too_much_on_any() -> None:
    roaming = build("roaming", attempts=(unpinned(),))
    other = running("other", node="n2")
    actions = decide(roaming, other, sightings=[*absent(roaming), sighting_of(other)], limits=ONE)
    assert uncounted(actions[0]) is not None
    assert started(decide(roaming, other, sightings=[*absent(roaming), sighting_of(other)])) == ["roaming"]
    second = build("second", attempts=(unpinned(written_at=ago(1)),))
    actions = decide(roaming, second, sightings=absent(roaming, second), limits=ONE)
    assert (started(actions), uncounted(actions[1])) == (["roaming"], "Another build took the slot meanwhile.")
    assert started(decide(roaming, second, sightings=absent(roaming, second))) == ["roaming", "second"]


def test_what_runs_without_a_record_has_its_slot() -> None:
    orphan = Sighting(build="deleted", attempt=3, phase=Phase.RUNNING, node="n1")
    assert started(decide(build(), sightings=[orphan], limits=ONE)) == []
    assert started(decide(build(), sightings=[orphan], limits=ONE, nodes=[node("n1"), node("n2")])) == ["b"]
    late = written("late")
    ended = only(decide(late, sightings=[*absent(late), orphan], limits=ONE))
    assert uncounted(ended) == "Another build took the slot meanwhile."
    assert started(decide(build(), sightings=[orphan])) == ["b"]
    assert started(decide(build(), sightings=[replace(orphan, phase=Phase.PENDING)], limits=ONE)) == []
    for phase in (Phase.ENDED, Phase.LOST, Phase.ABSENT):
        assert started(decide(build(), sightings=[replace(orphan, phase=phase)], limits=ONE)) == ["b"]
    last = build("last", attempts=(failed(1),), attempt=2)
    assert started(decide(last, sightings=[replace(orphan, build="last", attempt=1)], limits=ONE)) == []


# ---- Lost results -------------------------------------------------------------------------------------------------


def test_the_registry_is_asked_about_a_lost_result() -> None:
    live = running()
    lost = ended(live, None, result_lost=True)
    assert only(decide(live, sightings=[lost])) == Inspect(build="b", attempt=1)
    assert decide(live, sightings=[lost], inspecting=frozenset({("b", 1)})) == []
    other = {("b", 2): Inspection(image=IMAGE)}
    assert only(decide(live, sightings=[lost], inspections=other)) == Inspect(build="b", attempt=1)
    pushed_ = only(decide(live, sightings=[lost], inspections={("b", 1): Inspection(image=IMAGE)}))
    success = AttemptOutcome(state=State.SUCCEEDED, image=IMAGE)
    assert pushed_ == Report(build="b", word=Word.SUCCEEDED, attempt=1, outcome=success, at=ago(1))
    for waiting, message in [(None, "The builder ended without a result."), ("Exit 137.", "Exit 137.")]:
        seen = replace(lost, waiting=waiting, log_tail="Fetching.")
        report = only(decide(live, sightings=[seen], inspections={("b", 1): Inspection(image=None)}))
        assert isinstance(report, Report)
        outcome = AttemptOutcome(
            state=State.FAILED, reason=Reason.INFRASTRUCTURE, message=message, log_tail="Fetching."
        )
        assert report.outcome == outcome
    read = replace(lost, result=INFRASTRUCTURE)
    assert isinstance(only(decide(live, sightings=[read])), Report)
    gone = replace(lost, phase=Phase.LOST)
    assert isinstance(only(decide(live, sightings=[gone])), Report)


def test_what_was_pushed_beats_a_cancel_that_came_late() -> None:
    live = running(cancel=CANCEL)
    lost = ended(live, None, result_lost=True)
    report = only(decide(live, sightings=[lost], inspections={("b", 1): Inspection(image=IMAGE)}))
    assert isinstance(report, Report)
    assert report.word is Word.SUCCEEDED


# ---- Deleted records ----------------------------------------------------------------------------------------------


def test_a_deleted_record_is_a_cancellation_unless_its_end_was_told() -> None:
    outcome = AttemptOutcome(state=State.CANCELLED, reason=Reason.DELETED, message="Its record was deleted.")
    told = Report(build="b", word=Word.CANCELLED, attempt=2, outcome=outcome)
    assert deleted(build(attempt=2)) == told
    assert deleted(running(attempt=2)) == told
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        assert deleted(build(state=state)) is None


# ---- Cancel and time limit ----------------------------------------------------------------------------------------


def test_cancelled_while_queued() -> None:
    report = only(decide(build(cancel=CANCEL)))
    assert isinstance(report, Report)
    assert (report.word, report.attempt) == (Word.CANCELLED, 1)
    assert report.outcome == AttemptOutcome(
        state=State.CANCELLED, reason=Reason.REQUESTED, message="Cancelled on request."
    )


def test_a_cancel_of_an_earlier_round_means_nothing() -> None:
    assert started(decide(build(cancel=CANCEL, round=2))) == ["b"]


def test_cancelled_between_the_written_start_and_the_attempt() -> None:
    written = build(attempts=(attempt(),), cancel=CANCEL)
    report = only(decide(written, sightings=[sighting_of(written, Phase.ABSENT)]))
    assert isinstance(report, Report)
    assert (report.word, report.attempt, report.outcome and report.outcome.state) == (
        Word.CANCELLED,
        1,
        State.CANCELLED,
    )


def test_a_running_attempt_is_told_once_by_each_controller() -> None:
    live = running(cancel=CANCEL)
    assert only(decide(live, sightings=[sighting_of(live)])) == Stop(build="b", attempt=1, reason=Reason.REQUESTED)
    told = running(cancel=CANCEL, attempts=(attempt(1, started_at=ago(9), stopping=Reason.REQUESTED),))
    assert only(decide(told, sightings=[sighting_of(told)])) == Stop(build="b", attempt=1, reason=Reason.REQUESTED)
    assert decide(told, sightings=[sighting_of(told)], stopped=frozenset({("b", 1)})) == []


@pytest.mark.parametrize(
    ("result", "word", "reason"),
    [
        (Result(state=State.CANCELLED), Word.CANCELLED, Reason.REQUESTED),
        (None, Word.CANCELLED, Reason.REQUESTED),
        (INFRASTRUCTURE, Word.CANCELLED, Reason.REQUESTED),
        (Result(state=State.FAILED, reason=Reason.REPOSITORY), Word.FAILED, Reason.REPOSITORY),
        (Result(state=State.SUCCEEDED, image=IMAGE), Word.SUCCEEDED, None),
    ],
)
@pytest.mark.parametrize("stopping", [None, Reason.REQUESTED])
def test_a_cancel_wins_over_retries_but_not_over_an_end(
    result: Result | None, word: Word, reason: Reason | None, stopping: Reason | None
) -> None:
    live = running(cancel=CANCEL, attempts=(attempt(1, started_at=ago(9), stopping=stopping),))
    report = only(decide(live, sightings=[ended(live, result)]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert (report.word, report.outcome.reason) == (word, reason)


def test_the_backstop_behind_the_builders_own_limit() -> None:
    limits = Limits(build_timeout=timedelta(minutes=1))
    live = running(attempts=(attempt(1, started_at=ago(9000), written_at=ago(9000)),))
    stop = Stop(build="b", attempt=1, reason=Reason.TIMEOUT)

    def after(seconds: float, of: Build, phase: Phase = Phase.RUNNING) -> list[Action]:
        watched = {("b", 1): timedelta(seconds=seconds)}
        return decide(of, sightings=[sighting_of(of, phase)], limits=limits, watched=watched)

    assert after(180, live) == []
    assert only(after(181, live)) == stop
    assert decide(live, sightings=[sighting_of(live)], limits=limits) == [], "the time of day does not matter"
    never_ran = build(attempts=(attempt(),))
    assert after(180, never_ran, Phase.PENDING) == []
    given_up = replace(stop, reason=Reason.INFRASTRUCTURE, message="The attempt did not start.")
    assert only(after(181, never_ran, Phase.PENDING)) == given_up
    for phase in (Phase.ENDED, Phase.ABSENT):
        stopped = running(attempts=(attempt(1, started_at=ago(181), stopping=Reason.TIMEOUT),))
        result = Result(state=State.CANCELLED) if phase is Phase.ENDED else None
        report = only(decide(stopped, sightings=[sighting_of(stopped, phase, result)], limits=limits))
        assert isinstance(report, Report)
        assert (report.word, report.outcome and report.outcome.reason) == (Word.FAILED, Reason.TIMEOUT)


def test_what_the_cluster_ended_for_its_time_took_too_long() -> None:
    """The leader may have begun to observe only now, so it did not measure the time itself.

    A reason already in the record stays, and a cancellation takes precedence.
    """
    terminated = Result(state=State.CANCELLED, log_tail="step 7")

    def end(of: Build, result: Result | None = terminated) -> tuple[Word, object]:
        found = {("b", 1): Inspection(image=None)}
        seen = ended(of, result, result_lost=result is None, overdue=True)
        report = only(decide(of, sightings=[seen], inspections=found))
        assert isinstance(report, Report)
        return report.word, report.outcome and report.outcome.reason

    for result in (terminated, None):
        assert end(running(), result) == (Word.FAILED, Reason.TIMEOUT)
    assert end(running(cancel=CANCEL)) == (Word.CANCELLED, Reason.REQUESTED)
    stopped = running(attempts=(attempt(1, stopping=Reason.INFRASTRUCTURE),))
    assert end(stopped) == (Word.RETRYING, Reason.INFRASTRUCTURE)
    assert end(running(), Result(state=State.SUCCEEDED, image=IMAGE)) == (Word.SUCCEEDED, None)


# ---- Superseded ---------------------------------------------------------------------------------------------------

A, B, C = "a" * 40, "b" * 40, "c" * 40


def superseded(*builds: Build, **limits: object) -> list[str]:
    actions = decide(*builds, nodes=[], limits=Limits(**limits))  # type: ignore[arg-type]
    return [
        action.build
        for action in actions
        if isinstance(action, Report) and action.outcome and action.outcome.reason is Reason.SUPERSEDED
    ]


def test_known_by_before_and_after() -> None:
    assert superseded(build("old", pushed("1"), commit=A), build("new", pushed("2", before=A), commit=B)) == ["old"]


def test_known_by_the_hosts_time_whatever_came_first() -> None:
    late = build("old", pushed("1", at=1), commit=A, created=5)
    early = build("new", pushed("2", at=2), commit=B, created=50)
    assert superseded(late, early) == ["old"]
    assert superseded(early, late) == ["old"]


def test_the_hosts_time_wins_over_the_chain() -> None:
    newer = build("newer", pushed("1", at=2), commit=A)
    assert superseded(newer, build("older", pushed("2", before=A, at=1), commit=B)) == ["older"]


def test_the_chain_decides_where_the_time_is_the_same() -> None:
    assert superseded(
        build("old", pushed("1", at=1), commit=A), build("new", pushed("2", before=A, at=1), commit=B)
    ) == ["old"]


def test_never_by_arrival() -> None:
    assert superseded(build("x", pushed("1"), commit=A), build("y", pushed("2"), commit=B)) == []


def test_nobody_can_tell_where_a_ref_came_back() -> None:
    there, back = pushed("2", before=A), pushed("3", before=B)
    assert superseded(build("x", pushed("1"), back, commit=A), build("y", there, commit=B)) == []
    round_about = [
        build("x", pushed("1", before=C), commit=A),
        build("y", pushed("2", before=A), commit=B),
        build("z", pushed("3", before=B), commit=C),
    ]
    assert superseded(*round_about) == []
    elsewhere = [
        build("x", pushed("1"), commit=A),
        build("y", pushed("2", before=A), pushed("4", before=C), commit=B),
        build("z", pushed("3", before=B), commit=C),
    ]
    assert superseded(*elsewhere) == ["x"], "it went in circles since, and never came back here"


def test_only_if_every_cause_is_a_push_that_has_moved_on() -> None:
    newer = build("new", pushed("2", before=A), commit=B)
    assert superseded(build("old", pushed("1"), cause("3"), commit=A), newer) == []
    elsewhere = replace(pushed("4"), ref="refs/heads/other")
    assert superseded(build("old", pushed("1"), elsewhere, commit=A), newer) == []
    assert superseded(build("old", pushed("1"), commit=A, repository="https://github.com/x/y"), newer) == []
    without_ref = replace(pushed("5"), ref=None)
    assert superseded(build("old", without_ref, commit=A), newer) == []


def test_who_was_answered_before_does_not_hold_it_back() -> None:
    old = build("old", cause("3"), pushed("1"), commit=A, answered=(cause("3").key,))
    assert superseded(old, build("new", pushed("2", before=A), commit=B)) == ["old"]


def test_the_same_commit_pushed_again_supersedes_nothing() -> None:
    assert superseded(build("x", pushed("1", at=1), commit=A), build("subdir", pushed("2", at=2), commit=A)) == []


def test_running_builds_only_where_that_is_wanted() -> None:
    old, new = running("old", pushed("1"), commit=A), build("new", pushed("2", before=A), commit=B)
    stop = Stop(build="old", attempt=1, reason=Reason.SUPERSEDED)
    for supersede, expected in [(Supersede.RUNNING, True), (Supersede.QUEUED, False), (Supersede.OFF, False)]:
        actions = decide(old, new, sightings=[sighting_of(old)], limits=Limits(supersede=supersede))
        assert (stop in actions) is expected
    queued = build("old", pushed("1"), commit=A)
    assert superseded(queued, new, supersede=Supersede.RUNNING) == ["old"]
    assert superseded(queued, new, supersede=Supersede.OFF) == []
    told = running("old", commit=A, attempts=(attempt(1, started_at=ago(9), stopping=Reason.SUPERSEDED),))
    report = only(decide(told, sightings=[ended(told, Result(state=State.CANCELLED))]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert (report.word, report.outcome.reason, report.outcome.message) == (
        Word.CANCELLED,
        Reason.SUPERSEDED,
        "A newer push to the same ref superseded it.",
    )


# ---- Deliveries ---------------------------------------------------------------------------------------------------


def announced(*deliveries: Delivery, at: datetime = NOW) -> Build:
    event = Event(id="e", source="/kiln", type="t")
    outbox = (Announcement(event=event, at=at, deliveries=deliveries),)
    return build(state=State.FAILED, answered=(cause().key,), outbox=outbox)


def to(sink: str = "hub", *, due: float = 0, **more: object) -> Delivery:
    return Delivery(sink=sink, event="e", type="t", due_at=ago(-due), **more)  # type: ignore[arg-type]


def test_a_build_stays_until_every_sink_has_its_events() -> None:
    done = to("done", state=DeliveryState.DELIVERED)
    assert decide(announced(done, to("hub"), to("later", due=1))) == [Deliver(build="b", event="e", sink="hub")]
    assert decide(announced(to("hub")), sending=frozenset({("e", "hub")})) == []


def test_the_first_tries_at_one_sink_are_in_the_order_of_the_events() -> None:
    def outbox(**first: object) -> Build:
        events = [
            Announcement(
                event=Event(id=id_, source="/kiln", type="t"),
                at=NOW,
                deliveries=tuple(
                    Delivery(sink=sink, event=id_, type="t", due_at=NOW, **(first if id_ == "e1" else {}))
                    for sink in ("hub", "broker")
                ),
            )
            for id_ in ("e1", "e2")
        ]
        return build(state=State.FAILED, answered=(cause().key,), outbox=tuple(events))

    hub, broker = (Deliver(build="b", event="e1", sink=sink) for sink in ("hub", "broker"))
    assert decide(outbox()) == [hub, broker]
    assert decide(outbox(), sending=frozenset({("e1", "hub")})) == [broker], "the second waits while the first is sent"
    second = [replace(hub, event="e2"), replace(broker, event="e2")]
    assert decide(outbox(tries=1), sending=frozenset({("e1", "hub"), ("e1", "broker")})) == second
    assert decide(outbox(state=DeliveryState.DELIVERED)) == second


def test_statuses_wait_for_the_one_before_them_and_no_sink_does() -> None:
    """A status replaces its predecessor, so a failing one delays its successors until its retries end."""

    def outbox(at: datetime = NOW, **first: object) -> Build:
        events = [
            Announcement(
                event=Event(id=id_, source="/kiln", type="t"),
                at=at,
                deliveries=tuple(
                    Delivery(sink=sink, event=id_, type="t", **({"due_at": NOW} | (first if id_ == "e1" else {})))  # type: ignore[arg-type]
                    for sink in ("hub", "statuses/git.example/kiln")
                ),
            )
            for id_ in ("e1", "e2")
        ]
        return build(state=State.FAILED, answered=(cause().key,), outbox=tuple(events))

    later = Deliver(build="b", event="e2", sink="hub")
    assert decide(outbox(tries=1, due_at=ago(-60))) == [later]
    both = decide(outbox(tries=1, due_at=ago(0)))
    assert [(one.event, one.sink) for one in both if isinstance(one, Deliver)] == [
        ("e1", "hub"),
        ("e1", "statuses/git.example/kiln"),
        ("e2", "hub"),
    ]
    old = ago(Limits().delivery_period.total_seconds())
    assert DeadLetter(build="b", event="e1", sink="statuses/git.example/kiln") in decide(outbox(at=old, tries=1))
    assert replace(later, sink="statuses/git.example/kiln") in decide(outbox(state=DeliveryState.DEAD))


def test_a_dead_letter_after_the_period_but_never_untried() -> None:
    old = ago(Limits().delivery_period.total_seconds())
    assert only(decide(announced(to(tries=1), at=old))) == DeadLetter(build="b", event="e", sink="hub")
    assert only(decide(announced(to(), at=old))) == Deliver(build="b", event="e", sink="hub")
    younger = old + timedelta(seconds=1)
    assert only(decide(announced(to(tries=1), at=younger))) == Deliver(build="b", event="e", sink="hub")


def test_a_delivery_is_due_if_the_clock_was_set_back() -> None:
    assert decide(announced(to(due=3600))) == []
    assert only(decide(announced(to(due=3601)))) == Deliver(build="b", event="e", sink="hub")


# ---- Housekeeping -------------------------------------------------------------------------------------------------


def test_logs_go_first_then_the_record() -> None:
    limits = Limits(log_history=timedelta(hours=1), history=timedelta(hours=2))
    closed = replace(build(state=State.FAILED, finished_at=ago(0)), open=False)
    assert expired(closed, limits, NOW + timedelta(minutes=59)) is None
    assert expired(closed, limits, NOW + timedelta(hours=1)) == ClearAttempts(build="b")
    assert expired(closed, limits, NOW + timedelta(hours=2)) == Forget(build="b")
    assert expired(replace(closed, open=True), limits, NOW + timedelta(hours=9)) is None
    assert expired(replace(build(), open=False), limits, NOW + timedelta(days=99)) is None


def test_a_record_stays_as_long_as_its_image_where_the_record_is_the_ledger() -> None:
    limits = Limits(log_history=timedelta(hours=1), history=timedelta(hours=2), ledger=True)
    closed = replace(build(state=State.SUCCEEDED, finished_at=ago(0), image=IMAGE), open=False)
    assert expired(closed, limits, NOW + timedelta(days=999)) == ClearAttempts(build="b")
    without = replace(closed, status=replace(closed.status, image=None))
    assert expired(without, limits, NOW + timedelta(hours=2)) == Forget(build="b")


def test_turns_are_bounded() -> None:
    rotation = Rotation()
    for n in range(1200):
        rotation = rotation.after(build("b", cause(by=f"user:{n}")))
    assert rotation.starts == 1200
    assert rotation.served["of https://github.com/a/b"] == 1200
    assert len(rotation.served) == 1000
    assert rotation.served["by user:1199"] == 1200
    assert "by user:1" not in rotation.served


# ---- In flight ----------------------------------------------------------------------------------------------------


@given(per_node=st.integers(1, 3), kinds=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=8))
def test_starts_that_are_in_flight_have_their_slots(per_node: int, kinds: list[tuple[bool, bool]]) -> None:
    """The slots count no matter which starts are written before the next round.

    Each of `kinds` says of a start: in flight, written by the next round.
    """
    limits, nodes = Limits(builds_per_node=per_node), [node("n1"), node("n2")]
    waiting = [build(f"b{n}", round=0) for n in range(len(kinds))]
    first = {one.build: one for one in decide(*waiting, limits=limits, nodes=nodes) if isinstance(one, Start)}
    late = {name for name in first if kinds[int(name[1:])][0]}
    written = {name for name in first if name not in late or kinds[int(name[1:])][1]}
    now = [advance(one, first[one.name], NOW, lambda *_: []) if one.name in written else one for one in waiting]
    more = [build(f"c{n}", round=0) for n in range(8)]
    actions = decide(*now, *more, limits=limits, nodes=nodes, in_flight={name: first[name] for name in late})
    assert not {action.build for action in actions} & late
    starts = [*first.values(), *(one for one in actions if isinstance(one, Start) and one.build not in first)]
    assert max(Counter(one.node for one in starts).values()) <= per_node
    assert len(starts) == 2 * per_node


@given(seconds=st.integers(0, 90), node_of_late=st.sampled_from(["n1", None]))
def test_a_start_that_was_written_too_late_gives_way_to_one_in_flight(seconds: int, node_of_late: str | None) -> None:
    """A paused leader wrote it, and another start got the slot before a leader saw the write."""
    late = build("late", attempts=(attempt(written_at=ago(seconds), node=node_of_late),))
    start = Start(build="other", attempt=1, node="n1", opens=True)
    actions = decide(late, build("other", round=0), sightings=absent(late), limits=ONE, in_flight={"other": start})
    assert uncounted(only(actions)) == "Another build took the slot meanwhile."


def test_a_start_without_a_node_that_is_in_flight_is_the_only_one() -> None:
    a, b = build("a", created=60), build("b", created=30)
    (start,) = [one for one in scaled(a, b) if isinstance(one, Start)]
    assert (start.build, start.node) == ("a", None)
    assert started(scaled(a, b, in_flight={"a": start})) == []


def test_nothing_is_sent_to_a_node_from_which_an_attempt_is_just_taken_back() -> None:
    stuck = build("stuck", attempts=(attempt(1),))
    stop = Stop(build="stuck", attempt=1, reason=Reason.INFRASTRUCTURE, message="Disk full.", quarantine=True)
    assert started(decide(stuck, build("b"))) == ["b"]
    (told,) = decide(stuck, build("b"), in_flight={"stuck": stop})
    assert isinstance(told, Explain)
    assert told.waiting == "Node n1 is quarantined: Disk full."


# ---- Pull requests ------------------------------------------------------------------------------------------------

REQUEST = replace(pushed("r"), ref="refs/pull/7/head")
CLOSED = replace(REQUEST, withdrawn=True)


def test_a_newer_head_supersedes_the_older_of_the_same_request_and_no_push() -> None:
    newer = build("new", replace(REQUEST, id="2", push=pushed("2", before=A).push), commit=B)
    assert superseded(build("old", REQUEST, commit=A), newer) == ["old"]
    assert superseded(build("old", pushed("1"), commit=A), newer) == []
    assert superseded(build("old", REQUEST, pushed("1"), commit=A), newer) == []
    assert superseded(build("old", replace(REQUEST, ref="refs/pull/8/head"), commit=A), newer) == []


def test_what_was_for_a_closed_request_alone_ends() -> None:
    (report,) = decide(build("b", CLOSED))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert (report.word, report.outcome.reason) == (Word.CANCELLED, Reason.REQUESTED)
    assert report.outcome.message == "The pull request was closed."
    live = running("b", CLOSED)
    for supersede in Supersede:
        stop = only(decide(live, sightings=[sighting_of(live)], limits=Limits(supersede=supersede)))
        assert stop == Stop(build="b", attempt=1, reason=Reason.REQUESTED)
    told = running("b", CLOSED, attempts=(attempt(1, started_at=ago(9), stopping=Reason.REQUESTED),))
    end = only(decide(told, sightings=[sighting_of(told, Phase.ENDED, Result(state=State.CANCELLED))]))
    assert isinstance(end, Report)
    assert end.outcome is not None
    assert (end.word, end.outcome.message) == (Word.CANCELLED, "The pull request was closed.")


def test_what_somebody_else_waits_for_goes_on_when_the_request_is_closed() -> None:
    for other in (cause("1"), pushed("1"), replace(REQUEST, id="2", ref="refs/pull/8/head"), replace(REQUEST, id="2")):
        live = running("b", CLOSED, other)
        assert decide(live, sightings=[sighting_of(live)]) == []
        assert started(decide(build("b", CLOSED, other))) == ["b"]


def test_a_closed_request_and_pushes_that_have_moved_on_hold_nothing() -> None:
    newer = build("new", pushed("2", before=A), commit=B)
    assert superseded(build("old", CLOSED, pushed("1"), commit=A), newer) == ["old"]


def test_an_attempt_that_failed_is_not_tried_again_for_a_closed_request() -> None:
    live = running("b", CLOSED)
    lost = only(decide(live, sightings=[sighting_of(live, Phase.LOST)]))
    assert isinstance(lost, Report)
    assert lost.word is Word.CANCELLED
    (retry,) = decide(running("b", REQUEST), sightings=[sighting_of(live, Phase.LOST)])
    assert isinstance(retry, Report)
    assert retry.word is Word.RETRYING

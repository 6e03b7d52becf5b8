"""Each rule of the plan, once, in the smallest history that shows it."""

from __future__ import annotations

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
    Result,
    Sighting,
    State,
    Timings,
)
from builds.plan import (
    Action,
    Bury,
    Confirm,
    Confirmation,
    Deliver,
    Explain,
    Facts,
    Forget,
    ForgetLogs,
    Limits,
    Outcome,
    Report,
    Settle,
    Start,
    Stop,
    Supersede,
    Turns,
    Word,
    asker,
    expired,
    plan,
    rendezvous,
)
from eventing.event import Event
from tests.builds.histories import (
    IMAGE,
    NOW,
    ago,
    attempt,
    build,
    cause,
    failed,
    node,
    pushed,
    replace,
    running,
    sees,
)


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


# ---- Rounds -------------------------------------------------------------------------------------------------------


def test_a_new_record_is_announced_first() -> None:
    assert only(decide(build(round=0))) == Report(build="b", word=Word.QUEUED, attempt=1)


def test_a_failed_build_that_is_asked_for_again_gets_a_new_round_with_a_new_number() -> None:
    ended = build("b", cause("1"), cause("2"), state=State.FAILED, attempt=3, answered=(cause("1").key,))
    assert only(decide(ended)) == Report(build="b", word=Word.QUEUED, attempt=4)


def test_force_opens_a_round_on_what_succeeded() -> None:
    forced = build("b", cause("1", force=True), state=State.SUCCEEDED, attempt=1, image=IMAGE)
    assert only(decide(forced)) == Report(build="b", word=Word.QUEUED, attempt=2)


def test_what_has_ended_and_been_told_is_settled() -> None:
    assert only(decide(build(state=State.FAILED, answered=(cause().key,)))) == Settle(build="b")


class TestJoiners:
    """Somebody asks for an image that is there."""

    done = build("b", cause("1"), cause("2"), state=State.SUCCEEDED, image=IMAGE, answered=(cause("1").key,))

    def test_the_registry_is_asked_once(self) -> None:
        assert only(decide(self.done)) == Confirm(build="b")
        assert decide(self.done, confirming=frozenset({"b"})) == []

    def test_answered_at_once_if_it_is_still_there(self) -> None:
        confirmation = Confirmation(image=IMAGE, causes=(cause("2").key,))
        report = only(decide(self.done, confirmations={"b": confirmation}))
        outcome = Outcome(state=State.SUCCEEDED, image=IMAGE)
        assert report == Report(build="b", word=Word.SUCCEEDED, attempt=1, outcome=outcome, causes=(cause("2").key,))

    def test_built_again_if_it_has_gone(self) -> None:
        confirmation = Confirmation(image=None, causes=(cause("2").key,))
        report = only(decide(self.done, confirmations={"b": confirmation}))
        assert report == Report(build="b", word=Word.QUEUED, attempt=2)

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
    served = Turns(starts=4, served={"by user:a": 1})
    # b1: never served. Then a (1) before b (5); of a's, the oldest. The eighth start is the oldest's. Then b by
    # repository: r4 was never served.
    order = started(decide(*builds, limits=Limits(builds_per_node=9), turns=served))
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
    once = Turns(starts=1, served={"of https://h/served": 1})
    builds = [build("served", repository="https://h/served", created=99), build("never", repository="https://h/never")]
    assert started(decide(*builds, limits=Limits(builds_per_node=1), turns=once)) == ["never"]


def test_every_fourth_start_is_the_oldests() -> None:
    builds = [build("old", cause(kind=Kind.SYNC), created=900)]
    builds += [build(f"p{n}", cause(by=f"user:{n}"), created=n) for n in range(1, 8)]
    order = started(decide(*builds, limits=Limits(builds_per_node=9)))
    assert order[3] == "old"


@given(st.integers(1, 12), st.integers(1, 4))
def test_nobody_starves(rivals: int, per_node: int) -> None:
    """However many people ask, a sync build is the fourth to start, over as many looks as that takes."""
    turns = Turns()
    order: list[str] = []
    old = build("old", cause(kind=Kind.SYNC), created=900)
    while len(order) < 4:
        crowd = [build(f"p{n}", cause(by=f"user:{n}"), created=n) for n in range(rivals + per_node)]
        names = started(decide(old, *crowd, limits=Limits(builds_per_node=per_node), turns=turns))
        assert names
        for name in names:
            turns = turns.after(next(b for b in [old, *crowd] if b.name == name))
        order += names
    assert order[3] == "old"


def test_slots_are_taken_from_the_moment_that_a_start_is_written() -> None:
    live = build("live", attempts=(attempt(),))
    absent = sees(live, Phase.ABSENT, started_at=None)
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
    return sees(of, Phase.ENDED, result, ended_at=ago(1), **more)


INFRASTRUCTURE = Result(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="registry away")


def test_a_start_is_told_once_even_if_the_end_is_seen_first() -> None:
    fresh = build(attempts=(attempt(),))
    seen = ended(fresh, INFRASTRUCTURE, started_at=ago(9))
    assert only(decide(fresh, sightings=[seen])) == Report(build="b", word=Word.STARTED, attempt=1, at=ago(9))


def test_success_is_the_end() -> None:
    live = running()
    success = Result(state=State.SUCCEEDED, image=IMAGE, log_tail="done", message="ok")
    report = only(decide(live, sightings=[ended(live, success)]))
    outcome = Outcome(state=State.SUCCEEDED, image=IMAGE, log_tail="done", message="ok")
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
    assert report.outcome == Outcome(state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="registry away")
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
        report = only(decide(live, sightings=[sees(live, phase, terminated)]))
        assert isinstance(report, Report)
        assert report.word is word
        assert report.outcome is not None
        assert (report.outcome.reason, report.outcome.counted) == (Reason.INFRASTRUCTURE, False)
        assert report.outcome.message in (
            "The attempt was taken away before it ended.",
            "The attempt was terminated from outside.",
        )
        if report.retry_at:
            assert report.retry_at == NOW + timedelta(minutes=5), "backoff has an upper bound"


def test_the_engines_sentence_for_a_loss_is_told() -> None:
    live = running()
    report = only(decide(live, sightings=[sees(live, Phase.LOST, waiting="The node was drained.")]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert report.outcome.message == "The node was drained."


def test_an_uncounted_end_at_the_limit_is_tried_again() -> None:
    third = running(attempts=(failed(1), failed(2), attempt(3, started_at=ago(5))), attempt=3)
    report = only(decide(third, sightings=[sees(third, Phase.LOST)]))
    assert isinstance(report, Report)
    assert report.word is Word.RETRYING


def test_what_the_builder_measured_is_kept() -> None:
    live = running()
    timings = Timings(fetch=1, build=2)
    result = replace(INFRASTRUCTURE, timings=timings, out_of_memory=True, log_tail="Killed")
    report = only(decide(live, sightings=[ended(live, result)]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert (report.outcome.timings, report.outcome.out_of_memory, report.outcome.log_tail) == (timings, True, "Killed")


def test_an_end_without_a_result_is_infrastructure() -> None:
    live = running()
    report = only(decide(live, sightings=[ended(live, None)]))
    assert isinstance(report, Report)
    assert report.outcome == Outcome(
        state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="The builder ended without saying how."
    )


def test_a_retry_waits_for_its_time_and_goes_elsewhere() -> None:
    again = build(attempts=(failed(1, "n1"),), attempt=2, not_before=NOW + timedelta(seconds=5))
    nodes = [node("n1"), node("n2")]
    assert only(decide(again, nodes=nodes)) == Explain(build="b", waiting="Tried again after 12:00:05 UTC: gone")
    assert only(decide(again, nodes=nodes, now=NOW + timedelta(seconds=5))) == Start(build="b", attempt=2, node="n2")
    silent = build(attempts=(failed(1, message=None),), attempt=2, not_before=NOW + timedelta(seconds=5))
    waiting = "Tried again after 12:00:05 UTC: The last attempt failed."
    assert only(decide(silent)) == Explain(build="b", waiting=waiting)
    late = build(attempts=(failed(1),), attempt=2, not_before=ago(5))
    assert only(decide(late, nodes=[])) == Explain(build="b", waiting="No node has a ready Docker daemon.")
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
    crowded = decide(other, again, build("next"), sightings=[sees(other)])
    assert started(crowded) == [], "its node is kept free of newcomers until it is empty"
    nodes = [node("n1"), node("n2")]
    both = [running("x", node="n1"), running("y", node="n2")]
    assert len(started(decide(*both, again, build("next"), build("more"), nodes=nodes))) == 1, "the other node is free"
    alone = running("alone", attempts=(attempt(1, started_at=ago(5), alone=True),))
    assert started(decide(alone, build("next"), sightings=[sees(alone)])) == []
    later = build("later", attempts=(memory, failed(2)), attempt=3)
    assert only(decide(later)) == Start(build="later", attempt=3, node="n1")


# ---- Starts that were written -------------------------------------------------------------------------------------


def test_a_written_start_is_completed_on_the_same_node() -> None:
    written = build(attempts=(attempt(1, "n7", alone=True),))
    absent = sees(written, Phase.ABSENT)
    assert only(decide(written, sightings=[absent])) == Start(build="b", attempt=1, node="n7", alone=True)


def test_a_start_that_cannot_be_carried_out_is_given_up_after_the_grace() -> None:
    written = build(attempts=(attempt(1, written_at=ago(61)),))
    report = only(decide(written, sightings=[sees(written, Phase.ABSENT, waiting="No space left on device.")]))
    assert isinstance(report, Report)
    assert report.word is Word.RETRYING
    assert report.outcome is not None
    assert report.outcome.message == "No space left on device."
    report = only(decide(written, sightings=[sees(written, Phase.ABSENT)]))
    assert isinstance(report, Report)
    assert report.outcome is not None
    assert report.outcome.message == "The attempt could not be started."
    on_time = build(attempts=(attempt(1, written_at=ago(60)),))
    assert started(decide(on_time, sightings=[sees(on_time, Phase.ABSENT)])) == ["b"]


def test_nothing_is_done_about_an_attempt_that_cannot_be_seen() -> None:
    assert decide(running()) == []


def test_why_an_attempt_is_pending_is_told() -> None:
    pending = build(attempts=(attempt(),))
    seen = sees(pending, Phase.PENDING, waiting="Pulling the builder's image.")
    assert only(decide(pending, sightings=[seen])) == Explain(build="b", waiting="Pulling the builder's image.")
    assert decide(replace(pending, status=replace(pending.status, waiting=seen.waiting)), sightings=[seen]) == []


# ---- Cancel and time limit ----------------------------------------------------------------------------------------

CANCEL = Cancel(round=1, by="user:a", at=ago(1))


def test_cancelled_while_queued() -> None:
    report = only(decide(build(cancel=CANCEL)))
    assert isinstance(report, Report)
    assert (report.word, report.attempt) == (Word.CANCELLED, 1)
    assert report.outcome == Outcome(state=State.CANCELLED, reason=Reason.REQUESTED, message="Cancelled on request.")


def test_a_cancel_of_an_earlier_round_means_nothing() -> None:
    assert started(decide(build(cancel=CANCEL, round=2))) == ["b"]


def test_cancelled_between_the_written_start_and_the_attempt() -> None:
    written = build(attempts=(attempt(),), cancel=CANCEL)
    report = only(decide(written, sightings=[sees(written, Phase.ABSENT)]))
    assert isinstance(report, Report)
    assert (report.word, report.attempt, report.outcome and report.outcome.state) == (
        Word.CANCELLED,
        1,
        State.CANCELLED,
    )


def test_a_running_attempt_is_told_once_by_each_controller() -> None:
    live = running(cancel=CANCEL)
    assert only(decide(live, sightings=[sees(live)])) == Stop(build="b", attempt=1, reason=Reason.REQUESTED)
    told = running(cancel=CANCEL, attempts=(attempt(1, started_at=ago(9), stopping=Reason.REQUESTED),))
    assert only(decide(told, sightings=[sees(told)])) == Stop(build="b", attempt=1, reason=Reason.REQUESTED)
    assert decide(told, sightings=[sees(told)], stopped=frozenset({("b", 1)})) == []


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
        return decide(of, sightings=[sees(of, phase)], limits=limits, watched=watched)

    assert after(180, live) == []
    assert only(after(181, live)) == stop
    assert decide(live, sightings=[sees(live)], limits=limits) == [], "whatever the time of day says"
    never_ran = build(attempts=(attempt(),))
    assert only(after(181, never_ran, Phase.PENDING)) == stop
    for phase in (Phase.ENDED, Phase.ABSENT):
        stopped = running(attempts=(attempt(1, started_at=ago(181), stopping=Reason.TIMEOUT),))
        result = Result(state=State.CANCELLED) if phase is Phase.ENDED else None
        report = only(decide(stopped, sightings=[sees(stopped, phase, result)], limits=limits))
        assert isinstance(report, Report)
        assert (report.word, report.outcome and report.outcome.reason) == (Word.FAILED, Reason.TIMEOUT)


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
        actions = decide(old, new, sightings=[sees(old)], limits=Limits(supersede=supersede))
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
        "A newer push to the same ref took its place.",
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


def test_a_dead_letter_after_the_period_but_never_untried() -> None:
    old = ago(Limits().delivery_period.total_seconds())
    assert only(decide(announced(to(tries=1), at=old))) == Bury(build="b", event="e", sink="hub")
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
    assert expired(closed, limits, NOW + timedelta(hours=1)) == ForgetLogs(build="b")
    assert expired(closed, limits, NOW + timedelta(hours=2)) == Forget(build="b")
    assert expired(replace(closed, open=True), limits, NOW + timedelta(hours=9)) is None
    assert expired(replace(build(), open=False), limits, NOW + timedelta(days=99)) is None


def test_turns_are_bounded() -> None:
    turns = Turns()
    for n in range(1200):
        turns = turns.after(build("b", cause(by=f"user:{n}")))
    assert turns.starts == 1200
    assert turns.served["of https://github.com/a/b"] == 1200
    assert len(turns.served) == 1000
    assert turns.served["by user:1199"] == 1200
    assert "by user:1" not in turns.served

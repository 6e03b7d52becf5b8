"""The contract of an engine's record store, as tests that every engine must pass.

Subclass `RecordsContract` and give it a fixture `records`: a fresh engine that accepts up to 5 queued builds, 2 per
user. Pytest collects the tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from builds.build import (
    MAX_CAUSES,
    MAX_OUTBOX,
    Announcement,
    Build,
    BuildStatus,
    Delivery,
    DeliveryState,
    Kind,
    Push,
    State,
)
from builds.engines import AlreadyEnded, Conflict, Engine, NotFound, NothingToSend, QueueFull, Submission
from eventing.event import Event
from tests.builds.engine_factories import AT, new_submission, settled_build
from tests.parts.kiln import until


def everything(records: Engine, **filters: object) -> list[str]:
    """Return the names of the whole list, read in pages of three."""
    names, cursor = [], None
    while True:
        page = records.list(limit=3, cursor=cursor, **filters)  # type: ignore[arg-type]
        names += [build.name for build in page.builds]
        cursor = page.cursor
        if cursor is None:
            return names


class RecordsContract:
    def test_a_new_build_is_open_and_queued(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b", "1", by="token:ci")])
        assert (build.state, build.open, build.status.round) == (State.QUEUED, True, 0)
        assert build.uid
        assert build.revision
        assert [one.by for one in build.causes] == ["token:ci"]
        assert records.get("b") == build
        until(lambda: records.observe().builds == (build,))

    def test_a_known_cause_changes_nothing(self, records: Engine) -> None:
        first = records.accept([new_submission("b", "1")])
        assert records.accept([new_submission("b", "1")]) == first
        settled = records.write(settled_build(first[0]))
        assert records.accept([new_submission("b", "1")]) == [settled]

    def test_a_new_cause_joins(self, records: Engine) -> None:
        (first,) = records.accept([new_submission("b", "1")])
        (second,) = records.accept([new_submission("b", "2")])
        assert [one.id for one in second.causes] == ["1", "2"]
        assert second.uid == first.uid
        assert second.revision != first.revision

    def test_the_same_id_of_another_source_is_another_cause(self, records: Engine) -> None:
        records.accept([new_submission("b", "1")])
        other = new_submission("b", "1")
        (build,) = records.accept([replace(other, cause=replace(other.cause, source="/elsewhere"))])
        assert len(build.causes) == 2

    def test_one_name_asked_for_twice_in_one_call_is_one_build(self, records: Engine) -> None:
        builds = records.accept(
            [new_submission("b", "1"), new_submission("c", "1"), new_submission("b", "2"), new_submission("b", "1")]
        )
        assert [build.name for build in builds] == ["b", "c", "b", "b"]
        assert builds[0] == builds[2] == builds[3]
        assert [one.id for one in builds[0].causes] == ["1", "2"]

    @pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED])
    def test_a_new_cause_opens_an_ended_build_again(self, records: Engine, end: State) -> None:
        (build,) = records.accept([new_submission("b", "1")])
        records.write(settled_build(build, end))
        until(lambda: records.observe().builds == ())
        (again,) = records.accept([new_submission("b", "2")])
        assert (again.open, again.state) == (True, State.QUEUED)
        assert everything(records, state=State.QUEUED) == ["b"]
        assert everything(records, state=end) == []

    def test_a_succeeded_build_stays_succeeded_unless_forced(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b", "1")])
        records.write(settled_build(build, State.SUCCEEDED))
        (joined,) = records.accept([new_submission("b", "2")])
        assert (joined.open, joined.state) == (True, State.SUCCEEDED)
        (forced,) = records.accept([new_submission("b", "3", force=True)])
        assert (forced.open, forced.state) == (True, State.QUEUED)

    def test_answered_causes_make_room_but_the_first(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b", "0")])
        for n in range(1, MAX_CAUSES + 20):
            records.write(settled_build(build))
            (build,) = records.accept([new_submission("b", str(n))])
        assert [int(one.id) for one in build.causes] == [0, *range(21, MAX_CAUSES + 20)]

    def test_nobody_who_waits_is_pushed_out(self, records: Engine) -> None:
        first, other = new_submission("b", "first", by="webhook:github"), new_submission("b", "other", by="user:ada")
        other = replace(other, cause=replace(other.cause, tags=("hers",)))
        records.accept([first, other])
        for n in range(400):
            records.accept([new_submission("b", str(n), by="token:ci")])
        build = records.get("b")
        assert build.causes[:2] == (first.cause, other.cause)
        assert all(
            any(one.stands_for(new_submission("b", str(n)).cause.key) for one in build.causes) for n in range(400)
        )
        assert records.accept([new_submission("b", "17", by="token:ci")]) == [build], "known, though it is merged"

    def test_where_nobody_can_be_merged_who_comes_is_sent_away(self, records: Engine) -> None:
        for n in range(MAX_CAUSES):
            (build,) = records.accept([new_submission("b", by=f"user:{n}")])
        with pytest.raises(QueueFull) as full:
            records.accept([new_submission("b", by="user:late")])
        assert not full.value.per_user
        assert records.get("b") == build
        assert [one.by for one in build.causes] == [f"user:{n}" for n in range(MAX_CAUSES)]
        records.write(settled_build(build))
        assert records.accept([new_submission("b", by="user:late")]), "answered causes free places"

    # ---- Limits -----------------------------------------------------------------------------------------------------

    def test_the_queue_is_bounded_and_nothing_is_half_made(self, records: Engine) -> None:
        records.accept([new_submission(f"b{n}") for n in range(4)])
        with pytest.raises(QueueFull) as full:
            records.accept([new_submission("x"), new_submission("b0", "2"), new_submission("y")])
        assert not full.value.per_user
        assert everything(records) == ["b3", "b2", "b1", "b0"]
        assert len(records.get("b0").causes) == 1

    def test_joining_is_possible_when_the_queue_is_full_and_reopening_is_not(self, records: Engine) -> None:
        (old,) = records.accept([new_submission("old")])
        records.write(settled_build(old))
        records.accept([new_submission(f"b{n}") for n in range(5)])
        (joined,) = records.accept([new_submission("b0", "2")])
        assert len(joined.causes) == 2
        with pytest.raises(QueueFull):
            records.accept([new_submission("old", "2")])
        assert not records.get("old").open

    def test_running_builds_are_not_in_the_queue(self, records: Engine) -> None:
        for build in records.accept([new_submission(f"b{n}") for n in range(5)]):
            records.write(replace(build, status=replace(build.status, state=State.RUNNING, round=1)))
        assert records.accept([new_submission("x")])[0].state is State.QUEUED

    def test_who_asks_comes_back_later_where_too_many_events_wait_for_a_sink(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b", "1")])
        waiting = Delivery(sink="away", event="e", type="t", due_at=AT)
        announcement = Announcement(event=Event(id="e", source="/s", type="t"), at=AT, deliveries=(waiting,))
        records.write(replace(build, status=replace(build.status, outbox=(announcement,) * MAX_OUTBOX)))
        with pytest.raises(QueueFull):
            records.accept([new_submission("b", "2")])
        assert records.accept([new_submission("b", "1")])[0].causes == build.causes, (
            "a known cause gets the same answer"
        )

    @pytest.mark.parametrize("by", ["user:a", "oidc:a"])
    def test_each_person_has_a_share(self, records: Engine, by: str) -> None:
        records.accept([new_submission("b1", by=by), new_submission("b2", by=by)])
        with pytest.raises(QueueFull) as full:
            records.accept([new_submission("b3", by=by)])
        assert full.value.per_user
        assert records.accept([new_submission("b3", by=f"{by}b")])
        with pytest.raises(QueueFull) as full:
            records.accept([new_submission("b3", "2", by=by)])
        assert full.value.per_user, "who joins has asked, too"
        assert records.accept([new_submission("b1", by=by)]), "who is known asks for nothing new"

    @pytest.mark.parametrize("there", [State.QUEUED, State.RUNNING, State.SUCCEEDED])
    def test_who_asks_again_and_again_has_their_share_of_it(self, records: Engine, there: State) -> None:
        (build,) = records.accept([new_submission("b", "1", by="token:ci")])
        if there is not State.QUEUED:
            records.write(replace(settled_build(build, there), open=True))
        for n in range(2):
            records.accept([new_submission("b", str(n), by="user:a")])
        for _ in range(2):
            with pytest.raises(QueueFull) as full:
                records.accept([new_submission("b", "9", by="user:a")])
            assert full.value.per_user
        assert records.accept([new_submission("b", "9", by="user:z"), new_submission("b", "9", by="token:ci")])

    def test_what_has_begun_to_run_takes_no_place_in_the_queue(self, records: Engine) -> None:
        for build in records.accept([new_submission("b1", by="user:a"), new_submission("b2", by="user:a")]):
            records.write(replace(build, status=replace(build.status, state=State.RUNNING, round=1)))
        assert records.accept([new_submission("b3", by="user:a"), new_submission("b4", by="user:a")])

    def test_a_person_cannot_take_the_place_of_an_event_to_come(self, records: Engine) -> None:
        records.accept([new_submission("b", "sync:refs/heads/main", by="user:mallory")])
        (build,) = records.accept([new_submission("b", "sync:refs/heads/main", by="sync")])
        assert [one.by for one in build.causes] == ["user:mallory", "sync"]
        assert len({one.key for one in build.causes}) == 2

    @pytest.mark.parametrize("by", [None, "token:a", "webhook:github.com", "sync"])
    def test_only_people_have_a_share(self, records: Engine, by: str | None) -> None:
        assert len(records.accept([new_submission(f"b{n}", by=by) for n in range(5)])) == 5

    # ---- Writing ----------------------------------------------------------------------------------------------------

    def test_a_write_replaces_the_controllers_part_alone(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        changed = replace(
            build, status=BuildStatus(round=1, waiting="no node"), open=False, causes=(), created_at=AT, uid="other"
        )
        written = records.write(changed)
        assert (written.status, written.open) == (changed.status, False)
        assert (written.causes, written.uid, written.created_at) == (build.causes, build.uid, build.created_at)
        assert records.get("b") == written

    def test_a_write_fails_if_another_came_between(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b", "1")])
        records.accept([new_submission("b", "2")])
        with pytest.raises(Conflict):
            records.write(settled_build(build))
        current = records.get("b")
        records.cancel("b", None)
        with pytest.raises(Conflict):
            records.write(settled_build(current))
        assert records.get("b").open

    def test_a_write_needs_a_record(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        records.forget(build)
        with pytest.raises(NotFound):
            records.write(build)

    def test_the_revision_of_a_deleted_record_is_never_used_again(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        records.forget(build)
        (again,) = records.accept([new_submission("b")])
        assert again.uid != build.uid
        with pytest.raises(Conflict):
            records.write(build)

    # ---- Cancelling -------------------------------------------------------------------------------------------------

    def test_a_cancel_mark_is_for_its_round(self, records: Engine) -> None:
        records.accept([new_submission("b")])
        marked = records.cancel("b", "user:a")
        assert marked.cancel is not None
        assert (marked.cancel.round, marked.cancel.by) == (1, "user:a")
        assert records.cancel("b", "user:z") == marked, "the first mark holds"

    def test_a_build_that_waits_to_be_opened_again_is_cancelled_in_the_round_to_come(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        marked = records.cancel("b", None)
        records.write(settled_build(marked, State.CANCELLED))
        records.accept([new_submission("b", "2")])
        again = records.cancel("b", None)
        assert again.cancel is not None
        assert again.cancel.round == 2
        assert build.uid == again.uid

    def test_what_has_ended_cannot_be_cancelled(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        records.write(settled_build(build))
        with pytest.raises(AlreadyEnded):
            records.cancel("b", None)
        with pytest.raises(NotFound):
            records.cancel("unknown", None)

    # ---- Sending again ----------------------------------------------------------------------------------------------

    def test_the_last_event_can_be_sent_again_to_a_sink_that_had_one(self, records: Engine) -> None:
        records.accept([new_submission("b")])
        with pytest.raises(NothingToSend):
            records.resend("b", "hub", "user:root")
        had = Delivery(sink="hub", event="1", type="t", state=DeliveryState.DEAD, due_at=AT)
        over = settled_build(records.get("b"))
        done = records.write(replace(over, status=replace(over.status, deliveries=(had,)), open=False))
        with pytest.raises(NothingToSend):
            records.resend("b", "other", "user:root")
        marked = records.resend("b", "hub", "user:root")
        assert (marked.resending, marked.open, marked.status) == (("hub",), True, done.status)
        assert records.resend("b", "hub", "user:eve") == marked, "it waits already"
        acted = records.write(
            replace(marked, status=replace(marked.status, resent=tuple(mark.key for mark in marked.resends)))
        )
        assert acted.resending == ()
        with pytest.raises(NotFound):
            records.resend("unknown", "hub", None)

    # ---- Pull requests ----------------------------------------------------------------------------------------------

    def test_what_a_request_has_asked_for_is_taken_back_and_nothing_else(self, records: Engine) -> None:
        def of(id_: str, ref: str, push: Push | None) -> Submission:
            asked = new_submission("b", id_)
            return replace(asked, cause=replace(asked.cause, kind=Kind.PUSH, ref=ref, push=push))

        mine, another = "refs/pull/7/head", "refs/pull/8/head"
        pushed = Push(before=None)
        records.accept([of("1", mine, pushed), of("2", another, pushed), of("3", mine, None), of("4", mine, pushed)])
        after = records.withdraw("b", mine)
        assert [cause.id for cause in after.causes if cause.withdrawn] == ["1", "4"]
        assert records.get("b") == after
        assert records.withdraw("b", mine) == after, "it is written once"
        *_, again = records.accept([of("1", mine, pushed), of("5", mine, pushed)])
        assert [cause.id for cause in again.causes if not cause.withdrawn] == ["2", "3", "5"]
        records.write(settled_build(again))
        assert records.withdraw("b", mine) == records.get("b"), "it has ended"
        with pytest.raises(NotFound):
            records.withdraw("unknown", mine)

    # ---- Lists ------------------------------------------------------------------------------------------------------

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, *State])), max_size=12))
    def test_pages_join_to_the_whole_list(self, records: Engine, wanted: list[tuple[str, State | None]]) -> None:
        """The pages list each build once, newest first. A filter selects the same builds as a check of each one."""
        for name in everything(records):
            records.forget(records.get(name))
        expected: list[Build] = []
        for n, (repository, state) in enumerate(wanted):
            (build,) = records.accept([new_submission(f"b{n}", repository=f"https://example.org/{repository}")])
            if state is not None:
                open_ = not state.ended
                build = records.write(replace(settled_build(build, state), open=open_))
            if state in (None, State.QUEUED):  # stay below the limit of the queue, and reopen one
                build = records.write(settled_build(build, State.FAILED))
                if n % 5 == 0:
                    (build,) = records.accept([new_submission(f"b{n}", "again")])
            expected.insert(0, build)
        assert everything(records) == [build.name for build in expected]
        for state in State:
            assert everything(records, state=state) == [b.name for b in expected if b.state is state]
            for repository in ("https://example.org/a", "https://example.org/b"):
                both = [b.name for b in expected if b.state is state and b.request.repository == repository]
                assert everything(records, state=state, repository=repository) == both

    def test_a_page_ends_where_the_list_does(self, records: Engine) -> None:
        records.accept([new_submission(f"b{n}") for n in range(3)])
        assert records.list(limit=3).cursor is None
        assert records.list(limit=2).cursor is not None

    @pytest.mark.parametrize(
        "cursor", ["", "x", "!!!!", "bnVsbA==", "WzEsMl0=", "[1]", "é", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0="]
    )
    def test_a_foreign_cursor_is_refused(self, records: Engine, cursor: str) -> None:
        with pytest.raises(ValueError, match="cursor"):
            records.list(cursor=cursor)

    def test_web_knows_the_nodes_that_the_controller_sees(self, records: Engine) -> None:
        known, seen = records.nodes(), records.observe().nodes
        assert [(node.name, node.ready, node.why) for node in known] == [(one.name, one.ready, one.why) for one in seen]

    # ---- Waiting ----------------------------------------------------------------------------------------------------

    def test_changed_answers_at_once_where_there_is_news(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        began = time.monotonic()
        assert records.changed("b", "", 30) == build
        assert records.changed("b", build.revision, 0.1) is None
        assert time.monotonic() - began < 5
        with pytest.raises(NotFound):
            records.changed("unknown", "", 0.1)

    def test_many_wait_for_one_change(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        seen: list[Build | None] = []
        viewers = [
            threading.Thread(target=lambda: seen.append(records.changed("b", build.revision, 30))) for _ in range(20)
        ]
        for viewer in viewers:
            viewer.start()
        records.accept([new_submission("another")])
        (after,) = records.accept([new_submission("b", "2")])
        for viewer in viewers:
            viewer.join(30)
        assert seen == [after] * 20

    def test_a_waiting_controller_sees_a_change_a_wake_and_the_time(self, records: Engine) -> None:
        records.observe()
        _within(0.1, 5, lambda: records.wait(0.1))
        for news in (lambda: records.accept([new_submission("b")]), records.wake):
            records.observe()
            threading.Timer(0.2, news).start()
            _within(0.1, 5, lambda: records.wait(30))
        records.observe()
        records.accept([new_submission("c")])
        _within(0, 5, lambda: records.wait(30))

    # ---- Housekeeping -----------------------------------------------------------------------------------------------

    def test_closed_builds_may_be_forgotten_as_they_come(self, records: Engine) -> None:
        for n in range(5):
            (build,) = records.accept([new_submission(f"b{n}")])
            records.write(settled_build(build, at=AT + timedelta(hours=n)))
        records.accept([new_submission("open")])
        seen = []
        for build in filter(None, records.closed(AT + timedelta(hours=3))):
            seen.append(build.name)
            records.forget(build)
        assert sorted(seen) == ["b0", "b1", "b2", "b3"]
        assert everything(records) == ["open", "b4"]

    def test_a_build_that_is_asked_for_again_is_not_forgotten(self, records: Engine) -> None:
        (build,) = records.accept([new_submission("b")])
        settled = records.write(settled_build(build))
        records.accept([new_submission("b", "2")])
        records.forget(settled)
        assert records.get("b").state is State.QUEUED

    def test_no_log_is_no_line(self, records: Engine) -> None:
        for name in ("b", "unknown", "..", "../../etc/passwd", "a\0b", ""):
            assert list(records.log(name, 1)) == []


def _within(least: float, most: float, call: Callable[[], object]) -> None:
    began = time.monotonic()
    call()
    assert least <= time.monotonic() - began < most

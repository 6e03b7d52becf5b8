"""Locality of layers, derived from successful builds: the preferred nodes, and the images that a build may reuse."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Build, Image, Node, State
from builds.locality import LAYERS_KEPT, MAX_IMAGES, MAX_REPOSITORIES, MAX_SUCCESSES, RecentBuilds, success_of
from builds.plan import Facts, Limits, Start, plan
from tests.builds.plan_factories import NOW, ago, attempt, build, cause, failed, node, replace

MAIN, WORK, FORK = "refs/heads/main", "refs/heads/work", "refs/pull/7/head"
REPOSITORIES = ("https://h/a", "https://h/b", "https://h/c")
LONG_AGO = LAYERS_KEPT.total_seconds() + 1


def digest(word: str) -> str:
    return f"sha256:{word:0>64}"


def succeeded(
    word: str = "1",
    *,
    ref: str | None = MAIN,
    on: str = "n1",
    since: float = LONG_AGO,
    image: str = "r/x",
    repository: str = "https://h/a",
    subdir: str = "",
    **more: object,
) -> Build:
    ended = attempt(1, on, state=State.SUCCEEDED)
    made = build(
        f"b{word}",
        cause(word, ref=ref, **more),  # type: ignore[arg-type]
        repository=repository,
        state=State.SUCCEEDED,
        image=Image(repository=image, tag="t", digest=digest(word)),
        attempts=(ended,),
        finished_at=ago(since),
    )
    return replace(made, request=replace(made.request, image=image, subdir=subdir))


def waiting(ref: str | None = MAIN, *, repository: str = "https://h/a", **more: object) -> Build:
    return build("new", cause("new", ref=ref, **more), repository=repository)  # type: ignore[arg-type]


def noted(*builds: Build) -> RecentBuilds:
    warmth = RecentBuilds()
    for one in builds:
        warmth.note(one)
    return warmth


def start(new: Build, *history: Build, nodes: Sequence[Node] = (node("n1"), node("n2"))) -> Start:
    facts = Facts(builds=(new,), nodes=nodes, successes=noted(*history).successes)
    [action] = plan(facts, Limits(), NOW)
    assert isinstance(action, Start)
    return action


# Images


def test_a_build_reuses_the_last_image_of_its_ref_and_then_of_the_default_branch() -> None:
    history = (
        succeeded("1", ref=WORK, since=8000),
        succeeded("2", ref=WORK, since=7000),
        succeeded("3", ref=MAIN, since=6000, default=True),
        succeeded("4", ref="refs/heads/other", since=5000),
    )
    assert start(waiting(WORK), *history).cache_from == (digest("2"), digest("3"))
    assert start(waiting("refs/heads/new"), *history).cache_from == (digest("3"), digest("4"))
    assert start(waiting(None), *history[:2]).cache_from == (digest("2"), digest("1"))


def test_of_two_the_one_of_the_same_subdirectory_is_better() -> None:
    new = waiting()
    new = replace(new, request=replace(new.request, subdir="lessons"))
    history = (succeeded("1", subdir="lessons", since=9000), succeeded("2", since=8000))
    assert start(new, *history).cache_from[0] == digest("1")


def test_an_image_of_another_repository_or_under_another_name_is_not_reused() -> None:
    """A repository's images change their name when the repository becomes private or public."""
    assert start(waiting(), succeeded(repository="https://h/b"), succeeded("2", image="r/private/x")).cache_from == ()


def test_what_a_fork_has_had_built_is_for_that_request_alone() -> None:
    theirs = succeeded("1", ref=FORK, foreign=True)
    mine = succeeded("2", since=9000)
    assert start(waiting(), theirs, mine).cache_from == (digest("2"),)
    assert start(waiting(FORK), theirs, mine).cache_from == (digest("2"),), "that ref, and not as a fork's"
    assert start(waiting("refs/pull/8/head", foreign=True), theirs, mine).cache_from == (digest("2"),)
    assert start(waiting(FORK, foreign=True), theirs, mine).cache_from == (digest("1"), digest("2"))


def test_a_node_that_has_just_built_it_needs_no_image() -> None:
    assert start(waiting(), succeeded(since=60)).cache_from == ()
    assert start(waiting(), succeeded(since=60), nodes=(node("n2"),)).cache_from == (digest("1"),)
    assert start(waiting(), succeeded(since=LONG_AGO)).cache_from == (digest("1"),), "its cache may have been cleaned"
    assert start(waiting(), succeeded(since=-60)).cache_from == (digest("1"),), "nobody's clock decides"


def test_after_a_failed_attempt_no_image_is_reused() -> None:
    again = replace(waiting(), status=replace(waiting().status, attempt=2, attempts=(failed(1),)))
    assert start(again, succeeded()).cache_from == ()


# Nodes


@pytest.mark.parametrize("home", ["n1", "n2", "n3"])
def test_a_build_goes_where_its_ref_was_built_last(home: str) -> None:
    other = "n2" if home == "n1" else "n1"
    nodes = (node("n1"), node("n2"), node("n3"))
    history = (succeeded("1", on=home, since=900), succeeded("2", on=other, ref=WORK, since=60))
    assert start(waiting(), *history, nodes=nodes).node == home
    full = [one for one in nodes if one.name != home]
    assert start(waiting(), *history, nodes=full).node == other, "then where the repository was"


def test_then_where_anything_was_built_for_that_left_a_base_image() -> None:
    for home in ("n1", "n2"):
        assert start(waiting(), succeeded(repository="https://h/b", on=home)).node == home


def test_a_node_that_has_nothing_is_used_at_once() -> None:
    new = [replace(waiting(), name=f"new{n}") for n in range(3)]
    facts = Facts(builds=new, nodes=(node("n1"), node("joined")), successes=noted(succeeded(on="n1")).successes)
    actions = plan(facts, Limits(builds_per_node=2), NOW)
    assert sorted(one.node or "" for one in actions if isinstance(one, Start)) == ["joined", "n1", "n1"]


HISTORIES = st.lists(
    st.builds(
        succeeded,
        st.from_regex(r"\A[0-9a-f]{1,3}\Z"),
        ref=st.sampled_from([MAIN, WORK, FORK, None]),
        on=st.sampled_from(["n0", "n1", "n2", "gone"]),
        since=st.floats(-100, 100_000),
        repository=st.sampled_from(REPOSITORIES),
        image=st.sampled_from(["r/x", "r/y"]),
        foreign=st.booleans(),
        default=st.booleans(),
    ),
    max_size=12,
)
QUEUES = st.lists(
    st.tuples(
        st.sampled_from(REPOSITORIES),
        st.sampled_from([MAIN, FORK, None]),
        st.booleans(),
        st.sampled_from(["user:a", "user:b"]),
    ),
    max_size=8,
)


@given(history=HISTORIES, queue=QUEUES, ready=st.integers(1, 3), slots=st.integers(1, 3))
def test_no_node_is_waited_for_and_nobody_changes_places(
    history: list[Build], queue: list[tuple[str, str | None, bool, str]], ready: int, slots: int
) -> None:
    new = tuple(
        build(f"new{n}", cause(f"new{n}", ref=ref, foreign=fork, by=by), repository=repository, created=60 + n)
        for n, (repository, ref, fork, by) in enumerate(queue)
    )
    facts = Facts(builds=new, nodes=tuple(node(f"n{n}") for n in range(ready)))
    warm = replace(facts, successes=noted(*history).successes)
    limits = Limits(builds_per_node=slots)
    cold_starts, starts = ([one for one in plan(each, limits, NOW) if isinstance(one, Start)] for each in (facts, warm))
    assert [one.build for one in starts] == [one.build for one in cold_starts]
    assert len(starts) == min(len(new), ready * slots), "no slot stays free while a build waits"
    assert all(one.cache_from == () for one in cold_starts)
    by_name = {one.name: one for one in new}
    for one in starts:
        assert len(one.cache_from) <= MAX_IMAGES
        asked = by_name[one.build]
        for image in one.cache_from:
            assert any(_may_reuse(asked, of) and of.status.image and of.status.image.digest == image for of in history)


def _may_reuse(asked: Build, of: Build) -> bool:
    mine = (of.request.repository, of.request.image) == (asked.request.repository, asked.request.image)
    return mine and of.apart(of.causes) in (None, asked.apart(asked.causes))


# Recorded history


@given(history=HISTORIES, data=st.data())
def test_the_order_in_which_records_are_read_does_not_matter(history: list[Build], data: st.DataObject) -> None:
    unlike = {(one.request.repository, one.status.finished_at): one for one in history}
    other = data.draw(st.permutations([*unlike.values()] * 2))
    assert dict(noted(*unlike.values()).successes) == dict(noted(*other).successes)


def test_it_is_bounded() -> None:
    many = noted(*(succeeded(repository=f"https://h/{n}") for n in range(MAX_REPOSITORIES + 1)))
    assert len(many.successes) == MAX_REPOSITORIES
    assert "https://h/0" not in many.successes
    one = noted(*(succeeded(f"{n}", since=n) for n in range(MAX_SUCCESSES + 5)))
    assert [each.digest for each in one.successes["https://h/a"]] == [digest(f"{n}") for n in range(MAX_SUCCESSES)]


def test_what_has_not_succeeded_is_not_remembered() -> None:
    assert success_of(waiting()) is None
    assert not noted(waiting(), replace(waiting(), status=replace(succeeded().status, image=None))).successes
    assert timedelta() < LAYERS_KEPT

"""The specification that a builder gets."""

from __future__ import annotations

from datetime import timedelta

import pytest

from builds.builder.spec import Surroundings, Tags, spec_for
from tests.builds.plan_factories import attempt, build, cause, pushed, replace

AROUND = Surroundings(git_credentials="/secrets/git-credentials", timeout=60)


@pytest.mark.parametrize("given", [True, False])
def test_stored_git_credentials_go_along_for_who_may_use_them(given: bool) -> None:
    asked = build("b", cause("1", credentials=given), cause("2"))
    expected = AROUND if given else replace(AROUND, git_credentials=None)
    assert spec_for(asked, attempt(), AROUND).surroundings == expected


def test_a_webhook_that_was_answered_long_ago_lends_nobody_its_credentials() -> None:
    asked = build("b", pushed("1"), cause("2", by="user:a"), answered=(pushed("1").key,))
    assert spec_for(asked, attempt(), AROUND).surroundings.git_credentials is None
    assert spec_for(build("b", pushed("1"), cause("2")), attempt(), AROUND).surroundings.git_credentials is not None


@pytest.mark.parametrize(
    ("node", "timeout", "seconds"), [("n1", 3600, 30), (None, 3600, 600), (None, 400, 200), ("n1", 20, 10)]
)
def test_an_attempt_that_brings_its_node_waits_for_the_first_daemon_there(
    node: str | None, timeout: float, seconds: float
) -> None:
    live = replace(attempt(), node=node)
    assert spec_for(build("b"), live, replace(AROUND, timeout=timeout)).daemon_patience == seconds


def test_a_tag_is_held_to_the_branch_where_the_host_has_no_ref_for_a_request() -> None:
    request = replace(pushed("1"), ref="refs/pull-requests/7/from", tags=("pr-7",))
    assert spec_for(build("b", request), attempt(), AROUND).tags == (Tags(ref=request.ref, names=("pr-7",)),)
    headed = replace(request, head="refs/heads/topic")
    assert spec_for(build("b", headed), attempt(), AROUND).tags == (Tags(ref="refs/heads/topic", names=("pr-7",)),)


def test_a_fork_s_build_shares_no_cache_mounts() -> None:
    fork = replace(pushed("1"), ref="refs/pull/7/head", foreign=True)
    assert spec_for(build("b", fork, cause("2")), attempt(), AROUND).apart == "refs/pull/7/head"
    assert spec_for(build("b", pushed("1")), attempt(), AROUND).apart is None
    assert spec_for(build("b", fork, cause("2"), answered=(fork.key,)), attempt(), AROUND).apart is None


def test_every_cause_has_its_tags_and_force_is_for_those_who_wait() -> None:
    causes = (cause("1", tags=("main",), force=True), cause("2", tags=("main", "v1"), ref="refs/tags/v1"))
    spec = spec_for(build("b", *causes), attempt(3), AROUND)
    assert spec.tags == (
        Tags(ref="refs/heads/main", names=("main",)),
        Tags(ref="refs/tags/v1", names=("main", "v1")),
    )
    assert (spec.attempt, spec.attempt_label, spec.force) == (3, "uid-b.3", True)
    assert spec_for(build("b", *causes, answered=(causes[0].key,)), attempt(), AROUND).force is False


@pytest.mark.parametrize(("minutes", "expected"), [(0, True), (4, True), (5, False)])
def test_a_pushed_commit_may_not_be_served_at_once(minutes: int, expected: bool) -> None:
    push = pushed("1")
    late = replace(attempt(), written_at=push.at + timedelta(minutes=minutes))
    assert spec_for(build("b", push), late, AROUND).just_pushed is expected
    assert not spec_for(build("b", cause("1")), late, AROUND).just_pushed


def test_a_fork_is_apart_from_its_repository_where_its_ref_is_not_known_too() -> None:
    theirs = build("b", cause("1", ref=None, foreign=True))
    assert spec_for(theirs, attempt(), AROUND).apart == theirs.request.commit
    assert spec_for(build("b", cause("1", ref="refs/pull/7/head", foreign=True)), attempt(), AROUND).apart
    assert spec_for(build("b", cause("1", ref=None)), attempt(), AROUND).apart is None


def test_images_to_reuse_are_the_repositorys_by_digest_and_never_private_ones() -> None:
    digest = "sha256:" + "1" * 64
    live = replace(attempt(), cache_from=(digest,))
    spec = spec_for(build("b"), live, AROUND)
    assert spec.cache_from == (f"r/x@{digest}",)
    assert spec.cached
    assert not replace(spec, surroundings=replace(AROUND, private_image_prefix="r/")).cached
    assert not replace(spec, surroundings=replace(AROUND, build_cache=False)).cached

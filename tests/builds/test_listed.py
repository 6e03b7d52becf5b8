"""The missing builds of a listed repository: a ref counts as its push, and no build is requested twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import SYNC, Build, Cause, Kind, Push, Reason, State
from builds.engines import Submission
from builds.engines.marks import joined
from builds.plan import Facts, Limits, Report, Word, plan
from builds.repository import HostKind, Refs, canonical
from builds.sync.missing import Ref, Seen, due, moved, pushes
from builds.triggers import DEFAULT, PushRule, Trigger, requested_builds
from eventing.hosts import DIALECTS, push_of, pushed
from tests.builds.plan_factories import NOW, ago, attempt, build, cause, node, replace

URL = "https://github.com/Our-Org/Course"
A, B, C = "a" * 40, "b" * 40, "c" * 40
MAIN, TAG = "refs/heads/main", "refs/tags/v1"

names = st.from_regex(r"[a-z0-9]{1,4}(/[a-z0-9]{1,4}){0,2}", fullmatch=True)
full_names = st.builds("refs/{}/{}".format, st.sampled_from(["heads", "tags"]), names)
commits = st.from_regex(r"[0-9a-f]{39}[1-9a-f]", fullmatch=True)
globs = st.none() | st.lists(names | st.sampled_from(["*", "**", "v*", "*/*"]), max_size=3).map(tuple)


def seen_of(refs: Refs, url: str = URL) -> list[Ref]:
    return list(pushes(url, canonical(url, {}), refs))


def the_push(ref: str = MAIN, commit: str = A, url: str = URL) -> Ref:
    (found,) = seen_of(Refs(commits={ref: commit}, default=MAIN), url)
    return found


# Refs as pushes


def test_a_ref_is_the_push_that_made_it() -> None:
    event = the_push().push
    assert (event.id, event.type, event.source, event.subject) == (
        f"sync:{MAIN}:{A}",
        "com.github.push",
        "https://github.com/Our-Org/Course",
        MAIN,
    )
    push = push_of(event)
    assert push is not None
    assert (push.repository, push.ref, push.commit) == (f"{URL}.git", MAIN, A)
    assert (push.before, push.pushed_at, push.paths, push.default_branch) == (None, None, None, "main")
    assert isinstance(event.data, dict)
    assert event.data["repository"]["full_name"] == "Our-Org/Course"


@pytest.mark.parametrize("spelled", [URL, f"{URL}/", f"{URL}.git", f"{URL}.git/"])
def test_spelling_changes_no_source(spelled: str) -> None:
    assert the_push(url=spelled).push == the_push().push


@pytest.mark.parametrize("word", sorted(DIALECTS))
def test_a_push_is_worded_as_its_own_host_does(word: str) -> None:
    url = "https://git.example.com/lab/sample"
    repository = canonical(url, {"git.example.com": HostKind(word)})
    (ref,) = pushes(url, repository, Refs(commits={MAIN: A}, default=MAIN))
    assert ref.push.type == f"com.{word}.push"
    (want,) = requested_builds(DEFAULT, ref.push)
    assert (want.repository, want.ref, want.commit) == (f"{url}.git", MAIN, A)


@pytest.mark.parametrize("url", ["https://git.example/group/course", "http://git.example/course", "file:///srv/course"])
def test_a_host_whose_dialect_is_not_known_is_told_of_in_the_usual_one(url: str) -> None:
    (want,) = requested_builds(DEFAULT, the_push(url=url).push)
    assert (want.ref, want.commit) == (MAIN, A)
    assert canonical(want.repository).url == canonical(url).url


@given(st.dictionaries(full_names, commits, max_size=6), st.data())
def test_the_default_trigger_selects_the_default_branch_alone(found: dict[str, str], data: st.DataObject) -> None:
    default = data.draw(st.sampled_from([None, *(name for name in found if name.startswith("refs/heads/"))]))
    selected = [
        ref.name for ref in seen_of(Refs(commits=found, default=default)) if requested_builds(DEFAULT, ref.push)
    ]
    assert selected == ([] if default is None else [default])


@given(full_names, commits, globs, globs)
def test_triggers_decide_as_they_do_for_the_webhook(
    ref: str, commit: str, branches: tuple[str, ...] | None, tags: tuple[str, ...] | None
) -> None:
    """`paths` matches, as always when the changed paths are unknown."""
    rule = Trigger(name="t", push=PushRule(branches=branches, tags=tags, paths=("binder/**",)))
    payload: dict[str, Any] = {
        "ref": ref,
        "before": "f" * 40,
        "after": commit,
        "head_commit": {"id": commit},
        "repository": {"url": URL, "clone_url": f"{URL}.git", "default_branch": "main"},
    }
    webhook = replace(the_push().push, subject=ref, data=payload)
    mine, theirs = (requested_builds([rule], event) for event in (the_push(ref, commit).push, webhook))
    assert [replace(want, push=None) for want in mine] == [replace(want, push=None) for want in theirs]
    assert [want.push for want in mine] == [Push(before=None) for _ in mine], "what it replaced is not known"


@given(st.sampled_from(sorted(DIALECTS)), full_names, commits, names)
def test_every_dialect_understands_the_push_it_makes(word: str, ref: str, commit: str, default: str) -> None:
    event = pushed(word, id="1", repository=f"{URL}.git", ref=ref, commit=commit, default_branch=default)
    push = DIALECTS[word].facts(event)
    assert (push.repository, push.ref, push.commit, push.default_branch) == (f"{URL}.git", ref, commit, default)
    assert (push.before, push.paths, push.deleted, push.pushed_at) == (None, None, False, None)


def test_the_default_branch_comes_first_and_what_is_no_branch_or_tag_not_at_all() -> None:
    found = [
        "refs/tags/v1",
        "refs/heads/a",
        "refs/heads/main",
        "refs/pull/1/head",
        "refs/heads/a..b",
        "refs/heads/-\x7f",
    ]
    seen = seen_of(Refs(commits=dict.fromkeys(found, A), default=MAIN))
    assert [ref.name for ref in seen] == [MAIN, "refs/heads/a", "refs/tags/v1"]


# Missing builds


def ask(ref: str = MAIN, commit: str = A, *, tags: tuple[str, ...] = ()) -> Submission:
    event = the_push(ref, commit).push
    own = cause(event.id, kind=Kind.SYNC, by=SYNC, push=Push(before=None), ref=ref, tags=tags, at=NOW)
    request = build(commit=commit).request
    return Submission(name=f"b-{commit[0]}", request=request, cause=replace(own, source=event.source))


def record(state: State, *causes: Cause, reason: Reason | None = None) -> Build:
    answered = tuple(one.key for one in causes) if state.ended else ()
    return build(f"b-{A[0]}", *causes, commit=A, state=state, reason=reason, answered=answered)


WEBHOOK = cause("d-1", kind=Kind.PUSH, by="webhook:github", push=Push(before=B), tags=("main",))
API = cause("api", ref=None)


def test_what_nobody_has_asked_for_is_asked_for() -> None:
    assert due(ask(), None, None) == ask()


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.SUCCEEDED, State.FAILED])
def test_what_was_asked_for_is_there_whatever_became_of_it(state: State) -> None:
    assert due(ask(tags=("main",)), record(state, WEBHOOK), None) is None
    assert due(ask(), record(state, API), None) is None


def test_of_what_failed_only_what_its_host_did_not_serve_is_missing() -> None:
    failed = record(State.FAILED, WEBHOOK, reason=Reason.REPOSITORY)

    def after(*unserved: bool) -> Build:
        attempts = tuple(attempt(number, unserved=each) for number, each in enumerate(unserved, start=1))
        return replace(failed, status=replace(failed.status, attempts=attempts))

    assert due(ask(tags=("main",)), after(True, False), None) is None
    further = due(ask(tags=("main",)), after(False, True), None)
    assert further is not None
    assert (further.cause.tags, further.cause.push) == (("main",), None)


@pytest.mark.parametrize(
    ("reason", "again"), [(Reason.REQUESTED, False), (Reason.SUPERSEDED, True), (Reason.DELETED, False)]
)
def test_of_what_was_cancelled_only_what_was_superseded_is_missing(reason: Reason, again: bool) -> None:
    """The ref points to this commit, so the push that superseded it no longer holds."""
    assert (due(ask(), record(State.CANCELLED, WEBHOOK, reason=reason), None) is not None) is again


def test_tags_that_nobody_wanted_are_missing_unless_there_is_no_image() -> None:
    for known in (API, WEBHOOK):
        further = due(ask(TAG, tags=("v1",)), record(State.SUCCEEDED, known), None)
        assert further is not None
        assert (further.cause.tags, further.cause.ref, further.cause.push) == (("v1",), TAG, None)
        assert due(ask(TAG, tags=("v1",)), record(State.FAILED, known), None) is None


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_ref_that_came_back_was_pushed(state: State) -> None:
    """A webhook would have restored the tags or caused another attempt. If none arrived, the poll does so."""
    back = moved(the_push(), Seen(commit=B, at=ago(30)))
    before = record(state, replace(WEBHOOK, at=ago(60)), reason=Reason.REQUESTED)
    assert due(ask(tags=("main",)), before, back) is not None
    heard = record(state, WEBHOOK, replace(WEBHOOK, id="d-2", at=ago(10)), reason=Reason.REQUESTED)
    assert due(ask(tags=("main",)), heard, back) is None


def test_a_ref_that_stands_still_has_not_moved() -> None:
    assert moved(the_push(), Seen(commit=A, at=NOW)) is None
    assert moved(the_push(), None) is None


@given(
    st.sampled_from(State),
    st.none() | st.sampled_from(Reason),
    st.lists(st.sampled_from([WEBHOOK, API, ask().cause]), min_size=1, unique=True),
    st.none() | st.builds(Seen, commit=st.sampled_from([A, B]), at=st.just(ago(30))),
    st.sampled_from([(), ("main",), ("main", "x")]),
)
def test_once_asked_for_it_is_there(
    state: State, reason: Reason | None, causes: list[Cause], seen: Seen | None, tags: tuple[str, ...]
) -> None:
    """Repeating a comparison changes nothing, and every submission adds a cause to the record."""
    wants, there, elsewhere = ask(tags=tags), record(state, *causes, reason=reason), moved(the_push(), seen)
    further = due(wants, there, elsewhere)
    assert further == due(wants, there, elsewhere), "two concurrent polls request the same builds"
    if further is not None:
        after = joined(there, [further], uid=lambda: "", now=NOW, share=20)
        assert after.causes[:-1] == there.causes
        assert due(wants, after, elsewhere) is None
        assert due(wants, after, None) is None


# Superseding


def superseded(*builds: Build) -> list[str]:
    actions = plan(Facts(builds=builds, nodes=[node()]), Limits(builds_per_node=1), NOW)
    return [action.build for action in actions if isinstance(action, Report) and action.word is Word.CANCELLED]


def waiting(asked: Submission | None) -> Build:
    assert asked is not None
    return build(asked.name, asked.cause, commit=asked.request.commit)


def test_a_ref_that_was_seen_to_move_supersedes_what_waits() -> None:
    first = waiting(due(ask(commit=A), None, None))
    second = waiting(due(ask(commit=B), None, moved(the_push(commit=B), Seen(commit=A, at=ago(30)))))
    third = waiting(due(ask(commit=C), None, None))
    assert superseded(first, second) == [first.name]
    assert superseded(first, third) == [], "what was not seen to move says nothing"


def test_a_webhook_supersedes_what_was_synced_before_it() -> None:
    first = waiting(due(ask(commit=A), None, None))
    webhook = build("webhook", cause("d-2", kind=Kind.PUSH, push=Push(before=A)), commit=B)
    assert superseded(first, webhook) == [first.name]


def test_what_comes_back_is_not_superseded_again() -> None:
    took_its_place = build("webhook", cause("d-2", kind=Kind.PUSH, push=Push(before=A)), commit=B)
    lost = record(State.CANCELLED, WEBHOOK, reason=Reason.SUPERSEDED)
    again = due(ask(), lost, moved(the_push(), Seen(commit=C, at=ago(30))))
    assert again is not None
    opened = replace(joined(lost, [again], uid=lambda: "", now=NOW, share=20), cancel=None)
    opened = replace(opened, status=replace(opened.status, state=State.QUEUED, reason=None))
    assert superseded(took_its_place, opened) == []

"""The builds that events request. A template is a text with placeholders, never code."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Push
from builds.errors import CannotBuild, Malformed, RequestError, RuleError
from builds.triggers import (
    DEFAULT,
    PushRule,
    RequestedBuild,
    Template,
    Trigger,
    TriggerRule,
    plain,
    requested_builds,
    template,
)
from eventing.event import Event
from tests.builds.rules import load

SAMPLES = Path(__file__).parents[1] / "eventing" / "samples" / "github"
COMMIT = "a" * 40
BEFORE = "b" * 40


def triggers(text: str) -> tuple[Trigger, ...]:
    return load(msgspec.convert(yaml.safe_load(text), tuple[TriggerRule, ...]))


def event(data: object = None, *, type: str = "org.example.course", **more: Any) -> Event:  # noqa: A002
    return Event(id="1", source="https://example.org/courses", type=type, data=data, **more)


def push(ref: str = "refs/heads/main", *, files: list[str] | None = None, **changes: Any) -> Event:
    """A push of one commit, as GitHub sends it."""
    commit = {"id": COMMIT, "added": files or ["a"], "modified": [], "removed": []}
    data = {
        "ref": ref,
        "before": BEFORE,
        "after": COMMIT,
        "created": False,
        "deleted": False,
        "forced": False,
        "head_commit": commit,
        "commits": [commit],
        "repository": {
            "clone_url": "https://github.com/Our-Org/Stats.git",
            "url": "https://github.com/our-org/stats",
            "default_branch": "main",
            "pushed_at": 1772366400,
        },
        **changes,
    }
    return Event(id="1", source="https://github.com/our-org/stats", type="com.github.push", subject=ref, data=data)


def texts(want: RequestedBuild) -> tuple[str, dict[str, str], str | None, tuple[str, ...]]:
    return (
        want.subdir.text(),
        {name: value.text() for name, value in want.build_args.items()},
        None if want.image is None else want.image.text(),
        tuple(tag.text() for tag in want.tags),
    )


# Without triggers


def test_by_default_a_push_to_the_default_branch_is_built_at_its_commit() -> None:
    (want,) = requested_builds(DEFAULT, push())
    assert want == RequestedBuild(
        repository="https://github.com/Our-Org/Stats.git",
        ref="refs/heads/main",
        commit=COMMIT,
        trigger="default",
        push=Push(before=BEFORE, at=datetime(2026, 3, 1, 12, tzinfo=UTC)),
        default=True,
    )
    assert load(None) is DEFAULT


@pytest.mark.parametrize(
    "other",
    [
        push("refs/heads/other"),
        push("refs/tags/main"),
        push("refs/heads/feature/main"),
        push(after="0" * 40, deleted=True, head_commit=None),
        event({"repository": {"clone_url": "https://github.com/a/b"}}),
        event(type="com.github.release.published"),
    ],
)
def test_by_default_nothing_else_is_built(other: Event) -> None:
    assert requested_builds(DEFAULT, other) == []


def test_a_tag_whose_commit_the_host_does_not_say_is_looked_up() -> None:
    (want,) = requested_builds(triggers("[{name: all}]"), push("refs/tags/tree", head_commit=None))
    assert (want.ref, want.commit) == ("refs/tags/tree", None)


def test_an_empty_list_of_triggers_builds_nothing() -> None:
    assert requested_builds(load([]), push()) == []


def test_knative_spells_the_same_push_otherwise() -> None:
    other = msgspec.structs.replace(push(), type="dev.knative.source.github.push")
    assert requested_builds(DEFAULT, other) == requested_builds(DEFAULT, push())


def test_real_pushes() -> None:
    built = {}
    for name in ("push", "push-annotated-tag", "push-deleted", "push-forced", "push-new-branch", "push-tag"):
        data = json.loads((SAMPLES / f"{name}.json").read_text())
        sample = Event(id="1", source=data["repository"]["url"], type="com.github.push", subject=data["ref"], data=data)
        found = requested_builds(triggers("[{name: all}]"), sample)
        built[name] = [(want.ref, want.commit) for want in found]
        if found:
            assert found[0].commit == data["head_commit"]["id"]
    assert built["push-deleted"] == []
    assert all(len(found) == 1 for name, found in built.items() if name != "push-deleted")


# Pushes


@pytest.mark.parametrize(
    ("rule", "ref", "is_wanted"),
    [
        ("{branches: [main]}", "refs/heads/main", True),
        ("{branches: [main]}", "refs/heads/maintenance", False),
        ("{branches: [main]}", "refs/tags/main", False),
        ('{branches: ["release/*"]}', "refs/heads/release/1", True),
        ('{branches: ["release/*"]}', "refs/heads/release/1/2", False),
        ('{branches: ["release/**"]}', "refs/heads/release/1/2", True),
        ('{tags: ["v*"]}', "refs/tags/v1", True),
        ('{tags: ["v*"]}', "refs/heads/v1", False),
        ('{tags: ["v*"], branches: [main]}', "refs/heads/main", True),
        ('{tags: ["v*"], branches: [main]}', "refs/tags/v1", True),
        ("{branches: ['**', '!wip/**', 'wip/show']}", "refs/heads/main", True),
        ("{branches: ['**', '!wip/**', 'wip/show']}", "refs/heads/wip/x", False),
        ("{branches: ['**', '!wip/**', 'wip/show']}", "refs/heads/wip/show", True),
        ("{}", "refs/heads/main", True),
        ("{}", "refs/tags/v1", True),
    ],
)
def test_branches_and_tags(rule: str, ref: str, is_wanted: bool) -> None:
    assert bool(requested_builds(triggers(f"[{{name: a, push: {rule}}}]"), push(ref))) is is_wanted


def test_paths() -> None:
    rules = triggers('[{name: a, push: {paths: ["binder/**", "*.yml"]}}]')

    def built(**changes: Any) -> bool:
        return bool(requested_builds(rules, push(**changes)))

    assert built(files=["binder/environment.yml"])
    assert built(files=["README.md", "environment.yml"])
    assert not built(files=["README.md", "docs/binder/x", "docs/environment.yml"])
    commit = {"id": COMMIT, "added": ["README.md"], "modified": [], "removed": []}
    assert not built(commits=[commit] * 2047)
    assert built(commits=[commit] * 2048), "a list that may have been cut can hide anything"
    assert built(commits=[commit, {**commit, "added": []}]), "so can one that is empty"
    assert built(files=["README.md"], forced=True)
    assert built(files=["README.md"], created=True, before="0" * 40)
    assert built(ref="refs/tags/v1", files=["README.md"]), "a tag changes no files"


def test_with_push_only_pushes_match() -> None:
    rules = triggers('[{name: a, push: {}, build: {repository: "https://github.com/a/b"}}]')
    assert requested_builds(rules, event()) == []
    assert len(requested_builds(rules, push())) == 1


def test_all_filters_must_hold() -> None:
    rules = triggers(
        """
        - name: courses
          filters:
            - exact: {type: com.github.push}
            - any: [{prefix: {source: "https://github.com/our-org/"}}, {suffix: {subject: /course}}]
        """
    )
    assert len(requested_builds(rules, push())) == 1
    assert requested_builds(rules, msgspec.structs.replace(push(), source="https://github.com/other/stats")) == []
    assert requested_builds(rules, event()) == []


def test_each_trigger_that_matches_asks() -> None:
    rules = triggers("[{name: a}, {name: b, build: {subdir: x}}, {name: c, push: {tags: [v1]}}]")
    assert [want.trigger for want in requested_builds(rules, push())] == ["a", "b"]


def test_a_push_to_be_built_elsewhere_gives_neither_ref_nor_commit() -> None:
    rules = triggers('[{name: a, build: {repository: "https://github.com/our-org/environment"}}]')
    (want,) = requested_builds(rules, push())
    assert (want.repository, want.ref, want.commit, want.push) == (
        "https://github.com/our-org/environment",
        None,
        None,
        None,
    )
    (want,) = requested_builds(triggers('[{name: a, build: {ref: "refs/heads/stable"}}]'), push())
    assert (want.ref, want.commit, want.push) == ("refs/heads/stable", None, None)
    spelled = "https://github.com/{data.repository.name}"
    same = push(repository={"clone_url": "https://github.com/A/B.git", "name": "a/b"})
    (want,) = requested_builds(triggers(f'[{{name: a, build: {{repository: "{spelled}"}}}}]'), same)
    assert (want.ref, want.commit) == ("refs/heads/main", COMMIT)
    (want,) = requested_builds(triggers('[{name: a, build: {repository: "git@github.com:our-org/stats"}}]'), push())
    assert (want.ref, want.commit, want.push) == (None, None, None), "that names no repository at all"


# Templates


COURSE = {
    "course": {
        "repository": "https://git.example/a",
        "ref": "main",
        "sha": COMMIT,
        "year": 2026,
        "open": True,
        "x": None,
    }
}


def test_values_of_an_event() -> None:
    rules = triggers(
        """
        - name: courses
          build:
            repository: "{data.course.repository}"
            ref: "{data.course.ref}"
            commit: "{data.course.sha}"
            subdir: "{subject}/{extensions.level}"
            build_args: {YEAR: "{data.course.year}", OPEN: "{data.course.open}", BRACES: "{{x}}"}
            image: "registry.example/{data.course.ref}"
            tags: ["{type}", "{id}"]
            force: true
        """
    )
    (want,) = requested_builds(rules, event(COURSE, subject="s", extensions={"level": 3}))
    assert (want.repository, want.ref, want.commit, want.force) == ("https://git.example/a", "main", COMMIT, True)
    assert texts(want) == (
        "s/3",
        {"YEAR": "2026", "OPEN": "true", "BRACES": "{x}"},
        "registry.example/main",
        ("org.example.course", "1"),
    )


def test_values_of_a_push() -> None:
    rules = triggers('[{name: a, build: {ref: "{ref}", commit: "{commit}", tags: ["{ref_name}"]}}]')
    (want,) = requested_builds(rules, push("refs/heads/feature/x"))
    assert (want.ref, want.commit) == ("refs/heads/feature/x", COMMIT)
    assert want.push is not None
    (want,) = requested_builds(triggers('[{name: a, build: {ref: "refs/heads/for-{ref_name}"}}]'), push())
    assert want.ref == "refs/heads/for-main"


def test_what_only_the_request_can_tell_is_not_taken_from_the_event() -> None:
    rules = triggers('[{name: a, build: {repository: "https://git.example/a", tags: ["{commit}"]}}]')
    (want,) = requested_builds(rules, event(extensions={"commit": "the event's"}))
    assert want.tags[0].fill({"commit": COMMIT}.get).text() == COMMIT


@pytest.mark.parametrize(
    "name", ["data.course.x", "data.course.none", "data.course", "data.course.ref.length", "subject", "ref"]
)
def test_a_missing_value_is_named(name: str) -> None:
    rules = triggers(f'[{{name: a, build: {{repository: "https://git.example/{{{name}}}"}}}}]')
    sentence = f"The event has no value for {{{name}}}, which the trigger's template needs."
    with pytest.raises(CannotBuild, match=f"^{re.escape(sentence)}$") as caught:
        requested_builds(rules, event(COURSE))
    assert caught.value.status == 422


def test_no_repository_is_an_error_that_names_the_trigger() -> None:
    with pytest.raises(CannotBuild, match="'somewhere' names no repository"):
        requested_builds(triggers("[{name: somewhere}]"), event())


def test_what_is_filled_in_is_never_read_as_a_template() -> None:
    rules = triggers('[{name: a, build: {repository: "https://x/{data.a}", subdir: "{data.a}", tags: ["{data.a}"]}}]')
    (want,) = requested_builds(rules, event({"a": "{commit}{data.b}{{"}))
    assert want.repository == "https://x/{commit}{data.b}{{"
    assert texts(want) == ("{commit}{data.b}{{", {}, None, ("{commit}{data.b}{{",))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "}",
        "a{b",
        "{}",
        "{0}",
        "{data}",
        "{data.}",
        "{data..a}",
        "{data[a]}",
        "{source.__class__}",
        "{source!r}",
        "{source:>99999999}",
        "{ source }",
        "{Source}",
        "{no_such}",
        "{data.a\n}",
        "{%s}",
    ],
)
def test_what_is_no_template(text: str) -> None:
    with pytest.raises(RuleError):
        template(text)


NO_VALUE = (
    "names no value: the values are {data.…}, {extensions.…}, the event's attributes, "
    "and {commit}, {ref}, {ref_name}, {repository}, {slug}."
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a}", "A single '}' in 'a}': write it twice, or a name between two of them."),
        ("a{B}", f"'{{B}}' in 'a{{B}}' {NO_VALUE}"),
    ],
)
@pytest.mark.parametrize("place", ["repository", "ref", "commit", "subdir", "image", "build_args.X", "tags[1]"])
def test_what_is_wrong_is_said_with_its_place(place: str, text: str, sentence: str) -> None:
    build = {"build_args.X": {"build_args": {"X": text}}, "tags[1]": {"tags": ["x", text]}}.get(place, {place: text})
    with pytest.raises(RuleError) as caught:
        load([msgspec.convert({"name": "a", "build": build}, TriggerRule)])
    assert str(caught.value) == f"Trigger 'a', build.{place}: {sentence}"


@given(st.text())
def test_a_template_is_read_or_refused_and_never_evaluated(text: str) -> None:
    try:
        read = template(text)
    except RuleError:
        return
    filled = read.fill(lambda name: f"<{name}>").text()
    assert template(read.written) == read
    assert filled == re.sub(
        r"\{\{|\}\}|\{([^{}]*)\}", lambda found: f"<{found[1]}>" if found[1] is not None else found[0][0], text
    )


@given(st.text(), st.text())
def test_a_value_goes_in_as_it_is(text: str, value: str) -> None:
    assert (
        template("{data.x}-{commit}").fill({"data.x": value}.get).fill({"commit": text}.get).text() == f"{value}-{text}"
    )
    assert plain(text).fill(lambda _: "never").text() == text
    assert Template(()).text() == ""


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"name": "a"}, {"name": "a"}], "Two triggers have the name 'a'"),
        ([{"name": "a", "filters": [{"exact": {"type": "x"}}, {"sql": "true"}]}], r"Trigger 'a', filters\[1\]"),
    ],
)
def test_rules_that_cannot_be_understood(rules: list[object], words: str) -> None:
    with pytest.raises(RuleError, match=words):
        load(msgspec.convert(rules, tuple[TriggerRule, ...]))


@pytest.mark.parametrize(
    "rule",
    [{}, {"name": ""}, {"name": "a b"}, {"name": "a", "filter": []}, {"name": "a", "push": {"branch": ["x"]}}],
)
def test_rules_of_another_shape(rule: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(rule, TriggerRule)


# Requests, and Kiln's own events


def test_a_request_needs_no_trigger() -> None:
    body = {
        "repository": "https://git.example/a",
        "ref": "main",
        "commit": COMMIT,
        "subdir": "x",
        "build_args": {"A": "{commit}"},
        "image": "r.example/a",
        "tags": ["{ref_name}"],
        "force": True,
    }
    (want,) = requested_builds((), event(body, type="dev.kiln.build.requested.v1"))
    assert (want.repository, want.ref, want.commit) == ("https://git.example/a", "main", COMMIT)
    assert (want.force, want.trigger) == (True, None)
    assert texts(want) == ("x", {"A": "{commit}"}, "r.example/a", ("{ref_name}",)), "request values are no templates"
    nulls = {"repository": "https://git.example/a", **dict.fromkeys(["ref", "subdir", "build_args", "image", "tags"])}
    (want,) = requested_builds((), event(nulls, type="dev.kiln.build.requested.v1"))
    assert want == RequestedBuild(repository="https://git.example/a", subdir=plain(""))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        b"{}",
        {},
        {"repository": 1},
        {"repository": "x", "ref": 1},
        {"repository": "x", "ref": ["a"]},
        {"repository": "x", "tags": "main"},
        {"repository": "x", "tags": [1]},
        {"repository": "x", "build_args": {"A": 1}},
        {"repository": "x", "force": "yes"},
        {"repository": "x", "reff": "main"},
        {"repository": "x", "a" * 100_000: 1},
    ],
    ids=lambda data: ascii(data)[:60],
)
def test_a_request_of_another_shape(data: object) -> None:
    with pytest.raises(Malformed) as caught:
        requested_builds((), event(data, type="dev.kiln.build.requested.v1"))
    assert caught.value.status == 400
    said, _, what = str(caught.value).partition(": ")
    assert said == "Invalid request for a build"
    assert re.fullmatch(r"(Expected|Object) .+\.", what)
    assert len(what) <= 201, "the sentence is short for any request"


@pytest.mark.parametrize("word", ["succeeded.v1", "queued.v1", "requested.v2"])
def test_nothing_else_of_ours_starts_anything(word: str) -> None:
    rules = triggers('[{name: a, build: {repository: "https://github.com/a/b"}}]')
    assert requested_builds(rules, event(type=f"dev.kiln.build.{word}")) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.sampled_from(["dev.kiln.build.requested.v1", "org.example.course"]))
def test_any_data_is_wanted_or_refused(data: object, type_: str) -> None:
    rules = triggers('[{name: a, build: {repository: "{data.a.b}", ref: "{data.a}"}}]')
    try:
        requested_builds(rules, event(data, type=type_))
    except RequestError:
        return


@pytest.mark.parametrize(
    ("globs", "form"),
    [
        (["refs/heads/main"], "write 'main'"),
        (["main", "refs/tags/v*"], "write 'v*'"),
        (["/binder/**"], "write 'binder/**'"),
        (["./binder"], "write 'binder'"),
        (["binder/"], "write 'binder/**'"),
        ([" main"], "write 'main'"),
        ([""], "write '**'"),
        (["{main,dev}"], "write several patterns"),
        (["v?"], "write several patterns"),
        (["[ab]"], "write several patterns"),
        (["!main"], "begin with a pattern"),
        (["**", "!!main"], "write 'main'"),
    ],
)
@pytest.mark.parametrize("place", ["branches", "tags", "paths"])
def test_globs_that_can_match_nothing_are_refused_with_the_form_that_can(
    place: str, globs: list[str], form: str
) -> None:
    with pytest.raises(RuleError, match=rf"Trigger 'a', push\.{place}.*{re.escape(form)}"):
        load([TriggerRule(name="a", push=PushRule(**{place: tuple(globs)}))])

"""Every kind of request passes the same policy and names the same build."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Build, Kind, Push, build_name
from builds.engines import Submission
from builds.errors import (
    CannotBuild,
    Forbidden,
    Malformed,
    RepositoryRefused,
    RequestError,
    TryAgain,
    UnknownRef,
    Unreachable,
)
from builds.image import ImagePolicy, image_for
from builds.intake import Intake, merge
from builds.repository import HostKind, Policy, Repository, canonical
from builds.triggers import BuildRequestBody, RequestedBuild, from_body, plain, template
from eventing.tracing import Trace

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COMMIT = "a" * 40


class Resolved(NamedTuple):
    ref: str | None
    commit: str


class Refs:
    """A Git host with a few refs, which records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def commit(self, repository: Repository, digits: str) -> str:
        self.asked.append((repository.url, digits))
        return digits.ljust(40, "0")

    def resolve(self, repository: Repository, ref: str | None) -> Resolved:
        self.asked.append((repository.url, ref))
        if repository.host == "away.example":
            raise Unreachable("away.example does not answer.", retry_after=5)
        try:
            return {
                None: Resolved("refs/heads/main", "1" * 40),
                "main": Resolved("refs/heads/main", "1" * 40),
                "feature/x": Resolved("refs/heads/feature/x", "2" * 40),
                "refs/tags/v1": Resolved("refs/tags/v1", "3" * 40),
            }[ref]
        except KeyError:
            raise UnknownRef("The repository has no such branch or tag.") from None


def intake(refs: Refs | None = None, **more: Any) -> Intake:
    given: dict[str, Any] = {
        "instance": "local",
        "policy": Policy(banned=["https://github.com/evil/**"]),
        "hosts": {"git.example.edu": HostKind.GITLAB},
        "images": ImagePolicy("r.example/org/", ["r.example/courses/*"]),
        "resolver": refs or Refs(),
    }
    return Intake(**{**given, **more})


def ask(want: RequestedBuild, refs: Refs | None = None, **more: Any) -> Submission:
    who: dict[str, Any] = {
        "source": "/api",
        "id": "1",
        "type": "dev.kiln.build.requested.v1",
        "by": "user:ada",
        "chooses": True,
        "kind": Kind.PERSON,
        "now": NOW,
    }
    return intake(refs).submission(want, **{**who, **more})


def body(repository: str = "https://github.com/a/b", **more: Any) -> RequestedBuild:
    return from_body(msgspec.convert({"repository": repository, **more}, BuildRequestBody))


def test_an_abbreviated_commit_is_looked_up_and_named_as_the_whole() -> None:
    refs = Refs()
    whole = "abc1234".ljust(40, "0")
    assert ask(body(commit="ABC1234"), refs).name == ask(body(commit=whole)).name
    assert ask(body(commit="abc1234", ref=whole), refs).name == ask(body(commit=whole)).name
    assert ask(body(commit="abc1234", ref="refs/heads/x"), refs).cause.ref == "refs/heads/x"
    assert refs.asked == [("https://github.com/a/b", "abc1234")] * 2
    with pytest.raises(Malformed, match="two different commits"):
        ask(body(commit="abc1235", ref=whole))
    for text in ("abc123", "main", "a" * 65, ""):
        with pytest.raises(Malformed, match=r"40 or 64 hexadecimal digits.*7 or more"):
            ask(body(commit=text), refs)


def test_what_was_wanted_becomes_a_request_and_a_cause() -> None:
    found = ask(
        body("https://GitHub.com/A/B/", commit=COMMIT.upper(), ref="refs/heads/main", tags=["x/y"], force=True),
        trace=Trace(traceparent="00-1-2-03"),
    )
    assert found.request.repository == "https://github.com/a/b"
    assert found.request.clone_url == "https://github.com/a/b.git"
    assert found.request.commit == COMMIT
    assert found.request.image == "r.example/org/a-b-426415da64"
    assert found.name.startswith("build-a-b-")
    cause = found.cause
    assert (cause.source, cause.id, cause.type) == ("/api", "1", "dev.kiln.build.requested.v1")
    assert (cause.by, cause.kind, cause.at) == ("user:ada", Kind.PERSON, NOW)
    assert (cause.ref, cause.tags, cause.force, cause.trace) == (
        "refs/heads/main",
        ("x-y",),
        True,
        Trace(traceparent="00-1-2-03"),
    )


@pytest.mark.parametrize(
    "other",
    [
        body("https://GitHub.com/a/b/", commit=COMMIT),
        body("https://github.com/A/B.git", ref=COMMIT.upper()),
        body(commit=COMMIT, ref=COMMIT),
        body(commit=COMMIT, ref="refs/tags/v9", subdir="./.", build_args={}, tags=["x"], force=True),
        body(commit=COMMIT, image="r.example/org/a-b-426415da64"),
        RequestedBuild(repository="https://github.com/a/b", commit=COMMIT, ref="refs/heads/x", push=Push(before=None)),
    ],
)
def test_one_name_however_it_is_asked_for(other: RequestedBuild) -> None:
    refs = Refs()
    assert ask(other, refs).name == ask(body(commit=COMMIT)).name
    assert refs.asked == [], "a commit that came along needs no look-up"


@pytest.mark.parametrize(
    "other",
    [
        body(commit="b" * 40),
        body(commit=COMMIT, subdir="x"),
        body(commit=COMMIT, build_args={"A": ""}),
        body(commit=COMMIT, image="r.example/org/x"),
        body("https://github.com/a/c", commit=COMMIT),
    ],
)
def test_another_request_is_another_build(other: RequestedBuild) -> None:
    assert ask(other).name != ask(body(commit=COMMIT)).name


def test_another_instance_has_other_builds() -> None:
    one, other = (
        intake(instance=name).submission(
            body(commit=COMMIT), source="/", id="1", type="t", by=None, kind=Kind.PUSH, now=NOW
        )
        for name in ("local", "ns/kiln")
    )
    assert one.request == other.request
    assert one.name != other.name


@pytest.mark.parametrize(
    ("want", "ref", "commit", "looked_up"),
    [
        (body(), "refs/heads/main", "1" * 40, None),
        (body(ref="HEAD"), "refs/heads/main", "1" * 40, None),
        (body(ref="feature/x"), "refs/heads/feature/x", "2" * 40, "feature/x"),
        (body(ref="refs/tags/v1"), "refs/tags/v1", "3" * 40, "refs/tags/v1"),
        (body(ref="feature/x", commit=COMMIT), "refs/heads/feature/x", COMMIT, "feature/x"),
        (body(ref="HEAD", commit=COMMIT, tags=["current"]), "refs/heads/main", COMMIT, None),
    ],
)
def test_a_ref_is_looked_up_where_it_must_be(
    want: RequestedBuild, ref: str, commit: str, looked_up: str | None
) -> None:
    refs = Refs()
    found = ask(want, refs)
    assert (found.cause.ref, found.request.commit) == (ref, commit)
    assert refs.asked == [("https://github.com/a/b", looked_up)]


def test_an_unknown_ref_and_a_host_that_does_not_answer() -> None:
    with pytest.raises(CannotBuild) as unknown:
        ask(body(ref="nothing"))
    assert unknown.value.status == 422
    with pytest.raises(Unreachable) as away:
        ask(body("https://away.example/a"))
    assert (away.value.status, away.value.retry_after) == (503, 5)


@pytest.mark.parametrize(
    ("fields", "kind", "status"),
    [
        ({"repository": "--upload-pack=x"}, RequestError, 400),
        ({"repository": "git@github.com:a/b"}, RepositoryRefused, 422),
        ({"repository": "https://u:p@github.com/a/b"}, RepositoryRefused, 422),
        ({"repository": "file:///etc"}, RepositoryRefused, 422),
        ({"repository": "http://169.254.169.254/x"}, RepositoryRefused, 422),
        ({"repository": "https://github.com/Evil/b"}, RepositoryRefused, 422),
        ({"ref": "--upload-pack=x"}, Malformed, 400),
        ({"ref": "a\nb"}, Malformed, 400),
        ({"ref": ""}, Malformed, 400),
        ({"commit": "abc"}, Malformed, 400),
        ({"commit": COMMIT, "ref": "b" * 40}, Malformed, 400),
        ({"subdir": "../x"}, Malformed, 400),
        ({"subdir": "/x"}, Malformed, 400),
        ({"image": "r.example/org/a:latest"}, Malformed, 400),
        ({"image": "r.example/other/a"}, Forbidden, 403),
        ({"build_args": {"A=B": ""}}, Malformed, 400),
        ({"build_args": {"--x": ""}}, Malformed, 400),
        ({"build_args": {"A": "a\0b"}}, Malformed, 400),
        ({"build_args": {"A": "\ud800"}}, Malformed, 400),
        ({"build_args": {"A": "a" * 5000}}, Malformed, 400),
        ({"build_args": {f"A{number}": "" for number in range(51)}}, Malformed, 400),
        ({"tags": [""]}, Malformed, 400),
        ({"tags": ["b" * 40]}, Malformed, 400),
        ({"tags": [str(number) for number in range(21)]}, Malformed, 400),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_what_is_refused_is_refused_before_anybody_is_asked(
    fields: dict[str, Any], kind: type[RequestError], status: int
) -> None:
    refs = Refs()
    with pytest.raises(kind) as caught:
        ask(body(**fields), refs)
    assert caught.value.status == status
    assert refs.asked == []


def test_an_event_that_would_swell_the_record() -> None:
    with pytest.raises(Malformed):
        ask(body(commit=COMMIT), id="x" * 5000)


def test_a_template_is_filled_with_what_the_look_up_told() -> None:
    found = ask(
        RequestedBuild(
            repository="https://github.com/a/b",
            ref="feature/x",
            image=template("r.example/courses/{slug}"),
            tags=(template("{ref_name}"), template("c-{commit}")),
            subdir=template("{ref_name}"),
            build_args={"FROM": template("{repository}@{ref}")},
        )
    )
    assert found.request.image == "r.example/courses/a-b-426415da64"
    assert found.request.subdir == "feature/x"
    assert found.request.build_args == {"FROM": "https://github.com/a/b@refs/heads/feature/x"}
    assert found.cause.tags == ("feature-x", "c-" + "2" * 40)


def test_the_commit_alone_is_a_tag_that_the_image_has_anyway() -> None:
    want = RequestedBuild(repository="https://github.com/a/b", ref="feature/x", tags=(template("{commit}"), plain("x")))
    assert ask(want).cause.tags == ("x",)


def test_a_value_that_is_still_missing_is_named() -> None:
    want = RequestedBuild(repository="https://github.com/a/b", commit=COMMIT, tags=(template("{ref_name}"),))
    with pytest.raises(CannotBuild, match=r"\{ref_name\}"):
        ask(want)


def test_a_trigger_cannot_push_outside_either() -> None:
    with pytest.raises(Forbidden):
        ask(RequestedBuild(repository="https://github.com/a/b", commit=COMMIT, image=template("evil.example/{slug}")))


@pytest.mark.parametrize("attribute", ["source", "id", "type"])
def test_what_a_record_keeps_of_an_event_has_a_bound(attribute: str) -> None:
    most: dict[str, Any] = {attribute: "x" * 4096}
    assert ask(body(commit=COMMIT), **most)
    more: dict[str, Any] = {attribute: "x" * 4097}
    with pytest.raises(Malformed, match="longer than 4096"):
        ask(body(commit=COMMIT), **more)


def test_two_triggers_that_want_one_request_are_one_ask() -> None:
    one, other, third = (
        ask(body(commit=COMMIT, tags=["a"])),
        ask(body(commit=COMMIT, tags=["b", "a"], force=True)),
        ask(body(commit=COMMIT, subdir="x")),
    )
    merged = merge([one, third, other])
    assert [each.name for each in merged] == [one.name, third.name]
    assert (merged[0].cause.tags, merged[0].cause.force) == (("a", "b"), True)
    assert merge([one, ask(body(commit=COMMIT), id="2")])[1].cause.id == "2"


WORDS = st.text() | st.sampled_from(["https://github.com/a/b", "main", "refs/heads/main", COMMIT, "x", "{commit}"])


@given(
    st.builds(
        BuildRequestBody,
        repository=WORDS,
        ref=st.none() | WORDS,
        commit=st.none() | WORDS,
        subdir=st.none() | WORDS,
        build_args=st.none() | st.dictionaries(WORDS, WORDS, max_size=2),
        image=st.none() | WORDS,
        tags=st.none() | st.lists(WORDS, max_size=2).map(tuple),
    )
)
def test_any_request_is_named_or_refused(request_body: BuildRequestBody) -> None:
    try:
        found = ask(from_body(request_body))
    except TryAgain:
        pytest.fail("A retry cannot mend the content of a request.")
    except RequestError:
        return
    assert ask(from_body(request_body)) == found


ORDINARY: dict[str, Any] = {"by": "user:kim", "chooses": False}


@pytest.mark.parametrize(
    "given",
    [
        {"image": "r.example/org/x"},
        {"image": "r.example/courses/x"},
        {"tags": ["current"]},
        {"build_args": {"R_VERSION": "4.5"}},
        {"build_args": {"http_proxy": "http://evil.example"}},
        {"image": "not an image at all", "tags": ["x"], "build_args": {"BUILDKIT_SYNTAX": "evil/frontend"}},
    ],
)
def test_who_is_no_admin_says_what_to_build_and_not_how(given: dict[str, Any]) -> None:
    refs = Refs()
    with pytest.raises(Forbidden, match=next(iter(given))) as caught:
        ask(body(commit=COMMIT, **given), refs, **ORDINARY)
    assert caught.value.status == 403
    assert refs.asked == []


def test_what_everybody_may_give() -> None:
    nothing: dict[str, Any] = {"image": None, "tags": [], "build_args": {}, "force": False}
    found = ask(body(commit=COMMIT, ref="refs/heads/x", subdir="a", **nothing), **ORDINARY)
    assert (found.request.subdir, found.cause.ref, found.cause.tags) == ("a", "refs/heads/x", ())


def test_a_force_that_is_not_theirs_to_give_means_no_more_than_to_ask() -> None:
    assert not ask(body(commit=COMMIT, force=True), **ORDINARY).cause.force
    assert ask(body(commit=COMMIT, force=True)).cause.force


def test_a_trigger_says_how_whoever_sent_the_event() -> None:
    want = RequestedBuild(
        repository="https://github.com/a/b", commit=COMMIT, trigger="a", tags=(plain("x"),), force=True
    )
    cause = ask(want, by="webhook:github", chooses=False).cause
    assert (cause.tags, cause.force) == (("x",), True)


# ---- Records that a user has changed ---------------------------------------------------------------------------------


def recorded(**changes: Any) -> Build:
    """The record of a requested build, with changes that leave its name unchanged."""
    from_body = ask(RequestedBuild(repository="https://github.com/a/b", commit=COMMIT, subdir=plain("sub")))
    request = msgspec.structs.replace(from_body.request, **changes)
    return Build(name=from_body.name, uid="u", request=request, causes=(from_body.cause,), created_at=NOW)


def test_a_record_as_it_was_written_is_built() -> None:
    assert intake().refusal(recorded()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"commit": "b" * 40},
        {"commit": "--upload-pack=x"},
        {"subdir": ""},
        {"subdir": "../.."},
        {"build_args": {"A": "1"}},
        {"build_args": {"BUILDKIT_SYNTAX": "evil.example/frontend"}},
        {"clone_url": "https://github.com/other/repository"},
        {"clone_url": "https://github.com/evil/repository"},
        {"clone_url": "ext::sh -c id"},
        {"repository": "https://github.com/other/repository"},
        {"repository": "https://github.com/other/repository", "clone_url": "https://github.com/other/repository"},
        {"image": "r.example/org/other"},
        {"image": "elsewhere.example/x"},
        {"image": image_for("r.example/org/", canonical("https://github.com/other/repository"))},
    ],
    ids=str,
)
def test_a_changed_record_is_not_built(changes: dict[str, Any]) -> None:
    assert intake().refusal(recorded(**changes))


def test_a_record_that_fits_its_name_is_held_against_the_policy_all_the_same() -> None:
    build = recorded()
    request = msgspec.structs.replace(build.request, image="elsewhere.example/x")
    forged = msgspec.structs.replace(build, name=build_name("local", request), request=request)
    assert "is not allowed. Images may be under" in str(intake().refusal(forged))


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
ARGUMENT_NAMES = st.from_regex(r"\A[A-Z][A-Z_]{0,8}\Z")


@given(
    ref=st.sampled_from([None, "refs/heads/main", "refs/pull/7/head"]),
    folders=st.lists(st.sampled_from(["a", "{ref}", "ü x"]), max_size=2),
    arguments=st.dictionaries(ARGUMENT_NAMES, TEXTS, max_size=3),
    image=st.sampled_from([None, "r.example/courses/stats"]),
    tags=st.lists(st.sampled_from(["latest", "a/b", "v1"]), unique=True),
)
def test_what_is_asked_for_again_is_the_same_build(
    ref: str | None, folders: list[str], arguments: dict[str, str], image: str | None, tags: list[str]
) -> None:
    wanted = body(commit=COMMIT, ref=ref, subdir="/".join(folders), build_args=arguments, image=image, tags=tags)
    first = ask(wanted)
    build = Build(name=first.name, uid="u", request=first.request, causes=(first.cause,), created_at=NOW)
    (again,) = (ask(one) for one in intake().again(build, chooses=True))
    assert (again.name, again.request) == (first.name, first.request)
    assert (again.cause.ref, again.cause.tags, again.cause.force) == (first.cause.ref, first.cause.tags, True)

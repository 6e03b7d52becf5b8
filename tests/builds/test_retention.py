"""Which images the rule `keep` needs: examples of each reason, and properties over arbitrary registries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from builds.build import State
from builds.retention import Pushed, Recorded, RetentionDecision, Rule, judge, recorded
from tests.builds.engine_factories import settled_build
from tests.builds.plan_factories import IMAGE, NOW, ago, build, cause

RULE = Rule(per_ref=2, period=timedelta(days=30))
OLD = NOW - timedelta(days=60)
MAIN = "refs/heads/main"


def record(name: str, days: float = 60, *refs: str, **more: object) -> Recorded:
    at = NOW - timedelta(days=days)
    fields: dict[str, object] = {"tag": name, "digest": f"sha256:{name}", "variant": "", "ended_at": at, "used_at": at}
    return Recorded(**{"build": name, "refs": frozenset(refs), "waits": False, **fields, **more})  # type: ignore[arg-type]


def pushed(name: str, *tags: str, **more: object) -> Pushed:
    fields: dict[str, object] = {"repository": "r/x", "digest": f"sha256:{name}", "tags": tags or (name,)}
    return Pushed(**{**fields, "build": name, **more})  # type: ignore[arg-type]


def kept(images: Sequence[Pushed], records: Iterable[Recorded], rule: Rule = RULE) -> dict[str, str | None]:
    return {verdict.image.digest.removeprefix("sha256:"): verdict.kept for verdict in judge(images, records, rule, NOW)}


def test_what_nothing_needs_goes() -> None:
    assert kept([pushed("a")], [record("a")]) == {"a": None}


@pytest.mark.parametrize(
    ("image", "of", "why"),
    [
        (pushed("a", build=None), record("a"), "Kiln did not push it"),
        (pushed("a", build="other"), record("a"), "its build has no record here"),
        (pushed("a", "a", "v1"), record("a"), "it is tagged v1"),
        (pushed("a", "v1"), record("a"), "it is tagged v1"),
        (pushed("a"), record("a", waits=True), "its build waits, runs or is being announced"),
        (pushed("a"), record("a", used_at=NOW - timedelta(days=29)), "it was asked for at 2026-01-31 12:00 UTC"),
        (pushed("a"), record("a", 60, MAIN), f"it is one of the newest of {MAIN}"),
    ],
)
def test_each_reason_keeps_an_image(image: Pushed, of: Recorded, why: str) -> None:
    assert kept([image], [of]) == {"a": why}


def test_an_image_without_a_tag_of_its_own_may_go() -> None:
    assert kept([replace(pushed("a"), tags=())], [record("a")]) == {"a": None}


def test_what_an_index_refers_to_stays() -> None:
    index = pushed("i", "latest", build=None, parts=("sha256:a",))
    assert kept([pushed("a"), index], [record("a")])["a"] == "the index latest refers to it"


def test_an_index_is_kilns_only_if_a_record_says_so() -> None:
    index = pushed("i", "a", build="a", parts=("sha256:p",))
    assert kept([index], [record("a")]) == {"i": "Kiln did not push it"}
    assert kept([index], [record("a", digest="sha256:i")]) == {"i": None}


def test_where_kiln_may_not_push_it_deletes_nothing() -> None:
    (verdict,) = judge([pushed("a")], [record("a")], RULE, NOW, allowed=False)
    assert verdict.kept == "its name is not one that Kiln may push to"


def test_the_newest_of_each_ref_and_variant_stay() -> None:
    tag = "refs/tags/v1"
    records = [record("a", 90, MAIN), record("b", 80, MAIN), record("c", 70, MAIN), record("d", 95, tag)]
    records += [record("e", 99, MAIN, tag), record("s", 98, MAIN, variant="-sub")]
    found = kept([pushed(one.build) for one in records], records)
    assert {name for name, why in found.items() if why is None} == {"a"}
    assert found["e"] == f"it is one of the newest of {tag}"


def test_the_newest_that_are_still_there_count() -> None:
    records = [record("a", 90, MAIN), record("b", 80, MAIN), record("c", 70, MAIN)]
    assert None not in kept([pushed("a"), pushed("b")], records).values()


def test_a_record_says_when_and_for_what_it_was_asked() -> None:
    of = build("b", cause("1", at=ago(9)), cause("2", ref=None, head="refs/heads/x", at=ago(5)))
    assert recorded(of).waits
    done = recorded(settled_build(of, State.SUCCEEDED, ago(20)))
    assert (done.waits, done.ended_at, done.used_at) == (False, ago(20), ago(5))
    assert done.refs == {MAIN, "refs/heads/x"}
    assert (done.tag, done.variant) == ("c" * 40, "")
    of_a_folder = recorded(replace(of, request=replace(of.request, subdir="lab")))
    assert of_a_folder.tag == "c" * 40 + of_a_folder.variant
    assert len(of_a_folder.variant) == 17
    assert recorded(build("b", image=IMAGE)).digest == IMAGE.digest


def test_a_build_that_was_asked_for_again_waits() -> None:
    done = settled_build(build("b"), State.SUCCEEDED)
    assert recorded(replace(done, causes=(*done.causes, cause("2")))).waits
    assert recorded(replace(done, open=True)).waits


# Arbitrary registries ------------------------------------------------------------------------------------------------

REFS = [MAIN, "refs/heads/b", "refs/tags/v1"]


@st.composite
def registries(draw: st.DrawFn) -> tuple[list[Pushed], list[Recorded]]:
    names = [f"n{number}" for number in range(draw(st.integers(1, 12)))]
    days = st.integers(0, 90)
    records = [
        record(
            name,
            draw(days),
            *draw(st.sets(st.sampled_from(REFS))),
            used_at=NOW - timedelta(days=draw(days)),
            variant=draw(st.sampled_from(["", "-sub"])),
            waits=draw(st.booleans()),
        )
        for name in names
        if draw(st.integers(0, 9))
    ]
    images = [
        pushed(
            name,
            *draw(st.sampled_from([(name,), (), (name, "v1"), ("v1",)])),
            build=draw(st.sampled_from([name, name, name, None])),
        )
        for name in names
        if draw(st.integers(0, 9))
    ]
    held = draw(st.sets(st.sampled_from(names), max_size=2))
    return [*images, pushed("index", "all", build=None, parts=tuple(f"sha256:{name}" for name in held))], records


def gone(verdicts: Iterable[RetentionDecision]) -> set[str]:
    return {verdict.image.digest for verdict in verdicts if verdict.kept is None}


@given(registries(), st.integers(1, 3), st.integers(0, 60))
def test_exactly_what_nothing_needs_goes(there: tuple[list[Pushed], list[Recorded]], per_ref: int, days: int) -> None:
    """Compare with another statement of the rule, which removes the images one reason at a time."""
    images, records = there
    known = {one.build: one for one in records}
    present = [known[image.build] for image in images if image.build in known]
    candidates = set[str]()
    for image in images:
        of = known.get(image.build or "")
        if of is None or of.waits or {*image.tags} - {of.tag}:
            continue
        if any(image.digest in other.parts for other in images) or of.used_at > NOW - timedelta(days=days):
            continue
        newer = [
            sum(
                (other.ended_at, other.build) > (of.ended_at, of.build)
                for other in present
                if ref in other.refs and other.variant == of.variant
            )
            for ref in of.refs
        ]
        if all(count >= per_ref for count in newer):
            candidates.add(image.digest)
    rule = Rule(per_ref=per_ref, period=timedelta(days=days))
    assert gone(judge(images, records, rule, NOW)) == candidates


@given(registries(), st.integers(1, 3), st.integers(0, 60))
def test_a_second_look_finds_nothing_more(there: tuple[list[Pushed], list[Recorded]], per_ref: int, days: int) -> None:
    images, records = there
    rule = Rule(per_ref=per_ref, period=timedelta(days=days))
    first = gone(judge(images, records, rule, NOW))
    rest = [image for image in images if image.digest not in first]
    assert gone(judge(rest, records, rule, NOW)) == set()


@given(registries(), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(there: tuple[list[Pushed], list[Recorded]], random: object) -> None:
    images, records = there
    mixed = [*images]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert gone(judge(images, records, RULE, NOW)) == gone(judge(mixed, records[::-1], RULE, NOW))


@given(registries())
def test_a_longer_period_and_more_of_each_ref_keep_more(there: tuple[list[Pushed], list[Recorded]]) -> None:
    longer = [judge(*there, Rule(per_ref=n, period=timedelta(days=10 * n)), NOW) for n in (1, 2, 4)]
    assert gone(longer[0]) >= gone(longer[1]) >= gone(longer[2])

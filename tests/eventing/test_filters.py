"""The filter dialects of CloudEvents Subscriptions, and the errors for invalid filters."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import FilterError
from eventing.event import Event
from eventing.filters import Filter, matches, negated, parse, possible
from tests.eventing.events import events

PUSH = Event(
    id="1",
    source="https://github.com/our-org/stats",
    type="com.github.push",
    subject="refs/heads/main",
    extensions={"truth": True, "number": 5, "empty": ""},
    data={"subject": "in data"},
)
YES = {"exact": {"type": "com.github.push"}}
NO = {"exact": {"type": "com.github.release"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (YES, True),
        (NO, False),
        ({"exact": {"type": "com.github.Push"}}, False),
        ({"exact": {"type": "com.github.push", "subject": "refs/heads/main"}}, True),
        ({"exact": {"type": "com.github.push", "subject": "refs/heads/dev"}}, False),
        ({"exact": {"specversion": "1.0"}}, True),
        ({"exact": {"truth": "true", "number": "5"}}, True),
        ({"exact": {"truth": "True"}}, False),
        ({"prefix": {"source": "https://github.com/our-org/"}}, True),
        ({"prefix": {"source": "github.com/our-org/"}}, False),
        ({"prefix": {"source": "https://", "subject": "refs/tags/"}}, False),
        ({"suffix": {"subject": "/main"}}, True),
        ({"suffix": {"subject": "refs/heads"}}, False),
        ({"prefix": {"time": "2"}}, False),
        ({"suffix": {"absent": "x"}}, False),
        ({"not": {"exact": {"absent": "x"}}}, True),
        ({"prefix": {"empty": "x"}}, False),
        ({"all": [YES, YES]}, True),
        ({"all": [YES, NO]}, False),
        ({"any": [NO, YES]}, True),
        ({"any": [NO, NO]}, False),
        ({"not": YES}, False),
        ({"not": {"any": [NO, {"all": [YES, NO]}]}}, True),
    ],
)
def test_matches(value: object, expected: bool) -> None:
    assert matches(parse(value), PUSH) is expected


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (None, "filters[0]: "),
        ([], "filters[0]: "),
        ([YES], "filters[0]: "),
        ({}, "filters[0]: "),
        ({**YES, "prefix": {"source": "x"}}, "filters[0]: "),
        ({"sql": "TRUE"}, "filters[0].sql: "),
        ({5: {}}, "filters[0]: "),
        ({"exact": {}}, "filters[0].exact: "),
        ({"exact": "type"}, "filters[0].exact: "),
        ({"exact": {"Type": "x"}}, "filters[0].exact: "),
        ({"exact": {"data.ref": "x"}}, "filters[0].exact: "),
        ({"exact": {5: "x"}}, "filters[0].exact: "),
        ({"exact": {"type": ""}}, "filters[0].exact.type: "),
        ({"prefix": {"specversion": 1.0}}, "filters[0].prefix.specversion: "),
        ({"suffix": {"type": None}}, "filters[0].suffix.type: "),
        ({"all": []}, "filters[0].all: "),
        ({"any": YES}, "filters[0].any: "),
        ({"not": [YES]}, "filters[0].not: "),
        ({"any": [YES, {"not": {"all": [{"exakt": {}}]}}]}, "filters[0].any[1].not.all[0].exakt: "),
    ],
)
def test_says_where_it_is_wrong(value: object, place: str) -> None:
    with pytest.raises(FilterError) as refused:
        parse(value, "filters[0]")
    assert str(refused.value).startswith(place)


CONDITION = {"exists": ["data.course.url", "subject"]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"exists": "data.course.url"}, True),
        (CONDITION, True),
        ({"exists": "data.course.none"}, False),
        ({"exists": "data.course.null"}, False),
        ({"exists": "data.course"}, False),
        ({"not": {"exists": "data.deleted"}}, True),
        ({"exact": {"data.course.year": "2026", "data.course.open": "true"}}, True),
        ({"prefix": {"data.course.url": "https://"}}, True),
        ({"suffix": {"data.course.url": "https://"}}, False),
        ({"exact": {"data.course.url.x": "y"}}, False),
        ({"exact": {"type": "com.github.push"}}, True),
    ],
)
def test_conditions_see_the_data(value: object, expected: bool) -> None:
    course = {"url": "https://a.example/b", "year": 2026, "open": True, "null": None}
    event = msgspec.structs.replace(PUSH, data={"course": course})
    assert matches(parse(value, data=True), event) is expected
    assert matches(parse({"not": value}, data=True), event) is not expected


@pytest.mark.parametrize("value", [CONDITION, {"exact": {"data.a": "x"}}])
def test_filters_do_not(value: object) -> None:
    with pytest.raises(FilterError):
        parse(value)


@given(st.data(), events())
def test_what_some_event_matches_is_possible(data: st.DataObject, event: Event) -> None:
    attributes = {name: str(value) for name in ("id", "source", "type", "subject") if (value := event.attribute(name))}
    texts = st.sampled_from([*attributes.values(), "x", "1.0"])
    leaf = st.builds(
        lambda dialect, name, text, cut: Filter(dialect=dialect, attributes={name: text[:cut] or "x"}),
        st.sampled_from(["exact", "prefix", "suffix", "exists"]),
        st.sampled_from([*attributes, "extension", "specversion"]),
        texts,
        st.integers(1, 20),
    )
    tree = st.recursive(
        leaf,
        lambda inner: (
            st.builds(negated, inner)
            | st.builds(
                lambda dialect, parts: Filter(dialect=dialect, filters=tuple(parts)),
                st.sampled_from(["all", "any"]),
                st.lists(inner, min_size=1, max_size=3),
            )
        ),
        max_leaves=6,
    )
    filters = data.draw(st.lists(tree, max_size=3))
    if all(matches(each, event) for each in filters):
        assert possible(filters)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([YES, NO], False),
        ([YES, {"not": NO}], True),
        ([{"any": [YES, NO]}, {"not": YES}], True),
        ([{"any": [YES, NO]}, {"not": {"any": [YES, NO]}}], False),
        ([{"not": {"all": [YES, {"exact": {"subject": "a"}}]}}, YES], True),
        ([{"prefix": {"source": "https://a"}}, {"suffix": {"source": "b"}}], True),
        ([{"prefix": {"source": "https://a"}}, {"not": {"prefix": {"source": "https:"}}}], False),
        ([{"suffix": {"source": "/a"}}, {"suffix": {"source": "/b"}}], False),
        ([{"prefix": {"specversion": "1"}}], True),
        ([{"any": [YES, NO]}] * 200, True),
    ],
)
def test_filters_that_contradict_each_other(values: list[object], expected: bool) -> None:
    assert possible([parse(value) for value in values]) is expected


def test_a_filter_that_holds_itself() -> None:
    """YAML's aliases can express such a filter."""
    loop: dict[str, object] = {}
    loop["not"] = loop
    with pytest.raises(FilterError, match="deep"):
        parse(loop)


words = st.sampled_from(["exact", "prefix", "suffix", "all", "any", "not", "type", "source"]) | st.text(max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.just(YES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.integers(), inner, max_size=2),
)


@given(values, events())
def test_anything_is_a_filter_or_a_filter_error(value: Any, event: Event) -> None:
    try:
        parsed = parse(value)
    except FilterError as error:
        assert 0 < len(str(error)) < 500  # noqa: PT017
    else:
        assert matches(parsed, event) is not matches(parse({"not": value}), event)


@given(events(), st.data())
def test_an_event_matches_what_it_says(event: Event, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([event.id, event.source, event.type]))
    name = {event.id: "id", event.source: "source", event.type: "type"}[text]
    cut = data.draw(st.integers(1, len(text)))
    assert matches(parse({"all": [{"exact": {name: text}}, {"prefix": {name: text[:cut]}}]}), event)
    assert matches(parse({"suffix": {name: text[-cut:]}}), event)
    assert not matches(parse({"any": [{d: {name: text + "x"}} for d in ("exact", "prefix", "suffix")]}), event)

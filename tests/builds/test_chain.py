"""Builds as chains of CDEvents: for every history of a build, its events are valid, linked and complete."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from builds import chain, report
from builds.build import Build, Cause, Image, Reason, State
from builds.plan import Word
from builds.timeline import timeline
from eventing.cdevents import TYPES
from eventing.event import Event
from eventing.http import encode
from eventing.spans import Stage
from tests.builds.plan_factories import IMAGE, NOW, attempt, build, cause, failed, replace, running
from tests.builds.test_plan_machine import World
from tests.parts.published_data import published_data

NAMES = {kind: name for name, kind in TYPES.items()}


@cache
def validators() -> dict[str, Draft202012Validator]:
    """Validators of the schemas that CDEvents publishes, by event type."""
    folder = published_data("cdevents")
    schemas = [json.loads(path.read_text()) for path in sorted(Path(folder).rglob("*.json"))]
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], DRAFT202012.create_resource(schema)) for schema in schemas
    )
    with_type = [schema for schema in schemas if "context" in schema.get("properties", {})]
    return {
        schema["properties"]["context"]["properties"]["type"]["enum"][0]: Draft202012Validator(
            schema, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER
        )
        for schema in with_type
    }


def told(of: Build, word: Word, number: int = 1, joined: Cause | None = None) -> list[Event]:
    made = report.event(of, word, number, source="/kiln", now=NOW, cause=joined)
    return chain.events(of, word, number, made, joined)


def names(events: list[Event]) -> list[str]:
    return [NAMES[event.type] for event in events]


def links(event: Event, kind: str) -> list[str]:
    data: Any = event.data
    found = [link for link in data["context"]["links"] if link["linkType"] == kind]
    return [(link.get("from") or link["target"])["contextId"] for link in found]


def custom(event: Event) -> dict[str, Any]:
    data: Any = event.data
    return data["customData"]  # type: ignore[no-any-return]


def check_chain(events: list[Event]) -> None:
    """Check that the chain is complete and in order, and that each event links to its predecessor."""
    kinds = names(events)
    assert kinds[0] == "build.queued"
    assert kinds.count("build.finished") >= 1
    first_end = kinds.index("build.finished")
    assert {*kinds[first_end:]} == {"build.finished"}, "only those who joined hear of it after the end"
    assert ("artifact.published" in kinds) is ("artifact.packaged" in kinds) is ("artifactId" in content(events[-1]))
    ids = [event.id for event in events]
    for before, event in zip(ids, events[1 : first_end + 1], strict=False):
        assert links(event, "PATH") == [before]
        assert links(event, "END") == ([before] if NAMES[event.type] == "build.finished" else [])
    for event in events[first_end + 1 :]:
        assert links(event, "PATH") == links(event, "END") == [ids[kinds.index("artifact.published")]]


def check_stages(whole: Stage, of: Build) -> None:
    """Even if the clock jumps, no stage ends before it starts or starts before its predecessor has ended."""
    assert whole.start <= whole.end
    names = [part.name for part in whole.parts]
    assert names[0] == "queue"
    assert names.count("attempt") == sum(
        each.started_at is not None for each in of.status.attempts if each.number >= of.status.round_began_with
    )
    for before, after in pairwise(whole.parts):
        assert before.start <= before.end == after.start <= after.end


def content(event: Event) -> dict[str, Any]:
    data: Any = event.data
    return data["subject"]["content"]  # type: ignore[no-any-return]


class Chains(World):
    """The state machine of the plan; it checks the CDEvents of each history."""

    def __init__(self) -> None:
        super().__init__()
        self.chains: dict[str, list[Event]] = defaultdict(list)
        self.cdevents: dict[str, Event] = {}

    def told(self, build: Build, word: Word, attempt: int, cause: Cause | None) -> None:
        assert told(build, word, attempt, cause) == told(build, word, attempt, cause)
        if word.terminal and cause is None:
            check_stages(timeline(build), build)
        for event in told(build, word, attempt, cause):
            validators()[event.type].validate(event.data)
            encode(event, "binary")
            assert event.id not in self.cdevents
            self.cdevents[event.id] = event
            data: Any = event.data
            self.chains[data["context"]["chainId"]].append(event)

    def teardown(self) -> None:
        super().teardown()
        for events in self.chains.values():
            check_chain(events)
            uids = {event.id.partition(".")[0] for event in events}
            assert len(uids) == 1, "two builds in one chain"


Chains.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestChains = Chains.TestCase


STARTED = running()
SUCCEEDED = replace(
    STARTED,
    status=replace(
        STARTED.status,
        state=State.SUCCEEDED,
        attempts=(replace(STARTED.status.attempts[0], state=State.SUCCEEDED),),
        image=Image(repository="localhost:5000/a/b", tag="c" * 40, digest=IMAGE.digest),
    ),
)
PURL = f"pkg:oci/b@sha256%3A{'0' * 64}?repository_url=localhost:5000/a/b&tag={'c' * 40}"


def ended(state: State, reason: Reason) -> Build:
    return replace(STARTED, status=replace(STARTED.status, state=state, reason=reason, message="Because."))


def test_success() -> None:
    events = [*told(build(), Word.QUEUED), *told(STARTED, Word.STARTED), *told(SUCCEEDED, Word.SUCCEEDED)]
    check_chain(events)
    assert [event.id for event in events] == [
        "uid-b.1.build.queued",
        "uid-b.1.build.started",
        "uid-b.1.artifact.packaged",
        "uid-b.1.artifact.published",
        "uid-b.1.build.finished",
    ]
    assert [event.subject for event in events] == ["b", "b", PURL, PURL, "b"]
    assert len({data["context"]["chainId"] for data in (event.data for event in events) if isinstance(data, dict)}) == 1
    assert content(events[2]) == {"change": {"id": "c" * 40, "source": "https://github.com/a/b"}}
    assert content(events[4]) == {"artifactId": PURL}
    assert custom(events[4])["outcome"] == "success"
    assert custom(events[4])["image"] == f"localhost:5000/a/b:{'c' * 40}@{IMAGE.digest}"
    assert [custom(event)["outcome"] for event in events[:4]] == [None] * 4
    assert links(events[0], "RELATION") == ["1"]


@pytest.mark.parametrize(
    ("state", "reason", "outcome"),
    [
        (State.FAILED, Reason.REPOSITORY, "failure"),
        (State.FAILED, Reason.TIMEOUT, "failure"),
        (State.FAILED, Reason.INFRASTRUCTURE, "error"),
        (State.CANCELLED, Reason.REQUESTED, "cancel"),
        (State.CANCELLED, Reason.SUPERSEDED, "cancel"),
        (State.CANCELLED, Reason.DELETED, "cancel"),
    ],
)
def test_other_ends(state: State, reason: Reason, outcome: str) -> None:
    (event,) = told(ended(state, reason), Word(state))
    assert (event.id, event.subject, content(event)) == ("uid-b.1.build.finished", "b", {})
    assert [custom(event)[name] for name in ("outcome", "reason", "message")] == [outcome, reason, "Because."]
    assert links(event, "END") == ["uid-b.1.build.started"]


def test_an_attempt_that_another_follows_is_no_end() -> None:
    """A consumer of build.finished considers the build done, so a retry must not send it."""
    again = build(attempts=(failed(1, started_at=NOW),), attempt=2)
    (event,) = told(again, Word.RETRYING)
    assert (NAMES[event.type], event.id) == ("build.queued", "uid-b.2.build.queued")
    assert links(event, "PATH") == ["uid-b.1.build.started"]
    assert [custom(event)[name] for name in ("attempt", "outcome", "reason", "message")] == [
        2,
        None,
        "infrastructure",
        "gone",
    ]
    begun = replace(again, status=replace(again.status, attempts=(*again.status.attempts, attempt(2, started_at=NOW))))
    (started,) = told(begun, Word.STARTED, 2)
    assert links(started, "PATH") == [event.id]


def test_cancelled_before_an_attempt_began() -> None:
    (event,) = told(build(state=State.CANCELLED, reason=Reason.REQUESTED), Word.CANCELLED)
    assert links(event, "PATH") == ["uid-b.1.build.queued"]


def test_deleted_before_anybody_had_seen_it() -> None:
    unseen = build(state=State.CANCELLED, reason=Reason.DELETED, round=0)
    events = told(unseen, Word.CANCELLED)
    assert names(events) == ["build.queued", "build.finished"]
    check_chain(events)


def test_one_who_joined_has_an_end_of_their_own() -> None:
    joiner = cause("later")
    (event,) = told(replace(SUCCEEDED, causes=(*SUCCEEDED.causes, joiner)), Word.SUCCEEDED, joined=joiner)
    assert event.id == f"uid-b.1.build.finished.{joiner.key}"
    assert (links(event, "RELATION"), links(event, "END")) == (["later"], ["uid-b.1.artifact.published"])
    assert content(event) == {"artifactId": PURL}


def test_another_round_is_another_chain() -> None:
    first, second = (told(build(round=number), Word.QUEUED)[0].data for number in (1, 2))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["context"]["chainId"] != second["context"]["chainId"]


def test_links_to_causes_are_bounded() -> None:
    many = build("b", cause("x" * 257), *(cause(f"c{number}") for number in range(20)))
    (event,) = told(many, Word.QUEUED)
    assert links(event, "RELATION") == [f"c{number}" for number in range(10)]


def test_attributes_that_filters_see_are_those_of_kilns_own_event() -> None:
    own = report.event(SUCCEEDED, Word.SUCCEEDED, 1, source="/kiln", now=NOW)
    assert all(event.extensions == {**own.extensions, "kilnttl": 8} for event in told(SUCCEEDED, Word.SUCCEEDED))

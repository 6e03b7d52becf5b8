"""The public report of a build: exactly the fields of the contract, valid by the shipped schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace

import builds.schemas
from builds.build import (
    Announcement,
    Attempt,
    Build,
    BuildStatus,
    Cause,
    Delivery,
    DeliveryState,
    Image,
    Kind,
    Reason,
    Request,
    State,
    Timings,
)
from builds.report import as_json, event, schemas
from eventing.event import Event
from eventing.tracing import Trace

SHIPPED = Path(builds.schemas.__file__).parent
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
COMMIT = "a" * 40
TRACE = Trace(traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", tracestate="a=b")


def later(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def cause(id_: str, **more: Any) -> Cause:
    return Cause(
        **{
            "source": "https://github.com/a/b",
            "id": id_,
            "type": "com.github.push",
            "by": "webhook:github",
            "at": AT,
            "kind": Kind.PUSH,
            "ref": "refs/heads/main",
            **more,
        }
    )


QUEUED = Build(
    name="build-a-b-0123456789abcdef0123",
    uid="5f0c",
    request=Request(
        repository="https://github.com/a/b",
        clone_url="https://github.com/a/b.git",
        commit=COMMIT,
        image="r.example/a-b",
        subdir="x",
    ),
    causes=(cause("1"), cause("2", ref="refs/tags/v1", trace=TRACE, hops_left=5, trigger="tags", by=None)),
    created_at=AT,
    status=BuildStatus(round=1, trace=TRACE, queued_at=AT, waiting="The queue is full."),
)
KEYS = tuple(each.key for each in QUEUED.causes)
IMAGE = Image(repository="r.example/a-b", tag=f"{COMMIT}-01234567", digest="sha256:" + "d" * 64, tags=("main",))
ATTEMPT = Attempt(
    number=1,
    node="local",
    written_at=later(1),
    started_at=later(2),
    finished_at=later(9),
    state=State.SUCCEEDED,
    timings=Timings(fetch=1.5, build=4.25, push=1),
)
RUNNING = replace(
    QUEUED,
    status=BuildStatus(
        state=State.RUNNING,
        round=1,
        trace=TRACE,
        queued_at=AT,
        started_at=later(2),
        attempts=(replace(ATTEMPT, state=None, finished_at=None, timings=Timings()),),
    ),
)
SUCCEEDED = replace(
    QUEUED,
    status=BuildStatus(
        state=State.SUCCEEDED,
        round=1,
        trace=TRACE,
        queued_at=AT,
        started_at=later(2),
        finished_at=later(9),
        attempts=(ATTEMPT,),
        image=IMAGE,
        answered=KEYS,
        log_tail="Successfully pushed\n",
    ),
)
FAILED = replace(
    QUEUED,
    status=BuildStatus(
        state=State.FAILED,
        reason=Reason.REPOSITORY,
        message="RUN false: exit status 1",
        round=1,
        trace=TRACE,
        queued_at=AT,
        started_at=later(2),
        finished_at=later(9),
        attempts=(replace(ATTEMPT, state=State.FAILED, reason=Reason.REPOSITORY, message="RUN false: exit status 1"),),
        answered=KEYS,
    ),
)
RETRYING = replace(
    QUEUED,
    status=BuildStatus(
        round=1,
        trace=TRACE,
        attempt=2,
        queued_at=AT,
        attempts=(replace(ATTEMPT, state=State.FAILED, reason=Reason.INFRASTRUCTURE, message="The daemon is away."),),
    ),
)
CANCELLED = replace(
    QUEUED,
    status=BuildStatus(
        state=State.CANCELLED,
        reason=Reason.REQUESTED,
        round=1,
        trace=TRACE,
        queued_at=AT,
        finished_at=later(3),
        answered=KEYS,
    ),
)
BUILDS = {
    "queued": QUEUED,
    "started": RUNNING,
    "retrying": RETRYING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "cancelled": CANCELLED,
}


FORMATS = jsonschema.FormatChecker()


@FORMATS.checks("date-time", raises=ValueError)
def is_rfc3339_utc(text: object) -> bool:
    return not isinstance(text, str) or (text.endswith("Z") and datetime.fromisoformat(text).tzinfo is not None)


def validated(plain: object, name: str = "build.v1.json") -> None:
    schema = json.loads((SHIPPED / name).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(plain)


def told(word: str, **more: Any) -> Event:
    number = 2 if word == "queued" and more.get("build") else 1
    build = more.pop("build", BUILDS[word])
    return event(build, word, number, source="/kiln", now=later(10), base="https://kiln.example/x/", **more)


def test_a_build_that_succeeded() -> None:
    assert as_json(SUCCEEDED, base="/services/kiln/") == {
        "name": "build-a-b-0123456789abcdef0123",
        "state": "succeeded",
        "reason": None,
        "message": None,
        "waiting": None,
        "attempt": 1,
        "attempts": [
            {
                "number": 1,
                "node": "local",
                "state": "succeeded",
                "reason": None,
                "message": None,
                "started_at": "2026-03-01T12:00:02Z",
                "finished_at": "2026-03-01T12:00:09Z",
            }
        ],
        "repository": "https://github.com/a/b",
        "ref": "refs/heads/main",
        "commit": COMMIT,
        "subdir": "x",
        "image": {
            "reference": f"r.example/a-b:{COMMIT}-01234567@sha256:{'d' * 64}",
            "repository": "r.example/a-b",
            "tag": f"{COMMIT}-01234567",
            "tags": ["main"],
            "refused_tags": [],
            "digest": "sha256:" + "d" * 64,
        },
        "node": "local",
        "queued_at": "2026-03-01T12:00:00Z",
        "started_at": "2026-03-01T12:00:02Z",
        "finished_at": "2026-03-01T12:00:09Z",
        "durations": {"queued": 2.0, "fetch": 1.5, "build": 4.25, "push": 1.0},
        "causes": [
            {
                "source": "https://github.com/a/b",
                "id": "1",
                "type": "com.github.push",
                "trigger": None,
                "ref": "refs/heads/main",
                "tags": [],
                "by": "webhook:github",
            },
            {
                "source": "https://github.com/a/b",
                "id": "2",
                "type": "com.github.push",
                "trigger": "tags",
                "ref": "refs/tags/v1",
                "tags": [],
                "by": None,
            },
        ],
        "log": {
            "url": "/services/kiln/api/v1/builds/build-a-b-0123456789abcdef0123/log",
            "tail": "Successfully pushed\n",
        },
        "deliveries": [],
    }


@pytest.mark.parametrize("word", BUILDS)
def test_every_build_is_plain_json_and_as_the_schema_says(word: str) -> None:
    plain = as_json(BUILDS[word])
    assert json.loads(json.dumps(plain)) == plain
    validated(plain)
    assert plain["log"]["url"] == f"/api/v1/builds/{QUEUED.name}/log"
    listed = as_json(BUILDS[word], tail=False)
    validated(listed)
    assert "tail" not in listed["log"]
    assert {**listed, "log": plain["log"]} == plain


def test_what_is_known_before_the_end() -> None:
    plain = as_json(QUEUED)
    assert plain["image"] == {
        "reference": None,
        "repository": "r.example/a-b",
        "tag": plain["image"]["tag"],
        "tags": [],
        "refused_tags": [],
        "digest": None,
    }
    assert plain["image"]["tag"].startswith(f"{COMMIT}-")
    assert plain["waiting"] == "The queue is full."
    assert plain["durations"] == {"queued": None, "fetch": None, "build": None, "push": None}
    assert (plain["node"], plain["started_at"], plain["log"]["tail"]) == (None, None, None)
    unseen = as_json(replace(QUEUED, status=BuildStatus()))
    assert unseen["queued_at"] == "2026-03-01T12:00:00Z"


def test_an_attempt_that_is_over_says_nothing_of_the_next() -> None:
    plain = as_json(RETRYING)
    assert (plain["state"], plain["attempt"], plain["node"]) == ("queued", 2, None)
    assert plain["durations"]["fetch"] is None
    assert plain["attempts"][0]["reason"] == "infrastructure"


def test_a_clock_that_was_set_back_makes_no_time_negative() -> None:
    back = replace(RUNNING, status=replace(RUNNING.status, started_at=later(-5)))
    assert as_json(back)["durations"]["queued"] == 0


def test_asked_for_again_after_its_end_it_is_queued_from_that_moment() -> None:
    again = replace(FAILED, causes=(*FAILED.causes, cause("3", at=later(60))))
    plain = as_json(again)
    validated(plain)
    assert (plain["state"], plain["attempt"], plain["queued_at"]) == ("queued", 2, "2026-03-01T12:01:00Z")
    ended = ("reason", "message", "waiting", "started_at", "finished_at", "node")
    assert [plain[name] for name in ended] == [None] * len(ended)
    assert plain["log"]["tail"] is None
    forced = replace(SUCCEEDED, causes=(*SUCCEEDED.causes, cause("3", at=later(60), force=True)))
    assert (as_json(forced)["state"], as_json(forced)["image"]["reference"]) == ("queued", None)
    joined = replace(SUCCEEDED, causes=(*SUCCEEDED.causes, cause("3", at=later(60))))
    assert as_json(joined)["state"] == "succeeded"


def test_deliveries_are_told_before_and_after_they_are_made() -> None:
    done = Delivery(
        sink="hub", event="5f0c.1.queued", type="t", state=DeliveryState.DELIVERED, tries=1, due_at=AT, at=AT
    )
    due = Delivery(sink="hub", event="5f0c.1.succeeded", type="t", due_at=AT, error="503")
    outbox = (Announcement(event=told("succeeded"), at=AT, deliveries=(due,)),)
    plain = as_json(replace(SUCCEEDED, status=replace(SUCCEEDED.status, deliveries=(done,), outbox=outbox)))
    validated(plain)
    assert [(each["event"], each["state"], each["error"]) for each in plain["deliveries"]] == [
        ("5f0c.1.queued", "delivered", None),
        ("5f0c.1.succeeded", "pending", "503"),
    ]


@pytest.mark.parametrize("word", BUILDS)
def test_events(word: str) -> None:
    made = told(word)
    assert made.type == f"dev.kiln.build.{word}.v1"
    assert made.id == f"5f0c.1.{word}"
    assert (made.source, made.subject, made.time) == ("/kiln", QUEUED.name, later(10))
    assert made.datacontenttype == "application/json"
    assert made.dataschema == json.loads((SHIPPED / "build.v1.json").read_text())["$id"]
    validated(made.data)
    assert made.data == as_json(BUILDS[word], base="https://kiln.example/x")
    reasons = {"retrying": "infrastructure", "failed": "repository", "cancelled": "requested"}
    image = {"image": IMAGE.reference} if word == "succeeded" else {}
    reason = {"reason": reasons[word]} if word in reasons else {}
    assert made.extensions == {
        "repository": "https://github.com/a/b",
        "partitionkey": "https://github.com/a/b",
        "ref": "refs/heads/main",
        "commit": COMMIT,
        **TRACE.carried,
        "knativebrokerttl": 4,
        **image,
        **reason,
    }


def test_extensions_are_left_out_where_there_is_nothing_to_say() -> None:
    alone = replace(QUEUED, causes=(cause("1", ref=None),), status=replace(QUEUED.status, trace=None))
    assert set(told("queued", build=alone).extensions) == {"repository", "partitionkey", "commit"}


def test_one_who_joined_after_the_end_has_an_event_of_their_own() -> None:
    joiner = cause("3", ref="refs/tags/v2", at=later(60))
    joined = replace(SUCCEEDED, causes=(*SUCCEEDED.causes, joiner))
    made = told("succeeded", build=joined, cause=joiner)
    assert made.id == f"5f0c.1.succeeded.{joiner.key}"
    assert made.extensions["ref"] == "refs/tags/v2"
    assert "traceparent" not in made.extensions, "the trace of others"
    assert made == told("succeeded", build=joined, cause=joiner)


def test_an_event_tells_what_it_is_about_though_somebody_has_asked_again_meanwhile() -> None:
    again = replace(FAILED, causes=(*FAILED.causes, cause("3", at=later(60))))
    data = told("failed", build=again).data
    assert isinstance(data, dict)
    assert (data["state"], data["reason"]) == ("failed", "repository")


def test_the_schemas_that_are_shipped_are_those_of_the_code() -> None:
    shipped = {path.name: json.loads(path.read_text()) for path in SHIPPED.glob("*.json")}
    assert shipped == schemas(), "run python -m builds.schemas"


@pytest.mark.parametrize(
    ("change", "is_valid"),
    [
        ({}, True),
        ({"state": "done"}, False),
        ({"queued_at": None}, False),
        ({"finished_at": "yesterday"}, False),
        ({"causes": None}, False),
    ],
)
def test_the_schema_says_no(change: dict[str, object], is_valid: bool) -> None:
    plain = {**as_json(SUCCEEDED), **change}
    if is_valid:
        validated(plain)
    else:
        with pytest.raises(jsonschema.ValidationError):
            validated(plain)


def test_the_schema_of_a_request() -> None:
    validated({"repository": "https://github.com/a/b", "ref": None, "tags": ["x"]}, "request.v1.json")
    for wrong in ({}, {"repository": 1}, {"repository": "x", "reff": "y"}):
        with pytest.raises(jsonschema.ValidationError):
            validated(wrong, "request.v1.json")

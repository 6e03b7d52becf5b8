"""Incoming CloudEvents: accepted ones and permanent refusals. A refused request has no effect at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from builds.build import Kind
from builds.triggers import TriggerRule
from eventing.tracing import Trace
from handlers import events
from tests.handlers.harness import COMMIT, REPOSITORY, TOKENS, Harness, bearer, body, event, push, signed, structured


@pytest.mark.parametrize("path", ["/events", "/", "/events/"])
def test_an_accepted_event_has_no_body_and_says_where_the_build_is(harness: Harness, path: str) -> None:
    answer = harness.client.post(path, **structured(event()))
    (build,) = harness.builds()
    assert (answer.status_code, answer.data, answer.content_type) == (202, b"", None)
    assert answer.headers["Location"] == f"/api/v1/builds/{build.name}"
    assert harness.client.get(answer.headers["Location"]).json["commit"] == COMMIT


def test_a_duplicate_gets_the_same_answer_and_changes_nothing(harness: Harness) -> None:
    first, second = (harness.client.post("/events", **structured(event())) for _ in range(2))
    assert (first.status_code, first.headers["Location"]) == (second.status_code, second.headers["Location"])
    assert [len(build.causes) for build in harness.builds()] == [1]


def test_binary_mode(harness: Harness) -> None:
    headers = {"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "b-1", "ce-source": "/tests"}
    headers |= {"ce-type": "dev.kiln.build.requested.v1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    answer = harness.client.post("/events", data=json.dumps(body()), headers=headers)
    assert answer.status_code == 202
    (cause,) = harness.builds()[0].causes
    assert (cause.source, cause.id, cause.by, cause.kind) == ("/tests", "b-1", None, Kind.PERSON)
    assert cause.trace == Trace(traceparent=headers["traceparent"])


def test_a_push_goes_through_the_triggers_and_ranks_behind_people(harness: Harness) -> None:
    pushed = event(type="com.github.push", data=push(), source=REPOSITORY, id="delivery")
    assert harness.client.post("/events", **structured(pushed)).status_code == 202
    (cause,) = harness.builds()[0].causes
    assert (cause.trigger, cause.ref, cause.kind) == ("default", "refs/heads/main", Kind.PUSH)


@pytest.mark.parametrize(
    "ignored",
    [
        event(type="dev.kiln.build.succeeded.v1"),
        event(type="org.example.other"),
        event(type="com.github.push", data=push(ref="refs/heads/side")),
    ],
)
def test_what_no_trigger_wants_is_204(harness: Harness, ignored: dict[str, object]) -> None:
    answer = harness.client.post("/events", **structured(ignored))
    assert (answer.status_code, answer.data) == (204, b"")
    assert not harness.builds()


def test_a_batch_is_taken_whole(harness: Harness) -> None:
    batch = [event(), event(id="e-2", data=body(subdir="other")), event(id="e-3", type="org.example.other")]
    answer = harness.client.post("/events", **structured(batch, "cloudevents-batch"))
    assert answer.status_code == 202
    first = harness.client.get(answer.headers["Location"]).json
    assert first["subdir"] in ("", None)
    assert len(harness.builds()) == 2


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (event(id="e-2", data=body(repository="https://user:pw@github.com/a/b")), 422),
        (event(id="e-2", data=body(image="elsewhere.example/x")), 403),
        (event(id="e-2", data=body(subdir="../x")), 400),
        ({"specversion": "1.0"}, 400),
    ],
)
def test_a_batch_with_one_bad_event_does_nothing_and_names_it(
    harness: Harness, bad: dict[str, object], status: int
) -> None:
    answer = harness.client.post("/events", **structured([event(), bad], "cloudevents-batch"))
    assert answer.status_code in (status, 400) if status == 422 else answer.status_code == status
    assert "event 1" in answer.json["detail"]
    assert not harness.builds()


def test_a_batch_that_takes_too_long_is_put_off_whole(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CHECKING", -1.0)
    answer = harness.client.post("/events", **structured([event(), event(id="e-2")], "cloudevents-batch"))
    assert answer.status_code == 503
    assert "smaller batches" in answer.json["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    assert not harness.builds()


def test_an_empty_batch_asks_for_nothing(harness: Harness) -> None:
    assert harness.client.post("/events", **structured([], "cloudevents-batch")).status_code == 204


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/cloudevents+json", 400),
        (b"[]", "application/cloudevents+json", 400),
        (b"[" * 100_000, "application/cloudevents+json", 400),
        (b'{"a":' * 100_000, "application/cloudevents+json", 400),
        (b"\xff\xfe", "application/cloudevents+json", 400),
        (json.dumps(event(data={"repository": 5})).encode(), "application/cloudevents+json", 400),
        (json.dumps(event(data=None)).encode(), "application/cloudevents+json", 400),
        (json.dumps(event(id="a\nb")).encode(), "application/cloudevents+json", 400),
        (
            json.dumps(event(data=body(ref="--upload-pack=x", commit=None))).encode(),
            "application/cloudevents+json",
            400,
        ),
        (b"{}", "application/json", 415),
        (b"hello", "text/plain", 415),
        (b"x" * 2**21, "application/cloudevents+json", 413),
    ],
)
def test_what_is_malformed_is_refused_for_good(harness: Harness, data: bytes, kind: str, status: int) -> None:
    answer = harness.client.post("/events", data=data, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["detail"]
    assert not harness.builds()


@pytest.mark.parametrize(
    ("coding", "named"), [("gzip", "gzip"), ("GZIP", "gzip"), ("identity, br", "br"), ("gzip, zstd", "gzip, zstd")]
)
@pytest.mark.parametrize("path", ["/events", "/webhooks/github", "/api/v1/builds"])
def test_an_encoded_body_is_415_and_named(harness: Harness, path: str, coding: str, named: str) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    answer = harness.client.post(path, data=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    assert f"({named})" in answer.json["detail"]
    assert answer.headers["Accept-Encoding"] == "identity"


def test_a_body_that_is_not_encoded(harness: Harness) -> None:
    message = structured(event())
    message["headers"]["Content-Encoding"] = "identity"
    assert harness.client.post("/events", **message).status_code == 202


def test_an_invalid_trace_is_none(harness: Harness) -> None:
    valid = f"00-{'a' * 32}-{'b' * 16}-01"
    for number, (mine, transports, kept) in enumerate([("x", valid, valid), (None, f"ff{valid[2:]}", None)]):
        message: dict[str, Any] = structured(event(id=f"e-{number}", traceparent=mine))
        message["headers"]["traceparent"] = transports
        assert harness.client.post("/events", **message).status_code == 202
        (build,) = harness.builds()
        assert build.causes[-1].trace == (Trace(traceparent=kept) if kept else None)


def test_an_events_own_trace_is_kept_before_its_transports_and_never_mixed_with_it(harness: Harness) -> None:
    """The extension belongs to the first hop, the header to the last one (CloudEvents' distributed tracing)."""
    mine, transports = f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'c' * 32}-{'d' * 16}-01"
    cases = [
        ({"traceparent": mine, "tracestate": "a=1"}, Trace(traceparent=mine, tracestate="a=1")),
        ({"traceparent": mine}, Trace(traceparent=mine)),
        ({"tracestate": "a=1"}, Trace(traceparent=transports, tracestate="t=1")),
        ({}, Trace(traceparent=transports, tracestate="t=1")),
    ]
    for number, (attributes, kept) in enumerate(cases):
        message: dict[str, Any] = structured(event(id=f"e-{number}", **attributes))
        message["headers"] |= {"traceparent": transports, "tracestate": "t=1"}
        assert harness.client.post("/events", **message).status_code == 202
        assert harness.builds()[0].causes[-1].trace == kept


def test_a_trace_comes_by_every_way_in(harness: Harness) -> None:
    header = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "t=1"}
    webhook = signed(push())
    webhook["headers"] |= header
    harness.client.post("/webhooks/github", **webhook)
    harness.client.post("/api/v1/builds", json=body(), headers=header)
    kept = [cause.trace for build in harness.builds() for cause in build.causes]
    assert kept == [Trace(**header)] * 2


def test_a_full_queue_is_503_with_a_time_and_nothing_half_made(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(max_queued=1)
    batch = [event(), event(id="e-2", data=body(subdir="other"))]
    answer = harness.client.post("/events", **structured(batch, "cloudevents-batch"))
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert not harness.builds()


@pytest.mark.parametrize(("path", "allow"), [("/events", "POST, OPTIONS"), ("/", "GET, HEAD, POST, OPTIONS")])
def test_handshake(harness: Harness, path: str, allow: str) -> None:
    answer = harness.client.options(
        path, headers={"WebHook-Request-Origin": "sender.example", "WebHook-Request-Rate": "9"}
    )
    assert answer.status_code == 200
    assert answer.headers["Allow"] == allow
    assert answer.headers["WebHook-Allowed-Origin"] == "*"
    assert answer.headers["WebHook-Allowed-Rate"] == "*"


def test_another_method_is_405_and_says_which(harness: Harness) -> None:
    answer = harness.client.put("/events")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]
    assert answer.mimetype == "application/problem+json"


def test_events_have_a_gate_of_their_own(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["none"], events_auth=["token"])
    answer = harness.client.post("/events", **structured(event()))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    message: dict[str, Any] = structured(event())
    for name in TOKENS:
        message["headers"] |= bearer(name)
        assert harness.client.post("/events", **message).status_code == 202
    assert harness.builds()[0].causes[0].by == "token:ci"
    wrong = harness.client.post("/events", data=b"", headers={"Authorization": "Bearer n\xe9"})
    assert wrong.status_code == 401


def test_network_needs_nothing_else(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"], events_auth=["network"])
    message: dict[str, Any] = structured(event())
    message["headers"]["X-Forwarded-For"] = "10.0.0.1"
    assert harness.client.post("/events", **message).status_code == 202


def test_a_trigger_says_when_a_value_is_there(harnesses: Callable[..., Harness]) -> None:
    """The event about a deleted course must not get a 4xx, which would make it a dead letter."""
    from builds.triggers import BuildTemplate  # noqa: PLC0415

    rule = TriggerRule(
        name="courses",
        when=({"exists": "data.course.repository"}, {"not": {"exact": {"data.action": "archived"}}}),
        build=BuildTemplate(
            repository="{data.course.repository}", commit="{data.course.commit}", ref="refs/heads/main"
        ),
    )
    harness = harnesses(triggers=[rule])
    course = {"repository": REPOSITORY, "commit": COMMIT}
    statuses = {}
    for action, data in {
        "deleted": {"course": None},
        "none": None,
        "archived": {"course": course, "action": "archived"},
        "updated": {"course": course, "action": "updated"},
        "unsaid": {"course": course},
    }.items():
        sent = event(type="org.example.course", id=action, **({} if data is None else {"data": data}))
        if data is None:
            del sent["data"]
        statuses[action] = harness.client.post("/events", **structured(sent)).status_code
    assert statuses == {"deleted": 204, "none": 204, "archived": 204, "updated": 202, "unsaid": 202}


def test_a_push_that_asks_for_no_build_is_204(harness: Harness) -> None:
    quiet = push(head_commit={"id": COMMIT, "message": "docs [skip ci]"})
    sent = event(type="com.github.push", data=quiet, source=REPOSITORY, id="quiet")
    assert harness.client.post("/events", **structured(sent)).status_code == 204
    assert not harness.builds()


def test_a_template_that_lacks_a_value_is_named(harnesses: Callable[..., Harness]) -> None:
    from builds.triggers import BuildTemplate  # noqa: PLC0415

    rule = TriggerRule(name="courses", build=BuildTemplate(repository="{data.course.repository}"))
    harness = harnesses(triggers=[rule])
    answer = harness.client.post("/events", **structured(event(type="org.example.course", data={})))
    assert answer.status_code == 422
    assert "data.course.repository" in answer.json["detail"]

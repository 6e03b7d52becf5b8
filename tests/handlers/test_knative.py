"""`/events` as a Knative broker uses it: the broker's reaction to each answer, and no endless loops of events."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from builds import chain
from builds.build import Build
from builds.engines import Submission, Unavailable
from builds.errors import Unreachable
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.plan import Word
from builds.report import event as report
from builds.repository import Policy
from builds.triggers import BuildTemplate, TriggerRule
from eventing.http import encode
from eventing.sinks import judge
from tests.handlers.harness import COMMIT, PREFIX, REPOSITORY, Harness, Named, body, event, structured

ANY = TriggerRule(name="any", build=BuildTemplate(repository=REPOSITORY, commit=COMMIT, ref="refs/heads/main"))
"""A trigger that matches every event."""

REPEATED = {404, 408, 409, 429}
FINAL = {400, 401, 403, 413, 415, 422}


def fate(status: int, content: bytes) -> str:
    """Return what a broker does with an event after this answer.

    https://github.com/knative/specs/blob/main/specs/eventing/data-plane.md (event acknowledgement and delivery retry),
    and knative/eventing's pkg/kncloudevents/retries.go, which alone repeats after 408.
    """
    match status // 100:
        case 2:
            return "reply" if content else "done"
        case 5:
            return "repeated"
    return "repeated" if status in REPEATED else "dead letter"


def from_broker(about: dict[str, Any], **extensions: str) -> dict[str, Any]:
    """Return arguments for a client's `post`, as the MT channel broker's dispatcher sends an event."""
    attributes = {name: str(value) for name, value in about.items() if name not in ("data", "datacontenttype")}
    headers = {f"ce-{name}": value for name, value in (attributes | extensions).items()}
    headers |= {
        "Content-Type": "application/json",
        "User-Agent": "Go-http-client/1.1",
        "Prefer": "reply",
        "Kn-Namespace": "events",
        "Traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "ce-knativearrivaltime": "2026-11-29T12:00:00.123456789Z",
    }
    return {"data": json.dumps(about.get("data")).encode(), "headers": headers}


# Answers to a broker. ------------------------------------------------------------------------------------------------


def test_what_a_broker_sends_is_taken_without_a_reply(harness: Harness) -> None:
    answer = harness.client.post("/events", **from_broker(event()))
    assert (answer.status_code, answer.data) == (202, b"")
    (cause,) = harness.builds()[0].causes
    assert cause.trace is not None
    assert (cause.trace.traceparent, cause.hops_left) == (f"00-{'a' * 32}-{'b' * 16}-01", None)


class Away:
    """A Git host that does not answer."""

    def resolve(self, *_: object) -> Any:
        raise Unreachable("git.example does not answer.", retry_after=7)

    commit = resolve


def unreachable(_: Path) -> dict[str, Any]:
    intake = Intake(instance="t", policy=Policy(), hosts={}, images=ImagePolicy(PREFIX), resolver=Away())
    return {"intake": intake}


class Broken:
    def accept(self, _: list[Submission]) -> list[Build]:
        raise Unavailable("the API server is away")


TOO_LARGE = {"data": b" " * (2**20 + 1), "headers": {"Content-Type": "application/cloudevents+json"}}
ENCODED = {"data": b"\x1f\x8b", "headers": {"Content-Type": "application/cloudevents+json", "Content-Encoding": "gzip"}}
TEMPLATE = TriggerRule(name="course", build=BuildTemplate(repository="{data.course}", commit=COMMIT))
GONE = {"type": "org.example.course.deleted", "data": {"course": None}}

ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    # case: (settings of the harness, the request, the status, the reaction of the broker)
    "asked for": ({}, from_broker(event()), 202, "done"),
    "wanted": ({"triggers": [ANY]}, from_broker(event(type="a")), 202, "done"),
    "no trigger": ({}, from_broker(event(type="org.example.other")), 204, "done"),
    "our own": ({}, from_broker(event(type="dev.kiln.build.failed.v1")), 204, "done"),
    "no CloudEvent": ({}, {"data": b"{}", "headers": {"Content-Type": "application/json"}}, 415, "dead letter"),
    "encoded": ({}, ENCODED, 415, "dead letter"),
    "no id": ({}, from_broker({**event(), "id": ""}), 400, "dead letter"),
    "not JSON": ({}, {**from_broker(event()), "data": b"{"}, 400, "dead letter"),
    "malformed data": ({}, from_broker(event(data={"repository": 5})), 400, "dead letter"),
    "no token": ({"events_auth": ["token"]}, from_broker(event()), 401, "dead letter"),
    "not theirs": ({"auth_gate": None}, from_broker(event(type="org.example.other")), 403, "dead letter"),
    "image elsewhere": ({}, from_broker(event(data=body(image="elsewhere.example/x"))), 403, "dead letter"),
    "too large": ({}, TOO_LARGE, 413, "dead letter"),
    "refused": ({}, from_broker(event(data=body(repository="https://10.0.0.1/a/b"))), 422, "dead letter"),
    "no value": ({"triggers": [TEMPLATE]}, from_broker(event(**GONE)), 422, "dead letter"),
    "queue full": ({"max_queued": 0}, from_broker(event()), 503, "repeated"),
    "records away": ({"records": Broken()}, from_broker(event()), 503, "repeated"),
    "host away": ({"intake": Away}, from_broker(event(data=body(commit=None, ref="main"))), 503, "repeated"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_becomes_of_an_event(harnesses: Callable[..., Harness], tmp_path: Path, case: str) -> None:
    settings, posted, status, expected = ANSWERS[case]
    if "auth_gate" in settings:
        from handlers.auth import Gate  # noqa: PLC0415

        settings = {"auth_gate": Gate([Named("user:ada")])}
    if "intake" in settings:
        settings = unreachable(tmp_path)
    answer = harnesses(**settings).client.post("/events", **posted)
    assert (answer.status_code, fate(answer.status_code, answer.data)) == (status, expected), answer.text
    assert ("Retry-After" in answer.headers) == (expected == "repeated")
    assert status in FINAL | {202, 204, 429, 503}
    if expected == "dead letter":  # the dead letter carries our message, cut at 1 KiB
        assert len(answer.data) < 1024
        assert answer.json["detail"]


def test_what_has_been_repeated_is_one_build(harness: Harness) -> None:
    for _ in range(3):
        assert fate(*posted(harness, from_broker(event()))) == "done"
    assert [len(build.causes) for build in harness.builds()] == [1]


def posted(harness: Harness, message: dict[str, Any]) -> tuple[int, bytes]:
    answer = harness.client.post("/events", **message)
    return answer.status_code, answer.data


def test_what_kiln_makes_of_a_broker_s_answer_is_what_a_broker_makes_of_kiln_s() -> None:
    for status in range(200, 600):
        outcome = judge(status)
        made = "done" if outcome.delivered else "dead letter" if outcome.final else "repeated"
        assert made == fate(status, b""), status


# Loops. --------------------------------------------------------------------------------------------------------------


def told(build: Build, word: str = "succeeded", source: str = "/kiln") -> Any:
    return report(build, word, 1, source=source, now=datetime.now(UTC))


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize("source", ["/kiln", "/another"])
@pytest.mark.parametrize("word", [word.value for word in Word])
def test_what_a_kiln_tells_of_builds_asks_for_nothing(
    harnesses: Callable[..., Harness], word: str, source: str, mode: Any
) -> None:
    harness = harnesses(triggers=[ANY])
    build = harness.ask()
    headers, data = encode(told(build, word, source), mode)
    answer = harness.client.post("/events", data=data, headers=headers)
    assert (answer.status_code, answer.data) == (204, b"")
    assert [len(each.causes) for each in harness.builds()] == [1]


def test_of_its_own_source_only_a_request_asks_for_anything(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(triggers=[ANY])
    foreign = event(type="dev.cdevents.build.finished.0.3.0")
    assert harness.client.post("/events", **structured({**foreign, "source": "/kiln"})).status_code == 204
    assert harness.client.post("/events", **structured({**foreign, "source": "/another"})).status_code == 202
    assert harness.client.post("/events", **structured(event(source="/kiln", id="asked"))).status_code == 202


@pytest.mark.parametrize(
    ("said", "left", "sent"),
    [("255", 255, 254), ("2", 2, 1), ("1", 1, 0), ("9999999999", 255, 254), ("soon", None, None), ("2.5", None, None)],
)
def test_hops_are_kept_and_taken_off(harness: Harness, said: str, left: int | None, sent: int | None) -> None:
    assert harness.client.post("/events", **from_broker(event(), knativebrokerttl=said)).status_code == 202
    (build,) = harness.builds()
    assert build.causes[0].hops_left == left
    assert told(build).extensions.get("knativebrokerttl") == sent


@pytest.mark.parametrize("said", [0, -1, "0", "-5"])
def test_an_event_without_hops_asks_for_nothing(harness: Harness, said: object) -> None:
    answer = harness.client.post("/events", **structured(event(knativebrokerttl=said)))
    assert (answer.status_code, answer.data) == (204, b"")
    assert not harness.builds()


def test_events_that_follow_from_one_another_end(harnesses: Callable[..., Harness]) -> None:
    """Each event derives from the one before and copies its extensions, as a careful producer would."""
    harness = harnesses(triggers=[ANY])
    left, answers = "3", []
    for number in range(6):
        about = event(type="org.example.derived", id=f"e-{number}")
        answers.append(harness.client.post("/events", **structured({**about, "knativebrokerttl": left})).status_code)
        (build,) = harness.builds()
        left = told(build).extensions["knativebrokerttl"]
    assert answers == [202, 202, 202, 204, 204, 204]


def test_two_kilns_that_build_on_each_other_s_cdevents_end(harnesses: Callable[..., Harness]) -> None:
    """The broker between them decrements its own count before it posts."""
    rounds = []
    both = [harnesses(triggers=[ANY]), harnesses(triggers=[ANY])]
    build = both[0].ask()
    for number in range(12):
        [sent] = chain.events(build, Word.QUEUED, 1, told(build, "queued", source=f"/{number}"))
        assert sent.type.startswith("dev.cdevents.")
        extensions = {name: value for name, value in sent.extensions.items() if name != "knativebrokerttl"}
        headers, data = encode(replace(sent, id=f"{sent.id}-{number}", extensions=extensions), "binary")
        other = both[(number + 1) % 2]
        rounds.append(other.client.post("/events", data=data, headers=headers).status_code)
        if rounds[-1] == 202:
            [build] = other.builds()
    assert rounds == [202] * 8 + [204] * 4

"""Users without admin rights choose what to build but not how, by every kind of request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import TestResponse

from builds.build import State
from builds.triggers import BuildTemplate, TriggerRule
from handlers.auth import Gate
from tests.handlers.harness import REPOSITORY, Harness, Named, body, event, push, structured

HOW: list[dict[str, Any]] = [
    {"image": "registry.example/kiln/other"},
    {"tags": ["current"]},
    {"tags": ["main"], "ref": "refs/heads/main"},
    {"build_args": {"A": "b"}},
    {"build_args": {"http_proxy": "http://evil.example:3128"}},
    {"build_args": {"BUILDKIT_SYNTAX": "evil/frontend"}},
]
PROGRAMS = [
    Named("user:root", admin=True),
    Named("token:ci", admin=True),
    Named("service:bot"),
    Named(None, admin=True),
]


def through_api(harness: Harness, given: dict[str, Any]) -> TestResponse:
    return harness.client.post("/api/v1/builds", json=body(**given))


def through_events(harness: Harness, given: dict[str, Any]) -> TestResponse:
    return harness.client.post("/events", **structured(event(data=body(**given))))


WAYS = pytest.mark.parametrize("way", [through_api, through_events])
Way = Callable[[Harness, dict[str, Any]], TestResponse]


@pytest.mark.parametrize("by", ["user:kim", "oidc:kim"])
@pytest.mark.parametrize("given", HOW, ids=str)
@WAYS
def test_how_is_not_for_ordinary_people(
    harnesses: Callable[..., Harness], way: Way, given: dict[str, Any], by: str
) -> None:
    harness = harnesses(auth_gate=Gate((Named(by),)))
    answer = way(harness, given)
    assert (answer.status_code, answer.mimetype) == (403, "application/problem+json")
    assert next(iter(given)) in answer.json["detail"]
    assert not harness.builds()
    assert way(harness, {"subdir": "a", "ref": "refs/heads/main"}).status_code == 202


@pytest.mark.parametrize("who", PROGRAMS, ids=lambda who: str(who.by))
@WAYS
def test_how_is_for_admins_and_programs(harnesses: Callable[..., Harness], way: Way, who: Named) -> None:
    harness = harnesses(auth_gate=Gate((who,)))
    for given in HOW[:4]:
        assert way(harness, given).status_code == 202
    for given in HOW[4:]:
        answer = way(harness, given)
        assert answer.status_code == 400
        assert next(iter(given["build_args"])) in answer.json["detail"]


@WAYS
def test_what_has_succeeded_is_not_built_again_for_ordinary_people(harnesses: Callable[..., Harness], way: Way) -> None:
    somebody = Named("user:kim")
    harness = harnesses(auth_gate=Gate((somebody,)))
    assert through_api(harness, {"force": True}).status_code == 202, "no build exists yet"
    (build,) = harness.builds()
    harness.run(build.name)
    harness.end(build.name)
    answer = way(harness, {"force": True})
    assert (answer.status_code, "succeeded" in answer.json["detail"]) == (403, True)
    assert harness.engine.get(build.name).state is State.SUCCEEDED
    assert way(harness, {}).status_code == 202
    somebody.by = "token:ci"
    assert through_api(harness, {"force": True, "ref": "refs/heads/main"}).status_code == 202
    assert harness.engine.get(build.name).state is State.QUEUED


def test_what_has_failed_may_be_forced_by_everybody(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth_gate=Gate((Named("user:kim"),)))
    name = harness.ask().name
    harness.run(name)
    harness.end(name, state=State.FAILED)
    assert through_api(harness, {"force": True}).status_code == 202
    assert harness.engine.get(name).state is State.QUEUED


KNATIVE = {"type": "dev.knative.source.github.push", "subject": "refs/heads/main"}


@pytest.mark.parametrize(
    "forged",
    [
        event(type="com.github.push", data=push(), source=REPOSITORY, time="2030-01-01T00:00:00Z"),
        event(data=push(), source=REPOSITORY, **KNATIVE),
        event(type="com.gitlab.push", data=push()),
        event(type="org.jupyterhub.server.spawned", data={}),
        event(type="dev.kiln.build.succeeded.v1"),
        event(type="org.example.anything"),
    ],
    ids=lambda forged: forged["type"],
)
def test_who_may_not_speak_for_a_repository_sends_no_events_of_it(
    harnesses: Callable[..., Harness], forged: dict[str, object]
) -> None:
    every = TriggerRule(name="every", build=BuildTemplate(repository=REPOSITORY, ref="refs/heads/main", tags=("main",)))
    somebody = Named("user:kim")
    harness = harnesses(auth_gate=Gate((somebody,)), triggers=[every])
    for sent in (structured(forged), structured([event(), forged], "cloudevents-batch")):
        answer = harness.client.post("/events", **sent)
        assert (answer.status_code, "dev.kiln.build.requested.v1" in answer.json["detail"]) == (403, True)
    assert not harness.builds()
    somebody.by = "service:broker"
    assert harness.client.post("/events", **structured(forged)).status_code != 403


@pytest.mark.parametrize("asks", [110, 400])
def test_who_asks_again_and_again_pushes_nobody_out(harnesses: Callable[..., Harness], asks: int) -> None:
    somebody = Named("token:ci", admin=True)
    harness = harnesses(auth_gate=Gate((somebody,)))
    name = harness.ask(tags=["main"], ref="refs/heads/main").name
    somebody.by, somebody.admin = "user:ada", False
    harness.ask()
    somebody.by = "user:mallory"
    answers = [harness.client.post("/api/v1/builds", json=body()) for _ in range(asks)]
    assert [answer.status_code for answer in answers] == [202] * 20 + [429] * (asks - 20)
    assert answers[-1].headers["Retry-After"]
    waiting = harness.engine.get(name).unanswered
    assert [(cause.by, cause.tags) for cause in waiting][:2] == [("token:ci", ("main",)), ("user:ada", ())]
    assert harness.client.delete(f"/api/v1/builds/{name}").status_code == 403
    somebody.by = "user:ada"
    assert harness.ask().name == name, "others go on asking"


def test_everybody_who_waits_decides_on_a_cancel(harnesses: Callable[..., Harness]) -> None:
    somebody = Named("user:ada")
    harness = harnesses(auth_gate=Gate((somebody,)))
    name = harness.ask().name
    harness.run(name)
    harness.end(name, state=State.FAILED)
    somebody.by = "user:kim"
    harness.ask()
    assert harness.client.delete(f"/api/v1/builds/{name}").status_code == 202, "no other user waits any more"

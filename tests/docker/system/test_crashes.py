"""`kill -9` of web, controller and builder, at every point where it could leave something half done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from builds.faults import ONLY_KUBERNETES, Fault
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, Webhook, http, sleepers
from tests.parts.kiln import Process, until
from tests.parts.registry import Registry
from tests.parts.system import System, members

pytestmark = pytest.mark.slow

WORDS = ("queued", "started", "succeeded")


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory, registry: Registry, host: GitHost) -> Iterator[System]:
    """Web; each test has a controller of its own."""
    with System(tmp_path_factory.mktemp("crashing"), registry=registry, host=host) as running:
        running.start("web")
        yield running


@pytest.fixture
def controllers(crashing: System) -> Iterator[list[Process]]:
    """The controllers that the test has started: the next test's must not wait for one of them to end."""
    started: list[Process] = []
    yield started
    for controller in started:
        controller.stop()


@pytest.mark.parametrize("point", [point for point in Fault if point not in ONLY_KUBERNETES])
def test_killed_at_any_point_the_build_ends_once(
    crashing: System, controllers: list[Process], point: Fault, tmp_path: Path
) -> None:
    (tmp_path / point).touch()
    path = f"ada/{point}"
    commit = crashing.commit(path, {"Dockerfile": SMALL})
    webhook = crashing.push(path, commit)
    controllers.append(crashing.start("controller", ready=False, KILN_FAULT=str(tmp_path)))
    if point.startswith("web-"):
        web = crashing.start("web", KILN_FAULT=str(tmp_path))
        with pytest.raises(requests.ConnectionError):
            crashing.deliver(webhook, web.url)
        # gunicorn soon has another worker, which cannot crash there again; the host's redelivery reaches that one.
        (name,) = (build["name"] for build in answered(crashing, webhook, web).json()["builds"])
    else:
        (name,) = (build["name"] for build in crashing.deliver(webhook).json()["builds"])
    if point.startswith(("controller-", "engine-")):
        assert controllers[0].popen.wait(30) == -signal.SIGKILL
        controllers.append(crashing.start("controller", KILN_FAULT=str(tmp_path)))
    build = crashing.ended(name)

    assert not (tmp_path / point).exists(), f"{point} was never reached"
    assert build["state"] == "succeeded", build
    builder_died = point.startswith("builder-") and point is not Fault.BUILDER_RESULT_WRITTEN
    assert [attempt["number"] for attempt in build["attempts"]] == ([1, 2] if builder_died else [1])
    assert len(crashing.attempts(name)) == len(build["attempts"])
    assert build["image"]["digest"] == crashing.digest(build["image"]["repository"], commit)
    assert {delivery["state"] for delivery in build["deliveries"]} == {"delivered"}
    until(lambda: not any(members(session) for session in crashing.sessions(name)))
    of_sinks = [[(event.type, event.id) for event in crashing.events(sink, name)] for sink in crashing.sinks]
    words = [*WORDS, *(("retrying", "started") if builder_died else ())]
    for events in of_sinks:
        distinct = {*events}
        # The failed attempt has events, too; a builder that had not begun has not been seen to start.
        assert len([kind for kind, _ in distinct if kind == "dev.kiln.build.succeeded.v1"]) == 1
        assert {kind.split(".")[3] for kind, _ in distinct} == {*words}
        assert len({made.split(".")[0] for _, made in distinct}) == 1
        # At least once: only events that were in progress at the crash come again.
        assert len(events) - len(distinct) <= (2 if point.startswith("controller-") else 0), events
    assert {*of_sinks[0]} == {*of_sinks[1]}


def answered(system: System, webhook: Webhook, web: Process) -> requests.Response:
    found: list[requests.Response] = []

    def asked() -> bool:
        with contextlib.suppress(requests.ConnectionError):
            found.append(system.deliver(webhook, web.url))
        return bool(found)

    until(asked)
    assert found[0].status_code == 202
    return found[0]


def test_a_running_build_is_adopted(crashing: System, controllers: list[Process]) -> None:
    """Three controllers, one attempt, one log without a gap."""
    commit, seconds = crashing.running("ada/adopted", 4)
    controllers.append(crashing.start("controller"))
    name = crashing.build("ada/adopted", commit)
    crashing.step_runs(name, seconds)
    (session,) = crashing.sessions(name)
    processes = {*members(session)}
    controllers[-1].stop(signal.SIGKILL)
    controllers.append(crashing.start("controller"))
    controllers[-1].stop(signal.SIGKILL)
    assert {*members(session)} & processes
    controllers.append(crashing.start("controller"))
    build = crashing.ended(name)
    assert (build["state"], build["attempt"], len(build["attempts"])) == ("succeeded", 1, 1)
    assert crashing.sessions(name) == [session]
    for sink in crashing.sinks:
        kinds = [event.type.split(".")[3] for event in crashing.events(sink, name)]
        assert sorted({*kinds}) == sorted(WORDS)


def test_a_build_that_ended_without_a_controller_has_ended(crashing: System, controllers: list[Process]) -> None:
    commit, seconds = crashing.running("ada/alone", 1)
    controllers.append(crashing.start("controller"))
    name = crashing.build("ada/alone", commit)
    crashing.step_runs(name, seconds)
    (session,) = crashing.sessions(name)
    controllers[-1].stop(signal.SIGKILL)
    until(lambda: not members(session))
    assert crashing.one(name)["state"] == "running"
    controllers.append(crashing.start("controller"))
    build = crashing.ended(name)
    assert (build["state"], len(build["attempts"])) == ("succeeded", 1)


def test_what_a_dead_builder_left_is_ended(crashing: System, controllers: list[Process]) -> None:
    """Its tools go on after its death, and would hold the lock for as long as they like."""
    commit, seconds = crashing.running("ada/orphans", 5)
    controllers.append(crashing.start("controller"))
    name = crashing.build("ada/orphans", commit)
    crashing.step_runs(name, seconds)
    (session,) = crashing.sessions(name)
    os.kill(session, signal.SIGKILL)
    crashing.wait(name, lambda build: build["attempt"] == 2)
    assert not members(session)
    assert "without a result" in crashing.one(name)["attempts"][0]["message"]
    build = crashing.ended(name)
    assert (build["state"], len(build["attempts"])) == ("succeeded", 2)
    until(lambda: not sleepers(seconds))


def test_a_fetch_that_hangs_does_not_outlive_its_builder(crashing: System, controllers: list[Process]) -> None:
    path = "ada/hanging"
    commit = crashing.commit(path, {"Dockerfile": SMALL})
    crashing.host.hanging.add(f"/{path}.git")
    controllers.append(crashing.start("controller"))
    name = crashing.build(path, commit)
    until(lambda: any(path in request for request in crashing.host.requests))
    (session,) = crashing.sessions(name)
    assert len(members(session)) > 1
    crashing.host.hanging.clear()
    os.kill(session, signal.SIGKILL)
    crashing.wait(name, lambda build: build["attempt"] == 2)
    assert not members(session)
    build = crashing.ended(name)
    assert (build["state"], len(build["attempts"])) == ("succeeded", 2)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_log_is_followed_over_the_death_of_web(crashing: System, controllers: list[Process]) -> None:
    """The viewer comes back to another process with its last id, and misses no line and sees none twice."""
    commit, seconds = crashing.running("ada/followed", 3)
    controllers.append(crashing.start("controller"))
    first, second = crashing.start("web"), crashing.start("web")
    name = crashing.build("ada/followed", commit)
    ids: list[str] = []

    def follow(web: Process, enough: threading.Event) -> None:
        headers = crashing.authorization | {"Accept": "text/event-stream"} | ({"Last-Event-ID": ids[-1]} if ids else {})
        url = f"{web.url}api/v1/builds/{name}/log"
        with contextlib.suppress(requests.RequestException), http("GET", url, headers=headers, stream=True) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"id: "):
                    ids.append(line[4:].decode())
                    enough.set()

    enough = threading.Event()
    viewer = threading.Thread(target=follow, args=(first, enough))
    viewer.start()
    crashing.step_runs(name, seconds)
    assert enough.wait(10)
    for pid in (first.popen.pid, *children(first.popen.pid)):
        os.kill(pid, signal.SIGKILL)
    viewer.join(20)
    assert not viewer.is_alive()
    before = len(ids)
    follow(second, enough)
    assert len(ids) > before
    assert ids == [f"1:{number}" for number in range(1, len(ids) + 1)]
    assert len(crashing.log(name).splitlines()) == len(ids)

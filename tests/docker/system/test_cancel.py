"""A build ends when a user cancels it, in every phase; SIGTERM from any other source only makes it begin again."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, sleepers
from tests.parts.kiln import until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry
from tests.parts.system import System, members


def check_cancelled(system: System, name: str) -> dict[str, Any]:
    build = system.ended(name)
    assert (build["state"], build["reason"], build["message"]) == ("cancelled", "requested", "Cancelled on request.")
    for sink in system.sinks:
        event = system.arrived(sink, name, "cancelled")
        assert event.extensions["reason"] == "requested"
        assert len({one.id for one in system.events(sink, name, "cancelled")}) == 1
    until(lambda: not any(members(session) for session in system.sessions(name)))
    for folder in system.attempts(name):
        assert not list(folder.glob("kiln-*")), "the builder's working folder is still there"
    assert system.cancel(name).status_code == 409
    return build


def test_queued_and_running(system: System) -> None:
    """Both slots are taken, so a third build waits."""
    running = [system.running(f"ada/cancelled-{number}", 50) for number in (1, 2)]
    names = [system.build(f"ada/cancelled-{number}", commit) for number, (commit, _) in enumerate(running, 1)]
    for name, (_, seconds) in zip(names, running, strict=True):
        system.step_runs(name, seconds)
    queued = system.build("ada/waiting", system.commit("ada/waiting", {"Dockerfile": SMALL}))
    system.wait(queued, lambda build: build["waiting"] == "Waiting for a free build slot.")
    for name in (queued, *names):
        answer = system.cancel(name)
        assert answer.status_code == 202, answer.text
    assert check_cancelled(system, queued)["attempts"] == []
    for name in names:
        assert check_cancelled(system, name)["attempts"][0]["state"] == "cancelled"
    until(lambda: not any(sleepers(seconds) for _, seconds in running))  # dockerd has ended the steps too


def test_pushing(tmp_path: Path, registry: Registry, host: GitHost) -> None:
    with (
        Proxy(("127.0.0.1", registry.port)) as proxy,
        System(tmp_path, registry=registry, host=host, through=proxy.address) as system,
    ):
        system.start("web")
        system.start("controller")
        proxy.delay = 0.2
        commit = system.commit("ada/pushed", {"Dockerfile": SMALL, "page": secrets.token_bytes(8 * 2**20)})
        name = system.build("ada/pushed", commit)
        system.wait(name, lambda _: "pushing layer" in system.log(name))
        assert system.one(name)["state"] == "running"
        assert system.cancel(name).status_code == 202
        build = check_cancelled(system, name)
        assert build["durations"]["push"] is not None
        proxy.delay = 0.0
        assert system.digest(build["image"]["repository"], commit) is None


@pytest.mark.slow
def test_sigterm_from_elsewhere_is_tried_again(system: System) -> None:
    commit, seconds = system.running("ada/terminated", 5)
    name = system.build("ada/terminated", commit)
    system.step_runs(name, seconds)
    (session,) = system.sessions(name)
    os.kill(session, signal.SIGTERM)
    build = system.ended(name)
    assert build["state"] == "succeeded"
    first, second = build["attempts"]
    assert (first["state"], first["reason"]) == ("failed", "infrastructure")
    assert first["message"] == "The attempt was terminated from outside."
    assert second["state"] == "succeeded"
    for sink in system.sinks:
        kinds = [event.type.split(".")[3] for event in system.events(sink, name)]
        assert sorted(kinds) == ["queued", "retrying", "started", "started", "succeeded"]


def test_asked_for_again_after_a_cancel(system: System) -> None:
    commit, seconds = system.running("ada/reconsidered", 5)
    name = system.build("ada/reconsidered", commit)
    system.step_runs(name, seconds)
    assert system.cancel(name).status_code == 202
    check_cancelled(system, name)
    assert system.build("ada/reconsidered", commit) == name
    build = system.wait(name, lambda build: build["state"] == "succeeded")
    assert [attempt["state"] for attempt in build["attempts"]] == ["cancelled", "succeeded"]


def test_a_newer_push_takes_its_place(tmp_path: Path, registry: Registry, host: GitHost) -> None:
    """Both were pushed while no controller ran; the webhook of the later one came first."""
    with System(tmp_path, registry=registry, host=host) as system:
        system.start("web")
        old = system.commit("ada/superseded", {"Dockerfile": SMALL})
        new = system.commit("ada/superseded", {"Dockerfile": SMALL})
        pushes = [system.push("ada/superseded", old), system.push("ada/superseded", new, before=old)]
        latest, superseded = (system.deliver(push).json()["builds"][0]["name"] for push in reversed(pushes))
        system.start("controller")
        assert system.ended(latest)["state"] == "succeeded"
        build = system.ended(superseded)
        assert (build["state"], build["reason"], build["attempts"]) == ("cancelled", "superseded", [])
        for sink in system.sinks:
            assert system.arrived(sink, superseded, "cancelled").extensions["reason"] == "superseded"


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_what_has_ended_stays_so(system: System, state: str) -> None:
    name = system.build(
        f"ada/{state}",
        system.commit(f"ada/{state}", {"Dockerfile": SMALL if state == "succeeded" else "FROM scratch\nCOPY x /\n"}),
    )
    assert system.ended(name)["state"] == state
    answer = system.cancel(name)
    assert (answer.status_code, answer.headers["Content-Type"]) == (409, "application/problem+json")

"""All of Kiln with a Podman service: from a push to the event that names an image, and interruptions on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from builds.clients.registry import Registry as Client
from tests.parts.githost import GitHost
from tests.parts.installation import sleepers
from tests.parts.kiln import until
from tests.parts.podmand import Podmand
from tests.parts.registry import Registry
from tests.parts.system import System

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry, host: GitHost, podman: Podmand
) -> Iterator[System]:
    own = {"KILN_DAEMON": "podman", "KILN_DOCKER_HOST": podman.host}
    own["PATH"] = f"{podman.client}:{os.environ['PATH']}"
    with System(tmp_path_factory.mktemp("system"), registry=registry, host=host, **own) as running:
        running.start("web")
        running.start("controller")
        yield running


def over(seconds: str, podman: Podmand) -> None:
    until(lambda: not sleepers(seconds), 60)
    until(lambda: not podman.working(), 60)


def test_a_push_becomes_an_image_and_an_event(system: System) -> None:
    commit, _ = system.running("ada/page", 0)
    (build,) = system.deliver(system.push("ada/page", commit)).json()["builds"]
    ended = system.ended(build["name"])
    assert (ended["state"], ended["attempt"]) == ("succeeded", 1), ended
    image = ended["image"]
    assert image["digest"] == system.digest(image["repository"], commit)
    event = system.arrived("first", ended["name"], "succeeded")
    assert event.extensions["image"] == image["reference"]
    labels = Client().labels(image["repository"], commit) or {}
    assert labels["dev.kiln.build"] == ended["name"]
    log = system.log(ended["name"])
    assert "STEP 1/" in log
    assert "Writing manifest to image destination" in log
    assert {*ended["durations"]} >= {"fetch", "build", "push"}
    assert all(ended["durations"][name] is not None for name in ("fetch", "build", "push"))


def test_a_cancel_ends_the_step(system: System, podman: Podmand) -> None:
    commit, seconds = system.running("ada/cancelled", 500)
    name = system.build("ada/cancelled", commit)
    system.step_runs(name, seconds)
    assert system.cancel(name).status_code == 202
    assert system.ended(name)["state"] == "cancelled"
    over(seconds, podman)


def test_a_builder_that_is_killed_leaves_no_step(system: System, podman: Podmand) -> None:
    commit, seconds = system.running("ada/killed", 500)
    name = system.build("ada/killed", commit)
    system.step_runs(name, seconds)
    (first,) = sleepers(seconds)
    os.kill(system.sessions(name)[0], signal.SIGKILL)
    until(lambda: first not in sleepers(seconds), 60)
    system.wait(name, lambda build: build["attempt"] == 2)
    system.step_runs(name, seconds)
    system.cancel(name)
    system.ended(name)
    over(seconds, podman)


def test_a_service_that_goes_away_is_waited_for(system: System, podman: Podmand) -> None:
    commit, seconds = system.running("ada/interrupted", 5)
    name = system.build("ada/interrupted", commit)
    system.step_runs(name, seconds)
    podman.stop(signal.SIGKILL)
    found = system.wait(name, lambda build: build["attempt"] == 2 and build["waiting"])
    (first,) = found["attempts"]
    assert (first["state"], first["reason"]) == ("failed", "infrastructure")
    assert "Podman service" in first["message"], first
    podman.start()
    build = system.ended(name)
    assert [attempt["state"] for attempt in build["attempts"]] == ["failed", "succeeded"]


def test_it_is_checked(system: System, podman: Podmand) -> None:
    said = system.run("check", "--online").stdout
    assert "ok: podman daemon" in said
    assert "ok: podman client" in said
    assert "buildx" not in said
    away = system.run("check", "--online", KILN_DOCKER_HOST="unix:///nonexistent.sock")
    assert "failed: podman daemon" in away.stdout
    assert "Start the Podman service" in away.stdout
    assert "The Podman service at unix:///nonexistent.sock does not answer" in away.stdout

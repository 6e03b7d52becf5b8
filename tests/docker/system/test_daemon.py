"""Docker and the registry come and go: the blame is infrastructure's, the log says what happened, nothing hangs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import dockerd
from tests.parts.dockerd import Dockerd
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, sleepers
from tests.parts.kiln import until
from tests.parts.registry import Registry
from tests.parts.system import System, members

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """Not running: each test starts and stops it."""
    if reason := dockerd.problem():
        pytest.skip(reason)
    made = Dockerd(tmp_path_factory.mktemp("dockerd"))
    yield made
    made.close()


@pytest.fixture
def system(tmp_path: Path, registry: Registry, host: GitHost, daemon: Dockerd) -> Iterator[System]:
    with System(tmp_path, registry=registry, host=host, KILN_DOCKER_HOST=daemon.host) as running:
        running.start("web")
        running.start("controller")
        yield running


def words(system: System, name: str) -> list[str]:
    """The words of the events that a sink has had, in no order: they may overtake each other."""
    return sorted(event.type.split(".")[3] for event in system.events("first", name))


def test_no_daemon_before(system: System, daemon: Dockerd) -> None:
    """No attempt starts; the build says what it waits for, and starts when the daemon does."""
    daemon.stop()
    name = system.build("ada/early", system.commit("ada/early", {"Dockerfile": SMALL}))
    found = system.wait(name, lambda build: build["waiting"])
    assert found["waiting"].startswith("No node has a ready Docker daemon. The Docker daemon at unix://")
    assert (found["state"], found["attempts"]) == ("queued", [])
    daemon.start()
    build = system.ended(name)
    assert (build["state"], build["waiting"], len(build["attempts"])) == ("succeeded", None, 1)


def test_a_daemon_that_goes_away(system: System, daemon: Dockerd) -> None:
    daemon.stop()
    daemon.start()
    commit, seconds = system.running("ada/interrupted", 5)
    name = system.build("ada/interrupted", commit)
    system.step_runs(name, seconds)
    daemon.stop(signal.SIGKILL)
    found = system.wait(name, lambda build: build["attempt"] == 2 and build["waiting"])
    (first,) = found["attempts"]
    assert (first["state"], first["reason"]) == ("failed", "infrastructure")
    assert "Docker daemon" in first["message"], first
    assert first["message"] in found["waiting"]
    assert found["waiting"].startswith("Retrying after ")
    log = system.get(f"api/v1/builds/{name}/log?attempt=1").text
    assert seconds in log
    system.wait(name, lambda build: build["waiting"].startswith("No node has a ready Docker daemon."))
    assert words(system, name) == ["queued", "retrying", "started"]
    daemon.start()
    build = system.ended(name)
    assert build["state"] == "succeeded"
    assert [attempt["state"] for attempt in build["attempts"]] == ["failed", "succeeded"]
    assert words(system, name) == ["queued", "retrying", "started", "started", "succeeded"]
    until(lambda: not sleepers(seconds))


def test_a_daemon_that_freezes(tmp_path: Path, registry: Registry, host: GitHost, daemon: Dockerd) -> None:
    """It takes every connection and answers nothing: the time limit ends that, and leaves nothing running."""
    daemon.stop()
    daemon.start()
    with System(
        tmp_path, registry=registry, host=host, KILN_DOCKER_HOST=daemon.host, KILN_BUILD_TIMEOUT="20s"
    ) as system:
        system.start("web")
        system.start("controller")
        commit, seconds = system.running("ada/frozen", 30)
        name = system.build("ada/frozen", commit)
        system.step_runs(name, seconds)
        daemon.pause()
        build = system.ended(name)
        assert (build["state"], build["reason"], build["attempt"]) == ("failed", "timeout", 1), build
        assert not any(members(session) for session in system.sessions(name))
        daemon.stop(signal.SIGKILL)


def test_a_clone_that_never_ends(tmp_path: Path, registry: Registry, host: GitHost) -> None:
    with System(tmp_path, registry=registry, host=host, KILN_BUILD_TIMEOUT="2s") as system:
        system.start("web")
        system.start("controller")
        commit = system.commit("ada/endless", {"Dockerfile": SMALL})
        host.hanging.add("/ada/endless.git")
        name = system.build("ada/endless", commit)
        build = system.ended(name)
        assert (build["state"], build["reason"], build["attempt"]) == ("failed", "timeout", 1)
        assert "2 s" in build["message"], build
        assert not any(members(session) for session in system.sessions(name))
        asked = system.ask(repository=host.url("ada/endless"))
        assert (asked.status_code, "Retry-After" in asked.headers) == (503, True)


def test_a_registry_that_is_away(tmp_path: Path, host: GitHost) -> None:
    registry = Registry(tmp_path / "registry")
    with System(tmp_path / "kiln", registry=registry, host=host) as system:
        system.start("web")
        system.start("controller")
        name = system.build("ada/homeless", system.commit("ada/homeless", {"Dockerfile": SMALL}))
        found = system.wait(name, lambda build: build["attempt"] == 2 and build["waiting"])
        (first,) = found["attempts"]
        assert (first["state"], first["reason"]) == ("failed", "infrastructure")
        assert registry.host in first["message"]
        with registry:
            build = system.ended(name)
            assert (build["state"], len(build["attempts"])) == ("succeeded", 2)
            assert build["image"]["digest"] == system.digest(build["image"]["repository"], build["commit"])


def test_a_wrong_password(tmp_path: Path, host: GitHost) -> None:
    """Every attempt fails by infrastructure's fault, and the build fails after the last one."""
    login = tmp_path / "docker.json"
    with (
        Registry(tmp_path / "registry", {"ada": "right"}) as registry,
        System(
            tmp_path / "kiln",
            registry=registry,
            host=host,
            KILN_REGISTRY_CONFIG=str(login),
            KILN_MAX_ATTEMPTS="1",
        ) as system,
    ):
        login.write_text(json.dumps({"auths": {registry.host: {"auth": "YWRhOndyb25n"}}}))  # ada:wrong
        system.start("web")
        system.start("controller")
        name = system.build("ada/locked-out", system.commit("ada/locked-out", {"Dockerfile": SMALL}))
        build = system.ended(name)
        assert (build["state"], build["reason"]) == ("failed", "infrastructure")
        assert registry.host in build["message"]
        assert "YWRhOndyb25n" not in json.dumps(build) + system.log(name)

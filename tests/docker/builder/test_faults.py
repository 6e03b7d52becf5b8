"""The daemon, the registry and the disk fail while an attempt needs them. That is never the repository's fault."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from builds.build import Reason
from tests.docker.builder.conftest import asked
from tests.parts import dockerd
from tests.parts.building import Attempt, Builder, put_busybox
from tests.parts.dockerd import Dockerd
from tests.parts.githost import GitHost
from tests.parts.installation import sleepers
from tests.parts.kiln import until
from tests.parts.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Dockerd]:
    """A daemon of the test's own, not started, with 40 MiB for its data."""
    reason = dockerd.problem()
    if reason:
        pytest.skip(reason)
    own = Dockerd(tmp_path / "dockerd", size=40)
    try:
        yield own
    finally:
        own.close()


@pytest.fixture
def seconds() -> str:
    """The duration of a step's sleep, as a number by which the process is known."""
    return f"600.{secrets.randbelow(10**9):09}"


def let_go(seconds: str) -> None:
    """Ends the sleep of a step, which goes on."""
    until(lambda: sleepers(seconds))
    for process in sleepers(seconds):
        os.kill(process, signal.SIGTERM)


def repository(host: GitHost, path: str, folder: Path, step: str) -> str:
    """The commit of a repository whose image takes one step that no cache has."""
    folder.mkdir()
    put_busybox(folder)
    unique = secrets.token_hex(8)
    (folder / "Dockerfile").write_text(f"FROM scratch\nCOPY busybox /bin/sh\nENV RUN={unique}\nRUN {step}\n")
    return host.create(path, folder)


def ours(attempt: Attempt) -> str:
    """The message of an attempt that failed by infrastructure's fault."""
    result = attempt.result
    assert attempt.status == 69, result
    assert result.reason is Reason.INFRASTRUCTURE
    assert attempt.members() == []
    assert attempt.left_behind() == []
    assert (result.message or "") in attempt.text, "the log says what happened"
    return result.message or ""


def credentials(folder: Path, registry: Registry, user: str, password: str) -> str:
    """The path of a docker config.json."""
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "docker.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    return str(folder / "docker.json")


def test_a_daemon_that_comes_in_time(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, daemon: Dockerd
) -> None:
    head = repository(host, path, tmp_path / "content", "echo begun")
    attempt = builder.start(asked(host, path, head, registry), docker_host=daemon.host)
    attempt.until("waiting up to 30 s")
    daemon.start()
    attempt.wait()
    assert attempt.status == 0, attempt.text


def test_a_daemon_that_does_not_come(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, daemon: Dockerd
) -> None:
    head = repository(host, path, tmp_path / "content", "echo begun")
    attempt = builder.run(asked(host, path, head, registry), docker_host=daemon.host, daemon_patience=5.0)
    assert "waiting up to 5 s" in attempt.text
    assert "The Docker daemon does not answer" in ours(attempt)
    assert not attempt.result.counted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_goes_away_during_the_build(
    number: int, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, daemon: Dockerd
) -> None:
    daemon.start()
    head = repository(host, path, tmp_path / "content", "echo begun; sleep 40")
    attempt = builder.start(asked(host, path, head, registry), docker_host=daemon.host)
    attempt.until_step_says("begun")
    daemon.stop(number)
    attempt.wait()
    assert "Docker daemon" in ours(attempt)
    assert not attempt.result.counted
    assert not attempt.result.out_of_memory


def test_a_full_disk(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, daemon: Dockerd
) -> None:
    daemon.start()
    head = repository(host, path, tmp_path / "content", "dd if=/dev/zero of=/large bs=1M count=60")
    attempt = builder.run(asked(host, path, head, registry), docker_host=daemon.host)
    assert "The disk is full" in ours(attempt)
    assert attempt.result.counted


def test_no_registry(path: str, builder: Builder, host: GitHost, tmp_path: Path) -> None:
    away = Registry(tmp_path / "registry")
    head = repository(host, path, tmp_path / "content", "echo begun")
    attempt = builder.run(asked(host, path, head, away))
    assert f"The registry {away.host} could not be reached: " in ours(attempt)


def test_a_registry_that_takes_connections_and_says_nothing(
    path: str, builder: Builder, host: GitHost, tmp_path: Path
) -> None:
    with Registry(tmp_path / "registry") as silent:
        silent.pause()
        head = repository(host, path, tmp_path / "content", "echo begun")
        attempt = builder.run(asked(host, path, head, silent))
    assert "could not be reached" in ours(attempt)


def test_a_registry_that_goes_away_before_the_push(
    seconds: str, path: str, builder: Builder, host: GitHost, tmp_path: Path
) -> None:
    with Registry(tmp_path / "registry") as registry:
        head = repository(host, path, tmp_path / "content", f"echo begun; sleep {seconds}; true")
        attempt = builder.start(asked(host, path, head, registry))
        attempt.until_step_says("begun")
        registry.stop()
        let_go(seconds)
        attempt.wait()
    assert "could not be pushed to " in ours(attempt)
    assert attempt.result.timings.push is not None


@pytest.mark.parametrize("entry", ["wrong", "none"])
def test_a_wrong_password(entry: str, path: str, builder: Builder, host: GitHost, tmp_path: Path) -> None:
    canary = secrets.token_hex(12)
    with Registry(tmp_path / "registry", {"ada": "right"}) as closed:
        head = repository(host, path, tmp_path / "content", "echo begun")
        config = credentials(tmp_path, closed, "ada", canary) if entry == "wrong" else None
        attempt = builder.run(asked(host, path, head, closed), registry_config=config)
    assert "does not accept the credential for it in " in ours(attempt)
    assert f"The registry {closed.host} " in attempt.text, "the log names the registry before the build, too"
    assert canary not in attempt.everything


def test_a_password_that_is_changed_before_the_push(
    seconds: str, path: str, builder: Builder, host: GitHost, tmp_path: Path
) -> None:
    canary = secrets.token_hex(12)
    with Registry(tmp_path / "registry", {"ada": canary}) as registry:
        head = repository(host, path, tmp_path / "content", f"echo begun; sleep {seconds}; true")
        config = credentials(tmp_path, registry, "ada", canary)
        attempt = builder.start(asked(host, path, head, registry), registry_config=config)
        attempt.until_step_says("begun")
        registry.let_in({"ada": "another"})
        let_go(seconds)
        attempt.wait()
    assert "does not accept the credential for it in " in ours(attempt)
    assert canary not in attempt.everything


def test_a_log_that_no_disk_has_room_for(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    head = repository(host, path, tmp_path / "content", "exit 5")
    attempt = builder.run(asked(host, path, head, registry), log=Path("/dev/full"))
    assert attempt.status == 64, (attempt.folder / "errors").read_text()
    assert "exit code: 5" in (attempt.result.message or "")

"""SIGTERM and the time limit, in every stage: the builder ends in time, reports it, and leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from builds.build import Reason, State
from tests.docker.builder.conftest import asked
from tests.parts.building import Attempt, Builder, put_busybox
from tests.parts.githost import GitHost
from tests.parts.kiln import until
from tests.parts.ociregistry import OciProxy, Stuck
from tests.parts.registry import Registry

pytestmark = pytest.mark.slow

PROMISED = 10.0
"""Seconds from SIGTERM, or the time limit, to the end."""


@pytest.fixture
def seconds() -> str:
    """The duration of a step's sleep, as a number by which the process is known."""
    return f"600.{secrets.randbelow(10**9)}"


@pytest.fixture
def head(host: GitHost, path: str, tmp_path: Path, seconds: str) -> str:
    """The commit of a repository whose image takes ten minutes."""
    (tmp_path / "content").mkdir()
    put_busybox(tmp_path / "content")
    dockerfile = f"FROM scratch\nCOPY busybox /bin/sh\nENV SECONDS={seconds}\nRUN echo begun; sleep {seconds}\n"
    (tmp_path / "content/Dockerfile").write_text(dockerfile)
    return host.create(path, tmp_path / "content")


def nothing_is_left(attempt: Attempt, seconds: str = "") -> None:
    assert attempt.members() == []
    assert attempt.left_behind() == []
    if seconds:  # the daemon's child, which is in no session of ours
        until(lambda: not any(f"sleep {seconds}" in line for line in _command_lines()))


def _command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found


def stopped(attempt: Attempt) -> None:
    begun = time.monotonic()
    attempt.process.send_signal(signal.SIGTERM)
    result = attempt.wait()
    assert time.monotonic() - begun < PROMISED
    assert attempt.status == 143
    assert result.state is State.CANCELLED
    assert "The build was stopped" in attempt.text


def test_while_fetching(path: str, builder: Builder, host: GitHost, registry: Registry) -> None:
    host.hanging.add(f"/{path}.git")
    attempt = builder.start(asked(host, path, "1" * 40, registry))
    until(lambda: any(path in target for target in host.requests))
    stopped(attempt)
    nothing_is_left(attempt)


def test_while_building(
    path: str, head: str, seconds: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    attempt = builder.start(asked(host, path, head, registry))
    attempt.until_step_says("begun")
    stopped(attempt)
    nothing_is_left(attempt, seconds)
    assert attempt.result.timings.build


def test_the_whole_group_is_told(
    path: str, head: str, seconds: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    attempt = builder.start(asked(host, path, head, registry))
    attempt.until_step_says("begun")
    attempt.process.send_signal(signal.SIGSTOP)  # so that the tool receives the signal first
    os.killpg(attempt.process.pid, signal.SIGTERM)
    attempt.process.send_signal(signal.SIGCONT)
    assert attempt.wait().state is State.CANCELLED
    nothing_is_left(attempt, seconds)


def test_while_pushing(path: str, builder: Builder, host: GitHost, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry, OciProxy(registry, Stuck()) as oci_proxy:
        (tmp_path / "content").mkdir()
        put_busybox(tmp_path / "content")
        unique = secrets.token_hex(8)
        dockerfile = f"FROM scratch\nCOPY busybox /bin/sh\nENV RUN={unique}\nRUN echo begun\n"
        (tmp_path / "content/Dockerfile").write_text(dockerfile)
        head = host.create(path, tmp_path / "content")
        attempt = builder.start(replace(asked(host, path, head, registry), image=f"{oci_proxy.host}/{path}"))
        attempt.until(" pushing ")
        stopped(attempt)
        nothing_is_left(attempt)


def test_a_clone_that_never_ends(path: str, builder: Builder, host: GitHost, registry: Registry) -> None:
    host.hanging.add(f"/{path}.git")
    begun = time.monotonic()
    attempt = builder.run(asked(host, path, "1" * 40, registry), timeout=2.0)
    assert time.monotonic() - begun < 2 + PROMISED
    assert attempt.status == 75
    assert attempt.result.state is State.FAILED
    assert attempt.result.reason is Reason.TIMEOUT
    assert "time limit of 2 s" in (attempt.result.message or "")
    assert attempt.result.timings.fetch
    nothing_is_left(attempt)


def test_a_step_that_never_ends(
    path: str, head: str, seconds: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    """The test sends the timer's signal once the step has begun, however long that takes."""
    attempt = builder.start(asked(host, path, head, registry))
    attempt.until_step_says("begun")
    attempt.process.send_signal(signal.SIGALRM)
    result = attempt.wait()
    assert attempt.status == 75
    assert (result.state, result.reason) == (State.FAILED, Reason.TIMEOUT)
    assert " begun" in attempt.text, "the log is kept"
    nothing_is_left(attempt, seconds)


def test_the_tool_is_killed(
    path: str, head: str, seconds: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    attempt = builder.start(asked(host, path, head, registry))
    attempt.until_step_says("begun")
    for pid in attempt.members():
        if b"jupyter-repo2docker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    result = attempt.wait()
    assert attempt.status == 69
    assert not result.out_of_memory
    nothing_is_left(attempt, seconds)

"""A Podman service that is late, goes away, comes back, or has no space: never the repository's fault."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from builds.build import Reason
from tests.docker.podman.test_builds import repository, step
from tests.parts.building import Attempt, Builder
from tests.parts.githost import GitHost
from tests.parts.podmand import Podmand
from tests.parts.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podmand]:
    """Not started, with 40 MiB for its data."""
    made = Podmand(tmp_path / "podman", size=40)
    try:
        yield made
    finally:
        made.close()


def ours(attempt: Attempt) -> str:
    """The message of an attempt that failed by infrastructure's fault."""
    result = attempt.wait()
    assert attempt.status == 69, attempt.text
    assert result.reason is Reason.INFRASTRUCTURE
    assert attempt.members() == []
    assert attempt.left_behind() == []
    return result.message or ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_goes_away_during_a_build_and_comes_again(
    number: int, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, podman: Podmand
) -> None:
    podman.start()
    seconds = f"600.{secrets.randbelow(10**9):09}"
    request = repository(host, path, registry, tmp_path / "content", step(f"echo begun; sleep {seconds}"))
    attempt = builder.start(request)
    attempt.until("^begun$")
    podman.stop(number)
    assert "Podman service" in ours(attempt)
    assert not attempt.result.counted
    assert not attempt.result.out_of_memory
    request = repository(host, f"{path}-2", registry, tmp_path / "second", step("echo begun"))
    attempt = builder.start(request)
    attempt.until("waiting up to 30 s")
    podman.start()
    attempt.wait()
    assert attempt.status == 0, attempt.text


def test_it_has_no_room(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, podman: Podmand
) -> None:
    podman.start()
    text = step("dd if=/dev/zero of=/large bs=1M count=60")
    attempt = builder.start(repository(host, path, registry, tmp_path / "content", text))
    assert "The disk is full" in ours(attempt)
    assert attempt.result.counted

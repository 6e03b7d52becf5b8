"""A Podman service for all tests of a file, and the builder that uses it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from builds.builder.spec import Surroundings
from tests.parts import podmand
from tests.parts.building import Builder
from tests.parts.githost import GitHost
from tests.parts.podmand import Podmand
from tests.parts.registry import Registry


@pytest.fixture(autouse=True, scope="session")
def possible() -> None:
    if reason := podmand.problem():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Podmand]:
    made = Podmand(tmp_path_factory.mktemp("podman"), insecure=(registry.host,))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A repository's path that no other test uses."""
    return f"tests/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def builder(tmp_path: Path, host: GitHost, podman: Podmand, monkeypatch: pytest.MonkeyPatch) -> Builder:
    around = Surroundings(allowed_repositories=(f"{host.base}/**",), daemon="podman", docker_host=podman.host)
    monkeypatch.setenv("PATH", f"{podman.client}:{os.environ['PATH']}")
    return Builder(tmp_path, around)

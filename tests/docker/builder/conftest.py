"""The builder, for all tests of it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from builds.build import Request
from builds.builder.spec import Surroundings
from tests.parts.building import Builder
from tests.parts.githost import GitHost
from tests.parts.registry import Registry

BASE = "buildpack-deps:24.04"
"""The base of repo2docker's own images."""


@pytest.fixture(scope="module")
def gateway() -> str:
    """An address of this machine that a step's commands reach. The test is skipped without the base of repo2docker."""
    if subprocess.run(["docker", "image", "inspect", BASE], capture_output=True, check=False).returncode:
        pulled = subprocess.run(["docker", "pull", BASE], capture_output=True, check=False, timeout=300)
        if pulled.returncode:
            pytest.skip(f"{BASE} is not here and cannot be pulled")
    form = "{{(index .IPAM.Config 0).Gateway}}"
    command = ["docker", "network", "inspect", "bridge", "--format", form]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


@pytest.fixture
def builder(tmp_path: Path, host: GitHost) -> Builder:
    return Builder(tmp_path, Surroundings(allowed_repositories=(f"{host.base}/**",)))


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A repository's path that no other test uses."""
    return f"tests/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


def asked(
    host: GitHost,
    path: str,
    commit: str,
    registry: Registry,
    *,
    subdir: str = "",
    build_args: Mapping[str, str] = {},
) -> Request:
    """A request to build that commit of a repository of the host."""
    return Request(
        repository=f"{host.base}/{path}",
        clone_url=host.url(path),
        commit=commit,
        image=f"{registry.host}/{path}",
        subdir=subdir,
        build_args=build_args,
    )

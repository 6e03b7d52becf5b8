"""The builder, for all tests of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from builds.build import Request
from builds.builder.spec import Surroundings
from tests.parts.building import Builder
from tests.parts.githost import GitHost
from tests.parts.registry import Registry


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
    """To build that commit of a repository of the host."""
    return Request(
        repository=f"{host.base}/{path}",
        clone_url=host.url(path),
        commit=commit,
        image=f"{registry.host}/{path}",
        subdir=subdir,
        build_args=build_args,
    )

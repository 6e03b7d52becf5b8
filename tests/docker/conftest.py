"""Requirements of this tier on the machine: without Docker, every test here is skipped with the reason.

One Git host and one registry serve all tests that need none of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parts import machine
from tests.parts.githost import GitHost
from tests.parts.registry import Registry


@pytest.fixture(autouse=True, scope="session")
def docker() -> None:
    reason = machine.problem()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    with GitHost(tmp_path_factory.mktemp("git")) as host:
        yield host


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry

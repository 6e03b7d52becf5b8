"""JupyterHub's clients against all of Kiln: without Docker or Node, every test here is skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.conftest import docker, host, registry  # noqa: F401  (fixtures)
from tests.parts import node
from tests.parts.githost import GitHost
from tests.parts.hubservice import BASE
from tests.parts.registry import Registry
from tests.parts.system import System


@pytest.fixture(scope="session")
def packages() -> Path:
    reason = node.problem()
    if reason:
        pytest.skip(reason)
    return node.packages()


@pytest.fixture(scope="session")
def system(
    tmp_path_factory: pytest.TempPathFactory,
    registry: Registry,  # noqa: F811
    host: GitHost,  # noqa: F811
) -> Iterator[System]:
    """Web as a Hub's service that requires tokens, and a controller."""
    settings = {"KILN_AUTH": "token", "KILN_BASE_PATH": BASE}
    with System(tmp_path_factory.mktemp("hub"), registry=registry, host=host, sinks=(), **settings) as running:
        running.token = "a canary of the tokens"
        (running.secrets / "api-tokens").mkdir()
        (running.secrets / "api-tokens/hub").write_text(running.token)
        running.start("web")
        running.start("controller")
        yield running

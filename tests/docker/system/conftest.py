"""One of everything for all tests of the whole system that need none of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parts.githost import GitHost
from tests.parts.registry import Registry
from tests.parts.system import System

TRIGGERS = [
    {
        "name": "pages",
        "filters": [{"not": {"prefix": {"source": "{base}/teaching/"}}}],
        "push": {"branches": ["main"]},
        "build": {"tags": ["{ref_name}"]},
    },
    *(
        {
            "name": subdir,
            "filters": [{"prefix": {"source": "{base}/teaching/"}}],
            "build": {"subdir": subdir, "tags": [f"{subdir}-{{ref_name}}"]},
        }
        for subdir in ("one", "two")
    ),
]


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, registry: Registry, host: GitHost) -> Iterator[System]:
    """Two processes of web, a controller, two sinks."""
    config = {"triggers": _with(host.base, TRIGGERS)}
    with System(tmp_path_factory.mktemp("system"), registry=registry, host=host, config=config) as running:
        running.start("web")
        running.start("web")
        running.start("controller")
        yield running


@pytest.fixture(scope="session")
def queue(tmp_path_factory: pytest.TempPathFactory, registry: Registry, host: GitHost) -> Iterator[System]:
    """Web alone: every requested build waits forever."""
    with System(tmp_path_factory.mktemp("queue"), registry=registry, host=host) as running:
        running.start("web")
        yield running


def _with(base: str, value: object) -> object:
    """`{base}`, the Git host's address, filled in wherever it stands."""
    match value:
        case str():
            return value.replace("{base}", base)
        case list():
            return [_with(base, each) for each in value]
        case dict():
            return {name: _with(base, each) for name, each in value.items()}
    return value

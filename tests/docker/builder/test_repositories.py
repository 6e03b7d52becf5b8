"""Builds every folder of `tests/repositories` for real and checks the result that its `expect.yaml` describes.

Where that lists commands and their output in the image (`runs`), Jupyter's servers are started in it, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builds.build import Result
from builds.clients.registry import Registry as Client
from builds.image import tag_for
from tests.docker.builder.conftest import asked
from tests.parts.building import REPOSITORIES, Attempt, Builder, repository
from tests.parts.githost import GitHost, commit
from tests.parts.jupyter import check_image, hub_api
from tests.parts.registry import Registry

STATUS = {None: 0, "repository": 64, "infrastructure": 69}


@pytest.fixture(scope="module")
def hub(gateway: str) -> Iterator[str]:
    with hub_api(gateway) as url:
        yield url


def cases() -> Iterator[Any]:
    """Without a Dockerfile, repo2docker sets up Python and Jupyter, which takes long."""
    for folder in sorted(REPOSITORIES.iterdir()):
        yield pytest.param(folder.name, marks=[] if any(folder.rglob("Dockerfile")) else pytest.mark.slow)


@pytest.mark.timeout(600)  # the first one of repo2docker's own makes the base of all
@pytest.mark.parametrize("case", list(cases()))
def test_repository(
    case: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    expected = repository(case, tmp_path / "content", registry.host)
    own = any((tmp_path / "content").rglob("Dockerfile"))
    hub = "" if own else request.getfixturevalue("hub")  # which needs repo2docker's base
    host.create(path)
    head = commit(host.bare(path), tmp_path / "content", links=expected.get("links"))
    digests = []
    for build in expected["builds"]:
        subdir, arguments = build.get("subdir", ""), build.get("build_args", {})
        wanted = asked(host, path, head, registry, subdir=subdir, build_args=arguments)
        attempt = builder.start(wanted)
        attempt.wait(550)
        result = attempt.result
        _check(build, attempt)
        in_registry = Client().manifest(wanted.image, tag_for(head, subdir, arguments))
        assert (in_registry and in_registry.digest) == (result.image and result.image.digest)
        digests.append(result.image and result.image.digest)
        _check_log(attempt, result)
        if "runs" in build and result.image:
            check_image(result.image.reference, build["runs"], hub)
    pushed = [digest for digest in digests if digest]
    assert len(set(pushed)) == len(pushed), "different builds of one commit are different images"


def _check(expected: dict[str, Any], attempt: Attempt) -> None:
    result = attempt.result
    assert result.state == expected["state"], result
    assert result.reason == expected.get("reason"), result
    assert attempt.status == STATUS[expected.get("reason")]
    assert result.out_of_memory == expected.get("out_of_memory", False)
    assert re.search(expected.get("message", ""), result.message or ""), result.message
    for pattern in expected.get("log", ()):
        assert re.search(pattern, attempt.text)


def _check_log(attempt: Attempt, result: Result) -> None:
    numbers = [line["n"] for line in attempt.lines]
    assert numbers[0] == 1
    assert numbers == sorted(set(numbers)), "numbers go on, also where lines were left out"
    assert {line["phase"] for line in attempt.lines} <= {None, "fetch", "build", "push"}
    assert (attempt.folder / "log").stat().st_size < 9 << 20
    assert (attempt.folder / "result.json").stat().st_size <= 4096
    assert len(result.log_tail.encode()) <= 2048
    assert attempt.text.endswith(result.log_tail.splitlines()[-1])
    assert (attempt.folder / "errors").read_text() == ""
    assert attempt.members() == []
    assert attempt.left_behind() == []

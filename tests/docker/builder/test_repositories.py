"""Builds every folder of `tests/repositories` for real and checks the result that its `expect.yaml` describes.

Where that lists commands and their output in the image (`runs`), Jupyter's servers are started in it, too.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builds.build import Result
from builds.clients.registry import Registry as Client
from builds.image import tag_for
from tests.docker.builder.conftest import asked
from tests.docker.builder.test_cache import steps
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


ENVIRONMENT = {
    "environment.yml": "channels: [conda-forge]\ndependencies:\n  - pip\n  - pip:\n    - -r requirements.txt\n",
    "requirements.txt": "iniconfig==2.1.0\n",
    "setup.py": "from setuptools import setup\n\nsetup(name='ours', version='1', py_modules=['ours'])\n",
    "ours.py": "answer = 42\n",
    "postBuild": "#!/bin/sh\nset -e\npip install --no-deps --no-build-isolation .\ndate +%N >made\n# {unique}\n",
}


@pytest.mark.slow
@pytest.mark.timeout(600)  # an environment is made, once
def test_the_same_commit_is_one_image_however_often_it_is_built(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    """This includes the steps after the repository's files: the retry of a failed push runs none of them.

    The test is in this file because the registry has the base of repo2docker's images from the others: to compress a
    gigabyte takes most of a minute.
    """
    (tmp_path / "content").mkdir()
    for name, text in ENVIRONMENT.items():
        (tmp_path / "content" / name).write_text(text.replace("{unique}", secrets.token_hex(8)))
    (tmp_path / "content/postBuild").chmod(0o755)
    head = host.create(path, tmp_path / "content")
    request = asked(host, path, head, registry)
    failed = builder.start(request)
    failed.until(r"\] RUN \./postBuild", 400)
    registry.stop()
    try:
        assert "could not be pushed" in (failed.wait(100).message or ""), failed.text
    finally:
        registry.start()
    attempts = []
    for force in (False, True, True):
        attempts.append(builder.start(request, force=force))
        assert attempts[-1].wait(200).image, attempts[-1].text
    for attempt in attempts:
        assert steps(attempt), attempt.text
        assert all(steps(attempt)), attempt.text
    assert len({attempt.result.image and attempt.result.image.digest for attempt in attempts}) == 1
    assert all("nothing to push" in attempt.text for attempt in attempts[1:])

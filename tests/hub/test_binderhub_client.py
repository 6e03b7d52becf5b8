"""The real `@jupyterhub/binderhub-client`: the messages that its consumers get for each course of a build."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.parts.binderhub import Message, check_order, check_there, spec_of
from tests.parts.installation import BROKEN, SMALL
from tests.parts.system import System

Fetch = Callable[..., list[Message]]


@pytest.fixture
def fetch(system: System, packages: Path) -> Fetch:
    """Runs the client with a spec, and returns the messages that its consumer received."""

    def run(spec: str, leave_after: int = 0, **options: object) -> list[Message]:
        given = json.dumps({"buildOnly": True, "apiToken": system.token, **options})
        program = Path(__file__).with_name("client.mjs")
        command = ["node", str(program), str(packages), spec, f"{system.url}build/", given, str(leave_after)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_cold_build_and_a_warm_image(system: System, fetch: Fetch) -> None:
    commit = system.commit("ada/cold", {"Dockerfile": SMALL})
    said = fetch(spec_of(system, "ada/cold", "main"))
    check_order(said)
    check_there(system, said[-1])
    assert {"fetching", "building"} <= {message["phase"] for message in said}
    assert said[-1]["imageName"].endswith(f":{commit}")
    subprocess.run(["docker", "pull", said[-1]["imageName"]], check=True, capture_output=True)
    before = system.listed()
    (end,) = fetch(spec_of(system, "ada/cold", "HEAD"))
    assert (end["imageName"], end["message"]) == (said[-1]["imageName"], "Done! Found built image\n")
    assert system.listed() == before


def test_a_failing_repository(system: System, fetch: Fetch) -> None:
    system.commit("ada/broken", {"Dockerfile": BROKEN})
    said = fetch(spec_of(system, "ada/broken", "main"))
    check_order(said)
    assert said[-1]["phase"] == "failed"
    assert "nothing-of-that-name" in said[-1]["message"]


@pytest.mark.parametrize(
    ("path", "ref", "word"), [("ada/cold", "nowhere", "nowhere"), ("ada/none", "main", "no such repository")]
)
def test_what_is_not_there(system: System, fetch: Fetch, path: str, ref: str, word: str) -> None:
    if path == "ada/cold":
        system.commit(path, {"Dockerfile": SMALL})
    (end,) = fetch(spec_of(system, path, ref))
    assert (end["phase"], end["status_code"]) == ("failed", 422)
    assert word in end["message"]


@pytest.mark.parametrize("options", [{"apiToken": "wrong"}, {"apiToken": ""}, {"apiToken": "", "buildToken": "a.b.c"}])
def test_a_wrong_token_and_none(system: System, fetch: Fetch, options: dict[str, str]) -> None:
    (end,) = fetch("gh/ada/page/HEAD", **options)
    assert (end["phase"], end["status_code"]) == ("failed", 401)
    assert "token" in end["message"]


def test_what_no_provider_takes(fetch: Fetch) -> None:
    (end,) = fetch("zenodo/10.5281/zenodo.3242074")
    assert (end["phase"], end["status_code"]) == ("failed", 422)


def test_two_viewers_see_the_same(system: System, fetch: Fetch) -> None:
    commit, seconds = system.running("ada/watched", 3)
    with ThreadPoolExecutor(2) as viewers:
        first, second = viewers.map(fetch, [spec_of(system, "ada/watched", "main")] * 2)
    for said in (first, second):
        check_order(said)
        check_there(system, said[-1])
        assert any(seconds in message["message"] for message in said)
    (build,) = [build for build in system.listed() if build["commit"] == commit]
    assert build["attempt"] == 1


def test_who_leaves_mid_build_and_comes_back(system: System, fetch: Fetch) -> None:
    commit, _ = system.running("ada/left", 4)
    left = fetch(spec_of(system, "ada/left", "main"), leave_after=3)
    assert len(left) == 3
    (build,) = [build for build in system.listed() if build["commit"] == commit]
    assert build["state"] in ("queued", "running")
    said = fetch(spec_of(system, "ada/left", "main"))
    check_order(said)
    check_there(system, said[-1])
    assert system.one(build["name"])["attempt"] == 1


def test_a_ref_with_a_slash(system: System, fetch: Fetch) -> None:
    commit = system.commit("ada/branches", {"Dockerfile": SMALL}, branch="feature/x/y")
    said = fetch(spec_of(system, "ada/branches", "feature/x/y"))
    check_order(said)
    assert said[-1]["imageName"].endswith(f":{commit}")

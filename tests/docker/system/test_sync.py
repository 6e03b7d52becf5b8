"""Pushes without a delivery: web was away, or the repository has no webhook."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.parts.githost import GitHost
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.registry import Registry
from tests.parts.system import System

PATH = "unheard/page"
PASSWORD = ("ada", "only-the-operator-knows")


@pytest.fixture
def system(tmp_path: Path, registry: Registry, host: GitHost) -> Iterator[System]:
    """One repository is listed; it shows itself only to who has the credential that is stored for it."""
    config = {
        "repositories": [{"url": host.url(PATH), "poll": "10m"}],
        "triggers": [{"name": "pages", "push": {"branches": ["main"]}, "build": {"tags": ["{ref_name}"]}}],
    }
    with System(tmp_path, registry=registry, host=host, config=config) as running:
        user, password = PASSWORD
        (running.secrets / "git-credentials").write_text(
            f"http://{user}:{password}@{host.address}:{host.port}/{PATH}\n"
        )
        host.passwords[f"/{PATH}.git"] = PASSWORD
        yield running
        del host.passwords[f"/{PATH}.git"]


@pytest.mark.timeout(180)
def test_a_push_that_came_while_web_was_away_is_built(system: System) -> None:
    system.commit(PATH, {"Dockerfile": SMALL})
    system.start("controller")
    web = system.start("web")
    until(system.listed)  # by the controller's own first round
    (first,) = system.listed()
    assert system.ended(first["name"])["state"] == "succeeded"
    web.stop()
    commit = system.commit(PATH, {"Dockerfile": SMALL})
    webhook = system.push(PATH, commit)
    with pytest.raises(requests.ConnectionError):
        system.deliver(webhook)
    done = system.run("sync")
    assert done.returncode == 0, done.stderr
    name = done.stdout.splitlines()[1].split()[0]
    system.start("web")
    build = system.ended(name)
    image = build["image"]
    assert (build["state"], build["commit"], [cause["by"] for cause in build["causes"]]) == (
        "succeeded",
        commit,
        ["sync"],
    )
    assert system.digest(image["repository"], commit) == system.digest(image["repository"], "main") == image["digest"]
    for sink in system.sinks:
        assert system.arrived(sink, name, "succeeded").extensions["commit"] == commit
    assert system.deliver(webhook).json()["builds"][0]["name"] == name, "the late delivery joins the same build"
    system.wait(name, lambda found: len(found["causes"]) == 2)
    assert system.ended(name)["attempt"] == 1

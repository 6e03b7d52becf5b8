"""The real tljh-repo2docker: a service of a real JupyterHub whose environments Kiln builds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.parts.githost import GitHost
from tests.parts.hubservice import HubService
from tests.parts.installation import BROKEN, SMALL
from tests.parts.kiln import until
from tests.parts.registry import Registry, free_port

CONFIG = """
import sys

c.JupyterHub.services += [
    {
        "name": "tljh_repo2docker",
        "url": f"http://127.0.0.1:{port}",
        "command": [
            *(sys.executable, "-m", "tljh_repo2docker"),
            *("--ip", "127.0.0.1", "--port", str(port), "--binderhub_url", f"{kiln}/services/binder/"),
        ],
        "oauth_no_confirm": True,
    },
]
c.JupyterHub.load_roles += [
    {
        "name": "tljh-repo2docker-service",
        "services": ["tljh_repo2docker"],
        "scopes": ["read:users", "read:roles:users", "admin:servers", access],
    },
]
c.Authenticator.admin_users = {"root"}
"""


class Environments:
    """Its API, as its own page uses it. `root` is an admin of the Hub."""

    def __init__(self, pair: HubService) -> None:
        self.url = f"{pair.hub.url}services/tljh_repo2docker/api/environments"
        self.headers = {"Authorization": f"token {pair.token('root')}"}

    def add(self, repo: str, ref: str, **more: str) -> str:
        """Creates an environment and returns its id; the answer precedes the build."""
        wanted = {"repo": repo, "ref": ref, "name": "course", "memory": "", "cpu": "", "provider": "git", **more}
        answer = requests.post(self.url, data=json.dumps(wanted), headers=self.headers, timeout=30)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok"), answer.text
        return str(answer.json()["uid"])

    def one(self, uid: str) -> dict[str, Any]:
        listed = requests.get(self.url, headers=self.headers, timeout=30).json()["images"]
        found: dict[str, Any] = next(each for each in listed if each["uid"] == uid)
        return found

    def ended(self, uid: str) -> dict[str, Any]:
        until(lambda: self.one(uid)["status"] != "building", 50)
        return self.one(uid)

    def told(self, uid: str) -> dict[str, Any]:
        """The outcome, with the whole log."""
        answer = requests.get(f"{self.url}/{uid}/logs", headers=self.headers, timeout=30)
        told: dict[str, Any] = json.loads(answer.text.removeprefix("data: "))
        return told


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, docker: None, packages: Any, registry: Registry, host: GitHost
) -> Iterator[HubService]:
    hub = f"port = {free_port()}\n{CONFIG}"
    with HubService(tmp_path_factory.mktemp("tljh"), registry=registry, host=host, hub=hub) as pair:
        pair.sign_as("root")
        yield pair


@pytest.fixture(scope="module")
def environments(pair: HubService) -> Environments:
    return Environments(pair)


@pytest.mark.timeout(180)
def test_an_environment_is_built(pair: HubService, environments: Environments) -> None:
    system = pair.system
    commit = system.commit("ada/environment", {"Dockerfile": SMALL})
    uid = environments.add(system.host.url("ada/environment"), "main")
    made = environments.ended(uid)
    assert made["status"] == "built", environments.told(uid)
    image, _, tag = made["image_name"].rpartition(":")
    assert tag == commit
    assert system.digest(image, tag)
    told = environments.told(uid)
    assert told["phase"] == "built"
    assert told["message"].endswith("Done! Image built\n")
    (build,) = pair.builds(commit)
    assert [cause["by"] for cause in build["causes"]] == ["service:tljh_repo2docker"]

    again = environments.add(system.host.url("ada/environment"), "HEAD", uid=uid)
    assert environments.ended(again)["image_name"] == made["image_name"]
    assert environments.told(again)["message"] == "Done! Found built image\n"
    assert system.one(build["name"])["attempt"] == 1


@pytest.mark.timeout(180)
def test_one_that_cannot_be_says_why(pair: HubService, environments: Environments) -> None:
    system = pair.system
    system.commit("ada/broken", {"Dockerfile": BROKEN})
    for path, ref, word in (("ada/broken", "main", "nothing-of-that-name"), ("ada/broken", "nowhere", "nowhere")):
        uid = environments.add(system.host.url(path), ref)
        assert environments.ended(uid)["status"] == "failed"
        told = environments.told(uid)
        assert told["phase"] == "error"
        assert word in told["message"]

"""A private repository on a Git host that asks for a password, built for the users of a real JupyterHub who may."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from tests.parts.githost import GitHost
from tests.parts.hubservice import HubService
from tests.parts.installation import SMALL, http
from tests.parts.registry import Registry

COURSE, PART = "private/course", "public/part"
CONFIG = """
c.JupyterHub.load_roles += [{"name": "builders", "users": ["ada", "kim", "root"], "scopes": [access]}]
c.JupyterHub.load_groups = {"staff": {"users": ["ada"]}}
c.Authenticator.admin_users = {"root"}
"""


class Scene(HubService):
    def __init__(self, folder: Path, *, elsewhere: GitHost, canary: str, **options: Any) -> None:
        super().__init__(folder, hub=CONFIG, **options)
        self.elsewhere, self.canary = elsewhere, canary

    def get(self, path: str, **headers: str) -> requests.Response:
        return http("GET", f"{self.url}{path}", headers=self.system.authorization | headers)


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory, docker: None, packages: Any, registry: Registry, host: GitHost
) -> Iterator[Scene]:
    canary = f"canary {secrets.token_hex(12)}/"
    folder = tmp_path_factory.mktemp("private")
    config = {
        "private": [{"match": f"{host.base}/private/*", "use_by": ["webhooks", "group:staff"]}],
        "private_image_prefix": f"{registry.host}/private-{secrets.token_hex(4)}/",
    }
    with GitHost(folder / "elsewhere") as elsewhere:
        scene = Scene(
            folder,
            elsewhere=elsewhere,
            canary=canary,
            registry=registry,
            host=host,
            config=config,
            KILN_ALLOWED_REPOSITORIES=f"{host.base}/**,{elsewhere.base}/**",
        )
        address = urlsplit(host.base)
        stored = f"{address.scheme}://kiln:{quote(canary, safe='')}@{address.netloc}/private\n"
        (scene.system.secrets / "git-credentials").write_text(stored)
        host.passwords["/private/"] = ("kiln", canary)
        with scene:
            yield scene
        del host.passwords["/private/"]


def commit_course(scene: Scene, folder: Path) -> str:
    """Commits a course with a public submodule on another host."""
    source = folder / "part"
    source.mkdir()
    (source / "page").write_text("a part")
    part = scene.elsewhere.create(PART, source)
    modules = f'[submodule "part"]\n\tpath = part\n\turl = {scene.elsewhere.url(PART)}\n'
    return scene.system.commit(COURSE, {"Dockerfile": SMALL, ".gitmodules": modules}, links={"part": part})


@pytest.mark.timeout(180)
def test_it_is_built_for_who_may_and_is_nothing_to_others(scene: Scene, tmp_path: Path) -> None:
    system = scene.system
    commit = commit_course(scene, tmp_path)
    url = system.host.url(COURSE)
    scene.sign_as("kim")
    for more in ({"ref": "main"}, {"commit": commit}):
        assert system.ask(repository=url, **more).status_code == 403
    scene.sign_as("ada")
    answer = system.ask(repository=url, ref="main")
    assert answer.status_code == 202, answer.text
    name = answer.json()["name"]
    build = system.ended(name)
    assert (build["state"], build["commit"]) == ("succeeded", commit), build
    assert [cause["by"] for cause in build["causes"]] == ["user:ada"]
    assert scene.canary not in system.log(name)
    used = system.host.credentials
    assert used
    assert [target for target in used if "/private/" not in target] == [], "of Git, or of its API"
    assert scene.elsewhere.requests
    assert scene.elsewhere.credentials == [], "another host is shown none"

    paths = [f"api/v1/builds/{name}", f"api/v1/builds/{name}/log", f"builds/{name}"]
    assert {scene.get(path).status_code for path in paths} == {200}
    for user in ("kim", "root"):
        scene.sign_as(user)
        assert {scene.get(path).status_code for path in paths} == {404}
        assert name not in {one["name"] for one in system.listed()}
        stream = scene.get(f"build/git/{quote(url, safe='')}/{commit}")
        assert '"status_code": 403' in stream.text
        assert "imageName" not in stream.text


@pytest.mark.timeout(180)
def test_a_webhook_of_its_host_has_it_built(scene: Scene) -> None:
    system = scene.system
    commit = system.commit(COURSE, {"Dockerfile": SMALL})
    answer = system.deliver(system.push(COURSE, commit))
    assert answer.status_code == 202, answer.text
    scene.sign_as("ada")
    build = system.ended(answer.json()["builds"][0]["name"])
    assert (build["state"], build["commit"]) == ("succeeded", commit), build

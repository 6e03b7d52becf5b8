"""A user's server in a container of the image that Kiln has built of their repository with repo2docker."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import requests

from integrations.jupyterhub import kiln_hub
from tests.docker.builder.conftest import gateway  # noqa: F401  (a fixture)
from tests.parts.hub import Hub
from tests.parts.kiln import until
from tests.parts.registry import free_port
from tests.parts.system import System

SECONDS = 500.0
"""The first build of this kind on a machine makes the base of all."""

CONFIG = """
from kiln_hub import image_hook

c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.JupyterHub.hub_bind_url = "http://{gateway}:{port}"
c.DockerSpawner.remove = True
c.DockerSpawner.prefix = {prefix!r}
c.Spawner.cmd = ["jupyterhub-singleuser"]
c.Spawner.start_timeout = c.Spawner.http_timeout = {seconds}
c.Spawner.pre_spawn_hook = image_hook(*{kiln!r}, time_limit={seconds}, name="tag")
"""


@pytest.mark.timeout(900)  # for the same reason
def test_a_server_runs_from_the_image_of_a_repository(
    system: System,
    packages: Path,
    gateway: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    files = {"requirements.txt": "humanize==4.12.3\n", "page.ipynb": "{}"}
    commit = system.commit("ada/course", files)
    prefix = f"kiln-{commit[:12]}"
    config = CONFIG.format(
        gateway=gateway, port=free_port(gateway), prefix=prefix, seconds=SECONDS, kiln=(system.url, system.token)
    )
    modules = {"kiln_hub.py": Path(kiln_hub.__file__)}
    with Hub(tmp_path / "hub", config=config, modules=modules) as hub:
        hub.add_user("ada")
        token = hub.api("POST", "users/ada/tokens", {}).json()["token"]
        try:
            asked = hub.api("POST", "users/ada/server", {"repository": system.host.url("ada/course"), "ref": "main"})
            assert asked.status_code in (201, 202)
            until(lambda: not (hub.server("ada") or {"pending": "spawn"}).get("pending"), SECONDS)
            assert (hub.server("ada") or {}).get("ready"), hub.log.read_text()[-3000:]
            assert commit in _containers(prefix, "{{.Image}}")
            root = f"{hub.url}user/ada/api"
            headers = {"Authorization": f"token {token}"}
            found = requests.get(f"{root}/contents", headers=headers, timeout=30).json()
            assert {entry["name"] for entry in found["content"]} >= {*files}
            kernels = requests.get(f"{root}/kernelspecs", headers=headers, timeout=30).json()
            assert kernels["default"] == "python3"
        finally:
            hub.api("DELETE", "users/ada/server")
            for name in _containers(prefix, "{{.ID}}").split():
                subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)


def _containers(prefix: str, shape: str) -> str:
    command = ["docker", "ps", "--all", f"--filter=name={prefix}", "--format", shape]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

"""A real JupyterHub with its real proxy, as an admin would run it: in an environment of its own, without Kiln in it.

    with Hub(folder, config="c.Spawner.pre_spawn_hook = …", modules=[path]) as hub:
        hub.api("POST", "users/ada")
        hub.api("POST", "users/ada/server", {"repository": "https://…"})
        hub.until_ready("ada")

People log in by name alone, their servers are the Hub's own stand-in for one (`jupyterhub.tests.mocksu`).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import requests

from tests.parts import node
from tests.parts.kiln import KEPT, get, until
from tests.parts.machine import CACHE, ROOT, MachineError
from tests.parts.registry import free_port

LOCK = ROOT / "requirements/hub.txt"
START_SECONDS = 120.0
"""A Hub makes its database and starts Node first, on a machine that does much else."""

CONFIG = """
import sys
c = get_config()
c.JupyterHub.bind_url = {public!r}
c.JupyterHub.hub_bind_url = {hub!r}
c.ConfigurableHTTPProxy.api_url = {proxy!r}
c.ConfigurableHTTPProxy.command = {command!r}
c.JupyterHub.db_url = "sqlite:///hub.sqlite"
c.JupyterHub.cookie_secret_file = "cookie"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.tests.mocksu"]
c.JupyterHub.services = [{{"name": "tests", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:servers", "tokens", "read:users"]}},
]
"""

NO_CLUSTER = """
apiVersion: v1
kind: Config
current-context: none
contexts: [{name: none, context: {cluster: none, user: none}}]
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: none, user: {}}]
"""
"""KubeSpawner requires a kubeconfig; the address in it is never used."""


def environment() -> Path:
    """The Python of the Hub's environment, created from its lock file where it is missing. Raises MachineError."""
    folder = CACHE / "jupyterhub"
    folder.mkdir(parents=True, exist_ok=True)
    python, installed = folder / "venv/bin/python", folder / "installed"
    with (folder / "busy").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_bytes() != LOCK.read_bytes():
            shutil.rmtree(folder / "venv", ignore_errors=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
            for command in ([sys.executable, "-m", "venv", str(folder / "venv")], [*pip, "-r", str(LOCK)]):
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                if done.returncode:
                    raise MachineError(f"the Hub's environment cannot be made: {done.stderr[-500:]}")
            installed.write_bytes(LOCK.read_bytes())
    return python


class Hub:
    """Started by entering, stopped by leaving. `config` is appended to the configuration above; `modules` are files put
    beside it, from where it can import them."""

    def __init__(self, folder: Path, *, config: str = "", modules: Mapping[str, Path] = {}) -> None:
        self.folder = folder
        self.log = folder / "hub.log"
        self.token = secrets.token_hex(16)
        ports = [free_port() for _ in range(3)]
        self.url, self.internal, proxy = (f"http://127.0.0.1:{port}/" for port in ports)
        """`url` is the proxy's, `internal` the Hub's own."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in modules.items():
            shutil.copy(path, folder / name)
        command = ["node", str(node.packages() / "node_modules/.bin/configurable-http-proxy")]
        text = CONFIG.format(public=self.url, hub=self.internal, proxy=proxy, command=command, token=self.token)
        (folder / "jupyterhub_config.py").write_text(f"{text}\n{config}")
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the Hub and returns once it answers through its proxy."""
        inherited = {name: os.environ[name] for name in KEPT if name in os.environ}
        python = environment()
        path = f"{python.parent}:{inherited['PATH']}"
        with self.log.open("ab") as out:
            self._popen = popen = subprocess.Popen(
                # It ends its services by Ctrl-C, which a shell has ignored by what it runs in its background.
                ["env", "--default-signal=INT", str(python), "-m", "jupyterhub"],
                cwd=self.folder,
                env={
                    **inherited,
                    "PATH": path,
                    "PYTHONPATH": str(self.folder),
                    "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(16),
                },
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until(lambda: get(f"{self.url}hub/api/")[0] == 200 or popen.poll() is not None, START_SECONDS)
        assert popen.poll() is None, self.log.read_text()

    def stop(self) -> None:
        """Ends it with its proxy and all servers, as Ctrl-C does."""
        if self._popen is None:
            return
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(30)
        finally:
            for pid in _members(self._popen.pid):
                os.kill(pid, signal.SIGKILL)
            self._popen.wait(5)

    def api(self, verb: str, path: str, body: object = None, token: str | None = None) -> requests.Response:
        """Calls the Hub's API, as the tests' service unless another token is given."""
        headers = {"Authorization": f"token {token or self.token}"}
        data = None if body is None else json.dumps(body)
        return requests.request(verb, f"{self.url}hub/api/{path}", headers=headers, data=data, timeout=60)

    def add_user(self, name: str) -> None:
        assert self.api("POST", f"users/{name}").status_code == 201

    def server(self, user: str, name: str = "") -> dict[str, Any] | None:
        """A server as the Hub's API describes it; `None` where the user has none."""
        servers: dict[str, dict[str, Any]] = self.api("GET", f"users/{user}").json()["servers"]
        return servers.get(name)

    def until_ready(self, user: str, name: str = "", seconds: float = 45.0) -> None:
        until(lambda: (self.server(user, name) or {}).get("ready"), seconds)

    def progress(self, user: str, name: str = "", seconds: float = 50.0) -> list[dict[str, Any]]:
        """The messages that the Hub's page shows while a server starts, to the end."""
        path = f"users/{user}/servers/{name}/progress" if name else f"users/{user}/server/progress"
        headers = {"Authorization": f"token {self.token}"}
        with requests.get(f"{self.url}hub/api/{path}", headers=headers, stream=True, timeout=seconds) as answer:
            lines = answer.iter_lines(decode_unicode=True)
            return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def _members(session: int) -> Sequence[int]:
    """The processes of a session."""
    listed = subprocess.run(["ps", "-o", "pid=", "--sid", str(session)], check=False, capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]

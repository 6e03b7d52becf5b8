"""Kiln as it is run: web and controller from the Procfile, with environment, YAML file and secrets of their own."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from tests.parts.machine import ROOT, MachineError
from tests.parts.registry import free_port

OURS = ("KILN_", "K_", "JUPYTERHUB_", "HONCHO_")


@dataclass(frozen=True)
class Installation:
    """A Kiln under `folder`. It is not running yet; `running` starts it."""

    folder: Path
    port: int
    env: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def webhook_secret(self) -> Path:
        """Of GitHub hosts."""
        return self.folder / "secrets/webhooks/github/main"

    @property
    def log(self) -> Path:
        return self.folder / "kiln.log"

    def command(self, name: str) -> list[str]:
        """`kiln web` or `kiln controller`, to be started with `env`."""
        return [sys.executable, "-m", "kiln", name]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Web, which answers from the start, and the controller; both as honcho starts them."""
        command = [sys.executable, "-m", "honcho", "start", "--procfile", str(ROOT / "Procfile")]
        with self.started([*command, "--port", str(self.port)]):
            try:
                yield
            finally:
                self._cancel_all()

    @contextmanager
    def started(self, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a command that brings up web; ended by SIGTERM. Raises MachineError."""
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._await_web(process)
            yield process
        finally:
            process.terminate()  # honcho ends what it started, in sessions of their own
            process.wait(30)

    def builds(self) -> list[dict[str, Any]]:
        """The newest ones, as the API shows them."""
        items: list[dict[str, Any]] = requests.get(f"{self.url}api/v1/builds", timeout=10).json()["items"]
        return items

    def _await_web(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if requests.get(f"{self.url}api/v1/builds", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.05)
        raise MachineError(f"Kiln does not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def _cancel_all(self) -> None:
        """An attempt outlives its controller on purpose; those of a demo or a test must not."""
        deadline = time.monotonic() + 20
        try:
            while live := [one for one in self.builds() if one["state"] in ("queued", "running")]:
                for one in live:
                    requests.delete(f"{self.url}api/v1/builds/{one['name']}", timeout=5)
                if time.monotonic() > deadline:
                    raise MachineError(f"{live[0]['name']} does not end")
                time.sleep(0.2)
        except requests.RequestException:
            return  # web has gone already


def install(
    folder: Path, *, prefix: str, config: Mapping[str, object] = {}, env: Mapping[str, str] = {}
) -> Installation:
    """Writes the YAML file and a GitHub secret. `prefix` is that of images, `env` wins over what is set here."""
    port = free_port()
    own = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    own |= {
        "PATH": f"{Path(sys.executable).parent}:{own.get('PATH', os.defpath)}",
        "PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "KILN_IMAGE_PREFIX": prefix,
        "KILN_CONFIG": str(folder / "config.yaml"),
        "KILN_SECRETS_DIR": str(folder / "secrets"),
        "KILN_STATE_DIR": str(folder / "state"),
        "KILN_REGISTRY_CONFIG": str(folder / "docker.json"),
        "KILN_OPS_PORT": "0",
    }
    made = Installation(folder, port, {**own, **env})
    made.webhook_secret.parent.mkdir(parents=True)
    made.webhook_secret.write_text(secrets.token_urlsafe(32))
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    (folder / "docker.json").write_text("{}")
    return made

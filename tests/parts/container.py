"""A container of an image that Kiln has built, as a person runs it, or a Hub."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Self

from tests.parts.kiln import get, until

START_SECONDS = 100.0
"""Jupyter imports much, on a machine that does much else."""


class Container:
    """Started by entering, removed by leaving. What listens on `ports` inside is published on loopback."""

    def __init__(
        self, image: str, command: Sequence[str], *, ports: Sequence[int] = (), env: Mapping[str, str] = {}
    ) -> None:
        published = [f"--publish=127.0.0.1::{port}" for port in ports]
        variables = [f"--env={name}={value}" for name, value in env.items()]
        self._run = ["docker", "run", "--detach", *published, *variables, image, *command]
        self._id = ""

    def __enter__(self) -> Self:
        self._id = _output(*self._run).splitlines()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        _output("docker", "rm", "--force", "--volumes", self._id)

    def url(self, port: int) -> str:
        """Where a port of it is published."""
        return f"http://{_output('docker', 'port', self._id, f'{port}/tcp').splitlines()[0]}/"

    def user(self) -> int:
        """The number of the user whose its first process is."""
        return int(_output("docker", "exec", self._id, "stat", "--format=%u", "/proc/1"))

    def until_served(self, url: str) -> None:
        """Returns when that is answered with 200."""
        until(lambda: get(url)[0] == 200 or not self._runs(), START_SECONDS)
        assert self._runs(), self.log()

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self._id], check=True, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def _runs(self) -> bool:
        return _output("docker", "inspect", "--format={{.State.Running}}", self._id) == "true"


def said(image: str, command: str) -> str:
    """What a shell's command says in a new container of the image."""
    return _output("docker", "run", "--rm", image, "bash", "-c", command)


def _output(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

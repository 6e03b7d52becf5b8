"""A container of an image that Kiln has built, as a person runs it, or a Hub."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Self

from tests.parts.kiln import until

START_SECONDS = 100.0
"""Jupyter imports much, on a machine that does much else."""
DOCKER = ("docker",)
"""The command for this machine's daemon."""


class Container:
    """Started by entering, removed by leaving. `docker` is the command for the daemon that runs it."""

    def __init__(
        self, image: str, command: Sequence[str], *, env: Mapping[str, str] = {}, docker: Sequence[str] = DOCKER
    ) -> None:
        self._docker = docker
        self._run = ["run", "--detach", *(f"--env={name}={value}" for name, value in env.items()), image, *command]
        self._id = ""

    def __enter__(self) -> Self:
        self._id = self._said(*self._run).splitlines()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self._said("rm", "--force", "--volumes", self._id)

    def user(self) -> int:
        """The id of the user that runs its first process."""
        return int(self._said("exec", self._id, "stat", "--format=%u", "/proc/1"))

    def until_served(self, url: str) -> None:
        """Returns when the URL is answered with 200 inside the container, which needs curl."""
        until(lambda: self._status(url) == "200" or not self._runs(), START_SECONDS)
        assert self._runs(), self._said("logs", self._id)

    def _status(self, url: str) -> str:
        shown = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
        return self._said("exec", self._id, "sh", "-c", 'curl "$@" || true', "curl", *shown, url)

    def _runs(self) -> bool:
        return self._said("inspect", "--format={{.State.Running}}", self._id) == "true"

    def _said(self, *arguments: str) -> str:
        return output(*self._docker, *arguments)


def said(image: str, command: str, docker: Sequence[str] = DOCKER) -> str:
    """The output of a shell command in a new container of the image."""
    return output(*docker, "run", "--rm", image, "bash", "-c", command)


def output(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

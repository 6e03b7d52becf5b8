"""A container of an image that Kiln has built, as a person runs it, or a Hub."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Self

START_SECONDS = 100
"""Jupyter imports much, on a machine that does much else."""
DOCKER = ("docker",)
"""The command for this machine's daemon."""
_RETRYING = (
    *("--silent", "--show-error", "--fail", "--output", "/dev/null"),
    *("--retry", f"{START_SECONDS}", "--retry-delay", "1", "--retry-all-errors"),
)
"""One process that retries each second: each `docker exec` costs a process of runc and of the daemon."""


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
        try:
            status = self._said("exec", self._id, "curl", *_RETRYING, "--write-out", "%{http_code}", url)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._said('logs', self._id)}") from None
        assert status == "200"

    def _said(self, *arguments: str) -> str:
        return output(*self._docker, *arguments)


def said(image: str, command: str, docker: Sequence[str] = DOCKER) -> str:
    """The output of a shell command in a new container of the image."""
    return output(*docker, "run", "--rm", image, "bash", "-c", command)


def output(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

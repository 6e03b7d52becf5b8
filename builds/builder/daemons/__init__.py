"""The daemon that builds: what the builder asks of it, whichever kind it is.

One module for each kind: how its client is called, what the client reports (`Dialect`), which words of it mean what
(`builds.builder.outcome.Idiom`), and how to tell afterwards that the daemon stayed (`Watch`).
"""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from builds.builder.outcome import INFRASTRUCTURE, Failure, Idiom, Step

PROBE_TIMEOUT = 60.0
"""Seconds for a question that the daemon has to work for."""


class Findings(NamedTuple):
    """What a daemon's client has reported of a build so far; the fields are those of `Account`.

    `step.of_tool` says only that the repository's files had not been copied before the step.
    """

    error: str = ""
    step: Step | None = None
    source: str = ""
    began: bool = False
    interrupted: bool = False
    base: str = ""


class Dialect(Protocol):
    """Follows what a daemon's client reports of one build."""

    @property
    def pushing(self) -> bool:
        """Whether the build is over and its image is being pushed."""

    def take(self, message: str) -> Iterator[str]:
        """One message of the tool. Gives the lines that it is for the log."""

    def findings(self) -> Findings: ...


class Watch(Protocol):
    """Lasts as long as one build, and notices if the daemon does not."""

    def lost(self) -> bool:
        """Whether the daemon is another one than before."""

    def close(self) -> None: ...


class Daemon(ABC):
    """A daemon, reached with the credentials for registries that `variables` lead to.

    `variables` are those that its client needs beside this process's own.
    """

    program: ClassVar[str]
    idiom: ClassVar[Idiom]
    pushes: ClassVar[bool]
    """Whether a build pushes its image itself, under the image's own name."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables

    @property
    @abstractmethod
    def engine(self) -> str:
        """Python for repo2docker's configuration file: defines `Engine`, a repo2docker.engine.ContainerEngine.

        It may use the names that `builds.builder.tool.command` writes before it.
        """

    @abstractmethod
    def dialect(self) -> Dialect: ...

    @abstractmethod
    def watch(self) -> Watch: ...

    @abstractmethod
    def pushing(self, built: str, image: str) -> Sequence[Sequence[str]]:
        """The commands that push an image of the daemon's as `image`. The last one says what it does."""

    @abstractmethod
    def exit_of(self, folder: str) -> int | None:
        """The exit status of the RUN instruction of a Dockerfile, done anew; `None` if something else failed."""

    def trouble(self) -> str | None:
        """Why it does not answer; `None` if it does. Raises Failure if there is no client."""
        try:
            done = self.run("version", "--format", "{{.Server.Version}}", timeout=10)
        except FileNotFoundError:
            raise Failure(INFRASTRUCTURE, f"There is no {self.program} command for the builder to use.") from None
        return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()[:300]

    def remove(self, *images: str, timeout: float = PROBE_TIMEOUT) -> None:
        """Takes names from images, and with the last one the image; as far as they are there.

        Once more where the client was killed: nobody else would take them away. Raises OSError.
        """
        command = ("image", "rm", "--force", *images)
        if self.run(*command, timeout=timeout).returncode < 0:
            self.run(*command, timeout=timeout)

    def run(
        self, *arguments: str, stdin: bytes = b"", timeout: float = PROBE_TIMEOUT
    ) -> subprocess.CompletedProcess[bytes]:
        """Asks the daemon; one that does not answer within `timeout` seconds has failed. Raises OSError."""
        command = [self.program, *arguments]
        try:
            return subprocess.run(
                command, env=self.environment, input=stdin, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, b"", b"It took the connection and said nothing.")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}


def connect(host: str | None, config: str | None, copy: Path) -> Daemon:
    """The daemon at `host` (as in DOCKER_HOST; `None` is the machine's own), with the credentials in `config`.

    `copy` is a folder that may be made for a copy of them. Raises Unreachable for a file that cannot be read.
    """
    from builds.builder.daemons.docker import Docker  # noqa: PLC0415

    return Docker.connect(host, config, copy)

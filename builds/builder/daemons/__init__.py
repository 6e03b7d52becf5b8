"""The daemon that builds: what the builder asks of it, whichever kind it is.

Each kind has one module. It defines the client's commands, the parser of the client's output (`ProgressParser`), the
meaning of its messages (`builds.builder.outcome.Idiom`), and the check that the daemon stayed up (`DaemonWatch`).
"""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from builds.builder.outcome import INFRASTRUCTURE, Failure, Idiom, Step
from builds.builder.spec import DaemonKind, Surroundings
from builds.clients import docker_config
from builds.clients.docker_config import NO_LOGIN

PROBE_TIMEOUT = 60.0
"""Seconds for a question that the daemon has to work for."""


class Findings(NamedTuple):
    """What a daemon's client has reported of a build so far; the fields are those of `Account`."""

    error: str = ""
    step: Step | None = None
    source: str = ""
    began: bool = False
    interrupted: bool = False
    base: str = ""


class ProgressParser(Protocol):
    """Follows what a daemon's client reports of one build."""

    @property
    def pushing(self) -> bool:
        """Whether the build is over and its image is being pushed."""

    def take(self, message: str) -> Iterator[str]:
        """One message of the tool. Gives the lines that it is for the log."""

    def findings(self) -> Findings: ...


class DaemonWatch(Protocol):
    """Lasts as long as one build, and notices if the daemon does not."""

    def lost(self) -> bool:
        """Whether the daemon is another one than before."""

    def over(self) -> None:
        """The build has ended well."""

    def close(self) -> None:
        """The build has ended, or its client has, or is about to: nothing of it goes on in the daemon from now on."""


class Daemon(ABC):
    """A daemon, reached with the credentials for registries that `variables` lead to.

    `variables` are those that its client needs beside this process's own.
    """

    program: str
    idiom: ClassVar[Idiom]
    pushes: ClassVar[bool]
    """Whether a build pushes its image itself, under the image's own name."""
    reuses: ClassVar[bool]
    """Whether it finds layers in images of the registry."""
    untagging: ClassVar[Sequence[str]]
    """The command that takes names from images."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables

    @property
    @abstractmethod
    def engine(self) -> str:
        """Python for repo2docker's configuration file: defines `Engine`, a repo2docker.engine.ContainerEngine.

        It may use the names that `builds.builder.tool.command` writes before it.
        """

    @abstractmethod
    def progress_parser(self) -> ProgressParser: ...

    @abstractmethod
    def watch(self) -> DaemonWatch: ...

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

    def untag(self, *names: str, timeout: float = PROBE_TIMEOUT) -> None:
        """Takes names from images, as far as they are there; what they were made of stays, for the next build.

        Once more where the client was killed: nobody else would take them away. Raises OSError.
        """
        command = (*self.untagging, *names)
        if self.run(*command, timeout=timeout).returncode < 0:
            self.run(*command, timeout=timeout)

    def inspected(self, image: str) -> Mapping[str, Any] | None:
        """What it says of an image that it has; `None` if it does not. Raises OSError."""
        done = self.run("image", "inspect", image)
        if done.returncode:
            return None
        found: list[dict[str, Any]] = msgspec.json.decode(done.stdout)
        return found[0]

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


def connect(around: Surroundings, config: str | None, copy: Path) -> Daemon:
    """The daemon of these surroundings, with the credentials in `config`, a docker `config.json` (`None`: the user's).

    `copy` is a folder that may be made for a copy of them. Raises Unreachable for a file that cannot be read.
    """
    from builds.builder.daemons.docker import Docker  # noqa: PLC0415
    from builds.builder.daemons.podman import Podman  # noqa: PLC0415

    kinds: Mapping[DaemonKind, type[Docker | Podman]] = {"docker": Docker, "podman": Podman}
    return kinds[around.daemon](around, config, copy)


def credentials(config: str | None, copy: Path) -> Path:
    """A folder with the `config.json` for a daemon's client: the user's, or a copy that the client may write beside.

    Raises Unreachable for a file that cannot be read.
    """
    own = docker_config.folder()
    if not config:
        return own
    copy.mkdir(mode=0o700)
    (copy / "config.json").touch(mode=0o600)
    (copy / "config.json").write_bytes(b"{}" if config == NO_LOGIN else docker_config.for_tools(config))
    (copy / "cli-plugins").symlink_to(own / "cli-plugins")
    return copy

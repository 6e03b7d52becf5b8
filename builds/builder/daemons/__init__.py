"""The building daemon: the interface that the builder uses, for every kind of daemon.

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

from builds.builder.outcome import INFRASTRUCTURE, FailedCommand, Failure, Idiom
from builds.builder.spec import DaemonKind, Surroundings
from builds.clients import docker_config
from builds.clients.docker_config import NO_LOGIN

PROBE_TIMEOUT = 60.0
"""Seconds for a request that makes the daemon work."""


class Findings(NamedTuple):
    """A daemon's reports about a build so far; the fields are those of `Account`."""

    error: str = ""
    step: FailedCommand | None = None
    source: str = ""
    began: bool = False
    interrupted: bool = False
    base: str = ""


class ProgressParser(Protocol):
    """Parses the reports of a daemon's client about one build."""

    @property
    def pushing(self) -> bool:
        """Whether the build has ended and its image is being pushed."""

    def take(self, message: str) -> Iterator[str]:
        """Takes one message of the tool, and yields the lines for the log."""

    def findings(self) -> Findings: ...


class DaemonWatch(Protocol):
    """Lasts as long as one build, and detects a restart of the daemon."""

    def lost(self) -> bool:
        """Whether the daemon was restarted or replaced."""

    def over(self) -> None:
        """Notes that the build has succeeded."""

    def close(self) -> None:
        """The build or its client has ended, or is about to. From now on, nothing of the build may run in the
        daemon."""


class Daemon(ABC):
    """A daemon, with the credentials for registries that `variables` lead to.

    Its client needs `variables` in addition to this process's own.
    """

    program: str
    idiom: ClassVar[Idiom]
    pushes: ClassVar[bool]
    """Whether a build itself pushes its image, under the image's own name."""
    reuses: ClassVar[bool]
    """Whether it reuses layers of images in the registry."""
    untagging: ClassVar[Sequence[str]]
    """The command that removes names from images."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables

    @property
    @abstractmethod
    def engine(self) -> str:
        """Python for repo2docker's configuration file: defines `Engine`, a repo2docker.engine.ContainerEngine.

        It may use the variables that `builds.builder.tool.command` writes before it.
        """

    @abstractmethod
    def progress_parser(self) -> ProgressParser: ...

    @abstractmethod
    def watch(self) -> DaemonWatch: ...

    @abstractmethod
    def pushing(self, built: str, image: str) -> Sequence[Sequence[str]]:
        """The commands that push an image of the daemon as `image`. The last one reports its progress."""

    @abstractmethod
    def exit_of(self, folder: str) -> int | None:
        """The exit status of a Dockerfile's RUN instruction, without cache; `None` if something else failed."""

    def trouble(self) -> str | None:
        """Why it does not answer; `None` if it does. Raises Failure without a client."""
        try:
            done = self.run("version", "--format", "{{.Server.Version}}", timeout=10)
        except FileNotFoundError:
            raise Failure(INFRASTRUCTURE, f"The builder has no {self.program} command. Install it.") from None
        return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()[:300]

    def untag(self, *names: str, timeout: float = PROBE_TIMEOUT) -> None:
        """Removes existing names from images; the layers remain for the next build.

        Repeats the command if its client was killed, because no other process would do it. Raises OSError.
        """
        command = (*self.untagging, *names)
        if self.run(*command, timeout=timeout).returncode < 0:
            self.run(*command, timeout=timeout)

    def inspected(self, image: str) -> Mapping[str, Any] | None:
        """Its description of an image; `None` if it does not have the image. Raises OSError."""
        done = self.run("image", "inspect", image)
        if done.returncode:
            return None
        found: list[dict[str, Any]] = msgspec.json.decode(done.stdout)
        return found[0]

    def run(
        self, *arguments: str, stdin: bytes = b"", timeout: float = PROBE_TIMEOUT
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command of the client; one that takes more than `timeout` seconds has failed. Raises OSError."""
        command = [self.program, *arguments]
        try:
            return subprocess.run(
                command, env=self.environment, input=stdin, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, b"", b"It accepted the connection and did not answer.")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}


def connect(around: Surroundings, config: str | None, copy: Path) -> Daemon:
    """The configured daemon, with the credentials in `config`, a docker `config.json` (`None`: the user's).

    A copy of them may be made in the folder `copy`. Raises RegistryUnreachable for an unreadable file.
    """
    from builds.builder.daemons.docker import Docker  # noqa: PLC0415
    from builds.builder.daemons.podman import Podman  # noqa: PLC0415

    kinds: Mapping[DaemonKind, type[Docker | Podman]] = {"docker": Docker, "podman": Podman}
    return kinds[around.daemon](around, config, copy)


def credentials(config: str | None, copy: Path) -> Path:
    """A folder with the `config.json` for a daemon's client: the user's, or a copy that the client may write to.

    Raises RegistryUnreachable for an unreadable file.
    """
    own = docker_config.folder()
    if not config:
        return own
    copy.mkdir(mode=0o700)
    (copy / "config.json").touch(mode=0o600)
    (copy / "config.json").write_bytes(b"{}" if config == NO_LOGIN else docker_config.for_tools(config))
    (copy / "cli-plugins").symlink_to(own / "cli-plugins")
    return copy

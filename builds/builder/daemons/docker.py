"""Docker: `docker buildx build --push`, with the builder that is in the daemon."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from builds.builder.daemons import Daemon
from builds.builder.daemons.buildkit import BuildKit
from builds.builder.outcome import DOCKER
from builds.clients import docker_config
from builds.clients.docker_config import NO_LOGIN

_ENGINE = """\
from repo2docker.docker import DockerEngine as Engine

c.DockerEngine.extra_buildx_build_args = [
    "--progress=rawjson",
    "--build-arg=BUILDKIT_CACHE_MOUNT_NS=" + NAMESPACE,
    *(["--pull"] if PULL else []),
]
"""
"""Cache mounts (`RUN --mount=type=cache`) get a namespace for each repository, or any repository could fill
another's."""


class Docker(Daemon):
    program = "docker"
    idiom = DOCKER
    pushes = True

    @classmethod
    def connect(cls, host: str | None, config: str | None, copy: Path) -> Docker:
        """The credentials are copied: the mounted file may be read-only, and buildx writes beside it."""
        own = docker_config.folder()
        found = {"DOCKER_CONFIG": str(own)}
        if host:
            found["DOCKER_HOST"] = host
        if config:
            copy.mkdir(mode=0o700)
            (copy / "config.json").touch(mode=0o600)
            (copy / "config.json").write_bytes(b"{}" if config == NO_LOGIN else docker_config.for_tools(config))
            (copy / "cli-plugins").symlink_to(own / "cli-plugins")
            found["DOCKER_CONFIG"] = str(copy)
        return cls(found)

    @property
    def engine(self) -> str:
        return _ENGINE

    def dialect(self) -> BuildKit:
        return BuildKit()

    def watch(self) -> _Events:
        return _Events(self)

    def pushing(self, built: str, image: str) -> Sequence[Sequence[str]]:
        return ["docker", "tag", built, image], ["docker", "push", image]

    def exit_of(self, folder: str) -> int | None:
        done = self.run("buildx", "build", "--progress=quiet", "--no-cache", folder)
        found = re.search(r"exit code: (\d+)\s*$", done.stderr.decode(errors="replace"))
        return int(found[1]) if found else None


class _Events:
    """The daemon's events, a stream that ends with it."""

    def __init__(self, daemon: Docker) -> None:
        self._daemon = daemon
        quiet, command = subprocess.DEVNULL, ["docker", "events", "--filter", "type=daemon"]
        # It inherits standard input, and so holds the attempt's lock.
        self._stream = subprocess.Popen(command, env=daemon.environment, stdout=quiet, stderr=quiet)

    def lost(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._stream.wait(0.2)
        if self._stream.returncode is None:
            return False
        return self._daemon.run("events", "--since", "1", "--until", "1").returncode == 0  # else it is not permitted

    def close(self) -> None:
        self._stream.kill()
        self._stream.wait()

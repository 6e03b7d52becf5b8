"""Docker: `docker buildx build --push`, with the daemon's own builder."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from builds.builder.daemons import Daemon, credentials
from builds.builder.daemons.buildkit import BuildKit
from builds.builder.outcome import DOCKER
from builds.builder.spec import Surroundings

_ENGINE = """\
from repo2docker.docker import DockerEngine as Engine

c.DockerEngine.extra_buildx_build_args = [
    "--progress=rawjson",
    "--build-arg=BUILDKIT_CACHE_MOUNT_NS=" + NAMESPACE,
    *(["--pull"] if PULL else []),
    *(["--cache-to=type=inline"] if CACHED else []),
    *("--cache-from=type=registry,ref=" + image for image in CACHE_FROM),
]
"""
"""Cache mounts (`RUN --mount=type=cache`) have a namespace for each repository, so that no repository can fill
another's.

The image itself contains BuildKit's cache metadata (`inline`):
https://docs.docker.com/build/cache/backends/inline/"""


class Docker(Daemon):
    program = "docker"
    idiom = DOCKER
    pushes = True
    reuses = True
    untagging = ("image", "rm", "--force")  # removes the image with its last name, but not BuildKit's cache

    def __init__(self, around: Surroundings, config: str | None, copy: Path) -> None:
        address = {"DOCKER_HOST": around.docker_host} if around.docker_host else {}
        super().__init__({"DOCKER_CONFIG": str(credentials(config, copy)), **address})

    @property
    def engine(self) -> str:
        return _ENGINE

    def progress_parser(self) -> BuildKit:
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
    """The daemon's event stream, which ends with the daemon."""

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
        return self._daemon.run("events", "--since", "1", "--until", "1").returncode == 0  # else events are forbidden

    def over(self) -> None: ...

    def close(self) -> None:
        self._stream.kill()
        self._stream.wait()

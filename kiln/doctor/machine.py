"""Requirements of builds on this machine: git, a daemon with free disk space, and repo2docker.

With the engine `kubernetes`, builds run in other pods next to other daemons (`cluster`). This machine then needs git
only.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from builds.builder.spec import DaemonKind
from builds.clients.tools import ToolError, path_of, podman_client, version
from kiln.doctor import cures
from kiln.doctor.cures import Cure
from kiln.doctor.findings import Probe, Symptom
from kiln.wiring import Kiln

GIT = (2, 38)
"""`docs/connections.md` says why: older versions cannot restrict what is fetched."""
BUILDX = (0, 13)
GIB = 1 << 30
DAEMON_ROOM, DAEMON_AMPLE = 1 * GIB, 10 * GIB
"""Bytes: a base image takes more than the first; below the second, and a tenth of the disk, it is worth a warning."""
SOCKET = "/var/run/docker.sock"


class Tools(NamedTuple):
    """A kind of daemon, its client's command line up to the address, and what to do without them."""

    client: str
    to: str
    """The client's option for the daemon's address."""
    info: str
    """A Go template: the daemon's version, a blank, and the folder of its data."""
    missing: Cure
    down: Cure
    denied: Cure


DOCKER = Tools(
    "docker",
    "--host",
    "{{.ServerVersion}} {{.DockerRootDir}}",
    cures.DOCKER_MISSING,
    cures.DOCKER_DOWN,
    cures.DOCKER_DENIED,
)
PODMAN = Tools(
    "podman",
    "--url",
    "{{.Version.Version}} {{.Store.GraphRoot}}",
    cures.PODMAN_MISSING,
    cures.PODMAN_DOWN,
    cures.PODMAN_DENIED,
)


def probes(kiln: Kiln) -> Iterator[Probe]:
    yield Probe("git", git)
    if kiln.settings.engine == "local":
        yield from _local(kiln.settings.daemon, kiln.docker_host)


def unconfigured(environ: Mapping[str, str]) -> Iterator[Probe]:
    """Yields the probes of git and of the machine's Docker, without a valid configuration."""
    yield Probe("git", git)
    if environ.get("KILN_ENGINE", "local") == "local" and environ.get("KILN_DAEMON", "docker") == "docker":
        yield from _local("docker", environ.get("KILN_DOCKER_HOST") or environ.get("DOCKER_HOST") or None)


def _local(kind: DaemonKind, address: str | None) -> Iterator[Probe]:
    yield Probe(f"{kind} daemon", partial(daemon, kind, address))
    if kind == "docker":
        yield Probe("docker buildx", buildx)
    else:
        yield Probe("podman client", podman)
    yield Probe("repo2docker", repo2docker)


def git() -> str:
    return _recent("git", "--version", least=GIT, missing=cures.GIT_MISSING, old=cures.GIT_OLD)


def buildx() -> str:
    missing = cures.BUILDX_MISSING if shutil.which(path_of("docker")) else cures.DOCKER_MISSING
    return _recent("docker", "buildx", "version", least=BUILDX, missing=missing, old=cures.BUILDX_OLD)


def podman() -> str:
    return _version(podman_client(), "--version", missing=cures.PODMAN_MISSING)


def repo2docker() -> str:
    return _version("jupyter-repo2docker", "--version", missing=cures.REPO2DOCKER)


def _recent(*command: str, least: tuple[int, int], missing: Cure, old: Cure) -> str:
    """Returns the first line of the program's output. Raises Symptom if the version in it is too old."""
    wanted = ".".join(map(str, least))
    said = _version(*command, missing=missing, least=wanted)
    found = re.search(r"(\d+)\.(\d+)", said)
    if found and (int(found[1]), int(found[2])) < least:
        raise Symptom(old, f"{said} is too old.", least=wanted)
    return said


def _version(*command: str, missing: Cure, **fields: str) -> str:
    try:
        return version(*command)
    except ToolError as error:
        raise Symptom(missing, error, **fields) from None


def daemon(kind: DaemonKind, address: str | None) -> str:
    """Checks that the daemon answers and has free disk space."""
    from builds.engines.local.daemon import DaemonProbe  # noqa: PLC0415

    tools, program = (DOCKER, "docker") if kind == "docker" else (PODMAN, podman_client())
    if trouble := DaemonProbe(address, kind).trouble():
        raise Symptom(_why_silent(tools, program, _socket(address)), trouble)
    to = [tools.to, address] if address else []
    try:
        number, _, folder = version(program, *to, "info", "--format", tools.info).partition(" ")
    except ToolError:  # the client has a probe of its own
        return "answers"
    return f"version {number}, {_daemon_room(tools.client, folder, _socket(address))}"


def _socket(address: str | None) -> Path | None:
    parts = urlsplit(address or f"unix://{SOCKET}")
    return Path(parts.path) if parts.scheme == "unix" else None


def _why_silent(tools: Tools, program: str, socket: Path | None) -> Cure:
    if socket and socket.exists() and not os.access(socket, os.R_OK | os.W_OK, effective_ids=True):
        return tools.denied
    if socket and not socket.exists() and not shutil.which(path_of(program)):
        return tools.missing
    return tools.down


def _daemon_room(client: str, folder: str, socket: Path | None) -> str:
    """Returns the free space on the daemon's disk, if the disk belongs to this machine."""
    if socket is None or not Path(folder).is_dir():
        return "its disk cannot be seen from here"
    found = Room.of(Path(folder))
    if found.free < DAEMON_ROOM or found.no_files:
        raise Symptom(cures.DAEMON_FULL, f"The disk of {folder} is full: {found}.", client=client)
    if (found.free < DAEMON_AMPLE and found.free * 10 < found.size) or found.few_files:
        raise Symptom(cures.DAEMON_NEARLY_FULL, f"The disk of {folder} is nearly full: {found}.", client=client)
    return f"{found} in {folder}"


class Room(NamedTuple):
    """Free space on a disk: bytes, and inodes (0 of 0 if the file system does not count them)."""

    free: int
    size: int
    free_files: int
    files: int

    @classmethod
    def of(cls, folder: Path) -> Room:
        found = os.statvfs(folder)
        return cls(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail, found.f_files)

    @property
    def no_files(self) -> bool:
        return self.files > 0 and self.free_files < 100  # noqa: PLR2004

    @property
    def few_files(self) -> bool:
        return self.files > 0 and self.free_files * 50 < self.files

    def __str__(self) -> str:
        files = f", {self.free_files} free inodes" if self.few_files else ""
        return f"{self.free / GIB:.1f} GiB of {self.size / GIB:.1f} GiB free{files}"

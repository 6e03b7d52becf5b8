"""Podman: `podman build`, then `podman push`, through the socket of `podman system service`.

Its client prints the output of steps unchanged, but separates it from the service's final message: steps use standard
output only, the final error standard error only.

A service continues a step after its client has gone (https://github.com/containers/podman/issues/28502). So a guard
runs beside each build: a container, started by the service itself, that sees the service's processes. It kills the
processes in the build's control group as soon as the guard's standard input is closed, by the builder or by its end.
"""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from builds.builder.daemons import Daemon, Findings, credentials
from builds.builder.log import clean
from builds.builder.outcome import PODMAN, Account, AttemptStage, Evidence, FailedCommand, failure
from builds.builder.output import Output
from builds.builder.spec import Surroundings
from builds.clients.registry import is_plain
from builds.clients.tools import podman_client

_ENGINE = r"""
import json
import selectors
import tarfile
import tempfile

import repo2docker.docker


class Engine(repo2docker.docker.DockerEngine):
    _container_cli = PROGRAM

    def build(self, *, buildargs=None, tag="", dockerfile="", fileobj=None, path="", labels=None, **_):
        if dockerfile:
            check_mounts(dockerfile)
        command = [PROGRAM, "build", "--cgroup-parent", GROUP, "--tag", tag]
        command += ["--pull=always" if PULL else "--pull=newer"]
        command += ["--file", dockerfile] if dockerfile else []
        command += [f"--build-arg={name}={value}" for name, value in (buildargs or {}).items()]
        command += [f"--label={name}={value}" for name, value in (labels or {}).items()]
        with tempfile.TemporaryDirectory() as folder:
            if fileobj:
                tarfile.open(fileobj=fileobj).extractall(folder, filter="fully_trusted")
            yield from lines([*command, folder if fileobj else path])


def check_mounts(dockerfile):
    with open(dockerfile, encoding="utf-8", errors="replace") as file:
        whole = re.sub(r"[\\`][^\S\n]*\n", "", file.read())
    if re.search(r"--mount=\S*(cache|[$])", whole, re.IGNORECASE):
        raise ValueError("the Dockerfile asks for a cache mount, and Podman has one for all repositories together")


def lines(command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        rest = {"stdout": b"", "stderr": b""}
        with selectors.DefaultSelector() as ready:
            for name in rest:
                ready.register(getattr(child, name), selectors.EVENT_READ, name)
            while ready.get_map():
                for key, _ in ready.select():
                    piece = os.read(key.fd, 65536)
                    *whole, rest[key.data] = (rest[key.data] + (piece or b"\n")).split(b"\n")
                    if not piece:
                        ready.unregister(key.fileobj)
                        whole = [line for line in whole if line]
                    elif len(rest[key.data]) > 1 << 20:
                        whole, rest[key.data] = [*whole, rest[key.data]], b""
                    for line in whole:
                        yield json.dumps({key.data: line.decode(errors="replace")}) + "\n"
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
"""
"""`lines` yields each line with its stream. Buildah stores the content of `RUN --mount=type=cache` in one folder for
all builds, regardless of the namespace, so a repository could fill another's."""

_GUARD = """\
echo ready
read -r word
[ "$word" != done ] || exit 0
quiet=0
while [ $quiet -lt 30 ]; do
    quiet=$((quiet + 1))
    for file in $(grep -ls "/$1" /proc/[0-9]*/cgroup); do
        process=${file#/proc/}
        kill -9 "${process%/cgroup}"
        quiet=0
    done 2>/dev/null
    sleep 0.1
done
"""
"""Ends after the control group has been empty for three seconds: a step may have been about to start."""

_STEP = re.compile(r"(?:\[\d+/\d+\] )?STEP \d+/\d+: (.*)", re.DOTALL)
_FAILED = re.compile(r'building at STEP "(.*)": while running runtime: exit status (\d+)$', re.DOTALL)
_NO_SPACE = re.compile(r'((?:(?!building at STEP ").)*no space left on device): building at STEP "', re.DOTALL)
"""The service itself could not write. The message precedes the current step."""
_READ = re.compile(r"building: no stages|no contents in |parsing main Dockerfile")
"""The service has read the Dockerfile, but it has no first step."""
_KILLED = "container exited on killed"
"""Output after the step's first process was killed; its exit status is 1 then."""
_IMAGE = re.compile(
    r"^(?:creating build container: )?.*?(?:initializing source docker://|pinging container registry )(\S+)"
)
_ADDED = re.compile(r'^building at STEP "ADD .*?(https?://[^\s"]+)')


class Podman(Daemon):
    idiom = PODMAN
    pushes = False
    reuses = False
    untagging = ("untag",)  # removing the image would remove its steps, too

    def __init__(self, around: Surroundings, config: str | None, copy: Path) -> None:
        super().__init__(_variables(around, config, copy))
        self.program = podman_client()
        self._insecure = around.insecure_registries
        self._group = f"kiln-{uuid.uuid4().hex}.slice"  # systemd's form of a name, if it manages the groups

    @property
    def engine(self) -> str:
        return f"PROGRAM = {self.program!a}\nGROUP = {self._group!a}\n{_ENGINE}"

    def progress_parser(self) -> Steps:
        return Steps()

    def watch(self) -> _Guard:
        return _Guard(self, self._group)

    def pushing(self, built: str, image: str) -> Sequence[Sequence[str]]:
        plain = is_plain(image.partition("/")[0], self._insecure)
        command = [self.program, "push", f"--tls-verify={str(not plain).lower()}", built, f"docker://{image}"]
        return (command,)

    def exit_of(self, folder: str) -> int | None:
        return self.run("build", "--no-cache", "--quiet", folder).returncode


class _Guard:
    """The container that kills a build's processes. Raises Failure if it cannot be started."""

    def __init__(self, daemon: Podman, group: str) -> None:
        options = ["--rm", "--interactive", "--sig-proxy=false", "--network=none", "--pid=host", "--privileged"]
        pipe, lock = subprocess.PIPE, os.dup(0)  # its standard input is a pipe, so it inherits the attempt's lock apart
        self._client = subprocess.Popen(
            [daemon.program, "run", *options, "--rootfs", "/:O", "sh", "-c", _GUARD, "guard", group],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            pass_fds=(lock,),
            env=daemon.environment,
        )
        os.close(lock)
        assert self._client.stdout  # noqa: S101 (it is a pipe)
        if self._client.stdout.readline() != b"ready\n":
            said = self._client.communicate()[1].decode(errors="replace").strip()
            raise failure(Account(AttemptStage.READY, error=said.removeprefix("Error: "), idiom=PODMAN), Evidence())

    def over(self) -> None:
        """Ends it immediately, without a search for steps."""
        assert self._client.stdin  # noqa: S101 (it is a pipe)
        with suppress(OSError):
            self._client.stdin.write(b"done\n")
            self._client.stdin.flush()

    def lost(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._client.wait(0.2)
        return self._client.returncode is not None

    def close(self) -> None:
        """Lets it search for steps for a few more seconds, in the background."""
        assert self._client.stdin  # noqa: S101 (it is a pipe)
        with suppress(OSError):
            self._client.stdin.close()


def _variables(around: Surroundings, config: str | None, copy: Path) -> dict[str, str]:
    folder = credentials(config, copy)
    found = {"DOCKER_CONFIG": str(folder)}
    if around.docker_host:
        found["CONTAINER_HOST"] = around.docker_host
    if (folder / "config.json").exists():
        found["REGISTRY_AUTH_FILE"] = str(folder / "config.json")
    return found


class _OutputLine(msgspec.Struct, frozen=True):
    stdout: str | None = None
    stderr: str | None = None


class Steps:
    """The parser for `podman build`, each line with its stream.

    Only standard error counts as evidence. On standard output, a line in the form of a step's title may come from the
    previous step, so it is used for quotation only.
    """

    pushing = False  # a build does not

    def __init__(self) -> None:
        self._error = ""
        self._began = False
        self._step = self._base = ""
        self._output = Output()

    def take(self, message: str) -> Iterator[str]:
        line = _decoded(message)
        if line.stdout is not None:
            self._follow(line.stdout)
            yield line.stdout
        elif line.stderr is not None:
            self._hear(clean(line.stderr))
            yield line.stderr
        else:
            yield message

    def findings(self) -> Findings:
        full = _NO_SPACE.match(self._error)
        return Findings(
            error=full[1] if full else self._error.strip(),
            step=None if full else self._failed(),
            source=self._source(),
            began=self._began or _READ.match(self._error) is not None,
            interrupted=self._began and not self._error,
            base=self._base,
        )

    def _follow(self, text: str) -> None:
        found = _STEP.fullmatch(text)
        if found is None:
            self._output.append(clean(text))
            return
        self._began = True
        self._step = clean(found[1])
        self._base = self._base or self._step.removeprefix("FROM ").split(" ")[0]
        self._output.clear()

    def _hear(self, text: str) -> None:
        if text.startswith("Error: "):
            self._error = text.removeprefix("Error: ")
        elif self._error:  # it may quote a step of several lines
            self._error += f"\n{text}"

    def _failed(self) -> FailedCommand | None:
        found = _FAILED.search(self._error.strip())
        if found is None:
            return None
        code = "137" if _KILLED in self._output else found[2]
        said = (line for line in self._output if line != _KILLED)
        return FailedCommand(found[1], f"exit code: {code}", tuple(said))

    def _source(self) -> str:
        """The image or file that could not be fetched, as a URL."""
        image = _IMAGE.search(self._error)
        if image:
            return f"https://{image[1]}"
        step = _ADDED.search(self._error)
        return step[1] if step else ""


def _decoded(message: str) -> _OutputLine:
    try:
        return msgspec.json.decode(message, type=_OutputLine)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return _OutputLine()

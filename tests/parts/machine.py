"""The requirements of the demo and the tests: Docker with buildx, and a few programs of Debian packages.

Installed programs are used. `missing()` returns the others as steps that a person can read before agreeing to them:
only these steps install anything. Programs that need no installation (a registry, a static busybox) are unpacked into
`.cache/packages` and run from there, so that no service is left behind.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
BUILDX_SUITE = "trixie"
"""The Debian release whose docker-buildx also runs on Debian 12, which has none."""
PLUGINS = Path("/usr/local/lib/docker/cli-plugins")
SYSTEMD = Path("/run/systemd/system")
GROUP = "docker"


NO_DAEMON = "no Docker daemon answers"


class MachineError(Exception):
    """This machine lacks something; the message says what, and what to do."""


@dataclass(frozen=True)
class Step:
    """One thing that has to be done to the machine first, in words and as a function."""

    sentence: str
    do: Callable[[], None]


def missing() -> list[Step]:
    """The steps from this machine's state to `docker buildx`, in the order of their execution. Read only.

    Once these are done there may be more: call it again. Raises MachineError for a problem that no step here can cure.
    """
    absent = [name for name in ("docker", "dockerd", "git") if not _which(name)]
    steps = []
    if absent:
        steps.append(Step(f"install Debian packages for {', '.join(absent)} with apt-get", _install))
    if absent or not _runs("docker", "buildx", "version"):
        steps.append(Step(f"put the docker-buildx plugin in {PLUGINS} if its package is missing", _install_buildx))
    if not absent and may_not_use_daemon() and _user() not in grp.getgrnam(GROUP).gr_mem:
        steps.append(Step(f"add {_user()} to the group {GROUP}, which is as good as root", _join_group))
    if not absent and not may_not_use_daemon() and not daemon_answers() and SYSTEMD.is_dir():
        steps.append(Step("start the Docker daemon with systemctl", _start_service))
    if steps and os.geteuid() != 0 and not shutil.which("sudo"):
        wanted = "; ".join(step.sentence for step in steps)
        raise MachineError(f"needed, and only root can do it (there is no sudo here): {wanted}")
    return steps


def problem() -> str | None:
    """Why images cannot be built here as things stand, in a sentence; `None` where they can."""
    if not _which("docker"):
        return "there is no docker command"
    if not _runs("docker", "buildx", "version"):
        return "docker has no buildx plugin"
    if may_not_use_daemon():
        return f"the Docker daemon here lets only root and the group {GROUP} in"
    return None if daemon_answers() else NO_DAEMON


def daemon_answers() -> bool:
    return _runs("docker", "info")


def may_not_use_daemon() -> bool:
    """Whether a daemon runs that admits only root and the group `docker`, and we are neither."""
    socket = Path("/var/run/docker.sock")
    return "DOCKER_HOST" not in os.environ and socket.is_socket() and not os.access(socket, os.R_OK | os.W_OK)


@contextmanager
def daemon() -> Iterator[None]:
    """A Docker daemon that answers: the machine's, or a child of ours where none runs and no init system could start
    one.

    The child is stopped at the end. Raises MachineError.
    """
    if daemon_answers():
        yield
        return
    program = _which("dockerd")
    if program is None:
        raise MachineError("no Docker daemon answers, and dockerd is not installed")
    CACHE.mkdir(exist_ok=True)
    log = CACHE / "dockerd.log"
    with log.open("wb") as output:
        command = [*_as_root(), program, f"--group={os.getgid()}"]
        child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        _await_daemon(child, log)
        yield
    finally:
        end = [*_as_root(), "sh", "-c", f"kill {child.pid}"]  # of the shell: the program may not be there
        subprocess.run(end, check=False, stderr=subprocess.DEVNULL)
        child.wait(30)


def program(name: str, package: str) -> Path:
    """The path of a program: the machine's own, or one unpacked from a Debian package. Raises MachineError."""
    here = _which(name)
    if here is not None:
        return Path(here)
    for folder in ("usr/bin", "bin", "usr/sbin"):
        path = unpacked(package) / folder / name
        if path.is_file():
            return path
    raise MachineError(f"the package {package} holds no {name}")


def unpacked(package: str, suite: str | None = None) -> Path:
    """The contents of a Debian package, in `.cache/packages`: fetched once, by this machine's apt from its own mirror.

    `suite` names another release on the same mirror. Raises MachineError.
    """
    folder = CACHE / "packages" / package
    if folder.is_dir():
        return folder
    if not shutil.which("apt-get"):
        raise MachineError(f"install {package}: without apt-get it cannot be fetched here")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        deb = _download(package, suite, Path(work))
        contents = Path(work) / "contents"
        _check(["dpkg", "-x", str(deb), str(contents)])
        try:
            contents.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    return folder


def _download(package: str, suite: str | None, work: Path) -> Path:
    """A `.deb` in `work`. The machine's package lists will do where they know it; otherwise lists of our own."""
    if suite is None and _runs("apt-get", "download", package, cwd=work):
        return next(work.glob("*.deb"))
    lists = work / "lists"
    (lists / "partial").mkdir(parents=True)
    private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User=root"]
    _check(["apt-get", *private, "update"])
    if suite is not None:
        sources = work / "sources.list"
        sources.write_text(f"deb {_mirror(private)} {suite} main\n")
        private += ["-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=/dev/null"]
        _check(["apt-get", *private, "update"])
    _check(["apt-get", *private, "download", package], cwd=work)
    return next(work.glob("*.deb"))


def _mirror(private: list[str]) -> str:
    """The mirror from which this machine's apt fetches Debian itself."""
    shape = "$(ORIGIN) $(REPO_URI)"
    listed = _check(["apt-get", *private, "indextargets", "--format", shape, "Created-By: Packages"])
    for line in listed.splitlines():
        origin, _, uri = line.partition(" ")
        if origin == "Debian" and "security" not in uri:
            return uri
    raise MachineError("apt's sources name no Debian mirror, so docker-buildx cannot be fetched: install it by hand")


def _install() -> None:
    if not shutil.which("apt-get"):
        raise MachineError("install Docker (with buildx) and git, and start again: there is no apt-get here")
    _check([*_as_root(), "apt-get", "update"])
    optional = [name for name in ("docker-cli", "docker-buildx") if _has_candidate(name)]
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    names = ["docker.io", "git", "ca-certificates", *optional]
    _check([*_as_root(), *quiet, "apt-get", "install", "-y", "--no-install-recommends", *names])


def _has_candidate(package: str) -> bool:
    shown = _check(["apt-cache", "policy", package])
    return "Candidate:" in shown and "Candidate: (none)" not in shown


def _install_buildx() -> None:
    if _runs("docker", "buildx", "version"):
        return
    suite = None if _has_candidate("docker-buildx") else BUILDX_SUITE
    plugin = unpacked("docker-buildx", suite) / "usr/libexec/docker/cli-plugins/docker-buildx"
    _check([*_as_root(), "install", "-D", str(plugin), str(PLUGINS / "docker-buildx")])


def _join_group() -> None:
    _check([*_as_root(), "usermod", "--append", "--groups", GROUP, _user()])


def _start_service() -> None:
    _check([*_as_root(), "systemctl", "start", "docker"])


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _await_daemon(child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not daemon_answers():
        if child.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise MachineError(f"the Docker daemon does not start ({log}): {' '.join(last)}")
        time.sleep(0.2)


def _as_root() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo"]


def _which(name: str) -> str | None:
    """Searches root's folders, too: a person's PATH on Debian has no sbin."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")


def _runs(*command: str, cwd: Path | None = None) -> bool:
    try:
        done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _check(command: list[str], cwd: Path | None = None) -> str:
    """Runs a command to its end and returns its output. Raises MachineError with its last lines."""
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-3:])
        raise MachineError(f"`{' '.join(command)}` ended with status {done.returncode}: {last}")
    return done.stdout

"""A Podman service of a test's own, which may be stopped and filled up without harm to the machine, and a client.

It runs from the files of an image with Podman, in mount and process namespaces of its own and in the machine's network:
it reaches the registries of tests. That needs root.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.parts import machine, podman
from tests.parts.kiln import until

SERVICE = """\
set -e
mount --make-rprivate /
mount --bind {root} {root}
cd {root}
mount -t proc proc proc
mount --rbind /sys sys
umount -l sys/fs/cgroup/unified 2>/dev/null || true  # crun takes version 1 or 2, not both
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs var/tmp
mkdir -p run/kiln var/lib/containers
mount --bind {socket} run/kiln
mount --bind {data} var/lib/containers
mount --bind {configuration} etc/containers
rm -f run/kiln/podman.sock
pivot_root . mnt
umount -l /mnt
exec chroot . podman system service --time=0 unix:///run/kiln/podman.sock
"""
CONTAINERS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
netns = "host"
default_ulimits = ["nofile=1024:20000", "nproc=1024:20000"]
"""
CLIENT = '#!/bin/sh\nexec {loader} --library-path {libraries} --argv0 podman-remote {program} "$@"\n'
"""Debian 12 has no podman-remote, and that of Debian 13 wants Debian 13's libraries."""


def problem() -> str | None:
    """Why no service can be started here, in a sentence; `None` where it can."""
    return "a Podman service of its own needs root" if os.geteuid() != 0 else None


@cache
def files() -> Path:
    """The image's files. Raises MachineError."""
    command = ["docker", "create", podman.build()]
    container = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    form = "--format={{.Image}}"
    image = subprocess.run(["docker", "inspect", form, container], check=True, capture_output=True, text=True).stdout
    folder = machine.CACHE / f"podman-{image.strip().removeprefix('sha256:')[:12]}"
    if not folder.exists():
        machine.CACHE.mkdir(exist_ok=True)
        draft = tempfile.mkdtemp(dir=machine.CACHE)
        Path(draft).chmod(0o755)
        subprocess.run(["sh", "-c", f"docker export {container} | tar -x -C {shlex.quote(draft)}"], check=True)
        try:
            Path(draft).rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(draft)
    subprocess.run(["docker", "rm", container], check=True, capture_output=True)
    return folder


def client(folder: Path) -> Path:
    """A folder with the program `podman-remote`, created in `folder` where it is missing."""
    program = folder / "bin/podman-remote"
    if not program.exists():
        root = files()
        (loader,) = (root / "usr").glob("lib*/ld-linux*.so.*")
        (libraries,) = (root / "usr/lib").glob("*-linux-gnu*")
        program.parent.mkdir(parents=True)
        program.write_text(CLIENT.format(loader=loader, libraries=libraries, program=root / "usr/bin/podman-remote"))
        program.chmod(0o755)
    return program.parent


class Podmand:
    """A service with its data below `folder`, on a file system of `size` MiB in memory.

    `insecure` are registries (`host:port`) that it pulls from without TLS.
    """

    def __init__(self, folder: Path, size: int = 1024, insecure: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.data, configuration = folder / "data", folder / "containers"
        self.data.mkdir(parents=True)
        # The path of a Unix socket has at most 107 bytes.
        self._short = tempfile.TemporaryDirectory(prefix="podmand-", dir="/run")
        self.host = f"unix://{self._short.name}/podman.sock"
        self.client = client(folder)
        shutil.copytree(files() / "etc/containers", configuration)
        (configuration / "containers.conf").write_text(CONTAINERS)
        entries = "".join(f'[[registry]]\nlocation = "{one}"\ninsecure = true\n' for one in insecure)
        (configuration / "registries.conf").write_text(f'unqualified-search-registries = ["docker.io"]\n{entries}')
        script = SERVICE.format(root=files(), socket=self._short.name, data=self.data, configuration=configuration)
        self._command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(self.data)], check=True)

    def start(self) -> None:
        """Starts the service and returns when it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(lambda: self._answers() or (self._process and self._process.poll() is not None), 40)
        if not self._answers():
            raise machine.MachineError(f"no Podman service: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends it, by SIGKILL as if it had crashed; its data stay. Its containers end, too."""
        if self._process and self._process.poll() is None:
            pid = self._process.pid
            (service,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            os.kill(int(service), number)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        subprocess.run(["umount", "--lazy", str(self.data)], check=True)
        self._short.cleanup()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of podman's against the service."""
        environment = {**os.environ, "CONTAINER_HOST": self.host}
        command = [str(self.client / "podman-remote"), *arguments]
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=30)

    def working(self) -> list[str]:
        """Its containers, those of builds among them."""
        return self.run("ps", "--all", "--external", "--quiet").stdout.split()

    def _answers(self) -> bool:
        return self.run("version").returncode == 0

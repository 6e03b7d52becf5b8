"""A Docker daemon of a test's own, which may be stopped, frozen and filled up without harm to the machine's.

It shares the machine's bridge (`docker0`), so that RUN steps work, and leaves the firewall alone. It needs root, as any
`dockerd` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.parts import machine


def problem() -> str | None:
    """Why no daemon can be started here, in a sentence; `None` where it can."""
    if os.geteuid() != 0:
        return "a Docker daemon of its own needs root"
    if not Path("/sys/class/net/docker0").exists():
        return "there is no docker0 bridge"
    return None


class Dockerd:
    """A daemon with its data below `folder`, on a file system of `size` MiB in memory where that is given.

    `downloads` is how often it tries to get a layer; `mirror` is where it looks for images of Docker Hub first.
    """

    def __init__(
        self, folder: Path, size: int | None = None, *, downloads: int | None = None, mirror: str | None = None
    ) -> None:
        self.folder = folder
        self._settings = {
            **({"max-download-attempts": downloads} if downloads else {}),
            **({"registry-mirrors": [mirror]} if mirror else {}),
        }
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        # The path of a Unix socket has at most 107 bytes.
        self._short = tempfile.TemporaryDirectory(prefix="dockerd-", dir="/run")
        self._socket = Path(self._short.name) / "docker.sock"
        self.host = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None
        if size is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(self.data)], check=True)

    def start(self) -> None:
        """Starts the daemon and returns when it answers."""
        config = self.folder / "daemon.json"
        config.write_text(json.dumps(self._settings))
        program = machine.program("dockerd", "docker.io")
        options = [f"--data-root={self.data}", f"--exec-root={self._short.name}/exec", f"--host={self.host}"]
        options += [f"--pidfile={self._short.name}/pid", "--bridge=docker0", "--ip-forward=false", "--ip-masq=false"]
        options += ["--iptables=false", "--ip6tables=false", "--userland-proxy=false", f"--config-file={config}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([str(program), *options], stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 40
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise machine.MachineError(f"no second dockerd: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends it, by SIGKILL as if it had crashed; its data stay. Its containers end, too."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def pause(self) -> None:
        """From now on it takes connections and answers nothing."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self.stop()
        for path in _mounted_below(str(self.folder), self._short.name):
            subprocess.run(["umount", "--lazy", path], check=True)
        self._short.cleanup()

    def _answers(self) -> bool:
        done = subprocess.run(["docker", "--host", self.host, "version"], check=False, capture_output=True, timeout=30)
        return done.returncode == 0


def _mounted_below(*folders: str) -> list[str]:
    """The innermost first."""
    paths = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [path for path in reversed(paths) if path.startswith(tuple(f"{folder}/" for folder in folders))]

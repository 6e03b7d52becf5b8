"""Kiln's own processes, started as a person starts them: `python -m kiln web`, `controller`, and the other commands."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from tests.parts.registry import free_port

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
START_SECONDS = 30.0
QUICKEST, SLOWEST = 0.02, 0.5
"""Seconds between two checks of a condition: the first for checks that cost nothing."""


class Process:
    """A process that runs. `log` is the file of its lines."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path, url: str | None, ops: str) -> None:
        self.popen, self.log, self.url, self.ops = popen, log, url, ops

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines that it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it and returns its exit status (negative: the number of the signal that ended it)."""
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        return self.popen.wait(timeout=30)


class Kiln:
    """An installation: its state under `folder`, its settings as `KILN_*`. A context that stops all its processes."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = {
            "KILN_IMAGE_PREFIX": "registry.invalid/",
            "KILN_STATE_DIR": str(folder / "state"),
            **settings,
        }
        self.processes: list[Process] = []
        self.program: Sequence[str] = (sys.executable, "-m", "kiln")
        self.cwd = ROOT

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.stop(signal.SIGKILL)

    @property
    def own_token(self) -> str | None:
        """This machine's token, which web creates where `KILN_AUTH` is unset."""
        path = Path(self.settings["KILN_STATE_DIR"]) / "token"
        return path.read_text().strip() if "KILN_AUTH" not in self.settings and path.exists() else None

    @property
    def authorization(self) -> dict[str, str]:
        return {} if self.own_token is None else {"Authorization": f"Bearer {self.own_token}"}

    @property
    def environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in KEPT if name in os.environ} | self.settings

    def start(self, command: str, *, ready: bool = True, **settings: str) -> Process:
        """Starts `web` or `controller`, with ports of its own unless they are given. Returns once it is ready; with
        `ready=False` it returns immediately."""
        port, ops = settings.get("PORT") or free_port(), settings.get("KILN_OPS_PORT") or free_port()
        environment = self.environment | {"PORT": str(port), "KILN_OPS_PORT": str(ops)} | settings
        log = self.folder / f"{command}-{len(self.processes)}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen([*self.program, command], cwd=self.cwd, env=environment, stdout=out, stderr=out)
        base = environment.get("KILN_BASE_PATH") or environment.get("JUPYTERHUB_SERVICE_PREFIX", "/")
        url = f"http://127.0.0.1:{port}{base}" if command == "web" else None
        process = Process(popen, log, url, f"http://127.0.0.1:{ops}")
        self.processes.append(process)
        if ready:
            until(lambda: get(f"{process.ops}/readyz")[0] == 200 or popen.poll() is not None)
            if popen.poll() is not None:
                raise AssertionError(f"kiln {command} ended with {popen.returncode}: {log.read_text()}")
        return process

    def run(self, *arguments: str, stdin: bytes = b"", **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs a command that ends by itself."""
        done = subprocess.run(
            [*self.program, *arguments],
            cwd=self.cwd,
            env=self.environment | settings,
            input=stdin,
            capture_output=True,
            timeout=50,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body; status 0 where no server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


def is_locked(path: Path) -> bool:
    """Whether a process holds an exclusive lock on the file (flock(2))."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def megabytes(pid: int) -> float:
    """The memory of a process and its children; shared pages count in parts (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(megabytes(int(child)) for child in children)


def until(condition: Callable[[], object], seconds: float = START_SECONDS, slowest: float = SLOWEST) -> None:
    """Waits for a condition. Checks take a tenth of that time at most, so that they do not keep the process under test
    busy. At most `slowest` seconds are between two of them.

    Raises AssertionError where it does not become true in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain")
        pause = min(max(QUICKEST, 10 * (now - began)), slowest)
        time.sleep(min(pause, max(deadline - now, QUICKEST)))

"""Node and the packages for the tests of JupyterHub's clients, from the lock file beside those tests."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

from tests.parts.machine import CACHE, ROOT, MachineError

PACKAGES = ROOT / "tests/hub"
LEAST = (20, 19)
"""The first Node 20 that detects a module by its syntax; the client's package does not declare that it is one."""


def problem() -> str | None:
    """Why the packages cannot run here, in a sentence; `None` where they can."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "there is no node with npm"
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if tuple(map(int, version.removeprefix("v").split(".")[:2])) < LEAST:
        return f"node is {version}; it takes {'.'.join(map(str, LEAST))} or newer"
    return None


def packages() -> Path:
    """The folder of the packages, which npm installs where they are missing. Raises MachineError."""
    reason = problem()
    if reason:
        raise MachineError(reason)
    folder = CACHE / "hub"
    folder.mkdir(parents=True, exist_ok=True)
    lock, installed = (PACKAGES / "package-lock.json").read_bytes(), folder / "installed"
    with (folder / "busy").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_bytes() != lock:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(PACKAGES / name, folder)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
            if done.returncode:
                raise MachineError(f"`npm ci` for the tests ended with status {done.returncode}: {done.stderr[-500:]}")
            installed.write_bytes(lock)
    return folder

"""The programs that builds need on this machine: whether they are installed, and in which version."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

TIMEOUT = 20.0
"""Seconds for a program to print its version: repo2docker takes several on a busy machine."""
LONGEST = 200
PODMAN_CLIENTS = ("podman-remote", "podman")


class ToolError(Exception):
    """Why a program cannot be used, as a sentence."""


def version(program: str, *arguments: str) -> str:
    """The first line that a program prints about itself, started as the builder starts it. Raises ToolError."""
    command = " ".join([program, *arguments])
    try:
        done = subprocess.run(
            [path_of(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"`{command}` did not end within {TIMEOUT:g} s.") from None
    except OSError as error:
        raise ToolError(f"`{command}` cannot be run: {error.strerror or type(error).__name__}.") from None
    lines = [line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    said = lines[0][:LONGEST] if lines else "nothing"
    if done.returncode:
        raise ToolError(f"`{command}` fails: {said}")
    return said


def path_of(program: str) -> str:
    """The program beside this interpreter, where an environment's own programs are, or else the one on the path."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.is_file() else shutil.which(program) or program


def podman_client() -> str:
    """A client of the Podman service: `podman` itself is one if CONTAINER_HOST is set."""
    return next((name for name in PODMAN_CLIENTS if shutil.which(name)), PODMAN_CLIENTS[0])

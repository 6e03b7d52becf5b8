"""An image with Podman, built here: one from Debian's packages, where no registry can be reached."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.parts import machine

IMAGE = "kiln-test/podman:5"


def build() -> str:
    """Builds it, which is quick where nothing has changed, and returns its name. Raises MachineError."""
    command = ["docker", "build", "--quiet", f"--tag={IMAGE}", str(Path(__file__).parent)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise machine.MachineError(f"the image with Podman cannot be made: {done.stderr.strip()[-2000:]}")
    return IMAGE

"""Kiln's wheel, built from this tree and installed into a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.parts.kiln import ROOT, Kiln


def build(folder: Path) -> Path:
    """Builds the wheel with the build backend of pyproject.toml, which must be installed, and returns its path."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Installs the wheel without network into a new virtual environment, and returns the program `kiln`.

    The environment finds the dependencies where those of this Python are. It does not contain Kiln's source tree.
    """
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, capture_output=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True, capture_output=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment / "bin" / "kiln"


class InstalledKiln(Kiln):
    """An installation of a wheel. Its processes start in an empty folder."""

    def __init__(self, program: Path, folder: Path, **settings: str) -> None:
        super().__init__(folder, **settings)
        self.program = (str(program),)
        self.cwd = folder / "empty"
        self.cwd.mkdir()
        beside = Path(sys.executable).parent  # pip would install programs of dependencies beside `kiln`
        self.settings["PATH"] = f"{beside}:{self.environment['PATH']}"

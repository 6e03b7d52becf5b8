"""Kiln's image, built as `make image` builds it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tarfile import open as open_tar
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

from tests.parts import machine

BASE = "python:3.13-slim"
IMAGE = "kiln:test"


def build(image: str = IMAGE) -> str:
    """Builds it, which is quick where nothing has changed, and returns its name. Raises MachineError."""
    done = subprocess.run(
        ["make", "image", f"IMAGE={image}"], cwd=machine.ROOT, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise machine.MachineError(f"the image cannot be made: {done.stderr.strip()[-2000:]}")
    return image


def inspect(image: str) -> dict[str, Any]:
    done = subprocess.run(["docker", "image", "inspect", image], check=True, capture_output=True)
    return cast("dict[str, Any]", json.loads(done.stdout)[0])


def layers(image: str, base: str = BASE) -> Iterator[IO[bytes]]:
    """The tar files of the layers on top of the base."""
    below = len(inspect(base)["RootFS"]["Layers"])
    with TemporaryDirectory() as folder:
        saved = Path(folder) / "image.tar"
        subprocess.run(["docker", "save", "--output", str(saved), image], check=True)
        with open_tar(saved) as tar:
            manifest = tar.extractfile("manifest.json")
            assert manifest
            for name in json.load(manifest)[0]["Layers"][below:]:
                layer = tar.extractfile(name)
                assert layer
                yield layer

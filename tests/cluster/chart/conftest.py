"""What these tests need: helm, and nothing else."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(autouse=True, scope="session")
def helm() -> None:
    if shutil.which("helm") is None:
        pytest.skip("there is no helm command")

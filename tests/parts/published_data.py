"""Data that other projects publish, read where it lies: `KILN_SHARED_DATA`, by default beside this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"


def published_data(name: str) -> Path:
    """The file or folder of that name. Where it is missing, the test is skipped with that name as the reason."""
    path = Path(os.environ.get("KILN_SHARED_DATA") or BESIDE) / name
    if not path.exists():
        pytest.skip(f"published data is not here: {path}")
    return path

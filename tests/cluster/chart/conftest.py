"""Fixtures of the chart's tests, which need helm and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.cluster.chart.helm import CHART


@pytest.fixture(autouse=True, scope="session")
def helm() -> None:
    if shutil.which("helm") is None:
        pytest.skip("there is no helm command")


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Create a chart with this chart as a dependency."""
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "kiln").symlink_to(CHART)
    about = {"apiVersion": "v2", "name": "hub", "version": "1.0.0", "dependencies": [{"name": "kiln", "version": "*"}]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(about))
    return tmp_path

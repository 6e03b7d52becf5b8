"""The daemon's files: its configuration in the words of its version, and scripts that each shell there reads."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.chart.helm import CHART, LEAST, merged, render

SCRIPTS = sorted((CHART / "files").iterdir())


def policy(dockerd: dict[str, Any]) -> dict[str, Any]:
    release = render(merged(LEAST, {"dockerd": dockerd}))
    daemon = json.loads(release.the("ConfigMap", "kiln-dockerd")["data"]["daemon.json"])
    assert daemon["builder"]["gc"]["enabled"] is True
    [only] = daemon["builder"]["gc"]["policy"]
    assert only.pop("all") is True
    return dict(only)


LIMITS = {"maxUsedSpace": "20GB", "reservedSpace": "2GB", "minFreeSpace": "10GB"}


@pytest.mark.parametrize("tag", ["26.1-dind", "27.5.1-dind", "26.1-dind@sha256:" + "0" * 64])
def test_before_28_the_cache_has_one_limit(tag: str) -> None:
    assert policy({"image": {"tag": tag}, "gc": LIMITS}) == {"keepStorage": "20GB"}


@pytest.mark.parametrize("dockerd", [{"image": {"tag": "28-dind"}}, {"image": {"tag": "29.1.0"}}, {"version": 28}])
def test_from_28_on_it_has_three(dockerd: dict[str, Any]) -> None:
    assert policy({**dockerd, "gc": LIMITS}) == LIMITS


def test_the_version_that_is_said_counts() -> None:
    assert policy({"image": {"tag": "nightly-dind"}, "version": "26", "gc": LIMITS}) == {"keepStorage": "20GB"}


def test_the_scripts_in_the_chart_are_these() -> None:
    data = render().the("ConfigMap", "kiln-dockerd")["data"]
    for script in SCRIPTS:
        lines = [line.rstrip() for line in data[script.name].rstrip().splitlines()]
        assert lines == script.read_text().rstrip().splitlines()


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_each_shell_reads_the_scripts(shell: str, script: Path) -> None:
    program, *options = shell.split()
    if program == "busybox":
        from tests.parts import machine  # noqa: PLC0415

        program = str(machine.program("busybox", package="busybox-static"))
    elif shutil.which(program) is None:
        pytest.skip(f"there is no {program}")
    subprocess.run([program, *options, "-n", str(script)], check=True)

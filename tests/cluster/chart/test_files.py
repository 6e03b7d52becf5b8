"""The daemon's files: its configuration in the words of its version, and scripts that each shell there reads."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.chart.helm import CHART, LEAST, VALUES, environment, merged, render

SCRIPTS = sorted((CHART / "files").iterdir())


def policy(dockerd: dict[str, Any]) -> dict[str, Any]:
    release = render(merged(LEAST, {"dockerd": dockerd}))
    daemon = json.loads(release.files["daemon.json"])
    assert daemon["builder"]["gc"]["enabled"] is True
    [only] = daemon["builder"]["gc"]["policy"]
    assert only.pop("all") is True
    return dict(only)


DIGEST = "sha256:" + "0" * 64
LIMITS = {"maxUsedSpace": "20GB", "reservedSpace": "2GB", "minFreeSpace": "10GB"}


@pytest.mark.parametrize(
    "image", [{"tag": "26.1-dind"}, {"tag": "27.5.1-dind"}, {"tag": "26.1-dind", "digest": DIGEST}]
)
def test_before_28_the_cache_has_one_limit(image: dict[str, str]) -> None:
    assert policy({"image": image, "gc": LIMITS}) == {"keepStorage": "20GB"}


@pytest.mark.parametrize("dockerd", [{"image": {"tag": "28-dind"}}, {"image": {"tag": "29.1.0"}}, {"version": 28}])
def test_from_28_on_it_has_three(dockerd: dict[str, Any]) -> None:
    assert policy({**dockerd, "gc": LIMITS}) == LIMITS


def test_the_version_that_is_said_counts() -> None:
    assert policy({"image": {"tag": "nightly-dind"}, "version": "26", "gc": LIMITS}) == {"keepStorage": "20GB"}


def test_the_scripts_in_the_chart_are_these() -> None:
    files = render().files
    for script in SCRIPTS:
        assert files[script.name] == script.read_text()


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


# That they are what the chart has put there. --------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Runs the daemon's command on the files in `tmp_path / "files"`, with a script that only says a word."""
    release = render()
    [daemons] = release.of("DaemonSet")
    files = {**release.files, "dockerd": "echo started with $*\n"}
    command = daemons["spec"]["template"]["spec"]["containers"][0]["command"]
    folders = {"/etc/kiln/dockerd": tmp_path / "files", "/tmp/kiln": tmp_path / "copies"}
    script = command[2].replace(sha256(release.files["dockerd"]), sha256(files["dockerd"]))
    for path, folder in folders.items():
        script = script.replace(path, str(folder))
    folders["/etc/kiln/dockerd"].mkdir()
    for name in ("dockerd", "prune", "daemon.json"):
        (tmp_path / "files" / name).write_text(files[name])
    return lambda: subprocess.run([*command[:2], script, *command[3:], "flags"], capture_output=True, text=True)  # noqa: PLW1510


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_daemon_s_files_are_used_as_they_were_installed(started: Callable[[], Any], tmp_path: Path) -> None:
    assert started().stdout.splitlines()[-1] == "started with flags"
    assert (tmp_path / "copies" / "daemon.json").is_file()


@pytest.mark.parametrize("name", ["dockerd", "prune", "daemon.json"])
def test_a_daemon_whose_files_are_others_does_not_start(started: Callable[[], Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "files" / name).write_text("echo started with something else\n")
    done = started()
    assert done.returncode != 0
    assert "started" not in done.stdout


def test_web_and_controller_know_the_digests_of_their_files() -> None:
    release = render(VALUES["everything"])
    for component, expected in (("web", {"KILN_CONFIG"}), ("controller", {"KILN_CONFIG", "KILN_POD_TEMPLATE"})):
        [deployment] = release.of("Deployment", component=component)
        env = environment(deployment["spec"]["template"]["spec"]["containers"][0])
        assert {name for name in ("KILN_CONFIG", "KILN_POD_TEMPLATE") if name in env} == expected
        for name in expected:
            assert env[f"{name}_SHA256"] == sha256(release.files[Path(env[name]).name])

"""The daemon's files: configuration in the format of the daemon's version, and scripts that every shell can parse."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.chart.helm import CHART, LEAST, VALUES, Release, environment, merged, render

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
    files = render().files | render(VALUES["podman"]).files
    for script in SCRIPTS:
        assert files[script.name] == script.read_text()


# Podman's configuration. ----------------------------------------------------------------------------------------------


def podman(**values: Any) -> Release:
    return render(merged(LEAST, {"daemon": "podman"}, values))


def registries(release: Release) -> dict[str, Any]:
    read = tomllib.loads(release.files["registries.conf"])
    return {one["location"]: (one.get("insecure", False), one.get("mirror", [])) for one in read.get("registry", [])}


def test_podman_looks_short_names_up_at_docker_hub() -> None:
    release = podman()
    assert tomllib.loads(release.files["registries.conf"])["unqualified-search-registries"] == ["docker.io"]
    assert registries(release) == {}


def test_podman_knows_the_one_list_of_insecure_registries_and_mirrors() -> None:
    mirrors = {"docker.io": ["mirror:5000", "other.example"], "open:80": ["mirror:5000"]}
    insecure = {"insecure_registries": ["open:80", "mirror:5000"]}
    through = {"location": "mirror:5000", "insecure": True}
    assert registries(podman(config=insecure, podman={"mirrors": mirrors})) == {
        "docker.io": (False, [through, {"location": "other.example"}]),
        "mirror:5000": (True, []),
        "open:80": (True, [through]),
    }


def test_podman_s_own_files_are_read_as_toml() -> None:
    files = podman(podman={"subnet": "10.9.0.0/24"}).files
    assert tomllib.loads(files["containers.conf"])["engine"]["cgroup_manager"] == "cgroupfs"
    assert json.loads(files["network.json"])["subnets"] == [{"subnet": "10.9.0.0/24", "gateway": "10.9.0.1"}]
    assert tomllib.loads(files["storage.conf"])["storage"]["driver"] == "overlay"


@pytest.mark.parametrize(
    ("space", "bytes_"),
    [("30GB", 30 * 10**9), ("1.5 GiB", 3 * 2**29), ("500", 500), ("2Tb", 2 * 10**12), ("3kB", 3000), ("4MiB", 2**22)],
)
def test_podman_s_images_have_the_limit_of_the_cache(space: str, bytes_: int) -> None:
    [daemons] = podman(dockerd={"gc": {"maxUsedSpace": space}, "prune": {"interval": 7, "diskHigh": 70}}).of(
        "DaemonSet"
    )
    assert daemons["spec"]["template"]["spec"]["containers"][1]["args"] == ["7", str(bytes_), "70"]


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


# Files unchanged since installation. ----------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Return a function that runs the daemon's command on `tmp_path / "files"`, with a stub `dockerd`."""
    release = render()
    [daemons] = release.of("DaemonSet")
    files = {**release.files, "dockerd": "echo started with $*\n"}
    command = daemons["spec"]["template"]["spec"]["containers"][0]["command"]
    folders = {"/etc/kiln/daemon": tmp_path / "files", "/tmp/kiln": tmp_path / "copies"}
    script = command[2].replace(sha256(release.files["dockerd"]), sha256(files["dockerd"]))
    for path, folder in folders.items():
        script = script.replace(path, str(folder))
    folders["/etc/kiln/daemon"].mkdir()
    for name in ("daemon", "dockerd", "prune", "prepull", "daemon.json"):
        (tmp_path / "files" / name).write_text(files[name])
    return lambda: subprocess.run([*command[:2], script, *command[3:], "flags"], capture_output=True, text=True)  # noqa: PLW1510


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_daemon_s_files_are_used_as_they_were_installed(started: Callable[[], Any], tmp_path: Path) -> None:
    assert started().stdout.splitlines()[-1] == "started with flags"
    assert (tmp_path / "copies" / "daemon.json").is_file()


@pytest.mark.parametrize("name", ["daemon", "dockerd", "prune", "prepull", "daemon.json"])
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

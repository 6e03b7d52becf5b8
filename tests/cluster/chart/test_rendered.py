"""The whole rendered chart: equal to the golden files, valid for the API server, and deterministic.

`make chart` renews the golden files; review their diff.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.cluster.chart.helm import CHART, LEAST, ROOT, VALUES, Object, Release, environment, merged, render

GOLDEN = Path(__file__).parent / "golden"
EXTENSIONS = re.compile(r"monitoring\.coreos\.com|gateway\.networking\.k8s\.io|.*\.knative\.dev")
"""API groups outside of Kubernetes, for which no schema is available here."""

each_example = pytest.mark.parametrize("example", VALUES)


@each_example
def test_it_is_as_it_was_last_looked_at(example: str) -> None:
    file = GOLDEN / f"{example}.yaml"
    text = render(VALUES[example]).text
    if os.environ.get("GOLDEN") == "renew":
        file.write_text(text)
    assert text == file.read_text(), "if this is meant, `make chart` renews the file"


def test_each_golden_file_has_its_values() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {*VALUES}


@each_example
def test_helm_has_nothing_to_complain_about(example: str) -> None:
    command = ["helm", "lint", "--strict", "--values", str(VALUES[example]), str(CHART)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@each_example
def test_every_object_is_valid_and_has_no_field_that_there_is_not(example: str) -> None:
    release = render(VALUES[example])
    template = {"apiVersion": "v1", "kind": "PodTemplate", "template": release.build_pod}
    objects = [one for one in release.objects if not EXTENSIONS.match(one["apiVersion"])]
    assert len(objects) > 20
    for one in [*objects, template]:
        kubernetes_validate.validate(one, "1.34", strict=True)


@each_example
def test_every_object_is_of_the_namespace_and_says_whose_it_is(example: str) -> None:
    for one in render(VALUES[example]).objects:
        metadata = one["metadata"]
        assert metadata["namespace"] == "kiln", one
        assert metadata["labels"]["app.kubernetes.io/name"] == "kiln"
        assert metadata["labels"]["app.kubernetes.io/instance"] == "kiln"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert metadata["labels"]["app.kubernetes.io/component"]


def test_its_version_is_the_project_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert f"ghcr.io/kiln-images/kiln:{project['version']}" in render().text


def config_maps(release: Release) -> dict[str, Object]:
    """Return all ConfigMaps but the anchor, by the distinguishing word of their names."""
    found = (one for one in release.of("ConfigMap") if "data" in one)
    return {one["metadata"]["name"].removeprefix("kiln-").rpartition("-")[0]: one for one in found}


@each_example
def test_every_config_map_but_the_anchor_is_immutable_and_named_by_its_content(example: str) -> None:
    release = render(VALUES[example])
    maps = config_maps(release)
    daemon = "podman" if example == "podman" else "dockerd"
    there = {"config", "build-pod", daemon} | ({"dashboard"} if example == "everything" else set())
    assert {*maps} == there
    assert [one["metadata"]["name"] for one in release.of("ConfigMap") if "data" not in one] == ["kiln"]
    assert all(one["immutable"] is True for one in maps.values())
    for word, one in maps.items():
        assert re.fullmatch(rf"kiln-{word}-[0-9a-f]{{10}}", one["metadata"]["name"])
    mounted = {
        volume["configMap"]["name"] for _, pod in release.pods() for volume in pod["volumes"] if "configMap" in volume
    }
    ours = {one["metadata"]["name"] for word, one in maps.items() if word != "dashboard"}  # Grafana reads the dashboard
    assert ours == mounted - {"ca"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"config": {"allowed_images": ["registry.example/x"]}}, {"config"}),
        ({"builds": {"tmpSize": "1Gi"}}, {"build-pod"}),
        ({"dockerd": {"gc": {"maxUsedSpace": "1GB"}}}, {"dockerd"}),
        ({"podman": {"subnet": "10.1.0.0/24"}}, set()),
    ],
)
def test_new_content_has_a_new_name_and_so_takes_new_pods(values: dict[str, Any], words: set[str]) -> None:
    before, after = (config_maps(render(merged(LEAST, more))) for more in ({}, values))
    names = [{word: one["metadata"]["name"] for word, one in maps.items()} for maps in (before, after)]
    assert {word for word in names[0] if names[0][word] != names[1][word]} == words


def test_a_new_secret_takes_no_new_pods() -> None:
    def pods(token: str) -> list[Object]:
        release = render(merged(LEAST, {"apiTokens": {"values": {"alice": token}}}))
        return [one["spec"]["template"] for one in release.objects if one["kind"] in ("Deployment", "DaemonSet")]

    assert pods("first") == pods("second")


def test_every_image_can_be_given_by_digest() -> None:
    digest = "sha256:" + "5" * 64
    values = {"image": {"digest": digest}, "dockerd": {"image": {"tag": "", "digest": digest}, "version": "29"}}
    release = render(merged(LEAST, values))
    images = {container.get("image") for _, pod in release.pods() for container in pod["containers"]} - {None}
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert images == {f"ghcr.io/kiln-images/kiln:{version}@{digest}", f"docker.io/library/docker@{digest}"}
    [controller] = release.of("Deployment", component="controller")
    builder = environment(controller["spec"]["template"]["spec"]["containers"][0])["KILN_BUILDER_IMAGE"]
    assert builder == f"ghcr.io/kiln-images/kiln:{version}@{digest}"


# As a part of another chart. -----------------------------------------------------------------------------------------


def test_switched_off_it_is_not_there_and_asks_for_nothing(parent: Path) -> None:
    assert render({"kiln": {"enabled": False}}, chart=parent).objects == ()


def test_switched_on_it_is_there_beside_global_values(parent: Path) -> None:
    values = {"global": {"imageRegistry": "registry.example"}, "kiln": LEAST}
    release = render(values, release="hub", namespace="courses", chart=parent)
    assert {one["metadata"]["name"].split("-")[1] for one in release.objects} == {"kiln"}
    assert release.the("Service", "hub-kiln")


# Two releases. -------------------------------------------------------------------------------------------------------


def host_paths(release: Release) -> set[str]:
    volumes = [volume for _, pod in release.pods() for volume in pod["volumes"]]
    return {volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"release": "kiln"}, {"release": "second"}),
        ({"release": "kiln"}, {"release": "kiln-exec"}),
        ({"release": "kiln", "namespace": "a"}, {"release": "kiln", "namespace": "b"}),
        ({"release": "c", "namespace": "a-b"}, {"release": "b-c", "namespace": "a"}),
    ],
)
def test_two_releases_share_neither_a_name_nor_a_folder_on_a_node(one: dict[str, str], other: dict[str, str]) -> None:
    first, second = render(VALUES["everything"], **one), render(VALUES["everything"], **other)  # type: ignore[arg-type]

    def names(release: Release) -> set[tuple[str, ...]]:
        return {(it["kind"], it["metadata"]["namespace"], it["metadata"]["name"]) for it in release.objects}

    assert not names(first) & names(second)
    assert len(host_paths(first)) == 4  # three of the daemon, and its certificates, which belong to the node
    assert host_paths(first) & host_paths(second) == {"/etc/docker/certs.d"}
    shared = [path for path in host_paths(first) if any(path.startswith(f"{it}/") for it in host_paths(second))]
    assert shared == []


def test_long_names_stay_within_what_kubernetes_takes() -> None:
    release = render(VALUES["everything"], release="r" * 53)
    assert max(len(one["metadata"]["name"]) for one in release.of("Service")) <= 63

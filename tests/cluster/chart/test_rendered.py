"""The rendered chart, whole: as it was last looked at, valid for the API server, and without anything by chance.

`make chart` renews the golden files; what changed in them is then read in the diff.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.cluster.chart.helm import CHART, LEAST, ROOT, VALUES, Release, merged, render

GOLDEN = Path(__file__).parent / "golden"
EXTENSIONS = {"ServiceMonitor", "HTTPRoute"}
"""Kinds that are not Kubernetes' own: there is no schema of them here."""

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
    objects = [one for one in release.objects if one["kind"] not in EXTENSIONS]
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


def test_a_new_configuration_takes_new_pods_and_a_new_secret_does_not() -> None:
    def annotations(release: Release) -> list[dict[str, str]]:
        kinds = ("Deployment", "DaemonSet")
        return [one["spec"]["template"]["metadata"]["annotations"] for one in release.objects if one["kind"] in kinds]

    before = annotations(render(merged(LEAST, {"apiTokens": {"values": {"alice": "first"}}})))
    rotated = annotations(render(merged(LEAST, {"apiTokens": {"values": {"alice": "second"}}})))
    configured = annotations(render(merged(LEAST, {"config": {"allowed_images": ["registry.example/x"]}})))
    assert rotated == before
    changed = [new != old for new, old in zip(configured, before, strict=True)]
    assert sorted(changed) == [False, True, True]  # the daemon has no use for it


# As a part of another chart. -----------------------------------------------------------------------------------------


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "kiln").symlink_to(CHART)
    about = {"apiVersion": "v2", "name": "hub", "version": "1.0.0", "dependencies": [{"name": "kiln", "version": "*"}]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(about))
    return tmp_path


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
    assert len(host_paths(first)) == 4  # three of the daemon, and its certificates, which are the node's
    assert host_paths(first) & host_paths(second) == {"/etc/docker/certs.d"}
    shared = [path for path in host_paths(first) if any(path.startswith(f"{it}/") for it in host_paths(second))]
    assert shared == []


def test_long_names_stay_within_what_kubernetes_takes() -> None:
    release = render(VALUES["everything"], release="r" * 53)
    assert max(len(one["metadata"]["name"]) for one in release.of("Service")) <= 63

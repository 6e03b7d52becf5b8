"""Render the chart as plain objects with `helm template`, which needs no cluster."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "chart"
VALUES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
LEAST = {"settings": {"image_prefix": "registry.example/org/", "auth": "token"}}

Object = dict[str, Any]


class Refused(Exception):
    """Helm failed to render; the message is its standard error."""


@dataclass(frozen=True)
class Release:
    """The objects that helm would install."""

    text: str
    objects: tuple[Object, ...]

    def of(self, kind: str, **labels: str) -> list[Object]:
        """Return the objects of a kind, optionally by label, such as `component="web"`."""
        wanted = {f"app.kubernetes.io/{name}": value for name, value in labels.items()}
        return [one for one in self.objects if one["kind"] == kind and wanted.items() <= _labels(one).items()]

    def the(self, kind: str, name: str) -> Object:
        [found] = [one for one in self.objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
        return found

    @property
    def build_pod(self) -> Object:
        """The PodTemplateSpec from which the controller creates build pods."""
        template: Object = yaml.safe_load(self.files["build-pod.yaml"])
        return template

    @property
    def files(self) -> dict[str, str]:
        """The content of all files in ConfigMaps, by file name."""
        return {name: text for one in self.of("ConfigMap") for name, text in one.get("data", {}).items()}

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield the component and the PodSpec of every pod that the release runs."""
        for one in self.objects:
            if one["kind"] in ("Deployment", "DaemonSet") or is_of_knative(one, "Service"):
                template = one["spec"]["template"]
                yield _labels(template)["app.kubernetes.io/component"], template["spec"]
            if one["kind"] == "Pod":
                yield _labels(one)["app.kubernetes.io/component"], one["spec"]
        if self.objects:
            yield "build", self.build_pod["spec"]


def render(
    values: Mapping[str, Any] | Path = LEAST,
    *,
    release: str = "kiln",
    namespace: str = "kiln",
    chart: Path = CHART,
) -> Release:
    """Render the chart. Raises Refused."""
    text = values.read_text() if isinstance(values, Path) else yaml.safe_dump(dict(values))
    rendered = _template(text, release, namespace, chart)
    return Release(rendered, tuple(one for one in yaml.safe_load_all(rendered) if one))


@functools.cache
def _template(values: str, release: str, namespace: str, chart: Path) -> str:
    command = ["helm", "template", release, str(chart), "--namespace", namespace, "--values", "-"]
    done = subprocess.run(command, input=values, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge values with later ones taking precedence, as helm does."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            below = whole.get(name)
            whole[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return whole


def is_of_knative(one: Object, kind: str) -> bool:
    return one["kind"] == kind and ".knative.dev/" in one["apiVersion"]


def environment(container: Object) -> dict[str, str]:
    """Return the environment variables with plain values."""
    return {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def mounts(pod: Object) -> dict[str, Object]:
    """Return the volume at each mount path of a pod's containers."""
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in _mounts(pod["containers"])}


def _mounts(containers: Iterable[Object]) -> Iterator[Object]:
    for container in containers:
        yield from container.get("volumeMounts", [])


def _labels(one: Object) -> dict[str, str]:
    labels: dict[str, str] = one["metadata"].get("labels", {})
    return labels

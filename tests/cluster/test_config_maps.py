"""ConfigMaps hold the code and settings that run, and web may patch them: a compromised web must not change these."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.parts.cluster import CHART, Cluster, Object, image_values
from tests.parts.kiln import until
from tests.parts.machine import MachineError

pytestmark = pytest.mark.timeout(300)


@dataclass
class Installed:
    """The chart in its own namespace, with pods that no node accepts until a test lets one run."""

    cluster: Cluster
    namespace: str

    @property
    def web(self) -> str:
        """The kubectl option that impersonates web's service account."""
        return f"--as=system:serviceaccount:{self.namespace}:kiln-web"

    def upgrade(self, **values: Any) -> None:
        path = self.cluster.folder / f"{self.namespace}.yaml"
        nowhere = {"nodeSelector": {"kiln.dev/no-such": "node"}}
        own = {
            "image": image_values(self.cluster.kiln_image),
            "settings": {"image_prefix": "registry.example/org/", "auth": "none"},
            "web": nowhere,
            "controller": nowhere | {"replicas": 1},
            "dockerd": nowhere | {"gc": values.pop("gc", {})},
        }
        path.write_text(yaml.safe_dump({**own, **values}))
        self.cluster.helm(
            "upgrade", "--install", "kiln", str(CHART), f"--namespace={self.namespace}", f"--values={path}"
        )

    def config_maps(self) -> dict[str, Object]:
        """Return the chart's ConfigMaps by name, except the anchor."""
        found = self.cluster.get("configmaps", self.namespace, "app.kubernetes.io/managed-by=Helm")
        return {one["metadata"]["name"]: one for one in found if one["metadata"]["name"] != "kiln"}

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments, stdin=stdin)

    def patch(self, name: str, patch: Object, *, how: str = "merge") -> str:
        """Patch as web and return the API server's refusal, or an empty string after success."""
        try:
            self.kubectl("patch", "configmap", name, f"--type={how}", f"--patch={json.dumps(patch)}", self.web)
        except MachineError as error:
            return str(error)
        return ""


@pytest.fixture
def installed(cluster: Cluster) -> Iterator[Installed]:
    namespace = f"kiln-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "privileged", "kiln.dev/test": "true"}
    metadata = {"name": namespace, "labels": labels}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    installed = Installed(cluster, namespace)
    installed.upgrade()
    yield installed
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def test_web_changes_none_and_an_upgrade_changes_all(installed: Installed) -> None:
    before = installed.config_maps()
    assert len(before) == 3
    for name, one in before.items():
        for key in one["data"]:
            assert "immutable" in installed.patch(name, {"data": {key: "something else"}})
            assert "immutable" in installed.patch(name, {"immutable": False, "data": {key: None}})
            path = "/data/" + key.replace("/", "~1")
            assert "immutable" in installed.patch(name, [{"op": "remove", "path": path}], how="json")
        assert "immutable" in installed.patch(name, {"data": {"another": "file"}})
        assert "immutable" in installed.patch(name, {"binaryData": {"another": "AAAA"}})
        assert "immutable" in installed.patch(name, {"immutable": None})
    assert {name: one["data"] for name, one in installed.config_maps().items()} == {
        name: one["data"] for name, one in before.items()
    }
    installed.upgrade(
        config={"allowed_images": ["registry.example/x"]},
        builds={"tmpSize": "1Gi"},
        gc={"maxUsedSpace": "1GB"},
    )
    after = installed.config_maps()
    assert len(after) == 3
    assert not {*after} & {*before}


def test_one_that_web_has_had_replaced_is_not_used(installed: Installed) -> None:
    """The controller must not use a forged ConfigMap, which its digest reveals.

    Web may not delete, but the garbage collector deletes an object whose owner does not exist. So web can have a
    ConfigMap
    deleted and create another of the same name.
    """
    [(name, template)] = [
        (name, one) for name, one in installed.config_maps().items() if "build-pod.yaml" in one["data"]
    ]
    nobody = {"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "7f3e1bd4-6a4e-4a56-9a53-0b8f5d6c2a11"}
    assert installed.patch(name, {"metadata": {"ownerReferences": [nobody]}}) == ""
    until(lambda: name not in installed.config_maps(), 60)
    changed = template["data"]["build-pod.yaml"] + "  hostPID: true\n"
    forged = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"build-pod.yaml": changed}}
    installed.kubectl("create", "--filename=-", installed.web, stdin=yaml.safe_dump(forged))
    anywhere = json.dumps([{"op": "remove", "path": "/spec/template/spec/nodeSelector"}])
    installed.kubectl("patch", "deployment", "kiln-controller", "--type=json", f"--patch={anywhere}")
    selector = "app.kubernetes.io/component=controller"

    def said() -> str:
        try:
            return installed.kubectl("logs", f"--selector={selector}")
        except MachineError:  # the container has not started yet
            return ""

    until(lambda: "does not match KILN_POD_TEMPLATE_SHA256" in said(), 90)
    pods = installed.cluster.get("pods", installed.namespace, selector)
    assert not any(one["ready"] for pod in pods for one in pod["status"].get("containerStatuses", []))
